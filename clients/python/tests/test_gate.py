from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import pytest
from doubles import FakeGate, access_body, free_port, over_quota, serve, too_fast

import tokentill.gate
from tokentill import AlreadySubscribed, Gate, GateCounts, Problem, Quota, RateLimit, Unreachable

pytestmark = pytest.mark.anyio


@pytest.fixture
def fake() -> FakeGate:
    return FakeGate()


@pytest.fixture
def url(fake: FakeGate) -> Iterator[str]:
    with serve(fake, lifespan="off") as url:
        yield url


class Clock:
    """The gate's clock, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(tokentill.gate, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def new_gate(url: str, **options: Any) -> Gate:
    return Gate(url, FakeGate.token, **{"timeout_secs": 5.0, **options})


async def test_a_check_asks_as_the_contract_has_it(fake: FakeGate, url: str) -> None:
    gate = new_gate(url + "/")
    access = await gate.check("ada/%2F#?\U0001f642", {"requests": 2, "tokens_in": 812})
    await gate.aclose()
    assert fake.asked == [("POST", "/v1/check", {"user_id": "ada/%2F#?\U0001f642", "units": {"requests": 2, "tokens_in": 812}})]
    assert (access.allowed, access.status, access.state, access.reason, access.plan) == (True, 200, "free", None, "free")
    assert access.rate_limit == RateLimit(60, 59)
    assert access.quotas == {"requests": Quota(100, 12, 88, datetime(2126, 12, 1, tzinfo=timezone.utc))}
    assert access.headers == ((b"ratelimit", b'"minute";r=59;t=30'), (b"ratelimit-policy", b'"minute";q=60;w=60'))
    assert not access.unreachable
    assert gate.counts() == GateCounts(asked=1)


async def test_every_check_that_is_allowed_takes_a_request(fake: FakeGate, url: str) -> None:
    gate = new_gate(url)
    assert all([(await gate.check("ada")).allowed for _ in range(3)])
    await gate.aclose()
    assert fake.asked == [("POST", "/v1/check", {"user_id": "ada"})] * 3


async def test_a_refusal_is_repeated_for_a_moment_and_only_for_that_user_and_cost(fake: FakeGate, url: str, clock: Clock) -> None:
    fake.answer = too_fast
    gate = new_gate(url)
    first = await gate.check("ada")
    assert (first.allowed, first.status, first.reason, first.retry_after_secs) == (False, 429, "rate_limited", 17)
    clock.now += 1.5
    assert (await gate.check("ada")).retry_after_secs == 16
    assert len(fake.asked) == 1
    await gate.check("bob")
    await gate.check("ada", {"requests": 2})
    assert len(fake.asked) == 3
    clock.now += 0.6
    await gate.check("ada")
    assert len(fake.asked) == 4
    await gate.aclose()


async def test_a_refusal_is_not_repeated_beyond_the_moment_it_ends(fake: FakeGate, url: str, clock: Clock) -> None:
    soon = (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()
    quotas = {"requests": {"limit": 1, "used": 1, "remaining": 0, "resets_at": soon}}
    endings: list[Any] = [
        lambda *_: (429, {"Retry-After": "1"}, access_body("ada", allowed=False, reason="rate_limited")),
        lambda *_: (402, {}, access_body("ada", allowed=False, reason="quota_exceeded", quotas=quotas)),
    ]
    gate = new_gate(url, cache_secs=30)
    for fake.answer in endings:
        before = len(fake.asked)
        await gate.check("ada")
        clock.now += 1.1
        await gate.check("ada")
        assert len(fake.asked) == before + 2
        clock.now += 60
    await gate.aclose()


async def test_a_quota_that_is_used_up_is_402(fake: FakeGate, url: str) -> None:
    fake.answer = over_quota
    gate = new_gate(url, cache_secs=0)
    access = await gate.check("ada")
    assert (access.allowed, access.status, access.reason, access.retry_after_secs) == (False, 402, "quota_exceeded", None)
    await gate.check("ada")
    assert len(fake.asked) == 2, "nothing is kept with cache_secs=0"
    await gate.aclose()


async def test_fifty_who_ask_at_once_are_one_question(fake: FakeGate, url: str, clock: Clock) -> None:
    gate = new_gate(url)
    fake.waits.clear()
    asking = [asyncio.create_task(gate.access("ada")) for _ in range(50)]
    await asyncio.sleep(0.05)
    asking[0].cancel()
    fake.waits.set()
    answers = await asyncio.gather(*asking[1:])
    assert all(answer.allowed for answer in answers)
    assert fake.asked == [("GET", "/v1/access", "user_id=ada")]
    clock.now += 1.9
    await gate.access("ada")
    assert len(fake.asked) == 1
    clock.now += 0.2
    await gate.access("ada")
    await gate.access("bob")
    assert len(fake.asked) == 3
    await gate.aclose()


def answering(status: int, body: Any = b"", **headers: str) -> Callable[[], httpx.AsyncBaseTransport]:
    def answer(_: httpx.Request) -> httpx.Response:
        json = None if isinstance(body, bytes) else body
        return httpx.Response(status, headers=headers, content=body if json is None else None, json=json)

    return lambda: httpx.MockTransport(answer)


BROKEN: dict[str, tuple[int, Any]] = {
    "a server error": (503, {"title": "Not available", "status": 503}),
    "a gateway that is busy": (429, {"message": "Too Many Requests"}),
    "a wrong URL": (404, {"message": "Not Found"}),
    "somebody else's page": (200, b"<html>"),
    "a redirection": (302, b""),
    "an answer without an end": (200, b'{"allowed": tr'),
    "an answer of another form": (200, {"allowed": True, "rate_limit": 7}),
    "a forbidden call": (403, {"message": "Forbidden"}),
    "a list": (200, []),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_without_an_answer_to_use_it_does_what_is_configured(
    what: str, policy: Literal["open", "closed"], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate("http://gate", "tt_right", on_unreachable=policy, transport=answering(*BROKEN[what]))
    for access in (await gate.check("ada"), await gate.access("ada")):
        assert access.allowed is (policy == "open")
        assert (access.state, access.reason, access.unreachable) == ("unknown", "unreachable", True)
        assert access.status == (200 if policy == "open" else 503)
    assert gate.counts() == GateCounts(asked=2, failed=2, unchecked=2)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert ("let through unchecked" if policy == "open" else "refused") in caplog.text


async def test_a_wrong_token_is_said_loudly_and_not_shown(
    fake: FakeGate, url: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate(url, "tt_wrong", timeout_secs=5)
    assert (await gate.check("ada@example.com")).unreachable
    await gate.access("ada@example.com")
    await gate.aclose()
    assert "THE SERVICE TOKEN IS WRONG" in caplog.text
    assert "tt_wrong" not in caplog.text + repr(gate) + repr(vars(gate).get("_counts"))
    assert "ada@example.com" not in caplog.text


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    gate = new_gate(f"http://127.0.0.1:{free_port()}")
    assert (await gate.check("ada")).unreachable
    assert "ConnectError" in caplog.text or "connect" in caplog.text


async def test_a_slow_gate_does_not_add_its_time_to_every_request(fake: FakeGate, url: str, clock: Clock) -> None:
    fake.waits.clear()
    gate = new_gate(url, timeout_secs=0.05)
    for _ in range(10):
        assert (await gate.check("ada")).unreachable
    assert gate.counts() == GateCounts(asked=3, failed=3, unchecked=10)
    # Later one of many finds out whether it is back.
    clock.now += 5.1
    assert all(access.unreachable for access in await asyncio.gather(*(gate.check("ada") for _ in range(20))))
    assert gate.counts().asked == 4
    fake.waits.set()
    clock.now += 5.1
    gate._timeout_secs = 5
    assert not (await gate.check("ada")).unreachable
    assert not (await gate.check("ada")).unreachable
    assert gate.counts().failed == 4
    await gate.aclose()


async def test_a_probe_that_is_cancelled_leaves_room_for_the_next(fake: FakeGate, url: str, clock: Clock) -> None:
    gate = Gate(url, "tt_wrong", timeout_secs=5)
    for _ in range(3):
        await gate.check("ada")
    clock.now += 5.1
    fake.waits.clear()
    probe = asyncio.create_task(gate.check("ada"))
    await asyncio.sleep(0.05)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    fake.waits.set()
    await gate.check("ada")
    assert gate.counts().asked == 5
    await gate.aclose()


async def test_a_wrong_question_is_said_and_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    problem = {"title": "Bad request", "status": 400, "detail": "no meter counts images"}
    gate = Gate("http://gate", "tt_right", transport=answering(400, problem))
    for _ in range(5):
        assert (await gate.check("ada", {"images": 1})).unreachable
    for _ in range(5):
        assert (await gate.check("\ud800")).unreachable
    assert gate.counts().asked == 10
    assert "no meter counts images" in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gate_serves_one_event_loop_after_another(fake: FakeGate, url: str) -> None:
    gate = new_gate(url)
    for _ in range(2):
        assert not asyncio.run(gate.check("ada")).unreachable
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(gate.check("ada")).unreachable))
    thread.start()
    thread.join()
    assert results == [False]
    # The connections of loops that are gone are gone with them.
    asyncio.run(gate.aclose())
    gc.collect()


class Together(httpx.AsyncBaseTransport):
    """A gate that answers after a moment, and tells how many it was asked side by side."""

    def __init__(self, status: int = 200, secs: float = 0.01) -> None:
        self.status, self.secs = status, secs
        self.now = self.most = 0

    async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.secs)
        finally:
            self.now -= 1
        return httpx.Response(self.status, json=access_body("ada"))


async def test_many_who_ask_side_by_side_take_turns() -> None:
    together = Together()
    gate = Gate("http://gate", "t", timeout_secs=5, transport=lambda: together)
    answers = await asyncio.gather(*(gate.check(str(at)) for at in range(400)))
    assert not [access for access in answers if access.unreachable]
    assert together.most == 50
    assert gate.counts() == GateCounts(asked=400)


async def test_what_fails_side_by_side_is_one_failure() -> None:
    together = Together(503)
    gate = Gate("http://gate", "t", timeout_secs=5, transport=lambda: together)
    for _ in range(3):
        assert (await asyncio.gather(*(gate.check(str(at)) for at in range(40))))[0].unreachable
    assert gate.counts().asked == 120, "the second and the third are asked, too"
    await gate.check("ada")
    assert gate.counts().asked == 120


async def test_who_waits_too_long_for_a_turn_or_until_the_gate_has_failed_does_without(caplog: pytest.LogCaptureFixture) -> None:
    together = Together(secs=0.2)
    gate = Gate("http://gate", "t", timeout_secs=0.3, transport=lambda: together)
    answers = await asyncio.gather(*(gate.check(str(at)) for at in range(160)))
    assert [access.unreachable for access in answers] == [False] * 100 + [True] * 60
    assert "50 questions are under way" in caplog.text
    assert not (await gate.check("ada")).unreachable, "that was no failure of the gate"
    together.status = 503
    gate = Gate("http://gate", "t", timeout_secs=0.3, breaker_failures=1, transport=lambda: together)
    await asyncio.gather(*(gate.check(str(at)) for at in range(100)))
    assert gate.counts() == GateCounts(asked=50, failed=50, unchecked=100)


def test_the_connections_are_kept() -> None:
    pool = tokentill.gate._transport()._pool  # type: ignore[attr-defined]
    assert pool._max_connections == pool._max_keepalive_connections == 50


async def test_nothing_that_is_asked_raises(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        return httpx.Response(200, json=access_body("ada"))

    class Five:
        def __index__(self) -> int:
            return 5

    gate = Gate("http://gate", "t", transport=lambda: httpx.MockTransport(answer))
    odd: list[Any] = [{"requests": [1]}, {1: 1, "a": "b"}, {"a": None}, [1], 7]
    for units in odd:
        assert (await gate.check("ada", units)).unreachable
    for user_id in (["ada"], b"ada", object()):
        await gate.check(user_id)  # type: ignore[arg-type]
        assert (await gate.access(user_id)).unreachable  # type: ignore[arg-type]
    assert "correct the user_id or the units" in caplog.text
    asked.clear()
    assert not (await gate.check("ada", {"requests": Five()})).unreachable  # type: ignore[dict-item]
    assert b'"requests":5' in asked[0].replace(b" ", b"")


async def test_a_time_without_a_zone_is_utc() -> None:
    quotas = {"requests": {"limit": 1, "used": 1, "remaining": 0, "resets_at": "2126-12-01T00:00:00"}}
    body = access_body("ada", allowed=False, reason="quota_exceeded", quotas=quotas)
    access = await Gate("http://gate", "t", transport=answering(402, body)).check("ada")
    assert access.quotas["requests"].resets_at == datetime(2126, 12, 1, tzinfo=timezone.utc)


async def test_the_end_of_a_secrets_line_is_none_of_it(fake: FakeGate, url: str) -> None:
    gate = Gate(f"{url}/\n", f" {FakeGate.token}\r\n", timeout_secs=5)
    assert not (await gate.check("ada")).unreachable
    await gate.aclose()


async def test_checkout_and_portal_tell_a_url(fake: FakeGate, url: str) -> None:
    fake.answer = lambda *_: (200, {}, {"url": "https://checkout.stripe.com/c/1"})
    gate = new_gate(url)
    assert await gate.checkout("ada", "pro", "https://a/ok", "https://a/no") == "https://checkout.stripe.com/c/1"
    assert await gate.portal("ada", "https://a") == "https://checkout.stripe.com/c/1"
    await gate.aclose()
    sold = {"user_id": "ada", "plan": "pro", "success_url": "https://a/ok", "cancel_url": "https://a/no"}
    assert fake.asked == [
        ("POST", "/v1/checkout", sold),
        ("POST", "/v1/portal", {"user_id": "ada", "return_url": "https://a"}),
    ]


async def test_what_cannot_be_sold_is_a_typed_error() -> None:
    problem: dict[str, Any] = {"title": "There is a subscription", "status": 409, "detail": "ada has a subscription"}
    for urls, url in (
        ({}, None),
        ({"portal_url": "https://billing/p"}, "https://billing/p"),
        ({"portal_url": "https://billing/p", "payment_url": "https://invoice/i"}, "https://invoice/i"),
    ):
        problem |= urls
        with pytest.raises(AlreadySubscribed, match="ada has a subscription") as conflict:
            await Gate("http://gate", "t", transport=answering(409, problem)).checkout("ada", "pro", "https://a", "https://a")
        assert conflict.value.url == url
    with pytest.raises(Problem, match="no plan") as unknown:
        await Gate("http://gate", "t", transport=answering(400, {"title": "Bad request", "detail": "no plan"})).portal("ada", "x")
    assert (unknown.value.status, unknown.value.title) == (400, "Bad request")
    with pytest.raises(Problem, match="502"):
        await Gate("http://gate", "t", transport=answering(502, b"<html>")).portal("ada", "x")
    with pytest.raises(Unreachable):
        await Gate(f"http://127.0.0.1:{free_port()}", "t").portal("ada", "x")


def test_a_wrong_configuration_fails_at_the_start() -> None:
    for url, token, policy in (
        ("gate", "t", "open"),
        ("http://gate", "", "open"),
        ("http://gate", " ", "open"),
        ("http://gate", "t\r\nx:y", "open"),
        ("http://gate", "t\xe9", "open"),
        ("http://gate x", "t", "open"),
        ("http://gate", "t", "perhaps"),
    ):
        with pytest.raises(ValueError):
            Gate(url, token, on_unreachable=policy)  # type: ignore[arg-type]
    for tokens in ("tt_new,tt_old", "tt_new tt_old", "tt_new\ntt_old"):
        with pytest.raises(ValueError, match="several tokens: take one"):
            Gate("http://gate", tokens)


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokentill.gate, "CACHED_USERS", 3)
    gate = Gate("http://gate", "t", transport=answering(200, access_body("x")))
    for user in range(10):
        await gate.access(str(user))
    assert len(gate._known._entries) == 3

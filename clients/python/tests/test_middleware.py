from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import httpx
import pytest
from doubles import FakeGate, Queue, free_port, over_quota, serve, too_fast, tracker
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from tokentill import BillingMiddleware, Gate, Usage, UsageTracker, current_usage, provide_usage

WAIT_SECS = 10


def user_of(scope: Any) -> str | None:
    return dict(scope["headers"]).get(b"x-user", b"").decode("latin-1") or None


@dataclass
class Service:
    """A FastAPI service under uvicorn, with what its handlers share with the tests."""

    app: FastAPI = field(default_factory=FastAPI)
    queue: Queue = field(default_factory=Queue)
    gate: FakeGate = field(default_factory=FakeGate)
    url: str = ""
    go_on: threading.Event = field(default_factory=threading.Event)
    served: list[str] = field(default_factory=list)
    tracker: UsageTracker = field(init=False)

    def __post_init__(self) -> None:
        self.tracker = tracker(self.queue)
        app = self.app

        @app.api_route("/v1/items/{item}", methods=["GET", "POST", "HEAD"])
        async def item(item: str, request: Request) -> dict[str, str]:
            self.served.append(item)
            usage: Usage = request.state.usage
            usage.tokens(in_=len(item), out=2, cached=1)
            usage.units(images=2)
            usage.units(seconds=7)
            usage.model("large")
            usage.extra(region="eu")
            return {"request_id": usage.request_id, "same": str(current_usage() is usage)}

        @app.get("/v1/depends")
        async def depends(usage: Annotated[Usage, Depends(provide_usage)]) -> str:
            await asyncio.sleep(0.01)
            usage.tokens(in_=1, out=0)
            return usage.request_id

        @app.get("/v1/thread")
        def thread() -> str:
            current_usage().tokens(in_=3, out=4)
            return current_usage().request_id

        @app.get("/v1/status/{status}")
        async def status(status: int) -> None:
            current_usage().tokens(in_=1, out=1)
            raise HTTPException(status)

        @app.get("/v1/broken")
        async def broken() -> None:
            current_usage().tokens(in_=1, out=1)
            raise ZeroDivisionError

        @app.get("/v1/retried")
        async def retried(usage: Annotated[Usage, Depends(provide_usage)]) -> None:
            usage.model("large")
            usage.tokens(in_=5, out=0)
            usage.attempt_failed("timeout")
            usage.tokens(in_=5, out=6)

        @app.get("/v1/failed")
        async def failed(usage: Annotated[Usage, Depends(provide_usage)]) -> None:
            usage.tokens(in_=5, out=1)
            usage.fail("model_overloaded")

        @app.get("/v1/background")
        async def background(tasks: BackgroundTasks) -> None:
            tasks.add_task(self.go_on.wait, WAIT_SECS)
            current_usage().tokens(in_=1, out=1)

        @app.get("/v1/stream")
        async def stream(tokens: bool = True) -> StreamingResponse:
            usage = current_usage()

            async def parts() -> AsyncIterator[bytes]:
                yield b"one"
                if tokens:
                    usage.tokens(in_=5, out=1)
                yield b"two"
                while not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                    yield b"more"
                usage.tokens(in_=5, out=9)
                yield b"last"

            return StreamingResponse(parts())

        @app.get("/free")
        async def free() -> str:
            current_usage().tokens(in_=1, out=1)
            return "free"

        sub = FastAPI()

        @sub.get("/deep/{name}")
        async def deep(name: str) -> str:
            return name

        app.mount("/v1/mounted", sub)

    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[httpx.Client]:
        """Runs it with the middleware; a client of a user called ada."""
        server = options.pop("server", {})
        with serve(self.gate, lifespan="off") as gate_url:
            gate = Gate(options.pop("gate_url", gate_url), FakeGate.token, timeout_secs=5, **options.pop("gate", {}))
            given: dict[str, Any] = {"gate": gate, "tracker": self.tracker, "user_id": user_of, **options}
            self.app.add_middleware(BillingMiddleware, **given)
            with serve(self.app, **server) as self.url, httpx.Client(base_url=self.url, headers={"x-user": "ada"}) as client:
                yield client
                self.go_on.set()

    def events(self, count: int = 0) -> list[dict[str, Any]]:
        """What was reported, once it is so many events: a client may have its answer a moment before it is reported."""
        for _ in range(1_000):
            assert self.tracker.flush(WAIT_SECS) == 0
            if len(events := self.queue.events()) >= count:
                return events
            threading.Event().wait(0.01)
        pytest.fail(f"{len(events)} events, not {count}")


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_request_is_checked_before_and_reported_after(service: Service) -> None:
    with service.run() as client:
        answer = client.post("/v1/items/seven?q=1")
        (event,) = service.events(1)
    assert service.gate.asked == [("POST", "/v1/check", {"user_id": "ada"})]
    assert answer.json()["same"] == "True"
    assert answer.headers["ratelimit"] == '"minute";r=59;t=30'
    assert answer.headers["ratelimit-policy"] == '"minute";q=60;w=60'
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == event.pop("request_id")
    assert event.pop("timestamp") > 1_700_000_000
    assert event == {
        "user_id": "ada",
        "endpoint": "/v1/items/{item}",
        "tokens_in": 5,
        "tokens_out": 2,
        "tokens_cached": 1,
        "units": {"images": 2, "seconds": 7},
        "model": "large",
        "region": "eu",
        "success": True,
    }


@pytest.mark.parametrize(("answer", "status", "reason"), [(over_quota, 402, "quota_exceeded"), (too_fast, 429, "rate_limited")])
def test_a_refusal_is_passed_on_and_nothing_is_served_or_reported(
    service: Service, answer: Any, status: int, reason: str
) -> None:
    service.gate.answer = answer
    with service.run() as client:
        refusal = client.get("/v1/items/x")
        head = client.head("/v1/items/x")
    assert (refusal.status_code, refusal.json()["reason"], refusal.json()["quotas"]["requests"]["limit"]) == (status, reason, 100)
    assert refusal.headers["content-type"] == "application/json"
    assert refusal.headers["cache-control"] == "no-store"
    assert refusal.headers["x-request-id"].startswith("req_")
    assert (refusal.headers.get("retry-after"), refusal.headers.get("ratelimit")) == (
        ("17", '"minute";r=0;t=17') if status == 429 else (None, None)
    )
    assert (head.status_code, head.content) == (status, b"")
    assert (service.served, service.events()) == ([], [])


def test_without_the_gate_an_open_service_serves_and_reports(service: Service) -> None:
    with service.run(gate_url=f"http://127.0.0.1:{free_port()}") as client:
        assert [client.get("/v1/items/x").status_code for _ in range(5)] == [200] * 5
        assert len(service.events(5)) == 5


def test_without_the_gate_a_closed_service_refuses(service: Service) -> None:
    with service.run(gate_url=f"http://127.0.0.1:{free_port()}", gate={"on_unreachable": "closed"}) as client:
        refusal = client.get("/v1/items/x")
    assert (refusal.status_code, refusal.headers["content-type"]) == (503, "application/problem+json")
    assert refusal.json()["title"] == "Not available"
    assert int(refusal.headers["retry-after"]) > 0
    assert (service.served, service.events()) == ([], [])


def test_a_queue_that_is_down_fails_no_request(service: Service) -> None:
    service.queue.down = True
    with service.run() as client:
        assert [client.get("/v1/items/x").status_code for _ in range(5)] == [200] * 5
        assert service.tracker.counts().sent == 0
        service.queue.down = False
        assert len(service.events(5)) == 5


def test_only_what_was_served_is_a_success(service: Service) -> None:
    told = {}
    with service.run() as client:
        for path in ("status/304", "status/307", "status/404", "status/429", "status/500", "broken", "nowhere", "items/x"):
            answer = client.get(f"/v1/{path}")
            (event,) = service.events(1)
            service.queue.taken.clear()
            told[path] = (answer.status_code, event["success"], event.get("outcome"), event["tokens_in"], event["endpoint"])
    assert told == {
        "status/304": (304, True, None, 1, "/v1/status/{status}"),
        "status/307": (307, False, "status_307", 1, "/v1/status/{status}"),
        "status/404": (404, False, "status_404", 1, "/v1/status/{status}"),
        "status/429": (429, False, "status_429", 1, "/v1/status/{status}"),
        "status/500": (500, False, "status_500", 1, "/v1/status/{status}"),
        "broken": (500, False, "ZeroDivisionError", 1, "/v1/broken"),
        "nowhere": (404, False, "status_404", 0, "/v1/nowhere"),
        "items/x": (200, True, None, 1, "/v1/items/{item}"),
    }


def test_a_mounted_app_and_a_root_path_are_named_and_found(service: Service) -> None:
    with service.run(include=["/v1"], server={"root_path": "/behind/proxy"}) as client:
        assert client.get("/v1/mounted/deep/x").status_code == 200
        assert client.get("/v1/items/x").status_code == 200
        assert [event["endpoint"] for event in service.events(2)] == ["/v1/mounted/deep/{name}", "/v1/items/{item}"]


def test_each_attempt_is_reported_under_one_id(service: Service) -> None:
    with service.run() as client:
        answer = client.get("/v1/retried")
        first, second = service.events(2)
    assert first["request_id"] == second["request_id"] == answer.headers["x-request-id"]
    told = [(e["attempt"], e["success"], e["tokens_in"], e["tokens_out"], e["model"], e.get("outcome")) for e in (first, second)]
    assert told == [(1, False, 5, 0, "large", "timeout"), (2, True, 5, 6, "large", None)]


def test_the_handler_may_call_a_request_failed(service: Service) -> None:
    with service.run() as client:
        assert client.get("/v1/failed").status_code == 200
        (event,) = service.events(1)
    assert (event["success"], event["tokens_in"], event["outcome"]) == (False, 5, "model_overloaded")


def test_requests_side_by_side_have_each_their_own_usage(service: Service) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, headers={"x-user": "ada"}) as client:
            paths = ["/v1/depends"] * 20 + ["/v1/thread"] * 20
            return list(await asyncio.gather(*(client.get(path) for path in paths)))

    with service.run():
        answers = asyncio.run(ask())
        events = {event["request_id"]: event for event in service.events(40)}
    assert len(events) == 40
    for answer in answers:
        event = events[answer.json()]
        assert answer.headers["x-request-id"] == answer.json()
        assert event["tokens_in"] == (1 if event["endpoint"] == "/v1/depends" else 3)


def test_a_stream_is_reported_at_its_end(service: Service) -> None:
    with service.run() as client, client.stream("GET", "/v1/stream") as answer:
        chunks = answer.iter_raw()
        next(chunks)
        assert service.events() == []
        service.go_on.set()
        assert b"".join(chunks).endswith(b"last")
        (event,) = service.events(1)
    assert (event["success"], event["tokens_out"], event.get("outcome")) == (True, 9, None)


@pytest.mark.parametrize(
    ("policy", "tokens", "success"),
    [
        ("usage", True, True),
        ("usage", False, False),
        ("success", False, True),
        ("failure", True, False),
    ],
)
def test_a_client_that_goes_away_pays_for_what_it_got(service: Service, policy: str, tokens: bool, success: bool) -> None:
    with service.run(on_disconnect=policy) as client:
        with client.stream("GET", f"/v1/stream?tokens={tokens}") as answer:
            received = b""
            for chunk in answer.iter_raw():
                received += chunk
                if b"more" in received:
                    break
        (event,) = service.events(1)
    assert (event["success"], event["outcome"]) == (success, "client_disconnect")
    assert event["tokens_out"] == (1 if tokens else 0)


def test_a_background_task_is_not_waited_for(service: Service) -> None:
    with service.run() as client:
        assert client.get("/v1/background").status_code == 200
        assert service.events(1)[0]["success"]
        assert not service.go_on.is_set()


def test_a_callers_request_id_is_only_taken_where_it_is_trusted(service: Service) -> None:
    with service.run() as client:
        for _ in range(2):
            assert client.get("/v1/thread", headers={"x-request-id": "always_this"}).headers["x-request-id"] != "always_this"
        assert len({event["request_id"] for event in service.events(2)}) == 2


def test_a_trusted_request_id_is_still_checked(service: Service) -> None:
    with service.run(trust_request_id_header=True) as client:
        given: list[tuple[Any, bool]] = [
            ([("x-request-id", "req_1")], True),
            ([("x-request-id", "x" * 128)], True),
            ([("x-request-id", "x" * 129)], False),
            ([("x-request-id", "")], False),
            ([("x-request-id", "a b")], False),
            ([("x-request-id", "\xe9".encode("latin-1"))], False),
            ([("x-request-id", "a"), ("x-request-id", "b")], False),
        ]
        for headers, taken in given:
            answer = client.get("/v1/thread", headers=headers)
            assert answer.headers.get_list("x-request-id") == [answer.json()]
            assert (answer.json() == headers[0][1]) is taken
            assert taken or answer.json().startswith("req_")
        assert len(service.events(len(given))) == len(given)


def test_only_what_is_included_is_metered(service: Service) -> None:
    with service.run(include=["/v1/"], exclude=["/v1/thread"]) as client:
        assert client.get("/free").json() == "free"
        assert client.get("/v10").status_code == 404
        assert client.get("/v1/thread").status_code == 200
        assert client.options("/v1/items/x").status_code == 405
        assert service.gate.asked == []
        assert client.get("/v1/depends").status_code == 200
        assert client.head("/v1/items/x").status_code == 200
        assert client.get("/v1").status_code == 404
        assert client.get("/%76%31/items/x").status_code == 200
        assert len(service.gate.asked) == len(service.events(4)) == 4


def test_usage_that_nobody_reports_is_said(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with service.run(include=["/v1"]) as client:
        assert client.get("/free").status_code == 200
    assert "outside of a metered request is not reported" in caplog.text


def test_nobodys_request_is_refused_unless_it_may_pass(service: Service) -> None:
    with service.run() as client:
        refusal = client.get("/v1/items/x", headers={"x-user": ""})
    assert (refusal.status_code, refusal.headers["content-type"]) == (401, "application/problem+json")
    passing = Service()
    with passing.run(anonymous="pass") as client:
        assert client.get("/v1/depends", headers={"x-user": ""}).status_code == 200
    assert (service.served, service.gate.asked, passing.gate.asked) == ([], [], [])
    assert service.events() == passing.events() == []


def test_a_user_who_can_not_be_billed_is_not_served(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with service.run(gate_url=f"http://127.0.0.1:{free_port()}") as client:
        assert client.get("/v1/items/x", headers={"x-user": "x" * 129}).status_code == 401
    assert service.served == []
    assert "user_id is longer than 128 characters" in caplog.text


def test_odd_user_ids_and_a_cost_reach_the_gate_as_they_are(service: Service) -> None:
    odd = "a/b#c?d%2Fe\U0001f642" + "x" * 100

    async def looked_up(_: Any) -> str:
        await asyncio.sleep(0)
        return odd

    with service.run(user_id=looked_up, cost=lambda scope: {"requests": 1, "tokens_in": len(scope["path"])}) as client:
        assert client.get("/v1/items/x").status_code == 200
        assert service.events(1)[0]["user_id"] == odd
    assert service.gate.asked == [("POST", "/v1/check", {"user_id": odd, "units": {"requests": 1, "tokens_in": 11}})]


def test_what_is_left_is_sent_at_shutdown_after_the_services_own() -> None:
    queue = Queue()
    reports = tracker(queue, gather_secs=60)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        reports.record_usage("ada", "shutdown", 1, 1, True)

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(BillingMiddleware, gate=None, tracker=reports, user_id=lambda _: "ada")
    with serve(app) as url:
        httpx.get(f"{url}/nowhere")
        assert queue.events() == []
    assert [event["endpoint"] for event in queue.events()] == ["/nowhere", "shutdown"]


def through(app: Any, queue: Queue, **options: Any) -> tuple[BillingMiddleware, UsageTracker]:
    reports = tracker(queue)
    return BillingMiddleware(app, **{"gate": None, "tracker": reports, "user_id": lambda _: "ada", **options}), reports


HTTP = {"type": "http", "method": "GET", "path": "/x", "headers": []}


async def nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def drop(_: Any) -> None: ...


def test_websockets_and_their_messages_are_passed_through_untouched(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive, send))

    queue = Queue()
    middleware, reports = through(app, queue, include=["/v1"])
    scope = {"type": "websocket", "path": "/ws", "headers": []}
    asyncio.run(middleware(scope, nothing, drop))
    assert caplog.text == ""
    assert (seen[0] is scope, seen[1] is nothing, seen[2] is drop) == (True, True, True)
    for _ in range(2):
        asyncio.run(middleware({**scope, "path": "/v1/ws"}, nothing, drop))
    assert caplog.text.count("neither gated nor billed") == 1
    assert reports.counts().waiting == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, OSError])
def test_an_exception_is_reported_and_goes_on(error: type[BaseException]) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        current_usage().tokens(in_=1, out=1)
        raise error

    queue = Queue()
    middleware, reports = through(app, queue)
    with pytest.raises(error):
        asyncio.run(middleware(HTTP, nothing, drop))
    assert reports.flush(WAIT_SECS) == 0
    (event,) = queue.events()
    cancelled = error is asyncio.CancelledError
    assert (event["success"], event["outcome"]) == (False, "cancelled" if cancelled else error.__name__)


async def left() -> dict[str, Any]:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize(("policy", "success"), [("usage", True), ("success", True), ("failure", False)])
@pytest.mark.parametrize("end", ["cancelled", "complete"])
def test_a_disconnect_that_was_seen_counts_as_configured_however_it_ends(policy: str, success: bool, end: str) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        current_usage().tokens(in_=1, out=1)
        await receive()
        if end == "cancelled":
            raise asyncio.CancelledError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    queue = Queue()
    middleware, reports = through(app, queue, on_disconnect=policy)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(middleware(dict(HTTP), left, drop))
    assert reports.flush(WAIT_SECS) == 0
    assert [(event["success"], event["outcome"]) for event in queue.events()] == [(success, "client_disconnect")]


def test_what_handlers_leave_in_the_scope_is_seen_outside() -> None:
    app = FastAPI()
    queue = Queue()
    reports = tracker(queue)
    seen: dict[str, Any] = {}

    @app.get("/v1/x")
    async def handler(request: Request) -> None:
        request.state.model = "large"

    app.add_middleware(BillingMiddleware, gate=None, tracker=reports, user_id=lambda _: "ada")

    @app.middleware("http")
    async def outer(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        seen.update(model=request.state.model, route=request.scope["route"].path)
        return answer

    with serve(app) as url:
        assert httpx.get(f"{url}/v1/x").status_code == 200
    assert seen == {"model": "large", "route": "/v1/x"}


@pytest.mark.parametrize("by", ["server", "app"])
@pytest.mark.parametrize("root_path", ["/api", "/api/", "/", ""])
def test_whatever_is_routed_below_include_is_metered(root_path: str, by: str) -> None:
    served: list[str] = []
    queue = Queue()
    reports = tracker(queue)
    app = FastAPI()
    app.root_path = root_path if by == "app" else ""

    @app.get("/v1/x")
    async def handler(request: Request) -> None:
        served.append(request.scope["path"])

    app.add_middleware(BillingMiddleware, gate=None, tracker=reports, user_id=lambda _: "ada", include=["/v1/x/"])
    paths = ["/v1/x", "//v1/x", "/v1/x\n", "/api/v1/x", "/api//v1/x"]

    async def ask() -> None:
        for path in paths:
            scope = {**HTTP, "path": path, "root_path": root_path if by == "server" else "", "query_string": b""}
            await app(scope, nothing, drop)

    asyncio.run(ask())
    reports.flush(WAIT_SECS)
    succeeded = [event["endpoint"] for event in queue.events() if event["success"]]
    assert succeeded == ["/v1/x"] * len(served)
    assert len(served) >= 2


class HttpLike(Exception):
    status_code = 403
    detail: object = "not yours"
    headers: ClassVar = {"WWW-Authenticate": "Bearer", "Content-Length": "7"}


def test_an_http_exception_of_user_id_is_the_answer(service: Service) -> None:
    def refuse(scope: Any) -> str:
        what = dict(scope["headers"])[b"x-user"]
        raise {b"like": HttpLike(), b"real": HTTPException(499, {"a": 1}), b"other": ZeroDivisionError()}[what]

    with service.run(user_id=refuse) as client:
        like, real, other = (client.get("/v1/items/x", headers={"x-user": user}) for user in ("like", "real", "other"))
    assert like.json() == {"type": "about:blank", "title": "Forbidden", "status": 403, "detail": "not yours"}
    assert (like.status_code, like.headers["content-type"]) == (403, "application/problem+json")
    assert like.headers["www-authenticate"] == "Bearer"
    assert (real.status_code, real.json()["detail"]) == (499, "HTTP 499")
    assert other.status_code == 500
    assert (service.served, service.gate.asked, service.events()) == ([], [], [])


def test_usage_is_warned_of_once_and_not_at_all_without_a_tracker(caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage()
    for at in range(5):
        usage.tokens(in_=at, out=1)
    assert caplog.text.count("outside of a metered request") == 1
    caplog.clear()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        current_usage().tokens(in_=1, out=1)

    asyncio.run(BillingMiddleware(app, gate=None, tracker=None, user_id=lambda _: "ada")(dict(HTTP), nothing, drop))
    assert caplog.text == ""


@pytest.mark.parametrize("how", ["raises", "returns", "raises after it was asked", "leaves after its start"])
def test_what_is_left_is_sent_although_the_service_has_no_lifespan(how: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            if how in ("raises after it was asked", "leaves after its start"):
                await receive()
            if how == "leaves after its start":
                await send({"type": "lifespan.startup.complete"})
            if how.startswith("raises"):
                raise ValueError("no lifespan here")
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    queue = Queue()
    middleware, _ = through(app, queue, tracker=tracker(queue, gather_secs=60))
    with serve(middleware) as url:
        assert httpx.get(url).text == "ok"
        assert queue.events() == []
    assert len(queue.events()) == 1


@pytest.mark.parametrize(("fails_at", "sent"), [("start", 0), ("end", 1)])
def test_a_service_that_fails_at_its_start_or_its_end_still_does(fails_at: str, sent: int) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if fails_at == "start":
            await send({"type": "lifespan.startup.failed"})
        else:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        raise ZeroDivisionError

    messages = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    queue = Queue()
    reports = tracker(queue, gather_secs=60)
    reports.record_usage("ada", "/x", 1, 1, True)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(through(app, queue, tracker=reports)[0]({"type": "lifespan"}, receive, drop))
    assert len(queue.events()) == sent
    reports.close(WAIT_SECS)


def test_a_server_that_says_the_client_is_gone_when_one_sends() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        current_usage().tokens(in_=1, out=1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def gone(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    queue = Queue()
    middleware, reports = through(app, queue)
    with pytest.raises(OSError):
        asyncio.run(middleware(HTTP, nothing, gone))
    reports.flush(WAIT_SECS)
    assert [(event["success"], event["outcome"]) for event in queue.events()] == [(True, "client_disconnect")]


def test_the_apps_own_request_id_header_is_replaced_and_its_state_is_kept() -> None:
    sent: list[Any] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        assert scope["state"]["kept"] == 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-Id", b"theirs"), (b"a", b"b")]})
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        sent.append(message)

    state = {"kept": 1}
    middleware, _ = through(app, Queue())
    asyncio.run(middleware({**HTTP, "state": state}, nothing, send))
    names = [name for name, _ in sent[0]["headers"]]
    assert names == [b"a", b"x-request-id"]
    assert state["kept"] == 1


def test_a_wrong_configuration_fails_at_the_start() -> None:
    for wrong in ({"include": "/v1"}, {"anonymous": "perhaps"}, {"on_disconnect": "never"}):
        with pytest.raises(ValueError):
            through(drop, Queue(), **wrong)


def test_a_shutdown_that_fails_is_logged_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Gate):
        async def aclose(self) -> None:
            raise ZeroDivisionError

    app = FastAPI()
    app.add_middleware(BillingMiddleware, gate=Broken("http://gate", "t"), tracker=None, user_id=lambda _: "ada")
    with caplog.at_level(logging.ERROR), serve(app):
        pass
    assert "the shutdown of billing failed" in caplog.text

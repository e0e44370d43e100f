"""A service with the middleware against the stack whose stack.json `TOKENTILL_STACK` names, also while parts of it are down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from doubles import free_port, serve
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tokentill import BillingMiddleware, Gate, UsageTracker, current_usage

pytestmark = [
    pytest.mark.stack,
    # Of the abandoned connections of a gate that was slow or not there, and of boto3's.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_SECS = 60


class Stack:
    """What stack.json says, and what the stack has counted."""

    def __init__(self) -> None:
        self.json = json.loads(Path(os.environ["TOKENTILL_STACK"]).read_text())
        self.api_url: str = self.json["api_url"]
        self.token: str = self.json["service_token"]
        self.queue_url: str = self.json["usage_queue_url"]
        self.aws_url: str = self.json["aws_endpoint_url"]
        self.environment = {
            "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_DEFAULT_REGION": self.json["aws_region"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def ask(self, path: str, **query: str) -> Any:
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.get(f"{self.api_url}{path}", params=query, headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def rows(self, user_id: str, count: int) -> list[Any]:
        """The ledger's rows of a user, oldest first, once there are so many."""
        until = time.monotonic() + WAIT_SECS
        while True:
            rows: list[Any] = self.ask("/v1/usage/events", user_id=user_id)["events"]
            if len(rows) >= count:
                assert len(rows) == count
                return rows[::-1]
            assert time.monotonic() < until, f"{rows} and not {count} rows"
            time.sleep(0.3)

    def counted(self, user_id: str, requests: int) -> dict[str, int]:
        """What is counted for a user, once so many requests are."""
        until = time.monotonic() + WAIT_SECS
        while True:
            totals = self.ask("/v1/usage", user_id=user_id)["totals"]
            counted = {meter: total["counted"] for meter, total in totals.items() if total["counted"]}
            if counted.get("requests", 0) >= requests:
                return counted
            assert time.monotonic() < until, f"{counted} and not {requests} requests"
            time.sleep(0.3)


@pytest.fixture(scope="session")
def stack() -> Stack:
    return Stack()


@pytest.fixture(autouse=True)
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def user() -> str:
    """A user nobody knows yet, with a name that has to be quoted in a URL."""
    return f"py/{uuid.uuid4().hex}#?%2F\U0001f642"


class Proxy:
    """Passes TCP connections on to another port; each answer may be held back, and the whole may be down."""

    def __init__(self, target: str) -> None:
        host = httpx.URL(target)
        self.target = (host.host, host.port or 80)
        self.port = free_port()
        self.url = str(host.copy_with(port=self.port))
        self.delay_secs = 0.0
        self._listener: socket.socket | None = None

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(self.target)
                threading.Thread(target=self._pump, args=(near, far, lambda: 0.0), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, lambda: self.delay_secs), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, delay_secs: Callable[[], float]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                time.sleep(delay_secs())
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def service(
    stack: Stack, user: str, *, gate: Gate | None = None, tracker: UsageTracker | None = None, **options: Any
) -> Iterator[str]:
    """A FastAPI service under uvicorn, whose every request is the user's; its URL."""
    gate = gate or Gate(stack.api_url, stack.token, timeout_secs=20)
    tracker = tracker or UsageTracker(stack.queue_url, gather_secs=0.1)
    app = FastAPI()
    app.add_middleware(BillingMiddleware, gate=gate, tracker=tracker, user_id=lambda _: user, **options)

    @app.get("/v1/answer/{name}")
    async def answer(name: str) -> str:
        current_usage().model("large")
        current_usage().tokens(in_=812, out=240)
        return name

    @app.get("/v1/stream")
    async def stream(parts: int) -> StreamingResponse:
        usage = current_usage()

        async def body() -> AsyncIterator[bytes]:
            for part in range(parts):
                usage.tokens(in_=10, out=part + 1)
                yield b"x" * 100
                await asyncio.sleep(0.01)

        return StreamingResponse(body())

    with serve(app) as url:
        yield url
    assert tracker.counts().waiting == 0


def test_an_allowed_request_is_served_and_counted(stack: Stack, user: str) -> None:
    with service(stack, user) as url:
        answer = httpx.get(f"{url}/v1/answer/x", timeout=30)
    assert answer.status_code == 200
    (row,) = stack.rows(user, 1)
    assert row["request_id"] == answer.headers["x-request-id"]
    assert (row["endpoint"], row["model"], row["success"]) == ("/v1/answer/{name}", "large", True)
    assert stack.counted(user, 1) == {"requests": 1, "tokens_in": 812, "tokens_out": 240}
    assert any(name.lower().startswith("ratelimit") for name in answer.headers)


def test_the_free_tiers_end_is_402(stack: Stack, user: str) -> None:
    tracker = UsageTracker(stack.queue_url)
    for _ in range(100):
        assert tracker.record_usage(user, "/v1/elsewhere", 1, 1, True)
    assert tracker.close(WAIT_SECS) == 0
    stack.counted(user, 100)
    with service(stack, user) as url:
        refusal = httpx.get(f"{url}/v1/answer/x", timeout=30)
    assert refusal.status_code == 402
    body = refusal.json()
    quota = body["quotas"]["requests"]
    assert (body["allowed"], body["reason"], quota["limit"], quota["remaining"]) == (False, "quota_exceeded", 100, 0)
    assert quota["resets_at"].endswith("Z")
    assert stack.counted(user, 100)["requests"] == 100


def test_a_rate_limit_is_429_and_says_when_to_come_back(stack: Stack, user: str) -> None:
    if time.time() % 60 > 40:
        # Both requests have to fall into one minute.
        time.sleep(60 - time.time() % 60)
    with service(stack, user, cost={"requests": 40}) as url:
        assert httpx.get(f"{url}/v1/answer/x", timeout=30).status_code == 200
        refusal = httpx.get(f"{url}/v1/answer/x", timeout=30)
    assert (refusal.status_code, refusal.json()["reason"]) == (429, "rate_limited")
    assert 1 <= int(refusal.headers["retry-after"]) <= 60
    assert len(stack.rows(user, 1)) == 1


def test_a_streamed_response_is_counted_at_its_end(stack: Stack, user: str) -> None:
    with service(stack, user) as url:
        assert len(httpx.get(f"{url}/v1/stream?parts=5", timeout=30).content) == 500
    assert stack.counted(user, 1) == {"requests": 1, "tokens_in": 10, "tokens_out": 5}


def test_a_client_that_goes_away_pays_for_what_it_got(stack: Stack, user: str) -> None:
    with service(stack, user) as url:
        with httpx.stream("GET", f"{url}/v1/stream?parts=1000000", timeout=30) as answer:
            next(answer.iter_raw())
        (row,) = stack.rows(user, 1)
    assert (row["success"], row["outcome"]) == (True, "client_disconnect")
    counted = stack.counted(user, 1)
    assert counted["tokens_out"] < 10_000


@pytest.mark.parametrize("policy", ["open", "closed"])
def test_a_gate_that_is_not_there(stack: Stack, user: str, policy: Any) -> None:
    gate = Gate(f"http://127.0.0.1:{free_port()}", stack.token, on_unreachable=policy)
    with service(stack, user, gate=gate) as url:
        statuses = [httpx.get(f"{url}/v1/answer/x", timeout=30).status_code for _ in range(5)]
    assert statuses == [200 if policy == "open" else 503] * 5
    if policy == "open":
        assert stack.counted(user, 5)["requests"] == 5
    else:
        assert stack.rows(user, 0) == []


def test_a_gate_that_is_slow_does_not_slow_every_request(stack: Stack, user: str) -> None:
    proxy = Proxy(stack.api_url)
    proxy.delay_secs = 5
    proxy.start()
    gate = Gate(proxy.url, stack.token, timeout_secs=0.5, breaker_secs=60)
    with service(stack, user, gate=gate) as url:
        began = time.monotonic()
        assert [httpx.get(f"{url}/v1/answer/x", timeout=30).status_code for _ in range(10)] == [200] * 10
        took_secs = time.monotonic() - began
    proxy.stop()
    assert gate.counts().failed == 3
    assert 1.5 < took_secs < 4.5
    assert stack.counted(user, 10)["requests"] == 10


def test_a_wrong_token_is_loud_and_does_what_is_configured(stack: Stack, user: str, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(stack.api_url, "tt_wrong", timeout_secs=20)
    with service(stack, user, gate=gate) as url:
        assert httpx.get(f"{url}/v1/answer/x", timeout=30).status_code == 200
    assert "THE SERVICE TOKEN IS WRONG" in caplog.text
    assert stack.counted(user, 1)["requests"] == 1


def test_a_queue_that_is_down_fails_no_request_and_nothing_is_lost(stack: Stack, user: str) -> None:
    proxy = Proxy(stack.aws_url)

    def client() -> Any:
        config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
        return boto3.session.Session().client("sqs", endpoint_url=proxy.url, config=config)

    tracker = UsageTracker(stack.queue_url, gather_secs=0, backoff_cap_secs=0.5, client=client)
    with service(stack, user, tracker=tracker) as url:
        assert [httpx.get(f"{url}/v1/answer/x", timeout=30).status_code for _ in range(3)] == [200] * 3
        while tracker.counts().failed_calls < 2:
            time.sleep(0.05)
        assert (tracker.counts().sent, tracker.counts().waiting) == (0, 3)
        proxy.start()
        assert tracker.flush(WAIT_SECS) == 0
    proxy.stop()
    assert stack.counted(user, 3)["requests"] == 3


def test_what_a_queue_that_stays_down_costs_is_counted(stack: Stack, user: str) -> None:
    tracker = UsageTracker(
        stack.queue_url,
        buffer_bytes=1_000,
        flush_timeout_secs=0.2,
        client=lambda: boto3.session.Session().client("sqs", endpoint_url=f"http://127.0.0.1:{free_port()}"),
    )
    taken = [tracker.record_usage(user, "/v1/x", 1, 1, True) for _ in range(20)]
    assert tracker.counts().dropped_full == taken.count(False) > 10
    assert tracker.close() == taken.count(True)
    tracker._begin()


def test_the_sample_service_and_what_it_sends_when_it_is_stopped(stack: Stack) -> None:
    port = free_port()
    log = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "--port", str(port), "streaming:app"],
        env={
            **os.environ,
            **stack.environment,
            "TOKENTILL_API_URL": stack.api_url,
            "TOKENTILL_TOKEN": stack.token,
            "USAGE_QUEUE_URL": stack.queue_url,
        },
    )
    url = f"http://127.0.0.1:{port}"
    key = {"authorization": "Bearer key-of-bob"}
    try:
        until = time.monotonic() + WAIT_SECS
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.post(f"{url}/v1/summarise", json={"text": "x"}).status_code == 401
                break
            assert time.monotonic() < until
            time.sleep(0.1)
        answer = httpx.post(f"{url}/v1/summarise", json={"text": "one two"}, headers=key, timeout=30)
        assert answer.json() == {"answer": "In short: one two"}
        assert httpx.post(f"{url}/v1/echo", json={"text": "a b c"}, headers=key, timeout=30).text == "a b c "
        assert httpx.post(f"{url}/upgrade", headers=key, timeout=30).json()["url"].startswith("http")
    finally:
        log.send_signal(signal.SIGTERM)
        log.wait(30)
    request_id = answer.headers["x-request-id"]
    until = time.monotonic() + WAIT_SECS
    while not (rows := stack.ask("/v1/usage/events", user_id="bob", request_id=request_id)["events"]):
        assert time.monotonic() < until
        time.sleep(0.3)
    assert [(row["tokens_in"], row["tokens_out"], row["success"]) for row in rows] == [(2, 4, True)]

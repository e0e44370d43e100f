"""A queue, a gate and a server for the tests."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import uvicorn

from tokentill import UsageTracker

SCHEMA = json.loads((Path(__file__).parents[3] / "events/usage-message.schema.json").read_text())
Script = Exception | Mapping[int, Mapping[str, Any]]


class Queue:
    """An SQS client that keeps what it took. Each entry of `script` is what one call does: fail whole, or fail these places."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.taken: list[str] = []
        self.script: list[Script] = []
        self.down = False
        self.entered = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
        assert QueueUrl == URL
        self.entered.set()
        assert self.goes_on.wait(10)
        self.calls.append([entry["MessageBody"] for entry in Entries])
        if self.down:
            raise ConnectionError("down")
        script = self.script.pop(0) if self.script else {}
        if isinstance(script, Exception):
            raise script
        self.taken += [entry["MessageBody"] for at, entry in enumerate(Entries) if at not in script]
        return {
            "Successful": [{"Id": entry["Id"]} for at, entry in enumerate(Entries) if at not in script],
            "Failed": [{"Id": Entries[at]["Id"], **failure} for at, failure in script.items()],
        }

    def events(self) -> list[dict[str, Any]]:
        """What was taken, event by event; each message is held against the schema."""
        events: list[dict[str, Any]] = []
        for body in self.taken:
            message = json.loads(body)
            jsonschema.validate(message, SCHEMA)
            events += message["events"]
        return events


URL = "https://sqs.eu-central-1.amazonaws.com/1/usage"


def tracker(queue: Queue, **options: Any) -> UsageTracker:
    quick = {"gather_secs": 0.0, "backoff_base_secs": 0.001, "backoff_cap_secs": 0.002}
    return UsageTracker(URL, client=lambda: queue, **{**quick, **options})


def access_body(user_id: str, **other: Any) -> dict[str, Any]:
    quota = {"limit": 100, "used": 12, "remaining": 88, "resets_at": "2126-12-01T00:00:00Z"}
    return {
        "user_id": user_id,
        "allowed": True,
        "state": "free",
        "reason": None,
        "plan": "free",
        "access_until": None,
        "rate_limit": {"requests_per_minute": 60, "remaining": 59},
        "quotas": {"requests": quota},
        **other,
    }


class FakeGate:
    """An access API that answers as it is told, and keeps what it was asked."""

    token = "tt_right"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answer: Callable[[str, str, Any], tuple[int, dict[str, str], Any]] = allowed
        self.waits = threading.Event()
        self.waits.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        question = json.loads(content) if content else scope["query_string"].decode()
        self.asked.append((scope["method"], scope["path"], question))
        # On the server's own loop, which has nothing else to do.
        self.waits.wait(5)
        headers = dict(scope["headers"])
        more: dict[str, str]
        if headers[b"authorization"] != f"Bearer {self.token}".encode():
            status, more, body = 401, {}, {"title": "Unauthorised", "status": 401, "detail": "send a token"}
        else:
            status, more, body = self.answer(scope["method"], scope["path"], question)
        pairs = [(name.encode(), value.encode()) for name, value in {"content-type": "application/json", **more}.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body if isinstance(body, bytes) else json.dumps(body).encode()})


def allowed(_method: str, _path: str, question: Any) -> tuple[int, dict[str, str], Any]:
    user_id = question["user_id"] if isinstance(question, dict) else question.partition("user_id=")[2]
    return 200, {"RateLimit": '"minute";r=59;t=30', "RateLimit-Policy": '"minute";q=60;w=60'}, access_body(user_id)


def over_quota(_method: str, _path: str, question: Any) -> tuple[int, dict[str, str], Any]:
    return 402, {}, access_body(question["user_id"], allowed=False, reason="quota_exceeded")


def too_fast(_method: str, _path: str, question: Any) -> tuple[int, dict[str, str], Any]:
    headers = {"Retry-After": "17", "RateLimit": '"minute";r=0;t=17'}
    return 429, headers, access_body(question["user_id"], allowed=False, reason="rate_limited")


@contextlib.contextmanager
def serve(app: Any, **options: Any) -> Iterator[str]:
    """Runs an app under uvicorn in a thread; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=3, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port

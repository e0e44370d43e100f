"""The service that the documentation shows, word for word, run as it is."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles import URL, FakeGate, Queue, access_body, serve

PACKAGE = Path(__file__).parents[1]
SERVICE = (PACKAGE / "examples/service.py").read_text()


@pytest.mark.parametrize("page", [PACKAGE / "README.md", PACKAGE / "../../README.md"], ids=["the package's", "the project's"])
def test_a_readme_shows_the_service_as_it_is(page: Path) -> None:
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    shown = [block for block in blocks if block.splitlines()[0] == SERVICE.splitlines()[0]]
    if not shown and page.parent != PACKAGE:
        pytest.skip("the project's README does not show the service")
    assert shown == [SERVICE]


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def gate() -> FakeGate:
    return FakeGate()


@pytest.fixture
def client(gate: FakeGate, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of the sample service, with what examples/streaming.py adds to it."""
    with serve(gate, lifespan="off") as url:
        monkeypatch.setenv("TOKENTILL_API_URL", url)
        monkeypatch.setenv("TOKENTILL_TOKEN", gate.token)
        monkeypatch.setenv("USAGE_QUEUE_URL", URL)
        for name in ("service", "streaming"):
            sys.modules.pop(name, None)
        app = importlib.import_module("streaming").app
        service = importlib.import_module("service")
        service.tracker._make_client = lambda: queue
        service.gate._timeout_secs = 5
        with serve(app) as own, httpx.Client(base_url=own, headers={"authorization": "Bearer key-of-ada"}) as client:
            yield client


def told(queue: Queue) -> list[Any]:
    return [
        (e["user_id"], e["endpoint"], e["tokens_in"], e["tokens_out"], e["success"], e.get("attempt")) for e in queue.events()
    ]


def flush() -> None:
    sys.modules["service"].tracker.close()


def test_the_service_sells_its_model(client: httpx.Client, gate: FakeGate, queue: Queue) -> None:
    assert client.post("/v1/summarise", json={"text": "one two three"}).json() == {"answer": "In short: one two three"}
    assert client.post("/v1/summarise", json={"text": "x"}, headers={"authorization": "Bearer nobody's"}).status_code == 401
    while not queue.taken:
        flush()
    assert told(queue) == [("ada", "/v1/summarise", 3, 5, True, None)]

    def sell(_method: str, path: str, _question: Any) -> tuple[int, dict[str, str], Any]:
        return (409, {}, {"title": "Conflict"}) if path == "/v1/checkout" else (200, {}, {"url": "https://billing/p"})

    gate.answer = lambda *_: (200, {}, {"url": "https://checkout/c"})
    assert client.post("/upgrade").json() == {"url": "https://checkout/c"}
    gate.answer = sell
    assert client.post("/upgrade").json() == {"url": "https://billing/p"}
    assert client.post("/upgrade", headers={"authorization": ""}).status_code == 401


def test_a_stream_and_a_model_that_is_tried_again(client: httpx.Client, queue: Queue) -> None:
    assert client.post("/v1/echo", json={"text": "one two three"}).text == "one two three "
    assert client.post("/v1/patient", json={"failures": "1"}).json() == {"answer": "at last"}
    assert client.post("/v1/patient", json={"failures": "3"}).status_code == 200
    while len(queue.events()) < 6:
        flush()
    assert sorted(told(queue), key=str) == [
        ("ada", "/v1/echo", 3, 3, True, None),
        ("ada", "/v1/patient", 0, 0, False, 1),
        ("ada", "/v1/patient", 0, 0, False, 1),
        ("ada", "/v1/patient", 0, 0, False, 2),
        ("ada", "/v1/patient", 0, 0, False, 3),
        ("ada", "/v1/patient", 1, 1, True, 2),
    ]


def test_a_refusal_is_what_the_customer_sees(client: httpx.Client, gate: FakeGate) -> None:
    gate.answer = lambda *_: (402, {}, access_body("ada", allowed=False, reason="quota_exceeded"))
    refusal = client.post("/v1/summarise", json={"text": "x"})
    assert (refusal.status_code, refusal.json()["reason"]) == (402, "quota_exceeded")

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
from botocore.exceptions import NoRegionError
from doubles import SCHEMA, URL, Queue, free_port, tracker

import tokentill.tracker
from tokentill import Counts, UsageTracker
from tokentill.event import Invalid, encode
from tokentill.tracker import MAX_CALL_BYTES, MAX_MESSAGE_BYTES

WAIT_SECS = 10


def ids(queue: Queue) -> list[str]:
    return [event["request_id"] for event in queue.events()]


def test_an_event_is_sent_as_the_contract_has_it() -> None:
    queue = Queue()
    reports = tracker(queue)
    moment = datetime(2026, 11, 22, 13, tzinfo=timezone(timedelta(hours=1)))
    assert reports.record_usage(
        "ada \U0001f642",
        "/v1/summarise",
        812,
        240,
        True,
        request_id="req_1",
        timestamp=moment,
        model="large",
        tokens_cached=8,
        units={"images": 1},
        attempt=2,
        outcome="late",
        extra={"region": "eu", "nested": {"list": [1, 2.5, None, True]}},
    )
    assert reports.record_usage("ada", "/v1/x", 0, 0, False)
    assert reports.flush(WAIT_SECS) == 0
    first, second = queue.events()
    assert first == {
        "request_id": "req_1",
        "user_id": "ada \U0001f642",
        "endpoint": "/v1/summarise",
        "tokens_in": 812,
        "tokens_out": 240,
        "success": True,
        "timestamp": 1_795_348_800,
        "model": "large",
        "tokens_cached": 8,
        "units": {"images": 1},
        "attempt": 2,
        "outcome": "late",
        "region": "eu",
        "nested": {"list": [1, 2.5, None, True]},
    }
    assert second["request_id"].startswith("req_")
    assert abs(second["timestamp"] - time.time()) < 60
    assert reports.counts() == Counts(sent=2)


def test_what_is_accepted_is_valid_and_what_is_not_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    good: dict[str, Any] = {
        "user_id": "ada",
        "endpoint": "/x",
        "tokens_in": 1,
        "tokens_out": 2,
        "success": True,
        "request_id": "r",
    }
    texts: list[Any] = ["", "x" * 128, "x" * 129, "\U0001f642" * 128, "\ud800", "\ufffe\uffff\x00", 7, None, b"x"]
    numbers: list[Any] = [0, -1, True, 1.0, 10**15 - 1, 10**15, "7", None, float("nan")]
    odd: dict[str, list[Any]] = {
        "user_id": texts,
        "request_id": texts,
        "endpoint": [*texts, "x" * 1_025],
        "model": [*texts, "x" * 257],
        "outcome": [*texts, "x" * 257],
        "tokens_in": numbers,
        "tokens_out": numbers,
        "tokens_cached": numbers,
        "attempt": numbers,
        "success": [True, False, 1, 0, "true", None],
        "timestamp": [0, -1, 1.5, True, 10**12, -(10**12), float("inf"), "now", datetime(2026, 1, 1), datetime.now(timezone.utc)],
        "units": [{"images": 2}, {"": 1}, {"x" * 65: 1}, {7: 1}, {"a": -1}, {"a": 1.0}, {str(at): 1 for at in range(51)}, [1]],
        "extra": [
            {"a": "b"}, {"request_id": "other"}, {"a": "x" * 8_200}, {"a": float("nan")}, {"a": 10**400}, {"a": "\ud800"},
            {7: 1}, {"a": object()}, json.loads("[" * 20 + "]" * 20), {"a": json.loads("[" * 200 + "]" * 200)}, {"events": []},
        ],
    }  # fmt: skip
    refused = []
    for field, values in odd.items():
        for value in values:
            try:
                text = encode(**{**good, field: value})
            except Invalid:
                refused.append((field, value))
                continue
            jsonschema.validate(json.loads(text), SCHEMA)
            # As our reader is written in Rust, what it cannot read as JSON would spoil the whole message.
            assert text.isascii()
            json.loads(text, parse_constant=pytest.fail)
            assert '"\\ud800"' not in text
            assert json.loads(text)["request_id"]
    assert ("user_id", "\ud800") in refused
    counts = ("tokens_in", "tokens_out", "tokens_cached", "attempt", "units", "extra")
    assert not [field for field, value in refused if field in counts or (field == "model" and isinstance(value, str))]

    # Of the extras, only what every reader takes goes along.
    kept = []
    for at, extra in enumerate(odd["extra"]):
        event = json.loads(encode(**{**good, "extra": extra}))
        assert event["request_id"] == "r"
        if event.keys() > good.keys() | {"timestamp"}:
            kept.append(at)
    assert [odd["extra"][at] for at in kept] == [{"a": "b"}, {"events": []}]

    reports = tracker(Queue())
    for field, value in refused:
        if field != "request_id" or value is not None:
            assert reports.record_usage(**{**good, field: value}) is False
    assert reports.counts().dropped_invalid == len([1 for field, value in refused if (field, value) != ("request_id", None)])
    assert reports.counts().waiting == 0


def test_a_mistake_is_logged_once_for_each_kind_without_the_value(caplog: pytest.LogCaptureFixture) -> None:
    reports = tracker(Queue())
    for at in range(5):
        assert not reports.record_usage("ada", "/x", 1, 0, True, timestamp=10**12 + at)
        assert not reports.record_usage("s3cret" * 30, "/x", 1, 0, True)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "timestamp must be in seconds" in caplog.text
    assert "user_id is longer" in caplog.text
    assert "s3cret" not in caplog.text
    assert reports.counts() == Counts(dropped_invalid=10)


class NumpyLike:
    def __index__(self) -> int:
        return 5


def test_a_count_that_cannot_be_used_does_not_cost_the_event(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    reports = tracker(queue)
    odd: list[Any] = [NumpyLike(), 5.0, None, -1, 2.5, True, "7", float("nan"), 10**15]
    for value in odd:
        for _ in range(2):
            assert reports.record_usage("ada", "/x", value, 1, True, tokens_cached=value, units={"a": value, "b": 2})
    assert reports.record_usage("ada", "/x", 1, 1, True, units=[1], attempt="two")  # type: ignore[arg-type]
    assert reports.flush(WAIT_SECS) == 0
    *events, last = queue.events()
    assert [event["tokens_in"] for event in events] == [5] * 4 + [0] * 14
    assert [event["units"] for event in events] == [{"a": 5, "b": 2}] * 4 + [{"b": 2}] * 14
    assert "units" not in last
    assert "attempt" not in last
    # None is no mistake where the count may be missing.
    assert reports.counts() == Counts(sent=19, invalid_fields=14 + 12 + 14 + 2)
    assert caplog.text.count("tokens_in must be a whole number, not NoneType") == 1
    assert caplog.text.count("tokens_in must be 0 or more") == 1


def test_nothing_raises_into_the_request() -> None:
    class Odd(dict[str, int]):
        def __len__(self) -> int:
            raise RuntimeError

    assert tracker(Queue()).record_usage("ada", "/x", 1, 1, True, units=Odd()) is False


def test_labels_are_cut_and_a_bad_extra_is_left_out_rather_than_an_event_lost(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    reports = tracker(queue)
    assert reports.record_usage(
        "ada", "/" + "x" * 5_000, 1, 1, True, model="m" * 300, outcome="\ud800", extra={"a": float("nan")}
    )
    assert reports.flush(WAIT_SECS) == 0
    (event,) = queue.events()
    assert (len(event["endpoint"]), len(event["model"]), event["outcome"], "a" in event) == (1_024, 256, "?", False)
    assert "extra was left out" in caplog.text


def test_many_events_share_a_message_within_the_limits() -> None:
    queue = Queue()
    queue.goes_on.clear()
    reports = tracker(queue)
    sent = [f"req_{at}" for at in range(6_500)]
    for at, request_id in enumerate(sent):
        assert reports.record_usage("ada", "/x" if at < 3_000 else "/" + "x" * 1_000, 1, 1, True, request_id=request_id)
    queue.goes_on.set()
    assert reports.flush(WAIT_SECS) == 0
    assert ids(queue) == sent
    assert max(len(json.loads(body)["events"]) for body in queue.taken) == 1_000
    assert 250_000 < max(map(len, queue.taken)) < MAX_MESSAGE_BYTES
    assert max(map(len, queue.calls)) > 1
    assert all(len(call) <= 10 and sum(map(len, call)) <= MAX_CALL_BYTES for call in queue.calls)


def test_a_queue_that_hangs_holds_nobody_up() -> None:
    queue = Queue()
    queue.goes_on.clear()
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True)
    assert queue.entered.wait(WAIT_SECS)
    # The thread is within its call now, and stays there until we are done.
    began = time.perf_counter()
    assert all(reports.record_usage("ada", "/x", 1, 1, True) for _ in range(1_000))
    assert time.perf_counter() - began < 2
    assert reports.flush(0.05) == 1_001
    queue.goes_on.set()
    assert reports.flush(WAIT_SECS) == 0


def test_events_are_sent_again_under_their_ids_until_the_queue_is_back() -> None:
    queue = Queue()
    queue.down = True
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True, request_id="req_1")
    while len(queue.calls) < 3:
        assert reports.flush(0.05) == 1
    assert reports.counts().failed_calls >= 2
    queue.down = False
    assert reports.flush(WAIT_SECS) == 0
    assert ids(queue) == ["req_1"]


def test_only_the_messages_that_failed_are_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    queue.goes_on.clear()
    queue.script = [
        {},
        {0: {"SenderFault": False, "Code": "InternalError"}, 2: {"SenderFault": True, "Code": "InvalidMessageContents"}},
        {0: {"SenderFault": True, "Code": "RequestThrottled"}},
    ]
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True, request_id="first")
    assert queue.entered.wait(WAIT_SECS)
    sent = [f"req_{at}" for at in range(3_500)]
    for request_id in sent:
        reports.record_usage("ada", "/x", 1, 1, True, request_id=request_id)
    queue.goes_on.set()
    assert reports.flush(WAIT_SECS) == 0
    assert [len(call) for call in queue.calls] == [1, 4, 1, 1]
    assert sorted(ids(queue)) == sorted(["first", *sent[:2_000], *sent[3_000:]])
    assert reports.counts() == Counts(sent=2_501, dropped_refused=1_000, failed_calls=2)
    assert "refused 1000 usage events" in caplog.text


def test_the_buffer_is_bounded_and_has_room_again(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    queue.goes_on.clear()
    reports = tracker(queue, buffer_bytes=2_000)
    taken = [reports.record_usage("ada", "/x", 1, 1, True) for _ in range(100)]
    assert 5 < sum(taken) < 20
    assert reports.counts().dropped_full == 100 - sum(taken)
    assert caplog.text.count("the buffer is full") == 1
    queue.goes_on.set()
    assert reports.flush(WAIT_SECS) == 0
    assert reports.record_usage("ada", "/x", 1, 1, True)
    assert reports.flush(WAIT_SECS) == 0
    assert reports._waiting_bytes == reports._open_bytes == 0


def test_any_thread_may_record() -> None:
    queue = Queue()
    reports = tracker(queue)

    def record(thread: int) -> None:
        for at in range(500):
            reports.record_usage("ada", "/x", 1, 1, True, request_id=f"{thread}/{at}")

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports.flush(WAIT_SECS) == 0
    assert sorted(ids(queue)) == sorted(f"{thread}/{at}" for thread, at in itertools.product(range(8), range(500)))


def test_a_thread_that_cannot_be_started_is_started_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    queue = Queue()
    reports = tracker(queue)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert reports.record_usage("ada", "/x", 1, 1, True, request_id="first")
        assert reports.flush(0.05) == 1
    assert "no thread can be started" in caplog.text
    assert reports.record_usage("ada", "/x", 1, 1, True, request_id="second")
    assert reports.flush(WAIT_SECS) == 0
    assert ids(queue) == ["first", "second"]


def test_what_close_has_left_is_sent_by_a_later_flush() -> None:
    queue = Queue()
    queue.down = True
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True)
    thread = reports._thread
    assert thread is not None
    assert reports.close(0.05) == 1
    thread.join(WAIT_SECS)
    queue.down = False
    assert reports.flush(WAIT_SECS) == 0
    assert len(queue.events()) == 1


def test_the_end_of_the_process_does_not_wait_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    queue.down = True
    closed = tracker(queue)
    closed.record_usage("ada", "/x", 1, 1, True)
    closed.close(0.05)
    fresh = tracker(Queue())
    fresh.record_usage("ada", "/x", 1, 1, True)
    asked: list[UsageTracker] = []
    monkeypatch.setattr(UsageTracker, "close", lambda self: asked.append(self))
    monkeypatch.setattr(tokentill.tracker, "_TRACKERS", [closed, fresh])
    tokentill.tracker._at_exit()
    assert asked == [fresh]
    fresh.flush(WAIT_SECS)


def test_credentials_that_come_later_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    told: list[str] = []
    monkeypatch.setattr(tokentill.tracker._log, "warning", lambda *args: told.append(str(args[-1])))
    reports = UsageTracker(URL, gather_secs=0, backoff_base_secs=0.01, backoff_cap_secs=0.05)
    reports.record_usage("ada", "/x", 1, 1, True)
    wait_until(lambda: any("NoCredentials" in text for text in told))
    credentials.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    wait_until(lambda: any("EndpointConnectionError" in text for text in told))
    reports.close(0)
    reports._begin()


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECS
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_line_end_after_the_queues_url_is_none_of_it() -> None:
    assert UsageTracker(URL + "\n")._queue_url == URL


def test_events_gather_before_they_are_sent() -> None:
    queue = Queue()
    reports = tracker(queue, gather_secs=60)
    for _ in range(10):
        reports.record_usage("ada", "/x", 1, 1, True)
    assert not queue.entered.wait(0.1)
    assert reports.flush(WAIT_SECS) == 0
    assert len(queue.calls) == 1


def test_close_ends_the_thread_and_tells_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True)
    thread = reports._thread
    assert thread is not None
    assert reports.close(WAIT_SECS) == 0
    thread.join(WAIT_SECS)
    assert not thread.is_alive()
    queue.down = True
    assert reports.record_usage("ada", "/x", 1, 1, True), "it starts again"
    assert reports.close(0.05) == 1
    assert "1 usage events could not be sent" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_sends_its_own_events_and_none_of_its_parents() -> None:
    queue = Queue()
    queue.goes_on.clear()
    reports = tracker(queue)
    reports.record_usage("ada", "/x", 1, 1, True, request_id="parent")
    assert queue.entered.wait(WAIT_SECS)
    reader, writer = os.pipe()
    with reports._changed:  # As another thread may, at the moment of the fork.
        child = os.fork()
        if child == 0:
            queue.goes_on, queue.entered = threading.Event(), threading.Event()
            queue.goes_on.set()
            reports.record_usage("ada", "/x", 1, 1, True, request_id="child")
            reports.flush(WAIT_SECS)
            os.write(writer, json.dumps(ids(queue)).encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reader, 1_000)) == ["child"]
    queue.goes_on.set()
    assert reports.flush(WAIT_SECS) == 0
    assert ids(queue) == ["parent"]


def test_what_is_left_is_sent_when_the_process_ends(tmp_path: Path) -> None:
    script = """
import sys
from doubles import Queue, tracker
queue = Queue()
send = queue.send_message_batch
def send_message_batch(**call):
    open(sys.argv[1], "a").write(str(len(call["Entries"])))
    return send(**call)
queue.send_message_batch = send_message_batch
tracker(queue, gather_secs=60).record_usage("ada", "/x", 1, 1, True)
"""
    told = tmp_path / "told"
    subprocess.run(
        [sys.executable, "-c", script, told],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
        timeout=30,
    )
    assert told.read_text() == "1"


def test_a_wrong_configuration_fails_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for url in ("", "usage", "https://a b", "arn:aws:sqs:eu-central-1:1:usage"):
        with pytest.raises(ValueError):
            UsageTracker(url)
    with pytest.raises(NoRegionError):
        UsageTracker("http://127.0.0.1:4566/1/usage")


def test_boto3_sends_to_the_queues_own_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = UsageTracker(URL)._make_client()
    assert made.meta.region_name == "eu-central-1"  # type: ignore[attr-defined]


def test_boto3_and_a_queue_that_is_not_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert boto3 is not None
    reports = UsageTracker(URL, gather_secs=0)
    assert reports.record_usage("ada", "/x", 1, 1, True, request_id=uuid.uuid4().hex)
    while reports.counts().failed_calls == 0:
        assert reports.flush(0.1) == 1
    assert "EndpointConnectionError" in caplog.text
    reports._begin()  # Nothing is left for the end of the process.

"""Reports usage to the usage queue: batched, in the background, never at the cost of the caller."""

from __future__ import annotations

import atexit
import logging
import os
import random
import re
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import NoRegionError

from .event import Invalid, encode

MAX_EVENTS_PER_MESSAGE = 1_000
MAX_MESSAGE_BYTES = 256 * 1_024
"""What every SQS queue takes, also one made before SQS took 1 MiB."""
MAX_MESSAGES_PER_CALL = 10
MAX_CALL_BYTES = 1_024 * 1_024
OPENING, CLOSING = '{"events":[', "]}"

_log = logging.getLogger("tokentill")


class SqsClient(Protocol):
    """The part of a boto3 SQS client that is used."""

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:  # noqa: N803
        """Sends up to ten messages."""


@dataclass(frozen=True)
class Counts:
    """What became of the events so far. The `dropped_…` ones and `invalid_fields` should stay 0: alarm on them."""

    sent: int = 0
    """Events that the queue has taken."""
    waiting: int = 0
    """Events that wait to be sent, those under way included."""
    dropped_full: int = 0
    """Events that found the buffer full."""
    dropped_invalid: int = 0
    """Events that the contract does not allow."""
    dropped_refused: int = 0
    """Events in messages that the queue refused for good."""
    invalid_fields: int = 0
    """Counts that could not be used (0 is reported for tokens) and `extra`s that were left out. Their events were sent."""
    failed_calls: int = 0
    """Calls of the queue that failed, as a whole or in part. Their events are still waiting, or were sent again."""


@dataclass(frozen=True)
class _Message:
    body: str
    events: int
    event_bytes: int


class UsageTracker:
    """Buffers usage events and sends them from a thread of its own. Any thread or event loop may use it.

    `buffer_bytes` bounds the events that wait; what comes beyond is dropped and counted. Events gather for `gather_secs`
    unless a message is full before. After a failure it waits between `backoff_base_secs` and `backoff_cap_secs` and sends
    the same events again, which is harmless: a request is billed once. `client` makes the SQS client (boto3's, configured
    as usual); it is called in the thread, again after a call that failed, for credentials may have come meanwhile, and again
    in a forked process, which begins with an empty buffer.
    """

    def __init__(
        self,
        queue_url: str,
        *,
        buffer_bytes: int = 16 << 20,
        gather_secs: float = 1.0,
        backoff_base_secs: float = 0.2,
        backoff_cap_secs: float = 30.0,
        flush_timeout_secs: float = 10.0,
        client: Callable[[], SqsClient] | None = None,
    ) -> None:
        if not isinstance(queue_url, str) or not re.fullmatch(r"https?://\S+", queue_url := queue_url.strip()):
            raise ValueError("queue_url must be the usage queue's URL, the stack's output UsageQueueUrl")
        self._queue_url = queue_url
        self._buffer_bytes = buffer_bytes
        self._gather_secs = gather_secs
        self._backoff_secs = (backoff_base_secs, backoff_cap_secs)
        self._flush_timeout_secs = flush_timeout_secs
        self._make_client = client or _boto3_client(queue_url)
        self._begin()
        _TRACKERS.add(self)

    def _begin(self) -> None:
        """An empty buffer, without a thread: at first, and in a forked process, whose parent keeps what it had."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._client: SqsClient | None = None
        self._counts = Counts()
        self._open: deque[str] = deque()
        self._open_bytes = 0
        self._waiting_bytes = 0
        self._sealed: list[_Message] = []  # Only the thread touches it.
        self._closing = False
        self._flushing = 0
        self._flushes = 0
        self._told: dict[str, float] = {}

    def record_usage(
        self,
        user_id: str,
        endpoint: str,
        tokens_in: int,
        tokens_out: int,
        success: bool,
        *,
        request_id: str | None = None,
        timestamp: datetime | float | None = None,
        model: str | None = None,
        tokens_cached: int | None = None,
        units: Mapping[str, int] | None = None,
        attempt: int | None = None,
        outcome: str | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> bool:
        """Buffers one call of the service; whether it was. It never waits and never raises.

        `(user_id, request_id)` is billed at most once: make the id yourself, once for each request, and keep it when the
        request is tried again. Without one, a new one is made. `timestamp` is now, unless it is given. A count that cannot be
        used is left out, for tokens it is 0; any other event that the contract does not allow is dropped. Both are counted
        and, once for each kind of mistake, logged as an error.
        """
        try:
            event = encode(
                request_id=f"req_{uuid.uuid4().hex}" if request_id is None else request_id,
                user_id=user_id,
                endpoint=endpoint,
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                success=success,
                timestamp=timestamp,
                model=model,
                tokens_cached=tokens_cached,
                units=units,
                attempt=attempt,
                outcome=outcome,
                extra=extra,
                left_out=self._left_out,
            )
            return self._buffer(event)
        except Invalid as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 Whatever it is, the request must not fail for it.
            problem = f"{type(error).__name__} while it was recorded"
        self._count(dropped_invalid=1)
        self._tell(f"a usage event was dropped: {problem}")
        return False

    def counts(self) -> Counts:
        """What became of the events so far, in this process."""
        with self._changed:
            return self._counts

    def flush(self, timeout_secs: float | None = None) -> int:
        """Sends what is recorded by now, within a time (10 s unless set); how many events are still waiting. It blocks."""
        timeout_secs = self._flush_timeout_secs if timeout_secs is None else timeout_secs
        with self._changed:
            target = self._settled() + self._counts.waiting
            # After a `close` that left something, too.
            if self._counts.waiting and self._runs():
                self._flushing += 1
                self._flushes += 1
                self._changed.notify_all()
                try:
                    self._changed.wait_for(lambda: self._settled() >= target, timeout_secs)
                finally:
                    self._flushing -= 1
            return self._counts.waiting

    def close(self, timeout_secs: float | None = None) -> int:
        """As `flush`, and ends the thread. An event that is recorded all the same starts it again."""
        left = self.flush(timeout_secs)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if left:
            _log.error("%d usage events could not be sent in time; they are lost with this process", left)
        return left

    # The buffer. What is shared with the thread is only touched under the lock, which is never held while anything waits.

    def _buffer(self, event: str) -> bool:
        size = len(event) + 1
        with self._changed:
            if self._waiting_bytes + size > self._buffer_bytes:
                self._count(dropped_full=1)
                full = True
            else:
                full = False
                self._open.append(event)
                self._open_bytes += size
                self._waiting_bytes += size
                self._count(waiting=1)
                self._runs()
                if self._counts.waiting == 1 or self._is_full_message():
                    self._changed.notify_all()
        if full:
            self._tell("usage events are dropped: the buffer is full", again_secs=60)
        return not full

    def _runs(self) -> bool:
        """Sees to it that the thread runs, under the lock; whether it does. If not, the next event tries again."""
        self._closing = False
        if self._thread is None:
            thread = threading.Thread(target=self._run, daemon=True, name="tokentill-usage")
            try:
                thread.start()
            except RuntimeError as error:
                self._tell(f"usage events wait, as no thread can be started to send them: {error}", again_secs=60)
                return False
            self._thread = thread
        return True

    def _is_full_message(self) -> bool:
        return len(self._open) >= MAX_EVENTS_PER_MESSAGE or self._open_bytes >= MAX_MESSAGE_BYTES

    def _settled(self) -> int:
        return self._counts.sent + self._counts.dropped_refused

    def _count(self, **more: int) -> None:
        with self._changed:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + by for name, by in more.items()})

    def _left_out(self, what: str) -> None:
        self._count(invalid_fields=1)
        self._tell(f"a usage event is reported without what is wrong with it: {what}")

    def _tell(self, what: str, again_secs: float = float("inf")) -> None:
        """Logs an error, but not each time: a mistake in the code would fill the log."""
        now = time.monotonic()
        with self._changed:
            if now - self._told.get(what, float("-inf")) < again_secs:
                return
            self._told[what] = now
        _log.error("%s (counted; see UsageTracker.counts)", what)

    # The thread.

    def _run(self) -> None:
        base_secs, cap_secs = self._backoff_secs
        pause_secs = base_secs
        while self._await_events():
            try:
                failure = self._call()
            except Exception as error:  # noqa: BLE001 Whatever it is, the next try may go well.
                failure = f"{type(error).__name__}: {error}"
                # The next one is built anew: boto3 never looks again for credentials that were not there.
                self._client = None
            if failure is None:
                pause_secs = base_secs
                continue
            # Decorrelated jitter, so that services that failed together do not come back together.
            pause_secs = min(random.uniform(base_secs, 3 * pause_secs), cap_secs)  # noqa: S311
            self._count(failed_calls=1)
            _log.warning("usage events could not be sent; they will be sent again in %.1f s: %s", pause_secs, failure)
            self._pause(pause_secs)

    def _await_events(self) -> bool:
        """Waits until there is something to send; false once the tracker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._counts.waiting > 0)
            if not self._sealed:
                self._changed.wait_for(lambda: self._closing or self._flushing > 0 or self._is_full_message(), self._gather_secs)
            if self._closing:
                self._thread = None
                return False
            return True

    def _pause(self, pause_secs: float) -> None:
        with self._changed:
            flushes = self._flushes
            if self._flushing:
                pause_secs = min(pause_secs, 0.5)
            self._changed.wait_for(lambda: self._closing or self._flushes != flushes, pause_secs)

    def _call(self) -> str | None:
        """One call of the queue; what went wrong, if so."""
        messages = self._next_call()
        if self._client is None:
            self._client = self._make_client()
        entries = [{"Id": str(at), "MessageBody": message.body} for at, message in enumerate(messages)]
        answer = self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
        taken = {int(entry["Id"]) for entry in answer.get("Successful", ())}
        failed = {int(entry["Id"]): entry for entry in answer.get("Failed", ())}
        left = []
        for at, message in enumerate(messages):
            if at in taken:
                self._settle(message, sent=message.events)
            elif at in failed and _is_refusal(failed[at]):
                self._settle(message, dropped_refused=message.events)
                code, text = failed[at].get("Code"), failed[at].get("Message")
                _log.error("the usage queue refused %d usage events; they are dropped: %s: %s", message.events, code, text)
            else:
                left.append(message)
        self._sealed = left
        return f"{len(left)} of {len(messages)} messages were not taken" if left else None

    def _next_call(self) -> list[_Message]:
        """The messages of the next call. They stay with us until the queue has taken them."""
        size = sum(len(message.body) for message in self._sealed)
        while len(self._sealed) < MAX_MESSAGES_PER_CALL and size + MAX_MESSAGE_BYTES <= MAX_CALL_BYTES:
            events = self._take()
            if not events:
                break
            body = OPENING + ",".join(events) + CLOSING
            self._sealed.append(_Message(body, len(events), sum(map(len, events)) + len(events)))
            size += len(body)
        return self._sealed

    def _take(self) -> list[str]:
        """The oldest events: as many as one message may hold."""
        events: list[str] = []
        size = len(OPENING) + len(CLOSING)
        with self._changed:
            # An event has a bounded length, far below a message's: the first one always fits.
            while self._open and len(events) < MAX_EVENTS_PER_MESSAGE and size + len(self._open[0]) < MAX_MESSAGE_BYTES:
                events.append(self._open.popleft())
                size += len(events[-1]) + 1
                self._open_bytes -= len(events[-1]) + 1
        return events

    def _settle(self, message: _Message, **counts: int) -> None:
        with self._changed:
            self._waiting_bytes -= message.event_bytes
            self._count(waiting=-message.events, **counts)
            self._changed.notify_all()


def _is_refusal(entry: Mapping[str, Any]) -> bool:
    """Whether sending it again is useless. Throttling is called the sender's fault too, but passes."""
    code = str(entry.get("Code"))
    return bool(entry.get("SenderFault")) and not any(word in code for word in ("Throttl", "OverLimit", "Kms"))


def _boto3_client(queue_url: str) -> Callable[[], SqsClient]:
    """boto3's client, in the queue's own Region if its URL names one. It is never patient: we send again ourselves."""
    named = re.match(r"https://sqs\.([a-z0-9-]+)\.", queue_url)
    region = named.group(1) if named else boto3.session.Session().region_name
    if region is None:
        raise NoRegionError
    config = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})

    def make() -> SqsClient:
        client: SqsClient = boto3.session.Session().client("sqs", region_name=region, config=config)
        return client

    return make


_TRACKERS: weakref.WeakSet[UsageTracker] = weakref.WeakSet()


def _after_fork() -> None:
    for tracker in list(_TRACKERS):
        tracker._begin()


def _at_exit() -> None:
    for tracker in list(_TRACKERS):
        if not tracker._closing:  # Whoever closed it has waited already.
            tracker.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

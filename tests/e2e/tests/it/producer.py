"""Reports usage to Tokentill: batched, in the background, never at the cost of the caller."""

import collections
import json
import logging
import random
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

MAX_EVENTS, MAX_BYTES, MAX_EVENT_BYTES = 1_000, 256 * 1024, 64 * 1024


class UsageProducer:
    def __init__(self, queue_url, sqs=None, buffered=50_000, gather_secs=1.0):
        limits = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
        self._sqs, self._url = sqs or boto3.client("sqs", config=limits), queue_url
        self._events, self._lock = collections.deque(), threading.Lock()
        self._buffered, self._gather_secs, self._closing = buffered, gather_secs, threading.Event()
        self.recorded = self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="usage")
        self._thread.start()

    def record(self, **event):
        """Buffers an event; whether it was. Never waits, never raises."""
        event.setdefault("timestamp", int(time.time()))
        try:
            # As ASCII it has as many bytes as characters. Half a surrogate pair would spoil the whole message.
            text = json.dumps(event, allow_nan=False)
            json.dumps(event, ensure_ascii=False).encode()
        except (TypeError, ValueError):
            text = None
        with self._lock:
            if text is None or len(text) > MAX_EVENT_BYTES or self.recorded - self.sent >= self._buffered:
                self.dropped += 1
                return False
            self.recorded += 1
            self._events.append(text)
            return True

    def close(self, timeout_secs=10):
        """Sends what is buffered; how many events are left. For the end of the process."""
        self._closing.set()
        self._thread.join(timeout_secs)
        return self.recorded - self.sent

    def _run(self):
        closing = False
        while not closing:
            closing = self._closing.wait(self._gather_secs)
            while events := self._next_message():
                self._send('{"events":[' + ",".join(events) + "]}")
                with self._lock:
                    self.sent += len(events)

    def _next_message(self):
        events, size = [], 16
        while self._events and len(events) < MAX_EVENTS and size + len(self._events[0]) < MAX_BYTES:
            events.append(self._events.popleft())
            size += len(events[-1]) + 1
        return events

    def _send(self, body):
        pause = 0.2
        while True:
            try:
                return self._sqs.send_message(QueueUrl=self._url, MessageBody=body)
            except (BotoCoreError, ClientError) as error:
                # Sent again, with the same request ids: what the queue had taken all the same is counted once.
                logging.warning("usage events could not be sent; they will be sent again: %s", error)
                pause = min(random.uniform(0.2, 3 * pause), 30)
                if self._closing.wait(pause):
                    time.sleep(0.2)


if __name__ == "__main__":
    import sys

    _, queue_url, user_id = sys.argv
    producer = UsageProducer(queue_url)
    call = {"user_id": user_id, "endpoint": "/v1/summarise", "model": "large", "tokens_in": 10, "tokens_out": 2}
    for at in range(1_200):
        producer.record(request_id=f"req_{at}", success=True, units={"images": 1}, **call)
    # A request that failed and was tried again, and one that is reported twice.
    producer.record(request_id="req_retried", success=False, attempt=1, outcome="timeout", **call)
    producer.record(request_id="req_retried", success=True, attempt=2, **call)
    producer.record(request_id="req_0", success=True, units={"images": 1}, **call)
    producer.record(request_id="req_odd", success=float("nan"), **call)
    print(json.dumps({"left": producer.close(60), "recorded": producer.recorded, "dropped": producer.dropped}))

"""What one request used, as its handler says."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

_log = logging.getLogger("tokentill")


def new_request_id() -> str:
    """A request id that nobody else has."""
    return f"req_{uuid.uuid4().hex}"


class Usage:
    """What a request used so far. It is reported when the response has ended, and each failed attempt when it failed.

    `record` is given the fields of a usage event; the middleware sends them to the tracker. Without it nothing is reported.
    """

    def __init__(self, request_id: str | None = None, record: Callable[..., object] | None = None) -> None:
        self.request_id = request_id or new_request_id()
        """Names the request; the response's header `X-Request-Id` tells it too."""
        self._record = record
        self._ended = False
        self._failed = False
        self._warned = False
        self._attempt = 1
        self._fields: dict[str, Any] = {}

    def tokens(self, in_: int, out: int, cached: int | None = None) -> None:
        """The tokens that the model has read and written so far. Call it again as they grow: the last call holds."""
        self._set(tokens_in=in_, tokens_out=out, tokens_cached=cached)

    def units(self, **units: int) -> None:
        """Further quantities by name: `usage.units(images=2)`."""
        self._set(units={**self._fields.get("units", {}), **units})

    def model(self, name: str) -> None:
        """Which model answers."""
        self._set(model=name)

    def extra(self, **fields: object) -> None:
        """Fields of your own, kept in the audit: up to 8 KB of JSON."""
        self._set(extra={**self._fields.get("extra", {}), **fields})

    def fail(self, outcome: str | None = None) -> None:
        """The request failed, whatever its status says: a stream whose model broke down. It is audited, never billed."""
        self._failed = True
        self._set(**({} if outcome is None else {"outcome": outcome}))

    def attempt_failed(self, outcome: str | None = None) -> None:
        """The model failed and is tried again: reports this attempt as failed, under the same id, and starts the next."""
        self._report(success=False, outcome=outcome, attempt=self._attempt)
        self._attempt += 1
        model, extra = self._fields.get("model"), self._fields.get("extra")
        self._fields = {name: value for name, value in (("model", model), ("extra", extra)) if value is not None}

    @property
    def has_quantities(self) -> bool:
        """Whether the handler has told of anything that was used."""
        return "tokens_in" in self._fields or "units" in self._fields

    def end(self, *, success: bool, outcome: str | None = None) -> None:
        """Reports the request, once. The middleware calls it."""
        success = success and not self._failed
        tried_before = self._attempt > 1
        # A request whose last attempt failed has said so already.
        if success or self.has_quantities or not tried_before:
            self._report(success=success, outcome=outcome, attempt=self._attempt if tried_before else None)
        self._ended = True

    def _set(self, **fields: object) -> None:
        if (self._ended or self._record is None) and not self._warned:
            self._warned = True
            why = "after the response had ended" if self._ended else "outside of a metered request"
            _log.warning("usage that was set %s is not reported", why)
        self._fields.update(fields)

    def _report(self, *, success: bool, outcome: str | None, attempt: int | None) -> None:
        if self._record is not None and not self._ended:
            fields = {"tokens_in": 0, "tokens_out": 0, **self._fields}
            fields["outcome"] = fields.get("outcome") or outcome
            self._record(request_id=self.request_id, success=success, attempt=attempt, **fields)


_current: ContextVar[Usage | None] = ContextVar("tokentill_usage", default=None)


def current_usage() -> Usage:
    """The usage of the request that is being served; outside of a metered one, a usage that is not reported."""
    return _current.get() or Usage()


async def provide_usage() -> Usage:
    """The same for `Depends(provide_usage)`: as it is async, FastAPI needs no thread for it."""
    return current_usage()

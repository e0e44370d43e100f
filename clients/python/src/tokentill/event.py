"""A usage event as the usage queue takes it: what events/usage-message.schema.json allows, and nothing else."""

from __future__ import annotations

import json
import math
import operator
import time
from collections.abc import Callable, Mapping
from datetime import datetime

MAX_QUANTITY = 999_999_999_999_999
MAX_ID_CHARS = 128
MAX_ENDPOINT_CHARS = 1_024
MAX_WORD_CHARS = 256
MAX_UNITS = 50
MAX_UNIT_NAME_CHARS = 64
MAX_EXTRA_BYTES = 8_192
MAX_EXTRA_DEPTH = 16
LAST_SECOND = 253_402_300_799
"""The last second of the year 9999. What is beyond is most likely milliseconds."""

REQUIRED = ("request_id", "user_id", "endpoint", "tokens_in", "tokens_out", "success", "timestamp")
FIELDS = frozenset((*REQUIRED, "model", "tokens_cached", "units", "attempt", "outcome"))


class Invalid(ValueError):
    """An argument that the contract does not allow. The text names the field, never the value."""


def encode(
    *,
    request_id: str,
    user_id: str,
    endpoint: str,
    tokens_in: int,
    tokens_out: int,
    success: bool,
    timestamp: datetime | float | None = None,
    model: str | None = None,
    tokens_cached: int | None = None,
    units: Mapping[str, int] | None = None,
    attempt: int | None = None,
    outcome: str | None = None,
    extra: Mapping[str, object] | None = None,
    left_out: Callable[[str], None] = lambda _: None,
) -> str:
    """One event as JSON in ASCII, so that it has as many bytes as characters.

    Some mistakes may not cost a billable event: a label (endpoint, model, outcome) that is too long is cut, and what cannot
    be sent of the counts and the `extra` is left out (`left_out` is told why), 0 in the place of tokens. Raises `Invalid`
    for everything else.
    """

    def quantity(value: object, field: str) -> int | None:
        try:
            return _quantity(value, field)
        except Invalid as error:
            left_out(str(error))
            return None

    event: dict[str, object] = {
        "request_id": identifier(request_id, "request_id"),
        "user_id": identifier(user_id, "user_id"),
        "endpoint": _label(endpoint, "endpoint", MAX_ENDPOINT_CHARS),
        "tokens_in": quantity(tokens_in, "tokens_in") or 0,
        "tokens_out": quantity(tokens_out, "tokens_out") or 0,
        "success": _boolean(success, "success"),
        "timestamp": _timestamp(timestamp),
    }
    if model is not None:
        event["model"] = _label(model, "model", MAX_WORD_CHARS)
    for field, given in (("tokens_cached", tokens_cached), ("attempt", attempt)):
        if given is not None and (number := quantity(given, field)) is not None:
            event[field] = number
    if units:
        try:
            numbers = {name: quantity(value, "units") for name, value in _units(units).items()}
            event["units"] = {name: number for name, number in numbers.items() if number is not None}
        except Invalid as error:
            left_out(str(error))
    if outcome is not None:
        event["outcome"] = _label(outcome, "outcome", MAX_WORD_CHARS)
    if extra:
        try:
            event.update(_extra(extra))
        except Invalid as error:
            left_out(str(error))
    return json.dumps(event, separators=(",", ":"))


def identifier(value: object, field: str) -> str:
    """The value, if it is a name of 1 to 128 characters."""
    if not isinstance(value, str):
        raise Invalid(f"{field} must be a string, not {type(value).__name__}")
    if not value:
        raise Invalid(f"{field} is empty")
    if len(value) > MAX_ID_CHARS:
        raise Invalid(f"{field} is longer than {MAX_ID_CHARS} characters")
    if not _is_unicode(value):
        raise Invalid(f"{field} has half a surrogate pair")
    return value


def _is_unicode(text: str) -> bool:
    """Half a surrogate pair is no Unicode text: one of them would spoil the whole message."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _label(value: object, field: str, max_chars: int) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{field} must be a string, not {type(value).__name__}")
    return value[:max_chars].encode(errors="replace").decode()


def _quantity(value: object, field: str) -> int:
    """The count, of whatever type it is: numpy's integers are none of Python's."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise Invalid(f"{field} must be a whole number, not {type(value).__name__}") from None
    if not 0 <= number <= MAX_QUANTITY:
        raise Invalid(f"{field} must be 0 or more, with at most 15 digits")
    return number


def _boolean(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{field} must be True or False, not {type(value).__name__}")
    return value


def _timestamp(value: datetime | float | None) -> int:
    if value is None:
        return int(time.time())
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise Invalid("timestamp must have a time zone")
        return math.floor(value.timestamp())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Invalid("timestamp must be a datetime or Unix seconds")
    if abs(value) > LAST_SECOND:
        raise Invalid("timestamp must be in seconds; this looks like milliseconds")
    return math.floor(value)


def _units(units: Mapping[str, int]) -> Mapping[str, int]:
    """The units, if their names are allowed."""
    if not isinstance(units, Mapping):
        raise Invalid("units must be a mapping of names to whole numbers")
    if len(units) > MAX_UNITS:
        raise Invalid(f"units has more than {MAX_UNITS} entries")
    for name in units:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_UNIT_NAME_CHARS or not _is_unicode(name):
            raise Invalid(f"units has a name that is not a string of 1 to {MAX_UNIT_NAME_CHARS} characters")
    return units


def _extra(extra: Mapping[str, object]) -> dict[str, object]:
    if not isinstance(extra, Mapping) or not _is_plain(dict(extra), MAX_EXTRA_DEPTH):
        raise Invalid("extra was left out: it must be JSON, without huge numbers or deep nesting")
    if not FIELDS.isdisjoint(extra):
        raise Invalid("extra was left out: it names a field of the event itself")
    if len(json.dumps(dict(extra))) > MAX_EXTRA_BYTES:
        raise Invalid(f"extra was left out: it has more than {MAX_EXTRA_BYTES} bytes")
    return dict(extra)


def _is_plain(value: object, depth: int) -> bool:
    """Whether every JSON reader takes it. Too deep or too great a number would spoil the whole message."""
    if isinstance(value, str):
        return _is_unicode(value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    if depth == 0:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_unicode(name) and _is_plain(item, depth - 1) for name, item in value.items())
    return False

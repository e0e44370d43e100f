"""Asks the access API: may this user call the model right now? And sells plans."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Generic, Literal, TypeVar

import httpx

CACHED_USERS = 10_000
QUESTIONS_AT_ONCE = 50
"""And connections. With more, httpx would hold up the event loop for longer than the gate needs to answer."""
SELL_TIMEOUT_SECS = 15.0
"""A checkout asks Stripe several things."""

_log = logging.getLogger("tokentill")


class TokentillError(Exception):
    """The access API did not do what it was asked."""


class Unreachable(TokentillError):
    """The access API did not answer."""


class Problem(TokentillError):
    """The access API refused, as `application/problem+json` says."""

    def __init__(self, status: int, members: Mapping[str, Any]) -> None:
        self.status = status
        self.title = str(members.get("title", f"HTTP {status}"))
        self.detail = str(members.get("detail", ""))
        self.members = dict(members)
        """All that the answer says, members of its own included."""
        super().__init__(f"{status} {self.title}: {self.detail}")


class AlreadySubscribed(Problem):
    """The user has a live subscription, which is paid or changed, not sold a second time."""

    @property
    def url(self) -> str | None:
        """Where the user goes: the page of a first payment that is still due, else Stripe's portal, where one is told."""
        urls = (self.members.get(name) for name in ("payment_url", "portal_url"))
        return next((url for url in urls if isinstance(url, str)), None)


@dataclass(frozen=True)
class RateLimit:
    """How many requests a UTC minute takes."""

    requests_per_minute: int
    remaining: int | None = None


@dataclass(frozen=True)
class Quota:
    """How much of a meter a segment takes."""

    limit: int
    used: int
    remaining: int
    resets_at: datetime | None


@dataclass(frozen=True)
class Access:
    """What the gate says of a user."""

    user_id: str
    allowed: bool
    state: str
    """`free`, `none`, `trialing`, `active`, `grace` or `ended`; `unknown` if the gate could not be reached."""
    reason: str | None = None
    """Why not, if not: `quota_exceeded`, `rate_limited`, `payment_overdue`, …; `unreachable`."""
    plan: str | None = None
    access_until: datetime | None = None
    rate_limit: RateLimit | None = None
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    retry_after_secs: int | None = None
    unreachable: bool = False
    """Whether this is not the gate's answer but what `on_unreachable` says."""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The gate's answer as it came."""
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Its `RateLimit…` headers."""

    @property
    def status(self) -> int:
        """The HTTP status that says it: 200, 429 for a rate limit, 503 if the gate could not be reached, else 402."""
        if self.allowed:
            return 200
        if self.unreachable:
            return 503
        return 429 if self.reason == "rate_limited" else 402


@dataclass(frozen=True)
class GateCounts:
    """What the gate was asked. `failed` and `unchecked` should stay 0: alarm on them."""

    asked: int = 0
    """Calls of the access API for `check` and `access`."""
    failed: int = 0
    """Questions that brought no answer to use, those included that could not even be asked."""
    unchecked: int = 0
    """Answers that were given without the gate, as `on_unreachable` says."""


class Gate:
    """The access API of a deployment. `check` and `access` never raise.

    `api_url` is the stack's output `ApiUrl`, `token` one of its service tokens. If the gate cannot be used (no connection, no
    answer within `timeout_secs`, a wrong token, a server error), everything is allowed (`on_unreachable="open"`) or nothing
    is (`"closed"`), and an error is logged. After `breaker_failures` such failures in a row it is not asked for
    `breaker_secs`, then tried with one request; what fails side by side is one failure. `access` and refusals are kept for
    `cache_secs` at most. Fifty questions are asked at a time; who waits longer than `timeout_secs` for a turn does without.
    `transport` makes the httpx transport, for a proxy or a test. A gate serves one event loop at a time.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        on_unreachable: Literal["open", "closed"] = "open",
        timeout_secs: float = 1.0,
        cache_secs: float = 2.0,
        breaker_failures: int = 3,
        breaker_secs: float = 5.0,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        # A secret that was read from a file often ends with the line.
        api_url, token = api_url.strip(), token.strip()
        if not re.fullmatch(r"https?://\S+", api_url):
            raise ValueError("api_url must be the access API's URL, the stack's output ApiUrl")
        if "," in token or len(token.split()) > 1:
            raise ValueError("token holds several tokens: take one")
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("token must be a service token: ASCII, not blank")
        if on_unreachable not in ("open", "closed"):
            raise ValueError('on_unreachable must be "open" or "closed"')
        self._api_url = api_url.rstrip("/")
        self._headers = {
            "authorization": f"Bearer {token}",
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "tokentill-python",
        }
        self._open = on_unreachable == "open"
        self._timeout_secs = timeout_secs
        self._cache_secs = cache_secs
        self._breaker_failures = breaker_failures
        self._breaker_secs = breaker_secs
        self._make_transport = transport or _transport
        self._transport: httpx.AsyncBaseTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._counts = GateCounts()
        self._failures = 0
        self._failed_at = float("-inf")
        self._probing = False
        self._known: _Cache[Access] = _Cache()
        self._refused: _Cache[Access] = _Cache()
        self._flights: dict[str, asyncio.Task[Access]] = {}

    async def check(self, user_id: str, units: Mapping[str, int] | None = None) -> Access:
        """Takes a request (or `units`) of the user's limits, if they allow it. Each call that is allowed takes one more.

        A refusal is repeated without asking for `cache_secs`, but never beyond its `Retry-After` or the quota's reset.
        """
        question: dict[str, Any] = {"user_id": user_id}
        try:
            if units:
                question["units"] = {name: operator.index(number) for name, number in units.items()}
            key = json.dumps(question)
        except Exception as error:  # noqa: BLE001 Nothing raises into the request.
            self._fail("/v1/check", error)
            return self._without_gate(user_id)
        refused = self._refused.get(key)
        if refused is not None:
            return replace(refused[0], retry_after_secs=_left(refused[0].retry_after_secs, refused[1]))
        access = await self._ask(user_id, "POST", "/v1/check", question)
        if not access.allowed and not access.unreachable:
            self._refused.put(key, access, self._lifetime_secs(access))
        return access

    async def access(self, user_id: str) -> Access:
        """What the user may do, without taking anything; the rate limit aside. At most `cache_secs` old."""
        if not isinstance(user_id, str):
            self._fail("/v1/access", TypeError("user_id must be a string"))
            return self._without_gate(user_id)
        known = self._known.get(user_id)
        if known is not None:
            return known[0]
        self._here()
        flight = self._flights.get(user_id)
        if flight is None:
            # A task of its own: when the caller that began it goes away, the others still get their answer.
            flight = asyncio.create_task(self._fetch(user_id))
            self._flights[user_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(user_id, None))
        return await asyncio.shield(flight)

    async def checkout(self, user_id: str, plan: str, success_url: str, cancel_url: str) -> str:
        """The URL of a Stripe Checkout that sells the plan.

        Raises `AlreadySubscribed`, another `Problem`, or `Unreachable`.
        """
        return await self._sell(
            "/v1/checkout", {"user_id": user_id, "plan": plan, "success_url": success_url, "cancel_url": cancel_url}
        )

    async def portal(self, user_id: str, return_url: str) -> str:
        """The URL of Stripe's customer portal. Raises a `Problem`, or `Unreachable`."""
        return await self._sell("/v1/portal", {"user_id": user_id, "return_url": return_url})

    def counts(self) -> GateCounts:
        """What the gate was asked so far, in this process."""
        return self._counts

    async def aclose(self) -> None:
        """Closes the connections. The gate may be used again."""
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is asyncio.get_running_loop():
            await transport.aclose()

    # Asking, or doing without.

    async def _fetch(self, user_id: str) -> Access:
        access = await self._ask(user_id, "GET", "/v1/access", {"user_id": user_id})
        if not access.unreachable:
            self._known.put(user_id, access, self._lifetime_secs(access))
        return access

    async def _ask(self, user_id: str, method: str, path: str, question: Mapping[str, Any]) -> Access:
        if self._rests():
            return self._without_gate(user_id)
        began: float | None = None
        probe = False
        try:
            async with self._turn():
                # The others may have found out meanwhile.
                if self._rests():
                    return self._without_gate(user_id)
                probe = self._failures >= self._breaker_failures
                self._probing = probe
                began = time.monotonic()
                self._counts = replace(self._counts, asked=self._counts.asked + 1)
                response = await self._exchange(method, path, question, self._timeout_secs)
            access = _read(user_id, response)
        except Exception as error:  # noqa: BLE001 Billing never stands in the service's way, whatever happens to it.
            self._fail(path, error, began)
            return self._without_gate(user_id)
        finally:
            if probe:
                self._probing = False
        if self._failures >= self._breaker_failures:
            _log.warning("the gate answers again")
        self._failures = 0
        return access

    def _rests(self) -> bool:
        """Whether the gate is not asked now: it has failed just before, or one request is finding out."""
        now = time.monotonic()
        return self._failures >= self._breaker_failures and (self._probing or now < self._failed_at + self._breaker_secs)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for a turn to ask, for no longer than for an answer."""
        self._here()
        turns = self._turns
        try:
            await asyncio.wait_for(turns.acquire(), self._timeout_secs)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{QUESTIONS_AT_ONCE} questions are under way, and none ended in time") from None
        try:
            yield
        finally:
            turns.release()

    def _fail(self, path: str, error: Exception, began: float | None = None) -> None:
        self._counts = replace(self._counts, failed=self._counts.failed + 1)
        if isinstance(error, (TypeError, ValueError)):
            # It was not asked.
            hint = "; correct the user_id or the units"
        elif isinstance(error, Problem) and error.status in (400, 413):
            # It answers; the question was wrong.
            self._failures = 0
            hint = "; correct the user_id or the units"
        else:
            # Those that were under way side by side failed for one reason.
            if began is not None and began >= self._failed_at:
                self._failures += 1
                self._failed_at = time.monotonic()
            wrong_token = isinstance(error, Problem) and error.status in (401, 403)
            hint = "; THE SERVICE TOKEN IS WRONG" if wrong_token else ""
        what = "let through unchecked" if self._open else "refused"
        text = str(error) or type(error).__name__
        _log.error("the gate could not be used for %s, requests are %s: %s%s", path, what, text, hint)

    def _without_gate(self, user_id: str) -> Access:
        self._counts = replace(self._counts, unchecked=self._counts.unchecked + 1)
        retry_after_secs = None if self._open else max(1, round(self._breaker_secs))
        return Access(user_id, self._open, "unknown", "unreachable", retry_after_secs=retry_after_secs, unreachable=True)

    def _lifetime_secs(self, access: Access) -> float:
        """How long the answer may be repeated: never beyond the moment at which it changes by itself."""
        now = datetime.now(timezone.utc)
        moments = [access.access_until, *(quota.resets_at for quota in access.quotas.values())]
        ends = [(moment - now).total_seconds() for moment in moments if moment is not None]
        if access.retry_after_secs is not None:
            ends.append(access.retry_after_secs)
        return min(self._cache_secs, *ends) if ends else self._cache_secs

    async def _sell(self, path: str, body: Mapping[str, Any]) -> str:
        try:
            response = await self._exchange("POST", path, body, SELL_TIMEOUT_SECS)
        except (httpx.HTTPError, asyncio.TimeoutError, OSError) as error:
            raise Unreachable(f"the access API did not answer {path}: {error or type(error).__name__}") from error
        members = _members(response)
        url = members.get("url")
        if response.status_code == 200 and isinstance(url, str):
            return url
        raise (AlreadySubscribed if response.status_code == 409 else Problem)(response.status_code, members)

    async def _exchange(self, method: str, path: str, question: Mapping[str, Any], timeout_secs: float) -> httpx.Response:
        """One exchange, within a time for all of it.

        It goes by the transport because httpx's client would log the URL, and with it a user's id that may be an address.
        """
        request = httpx.Request(
            method,
            self._api_url + path,
            params=question if method == "GET" else None,
            json=question if method == "POST" else None,
            headers=self._headers,
            extensions={"timeout": httpx.Timeout(timeout_secs).as_dict()},
        )
        transport = self._here()

        async def exchange() -> httpx.Response:
            response = await transport.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
            return response

        return await asyncio.wait_for(exchange(), timeout_secs)

    def _here(self) -> httpx.AsyncBaseTransport:
        """This event loop's transport: connections and tasks belong to the loop that made them."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._transport, self._flights, self._probing = loop, None, {}, False
            self._turns = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        if self._transport is None:
            self._transport = self._make_transport()
        return self._transport


def _transport() -> httpx.AsyncBaseTransport:
    limits = httpx.Limits(max_connections=QUESTIONS_AT_ONCE, max_keepalive_connections=QUESTIONS_AT_ONCE)
    return httpx.AsyncHTTPTransport(limits=limits)


def _members(response: httpx.Response) -> dict[str, Any]:
    try:
        members = json.loads(response.content)
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _read(user_id: str, response: httpx.Response) -> Access:
    """The gate's answer. Raises a `Problem` for any other."""
    body = _members(response)
    allowed = body.get("allowed")
    if response.status_code not in (200, 402, 429) or not isinstance(allowed, bool):
        raise Problem(response.status_code, body)
    try:
        return _access(user_id, response, allowed and response.status_code == 200, body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Problem(response.status_code, {"title": "no answer that this version reads"}) from error


def _access(user_id: str, response: httpx.Response, allowed: bool, body: Mapping[str, Any]) -> Access:
    retry_after = response.headers.get("retry-after", "")
    limit = body.get("rate_limit")
    return Access(
        user_id=user_id,
        allowed=allowed,
        state=str(body.get("state")),
        reason=body.get("reason"),
        plan=body.get("plan"),
        access_until=_moment(body.get("access_until")),
        rate_limit=RateLimit(limit["requests_per_minute"], limit.get("remaining")) if limit else None,
        quotas={
            meter: Quota(quota["limit"], quota["used"], quota["remaining"], _moment(quota.get("resets_at")))
            for meter, quota in (body.get("quotas") or {}).items()
        },
        retry_after_secs=int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
        body=body,
        headers=tuple((name.lower(), value) for name, value in response.headers.raw if name.lower().startswith(b"ratelimit")),
    )


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _left(secs: int | None, age_secs: float) -> int | None:
    """What is left of a wait, rounded up."""
    return None if secs is None else max(1, secs - int(age_secs))


T = TypeVar("T")


class _Cache(Generic[T]):
    """The latest entries, each for a time."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[T, float, float]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[T, float] | None:
        """The entry and its age in seconds, unless its time is over."""
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is None:
            return None
        value, since, until = entry
        if now >= until:
            self._entries.pop(key, None)
            return None
        return value, now - since

    def put(self, key: Hashable, value: T, secs: float) -> None:
        if secs <= 0:
            return
        now = time.monotonic()
        self._entries[key] = (value, now, now + secs)
        self._entries.move_to_end(key)
        if len(self._entries) > CACHED_USERS:
            self._entries.popitem(last=False)

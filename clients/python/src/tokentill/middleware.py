"""Gates and meters an ASGI service: asks before each request, reports after it."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from .event import MAX_ENDPOINT_CHARS, Invalid, identifier
from .gate import Access, Gate
from .tracker import UsageTracker
from .usage import Usage, _current, new_request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger("tokentill")


class BillingMiddleware:
    """Pure ASGI middleware, for FastAPI, Starlette and any other framework on asyncio.

    `user_id` says whose request it is, from the ASGI scope; it may be async. A request of nobody's (`None`) is answered with
    401, unless `anonymous="pass"` lets it through, neither checked nor reported; an `HTTPException` that it raises is the
    answer. Only paths below one of `include` are
    metered (all of them if it is `None`), except those below one of `exclude`, and no request with one of `skip_methods`.
    Websockets are neither gated nor metered.
    `cost` says what a request takes at the gate, if not one request: fixed units, or a function of the scope.
    `on_disconnect` says how a request counts whose client went away: as a success if it had told of tokens or units
    (`"usage"`), always (`"success"`) or never (`"failure"`). `trust_request_id_header` takes the request's id from its
    header `X-Request-Id`: only where every caller is a service of your own, for who repeats an id is not billed.
    """

    def __init__(
        self,
        app: App,
        *,
        gate: Gate | None,
        tracker: UsageTracker | None,
        user_id: Callable[[Scope], str | Awaitable[str | None] | None],
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        skip_methods: Iterable[str] = ("OPTIONS",),
        anonymous: Literal["refuse", "pass"] = "refuse",
        cost: Mapping[str, int] | Callable[[Scope], Mapping[str, int] | None] | None = None,
        on_disconnect: Literal["usage", "success", "failure"] = "usage",
        trust_request_id_header: bool = False,
    ) -> None:
        if isinstance(include, str) or isinstance(exclude, str) or isinstance(skip_methods, str):
            raise ValueError("include, exclude and skip_methods are lists")
        if anonymous not in ("refuse", "pass") or on_disconnect not in ("usage", "success", "failure"):
            raise ValueError('anonymous is "refuse" or "pass"; on_disconnect is "usage", "success" or "failure"')
        self.app = app
        self._gate = gate
        self._tracker = tracker
        self._user_id = user_id
        self._include = None if include is None else [path.rstrip("/") for path in include]
        self._exclude = [path.rstrip("/") for path in exclude]
        self._skip_methods = {method.upper() for method in skip_methods}
        self._anonymous = anonymous
        self._cost = cost
        self._on_disconnect = on_disconnect
        self._trust_request_id_header = trust_request_id_header
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection. Websockets pass through, and so does everything that is not metered."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] not in self._skip_methods and self._is_included(scope):
            await self._serve(scope, receive, send)
            return
        if scope["type"] == "websocket" and not self._warned and self._is_included(scope):
            self._warned = True
            _log.warning("a websocket below a metered path is passed through, neither gated nor billed; said once")
        await self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends what is left before the server ends: after the service's own shutdown, which may still report.

        It goes on by itself where the service takes no part, as without a lifespan no server says that it ends.
        """
        asked: set[str] = set()
        told: set[str] = set()

        async def receive_noting() -> Message:
            message = await receive()
            asked.add(message["type"])
            return message

        async def send_noting(message: Message) -> None:
            told.add(message["type"])
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._close()
            await send(message)

        try:
            await self.app(scope, receive_noting, send_noting)
        except Exception as error:
            if told - {"lifespan.startup.complete"}:
                raise
            if "lifespan.shutdown" in asked:
                await self._close()
                raise
            _log.warning("the service takes no part in the lifespan, billing does: %s: %s", type(error).__name__, error)
        if told - {"lifespan.startup.complete"}:
            return
        if "lifespan.startup" not in asked:
            await receive_noting()
        if not told:
            await send_noting({"type": "lifespan.startup.complete"})
        if "lifespan.shutdown" not in asked:
            await receive_noting()
        await send_noting({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        try:
            if self._tracker is not None:
                await asyncio.to_thread(self._tracker.close)
            if self._gate is not None:
                await self._gate.aclose()
        except Exception:  # noqa: BLE001 The server must come to its end.
            _log.exception("the shutdown of billing failed")

    def _is_included(self, scope: Scope) -> bool:
        path = _route_path(scope)
        # Rather a path too many than one that some router still serves: `//v1`, or `/v1` with a line's end.
        plain = "/" + path.lstrip("/").removesuffix("\n")
        return (self._include is None or _is_below(plain, self._include)) and not _is_below(path, self._exclude)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            user_id = await _value(self._user_id(scope))
        except Exception as error:
            if not _is_http(error):
                raise
            await _refuse(send, *_answer(error))
            return
        if user_id is None and self._anonymous == "pass":
            await self.app(scope, receive, send)
            return
        request_id = self._request_id(scope)
        own: Headers = [(b"x-request-id", request_id.encode())]
        if user_id is None or not _is_user_id(user_id):
            await _refuse(send, 401, _problem(401, "Unauthorised", "the request does not say whose it is"), own)
            return
        if self._gate is not None:
            access = await self._gate.check(user_id, self._cost(scope) if callable(self._cost) else self._cost)
            own += access.headers
            if not access.allowed:
                await _deny(send, access, own)
                return
        await self._meter(scope, receive, send, user_id, request_id, own)

    async def _meter(self, scope: Scope, receive: Receive, send: Send, user_id: str, request_id: str, own: Headers) -> None:
        # The router writes into the scope which route it found, and moves the root path to the mounted app.
        path, root_path = _route_path(scope), str(scope.get("root_path", ""))

        def record(**fields: Any) -> None:
            if self._tracker is not None:
                self._tracker.record_usage(user_id, _endpoint(scope, path, root_path), **fields)

        usage = Usage(request_id, record)
        # Not into a copy: middleware outside of this one sees what the handler leaves in the scope.
        scope.setdefault("state", {})["usage"] = usage
        status: int | None = None
        gone = False

        async def receive_noting() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def send_noting(message: Message) -> None:
            nonlocal gone, status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, *own]}
            try:
                await send(message)
            except OSError:
                gone = True
                raise
            # Not when the app returns: its background tasks still run then.
            if _is_last(message) and status is not None:
                if gone:
                    self._end_early(usage, status, gone, "client_disconnect")
                else:
                    usage.end(success=_is_success(status), outcome=_outcome(status))

        token = _current.set(usage)
        try:
            await self.app(scope, receive_noting, send_noting)
        except BaseException as error:
            # A cancellation alone is no disconnect: the server stops, or a time limit around us has passed.
            cancelled = isinstance(error, asyncio.CancelledError)
            self._end_early(usage, status, gone, "cancelled" if cancelled else type(error).__name__)
            raise
        else:
            self._end_early(usage, status, gone, "no_response")
        finally:
            _current.reset(token)

    def _end_early(self, usage: Usage, status: int | None, gone: bool, outcome: str) -> None:
        """Reports a request whose response did not come to its end; without effect on any other."""
        if not gone:
            usage.end(success=False, outcome=outcome)
            return
        counts = usage.has_quantities if self._on_disconnect == "usage" else self._on_disconnect == "success"
        usage.end(success=counts and _is_success(status or 200), outcome="client_disconnect")

    def _request_id(self, scope: Scope) -> str:
        if self._trust_request_id_header:
            given = [value for name, value in scope["headers"] if name == b"x-request-id"]
            if len(given) == 1 and re.fullmatch(rb"[!-~]{1,128}", given[0]):
                return bytes(given[0]).decode()
        return new_request_id()


T = TypeVar("T")


async def _value(value: T | Awaitable[T]) -> T:
    return await value if inspect.isawaitable(value) else value


def _is_user_id(user_id: object) -> bool:
    try:
        identifier(user_id, "user_id")
    except Invalid as error:
        # Not let through: nobody could be billed for it.
        _log.error("a request is refused, as its user can be neither checked nor billed: %s", error)
        return False
    return True


def _route_path(scope: Scope) -> str:
    """The path that routes are matched with, as Starlette does it: without the root path, which some servers put before it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    rest = path.removeprefix(root)
    return rest if rest.startswith("/") or not rest else path


def _is_below(path: str, prefixes: list[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _endpoint(scope: Scope, path: str, root_path: str) -> str:
    """The route's template where the framework tells it (FastAPI), else the path: what the ledger calls the endpoint."""
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        return path[:MAX_ENDPOINT_CHARS]
    # A mounted app's routes lack the mount's own path.
    mount = str(scope.get("root_path", "")).removeprefix(root_path)
    return (mount + template)[:MAX_ENDPOINT_CHARS]


def _is_last(message: Message) -> bool:
    kind = message["type"]
    return kind == "http.response.pathsend" or (kind == "http.response.body" and not message.get("more_body", False))


def _is_success(status: int) -> bool:
    """A 307 or 308 (a slash too many) served nothing: the client asks again elsewhere."""
    return status < 400 and status not in (307, 308)


def _outcome(status: int) -> str | None:
    return None if _is_success(status) else f"status_{status}"


async def _deny(send: Send, access: Access, headers: Headers) -> None:
    if access.retry_after_secs is not None:
        headers = [*headers, (b"retry-after", str(access.retry_after_secs).encode())]
    if access.unreachable:
        body = _problem(access.status, "Not available", "whether this request is allowed cannot be found out; try again")
        await _refuse(send, access.status, body, headers)
    else:
        await _refuse(send, access.status, access.body, headers, content_type=b"application/json")


def _is_http(error: Exception) -> bool:
    """Whether it is an `HTTPException`, Starlette's or alike: we depend on no framework."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and 400 <= status < 600 and hasattr(error, "detail")


def _answer(error: Any) -> tuple[int, dict[str, Any], Headers]:
    """What an `HTTPException` says."""
    status = int(error.status_code)
    title = HTTPStatus(status).phrase if status in set(HTTPStatus) else f"HTTP {status}"
    detail = error.detail if isinstance(error.detail, str) else title
    headers = {str(name).lower(): str(value) for name, value in (getattr(error, "headers", None) or {}).items()}
    own = [(n.encode(), v.encode("latin-1")) for n, v in headers.items() if not n.startswith("content-")]
    return status, _problem(status, title, detail), own


def _problem(status: int, title: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}


async def _refuse(
    send: Send,
    status: int,
    body: Mapping[str, Any],
    headers: Headers,
    content_type: bytes = b"application/problem+json",
) -> None:
    content = json.dumps(body).encode()
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

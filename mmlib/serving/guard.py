"""Who may ask, how much, and how slowly: checked before any other code sees a request.

The body is read here, whole and within its limits, and then handed on. So a body that is too
large is refused after ``max_bytes``, one that never ends after ``body_timeout`` seconds, and the
parsers behind this never see more.
"""

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmlib.serving.problems import problem_response
from mmlib.serving.settings import Settings

__all__ = ["OPEN", "Guard"]

#: What asks for neither a token nor a known host: those who ask are machines that watch.
OPEN = ("/health/live", "/health/ready")


class Guard:
    """Middleware that refuses; see the module.

    Args:
        app: What comes behind.
        settings: The limits, the token and the hosts.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or let the request through."""
        if scope["type"] != "http":
            # Nothing here speaks WebSocket; only "lifespan" is left.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        body: list[Message] = []
        if refusal is None and scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            try:
                async with asyncio.timeout(self.settings.body_timeout):
                    refusal = await self._read(receive, body)
            except TimeoutError:
                refusal = (408, f"the body took over {self.settings.body_timeout:g} seconds")
        if refusal is not None:
            response = problem_response(*refusal, scope.get("request_id", ""))
            # The rest of the body is still on its way: the connection cannot be used again.
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return

        async def replay() -> Message:
            return body.pop(0) if body else await receive()

        await self.app(scope, replay, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        settings = self.settings
        if path not in OPEN:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if settings.hosts and name not in settings.hosts:
                return 421, "this service does not answer to that host name"
            sent = headers.get(b"authorization", b"")
            if settings.token is not None and not hmac.compare_digest(
                sent, f"Bearer {settings.token}".encode()
            ):
                return 401, "a token is wanted: Authorization: Bearer …"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "Content-Length must be a number"
        if len(length) > 18 or int(length) > settings.max_bytes:
            return 413, f"the body must have at most {settings.max_bytes} bytes"
        return None

    async def _read(self, receive: Receive, body: list[Message]) -> tuple[int, str] | None:
        """Put the body into ``body`` as one message, and say what is wrong with it."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "the client left before the end of the body"
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.settings.max_bytes:
                return 413, f"the body must have at most {self.settings.max_bytes} bytes"
            more = message.get("more_body", False)
        body.append({"type": "http.request", "body": b"".join(parts), "more_body": False})
        return None

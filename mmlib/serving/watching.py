"""What operators see: Prometheus metrics, and one line of JSON for each request.

Neither holds what a user wrote or sent. Routes are named by their pattern and unknown addresses
all together, so that nobody can fill the metrics with names.
"""

import datetime
import io
import json
import logging
import re
import secrets
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmlib.serving.problems import problem_response

__all__ = ["JsonLines", "Metrics", "Watch", "log_to"]

_log = logging.getLogger("mmlib.serving")
_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The numbers of one application, in a registry of its own.

    Attributes:
        registry: What ``/metrics`` shows.
        requests: By route, method and status.
        seconds: Time to the last byte of an answer, by route.
        batch: Sizes of batches, by function.
        waiting: Requests that wait, by function.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mmlib_requests",
            "Answers, by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "mmlib_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "mmlib_batch_size",
            "Requests that a function answered at once",
            ("function",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "mmlib_waiting", "Requests in the queue", ("function",), registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; what the user sent cannot begin a new line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_to(stream: io.TextIOBase = sys.stderr, level: int = logging.INFO) -> logging.Handler:
    """Send what the service and its server log to a stream, as JSON lines; gives the handler."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("mmlib.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    return handler


class Watch:
    """Middleware that gives each request an id, counts it, times it and writes its line.

    Args:
        app: What comes behind.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, and note what becomes of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        # A client's id is kept if it is one: it goes into the log and back into a header.
        request_id = given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            # Here, and not in a handler of FastAPI's, which would come after this line is written.
            _log.error("failed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if not status:
                detail = "the service failed; the log says why"
                await problem_response(500, detail, request_id)(scope, receive, note)
        finally:
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = _route(scope)
            # 499: the client went away before there was an answer.
            self.metrics.requests.labels(route, method, str(status or 499)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            fields = {
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": status or 499,
                "milliseconds": round(1000 * seconds, 1),
            }
            _log.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str:
    if scope["path"].startswith("/page"):
        return "/page"
    return getattr(scope.get("route"), "path", "unknown")

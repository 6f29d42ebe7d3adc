"""The service: functions, queues, limits, metrics and health as one FastAPI application."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, File, Form, Response, UploadFile
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, create_model
from starlette.formparsers import MultiPartParser
from starlette.responses import PlainTextResponse

from mmlib import __version__
from mmlib.serving.batching import Batcher, Closed, QueueFull
from mmlib.serving.functions import Function, Job
from mmlib.serving.guard import Guard
from mmlib.serving.problems import Refused, add_problem_handlers, problem_responses
from mmlib.serving.settings import Settings
from mmlib.serving.uploads import FORMATS, decode_picture
from mmlib.serving.watching import Metrics, Watch

__all__ = ["Health", "Service", "create_app", "server"]

_log = logging.getLogger("mmlib.serving")
_ERRORS = (400, 401, 408, 413, 415, 421, 422, 429, 500, 503, 504)


class Health(BaseModel):
    """Whether the service lives, or is ready."""

    status: str


class Service:
    """The functions and their queues, apart from HTTP: the routes and the page both ask this.

    Args:
        functions: What is served.
        settings: The limits.
        metrics: Where batches are counted.

    Raises:
        ValueError: there is no function, or two have one name.
    """

    def __init__(self, functions: Sequence[Function], settings: Settings, metrics: Metrics) -> None:
        names = [function.name for function in functions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"functions must have different names, at least one: got {names}")
        self.functions = {function.name: function for function in functions}
        self.settings, self.state = settings, "loading"
        self._batchers = {}
        for name, function in self.functions.items():
            limits = function.limits
            self._batchers[name] = batcher = Batcher(
                function.run,
                max_batch=limits.max_batch or settings.max_batch,
                max_wait=settings.max_wait,
                max_queue=limits.max_queue or settings.max_queue,
                timeout=limits.timeout or settings.timeout,
                observe=metrics.batch.labels(name).observe,
            )
            metrics.waiting.labels(name).set_function(lambda batcher=batcher: batcher.waiting)
        # Two pictures are decoded at a time: each may take some 50 MB.
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decoder")

    async def start(self) -> None:
        """Load the functions one after the other, in a thread, and begin to answer."""
        try:
            for function in self.functions.values():
                await asyncio.to_thread(function.load)
                self._batchers[function.name].start()
                _log.info("loaded", extra={"fields": {"function": function.name}})
        except Exception:
            self.state = "failed"
            _log.exception("loading failed")
        else:
            self.state = "ready"

    async def stop(self) -> None:
        """Refuse what comes, finish what was accepted."""
        self.state = "stopping"
        await asyncio.gather(*(b.close(self.settings.grace) for b in self._batchers.values()))
        self._decoders.shutdown(wait=False)

    async def answer(self, name: str, job: Job) -> BaseModel:
        """The reply to a job that is complete.

        Raises:
            Refused: 429, 503 or 504.
        """
        self.check(name)
        try:
            return await self._batchers[name].submit(job)
        except QueueFull as error:
            raise Refused(429, f"{error}: try again later", retry_after=1) from None
        except Closed as error:
            raise Refused(503, str(error), retry_after=5) from None
        except TimeoutError:
            seconds = self._batchers[name].timeout
            raise Refused(504, f"no answer within {seconds:g} seconds") from None

    async def answer_upload(
        self, name: str, fields: BaseModel, data: bytes, content_type: str | None
    ) -> BaseModel:
        """The reply to a request whose picture is still a file.

        Raises:
            Refused: as :meth:`answer`, and what :func:`~mmlib.serving.uploads.decode_picture` says.
        """
        self.check(name)  # before the work of decoding

        def decode():
            return decode_picture(data, content_type, max_pixels=self.settings.max_pixels)

        picture = await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
        return await self.answer(name, Job(fields, picture))

    def check(self, name: str) -> None:
        """Say at once what would be said after waiting.

        Raises:
            Refused: 503 or 429.
        """
        if self.state != "ready":
            raise Refused(503, f"the service is {self.state}", retry_after=5)
        if self._batchers[name].full:
            raise Refused(429, "too many requests wait already: try again later", retry_after=1)


def create_app(
    functions: Sequence[Function],
    settings: Settings | None = None,
    *,
    mount_page: Callable[[FastAPI, Service], FastAPI] | None = None,
) -> FastAPI:
    """The application; ``app.state.service`` is its :class:`Service`.

    Args:
        functions: What is served, each at ``/v1/NAME``.
        settings: The limits.
        mount_page: :func:`mmlib.serving.page.mount_page` for the page at ``/page``.
    """
    settings, metrics = settings or Settings(), Metrics()
    service = Service(functions, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # In the background: the service lives while it loads, and says that it is not ready.
        loading = asyncio.create_task(service.start())
        yield
        if not loading.done():
            loading.cancel()
        await service.stop()

    app = FastAPIOffline(  # its OpenAPI page loads nothing from elsewhere
        redoc_url=None,
        title="mmlib",
        version=__version__,
        summary="What the chapters trained, as a service.",
        lifespan=lifespan,
    )
    app.state.service = service
    # An upload stays in memory, which Guard bounds; Starlette would write it to a file from 1 MB.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, settings.max_bytes + 1)
    add_problem_handlers(app)
    for function in service.functions.values():
        _add_route(app, service, function)
    _add_operations(app, service, metrics)
    if mount_page is not None:
        app = mount_page(app, service)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Watch, metrics=metrics)  # the last added is the outermost
    return app


def server(app: FastAPI, host: str, port: int, grace: float = 20.0) -> uvicorn.Server:
    """A server of an application; ``run()`` ends at a signal, after what was accepted is finished.

    Args:
        app: The application.
        host: The address to listen on.
        port: 0 for any that is free.
        grace: Seconds that what was accepted may take.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,  # there is a line for each request already
            server_header=False,
            ws="none",
            limit_concurrency=512,
            timeout_graceful_shutdown=round(grace) + 1,
        )
    )


def _add_route(app: FastAPI, service: Service, function: Function) -> None:
    name, options = function.name, {}
    if function.takes_picture:
        description = f"A picture: {', '.join(FORMATS)}."
        form = create_model(
            f"{function.request.__name__}Form",
            __base__=function.request,
            file=(UploadFile, File(description=description)),
        )

        async def endpoint(fields: Any) -> Any:
            request = function.request(**fields.model_dump(exclude={"file"}))
            data = await fields.file.read()
            return await service.answer_upload(name, request, data, fields.file.content_type)

        options["fields"] = Annotated[form, Form(media_type="multipart/form-data")]
    else:

        async def endpoint(fields: Any) -> Any:
            return await service.answer(name, Job(fields))

        options["fields"] = Annotated[function.request, Body()]
    endpoint.__annotations__ = options  # FastAPI reads from here what the route takes
    app.post(
        f"/v1/{name}",
        operation_id=name,
        tags=["functions"],
        summary=function.summary,
        response_model=function.reply,
        responses=problem_responses(*_ERRORS),
    )(endpoint)


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    options: dict[str, Any] = {"tags": ["operation"], "response_model": Health}

    @app.get(
        "/health/live",
        summary="Does the process answer? If not, restart it.",
        responses=problem_responses(500),
        **options,
    )
    async def live() -> Health:
        if service.state == "failed":
            raise Refused(500, "loading failed; the log says why")
        return Health(status="alive")

    @app.get(
        "/health/ready",
        summary="May requests be sent here? If not, send them elsewhere.",
        responses=problem_responses(503),
        **options,
    )
    async def ready() -> Health:
        if service.state != "ready":
            raise Refused(503, f"the service is {service.state}", retry_after=5)
        return Health(status="ready")

    @app.get(
        "/metrics", tags=["operation"], summary="For Prometheus.", response_class=PlainTextResponse
    )
    async def show() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

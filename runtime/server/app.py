"""The HTTP interface: addresses, who is let in, start and end."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.keyframes import Blend, Keyframe
from runtime.pipeline import Pipeline
from runtime.server.errors import (
    ServiceError,
    bad_request,
    error_response,
    no_such_address,
    not_met,
)
from runtime.server.fields import BadRequestError
from runtime.server.metrics import Metrics
from runtime.server.openapi import document
from runtime.server.options import ServerOptions
from runtime.server.pictures import Pictures
from runtime.server.queue import PictureQueue, QueueFullError
from runtime.server.studio import studio_routes


def create_app(pipeline: Pipeline, options: ServerOptions | None = None) -> Starlette:
    """The application, for any ASGI server. Its model is compiled when it starts.

    Args:
        pipeline: of the model; used by this application alone.
        options: see there.
    """
    return _Server(pipeline, options or ServerOptions()).app


class _Server:
    def __init__(self, pipeline: Pipeline, options: ServerOptions) -> None:
        self._pipeline, self._options = pipeline, options
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._pictures = Pictures(pipeline, options, self._metrics)
        self._started = int(time.time())
        generate, interpolate = self._pictures.generate, self._pictures.interpolate
        routes = [
            Route("/v1/images/generations", self._guarded(generate), methods=["POST"]),
            Route("/v1/images/interpolations", self._guarded(interpolate), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/v1/pictures/{name}", self._pictures.kept, name="picture"),
            Route("/healthz", self._healthy),
            Route("/readyz", self._ready),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._document),
            *studio_routes(),
        ]
        handlers: Any = {
            404: no_such_address,
            405: no_such_address,
            BadRequestError: bad_request,
            QueueFullError: self._queue_is_full,
            ServiceError: not_met,
        }
        self.app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Compile for one picture and for many before the first request; end what was accepted."""
        queue = PictureQueue(self._pipeline, self._options.queue)
        count = min(8, self._options.queue)
        many = [Blend(Keyframe("a bird on a branch", index=index)) for index in range(count)]
        for wanted in (many[:1], many):
            await asyncio.gather(*map(asyncio.wrap_future, queue.ask(wanted)))
        self._pictures.queue = queue
        yield
        self._pictures.queue = None
        await asyncio.to_thread(queue.close)

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Let in who has the key and comes from here."""

        async def guard(request: Request) -> Response:
            key = self._options.api_key
            given = request.headers.get("authorization", "")
            if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                return error_response(401, "the API key is missing or wrong", "invalid_api_key")
            # A page from elsewhere could not read the answer, but keep the machine busy.
            if request.headers.get("sec-fetch-site") == "cross-site":
                return error_response(403, "other sites' pages may not ask", "cross_site")
            response: Response = await handler(request)
            return response

        return guard

    async def _queue_is_full(self, _: Request, error: Any) -> Response:
        """The handler of QueueFullError."""
        self._metrics.refused.inc()
        wait = {"Retry-After": str(round(error.seconds))}
        return error_response(429, str(error), "rate_limit_exceeded", headers=wait)

    def _described(self) -> dict[str, Any]:
        manifest = self._pipeline.manifest
        return {
            "id": manifest.name,
            "object": "model",
            "created": self._started,
            "owned_by": "galip-edge",
            "image_size": manifest.image_size,
            "model_hash": manifest.model_hash,
        }

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self._pipeline.manifest.name:
            raise ServiceError(404, "there is no such model", "not_found")
        return JSONResponse(self._described())

    async def _healthy(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        self._pictures.open_queue()
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self, _: Request) -> Response:
        queue = self._pictures.queue
        self._metrics.waiting.set(0 if queue is None else len(queue))
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _document(self, _: Request) -> Response:
        size, options = self._pipeline.manifest.image_size, self._options
        return JSONResponse(document(size, options.most, options.api_key is not None))

"""The HTTP application: routes, access control, startup and shutdown, the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from runtime.pipeline import Pipeline
from runtime.server.access import has_key, is_cross_site, middleware
from runtime.server.images_api import ImagesAPI, Metrics
from runtime.server.models import ModelPool, ModelSource
from runtime.server.openapi import document
from runtime.server.options import ServerOptions
from runtime.server.queue import QueueFullError
from runtime.server.schema import (
    BadRequestError,
    ServiceError,
    bad_request,
    error_response,
    not_found,
    service_error,
)
from runtime.server.webui import WebUI


def create_app(
    models: Pipeline | dict[str, ModelSource], options: ServerOptions | None = None
) -> Starlette:
    """Create the application for any ASGI server; startup compiles the first model.

    Args:
        models: a pipeline that nothing else uses, or models by name.
        options: limits and access.
    """
    if not isinstance(models, dict):
        pipeline = models
        models = {pipeline.manifest.name: ModelSource(pipeline.manifest, lambda: pipeline)}
    return _Server(models, options or ServerOptions()).app


class _Server:
    def __init__(self, sources: dict[str, ModelSource], options: ServerOptions) -> None:
        self._options = options
        self._models = ModelPool(sources, options.queue_size, options.memory)
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._images = ImagesAPI(self._models, options, self._metrics)
        self._started = int(time.time())
        guarded, images = self._guarded, self._images
        routes = [
            _post("/v1/images/generations", guarded(images.generate)),
            _post("/v1/images/interpolations", guarded(images.interpolate)),
            _post("/v1/images/edits", guarded(images.not_supported)),
            _post("/v1/images/variations", guarded(images.not_supported)),
            Route("/v1/models", guarded(self._list_models)),
            Route("/v1/models/{name:path}", guarded(self._model)),
            Route("/v1/files/{name}", images.kept, name="file"),
            *WebUI(self._models, images, options.max_images).routes(guarded),
            Route("/healthz", self._healthy),
            Route("/readyz", self._ready),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._document),
            *studio_routes(),
        ]
        handlers: Any = {
            404: not_found,
            405: not_found,
            BadRequestError: bad_request,
            QueueFullError: self._queue_is_full,
            ServiceError: service_error,
        }
        self.app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers=handlers,
            middleware=middleware(options),
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Compile before the first request; finish accepted requests on shutdown."""
        await asyncio.to_thread(self._images.warm_up)
        await self._models.open()
        yield
        await self._models.close()
        self._images.close()

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Require the API key, and reject cross-site requests."""

        async def guard(request: Request) -> Response:
            options = self._options
            if options.api_key and not has_key(request.headers, options.api_key):
                return error_response(401, "the API key is missing or wrong", "invalid_api_key")
            # A page of another site could not read the response, but could keep the machine busy.
            if is_cross_site(request.headers, options.cors_origins):
                return error_response(403, "cross-site requests are not allowed", "cross_site")
            response: Response = await handler(request)
            return response

        return guard

    async def _queue_is_full(self, _: Request, error: Any) -> Response:
        """Handler of QueueFullError."""
        self._metrics.refused.inc()
        wait = {"Retry-After": str(round(error.seconds))}
        return error_response(429, str(error), "rate_limit_exceeded", headers=wait)

    def _described(self, name: str) -> dict[str, Any]:
        manifest = self._models.sources[name].manifest
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "galip-edge",
            "image_size": manifest.image_size,
            "model_hash": manifest.model_hash,
        }

    async def _list_models(self, _: Request) -> Response:
        data = [self._described(name) for name in self._models.sources]
        return JSONResponse({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._models.sources:
            raise ServiceError(404, "model not found", "model_not_found")
        return JSONResponse(self._described(name))

    async def _healthy(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        self._models.check_open()
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self, _: Request) -> Response:
        self._metrics.waiting.set(self._models.queued)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _document(self, _: Request) -> Response:
        options = self._options
        return JSONResponse(document(options.max_images, options.api_key is not None))


def _post(path: str, handler: Callable[[Request], Any]) -> Route:
    return Route(path, handler, methods=["POST"])


_PAGE = Path(__file__).parent / "page"


def studio_routes() -> list[BaseRoute]:
    """The page at `/studio/`, to which `/` redirects."""
    return [Route("/", _to_studio), Mount("/studio", _Files(directory=_PAGE, html=True))]


async def _to_studio(_: Request) -> Response:
    return RedirectResponse("studio/")


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Revalidated by ETag, so that files of two versions never mix."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response

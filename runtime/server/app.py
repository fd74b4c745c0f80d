"""The HTTP interface: routes, limits, and what goes wrong as OpenAI's clients understand it."""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.images import ImageMetadata, Images, write_png
from runtime.latent import Keyframe
from runtime.pipeline import Pipeline
from runtime.server.metrics import Metrics
from runtime.server.openapi import document
from runtime.server.queue import PictureQueue, QueueFullError
from runtime.server.requests import BadRequestError, ImagesRequest, parse

# Pictures that a `url` was given for, the latest ones.
_KEPT_PICTURES = 256


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server.

    Attributes:
        api_key: that clients must give; None lets everybody in.
        most: pictures of one request.
        queue: pictures that may wait.
        seconds: after which a request is given up.
        body_bytes: largest body of a request.
    """

    api_key: str | None = None
    most: int = 10
    queue: int = 64
    seconds: float = 60.0
    body_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.most <= self.queue:
            raise ValueError(
                f"a request may ask for 1 picture to as many as may wait ({self.queue}), got "
                f"{self.most}"
            )
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if self.body_bytes < 1024:
            raise ValueError(f"body_bytes must be at least 1024, got {self.body_bytes}")
        if self.api_key is not None and len(self.api_key) < 8:
            raise ValueError("the API key must have at least 8 characters")


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
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._started = int(time.time())
        self._queue: PictureQueue | None = None
        routes = [
            Route("/v1/images/generations", self._guarded(self._generate), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/v1/pictures/{name}", self._picture),
            Route("/healthz", self._healthy),
            Route("/readyz", self._ready),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._document),
        ]
        handlers: Any = {404: _not_found, 405: _not_found}
        self.app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Compile for one picture and for many before the first request; end what was accepted."""
        queue = PictureQueue(self._pipeline, self._options.queue)
        many = [Keyframe("a bird on a branch", 0, i) for i in range(min(8, self._options.queue))]
        for wanted in (many[:1], many):
            await asyncio.gather(*map(asyncio.wrap_future, queue.ask(wanted)))
        self._queue = queue
        yield
        self._queue = None
        await asyncio.to_thread(queue.close)

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Let in who has the key, and tell what goes wrong."""

        async def guard(request: Request) -> Response:
            key = self._options.api_key
            given = request.headers.get("authorization", "")
            if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                return _error(401, "the API key is missing or wrong", "invalid_api_key")
            try:
                response: Response = await handler(request)
            except BadRequestError as error:
                return _error(400, str(error), "invalid_request_error", error.parameter)
            except QueueFullError as error:
                self._metrics.refused.inc()
                wait = {"Retry-After": str(round(error.seconds))}
                return _error(429, str(error), "rate_limit_exceeded", headers=wait)
            return response

        return guard

    async def _generate(self, request: Request) -> Response:
        wanted = await self._read(request)
        if self._queue is None:
            return _error(503, "the server is starting or ending", "unavailable")
        started = time.perf_counter()
        keyframes = [Keyframe(wanted.prompt, wanted.seed, index) for index in range(wanted.n)]
        futures = self._queue.ask(keyframes)
        images = asyncio.gather(*map(asyncio.wrap_future, futures))
        leaving = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {images, leaving}
        try:
            await asyncio.wait(
                either,
                timeout=self._options.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not images.done():
                self._metrics.given_up.inc()
                return _error(504, f"not made within {self._options.seconds:.0f} s", "timeout")
            if images.exception() is not None:  # which the queue has logged
                return _error(500, "the pictures could not be made", "failed")
            pictures = await asyncio.to_thread(self._encode, wanted, images.result())
        finally:
            leaving.cancel()
            images.cancel()
        self._metrics.pictures.inc(wanted.n)
        self._metrics.seconds.observe(time.perf_counter() - started)
        return JSONResponse(self._answer(request, wanted, pictures))

    async def _read(self, request: Request) -> ImagesRequest:
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._options.body_bytes:
                    raise BadRequestError(
                        f"the body is larger than {self._options.body_bytes:,} bytes"
                    )
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequestError("the body is no JSON") from error
        except ClientDisconnect as error:
            raise BadRequestError("the client left") from error
        return parse(found, self._pipeline.manifest.image_size, self._options.most)

    def _encode(self, wanted: ImagesRequest, images: list[Images]) -> list[bytes]:
        """PNG files, with their recipe inside."""
        manifest, files = self._pipeline.manifest, []
        for index, image in enumerate(images):
            buffer = io.BytesIO()
            recipe = (wanted.prompt, wanted.seed, index, manifest.name, manifest.model_hash)
            write_png(image, buffer, ImageMetadata(*recipe))
            files.append(buffer.getvalue())
        return files

    def _answer(
        self, request: Request, wanted: ImagesRequest, pictures: list[bytes]
    ) -> dict[str, Any]:
        if wanted.response_format == "b64_json":
            data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
        else:
            names = [secrets.token_urlsafe(16) for _ in pictures]
            for name, picture in zip(names, pictures):
                self._pictures[name] = picture
            while len(self._pictures) > _KEPT_PICTURES:
                self._pictures.popitem(last=False)
            # Nothing of a request's header but its host, which its client chose anyway.
            data = [{"url": str(request.url_for("_picture", name=name))} for name in names]
        return {"created": int(time.time()), "seed": wanted.seed, "data": data}

    async def _picture(self, request: Request) -> Response:
        picture = self._pictures.get(request.path_params["name"])
        if picture is None:
            return _error(404, "no such picture, or it is no longer kept", "not_found")
        return Response(picture, media_type="image/png")

    def _described(self) -> dict[str, Any]:
        name = self._pipeline.manifest.name
        return {"id": name, "object": "model", "created": self._started, "owned_by": "galip-edge"}

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self._pipeline.manifest.name:
            return _error(404, "there is no such model", "not_found")
        return JSONResponse(self._described())

    async def _healthy(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        if self._queue is None:
            return _error(503, "the server is starting or ending", "unavailable")
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self, _: Request) -> Response:
        self._metrics.waiting.set(0 if self._queue is None else len(self._queue))
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _document(self, _: Request) -> Response:
        size, options = self._pipeline.manifest.image_size, self._options
        return JSONResponse(document(size, options.most, options.api_key is not None))


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


async def _not_found(request: Request, error: Any) -> Response:
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return _error(405, f"{request.method} is not allowed here", "not_allowed", headers=allowed)
    return _error(404, "there is nothing here", "not_found")


def _error(
    status: int,
    message: str,
    code: str,
    parameter: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
    return JSONResponse(body, status, headers=headers)

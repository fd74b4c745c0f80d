"""OpenAI's images API, an endpoint for interpolations, and metrics."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from runtime.arrays import Images
from runtime.bundle import Manifest
from runtime.cpu import available_cores, release_free_memory
from runtime.images import ImageFormat, ImageMetadata, resized
from runtime.latent import Interpolation
from runtime.server.models import LoadedModel, ModelPool
from runtime.server.openapi import WARNING_HEADER
from runtime.server.options import ServerOptions
from runtime.server.schema import (
    BadRequestError,
    Delivery,
    Generation,
    ServiceError,
    error_body,
    parse_generation,
    parse_interpolation,
)

# Least memory for the latest images returned by URL: about 40 at 224 pixels.
_KEPT_BYTES = 4 << 20

# Seconds between two releases of free memory: glibc keeps buffers of large images.
_RELEASE_SECONDS = 5.0

# Largest rejected upload that is read to the end, so that its client reads the response.
_REFUSED_BYTES = 64 << 20

_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_NOTHING = ImageMetadata("", 0, 0, "", "")

T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """Images of one request.

    Attributes:
        manifest: of the model.
        files: in the requested format and size.
        originals: PNG files in the model's own size, if requested.
        warnings: about unexpected results, in ASCII.
        tokens: of the prompt, up to the model's limit.
    """

    manifest: Manifest
    files: list[bytes]
    originals: list[bytes]
    warnings: list[str]
    tokens: int


@dataclass(frozen=True)
class _Kept:
    """An image returned by URL, encoded on download."""

    place: slice  # of its PNG in the model's own size
    metadata: ImageMetadata
    delivery: Delivery


class _Ring:
    """The latest images returned by URL, in memory that never grows.

    Args:
        size: bytes; images that need more are not kept.
    """

    def __init__(self, size: int) -> None:
        # Filled, so that all pages exist before the first request.
        self._memory = bytearray(b"\xff" * size)
        self._kept: dict[str, _Kept] = {}
        self._next = 0

    def add(self, name: str, original: bytes, metadata: ImageMetadata, delivery: Delivery) -> None:
        """Replace the oldest images by this one."""
        start = self._next if self._next + len(original) <= len(self._memory) else 0
        end = start + len(original)
        if end > len(self._memory):
            return
        for other, kept in list(self._kept.items()):
            if kept.place.start < end and start < kept.place.stop:
                del self._kept[other]
        self._memory[start:end] = original
        self._kept[name] = _Kept(slice(start, end), metadata, delivery)
        self._next = end

    def get(self, name: str) -> tuple[Delivery, Callable[[], bytes]] | None:
        """How the image is delivered, and what encodes it; None if it is no longer kept."""
        if (kept := self._kept.get(name)) is None:
            return None
        original = bytes(self._memory[kept.place])  # before another image takes its place

        def encode() -> bytes:
            if kept.delivery == Delivery() and kept.delivery.image_format.signer is None:
                return original
            with Image.open(io.BytesIO(original)) as image:
                return _file(np.asarray(image), kept.metadata, kept.delivery)

        return kept.delivery, encode


def _file(image: Images, metadata: ImageMetadata, delivery: Delivery) -> bytes:
    if delivery.size is not None:
        image = resized(image, *delivery.size, delivery.fit)
    return delivery.image_format.encode(image, metadata)


# From an idle server to a long queue.
_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Metrics of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.images = Counter("galip_images", "Generated images.", registry=registry)
        self.refused = Counter(
            "galip_refused_requests",
            "Requests refused because the queue was full.",
            registry=registry,
        )
        self.given_up = Counter(
            "galip_given_up_requests",
            "Requests that timed out or whose client disconnected.",
            registry=registry,
        )
        self.waiting = Gauge("galip_queued_images", "Queued images.", registry=registry)
        self.seconds = Histogram(
            "galip_request_seconds",
            "Time from a request to its images.",
            buckets=_SECONDS,
            registry=registry,
        )


class ImagesAPI:
    """Handlers: read a request, wait for its images, respond."""

    def __init__(self, models: ModelPool, options: ServerOptions, metrics: Metrics) -> None:
        self._models, self._options, self._metrics = models, options, metrics
        side = max(source.manifest.image_size for source in models.sources.values())
        # A PNG is hardly larger than its pixels and its prompts.
        largest = 3 * side**2 + 2 * options.body_bytes
        self._kept = _Ring(max(_KEPT_BYTES, options.max_images * largest))
        # PNG and Lanczos release the interpreter lock; more threads than cores would add memory.
        self._next_release = 0.0
        self._count = available_cores()
        self._workers = ThreadPoolExecutor(self._count, thread_name_prefix="encoding")

    def warm_up(self) -> None:
        """Encode an image in each thread, to load codecs and allocate their memory."""
        together = threading.Barrier(self._count)

        def encode() -> None:
            together.wait()
            image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
            for name in _MEDIA_TYPES:
                _file(image, _NOTHING, Delivery((1024, 1024), "crop", ImageFormat(name)))

        for future in [self._workers.submit(encode) for _ in range(self._count)]:
            future.result()

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    async def generate(self, request: Request) -> Response:
        """`POST /v1/images/generations`."""
        wanted = parse_generation(await self.body_of(request), self._options.max_images)
        name = self._models.choose(wanted.model)
        if wanted.stream:
            return _Events(self, self._models, name, wanted)
        made = await self.make(request, name, wanted.blends, wanted.delivery, wanted.as_url)
        if wanted.as_url:
            data = [
                {"url": self._keep(request, made, *pair, wanted.delivery)}
                for pair in zip(wanted.blends, made.originals)
            ]
        else:
            data = await self.in_thread(
                lambda: [{"b64_json": base64.b64encode(file).decode()} for file in made.files]
            )
        answer = {
            "created": int(time.time()),
            "seed": wanted.seed,
            "data": data,
            "warnings": wanted.warnings + made.warnings,
            **_echoed(made.manifest, wanted.delivery),
            "usage": _usage(made.tokens),
        }
        return JSONResponse(answer)

    async def interpolate(self, request: Request) -> Response:
        """`POST /v1/images/interpolations`."""
        model, wanted = parse_interpolation(await self.body_of(request))
        made = await self.make(request, self._models.choose(model), [wanted])
        headers = {WARNING_HEADER: ", ".join(made.warnings)} if made.warnings else None
        return Response(made.files[0], media_type="image/png", headers=headers)

    async def kept(self, request: Request) -> Response:
        """`GET /v1/files/{name}`."""
        kept = self._kept.get(request.path_params["name"])
        if kept is None:
            raise ServiceError(404, "image not found, or no longer kept", "not_found")
        delivery, encode = kept
        content = await self.in_thread(encode)
        return Response(content, media_type=_MEDIA_TYPES[delivery.image_format.name])

    async def not_supported(self, request: Request) -> Response:
        """`POST /v1/images/edits` and other endpoints that the model does not support."""
        with suppress(ClientDisconnect, asyncio.TimeoutError):
            await asyncio.wait_for(_drain(request), self._options.timeout)
        what = request.url.path.rpartition("/")[2]
        raise ServiceError(400, f"{what} is not supported by this model", "not_supported")

    async def body_of(self, request: Request) -> Any:
        """The JSON of a request. Raises BadRequestError."""
        seconds = self._options.timeout
        try:
            return json.loads(await asyncio.wait_for(self._read(request), seconds))
        except (ValueError, RecursionError) as error:
            raise BadRequestError("the body is not valid JSON") from error
        except ClientDisconnect as error:
            raise BadRequestError("the client disconnected") from error
        except asyncio.TimeoutError as error:
            raise BadRequestError(f"request body timed out after {seconds:g} s") from error

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._options.body_bytes:
                raise BadRequestError(f"the body is larger than {self._options.body_bytes:,} bytes")
        return bytes(body)

    async def make(
        self,
        request: Request,
        model: str,
        blends: list[Interpolation],
        delivery: Delivery | None = None,
        originals: bool = False,
    ) -> Made:
        """Generate images, unless the client disconnects.

        Args:
            request: cancels the images when its client disconnects.
            model: name in the pool.
            blends: one for each image.
            delivery: size and format of the files.
            originals: return PNG files in the model's own size instead.

        Raises:
            ServiceError: generation failed or timed out, or the server is starting or stopping.
            QueueFullError: the queue cannot hold the images.
        """
        started = time.perf_counter()
        async with self._models.use(model) as loaded:
            images = await self._generated(request, loaded.queue.submit(blends))
            made = await self.in_thread(
                _finish, loaded, blends, images, self.signed(delivery or Delivery()), originals
            )
        self.count(len(blends), started)
        return made

    async def _generated(self, request: Request, queued: list[Future[Images]]) -> list[Images]:
        images = asyncio.gather(*map(asyncio.wrap_future, queued))
        images.add_done_callback(_retrieve)
        leaving = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {images, leaving}
        try:
            await asyncio.wait(
                either, timeout=self._options.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not images.done():
                raise self.timed_out()
            if images.exception() is not None:  # logged by the queue
                raise ServiceError(500, "the images could not be generated", "failed")
            return images.result()
        finally:
            leaving.cancel()
            images.cancel()

    def timed_out(self) -> ServiceError:
        """Count a timed-out request, and return its error."""
        self._metrics.given_up.inc()
        return ServiceError(504, f"timed out after {self._options.timeout:g} s", "timeout")

    def count(self, images: int, started: float) -> None:
        """Count generated images, and the time since `started` by `time.perf_counter`.

        Releases free memory to the system periodically.
        """
        if time.perf_counter() > self._next_release:
            self._next_release = time.perf_counter() + _RELEASE_SECONDS
            self._workers.submit(release_free_memory)
        self._metrics.images.inc(images)
        self._metrics.seconds.observe(time.perf_counter() - started)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function` in a thread, and await its result."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    def signed(self, delivery: Delivery) -> Delivery:
        """The delivery with the server's signature, if it has one."""
        image_format = replace(delivery.image_format, signer=self._options.signer)
        return replace(delivery, image_format=image_format)

    @property
    def timeout(self) -> float:
        """Limit of a request in seconds."""
        return self._options.timeout

    def _keep(
        self,
        request: Request,
        made: Made,
        blend: Interpolation,
        original: bytes,
        delivery: Delivery,
    ) -> str:
        """Keep an image among the latest ones, and return its URL."""
        name = f"{secrets.token_urlsafe(16)}.{delivery.image_format.suffix}"
        metadata = _metadata(made.manifest, blend)
        self._kept.add(name, original, metadata, self.signed(delivery))
        return str(request.url_for("file", name=name))


def _metadata(manifest: Manifest, blend: Interpolation) -> ImageMetadata:
    return ImageMetadata.of_interpolation(blend, manifest.name, manifest.model_hash)


def _finish(
    model: LoadedModel,
    blends: list[Interpolation],
    images: list[Images],
    delivery: Delivery,
    originals: bool,
) -> Made:
    """Encode images, and collect warnings and token count."""
    manifest = model.manifest
    delivered = Delivery() if originals else delivery
    files = [
        _file(image, _metadata(manifest, blend), delivered) for blend, image in zip(blends, images)
    ]
    warnings = _cut_prompts(model, blends) + _resampled(manifest, delivery)
    tokens = model.pipeline.tokenizer(blends[0].start.prompt).argmax() - 1
    return Made(
        manifest, [] if originals else files, files if originals else [], warnings, int(tokens)
    )


def _cut_prompts(model: LoadedModel, blends: list[Interpolation]) -> list[str]:
    keyframes = [frame for blend in blends for frame in (blend.start, blend.end) if frame]
    prompts = dict.fromkeys(frame.prompt for frame in keyframes)
    return [f"a prompt has {cut}" for cut in map(model.pipeline.tokenizer.cut, prompts) if cut]


def _resampled(manifest: Manifest, delivery: Delivery) -> list[str]:
    side = manifest.image_size
    if delivery.size is None or delivery.size == (side, side):
        return []
    width, height = delivery.size
    how = "" if width == height else ", cropped" if delivery.fit == "crop" else ", padded"
    return [
        f"the model generates {side}x{side} pixels: the image was resampled to "
        f"{width}x{height}{how}"
    ]


def _echoed(manifest: Manifest, delivery: Delivery) -> dict[str, str]:
    """Properties of an image in OpenAI's responses."""
    width, height = delivery.size or (manifest.image_size, manifest.image_size)
    return {
        "background": "opaque",
        "output_format": delivery.image_format.name,
        "quality": "auto",
        "size": f"{width}x{height}",
    }


def _usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": tokens,
    }


class _Events(Response):
    """Server-sent events in OpenAI's format, one for each finished image.

    There are no partial images, since the model has one step. OpenAI's API also sends fewer than
    requested when an image is finished early.
    """

    media_type = "text/event-stream"

    def __init__(self, api: ImagesAPI, models: ModelPool, name: str, wanted: Generation) -> None:
        super().__init__()
        self._api, self._models, self._name, self._wanted = api, models, name, wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events; a failure before the first one is a plain error response."""
        async with self._models.use(self._name) as model:
            queued = model.queue.submit(self._wanted.blends)
            try:
                events = StreamingResponse(
                    self._events(model, queued),
                    media_type=self.media_type,
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
                await events(scope, receive, send)
            finally:
                for each in queued:
                    each.cancel()

    async def _events(self, model: LoadedModel, queued: list[Future[Images]]) -> AsyncIterator[str]:
        started = time.perf_counter()
        api, wanted = self._api, self._wanted
        try:
            for blend, future in zip(wanted.blends, queued):
                left = max(0.0, started + api.timeout - time.perf_counter())
                image = await asyncio.wait_for(asyncio.wrap_future(future), left)
                delivery = api.signed(wanted.delivery)
                made = await api.in_thread(_finish, model, [blend], [image], delivery, False)
                yield await api.in_thread(self._completed, made)
        except asyncio.TimeoutError:
            error = api.timed_out()
            yield _event("error", error_body(error.status, str(error), error.code))
        except Exception:  # noqa: BLE001 - logged by the queue
            message = "the images could not be generated"
            yield _event("error", error_body(500, message, "failed"))
        else:
            api.count(len(queued), started)

    def _completed(self, made: Made) -> str:
        kind = "image_generation.completed"
        data = {
            "type": kind,
            "b64_json": base64.b64encode(made.files[0]).decode(),
            "created_at": int(time.time()),
            **_echoed(made.manifest, self._wanted.delivery),
            "seed": self._wanted.seed,
            "warnings": self._wanted.warnings + made.warnings,
            "usage": _usage(made.tokens),
        }
        return _event(kind, data)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception of an abandoned request, which asyncio would log otherwise."""
    if not future.cancelled():
        future.exception()


async def _drain(request: Request) -> None:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _REFUSED_BYTES:
            return


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)

"""The addresses that give pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections import OrderedDict
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from runtime.images import ImageMetadata, Images
from runtime.jobs.encoding import ImageFormat
from runtime.keyframes import Blend
from runtime.pipeline import Pipeline
from runtime.server.errors import ServiceError
from runtime.server.fields import BadRequestError
from runtime.server.metrics import Metrics
from runtime.server.openapi import WARNING_HEADER
from runtime.server.options import ServerOptions
from runtime.server.queue import PictureQueue
from runtime.server.requests import Generation, parse_generation, parse_interpolation

# Pictures that a `url` was given for, the latest ones.
_KEPT_PICTURES = 256

_PNG = ImageFormat("png")


class Pictures:
    """Reads requests, waits for their pictures, and answers.

    Attributes:
        queue: that makes the pictures; None while the server is starting or ending.
    """

    def __init__(self, pipeline: Pipeline, options: ServerOptions, metrics: Metrics) -> None:
        self.queue: PictureQueue | None = None
        self._manifest, self._tokenizer = pipeline.manifest, pipeline.tokenizer
        self._options, self._metrics = options, metrics
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    async def generate(self, request: Request) -> Response:
        """`POST /v1/images/generations`."""
        body = await self._json(request)
        wanted = parse_generation(body, self._manifest.image_size, self._options.most)
        pictures = await self._made(request, wanted.blends)
        return JSONResponse(self._answer(request, wanted, pictures))

    async def interpolate(self, request: Request) -> Response:
        """`POST /v1/images/interpolations`."""
        wanted = parse_interpolation(await self._json(request))
        (picture,) = await self._made(request, [wanted])
        warnings = ", ".join(self._warnings([wanted]))
        headers = {WARNING_HEADER: warnings} if warnings else None
        return Response(picture, media_type="image/png", headers=headers)

    async def kept(self, request: Request) -> Response:
        """`GET /v1/pictures/{name}`."""
        picture = self._kept.get(request.path_params["name"])
        if picture is None:
            raise ServiceError(404, "no such picture, or it is no longer kept", "not_found")
        return Response(picture, media_type="image/png")

    async def _json(self, request: Request) -> Any:
        seconds = self._options.seconds
        try:
            return json.loads(await asyncio.wait_for(self._body(request), seconds))
        except (ValueError, RecursionError) as error:
            raise BadRequestError("the body is no JSON") from error
        except ClientDisconnect as error:
            raise BadRequestError("the client left") from error
        except asyncio.TimeoutError as error:
            raise BadRequestError(f"the body did not come within {seconds:g} s") from error

    async def _body(self, request: Request) -> bytes:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._options.body_bytes:
                raise BadRequestError(f"the body is larger than {self._options.body_bytes:,} bytes")
        return body

    def open_queue(self) -> PictureQueue:
        """The queue, or a ServiceError while there is none."""
        if self.queue is None:
            raise ServiceError(503, "the server is starting or ending", "unavailable")
        return self.queue

    async def _made(self, request: Request, blends: list[Blend]) -> list[bytes]:
        """PNG files of pictures. Raises ServiceError and QueueFullError."""
        queue = self.open_queue()
        started = time.perf_counter()
        images = asyncio.gather(*map(asyncio.wrap_future, queue.ask(blends)))
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
                message = f"not made within {self._options.seconds:g} s"
                raise ServiceError(504, message, "timeout")
            if images.exception() is not None:  # which the queue has logged
                raise ServiceError(500, "the pictures could not be made", "failed")
            pictures = await asyncio.to_thread(self._encode, blends, images.result())
        finally:
            leaving.cancel()
            images.cancel()
        self._metrics.pictures.inc(len(blends))
        self._metrics.seconds.observe(time.perf_counter() - started)
        return pictures

    def _encode(self, blends: list[Blend], images: list[Images]) -> list[bytes]:
        """PNG files, with their recipe inside."""
        model = self._manifest.name, self._manifest.model_hash
        return [
            _PNG.encode(image, ImageMetadata.of_blend(blend, *model))
            for blend, image in zip(blends, images)
        ]

    def _answer(
        self, request: Request, wanted: Generation, pictures: list[bytes]
    ) -> dict[str, Any]:
        if wanted.as_url:
            # Nothing of a request's header but its host, which its client chose anyway.
            names = map(self._keep, pictures)
            data = [{"url": str(request.url_for("picture", name=name))} for name in names]
        else:
            data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
        return {
            "created": int(time.time()),
            "seed": wanted.seed,
            "data": data,
            "warnings": self._warnings(wanted.blends),
        }

    def _warnings(self, blends: list[Blend]) -> list[str]:
        """What clients would not expect, in ASCII."""
        keyframes = [frame for blend in blends for frame in (blend.start, blend.end) if frame]
        prompts = dict.fromkeys(frame.prompt for frame in keyframes)
        return [f"a prompt has {cut}" for cut in map(self._tokenizer.cut, prompts) if cut]

    def _keep(self, picture: bytes) -> str:
        """Its name, until many others came."""
        name = secrets.token_urlsafe(16)
        self._kept[name] = picture
        while len(self._kept) > _KEPT_PICTURES:
            self._kept.popitem(last=False)
        return name


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)

"""Text-to-image part of the API of A1111's web UI (`/sdapi/v1`).

Clients such as SillyTavern, Open WebUI and plugins for Krita list samplers, upscalers and the like
when they connect; lists without meaning for this model are empty. Parameters of diffusion models
(steps, sampler, negative prompt, CFG scale) are accepted and echoed, without effect.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.images import ImageMetadata
from runtime.latent import Interpolation, Keyframe
from runtime.noise import MAX_SEED
from runtime.recipes import recipe_in
from runtime.server.images_api import ImagesAPI
from runtime.server.models import ModelPool
from runtime.server.schema import (
    MAX_SIDE,
    REQUIRED,
    BadRequestError,
    Boolean,
    Delivery,
    Ignored,
    Integer,
    Number,
    Prompt,
    Record,
    Text,
    random_seed,
)

SAMPLER = "GALIP"

_MOST_STEPS = 10_000

# Constant responses to `GET /sdapi/v1/NAME`.
_CONSTANT: dict[str, Any] = {
    "cmd-flags": {},
    "embeddings": {"loaded": {}, "skipped": {}},
    "extensions": [],
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "loras": [],
    "prompt-styles": [],
    "realesrgan-models": [],
    "samplers": [{"name": SAMPLER, "aliases": [SAMPLER.lower()], "options": {}}],
    "schedulers": [
        {
            "name": "automatic",
            "label": "Automatic",
            "aliases": None,
            "default_rho": -1,
            "need_inner_model": False,
        }
    ],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-modules": [],
    "sd-vae": [],
    "upscalers": [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in ("None", "Lanczos")
    ],
}

# `POST /sdapi/v1/NAME` without effect. A request is interrupted when its client disconnects.
_WITHOUT_EFFECT = (
    "interrupt",
    "refresh-checkpoints",
    "refresh-loras",
    "refresh-vae",
    "reload-checkpoint",
    "skip",
    "unload-checkpoint",
)

_NOT_SUPPORTED = (
    "extra-batch-images",
    "extra-single-image",
    "img2img",
    "interrogate",
)


def _text_to_image(most: int) -> Record:
    """Parameters of `txt2img`; unknown ones are ignored, as by A1111.

    Args:
        most: images of one request.
    """
    return Record(
        {
            "prompt": (Prompt(), REQUIRED),
            "negative_prompt": (Text(100_000), ""),
            "seed": (Integer(-1, MAX_SEED), -1),
            "subseed": (Integer(-1, MAX_SEED), -1),
            "subseed_strength": (Number(), 0.0),
            "batch_size": (Integer(1, most), 1),
            "n_iter": (Integer(1, most), 1),
            "width": (Integer(1, MAX_SIDE), None),
            "height": (Integer(1, MAX_SIDE), None),
            "enable_hr": (Boolean(), False),
            "hr_scale": (Number(0, 8), 2.0),
            "hr_resize_x": (Integer(0, MAX_SIDE), 0),
            "hr_resize_y": (Integer(0, MAX_SIDE), 0),
            "steps": (Integer(0, _MOST_STEPS), 1),
            "cfg_scale": (Number(-1000, 1000), 1.0),
            "sampler_name": (Text(), SAMPLER),
            "scheduler": (Text(), "Automatic"),
            "psi": (Number(), 1.0),
            "send_images": (Boolean(), True),
            "override_settings": (Ignored(), None),
        },
        ignore_unknown=True,
    )


@dataclass(frozen=True)
class _Wanted:
    """A valid request of `txt2img`; `found` are its parameters."""

    model: str | None
    blends: list[Interpolation]
    delivery: Delivery
    found: dict[str, Any] = field(repr=False)


class WebUI:
    """Routes of `/sdapi/v1`.

    Args:
        models: those of the server.
        images: generates the images.
        most: images of one request.
    """

    def __init__(self, models: ModelPool, images: ImagesAPI, most: int) -> None:
        self._models, self._images, self._most = models, images, most
        self._record = _text_to_image(most)
        self._selected = models.default  # by `POST options`, for all clients, as in A1111

    def routes(self, guarded: Callable[[Callable[[Request], Any]], Any]) -> list[Route]:
        """All routes; `guarded` checks the API key."""

        def route(path: str, handler: Callable[[Request], Any], method: str = "GET") -> Route:
            return Route(path, guarded(handler), methods=[method])

        api = "/sdapi/v1"
        return [
            route(f"{api}/txt2img", self._text_to_image, "POST"),
            route(f"{api}/sd-models", self._list_models),
            route(f"{api}/options", self._options),
            route(f"{api}/options", self._set_options, "POST"),
            route(f"{api}/progress", self._progress),
            route(f"{api}/memory", self._memory),
            route(f"{api}/png-info", self._png_info, "POST"),
            route("/internal/ping", _answering({})),
            route("/internal/progress", self._internal_progress, "POST"),
            *(route(f"{api}/{name}", _answering(it)) for name, it in _CONSTANT.items()),
            *(route(f"{api}/{name}", _answering({}), "POST") for name in _WITHOUT_EFFECT),
            *(
                route(f"{api}/{name}", self._images.not_supported, "POST")
                for name in _NOT_SUPPORTED
            ),
        ]

    async def _text_to_image(self, request: Request) -> Response:
        wanted = self._parse(await self._images.body_of(request))
        name = self._choose(wanted.model)
        made = await self._images.make(request, name, wanted.blends, wanted.delivery)
        metadata = [
            ImageMetadata.of_interpolation(blend, made.manifest.name, made.manifest.model_hash)
            for blend in wanted.blends
        ]
        side = made.manifest.image_size
        info = self._info(wanted, metadata, wanted.delivery.size or (side, side))
        info["warnings"] = made.warnings

        def body() -> dict[str, Any]:
            files = made.files if wanted.found["send_images"] else []
            parameters = dict(wanted.found, seed=info["seed"])
            images = [base64.b64encode(file).decode() for file in files]
            return {"images": images, "parameters": parameters, "info": json.dumps(info)}

        return _JSON(await self._images.in_thread(body))

    def _parse(self, body: Any) -> _Wanted:
        found = self._record.read(body)
        count = found["batch_size"] * found["n_iter"]
        if count > self._most:
            raise BadRequestError(
                f"batch_size times n_iter must be at most {self._most}, got {count}", "batch_size"
            )
        seed = random_seed() if found["seed"] == -1 else found["seed"]
        if seed + count - 1 > MAX_SEED:
            raise BadRequestError(f"seed must be at most {MAX_SEED + 1 - count}", "seed")
        # As in A1111, each image of a batch has its own seed, which reproduces it alone.
        blends = [
            Interpolation(Keyframe(found["prompt"], seed + more), psi=found["psi"])
            for more in range(count)
        ]
        settings = found.pop("override_settings")
        model = settings.get("sd_model_checkpoint") if isinstance(settings, dict) else None
        if not isinstance(model, (str, type(None))):
            raise BadRequestError("sd_model_checkpoint must be a string", "override_settings")
        return _Wanted(model, blends, Delivery(self._size(found)), found)

    def _size(self, found: dict[str, Any]) -> tuple[int, int] | None:
        """Width and height; a single one applies to both."""
        width, height = found["width"], found["height"]
        if width is None and height is None:
            return None
        width, height = width or height, height or width
        if found["enable_hr"]:
            scale = found["hr_scale"] or 1.0
            width = found["hr_resize_x"] or min(MAX_SIDE, max(1, round(width * scale)))
            height = found["hr_resize_y"] or min(MAX_SIDE, max(1, round(height * scale)))
        return width, height

    def _info(
        self, wanted: _Wanted, metadata: list[ImageMetadata], size: tuple[int, int]
    ) -> dict[str, Any]:
        """A1111's description of images; as a request, it reproduces them."""
        found, first = wanted.found, metadata[0]
        count = len(metadata)
        return {
            "prompt": first.prompt,
            "all_prompts": [each.prompt for each in metadata],
            "negative_prompt": found["negative_prompt"],
            "all_negative_prompts": [found["negative_prompt"]] * count,
            "seed": first.seed,
            "all_seeds": [each.seed for each in metadata],
            "subseed": 0,
            "all_subseeds": [0] * count,
            "subseed_strength": 0,
            "width": size[0],
            "height": size[1],
            "sampler_name": SAMPLER,
            "cfg_scale": found["cfg_scale"],
            "steps": 1,
            "batch_size": found["batch_size"],
            "n_iter": found["n_iter"],
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": first.model,
            "sd_model_hash": first.model_hash[:10],
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": None,
            "extra_generation_params": {} if first.psi == 1 else {"Psi": first.psi},
            "psi": first.psi,
            "index_of_first_image": 0,
            "infotexts": [each.parameters(size) for each in metadata],
            "styles": [],
            "job_timestamp": _timestamp(),
            "clip_skip": 1,
            "is_using_inpainting_conditioning": False,
            "version": f"galip-edge {first.version}",
        }

    def _title(self, name: str) -> str:
        return f"{name} [{self._models.sources[name].manifest.model_hash[:10]}]"

    def _choose(self, wanted: str | None) -> str:
        """A model by its name, title or hash; the selected one by default."""
        if not wanted:
            return self._selected
        for name, source in self._models.sources.items():
            if wanted in (name, self._title(name), source.manifest.model_hash[:10]):
                return name
        return self._models.choose(wanted)

    async def _list_models(self, _: Request) -> Response:
        return _JSON(
            [
                {
                    "title": self._title(name),
                    "model_name": name,
                    "hash": source.manifest.model_hash[:10],
                    "sha256": source.manifest.model_hash,
                    "filename": name,
                    "config": None,
                }
                for name, source in self._models.sources.items()
            ]
        )

    async def _options(self, _: Request) -> Response:
        manifest = self._models.sources[self._selected].manifest
        return _JSON(
            {
                "sd_model_checkpoint": self._title(self._selected),
                "sd_checkpoint_hash": manifest.model_hash,
                "sd_vae": "None",
                "CLIP_stop_at_last_layers": 1,
                "samples_format": "png",
                "samples_save": False,
                "upscaler_for_img2img": None,
            }
        )

    async def _set_options(self, request: Request) -> Response:
        """Select a model; other options are accepted without effect."""
        body = await self._images.body_of(request)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        wanted = body.get("sd_model_checkpoint")
        if wanted is not None:
            if not isinstance(wanted, str):
                raise BadRequestError("sd_model_checkpoint must be a string", "sd_model_checkpoint")
            self._selected = self._choose(wanted)
            async with self._models.use(self._selected):
                pass  # loaded now, as in A1111
        return _JSON(None)

    async def _progress(self, _: Request) -> Response:
        """Progress by queued images; a single image has no steps."""
        queued = self._models.queued
        return _JSON(
            {
                "progress": 0.5 if queued else 0.0,
                "eta_relative": 0.0,
                "state": {
                    "skipped": False,
                    "interrupted": False,
                    "stopping_generation": False,
                    "job": "txt2img" if queued else "",
                    "job_count": queued,
                    "job_timestamp": _timestamp(),
                    "job_no": 0,
                    "sampling_step": 0,
                    "sampling_steps": 1 if queued else 0,
                },
                "current_image": None,
                "textinfo": None,
            }
        )

    async def _internal_progress(self, _: Request) -> Response:
        queued = self._models.queued
        state = {"active": queued > 0, "queued": queued > 0, "completed": queued == 0}
        return _JSON({**state, "progress": None, "eta": None, "live_preview": None})

    async def _memory(self, _: Request) -> Response:
        return _JSON({"ram": {"error": "unavailable"}, "cuda": {"error": "unavailable"}})

    async def _png_info(self, request: Request) -> Response:
        """The settings in an image; as large as a request's body may be."""
        body = await self._images.body_of(request)
        given = body.get("image") if isinstance(body, dict) else None
        if not isinstance(given, str):
            raise BadRequestError("image must be a PNG, JPEG or WebP in base64", "image")
        content = given.rpartition(",")[2]
        text = await self._images.in_thread(_parameters_in, content)
        return _JSON({"info": text, "items": {"parameters": text} if text else {}})


def _parameters_in(content: str) -> str:
    try:
        return recipe_in(base64.b64decode(content, validate=True)).parameters or ""
    except ValueError as error:
        raise BadRequestError("image must be a PNG, JPEG or WebP in base64", "image") from error


class _JSON(JSONResponse):
    """JSON in ASCII: echoed values may contain lone surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def _answering(content: Any) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return _JSON(content)

    return answer


def _timestamp() -> str:
    return time.strftime("%Y%m%d%H%M%S")

"""The models of a server: loaded on first use, unloaded when memory is short."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle import Manifest, read_manifest
from runtime.cpu import release_free_memory, resident_bytes
from runtime.latent import Interpolation, Keyframe
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.server.queue import GenerationQueue
from runtime.server.schema import ServiceError

_log = logging.getLogger(__name__)

# Prefixes of OpenAI's models, which some clients always send: they select the default model.
_FOREIGN_NAMES = ("dall-e", "gpt-image", "chatgpt-image")

# Estimated memory of a model that was never loaded, per byte of its files.
_BYTES_PER_FILE_BYTE = 2


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        manifest: of the bundle.
        load: returns the pipeline.
        memory: lower bound of its memory in bytes, as far as known.
    """

    manifest: Manifest
    load: Callable[[], Pipeline]
    memory: int = 0

    @classmethod
    def of_bundle(cls, path: Path, options: PipelineOptions) -> ModelSource:
        """The bundle in folder `path`. Raises BundleError if its manifest is missing or damaged."""
        return cls(read_manifest(path), lambda: Pipeline.from_bundle(path, options))

    def loaded(self) -> ModelSource:
        """Load now, and generate an image. Raises GalipEdgeError if that fails."""
        before = resident_bytes()
        pipelines = [self.load()]
        pipelines[0].generate("a bird on a branch")
        return ModelSource(
            self.manifest,
            lambda: pipelines.pop() if pipelines else self.load(),
            resident_bytes() - before,
        )


class LoadedModel:
    """A model in memory, with the queue that generates its images."""

    def __init__(self, name: str, pipeline: Pipeline, queue_size: int) -> None:
        self.name, self.pipeline = name, pipeline
        self.manifest = pipeline.manifest
        self.queue = GenerationQueue(pipeline, queue_size)
        self.users = 0
        self.memory = 0  # bytes

    def warm_up(self) -> None:
        """Compile for one image, for many, and for prompts of each length.

        Afterwards no request waits for compilation, and memory stays constant.
        """
        count = min(8, self.queue.bound)
        many = [
            Interpolation(Keyframe("a bird on a branch", index=index)) for index in range(count)
        ]
        longer = [[Interpolation(Keyframe("bird " * words))] for words in (25, 100)]
        for wanted in (many[:1], many, *longer):
            for future in self.queue.submit(wanted):
                future.result()


class ModelPool:
    """Models by name. Used from one event loop.

    Args:
        sources: by name; the first one is the default.
        queue_size: queued images of each model.
        memory: bytes for all loaded models; None for no limit. Models in use are never unloaded; a
            model larger than the limit is loaded alone.
    """

    def __init__(
        self, sources: Mapping[str, ModelSource], queue_size: int, memory: int | None = None
    ) -> None:
        if not sources:
            raise ValueError("a server needs at least one model")
        self.sources = dict(sources)
        self.default = next(iter(self.sources))
        self._queue_size, self._memory = queue_size, memory
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # least recently used first
        self._measured: dict[str, int] = {}
        self._loading = asyncio.Lock()
        self.is_open = False

    @property
    def queued(self) -> int:
        """Images queued in all models."""
        return sum(len(model.queue) for model in self._loaded.values())

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, the least recently used first."""
        return list(self._loaded)

    def choose(self, name: str | None) -> str:
        """Name of the model for a request's `model`.

        A server with one model accepts any name. OpenAI's names select the default model.

        Raises:
            ServiceError: the model does not exist.
        """
        if name in self.sources:
            return name
        if not name or len(self.sources) == 1 or name.lower().startswith(_FOREIGN_NAMES):
            return self.default
        known = ", ".join(self.sources)
        message = f"model {name[:100]!r} not found; available: {known}"
        raise ServiceError(404, message, "model_not_found", "model")

    async def open(self) -> None:
        """Load the default model."""
        await self._get(self.default)
        self.is_open = True

    async def close(self) -> None:
        """Finish accepted requests."""
        self.is_open = False
        await asyncio.gather(
            *(asyncio.to_thread(model.queue.close) for model in self._loaded.values())
        )

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[LoadedModel]:
        """Load the model, and keep it loaded within the block.

        Raises:
            ServiceError: the server is starting or stopping, or the model cannot be loaded.
        """
        self.check_open()
        model = await self._get(name)
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            if self._excess(0) > 0:
                await self._unload_for(0)

    def check_open(self) -> None:
        """Raises a ServiceError while the server is starting or stopping."""
        if not self.is_open:
            raise ServiceError(503, "the server is starting or stopping", "unavailable")

    async def _get(self, name: str) -> LoadedModel:
        if name not in self._loaded:
            async with self._loading:
                if name not in self._loaded:
                    await self._unload_for(self._expected(name))
                    self._loaded[name] = await self._load(name)
                    await self._unload_for(0, keep=name)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    async def _load(self, name: str) -> LoadedModel:
        def load() -> LoadedModel:
            before, started = resident_bytes(), time.perf_counter()
            model = LoadedModel(name, self.sources[name].load(), self._queue_size)
            try:
                model.warm_up()
            except BaseException:
                model.queue.close()
                raise
            model.memory = max(
                resident_bytes() - before, self.sources[name].memory, _file_bytes(model.manifest)
            )
            _log.info("loaded %s in %.1f s", name, time.perf_counter() - started)
            return model

        try:
            model = await asyncio.to_thread(load)
        except Exception as error:
            _log.error("the model %s cannot be loaded: %s", name, error)
            raise ServiceError(500, f"the model {name} cannot be loaded", "failed") from error
        self._measured[name] = model.memory
        if self._memory is not None and model.memory > self._memory:
            _log.warning("the model %s takes more than the memory limit", name)
        return model

    def _expected(self, name: str) -> int:
        estimate = _BYTES_PER_FILE_BYTE * _file_bytes(self.sources[name].manifest)
        return self._measured.get(name, estimate)

    def _excess(self, more: int) -> int:
        if self._memory is None:
            return 0
        return sum(model.memory for model in self._loaded.values()) + more - self._memory

    async def _unload_for(self, more: int, keep: str | None = None) -> None:
        """Unload the least recently used models until `more` bytes fit, if possible."""
        for name in list(self._loaded):
            if self._excess(more) <= 0:
                return
            model = self._loaded.get(name)
            if model is None or model.users or len(model.queue) or name == keep:
                continue
            del self._loaded[name]
            await asyncio.to_thread(model.queue.close)
            del model  # the last reference
            await asyncio.to_thread(_collect)
            _log.info("unloaded %s", name)


def _file_bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _collect() -> None:
    gc.collect()
    release_free_memory()

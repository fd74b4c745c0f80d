"""The aviary as a data set: picture `index` of a split is always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from galip_edge.data.aviary.captions import Caption, write_caption
from galip_edge.data.aviary.drawing import draw
from galip_edge.data.aviary.scene import Scene, random_scene
from galip_edge.data.config import DataConfig
from runtime.files import atomic_path

CAPTIONS_PER_IMAGE = 5

# Training and held-out pictures come from streams of random numbers that never meet.
_STREAMS = {"train": 1, "test": 2}
_PICTURE, _WORDS = 0, 1


class AviarySource:
    """Drawn birds by number.

    Args:
        config: of kind `aviary`. `samples` is the number of pictures, `split` and `seed` choose
            them, and `cache`, if set, is a folder where drawn pictures are kept.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._size = config.shorter_side
        self._key = (config.seed, _STREAMS[config.split])
        self._kept: Path | None = None
        if config.cache:
            folder = f"{config.split}-{config.seed}-{self._size}px"
            self._kept = Path(config.cache).expanduser().absolute() / folder

    def __len__(self) -> int:
        return self._config.samples

    def key(self, index: int) -> str:
        """The picture's name."""
        return f"{self._config.split}/{index:06d}"

    def scene(self, index: int) -> Scene:
        """What is in the picture."""
        return random_scene(np.random.default_rng((*self._key, index, _PICTURE)))

    def described(self, index: int) -> tuple[Caption, ...]:
        """The captions, with the attributes that each states."""
        scene, rng = self.scene(index), np.random.default_rng((*self._key, index, _WORDS))
        return tuple(write_caption(scene, rng) for _ in range(CAPTIONS_PER_IMAGE))

    def captions(self, index: int) -> tuple[str, ...]:
        """The words of the captions."""
        return tuple(caption.text for caption in self.described(index))

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The picture, drawn at the size that the configuration wants."""
        if self._kept is None:
            return draw(self.scene(index), self._size)
        path = self._kept / f"{index // 1000:03d}" / f"{index:06d}.png"
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError:  # not drawn yet
            drawn = draw(self.scene(index), self._size)
            with atomic_path(path) as temporary:
                drawn.save(temporary, format="PNG", compress_level=1)
            return drawn

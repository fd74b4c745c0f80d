"""The aviary as a data set: picture `index` of a split is always the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from galip_edge.data.aviary.captions import Caption, write_caption
from galip_edge.data.aviary.chance import NOISE_DIM, Noise
from galip_edge.data.aviary.drawing import VERSION, Layout, draw, layout_of
from galip_edge.data.aviary.scene import Scene, random_scene, similar_scene
from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError
from runtime.files import atomic_path

# Training and held-out pictures come from streams of random numbers that never meet.
_STREAMS = {"train": 1, "test": 2}

# Of a folder of images drawn ahead, see ahead.py: images of a subfolder, and its settings.
BLOCK = 250
SETTINGS = "aviary.json"


def drawn_name(index: int) -> str:
    """Path of an image in a folder drawn ahead, without its suffix."""
    return f"{index // BLOCK:05d}/{index:07d}"


def drawn_settings(config: DataConfig) -> dict[str, object]:
    """What determines the images of a folder drawn ahead."""
    return {
        "variety": config.variety,
        "split": config.split,
        "seed": config.seed,
        "size": config.shorter_side,
        "version": VERSION,
    }


def check_drawn(folder: Path, config: DataConfig, **more: object) -> None:
    """Raises DataError if `folder` was drawn ahead with other settings than `config` and `more`."""
    path, wanted = folder / SETTINGS, {**drawn_settings(config), **more}
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {path} ({error}): choose a new folder") from error
    changed = [
        f"{k} was {known.get(k)}, is now {v}" for k, v in wanted.items() if known.get(k) != v
    ]
    if changed:
        raise DataError(
            f"{folder} holds images of other settings ({'; '.join(changed)}): choose a new folder"
        )


class AviarySource:
    """Drawn birds by number, each with one caption.

    Of what is in a picture, the caption states a part, and noise decides the rest. The noise does
    not depend on the caption, so both together are what a generator gets, and the picture is what
    it should make of them.

    Args:
        config: of kind `aviary`. `samples` is the number of images, `split` and `seed` choose
            them, `variety` says how much varies, and `cache`, if set, is a folder where drawn
            images are kept, or one that `galip-edge data draw` filled.

    Raises:
        DataError: the cache was drawn ahead with other settings.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._size = config.shorter_side
        self._key = (config.seed, _STREAMS[config.split])
        self._kept: Path | None = None
        self._drawn: Path | None = None
        if config.cache:
            cache = Path(config.cache).expanduser().absolute()
            if (cache / SETTINGS).exists():
                check_drawn(cache, config)
                self._drawn = cache
            else:
                wide = "wide-" if config.variety == "wide" else ""
                self._kept = cache / f"{wide}{config.split}-{config.seed}-{self._size}px-v{VERSION}"

    def with_seed(self, seed: int) -> AviarySource:
        """Other images of the same kind; never from a cache."""
        return AviarySource(replace(self._config, seed=seed, cache=None))

    def __len__(self) -> int:
        return self._config.samples

    def key(self, index: int) -> str:
        """The picture's name."""
        return f"{self._config.split}/{index:06d}"

    def scene(self, index: int) -> Scene:
        """What is in the picture."""
        return self._item(index)[0]

    def noise(self, index: int) -> Noise:
        """What decided on all that the caption does not state: (NOISE_DIM,) from N(0,1)."""
        return self._item(index)[1]

    def layout(self, index: int) -> Layout:
        """Where the bird of picture `index` is."""
        scene, noise, _ = self._item(index)
        return layout_of(scene, noise, self._config.variety)

    def described(self, index: int) -> tuple[Caption, ...]:
        """The caption, with the attributes that it states."""
        return (self._item(index)[2],)

    def captions(self, index: int) -> tuple[str, ...]:
        """The words of the caption."""
        return tuple(caption.text for caption in self.described(index))

    def _item(self, index: int) -> tuple[Scene, Noise, Caption]:
        rng = np.random.default_rng((*self._key, index))
        told, noise = rng.standard_normal((2, NOISE_DIM), dtype=np.float32)
        scene = random_scene(told)
        caption = write_caption(scene, rng)
        return self._similar(scene, caption, noise), noise, caption

    def _similar(self, scene: Scene, caption: Caption, noise: Noise) -> Scene:
        return similar_scene(scene, caption.states, noise, self._config.variety)

    def another(self, index: int, noise: Noise, size: int) -> tuple[Scene, Image.Image]:
        """Another scene and image of the caption of picture `index`, decided by `noise`."""
        scene, _, caption = self._item(index)
        other = self._similar(scene, caption, noise)
        return other, draw(other, noise, size, self._config.variety)

    def _draw(self, index: int) -> Image.Image:
        scene, noise, _ = self._item(index)
        return draw(scene, noise, self._size, self._config.variety)

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The picture, drawn at the size that the configuration wants."""
        if self._drawn is not None:
            try:
                with Image.open(self._drawn / f"{drawn_name(index)}.png") as image:
                    return image.convert("RGB")
            except OSError:  # not drawn yet
                return self._draw(index)
        if self._kept is None:
            return self._draw(index)
        path = self._kept / f"{index // 1000:03d}" / f"{index:06d}.png"
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError:  # not drawn yet
            drawn = self._draw(index)
            with atomic_path(path) as temporary:
                drawn.save(temporary, format="PNG", compress_level=1)
            return drawn

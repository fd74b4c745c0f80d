"""The aviary as a data source: image `index` of a split is always the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from galip_edge.aviary.data.attributes import Variety
from galip_edge.aviary.data.captions import Caption, more_captions, write_caption
from galip_edge.aviary.data.chance import NOISE_DIM, Noise
from galip_edge.aviary.data.config import AviaryConfig
from galip_edge.aviary.data.drawing import VERSION, Layout, draw, layout_of
from galip_edge.aviary.data.scene import Scene, random_scene, redraw, similar_scene
from galip_edge.data.errors import DataError
from runtime.files import atomic_path

# Training and held-out images use different random streams.
_STREAMS = {"train": 1, "test": 2}

# Images in a subfolder of images drawn ahead (see ahead.py), and the file of their settings.
BLOCK = 250
SETTINGS = "aviary.json"


def drawn_name(index: int) -> str:
    """Path of an image in a folder drawn ahead, without its suffix."""
    return f"{index // BLOCK:05d}/{index:07d}"


def drawn_settings(config: AviaryConfig) -> dict[str, object]:
    """Settings that determine the images of a folder drawn ahead."""
    return {
        "variety": config.variety,
        "split": config.split,
        "seed": config.seed,
        "size": config.shorter_side,
        "version": VERSION,
    }


def _read_settings(folder: Path) -> dict[str, object]:
    path = folder / SETTINGS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {path} ({error}): choose a new folder") from error


def check_drawn(folder: Path, config: AviaryConfig, **more: object) -> None:
    """Raises DataError if `folder` was drawn ahead with other settings than `config` and `more`."""
    known, wanted = _read_settings(folder), {**drawn_settings(config), **more}
    changed = [
        f"{k} was {known.get(k)}, is now {v}" for k, v in wanted.items() if known.get(k) != v
    ]
    if changed:
        raise DataError(
            f"{folder} holds images of other settings ({'; '.join(changed)}): choose a new folder"
        )


class AviarySource:
    """Drawn birds with captions.

    The first caption states a part of the scene, and noise determines the rest. The noise is
    independent of the caption, so a generator can be trained to map caption and noise to the image.

    Args:
        config: `split` and `seed` select the images; `cache` is a folder for drawn images, or one
            that `galip-edge data draw` filled with images of a split.

    Raises:
        DataError: the cache was drawn ahead with other settings.
    """

    def __init__(self, config: AviaryConfig) -> None:
        self._config = config
        self._size = config.shorter_side
        self._kept: Path | None = None
        self._drawn: Path | None = None
        if config.cache:
            cache = Path(config.cache).expanduser().absolute()
            if (cache / SETTINGS).exists():
                # Images of the other split, as those held out of training, are drawn as needed.
                if _read_settings(cache).get("split") == config.split:
                    check_drawn(cache, config)
                    self._drawn = cache
            else:
                wide = "wide-" if config.variety == "wide" else ""
                self._kept = cache / f"{wide}{config.split}-{config.seed}-{self._size}px-v{VERSION}"

    def with_seed(self, seed: int) -> AviarySource:
        """A source of different images with the same settings, without the cache."""
        return AviarySource(replace(self._config, seed=seed, cache=None))

    @property
    def variety(self) -> Variety:
        """How much images vary."""
        return self._config.variety

    def __len__(self) -> int:
        return self._config.samples

    def key(self, index: int) -> str:
        """The image's name; `_index_of` is the inverse."""
        return f"{self._config.split}/{index:06d}"

    def scene(self, index: int) -> Scene:
        """The scene of an image."""
        return self._item(index)[0]

    def noise(self, index: int) -> Noise:
        """Noise (NOISE_DIM,) that determines what the first caption of an image leaves open."""
        return self._item(index)[1]

    def layout(self, index: int) -> Layout:
        """Direction and position of the bird in an image."""
        scene, noise, _ = self._item(index)
        return layout_of(scene, noise, self._config.variety)

    def described(self, index: int, count: int | None = None) -> tuple[Caption, ...]:
        """Captions of an image, with the attributes that they state.

        Args:
            index: of the image.
            count: number of captions; terse ones may be fewer. Default: the configuration's.
        """
        scene, _, first = self._item(index)
        return self._more(index, scene, first, count or self._config.captions)

    def _more(self, index: int, scene: Scene, first: Caption, count: int) -> tuple[Caption, ...]:
        rng = np.random.default_rng((self._config.seed, index))
        return more_captions(first, scene, count, rng)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an image."""
        return tuple(caption.text for caption in self.described(index))

    def scene_and_noise(
        self, key: str, text: str, rng: np.random.Generator
    ) -> tuple[Scene, Noise, frozenset[str]]:
        """The scene of the image `key`, and noise (NOISE_DIM,) that gives it with caption `text`.

        In wide variety, entries without influence on the image are drawn from `rng`. The third
        result names the attributes that the caption states.

        Raises ValueError if the image has no such caption.
        """
        index = _index_of(key)
        scene, noise, first = self._item(index)
        captions = self._more(index, scene, first, self._config.captions)
        states = {caption.text: caption.states for caption in captions}
        if text not in states:
            raise ValueError(f"{key} has no caption {text!r}")
        if self._config.variety == "narrow":
            return scene, noise, states[text]
        return scene, redraw(noise, scene, states[text], rng), states[text]

    def _item(self, index: int) -> tuple[Scene, Noise, Caption]:
        (scene_noise, noise), rng = _random_numbers(self._config, index)
        scene = random_scene(scene_noise)
        caption = write_caption(scene, rng)
        return self._similar(scene, caption, noise), noise, caption

    def _similar(self, scene: Scene, caption: Caption, noise: Noise) -> Scene:
        return similar_scene(scene, caption.states, noise, self._config.variety)

    def another(self, index: int, noise: Noise, size: int) -> tuple[Scene, Image.Image]:
        """Another scene and image for the caption of image `index`, determined by `noise`."""
        scene, _, caption = self._item(index)
        other = self._similar(scene, caption, noise)
        return other, draw(other, noise, size, self._config.variety)

    def _draw(self, index: int) -> Image.Image:
        scene, noise, _ = self._item(index)
        return draw(scene, noise, self._size, self._config.variety)

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image, drawn in the configured size."""
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


def _index_of(key: str) -> int:
    return int(key.rpartition("/")[2])


def _random_numbers(config: AviaryConfig, index: int) -> tuple[Noise, np.random.Generator]:
    """Noise (2,NOISE_DIM) of the scene and of the image, and the generator for the caption."""
    rng = np.random.default_rng((config.seed, _STREAMS[config.split], index))
    return rng.standard_normal((2, NOISE_DIM), dtype=np.float32), rng

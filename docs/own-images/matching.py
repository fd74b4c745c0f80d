"""A sheet of generated images to match with their captions, without knowing which is which.

    python docs/own-images/matching.py emoji own-small --out matching

writes `sheet.png`, 20 numbered images in random order, `captions.txt`, their captions in another
order, and `answers.txt`, which is to be read last.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from galip_edge import Pipeline
from galip_edge.data.sources import open_source
from galip_edge.training.config import load_config


def main() -> None:
    """Write the sheet, the captions and the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("config", help="training configuration; its held-out captions are used")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of captions, order and images")
    options = parser.parse_args()

    captions = held_out_captions(options.config, options.count, options.seed)
    pipeline = Pipeline.from_bundle(options.bundle)
    images = pipeline.generate(captions, n=1, seed=options.seed)
    order = np.random.default_rng([options.seed, 1]).permutation(len(captions))
    options.out.mkdir(parents=True, exist_ok=True)
    sheet(images[order]).save(options.out / "sheet.png")
    letters = [chr(ord("A") + place) for place in range(len(captions))]
    lettered = "".join(f"{a}  {c}\n" for a, c in zip(letters, captions, strict=True))
    (options.out / "captions.txt").write_text(lettered, encoding="utf-8")
    answers = "".join(f"{number}  {letters[i]}\n" for number, i in enumerate(order, start=1))
    (options.out / "answers.txt").write_text(answers, encoding="utf-8")


def held_out_captions(config: str, count: int, seed: int) -> list[str]:
    """The first captions of `count` random held-out images, all different."""
    data = load_config(config).held_out_data
    if data is None:
        raise SystemExit(f"{config} holds no images out: set data.held_out")
    source = open_source(data)
    shuffled = np.random.default_rng(seed).permutation(len(source)).tolist()
    captions = list(dict.fromkeys(source.captions(index)[0] for index in shuffled))
    return captions[:count]


def sheet(images: np.ndarray, columns: int = 5, scale: int = 2) -> Image.Image:
    """Numbered images (N,H,W,3) uint8, in rows."""
    side, label = images.shape[1] * scale, 14
    rows = -(-len(images) // columns)
    result = Image.new("RGB", (columns * (side + 4), rows * (side + label + 4)), "white")
    draw = ImageDraw.Draw(result)
    for i, image in enumerate(images):
        left, top = i % columns * (side + 4), i // columns * (side + label + 4)
        draw.text((left + 2, top), str(i + 1), fill="black")
        result.paste(Image.fromarray(image).resize((side, side)), (left, top + label))
    return result


if __name__ == "__main__":
    main()

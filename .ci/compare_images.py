"""Compare the images of two folders: the same bytes, or near enough.

python .ci/compare_images.py FOLDER OTHER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

# In dB, of the worst image. Kinds of CPU agree to 32 dB (docs/performance.md); a version of
# OpenVINO on one CPU must be nearer.
LEAST_PSNR = 35.0


def psnr_db(one: Path, other: Path) -> float:
    """Peak signal-to-noise ratio of two images of 8 bits; infinite for equal ones."""
    pixels = [np.asarray(Image.open(path), np.float64) for path in (one, other)]
    error = np.square(pixels[0] - pixels[1]).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def main(folder: Path, other: Path) -> int:
    """Exit code: 0 if all images are near enough."""
    names = sorted(path.name for path in folder.iterdir())
    if not names or names != sorted(path.name for path in other.iterdir()):
        print(f"{folder} and {other} hold other files")  # noqa: T201
        return 1
    equal = all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)
    worst = min(psnr_db(folder / name, other / name) for name in names)
    same = "the same bytes" if equal else f"worst PSNR {worst:.1f} dB, at least {LEAST_PSNR}"
    print(f"{len(names)} images: {same}")  # noqa: T201
    return int(worst < LEAST_PSNR)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))

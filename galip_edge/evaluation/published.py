"""FID by the protocol of GALIP's published results.

Differences from `fid_torchvision`: the input of Inception (see InceptionPublished), images
that are not rounded to 8 bits, real statistics from a file by the authors, and captions: each image
gets a random one of its captions, in several passes over the test images (12 for CUB).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from galip_edge.evaluation.fid import FeatureStatistics, frechet_distance
from galip_edge.evaluation.models import EvaluatedModel
from runtime.arrays import Floats
from runtime.errors import GalipEdgeError

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StoredStatistics:
    """Mean (D,) and covariance (D,D) of the features of real images."""

    mean: Doubles
    covariance: Doubles


def load_statistics(path: Path, features: int = 2048) -> StoredStatistics:
    """Read an `.npz` with `mu` (D,) and `sigma` (D,D), as the authors and pytorch-fid write it.

    Raises:
        GalipEdgeError: the file is missing, damaged, or does not hold these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[key], np.float64) for key in ("mu", "sigma"))
    except OSError as error:
        raise GalipEdgeError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise GalipEdgeError(
            f"{path} is not a file of statistics ({error}): it must be an .npz with mu and sigma"
        ) from error
    if mean.shape != (features,) or covariance.shape != (features, features):
        raise GalipEdgeError(
            f"{path} has mu {mean.shape} and sigma {covariance.shape}, must be ({features},) and "
            f"({features}, {features}): statistics of another network"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise GalipEdgeError(f"{path} has non-finite values: download it again")
    return StoredStatistics(mean, covariance)


def captions_of_passes(captions: Sequence[Sequence[str]], passes: int, seed: int) -> Iterator[str]:
    """Yield a random caption of every image in each pass."""
    random = np.random.default_rng(seed)
    for _ in range(passes):
        for own in captions:
            yield own[int(random.integers(len(own)))]


def fid_published(
    model: EvaluatedModel,
    prompts: Sequence[str],
    inception: Callable[[Tensor], Floats],
    real: StoredStatistics,
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> float:
    """The Frechet distance between generated images and the real statistics.

    Args:
        model: generates one image per prompt; repeated prompts get different noise.
        prompts: at least two.
        inception: float images (N,3,H,W) in [-1,1] to features (N,D).
        real: statistics of real images.
        seed: of the noise.
        batch_size: images at once.
        progress: called with stage, done and total.
    """
    generated, numbered = FeatureStatistics(), iter(enumerate(prompts))
    done = 0
    while batch := list(islice(numbered, batch_size)):
        images = model.float_images([p for _, p in batch], [i for i, _ in batch], seed)
        generated.update(inception(images))
        done += len(batch)
        progress("fid_published", done, len(prompts))
    return frechet_distance(generated, real)

"""CPU time of each part of an adversarial training step, of this tree or against another one.

    python benchmarks/training_parts.py aviary --set start=models/aviary.safetensors --set clip=
    python benchmarks/training_parts.py aviary --other ../before  # another checkout

Parts run one after the other on one thread, on smooth random images; the minimum of CPU time over
all repetitions is reported, because it suffers least from other processes. With `--other`, both
trees take turns in separate processes. `step` is the whole step, and `step, PHASE` one of a phase
of the pretraining, both measured separately.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from galip_edge.devices import compute_settings
from galip_edge.training.config import load_config
from galip_edge.training.distributed import World
from galip_edge.training.init import build_model
from galip_edge.training.losses import discriminator_loss, generator_loss
from galip_edge.training.precision import autocast
from galip_edge.training.trainer import _GENERATED, _REAL, Trainer

T = TypeVar("T")


class Times:
    """Least CPU milliseconds of each part."""

    def __init__(self, repetitions: int) -> None:
        self.repetitions = repetitions
        self.least: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], T]) -> T:
        for _ in range(self.repetitions):
            start = time.process_time()
            result = work()
            spent = 1e3 * (time.process_time() - start)
            self.least[part] = min(self.least.get(part, spent), spent)
        return result


def measure(config_name: str, settings: list[str], repetitions: int) -> dict[str, float]:
    """Milliseconds of CPU time by part, with the settings of training."""
    with compute_settings(threads=1):
        return _measure(config_name, settings, repetitions)


def _measure(config_name: str, settings: list[str], repetitions: int) -> dict[str, float]:
    given = {s.partition("=")[0] for s in settings}
    settings = [*settings, *(["clip=random"] if "clip" not in given else [])]
    config = load_config(config_name, [*settings, "output=unused", "optimizer.generator_delay=0"])
    model, _ = build_model(config, resuming=False)
    trainer = Trainer(model, config, World())
    random = torch.Generator().manual_seed(0)
    count, size = config.batch_size, config.model.image_size
    small = torch.rand(count, 3, size // 8, size // 8, generator=random) * 2 - 1
    images = F.interpolate(small, size=(size, size), mode="bilinear")
    sentence = torch.randn(count, config.model.clip.embedding_dim, generator=random)
    times = Times(repetitions)
    first = 0
    for phase, steps in config.pretraining.phases if config.pretraining else ():
        if steps:
            trainer.step(first, images, sentence)
            # The second step of the phase: the first one may prepare something.
            number = first + min(1, steps - 1)
            times(f"step, {phase}", partial(trainer.step, number, images, sentence))
            first += steps
    trainer.step(first, images, sentence)
    times("step", lambda: trainer.step(first + 1, images, sentence))
    _measure_parts(trainer, images, sentence, times)
    return times.least


def _measure_parts(trainer: Trainer, images: Tensor, sentence: Tensor, times: Times) -> None:
    model, projected, config = trainer.model, trainer.projected, trainer.config
    batch = trainer._divide(2, images, sentence)[0]
    precision = partial(autocast, trainer.world.device, config.precision)
    with precision():
        with torch.no_grad():
            shown = times(
                "augmentation of real images",
                lambda: trainer._augment(batch, batch.images, _REAL),
            )
            real, _ = times("CLIP, real images", lambda: model.image_encoder(shown))
            if projected:
                real_scales = times("Lite0, real images", lambda: projected.features(shown))
        image = times("generator", lambda: model.generator(batch.noise, batch.sentence).float())
        leaf = image.detach().requires_grad_()
        shown = times("augmentation", lambda: trainer._augment(batch, leaf, _GENERATED))
        seen = shown.detach().requires_grad_()
        features, embedding = times("CLIP", lambda: model.image_encoder(seen))
        scales = times("Lite0", lambda: projected.features(seen)) if projected else []
        model.discriminator.requires_grad_(True)
        loss = times(
            "discriminator's loss",
            lambda: discriminator_loss(
                model.discriminator,
                real,
                features,
                batch.sentence,
                batch.mismatched,
                config.loss,
                mismatch_weights=batch.mismatch_weights,
            ),
        )
    times("discriminator's loss, backward", lambda: _backward(loss.total))
    if projected:
        projected.heads.requires_grad_(True)
        with precision():
            heads = times(
                "heads' loss",
                lambda: projected.discriminator_loss(
                    real_scales, scales, batch.sentence, batch.mismatched, batch.mismatch_weights
                ),
            )
        times("heads' loss, backward", lambda: _backward(heads.total))
        projected.heads.requires_grad_(False)
    model.discriminator.requires_grad_(False)
    cut = [t.detach().requires_grad_() for t in (features, embedding, *scales)]
    with precision():
        adversarial = times(
            "generator's loss",
            lambda: (
                generator_loss(
                    model.discriminator, cut[0], cut[1], batch.sentence, config.loss
                ).total
                + (projected.adversarial(cut[2:], batch.sentence) if projected else 0)
            ),
        )
    times("generator's loss, backward", lambda: _backward(adversarial))
    times("CLIP, backward", lambda: _backward([features, embedding], [t.grad for t in cut[:2]]))
    if projected:
        times("Lite0, backward", lambda: _backward(scales, [t.grad for t in cut[2:]]))
    times("augmentation, backward", lambda: _backward(shown, seen.grad))
    times("generator, backward", lambda: _backward(image, leaf.grad))
    if trainer.average:
        times("moving average", trainer.average.update)


def _backward(values: Any, gradients: Any = None) -> None:
    torch.autograd.backward(values, gradients, retain_graph=True)


def in_tree(tree: Path, arguments: list[str]) -> dict[str, float]:
    """`measure` in a separate process that imports the packages of `tree`."""
    result = subprocess.run(
        [sys.executable, "-P", __file__, *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": str(tree.resolve())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(result.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("config", nargs="?", default="aviary")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each tree with --other")
    parser.add_argument("--other", type=Path, help="another checkout to compare with")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.other:
        found = measure(args.config, args.set, args.repetitions)
        if args.json:
            print(json.dumps(found))
            return
        print("\n".join(f"{part:34}{ms:9.1f} ms" for part, ms in found.items()))
        return
    passed = [args.config, "--repetitions", str(args.repetitions)]
    for setting in args.set:
        passed += ["--set", setting]
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    here = Path(__file__).parent.parent
    for _ in range(args.rounds):
        for least, tree in ((before, args.other), (after, here)):
            for part, ms in in_tree(tree, passed).items():
                least[part] = min(ms, least.get(part, ms))
    print(f"{'part':34}{'other ms':>10}{'here ms':>10}{'ratio':>8}")
    for part in after:
        ratio = before[part] / after[part]
        print(f"{part:34}{before[part]:10.1f}{after[part]:10.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()

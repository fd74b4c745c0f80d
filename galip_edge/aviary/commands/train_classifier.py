"""`galip-edge train-classifier`: the attribute classifier for `evaluate --classifier`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from galip_edge.aviary.classifier import accuracy, save_classifier, train_classifier
from galip_edge.aviary.data import AviaryConfig, AviarySource
from galip_edge.commands.console import counting_progress
from galip_edge.commands.options import device_option, integer_option, json_option, output_argument
from galip_edge.devices import choose_device
from galip_edge.training.precision import fastest_precision

# Images of other sizes are resized.
_IMAGE_SIZE = 128


@click.command("train-classifier")
@output_argument("OUTPUT", "File to write (.safetensors).", dir_okay=False)
@integer_option("--samples", least=64, default=20000, help="Number of training images.")
@integer_option("--epochs", least=1, default=6, help="Passes over the training images.")
@integer_option("--held-out", least=1, default=2000, help="Number of test images.")
@click.option(
    "--cache", help="Folder for drawn images, or the output of `data draw` (wide, seed 0)."
)
@integer_option("--seed", least=0, default=0, help="Seed of the training.")
@device_option
@json_option
def command(
    out: Path,
    samples: int,
    epochs: int,
    held_out: int,
    cache: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Train a classifier of the aviary's attributes, write OUTPUT (.safetensors), and test it.

    \b
    Example:
      galip-edge train-classifier -o models/aviary-classifier.safetensors
    """
    chosen = choose_device(device)
    train, test = (
        AviarySource(
            AviaryConfig(
                split=split,
                samples=count,
                image_size=_IMAGE_SIZE,
                resize=_IMAGE_SIZE,
                cache=cache if split == "train" else None,
            )
        )
        for split, count in (("train", samples), ("test", held_out))
    )
    with counting_progress() as bars:
        task = bars.add_task("drawing", total=samples)
        classifier = train_classifier(
            train,
            epochs,
            seed=seed,
            report=lambda stage, done, total: bars.update(
                task, description=stage, completed=done, total=total
            ),
            device=chosen,
            precision=fastest_precision(chosen, "bfloat16"),
        )
    save_classifier(classifier, out)
    found = {name: asdict(value) for name, value in accuracy(classifier, test, held_out).items()}
    if as_json:
        click.echo(json.dumps({"output": str(out), "held_out": found}, indent=1))
    else:
        click.echo(out)
        for name, value in found.items():
            click.echo(f"{name:12}{value['right']:8.2%}  of {value['count']} held-out images")

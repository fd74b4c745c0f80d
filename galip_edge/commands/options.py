"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.bundle import RUN_PRECISIONS
from runtime.errors import GalipEdgeError

existing_path = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

settings_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as batch_size=32 or data.root=photos; may be repeated.",
)

model_option = click.option(
    "--model", type=existing_path, help="Bundle folder; default: the embedded model."
)

truncation_option = click.option(
    "--psi",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Truncation: below 1 pictures are more usual and less various.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default="all cores",
    help="CPU cores to use.",
)

_DEVICES = click.Choice(["auto", "cpu", "cuda"])

device_option = click.option(
    "--device",
    type=_DEVICES,
    default="auto",
    show_default=True,
    help="Where PyTorch computes; auto: CUDA where it is available.",
)

device_setting_option = click.option(
    "--device", type=_DEVICES, help="Short for --set device=...; default: as CONFIG says."
)

cache_option = click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Keep compiled models in the user's cache folder.",
)

precision_option = click.option(
    "--precision",
    type=click.Choice(RUN_PRECISIONS),
    default="auto",
    show_default=True,
    help="Arithmetic of what is not INT8; auto: the bundle's own where it is right here, else f32.",
)


def with_device(assignments: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """Assignments of `--set`, with `--device` if it is given."""
    return assignments if device is None else (*assignments, f"device={device}")


def default_model() -> Path:
    """The bundle that comes with the package."""
    folder = Path(__file__).parent.parent / "default_model"
    if not folder.is_dir():
        raise GalipEdgeError(
            "this version comes without a default model: give a bundle with --model "
            "(galip-edge convert makes one from a checkpoint)"
        )
    return folder

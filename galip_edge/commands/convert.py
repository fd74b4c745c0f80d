"""`galip-edge convert`: a checkpoint to a bundle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from convert import ConvertOptions, convert
from convert.options import QUANTIZERS
from convert.workspace import remove_workspaces
from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import StepReporter, console
from galip_edge.commands.options import (
    RenamedOption,
    clip_activation_option,
    existing_path,
    integer_option,
)
from runtime.bundle import Manifest

if TYPE_CHECKING:
    from galip_edge.checkpoints.clip_weights import Activation


class _PrecisionFlag(click.Option):
    """One of several flags for the precision; 0 in its environment variable is no choice."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        given = self.resolve_envvar_value(ctx)
        return self.flag_value if given and click.BOOL.convert(given, self, ctx) else None


def _precision(name: str, flag: str, text: str, **more: Any) -> Any:
    cls = _PrecisionFlag
    return click.option(flag, "precision", cls=cls, flag_value=name, help=text, **more)


@click.command("convert", cls=GroupedCommand)
@click.argument("checkpoint", type=existing_path)
@option_group(
    "Input",
    click.option("--clip", type=existing_path, help="CLIP weights, for an original checkpoint."),
    clip_activation_option,
)
@option_group(
    "Precision",
    _precision("int8", "--int8", "INT8, the fastest (default).", default="int8"),
    _precision("bf16", "--bf16", "bfloat16 where the CPU has it."),
    _precision("fp16", "--fp16", "float16 weights, half the size; float32 arithmetic."),
    _precision("fp32", "--fp32", "float32, the reference."),
    _precision("auto", "--auto", "Fastest on this machine that reaches --min-psnr (here 30 dB)."),
    _precision("int8", "--mixed", "", hidden=True),
    click.option(
        "--min-psnr",
        type=float,
        help="Refuse a bundle below this PSNR against PyTorch, in dB; default: by precision.",
    ),
)
@option_group(
    "INT8 calibration",
    click.option(
        "--calibration",
        type=existing_path,
        help="Text file with one prompt per line; default: 300 built-in captions.",
    ),
    integer_option(
        "--num-samples",
        least=1,
        default=ConvertOptions.num_samples,
        cls=RenamedOption,
        former=["--samples"],
        help="Calibration prompts to use, spread evenly over the file.",
    ),
    click.option(
        "--quantizer",
        type=click.Choice(QUANTIZERS),
        default=ConvertOptions.quantizer,
        show_default=True,
        help="Our one-pass quantizer (edge), or NNCF.",
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="PART",
        help="Also keep this part in float, such as to_rgb; may be repeated.",
    ),
    click.option(
        "--compress-weights",
        is_flag=True,
        help="Store the weights of parts that stay in float in 8 bits: smaller, less PSNR.",
    ),
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        help="Bundle folder to write; default: CHECKPOINT-PRECISION.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing bundle."),
    click.option("--name", help="Model name in the bundle; default: the checkpoint's file name."),
    click.option(
        "--keep-onnx", type=click.Path(path_type=Path), help="Folder to keep the ONNX files in."
    ),
)
def command(
    checkpoint: Path,
    clip: Path | None,
    clip_activation: Activation | None,
    precision: str,
    out: Path | None,
    name: str | None,
    calibration: Path | None,
    num_samples: int,
    quantizer: str,
    keep_float: tuple[str, ...],
    compress_weights: bool,
    keep_onnx: Path | None,
    min_psnr: float | None,
    force: bool,
) -> None:
    """Convert a checkpoint to a bundle, which runs without PyTorch.

    CHECKPOINT is a .safetensors file of galip-edge, or a .pth file of the original GALIP. Each step
    is compared with PyTorch in float32.

    \b
    Example:
      galip-edge convert galip.pth --clip ViT-B-32.pt --int8 -o galip-int8
    """
    options = ConvertOptions(
        precision=precision,
        name=name,
        calibration=calibration,
        num_samples=num_samples,
        quantizer=quantizer,
        keep_float=keep_float,
        compress_weights=compress_weights,
        keep_onnx=keep_onnx,
        min_psnr=min_psnr,
        force=force,
    )
    out = out or checkpoint.with_name(f"{checkpoint.stem}-{precision}")
    with StepReporter() as reporter, _cleaning_up_on_signals(reporter.close):
        manifest = convert(
            checkpoint,
            out,
            options,
            clip=clip,
            clip_activation=clip_activation,
            on_step=reporter.on_step,
            on_count=reporter.on_count,
        )
    _print_fidelity(manifest)
    click.echo(out)


@contextmanager
def _cleaning_up_on_signals(before: Callable[[], None]) -> Iterator[None]:
    """On SIGINT or SIGTERM, remove partial files and exit at once.

    No exception is raised: a library could swallow it.
    """

    def stop(number: int, _: FrameType | None) -> None:
        before()
        remove_workspaces()
        click.echo("interrupted: conversion stopped, partial files removed", err=True)
        os._exit(128 + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_fidelity(manifest: Manifest) -> None:
    table = Table(title=f"{manifest.name}, {manifest.precision}, against PyTorch float32")
    for heading in ("step", "PSNR dB", "worst image", "max error", "mean error", "cosine"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for step in manifest.fidelity:
        table.add_row(
            step["step"],
            f"{step['image_psnr_db']:.2f}",
            f"{step['image_worst_psnr_db']:.2f}",
            f"{step['image_max_error']:.4f}",
            f"{step['image_mean_error']:.6f}",
            f"{step['sentence_cosine']:.6f}",
        )
    console().print(table)
    for candidate in manifest.quantization.get("chosen_from", ()):
        console().print(
            f"candidate {candidate['precision']}: {candidate['seconds'] * 1e3:.1f} ms per image, "
            f"{candidate['image_psnr_db']:.1f} dB"
        )

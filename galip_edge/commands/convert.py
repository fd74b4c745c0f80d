"""`galip-edge convert`: a checkpoint to a bundle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
from rich.table import Table

from convert import ConvertOptions, convert
from convert.options import QUANTIZERS
from convert.workspace import remove_workspaces
from galip_edge.commands.console import StepReporter, console
from galip_edge.commands.options import RenamedOption, clip_activation_option, existing_path
from runtime.bundle import Manifest

if TYPE_CHECKING:
    from galip_edge.checkpoints.clip_weights import Activation


@click.command("convert")
@click.argument("checkpoint", type=existing_path)
@click.option("--clip", type=existing_path, help="CLIP weights, for an original checkpoint.")
@clip_activation_option
@click.option("--fp32", "precision", flag_value="fp32", help="float32: the reference.")
@click.option("--fp16", "precision", flag_value="fp16", help="float16 weights: half the size.")
@click.option("--bf16", "precision", flag_value="bf16", help="bfloat16 where the CPU has it.")
@click.option("--int8", "precision", flag_value="int8", default="int8", help="INT8 (default).")
@click.option("--mixed", "precision", flag_value="int8", hidden=True)
@click.option(
    "--auto",
    "precision",
    flag_value="auto",
    help="Fastest on this machine that reaches --min-psnr (default 30 dB), by measurement.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option("--name", help="Model name in the bundle; default: the checkpoint's file name.")
@click.option(
    "--calibration", type=existing_path, help="Calibration prompts of --int8, one per line."
)
@click.option(
    "--num-samples",
    cls=RenamedOption,
    former=["--samples"],
    type=click.IntRange(min=1),
    default=ConvertOptions.num_samples,
    show_default=True,
    help="Calibration prompts to use.",
)
@click.option(
    "--quantizer",
    type=click.Choice(QUANTIZERS),
    default=ConvertOptions.quantizer,
    show_default=True,
    help="What makes INT8: our one-pass quantizer, or NNCF.",
)
@click.option("--keep-onnx", type=click.Path(path_type=Path), help="Folder to keep ONNX files in.")
@click.option("--min-psnr", type=float, help="Refuse the bundle below this PSNR, in dB.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
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
    keep_onnx: Path | None,
    min_psnr: float | None,
    force: bool,
) -> None:
    """Convert a checkpoint to a bundle that machines without torch can run.

    CHECKPOINT is one of ours (.safetensors) or one that the authors published (.pth). After each
    step the result is compared with PyTorch's.
    """
    options = ConvertOptions(
        precision=precision,
        name=name,
        calibration=calibration,
        num_samples=num_samples,
        quantizer=quantizer,
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
    """SIGINT and SIGTERM remove what is half written and end the process at once.

    No exception is raised for them: it could be lost inside of a library.
    """

    def stop(number: int, _: FrameType | None) -> None:
        before()
        remove_workspaces()
        click.echo("interrupted: the conversion was stopped and its files removed", err=True)
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
            f"chosen from {candidate['precision']}: {candidate['seconds'] * 1e3:.1f} ms an image, "
            f"{candidate['image_psnr_db']:.1f} dB"
        )

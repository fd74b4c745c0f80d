"""`galip-edge benchmark`: speed and memory of a model on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from galip_edge.commands.console import StepReporter
from galip_edge.commands.options import (
    inference_device_option,
    integer_option,
    json_option,
    model_option,
    precision_option,
    threads_option,
)
from galip_edge.measure import Measurement, measure
from runtime.bundle import default_bundle
from runtime.pipeline import PipelineOptions


@click.command("benchmark")
@model_option
@integer_option(
    "--runs", least=5, most=10_000, default=30, help="Number of prompts for p50 and p95."
)
@threads_option
@precision_option
@inference_device_option
@json_option
def command(
    model: Path | None, runs: int, threads: int, precision: str, device: str, as_json: bool
) -> None:
    """Measure latency, throughput, startup and memory of a model on this machine.

    p50 and p95 are latencies from a new prompt to its image. Stop other programs first. The last
    line is meant to be pasted into an issue.

    \b
    Example:
      galip-edge benchmark --model galip-coco --runs 100
    """
    options = PipelineOptions(threads, precision=precision, device=device)
    with StepReporter() as reporter:
        found = measure(model or default_bundle(), options, runs, reporter.on_step)
    if as_json:
        click.echo(json.dumps(found.values(), indent=1))
        return
    for name, value in _lines(found):
        click.echo(f"{name:16} {value}")
    click.echo(f"\n{found.line}")


def _lines(found: Measurement) -> list[tuple[str, str]]:
    peak = "unknown" if found.peak_bytes is None else f"{found.peak_bytes / 1e6:.0f} MB"
    lines = [
        ("prompt to image", f"p50 {found.p50 * 1e3:.1f} ms, p95 {found.p95 * 1e3:.1f} ms"),
        ("throughput", f"{found.images_per_second:.1f} images/s"),
        ("start", f"{found.start:.2f} s; with an empty cache {found.first_start:.2f} s"),
        ("peak memory", peak),
        ("device", found.machine["device"]),
        ("CPU", f"{found.machine['cpu']}, {found.machine['cores']} cores"),
        ("instruction sets", ", ".join(found.machine["instruction_sets"]) or "unknown"),
    ]
    load = found.machine["load"]
    if load is not None and load > 0.5:
        lines.append(("load", f"{load:.1f}: other programs ran, the figures are too high"))
    return lines

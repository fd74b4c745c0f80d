"""`galip-edge info`: what a bundle holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from galip_edge.commands.options import existing_path, json_option
from runtime.bundle import Manifest, read_manifest


@click.command("info")
@click.argument("bundle", type=existing_path)
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show a bundle's model, precision, provenance and measured fidelity."""
    manifest = read_manifest(bundle)
    if as_json:
        click.echo(json.dumps({"model_hash": manifest.model_hash, **asdict(manifest)}, indent=1))
        return
    for key, value in _lines(manifest):
        click.echo(f"{key:12} {value}")


def _lines(manifest: Manifest) -> list[tuple[str, str]]:
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    lines = [
        ("model", f"{manifest.name} ({manifest.model_hash[:16]})"),
        ("image", f"{manifest.image_size} x {manifest.image_size} pixels"),
        ("precision", f"{manifest.precision}, rest in {manifest.inference_precision}"),
        ("size", f"{size:.1f} MB in {len(manifest.files)} files"),
        ("checkpoint", ", ".join(f"{k} {v}" for k, v in manifest.checkpoint.items())),
        ("made with", ", ".join(f"{k} {v}" for k, v in manifest.tools.items())),
    ]
    for part, counts in manifest.quantization.get("operations", {}).items():
        lines.append((part, f"{counts['quantized']} operations in int8, {counts['float']} not"))
    for candidate in manifest.quantization.get("chosen_from", ()):
        seconds, psnr = candidate["seconds"], candidate["image_psnr_db"]
        lines.append(
            ("chosen from", f"{candidate['precision']}: {seconds * 1e3:.1f} ms, {psnr:.1f} dB")
        )
    for step in manifest.fidelity:
        lines.append(
            (
                step["step"],
                f"PSNR {step['image_psnr_db']:.1f} dB, error max {step['image_max_error']:.4f} "
                f"mean {step['image_mean_error']:.5f}, sentence cosine "
                f"{step['sentence_cosine']:.6f}",
            )
        )
    return lines

"""`galip-edge info`: the contents of a bundle, or the recipe of an image."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from galip_edge.commands.options import bundle_path, json_option
from galip_edge.image_info import ImageInfo
from runtime.bundle import MANIFEST, Manifest, default_bundle, read_manifest
from runtime.credentials import MEDIA_TYPES
from runtime.errors import BundleError


@click.command("info")
@click.argument("path", type=bundle_path, required=False)
@json_option
def command(path: Path | None, as_json: bool) -> None:
    """Show the contents of a bundle or the recipe of an image. PATH defaults to the embedded model.

    For a bundle: model, precision, provenance and measured fidelity. For an image (.png, .jpg,
    .webp, .gif, .mp4): its recipe, and the command that reproduces it.

    \b
    Examples:
      galip-edge info galip-coco
      galip-edge info images/a-bird-on-a-branch.png
    """
    folder = path or default_bundle()
    if folder.is_file() and folder.suffix.lower() in MEDIA_TYPES:
        image = ImageInfo.of(folder)
        click.echo(json.dumps(image.values()) if as_json else "\n".join(image.lines()))
        return
    manifest = read_manifest(folder)
    if as_json:
        click.echo(json.dumps({"model_hash": manifest.model_hash, **asdict(manifest)}, indent=1))
        return
    try:
        lines = _lines(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{folder / MANIFEST} is damaged: its report has no {error}; convert the bundle again"
        ) from error
    for key, value in lines:
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
    if (golden := manifest.golden) is None:
        lines.append(("golden", "none: the bundle was written before format 3; convert again"))
    else:
        lines.append(
            (
                "golden",
                f"{len(golden.prompts)} prompts, sentence cosine at least "
                f"{golden.sentence_cosine:.4f}, image at least {golden.image_psnr_db:.1f} dB",
            )
        )
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

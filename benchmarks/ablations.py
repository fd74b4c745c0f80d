"""The paper's ablations, repeated small: the same data and number of images for every variant.

    python benchmarks/ablations.py runs/ablations --set data.root=runs/aviary-images
    python benchmarks/ablations.py runs/ablations --only no-bridge      # one variant, resumable

Trains `aviary-ablations` (64 pixels, random weights, the paper's losses alone) in each variant, and
evaluates its final model on held-out images of the wide aviary. Finished variants are skipped and
interrupted ones resumed. Writes `results/ablations.json`, which keeps other variants with as many
images, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import environment

RESULTS = Path(__file__).parent / "results" / "ablations.json"
MODELS = Path(__file__).parents[1] / "models"

# Label in the table, and settings. The last one is not the paper's: what `[projected]` adds.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "published": ("as published", ()),
    "no-prompts": ("no prompt tokens", ("model.prompt_blocks=[]",)),
    "no-bridge": ("no bridge feature predictor", ("model.bridge_blocks=0",)),
    "no-visual-concept": (
        "no CLIP features in the generator",
        ("model.visual_concept_scale=0", "model.prompt_blocks=[]"),
    ),
    "plain-discriminator": (
        "discriminator of pixels instead of CLIP features",
        ("model.tap_blocks=[]",),
    ),
    "projected": ("as published, and heads on EfficientNet-Lite0", ("projected.weight=2",)),
}


def run(variant: str, folder: Path, settings: list[str], arguments: argparse.Namespace) -> None:
    """Train and evaluate `variant` in `folder`, as far as it is not done."""
    model, found = folder / "model.safetensors", folder / "evaluation.jsonl"
    sets = [*VARIANTS[variant][1], f"output={folder}", *settings]
    command = [sys.executable, "-m", "galip_edge"]
    options = [option for setting in sets for option in ("--set", setting)]
    subprocess.run([*command, "train", "aviary-ablations", *options], check=True)
    if found.exists() and found.stat().st_mtime >= model.stat().st_mtime:
        return
    options = ["--count", str(arguments.count), "--two-sample", str(arguments.two_sample)]
    options += ["--midpoints", str(arguments.midpoints), "--diversity-captions", "20"]
    subprocess.run(
        [*command, "evaluate", str(model), "--data", "aviary", "--efficientnet", *options,
         "--scorer", str(MODELS / "aviary.safetensors"),
         "--classifier", str(MODELS / "aviary-wide-classifier.safetensors"),
         "-o", str(found)],
        check=True,
    )  # fmt: skip


def collect(output: Path, settings: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """The results in `output`, and other `known` ones if they have seen as many images."""
    from galip_edge.training.config import load_config  # needs PyTorch, which tables do not

    config = load_config("aviary-ablations", settings)
    images = (config.steps or 0) * config.batch_size
    results = dict(known["results"]) if known.get("images") == images else {}
    for variant in VARIANTS:
        found = output / variant / "evaluation.jsonl"
        if found.exists():
            line = json.loads(found.read_text(encoding="utf-8").splitlines()[-1])
            results[variant] = line["metrics"]
    return {"environment": environment(), "images": images, "results": results}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The results as a table, with its head."""
    yield (
        "", "FD Lite1", "CMMD", "precision, recall", "coverage", "body, pose, background",
        "mixed", "midpoints", "diversity", "two-sample",
    )  # fmt: skip
    for name, (label, _) in VARIANTS.items():
        if (row := found["results"].get(name)) is None:
            yield label, "not measured", *[""] * 8
            continue
        right = (row["attributes"][each]["right"] for each in ("body", "pose", "background"))
        precision = row["precision_lite1"]
        yield (
            label,
            f"{row['fd_lite1']:.0f}",
            f"{row['cmmd']:.3f}",
            f"{precision:.3f}, {row['recall_lite1']:.3f}",
            f"{row['coverage_lite1']:.3f}",
            ", ".join(f"{share:.0%}" for share in right),
            f"{row['mixed']:.0%}",
            f"{row['midpoint_precision_lite1'] / precision:.1f}" if precision else "",
            f"{row['diversity_pixels'] / row['diversity_pixels_real']:.2f}",
            f"{row['two_sample_accuracy']:.3f}",
        )


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the runs")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="variants to run")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--count", type=int, default=1000, help="held-out images")
    parser.add_argument("--midpoints", type=int, default=200)
    parser.add_argument("--two-sample", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    for variant in given.only or VARIANTS:
        print(f"== {variant}", file=sys.stderr, flush=True)
        run(variant, given.output / variant, given.settings, given)
    known = json.loads(given.results.read_text(encoding="utf-8")) if given.results.exists() else {}
    found = collect(given.output, given.settings, known)
    given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    head, *body = rows(found)
    for cells in (head, ("---",) * len(head), *body):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

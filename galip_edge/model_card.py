"""A model card for a hub, from a bundle's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.bundle import Manifest
from runtime.errors import BundleError
from runtime.images import contact_sheet, png_file
from runtime.pipeline import Pipeline
from runtime.reproduce import SeriesRecipe
from runtime.version import __version__

SAMPLES = "samples.png"

_DEFAULT_PROMPTS = ("a bird on a branch", "a small dog", "a boat on the water at sunset")
_SAMPLES_OF_A_PROMPT = 4


def sample_sheet(pipeline: Pipeline, prompts: Sequence[str]) -> tuple[tuple[str, ...], bytes]:
    """Prompts, and a PNG with four images of each in a row.

    Without `prompts`, the bundle's golden prompts are used.
    """
    manifest = pipeline.manifest
    golden = manifest.golden.prompts if manifest.golden else _DEFAULT_PROMPTS
    taken = tuple(prompts or golden)
    images = pipeline.generate(taken, n=_SAMPLES_OF_A_PROMPT)
    options = {"n": _SAMPLES_OF_A_PROMPT, "grid": True}
    recipe = SeriesRecipe("generate", taken, (0,), manifest.name, manifest.model_hash, options)
    return taken, png_file(contact_sheet(list(images), _SAMPLES_OF_A_PROMPT), recipe)


def model_card(manifest: Manifest, option: str, licence: str | None, prompts: Sequence[str]) -> str:
    """The card in Markdown.

    Args:
        manifest: of the bundle.
        option: value of `--model` for it, `hf:owner/name`.
        licence: the hub's name of the weights' licence; None if it is not stated.
        prompts: those of the sample images, row by row.
    """
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    head = ["pipeline_tag: text-to-image", "library_name: galip-edge"]
    if licence:
        head.insert(0, f"license: {licence}")
    facts = {
        "Architecture": "GALIP (one-step GAN around a frozen CLIP)",
        "Image size": f"{manifest.image_size} x {manifest.image_size} pixels",
        "Precision": f"{manifest.precision}, rest in {manifest.inference_precision}",
        "Size": f"{size:.1f} MB",
        "Model hash": f"`{manifest.model_hash}`",
        "Checkpoint": _pairs(manifest.checkpoint),
        "Converted with": _pairs(manifest.tools),
        "Licence": licence or "not stated",
    }
    lines = [
        "---",
        *head,
        "tags:",
        "- galip",
        "- galip-edge",
        "- openvino",
        "- gan",
        "---",
        "",
        f"# {_text(manifest.name)}",
        "",
        f"![samples]({SAMPLES})",
        "",
        "Rows: "
        + "; ".join(f"“{_text(prompt)}”" for prompt in prompts)
        + ". Seed 0, images 0 to 3.",
        "",
        "A [GALIP](https://arxiv.org/abs/2301.12959) text-to-image model as a bundle of galip-edge",
        "that runs on a CPU without torch:",
        "",
        f'    galip-edge generate "{_text(prompts[0])}" --model {option}',
        "",
        "The images carry the IPTC mark of media made by a trained model.",
        "",
        *_table(("", ""), facts.items()),
        "",
        "## Fidelity",
        "",
        "Difference from PyTorch in float32, measured at conversion:",
        "",
        *_fidelity(manifest.fidelity),
        "",
        f"Card written by galip-edge {__version__}.",
        "",
    ]
    return "\n".join(lines)


def _fidelity(steps: Sequence[dict[str, Any]]) -> list[str]:
    if not steps:
        return ["not measured"]
    try:
        rows = [
            (
                _text(str(step.get("step", ""))),
                f"{step['image_psnr_db']:.1f} dB",
                f"{step['sentence_cosine']:.6f}",
            )
            for step in steps
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"the bundle's report of its fidelity is damaged ({error!r}): convert it again"
        ) from error
    return _table(("step", "image PSNR", "sentence cosine"), rows)


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{_text(str(key))} {_text(str(value))}" for key, value in values.items())


def _text(text: str) -> str:
    """Text without characters that are special in Markdown or in a double-quoted shell string."""
    return "".join("" if it in '<>|`$"\\[]*' or not it.isprintable() else it for it in text)

"""How close the images of an exported page and of the runtime are to PyTorch in float32.

    python benchmarks/web_fidelity.py [BUNDLE ...] [--checkpoint FILE] [--captions FILE] [--json]

Default: the embedded model and models/aviary.safetensors, on 40 held-out captions. The ONNX models
of `galip-edge export-web` run in ONNX Runtime on this CPU, whose images are within one level of 255
of those of WebAssembly (tests/convert/test_web.py). Two more rows replace one of the page's models
by PyTorch's, to show which one an error comes from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from environment import environment

from convert.web.export import onnx_model
from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.models import GALIP
from runtime import Pipeline, Tokenizer, draw_noise
from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Bundle, default_bundle

ROOT = Path(__file__).parent.parent
CONTENDERS = ("page", "page, PyTorch's text", "page, PyTorch's generator", "runtime")
CAPTIONS = ROOT / "docs" / "embedded-model" / "captions.txt"


def exported(bundle: Bundle, graph: str) -> onnxruntime.InferenceSession:
    """The model that the page runs."""
    return onnxruntime.InferenceSession(onnx_model(bundle, graph).SerializeToString())


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(image.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def pixels(model: GALIP, noise: np.ndarray, sentence: np.ndarray) -> np.ndarray:
    """PyTorch's image (H,W,3), rounded to levels of 255."""
    with torch.inference_mode():
        image = model.generator(torch.from_numpy(noise), torch.from_numpy(sentence))[0]
    return np.round(np.clip(image.permute(1, 2, 0).numpy() * 127.5 + 127.5, 0, 255))


def measure(folder: Path, checkpoint: Path, captions: list[str], seed: int) -> dict[str, Any]:
    """PSNR in dB of the page's and the runtime's images, over all captions."""
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.read(MERGES).decode().splitlines(), manifest.context_length)
    encoder, generator = exported(bundle, TEXT_ENCODER), exported(bundle, GENERATOR)
    model = load_checkpoint(checkpoint).model.eval()
    pipeline = Pipeline.from_bundle(folder)
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for caption in captions:
        tokens = tokenizer(caption)
        noise = draw_noise(seed, caption, 0, manifest.noise_dim)[None]
        sentence = encoder.run(None, {"tokens": tokens})[0]
        with torch.inference_mode():
            exact = model.text_encoder(torch.from_numpy(tokens)).numpy()
        images = (
            generator.run(None, {"noise": noise, "sentence": sentence})[0][0],
            generator.run(None, {"noise": noise, "sentence": exact})[0][0],
            pixels(model, noise, sentence),
            pipeline.generate(caption, seed=seed)[0],
        )
        reference = pixels(model, noise, exact)
        for name, image in zip(CONTENDERS, images, strict=True):
            found[name].append(psnr_db(image, reference))
    return {
        "bundle": manifest.name,
        "precision": manifest.precision,
        "images": len(captions),
        "psnr_db": {name: summary(values) for name, values in found.items()},
        "page_below_40_db": {
            caption: value for caption, value in zip(captions, found["page"]) if value < 40
        },
    }


def summary(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "worst": min(values),
        "share_from_40": sum(value >= 40 for value in values) / len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bundles", type=Path, nargs="*", help="default: the embedded model")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "aviary.safetensors")
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="one a line")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    args = parser.parse_args()
    captions = args.captions.read_text(encoding="utf-8").splitlines()[: args.count]
    results = [
        measure(bundle, args.checkpoint, captions, args.seed)
        for bundle in args.bundles or [default_bundle()]
    ]
    if args.json:
        print(json.dumps({"environment": environment(), "results": results}, indent=1))
    else:
        for result in results:
            print_table(result)


def print_table(result: dict[str, Any]) -> None:
    """Markdown."""
    print(f"\n{result['bundle']}, {result['precision']}, {result['images']} images\n")
    print("| | mean | median | worst | at least 40 dB |")
    print("|---|---|---|---|---|")
    for name, found in result["psnr_db"].items():
        numbers = " | ".join(f"{found[key]:.1f} dB" for key in ("mean", "median", "worst"))
        print(f"| {name} | {numbers} | {found['share_from_40']:.0%} |")
    for caption, value in result["page_below_40_db"].items():
        print(f"\npage below 40 dB: {caption} ({value:.1f} dB)")


if __name__ == "__main__":
    main()

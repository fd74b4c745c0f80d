"""How close the images of an exported page and of the runtime are to PyTorch in float32.

    python benchmarks/web_fidelity.py [BUNDLE CHECKPOINT] [--captions FILE] [--count 40] [--json]

Default: the embedded model and models/aviary.safetensors, on held-out captions. The ONNX models of
`galip-edge export-web` run in ONNX Runtime on this CPU, whose images are within one level of 255 of
those of WebAssembly (tests/convert/test_web.py).
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
from runtime import Pipeline, Tokenizer, draw_noise
from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Bundle, default_bundle

ROOT = Path(__file__).parent.parent
CAPTIONS = ROOT / "docs" / "embedded-model" / "captions.txt"


def exported(bundle: Bundle, graph: str) -> onnxruntime.InferenceSession:
    """The model that the page runs."""
    return onnxruntime.InferenceSession(onnx_model(bundle, graph).SerializeToString())


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(image.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def measure(folder: Path, checkpoint: Path, captions: list[str], seed: int) -> dict[str, Any]:
    """PSNR in dB of the page's and the runtime's images, over all captions."""
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.read(MERGES).decode().splitlines(), manifest.context_length)
    encoder, generator = exported(bundle, TEXT_ENCODER), exported(bundle, GENERATOR)
    model = load_checkpoint(checkpoint).model.eval()
    pipeline = Pipeline.from_bundle(folder)
    found: dict[str, list[float]] = {"page": [], "runtime": []}
    for caption in captions:
        tokens = tokenizer(caption)
        noise = draw_noise(seed, caption, 0, manifest.noise_dim)[None]
        sentence = encoder.run(None, {"tokens": tokens})[0]
        image = generator.run(None, {"noise": noise, "sentence": sentence})[0][0]
        with torch.inference_mode():
            pixels = model(torch.from_numpy(noise), torch.from_numpy(tokens))[0]
            pixels = pixels.permute(1, 2, 0).numpy()
        reference = np.round(np.clip(pixels * 127.5 + 127.5, 0, 255))
        found["page"].append(psnr_db(image, reference))
        found["runtime"].append(psnr_db(pipeline.generate(caption, seed=seed)[0], reference))
    return {
        "bundle": manifest.name,
        "precision": manifest.precision,
        "images": len(captions),
        "psnr_db": {name: summary(values) for name, values in found.items()},
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
    parser.add_argument("bundle", type=Path, nargs="?", default=default_bundle())
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", default=ROOT / "models" / "aviary.safetensors"
    )
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="one a line")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    args = parser.parse_args()
    captions = args.captions.read_text(encoding="utf-8").splitlines()[: args.count]
    result = measure(args.bundle, args.checkpoint, captions, args.seed)
    if args.json:
        print(json.dumps({"environment": environment(), "result": result}, indent=1))
    else:
        print(f"{result['bundle']}, {result['precision']}, {result['images']} images\n")
        print("| | mean | median | worst | from 40 dB on |")
        print("|---|---|---|---|---|")
        for name, found in result["psnr_db"].items():
            numbers = " | ".join(f"{found[key]:.1f} dB" for key in ("mean", "median", "worst"))
            print(f"| {name} | {numbers} | {found['share_from_40']:.0%} |")


if __name__ == "__main__":
    main()

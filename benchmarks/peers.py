"""The alternative: a one-step diffusion model, on the same machine in the same run.

    pip install -e ".[bench]" && python benchmarks/peers.py [BUNDLE] [--json]

The peer has the shape of SD-Turbo, the U-Net of Stable Diffusion 2.1 run for one step, and the
decoder of the tiny autoencoder that is used where speed matters (TAESD), both built by diffusers
with random weights: latency does not depend on their values. The U-Net is quantized to INT8 by
NNCF; the decoder runs in bfloat16 where the CPU has it. The peer's text encoder is omitted, ours is
included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu_latency import prompt_of, timed
from environment import environment
from prepared import full_size_bundle, work_folder
from turns import Variant

from runtime.compiled import has_bf16

# Of an image, and of Stable Diffusion's latent image.
SIZES = {256: 32, 512: 64}
TOKENS, TEXT_WIDTH = 77, 1024
OURS = "galip-edge INT8"


def unet() -> Any:
    """SD-Turbo's U-Net, untrained."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
    ).eval()


def decoder() -> Any:
    """The tiny autoencoder's decoder, untrained."""
    import diffusers

    return diffusers.AutoencoderTiny().eval().decoder


def inputs(latent: int) -> tuple[Any, ...]:
    """Latent image, time step and text of the U-Net."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((1, 4, latent, latent), np.float32),
        np.array([999], np.int64),
        rng.standard_normal((1, TOKENS, TEXT_WIDTH), np.float32),
    )


def models() -> tuple[Path, Path]:
    """The U-Net in INT8 and the decoder in float32 as OpenVINO files, created once."""
    folder = work_folder() / "sd-turbo-shape"
    paths = folder / "unet.xml", folder / "decoder.xml"
    if not folder.exists():
        import nncf
        import openvino as ov
        import torch

        from convert.quiet import quiet
        from runtime.files import atomic_folder

        print("making a U-Net of 866 M parameters and quantizing it, some minutes", file=sys.stderr)
        torch.manual_seed(0)
        example = inputs(SIZES[256])

        class OneStep(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unet = unet()

            def forward(self, latent: Any, step: Any, text: Any) -> Any:
                return self.unet(latent, step, text, return_dict=False)[0]

        with torch.no_grad(), atomic_folder(folder) as temporary:
            example_tensors = tuple(map(torch.from_numpy, example))
            shapes = [(1, 4, -1, -1), (1,), (1, TOKENS, TEXT_WIDTH)]
            model = ov.convert_model(OneStep(), example_input=example_tensors, input=shapes)
            with quiet("nncf"):
                model = nncf.quantize(
                    model,
                    nncf.Dataset([example], list),
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=1,
                )
            ov.save_model(model, temporary / "unet.xml", compress_to_fp16=False)
            latent = example_tensors[0]
            model = ov.convert_model(decoder(), example_input=latent, input=[(1, 4, -1, -1)])
            ov.save_model(model, temporary / "decoder.xml", compress_to_fp16=False)
    return paths


def one_step(
    unet_path: Path, decoder_path: Path, latent: int, precision: str
) -> Callable[[], tuple[float, float]]:
    """A function that generates one image; seconds of the U-Net and of the decoder."""
    from runtime.openvino_core import openvino_core

    core = openvino_core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    noise, step, text = inputs(latent)

    def compiled(path: Path) -> Any:
        model = core.read_model(path)
        model.reshape({model.input(0): list(noise.shape)})
        return core.compile_model(model, "CPU", settings).create_infer_request()

    first, second = compiled(unet_path), compiled(decoder_path)

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        first.infer([noise, step, text])
        between = time.perf_counter()
        second.infer([first.get_output_tensor().data])
        return between - start, time.perf_counter() - between

    for _ in range(2):
        run()
    return run


def measure(bundle: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median seconds, and how many times ours is faster."""
    paths, precision = models(), "bf16" if has_bf16() else "f32"
    ours = Variant(timed, "our_contender", bundle)
    peers = {
        f"SD-Turbo's shape, {size} px": Variant(one_step, *paths, latent, precision)
        for size, latent in SIZES.items()
    }
    our_seconds: list[float] = []
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for turn in range(runs):
        our_seconds.append(ours.run(prompt_of(turn), 1)["image"])
        for name, peer in peers.items():
            seconds[name].append(peer.run())
    median = statistics.median(our_seconds)
    results = {OURS: {"image_s": median, "peak_memory_bytes": float(ours.end())}}
    for name, peer in peers.items():
        image = statistics.median(sum(pair) for pair in seconds[name])
        results[name] = {
            "image_s": image,
            "unet_s": statistics.median(pair[0] for pair in seconds[name]),
            "decoder_s": statistics.median(pair[1] for pair in seconds[name]),
            "ours_times_faster": image / median,
            "peak_memory_bytes": peer.end(),
        }
    return results


def print_table(results: dict[str, dict[str, float]], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}, diffusers {env['diffusers']}, NNCF {env['nncf']}\n")
    print("| | an image | U-Net + decoder | ours is faster | peak memory |\n|---|---|---|---|---|")
    for name, r in results.items():
        parts = f"{r['unet_s'] * 1e3:.0f} + {r['decoder_s'] * 1e3:.0f} ms" if "unet_s" in r else ""
        ratio = f"{r['ours_times_faster']:.1f} x" if "unet_s" in r else ""
        memory = r["peak_memory_bytes"] / 1e6
        print(f"| {name} | {r['image_s'] * 1e3:.0f} ms | {parts} | {ratio} | {memory:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("--runs", type=int, default=15, help="measurements of each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    results, env = measure(args.bundle or full_size_bundle(), args.runs), environment()
    if args.json:
        print(json.dumps({"environment": env, "results": results}, indent=1))
    else:
        print_table(results, env)


if __name__ == "__main__":
    main()

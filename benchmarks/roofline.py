"""Where the generator's time goes, layer by layer, and its share of the machine's peak.

    python benchmarks/roofline.py [BUNDLE] [--json] [--top 15]

The peak is measured in the same run: a chain of large convolutions of the same kind, INT8 and
floating point, in OpenVINO with the same threads. A layer that reaches it can only become faster
by doing less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from environment import environment
from prepared import full_size_bundle

from runtime.bundle import GENERATOR, Bundle
from runtime.compiled import CompileOptions, read_model, supported_precision
from runtime.cpu import available_cores
from runtime.openvino_core import openvino_core

MULTIPLYING = ("Convolution", "MatMul")


def large_convolutions(int8: bool, channels: int = 256, size: int = 28, depth: int = 8) -> Any:
    """A model of `depth` 3x3 convolutions."""
    rng = np.random.default_rng(0)
    x = data = ops.parameter([1, channels, size, size], np.float32)
    for _ in range(depth):
        weight = ops.constant(rng.normal(0, 0.02, (channels, channels, 3, 3)).astype(np.float32))
        if int8:
            x = ops.fake_quantize(x, *map(np.float32, (0, 2.55, 0, 2.55)), 256)
            low, high = np.float32(-0.127), np.float32(0.127)
            weight = ops.fake_quantize(weight, low, high, low, high, 255)
        x = ops.relu(ops.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1]))
    return ov.Model([x], [data], "peak")


def products(model: Any) -> dict[str, int]:
    """Multiply-adds of each convolution and matrix product of a model with static shapes."""
    found = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in MULTIPLYING:
            continue
        out = int(np.prod(list(node.output(0).shape)))
        second = list(node.input_value(1).shape)
        if kind == "Convolution":
            each = int(np.prod(second[1:]))
        else:
            each = second[-1] if node.get_attributes()["transpose_b"] else second[-2]
        found[node.get_friendly_name()] = out * each
    return found


def compiled(model: Any, precision: str) -> Any:
    """As the runtime compiles it for one image, with a clock in each layer."""
    options = CompileOptions(available_cores(), 1, precision, None)
    return openvino_core().compile_model(model, "CPU", options.properties() | {"PERF_COUNT": True})


def layer_seconds(model: Any, runs: int) -> tuple[dict[str, tuple[str, str, float]], float]:
    """By layer: kind, kernel, median seconds; and the median of the whole."""
    request = model.create_infer_request()
    inputs = [np.zeros(list(i.shape), np.float32) + 0.1 for i in model.inputs]
    seconds: dict[str, list[float]] = defaultdict(list)
    kinds, whole = {}, []
    for run in range(runs + 3):
        start = time.perf_counter()
        request.infer(inputs)
        if run < 3:
            continue
        whole.append(time.perf_counter() - start)
        for info in request.profiling_info:
            if (spent := info.real_time.total_seconds()) > 0:
                seconds[info.node_name].append(spent)
                kinds[info.node_name] = (info.node_type, info.exec_type)
    layers = {name: (*kinds[name], statistics.median(values)) for name, values in seconds.items()}
    return layers, statistics.median(whole)


def peak(int8: bool, precision: str, runs: int) -> float:
    """Multiply-adds a second of large convolutions."""
    model = large_convolutions(int8)
    total = sum(products(model).values())
    layers, _ = layer_seconds(compiled(model, precision), runs)
    return total / sum(seconds for kind, _, seconds in layers.values() if kind == "Convolution")


def measure(bundle: Path, runs: int) -> dict[str, Any]:
    """The generator's layers, slowest first, and the machine's peaks."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    model = read_model(opened, GENERATOR)
    model.reshape({i: [1, *list(i.partial_shape)[1:]] for i in model.inputs})
    counted = products(model)
    precision = supported_precision(manifest.inference_precision)
    layers, whole = layer_seconds(compiled(model, precision), runs)
    peaks = {"int8": peak(True, precision, runs), precision: peak(False, precision, runs)}
    rows = []
    for name, (kind, kernel, seconds) in layers.items():
        row: dict[str, Any] = {"name": name, "kind": kind, "kernel": kernel, "seconds": seconds}
        if name in counted:
            row["multiply_adds"] = counted[name]
            row["share_of_peak"] = counted[name] / seconds / peaks[_kind_of_peak(kernel, peaks)]
        rows.append(row)
    rows.sort(key=lambda row: -row["seconds"])
    convolutions = [r for r in rows if r["kind"] == "Convolution" and "multiply_adds" in r]
    return {
        "whole_seconds": whole,
        "peaks_multiply_adds_per_second": peaks,
        "multiply_adds": sum(counted.values()),
        "convolutions_share_of_peak": sum(
            r["multiply_adds"] / peaks[_kind_of_peak(r["kernel"], peaks)] for r in convolutions
        )
        / sum(r["seconds"] for r in convolutions),
        "layers": rows,
    }


def _kind_of_peak(kernel: str, peaks: dict[str, float]) -> str:
    return "int8" if kernel.endswith("8") else next(name for name in peaks if name != "int8")


def print_table(results: dict[str, Any], env: dict[str, Any], top: int) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}")
    for name, value in results["peaks_multiply_adds_per_second"].items():
        print(f"peak, {name}: {value / 1e9:.0f} G multiply-adds a second")
    print(f"generator: {results['whole_seconds'] * 1e3:.1f} ms, ", end="")
    print(f"{results['multiply_adds'] / 1e9:.2f} G multiply-adds")
    print(f"convolutions: {results['convolutions_share_of_peak']:.0%} of the peak\n")
    by_kind: dict[str, float] = defaultdict(float)
    for row in results["layers"]:
        by_kind[row["kind"]] += row["seconds"]
    print("| kind | ms |\n|---|---|")
    for kind, seconds in sorted(by_kind.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {seconds * 1e3:.2f} |")
    print("\n| layer | kernel | ms | M multiply-adds | of peak |\n|---|---|---|---|---|")
    for row in results["layers"][:top]:
        work = f"{row['multiply_adds'] / 1e6:.0f}" if "multiply_adds" in row else ""
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        name = row["name"].split("/")[-1][-40:]
        print(f"| {name} | {row['kernel']} | {row['seconds'] * 1e3:.2f} | {work} | {share} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--top", type=int, default=15, help="slowest layers to show")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    args = parser.parse_args()
    results, env = measure(args.bundle or full_size_bundle(), args.runs), environment()
    if args.json:
        print(json.dumps({"environment": env, **results}, indent=1))
    else:
        print_table(results, env, args.top)


if __name__ == "__main__":
    main()

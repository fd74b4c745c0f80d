"""Plots of the results in `results/` and of the embedded model's training, as PNG and SVG next to
their numbers.

    pip install -e ".[bench]" && python benchmarks/plot.py [--docs]

Missing results are skipped. With `--docs`, write the tables of README and docs (`tables.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from tables import write_docs

RESULTS = Path(__file__).parent / "results"
TRAINING = Path(__file__).parents[1] / "docs" / "embedded-model" / "metrics.jsonl"

OURS, OTHERS = "#d8262c", "#8a97a6"


def colour_of(name: str) -> str:
    """Ours stand out."""
    return OURS if name.startswith("galip-edge") else OTHERS


def bars(axes: Axes, seconds: dict[str, float], label: str) -> None:
    """Milliseconds, the slowest on top."""
    names = sorted(seconds, key=lambda name: seconds[name])
    values = [seconds[name] * 1e3 for name in names]
    drawn = axes.barh(names, values, color=[colour_of(name) for name in names])
    axes.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3)
    axes.margins(x=0.1)
    axes.set_xlabel(label)


def plot_cpu_latency(axes: Axes, found: dict[str, Any]) -> None:
    """Prompt to image, every contender."""
    medians = {name: result["median_s"] for name, result in found["results"].items()}
    bars(axes, medians, "prompt to image, median in ms")


def plot_peers(axes: Axes, found: dict[str, Any]) -> None:
    """Time of an image: ours and one-step diffusion."""
    bars(axes, {name: r["image_s"] for name, r in found["results"].items()}, "an image, ms")
    axes.set_xscale("log")


def plot_scaling(axes: Axes, found: dict[str, Any]) -> None:
    """Throughput and memory over the number of images."""
    counts = [row["n"] for row in found["counts"]]
    axes.plot(counts, [r["images_per_second"] for r in found["counts"]], "o-", color=OURS)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("number of images")
    axes.set_ylabel("images a second", color=OURS)
    memory = axes.twinx()
    memory.plot(counts, [r["peak_memory_bytes"] / 1e6 for r in found["counts"]], "s:", color=OTHERS)
    memory.set_ylim(bottom=0)
    memory.set_ylabel("peak memory so far, MB", color=OTHERS)


def plot_cold_start(axes: Axes, found: dict[str, Any]) -> None:
    """Phases from the start of the process to the first PNG, one after the other."""
    kinds = list(found["seconds"])
    others = ("all ", "galip-edge", "peak memory")
    phases = [name for name in found["seconds"][kinds[0]] if not name.startswith(others)]
    left = [0.0] * len(kinds)
    for phase in phases:
        values = [found["seconds"][kind][phase] * 1e3 for kind in kinds]
        axes.barh(kinds, values, left=left, label=phase)
        left = [a + b for a, b in zip(left, values)]
    axes.set_xlabel("process start to first PNG, ms")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=3, frameon=False)


def plot_roofline(axes: Axes, found: dict[str, Any]) -> None:
    """Each layer's time and its share of the machine's own peak."""
    layers = [row for row in found["layers"] if "share_of_peak" in row]
    for kind, colour in (("Convolution", OURS), ("FullyConnected", OTHERS), ("MatMul", "#3fa34d")):
        rows = [row for row in layers if row["kind"] == kind]
        axes.scatter(
            [row["seconds"] * 1e3 for row in rows],
            [row["share_of_peak"] * 100 for row in rows],
            label=kind,
            color=colour,
            alpha=0.7,
        )
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_xlabel("time of a layer, ms")
    axes.set_ylabel("% of the measured peak")
    axes.legend(frameon=False)


def plot_precision(axes: Axes, found: dict[str, Any]) -> None:
    """Speed and fidelity of every setting that was tried."""
    for row in found["candidates"]:
        if row["name"] == "float32":  # twice as slow, and equal to PyTorch
            continue
        chosen = row["name"] == found["chosen"]
        place = row["ratio"], row["psnr_db"]
        axes.scatter(*place, color=OURS if chosen else OTHERS, zorder=2)
        axes.annotate(row["name"], place, xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel(f"prompt to image, time relative to {found['chosen']}")
    axes.set_ylabel("PSNR against PyTorch, dB")


def plot_cluster_scaling(axes: Axes, found: dict[str, Any]) -> None:
    """Throughput of simulated nodes, and the ideal without overhead of the leader."""
    nodes = [row["nodes"] for row in found["simulated"]]
    perfect = [count * found["rate"] for count in nodes]
    axes.plot(nodes, perfect, ":", color=OTHERS, label="perfect")
    rates = [row["images_per_second"] for row in found["simulated"]]
    axes.plot(nodes, rates, "o-", color=OURS, label="a job on simulated nodes")
    axes.set_xlabel("nodes")
    axes.set_ylabel("images a second")
    axes.legend(frameon=False)


def plot_training(axes: Axes, steps: list[dict[str, Any]]) -> None:
    """The generator's loss in each phase of the warm-up."""
    names = sorted({name for step in steps for name in step if name.startswith("generator/")})
    for name in names:
        if name != "generator/norm":
            rows = [(step["step"], step[name]) for step in steps if name in step]
            axes.plot(*zip(*rows), label=name.removeprefix("generator/"))
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.legend(frameon=False)


PLOTS: dict[str, Callable[..., None]] = {
    "cpu_latency": plot_cpu_latency,
    "peers": plot_peers,
    "scaling": plot_scaling,
    "cold_start": plot_cold_start,
    "roofline": plot_roofline,
    "precision": plot_precision,
    "cluster_scaling": plot_cluster_scaling,
}


def save(path: Path, draw: Callable[[Axes], None], title: str = "") -> None:
    """Draw into `path`, without its suffix, as PNG and SVG."""
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)
    print(path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the tables of README and docs")
    if parser.parse_args().docs:
        write_docs()
        return
    pyplot.rcParams["svg.hashsalt"] = "galip-edge"  # the same results give the same bytes
    for name, plot in PLOTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            env = found["environment"]
            title = f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}"
            save(path, partial(plot, found=found), title)
    lines = TRAINING.read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    save(TRAINING.with_name("curves"), partial(plot_training, steps=steps))


if __name__ == "__main__":
    main()

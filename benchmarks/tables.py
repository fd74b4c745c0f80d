"""Tables in README and docs, from `results/*.json`.

    python benchmarks/plot.py --docs     # or, without matplotlib: python benchmarks/tables.py

A page has `<!-- table: NAME -->` and `<!-- end -->`; the text between them is replaced. The line
below a table names the machine.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ablations

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

INSTRUCTION_SETS = ("AMX INT8", "AVX-512 VNNI", "AVX-512 BF16")

Rows = Iterable[tuple[str, ...]]

# The contenders in README, and what they are called there.
SHORT = {
    "PyTorch eager float32": "PyTorch eager float32",
    "ONNX Runtime INT8, static": "ONNX Runtime INT8, static",
    "OpenVINO INT8, NNCF's defaults": "OpenVINO INT8, NNCF's defaults",
    "galip-edge INT8": "**galip-edge INT8**",
}
# Kinds of layers in the roofline's table.
KINDS = {
    "convolutions, INT8": ("Convolution",),
    "matrix products": ("FullyConnected", "FullyConnectedQuantizedLegacy", "MatMul"),
    "depth to space, resize": ("DepthToSpace", "Interpolate"),
}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def _latency_short(found: dict[str, Any]) -> Rows:
    yield "", "prompt to image", "ratio to eager", "peak memory", "size"
    for name, shown in SHORT.items():
        row = found["results"][name]
        cells = _ms(row["median_s"]), f"{row['times_faster']:.1f}×"
        cells = *cells, _mb(row["peak_memory_bytes"]), _mb(row["size_bytes"])
        bold = shown.startswith("**")
        yield shown, *(f"**{cell}**" if bold and at < 2 else cell for at, cell in enumerate(cells))


def _latency(found: dict[str, Any]) -> Rows:
    yield (
        "",
        "prompt to image",
        "p95, p99",
        "text + generator",
        "ratio to eager",
        "8 images to disk",
        "peak memory",
        "size",
    )
    for name, row in found["results"].items():
        yield (
            name,
            _ms(row["median_s"]),
            f"{row['p95_s'] * 1e3:.0f}, {row['p99_s'] * 1e3:.0f} ms",
            f"{row['text_s'] * 1e3:.1f} + {row['generator_s'] * 1e3:.0f} ms",
            f"{row['times_faster']:.2f}×",
            f"{row['eight_images_per_second']:.1f} images/s",
            _mb(row["peak_memory_bytes"]),
            _mb(row["size_bytes"]),
        )


def _peers(found: dict[str, Any]) -> Rows:
    yield "", "one image", "ratio to galip-edge", "peak memory"
    for name, row in found["results"].items():
        ratio = f"{row['ours_times_faster']:.1f}×" if "ours_times_faster" in row else ""
        yield name, _ms(row["image_s"]), ratio, _mb(row["peak_memory_bytes"])


def _roofline(found: dict[str, Any]) -> Rows:
    yield "layers of the generator", "count", "time"
    rest = list(found["layers"])
    for name, kinds in KINDS.items():
        layers = [layer for layer in rest if layer["kind"] in kinds]
        rest = [layer for layer in rest if layer["kind"] not in kinds]
        yield name, str(len(layers)), f"{sum(each['seconds'] for each in layers) * 1e3:.1f} ms"
    yield "all others", str(len(rest)), f"{sum(each['seconds'] for each in rest) * 1e3:.1f} ms"


def _scaling_threads(found: dict[str, Any]) -> Rows:
    yield "threads", "streams", "images/s", "peak memory"
    for row in found["settings"]:
        rate, memory = f"{row['images_per_second']:.1f}", _mb(row["peak_memory_bytes"])
        yield str(row["threads"]), str(row["streams"]), rate, memory


def _scaling_sizes(found: dict[str, Any]) -> Rows:
    yield "image size", "one image", "many images"
    for row in found["sizes"]:
        rate = f"{row['images_per_second']:.0f} images/s"
        yield f"{row['image_size']} px", _ms(row["image_s"]), rate


def _cold_start(found: dict[str, Any]) -> Rows:
    kinds = found["seconds"]
    yield "", *(f"{kind} cache" for kind in kinds)
    for phase in next(iter(kinds.values())):
        show = _mb if phase == "peak memory" else _ms
        yield phase, *(show(kinds[kind][phase]) for kind in kinds)


def _batch(found: dict[str, Any]) -> Rows:
    yield "", "images/s", "share of inference alone"
    rates = found["images_per_second"]
    alone = next(iter(rates.values()))
    for name, rate in rates.items():
        yield name, f"{rate:.1f}", "" if rate == alone else f"{rate / alone:.1%}"


def _batch_constant(found: dict[str, Any]) -> Rows:
    yield "constant images", "items/s", "growth of memory from item 10,000 on"
    for count, rows in ((found["items"], found["constant"]), (1_000_000, found["million"])):
        for name, row in rows.items():
            growth = _mb(row["growth_bytes"])
            yield f"{count:,}, {name}", f"{row['items_per_second']:,.0f}", growth


def _cluster(found: dict[str, Any]) -> Rows:
    yield "nodes", "images/s", "share of linear scaling"
    for row in found["simulated"]:
        rate, share = f"{row['images_per_second']:.0f}", f"{row['of_perfect']:.0%}"
        yield str(row["nodes"]), rate, share


def _serving(found: dict[str, Any]) -> Rows:
    rates = found["images_per_second"]
    yield "", "images/s"
    yield "`generate_each`, many images", f"{rates['generate']:.1f}"
    share = rates["serve"] / rates["generate"]
    yield "`serve`, 8 clients", f"{rates['serve']:.1f} ({share:.1%})"


def _serving_crowd(found: dict[str, Any]) -> Rows:
    crowd = found["crowd"]
    yield "200 clients for a minute", ""
    yield "answered with an image", f"{crowd['statuses']['200']:,}"
    yield "refused with 429", f"{crowd['statuses']['429']:,}"
    yield (
        "median, 99th percentile of the waiting time",
        f"{crowd['p50_s']:.2f} s, {crowd['p99_s']:.2f} s",
    )
    yield "one request alone", _ms(crowd["service_s"])
    yield "growth of memory", _mb(crowd["growth_bytes"])


def _studio(found: dict[str, Any]) -> Rows:
    yield "", "images/s", "95 % of gaps below", "one step, median", "95th percentile"
    for row in found["results"]:
        yield (
            {"aviary": "embedded, 128 px", "untrained": "full size, 224 px"}[row["bundle"]],
            f"{row['pictures_per_second']:.1f}",
            f"{row['p95_gap_ms']:.0f} ms",
            f"{row['step_ms']:.0f} ms",
            f"{row['p95_step_ms']:.0f} ms",
        )


def _conversion(found: dict[str, Any]) -> Rows:
    yield "", "time", "CPU time", "peak memory", "temporary files and bundle", "bundle"
    for name, row in found["results"].items():
        sizes = (f"{row[figure] / 1e9:.2f} GB" for figure in ("peak_memory", "peak_disk", "bundle"))
        yield name, f"{row['seconds']:.0f} s", f"{row['cpu_seconds']:.0f} s", *sizes


def _conversion_steps(found: dict[str, Any]) -> Rows:
    yield "step", "time"
    for step in found["results"]["this version"]["steps"]:
        yield step["step"], f"{step['seconds']:.0f} s"


def _training(found: dict[str, Any]) -> Rows:
    yield "", "s/step", "images/s", "ratio to plain", "peak memory"
    for row in found["results"]:
        yield (
            "plain float32"
            if row["variant"] == "plain"
            else f"`galip-edge train`, {row['variant']}",
            f"{row['seconds_per_step']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{row['speedup']:.2f}×",
            f"{row['peak_gb']:.2f} GB",
        )


def _metric_sensitivity(found: dict[str, Any]) -> Rows:
    yield "second real set, with", "precision", "coverage", "two-sample accuracy"
    for name, row in found["results"].items():
        figures = (row.get(each) for each in ("precision", "coverage", "two_sample_accuracy"))
        yield name, *("" if each is None else f"{each:.3f}" for each in figures)


# Table -> (file in results/, its rows).
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Rows]]] = {
    "latency-short": ("cpu_latency", _latency_short),
    "latency": ("cpu_latency", _latency),
    "peers": ("peers", _peers),
    "roofline": ("roofline", _roofline),
    "scaling-threads": ("scaling", _scaling_threads),
    "scaling-sizes": ("scaling", _scaling_sizes),
    "cold-start": ("cold_start", _cold_start),
    "batch": ("batch_throughput", _batch),
    "batch-constant": ("batch_throughput", _batch_constant),
    "cluster": ("cluster_scaling", _cluster),
    "serving": ("serving", _serving),
    "serving-crowd": ("serving", _serving_crowd),
    "studio": ("studio", _studio),
    "conversion": ("conversion", _conversion),
    "conversion-steps": ("conversion", _conversion_steps),
    "training": ("training_step", _training),
    "ablations": ("ablations", ablations.rows),
    "metric-sensitivity": ("metric_sensitivity", _metric_sensitivity),
}


def _machine(found: dict[str, Any]) -> str:
    env, settings = found["environment"], found.get("settings")
    cpu = env["cpu"].replace("(R)", "").replace(" Processor", "")
    sets = [name for name in INSTRUCTION_SETS if name in env["instruction_sets"]]
    parts = [
        f"{env['cores']} cores of an {cpu} ({', '.join(sets)})",
        f"OpenVINO {env['openvino']}",
        f"PyTorch {env['torch']}",
        f"ONNX Runtime {env['onnxruntime']}",
        f"galip-edge {env['galip-edge']}",
        env["date"],
    ]
    if isinstance(settings, dict):
        parts.insert(0, f"Preset `{settings['preset']}`, batch {settings['batch']}")
    if env.get("load_average", 0) > 2:
        parts.append(f"load average {env['load_average']:.0f}")
    return ", ".join(parts)


def table(name: str) -> str:
    """A table in Markdown, with the machine below."""
    file, rows = TABLES[name]
    found = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    head, *body = list(rows(found))
    lines = [head, ("---",) * len(head), *body]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{_machine(found)}.\n"


def pages() -> Iterator[Path]:
    """README and docs."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def up_to_date(text: str) -> str:
    """A page with updated tables."""
    return MARKED.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", text)


def write_docs() -> None:
    """Update the tables of all pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := up_to_date(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stderr.write(f"{page}\n")


if __name__ == "__main__":
    write_docs()

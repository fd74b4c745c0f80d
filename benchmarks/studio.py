"""Images per second of the studio page while a slider is dragged.

    python benchmarks/studio.py [BUNDLE ...] [--json]

Without bundles: the embedded model, and the untrained one of the published size that cpu_latency.py
creates. `galip-edge serve` runs in a separate process and the page in headless Chromium on the same
cores (Debian's package `chromium`, extra `dev`). The mouse drags the slider to and fro, 60 times a
second; an image counts when the browser has decoded it. Then the slider is moved by single steps:
the time of one is that from the event to the decoded image.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from environment import environment
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prepared import full_size_bundle
from serving import Server
from turns import percentile

from runtime.bundle import default_bundle, read_manifest

CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def drag(page: Page, seconds: float) -> list[float]:
    """Times (s) at which images were shown while the slider was dragged."""
    page.evaluate(
        """() => {
            window.shown = [];
            const image = document.getElementById("image");
            image.onload = () => window.shown.push(performance.now() / 1000);
        }"""
    )
    slider = page.locator("#sentence-share").bounding_box()
    assert slider is not None
    middle = slider["y"] + slider["height"] / 2
    page.mouse.move(slider["x"] + 10, middle)
    page.mouse.down()
    started, moves = time.perf_counter(), 0
    while (now := time.perf_counter() - started) < seconds:
        share = (1 - math.cos(now * 2)) / 2  # there and back in pi seconds
        page.mouse.move(slider["x"] + 10 + share * (slider["width"] - 20), middle)
        moves += 1
        time.sleep(max(0.0, started + moves / 60 - time.perf_counter()))
    page.mouse.up()
    return page.evaluate("() => window.shown")


def steps(page: Page, count: int) -> list[float]:
    """Seconds from a slider's event to its decoded image."""
    return page.evaluate(
        """async (count) => {
            const slider = document.getElementById("psi");
            const image = document.getElementById("image");
            const taken = [];
            for (let i = 1; i <= count; i += 1) {
                await new Promise((done) => setTimeout(done, 50));
                slider.value = 1 - (i % 100) / 200;
                const started = performance.now();
                const shown = new Promise((done) => (image.onload = done));
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                await shown;
                taken.push((performance.now() - started) / 1000);
            }
            return taken;
        }""",
        count,
    )


def measure(browser: Browser, bundle: Path, seconds: float, count: int) -> dict[str, Any]:
    """Measurements of one bundle."""
    server = Server(bundle)
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    expect(page.locator("#image")).to_be_visible()
    page.fill("#end-prompt", "a blue duck on the water at sunset")
    drag(page, 2.0)  # until all is warm
    times = drag(page, seconds)
    gaps = [after - before for before, after in pairwise(times)]
    taken = steps(page, count)
    page.close()
    server.end()
    return {
        "bundle": read_manifest(bundle).name,
        "pictures_per_second": (len(times) - 1) / (times[-1] - times[0]),
        "p95_gap_ms": percentile(gaps, 0.95) * 1000,
        "step_ms": statistics.median(taken) * 1000,
        "p95_step_ms": percentile(taken, 0.95) * 1000,
    }


def print_table(results: list[dict[str, Any]], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}\n")
    print("| bundle | images/s | 95 % of gaps | one step | 95 % of steps |")
    print("|---|---|---|---|---|")
    for each in results:
        print(
            f"| {each['bundle']} | {each['pictures_per_second']:.1f} | {each['p95_gap_ms']:.0f} ms "
            f"| {each['step_ms']:.0f} ms | {each['p95_step_ms']:.0f} ms |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="*", help="default: embedded and untrained")
    parser.add_argument("--seconds", type=float, default=20.0, help="of dragging")
    parser.add_argument("--steps", type=int, default=100, help="single steps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    bundles = args.bundles or [default_bundle(), full_size_bundle()]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        results = [measure(browser, bundle, args.seconds, args.steps) for bundle in bundles]
        browser.close()
    if args.json:
        print(json.dumps({"environment": environment(), "results": results}, indent=1))
    else:
        print_table(results, environment())


if __name__ == "__main__":
    main()

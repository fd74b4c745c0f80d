"""How fast an exported page generates in headless Chromium.

    python benchmarks/web.py [BUNDLE ...] [--json]

Each bundle (default: the embedded model) is exported, served as static files, and opened (Debian's
package `chromium`, extra `dev`). Reported are the bytes of the first visit, the time to the first
image of the first visit and of a reload, and images per second while a slider is dragged, all on
the same cores as the static host.
"""

from __future__ import annotations

import argparse
import http.server
import json
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from environment import environment
from playwright.sync_api import Browser, expect, sync_playwright
from studio import CHROMIUM, FLAGS, drag

from convert.web import export_web
from runtime.bundle import default_bundle

FIRST_IMAGE_MS = 600_000


class Host:
    """A static file server that counts what it sends."""

    def __init__(self, folder: Path) -> None:
        self.sent = 0
        host = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def copyfile(self, source: Any, outputfile: Any) -> None:
                content = source.read()
                host.sent += len(content)
                outputfile.write(content)

        handler = partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/"


def measure(browser: Browser, bundle: Path, seconds: float) -> dict[str, Any]:
    """Figures of one bundle; times in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "site")
        manifest = export_web(bundle, folder)
        host = Host(folder)
        page = browser.new_page()
        image = page.locator("#image")
        start = time.perf_counter()
        page.goto(host.address)
        expect(image).to_be_visible(timeout=FIRST_IMAGE_MS)
        first, sent = time.perf_counter() - start, host.sent
        start = time.perf_counter()
        page.reload()
        expect(image).to_be_visible(timeout=FIRST_IMAGE_MS)
        again = time.perf_counter() - start
        page.fill("#end-prompt", "a blue duck on the water at sunset")
        drag(page, 2.0)  # warm-up
        times = drag(page, seconds)
        threads = page.evaluate("crossOriginIsolated ? navigator.hardwareConcurrency : 1")
        page.close()
        host.server.shutdown()
    return {
        "bundle": manifest.name,
        "precision": manifest.precision,
        "bytes": sent,
        "first_image_s": first,
        "reload_s": again,
        "images_per_second": (len(times) - 1) / (times[-1] - times[0]),
        "threads": threads,
    }


def print_table(results: list[dict[str, Any]], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores\n")
    print("| bundle | first visit | first image | after a reload | dragging a slider |")
    print("|---|---|---|---|---|")
    for each in results:
        print(
            f"| {each['bundle']}, {each['precision']} | {each['bytes'] / 1e6:.1f} MB "
            f"| {each['first_image_s']:.1f} s | {each['reload_s']:.1f} s "
            f"| {each['images_per_second']:.1f} images/s |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bundles", type=Path, nargs="*", help="default: the embedded model")
    parser.add_argument("--seconds", type=float, default=10.0, help="of dragging")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        bundles = args.bundles or [default_bundle()]
        results = [measure(browser, bundle, args.seconds) for bundle in bundles]
        browser.close()
    env = environment()
    if args.json:
        print(json.dumps({"environment": env, "results": results}, indent=1))
    else:
        print_table(results, env)


if __name__ == "__main__":
    main()

"""An exported page in Firefox, where it is installed (Debian: firefox-esr)."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from firefox import FIREFOX, firefox_page
from PIL import Image
from static_host import static_host

from convert.web import export_web
from runtime import Pipeline
from runtime.images import read_metadata

EMBEDDED = Path(__file__).parents[2] / "runtime" / "default_model"
PROMPT, SEED = "a red bird on a branch", 7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FIREFOX is None, reason="Firefox is not installed (Debian: firefox-esr)"),
]


async def download(address, folder):
    """The PNG file of `PROMPT` and `SEED`, and what the page reports about itself."""
    async with firefox_page(address, folder) as page:
        image = "document.getElementById('image')"
        # After its first load, the page reloads once, under its service worker.
        await page.wait_for(f"crossOriginIsolated && !{image}.hidden && {image}.complete")
        for name, value in (("start-prompt", PROMPT), ("start-seed", str(SEED))):
            field = f"document.getElementById({name!r})"
            event = "new Event('input', { bubbles: true })"
            await page.evaluate(f"({field}.value = {value!r}, {field}.dispatchEvent({event}))")
        shown = "document.getElementById('recipe').textContent"
        await page.wait_for(f"{shown}.includes({PROMPT + f' (seed {SEED}'!r})")
        await page.evaluate("(document.getElementById('save').click(), 0)")
        while not (files := list((folder / "downloads").glob("*.png"))) or any(
            (folder / "downloads").glob("*.part")
        ):
            await asyncio.sleep(0.05)
        if screenshot := os.environ.get("SCREENSHOT"):
            await page.screenshot(Path(screenshot))
        requests = await page.evaluate(
            "performance.getEntriesByType('resource').map((e) => e.name)"
        )
        width = await page.evaluate("document.documentElement.scrollWidth")
    return files[0], requests, width


def test_the_page_generates_the_runtimes_image(tmp_path):
    export_web(EMBEDDED, tmp_path / "host" / "site")
    with static_host(tmp_path / "host") as (address, _, _):
        run = asyncio.wait_for(download(f"{address}site/", tmp_path), timeout=400)
        path, requests, width = asyncio.run(run)
    pipeline = Pipeline.from_bundle(EMBEDDED)
    error = np.asarray(Image.open(path)).astype(float) - pipeline.generate([PROMPT], seed=SEED)[0]
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 36  # INT8 on both sides
    recipe = read_metadata(path)
    assert (recipe.prompt, recipe.seed, recipe.index) == (PROMPT, SEED, 0)
    assert [url for url in requests if not url.startswith((address, "blob:"))] == []
    assert width <= 390

"""A bundle as static files: ONNX models, the studio page, and a backend in the browser.

DIR/index.html, *.js, studio.css     the studio page of `galip-edge serve`
DIR/backend.js, browser/             image generation in the browser, instead of a server
DIR/model/                           text encoder and generator as ONNX, merges, tables, model.json
DIR/vendor/onnxruntime/              ONNX Runtime for WebAssembly
DIR/sw.js, manifest.webmanifest      use offline, installation
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import onnx

import runtime.server
from convert.errors import ConversionError
from convert.web.onnx_graph import to_onnx
from convert.web.text_tables import text_tables
from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Bundle, Manifest, check_export_folder
from runtime.files import atomic_folder
from runtime.graph_io import read_graph
from runtime.openvino_core import keep_locale
from runtime.version import __version__

STUDIO = Path(runtime.server.__file__).parent / "page"
PAGE = Path(__file__).parent / "page"
VENDOR = Path(__file__).parent / "vendor"
MARK = "sw.js"

# Differences from the server's page: (in index.html, in the export).
_CHANGES = (
    (
        "script-src 'self'; style-src 'self'; connect-src 'self';",
        "script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; manifest-src 'self'; "
        "style-src 'self'; connect-src 'self';",
    ),
    (
        '<link rel="icon" href="icon.svg">',
        '<link rel="icon" href="icon.svg">\n    <link rel="manifest" href="manifest.webmanifest">',
    ),
    ("all of it from this server.", "all of it from this site."),
)


def export_web(bundle: Path, folder: Path, force: bool = False) -> Manifest:
    """Write the page atomically.

    Args:
        bundle: bundle of any precision, which its weights keep; computation is in float32.
        folder: folder to write; it must not exist.
        force: replace an earlier export.

    Returns:
        The bundle's manifest.

    Raises:
        BundleError: the bundle is missing or damaged, or `folder` exists.
        ConversionError: the bundle has a layer without an ONNX translation.
    """
    folder, opened = Path(folder), Bundle.open(Path(bundle))
    manifest = opened.manifest
    check_export_folder(folder, force, MARK, "a web export")
    with keep_locale(), atomic_folder(folder, replace=force) as temporary:
        _write_page(temporary)
        _write_model(opened, temporary / "model")
        _write_vendored(temporary / "vendor" / "onnxruntime")
        _write_manifest(manifest, temporary / "manifest.webmanifest")
        _write_service_worker(temporary)
    return manifest


def _write_page(folder: Path) -> None:
    """Write the server's page with the browser's backend."""
    shutil.copytree(STUDIO, folder, dirs_exist_ok=True)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / "server.js").unlink()
    page = folder / "index.html"
    text = page.read_text(encoding="utf-8")
    for before, after in _CHANGES:
        if text.count(before) != 1:
            raise ConversionError(f"the studio page does not contain {before!r} exactly once")
        text = text.replace(before, after)
    page.write_text(text, encoding="utf-8")


def _write_model(bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    sizes, manifest = 0, bundle.manifest
    for graph, name in ((TEXT_ENCODER, "text_encoder"), (GENERATOR, "generator")):
        model = onnx_model(bundle, graph).SerializeToString()
        sizes += _write_compressed(folder / f"{name}.onnx.gz", model)
    (folder / MERGES).write_bytes(bundle.read(MERGES))
    _write_json(folder / "text_tables.json", text_tables())
    described = {
        "id": manifest.name,
        "model_hash": manifest.model_hash,
        "image_size": manifest.image_size,
        "noise_dim": manifest.noise_dim,
        "context_length": manifest.context_length,
        "version": __version__,
        "bytes": sizes,
    }
    _write_json(folder / "model.json", described)


def onnx_model(bundle: Bundle, graph: str) -> onnx.ModelProto:
    """A bundle's graph for a batch of one and all tokens.

    Raises:
        BundleError: OpenVINO cannot read it.
        ConversionError: a layer has no translation.
    """
    model = read_graph(bundle, graph)
    shapes = {"tokens": [1, bundle.manifest.context_length]}
    model.reshape(
        {
            port: shapes.get(port.get_any_name(), [1, *list(port.partial_shape)[1:]])
            for port in model.inputs
        }
    )
    return to_onnx(model, graph.partition(".")[0])


def _write_vendored(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in sorted(VENDOR.iterdir()):
        if file.suffix == ".xz":
            _write_compressed(folder / f"{file.stem}.gz", lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, folder / file.name)


def _write_compressed(path: Path, content: bytes) -> int:
    """Write a large file as gzip, because few static hosts compress it; returns its size.

    The worker decompresses it.
    """
    return path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0))


def _write_manifest(manifest: Manifest, path: Path) -> None:
    described = {
        "name": f"galip-edge: {manifest.name}",
        "short_name": "galip-edge",
        "start_url": ".",
        "display": "standalone",
        "icons": [{"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"}],
    }
    _write_json(path, described)


def _write_service_worker(folder: Path) -> None:
    """Fill in the list of files, and a version by content, so that updates replace all of them."""
    worker = folder / MARK
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != worker)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    names = ",\n  ".join(json.dumps(path.relative_to(folder).as_posix()) for path in files)
    text = worker.read_text(encoding="utf-8")
    text = text.replace("@VERSION@", f"galip-edge-{digest.hexdigest()[:16]}")
    worker.write_text(text.replace('["@FILES@"]', f"[\n  {names},\n]"), encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

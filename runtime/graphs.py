"""A model's two files in a bundle: OpenVINO's graph, compressed, and its weights, as they are.

A graph is XML, a sixth of a small bundle as text and a hundredth when compressed. Decompressed, it
is what any tool of OpenVINO reads.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path

import openvino as ov

from runtime.bundle import weights_file
from runtime.errors import BundleError
from runtime.openvino_core import openvino_core

# No graph comes near to this; a file made to fill the memory would.
_LARGEST = 256 * 1024**2


def write_graph(model: ov.Model, graph: Path, compress_to_fp16: bool = False) -> None:
    """Write the model's two files.

    Args:
        model: to save.
        graph: `NAME.xml.gz`.
        compress_to_fp16: whether floating point weights are halved.
    """
    weights = weights_file(graph)
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        xml = Path(folder, weights.name).with_suffix(".xml")
        ov.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        # No time of writing inside: the same model gives the same bytes.
        graph.write_bytes(gzip.compress(xml.read_bytes(), mtime=0))
        xml.with_suffix(".bin").replace(weights)


def read_graph(graph: Path) -> ov.Model:
    """Read the model whose graph is the file `graph`.

    Raises BundleError if the two files are no model that OpenVINO can read.
    """
    path = weights_file(graph)
    try:
        with gzip.open(graph) as packed:
            text = packed.read(_LARGEST)
        # Memory of the tensor's own: OpenVINO does not keep an array alive that it only looks into.
        weights = ov.Tensor(ov.Type.u8, ov.Shape([path.stat().st_size]))
        with path.open("rb") as file:
            file.readinto(weights.data.data)
        return openvino_core().read_model(text, weights)
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BundleError(
            f"{graph} cannot be loaded by OpenVINO {ov.__version__} ({reason}): copy or convert "
            "the bundle again"
        ) from error

"""The two files of a model in a bundle: OpenVINO's graph, compressed, and its weights.

A graph is XML: a sixth of a small bundle as text, a hundredth when compressed. Any OpenVINO tool
reads the decompressed file.
"""

from __future__ import annotations

import gzip
import io
import math
import tempfile
import zlib
from pathlib import Path

import openvino as ov

from runtime.bundle import Bundle, weights_file
from runtime.errors import BundleError
from runtime.files import open_regular
from runtime.graph_check import MAX_TEXT, GraphError, Signature, checked_graph
from runtime.openvino_core import openvino_core

# Elements of the largest tensor, and of all tensors, with static shapes. A full-size model has
# 13 and 700 million.
_MOST_ELEMENTS = 1 << 28
_MOST_ELEMENTS_TOGETHER = 1 << 33


def write_graph(model: ov.Model, graph: Path, compress_to_fp16: bool = False) -> None:
    """Write the model's two files.

    Args:
        model: to save.
        graph: `NAME.xml.gz`.
        compress_to_fp16: store floating-point weights in float16.
    """
    weights = weights_file(graph)
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        xml = Path(folder, weights.name).with_suffix(".xml")
        ov.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        # Without a timestamp: the same model gives the same bytes.
        graph.write_bytes(gzip.compress(xml.read_bytes(), mtime=0))
        xml.with_suffix(".bin").replace(weights)


def read_graph(bundle: Bundle, name: str) -> ov.Model:
    """Read the model whose graph is the file `name`.

    Raises:
        BundleError: the two files were changed, or are not a model that `galip-edge convert`
            writes (`runtime.graph_check`), or OpenVINO cannot read them.
    """
    graph = bundle.folder / name
    path, signature = weights_file(graph), bundle.manifest.signature(name)
    try:
        text = _decompressed(bundle.read(name))
        size = bundle.manifest.files[path.name].size
        text = checked_graph(text, size, signature)
        bundle.check_unchanged(path.name)
        # Memory owned by the tensor: OpenVINO does not keep a referenced array alive.
        weights = ov.Tensor(ov.Type.u8, ov.Shape([size]))
        with open_regular(path) as file:
            file.readinto(weights.data.data)  # type: ignore[attr-defined]
        bundle.check_unchanged(path.name)
        model = openvino_core().read_model(text, weights)
        _check_interface(model, signature)
    except GraphError as error:
        raise BundleError(
            f"{graph} is not a graph that this version of galip-edge may load ({error}): convert "
            "the checkpoint again, or update galip-edge"
        ) from error
    except (OSError, EOFError, zlib.error, RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BundleError(
            f"{graph} cannot be loaded by OpenVINO {ov.__version__} ({reason}): copy or convert "
            "the bundle again"
        ) from error
    return model


def _decompressed(content: bytes) -> bytes:
    with gzip.open(io.BytesIO(content)) as packed:
        text = packed.read(MAX_TEXT + 1)
    if len(text) > MAX_TEXT:
        raise GraphError(f"it is larger than {MAX_TEXT:,} bytes")
    return text


def _check_interface(model: ov.Model, signature: Signature) -> None:
    """Check inputs and outputs as inferred by OpenVINO. Raises GraphError."""
    for ports, wanted in ((model.inputs, signature.inputs), (model.outputs, signature.outputs)):
        found = {
            port.get_any_name(): (
                port.get_element_type().get_type_name(),
                tuple(d.get_length() if d.is_static else -1 for d in port.get_partial_shape()),
            )
            for port in ports
        }
        if found != {name: tuple(tensor) for name, tensor in wanted.items()}:
            raise GraphError(f"OpenVINO infers other inputs or outputs: {found}")


def check_sizes(model: ov.Model) -> None:
    """Reject models with tensors too large for memory.

    Args:
        model: with static shapes.

    Raises:
        BundleError: a tensor is larger than any of a GALIP model, or its shape is dynamic.
    """
    together = 0
    for node in model.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if not shape.is_static:
                raise BundleError(
                    f"the graph {model.get_friendly_name()} computes a shape that depends on its "
                    "input: it is not a graph of galip-edge convert"
                )
            elements = math.prod(d.get_length() for d in shape)
            together += elements
            if elements > _MOST_ELEMENTS or together > _MOST_ELEMENTS_TOGETHER:
                raise BundleError(
                    f"a tensor of {elements:,} elements in {model.get_friendly_name()} is larger "
                    "than any of a GALIP model: the bundle is damaged or malicious"
                )

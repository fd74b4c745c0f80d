"""A bundle's graph, checked before OpenVINO reads it.

OpenVINO trusts a graph: a constant of an unexpected element type corrupts the process's memory.
Therefore a graph is parsed here first, and only what `galip-edge convert` writes passes: element
types, layer types and their attributes, constants that lie within the weights, connected ports
without a cycle, and the inputs and output that the manifest states.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

# The largest known graph has 2 MB of text, 4,500 layers, a depth of 900.
MAX_TEXT = 64 * 1024**2
_MAX_TAGS = 1_000_000
_MAX_LAYERS = 20_000
_MAX_DEPTH = 5_000
_MAX_RANK = 6
# Elements of a tensor for a batch of one.
_MAX_ELEMENTS = 1 << 28

# What OpenVINO writes in front of a graph. Nothing else there can choose another encoding.
_PROLOG = b'<?xml version="1.0"?>'
_END_OF_EDGES = b"</edges>"

# Element type -> its name at a port, and bytes. Weights are f32, f16 or i8; shapes are i64.
_ELEMENT_TYPES = {
    "f32": ("FP32", 4),
    "f16": ("FP16", 2),
    "i64": ("I64", 8),
    "i32": ("I32", 4),
    "i8": ("I8", 1),
    "u8": ("U8", 1),
    "u64": ("U64", 8),
    "boolean": ("BOOL", 1),
}
_PORT_PRECISIONS = {name for name, _ in _ELEMENT_TYPES.values()}


class GraphError(ValueError):
    """A graph that `galip-edge convert` does not write; the message states the place."""


class Tensor(NamedTuple):
    """Element type and shape of an input or the output; a dimension of -1 is dynamic."""

    element_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class _Layer(NamedTuple):
    """Least and most inputs and outputs, and a pattern for each attribute; all must be present."""

    least: int
    most: int
    outputs: int
    attributes: dict[str, str]


_TYPE = "|".join(_ELEMENT_TYPES)
_AXIS = r"-?\d"
_DIGITS = r"\d+"
_SIZES = r"\d{1,3}(, ?\d{1,3}){0,2}"
_BROADCAST = {"auto_broadcast": "numpy|none"}
_ARITHMETIC = _Layer(2, 2, 1, _BROADCAST)
_UNARY = _Layer(1, 1, 1, {})
_REDUCTION = _Layer(2, 2, 1, {"keep_dims": "true|false"})
_CONVOLUTION = _Layer(
    2,
    2,
    1,
    dict.fromkeys(("strides", "dilations", "pads_begin", "pads_end"), _SIZES)
    | {"auto_pad": "explicit|same_upper|same_lower|valid"},
)
_INTERPOLATION = _Layer(
    2,
    3,
    1,
    {
        "mode": "nearest",
        "shape_calculation_mode": "sizes|scales",
        "coordinate_transformation_mode": "asymmetric|half_pixel",
        "nearest_mode": "floor|simple|round_prefer_floor",
        "antialias": "false",
        "pads_begin": r"0(, 0){0,3}",
        "pads_end": r"0(, 0){0,3}",
        "cube_coeff": r"-0\.75",
    },
)

# What `galip-edge convert` writes (a test keeps it so), and other arithmetic of activations and
# normalizations that other versions of PyTorch's exporter may choose.
_LAYERS = {
    "Const": _Layer(
        0, 0, 1, {"element_type": _TYPE, "shape": r"[\d, ]*", "offset": _DIGITS, "size": _DIGITS}
    ),
    "Parameter": _Layer(0, 0, 1, {"element_type": _TYPE, "shape": r"[\d?, ]*"}),
    "Result": _Layer(1, 1, 0, {}),
    "Broadcast": _Layer(2, 2, 1, {"mode": "bidirectional|numpy"}),
    "Concat": _Layer(1, 64, 1, {"axis": _AXIS}),
    "Convert": _Layer(1, 1, 1, {"destination_type": _TYPE}),
    "Convolution": _CONVOLUTION,
    "DepthToSpace": _Layer(1, 1, 1, {"block_size": r"\d", "mode": "depth_first|blocks_first"}),
    "FakeQuantize": _Layer(5, 5, 1, {"levels": r"\d{1,3}", **_BROADCAST}),
    "Gather": _Layer(3, 3, 1, {"batch_dims": "0"}),
    "GatherND": _Layer(2, 2, 1, {"batch_dims": "0"}),
    "GroupConvolution": _CONVOLUTION,
    "Interpolate": _INTERPOLATION,
    "MVN": _Layer(
        2,
        2,
        1,
        {
            "eps": r"[\d.e+-]{1,30}",
            "normalize_variance": "true|false",
            "eps_mode": "INSIDE_SQRT|OUTSIDE_SQRT|inside_sqrt|outside_sqrt",
        },
    ),
    "MatMul": _Layer(2, 2, 1, {"transpose_a": "true|false", "transpose_b": "true|false"}),
    "PReLU": _Layer(2, 2, 1, {}),
    "Range": _Layer(3, 3, 1, {"output_type": "i64|i32"}),
    "Reshape": _Layer(2, 2, 1, {"special_zero": "true|false"}),
    "Round": _Layer(1, 1, 1, {"mode": "half_to_even|half_away_from_zero"}),
    "ShapeOf": _Layer(1, 1, 1, {"output_type": "i64|i32"}),
    "Slice": _Layer(4, 5, 1, {}),
    "SoftMax": _Layer(1, 1, 1, {"axis": _AXIS}),
    "Split": _Layer(2, 2, 16, {"num_splits": r"1?\d"}),
    "Squeeze": _Layer(1, 2, 1, {}),
    "TopK": _Layer(
        2,
        2,
        2,
        {
            "axis": _AXIS,
            "mode": "max|min",
            "sort": "value|index|none",
            "index_element_type": "i64|i32",
            "stable": "true|false",
        },
    ),
    "Transpose": _Layer(2, 2, 1, {}),
    "Unsqueeze": _Layer(2, 2, 1, {}),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Power"), _ARITHMETIC),
    "Divide": _Layer(2, 2, 1, {**_BROADCAST, "m_pythondiv": "true|false"}),
    **dict.fromkeys(("ReLU", "Sigmoid", "Sqrt", "Tanh", "Exp", "Erf"), _UNARY),
    "Swish": _Layer(1, 2, 1, {}),
    "Gelu": _Layer(1, 1, 1, {"approximation_mode": "ERF|TANH"}),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _REDUCTION),
}
_EDGE = ("from-layer", "from-port", "to-layer", "to-port")
_EDGE_ATTRIBUTES = set(_EDGE)
_PORT_ATTRIBUTES = {"id", "precision", "names"}
_LAYER_ATTRIBUTES = {"id", "name", "type", "version", "output_names"}
# Hints of a layer that OpenVINO keeps in a graph: weights that stay in float16.
_HINTS = {"DisablePrecisionConversion", "decompression"}
_OPSET = re.compile(r"opset\d{1,2}")
_MOST_DIGITS = 12


class _Port(NamedTuple):
    precision: str
    shape: tuple[int, ...]
    names: str


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: dict[int, _Port]
    outputs: dict[int, _Port]
    attributes: dict[str, str]
    layer: Element


def checked_graph(text: bytes, weights_size: int, signature: Signature) -> bytes:
    """The part of an OpenVINO graph that OpenVINO needs, if it is safe to read.

    Args:
        text: XML.
        weights_size: bytes of the file with the constants.
        signature: inputs and outputs that the graph must have.

    Returns:
        `text` without its last section, which describes how the graph was generated.

    Raises:
        GraphError: anything in it is not what `galip-edge convert` writes.
    """
    text = _sections(text)
    layers, edges = _parsed(text)
    nodes = _nodes(layers)
    for node in nodes.values():
        if node.kind == "Const":
            _check_constant(node, weights_size)
    _check_edges(nodes, edges)
    _check_signature(nodes.values(), signature)
    return text


def _sections(text: bytes) -> bytes:
    """Layers and edges alone, in plain ASCII, which every XML parser reads alike."""
    if len(text) > MAX_TEXT:
        raise GraphError(f"it is larger than {MAX_TEXT:,} bytes")
    if not text.startswith(_PROLOG) or text.count(b"<?") != 1:
        raise GraphError("it does not start like an OpenVINO graph")
    if b"<!" in text or b"\0" in text or not text.isascii():
        raise GraphError("it has a document type, a comment or invalid characters")
    if text.count(b"<") > _MAX_TAGS:
        raise GraphError(f"it has more than {_MAX_TAGS:,} tags")
    end = text.find(_END_OF_EDGES)
    if end < 0:
        raise GraphError("it has no edges")
    return text[: end + len(_END_OF_EDGES)] + b"\n</net>\n"


def _parsed(text: bytes) -> tuple[Element, Element]:
    try:
        net = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise GraphError(f"it is not XML: {error}") from error
    if net.tag != "net" or set(net.attrib) != {"name", "version"} or net.get("version") != "11":
        raise GraphError("it is not a graph of OpenVINO's format 11")
    if [section.tag for section in net] != ["layers", "edges"]:
        raise GraphError("it has other sections than layers and edges")
    return net[0], net[1]


def _nodes(layers: Element) -> dict[int, _Node]:
    if len(layers) > _MAX_LAYERS:
        raise GraphError(f"it has {len(layers):,} layers, more than {_MAX_LAYERS:,}")
    nodes: dict[int, _Node] = {}
    for layer in layers:
        number = _number(layer.get("id", ""), "a layer's id")
        if number in nodes:
            raise GraphError(f"two layers have the id {number}")
        try:
            nodes[number] = _node(layer)
        except GraphError as error:
            raise GraphError(f"layer {number}: {error}") from None
    return nodes


def _node(layer: Element) -> _Node:
    kind = layer.get("type", "")
    if layer.tag != "layer" or not layer.attrib.keys() <= _LAYER_ATTRIBUTES:
        raise GraphError("it is not a layer as OpenVINO writes it")
    known = _LAYERS.get(kind)
    if known is None:
        raise GraphError(f"type {_short(kind)} is not among those of a GALIP bundle")
    if not _OPSET.fullmatch(layer.get("version", "")):
        raise GraphError(f"version {_short(layer.get('version', ''))} is not a standard opset")
    sections: dict[str, Element] = {}
    for section in layer:
        if section.tag not in ("data", "input", "output", "rt_info") or section.tag in sections:
            raise GraphError(f"unexpected {_short(section.tag)}")
        if section.tag == "data" and len(section):
            raise GraphError("its data contain elements")
        sections[section.tag] = section
    attributes = dict(sections["data"].attrib) if "data" in sections else {}
    _check_attributes(attributes, known.attributes)
    _check_hints(sections.get("rt_info"))
    inputs, outputs = (_ports(sections.get(name)) for name in ("input", "output"))
    if not known.least <= len(inputs) <= known.most:
        raise GraphError(f"{kind} has {len(inputs)} inputs")
    wanted = _number(attributes["num_splits"], "num_splits") if kind == "Split" else known.outputs
    if len(outputs) != wanted:
        raise GraphError(f"{kind} has {len(outputs)} outputs")
    if inputs.keys() & outputs.keys():
        raise GraphError("two ports have one id")
    return _Node(kind, inputs, outputs, attributes, layer)


def _check_attributes(found: dict[str, str], known: dict[str, str]) -> None:
    if found.keys() != known.keys():
        names = ", ".join(sorted(map(_short, found.keys() ^ known.keys())))
        raise GraphError(f"it has other attributes than expected: {names}")
    for name, pattern in known.items():
        value = found[name]
        # Most are numbers: of constants, which differ, and whose text is checked where it is read.
        if pattern != _DIGITS and not _matches(pattern, value):
            raise GraphError(f"{name} cannot be {_short(value)}")


@functools.lru_cache(4096)
def _matches(pattern: str, value: str) -> bool:
    return len(value) <= 200 and re.fullmatch(pattern, value) is not None


def _check_hints(section: Element | None) -> None:
    for hint in section if section is not None else ():
        if hint.tag != "attribute" or hint.get("name") not in _HINTS or len(hint):
            raise GraphError(f"unexpected hint {_short(hint.get('name', ''))}")


def _ports(section: Element | None) -> dict[int, _Port]:
    ports: dict[int, _Port] = {}
    for port in section if section is not None else ():
        number = _number(port.get("id", ""), "a port's id")
        if port.tag != "port" or number in ports:
            raise GraphError("its ports are not as OpenVINO writes them")
        precision, shape = port.get("precision", ""), _shape(port)
        if not port.attrib.keys() <= _PORT_ATTRIBUTES:
            raise GraphError(f"port {number} has unexpected attributes")
        if precision not in _PORT_PRECISIONS:
            raise GraphError(f"element type {_short(precision)} is not among those of a bundle")
        ports[number] = _Port(precision, shape, port.get("names", ""))
    return ports


def _shape(port: Element) -> tuple[int, ...]:
    for element in port:
        if element.tag != "dim" or element.attrib or len(element):
            raise GraphError("a port has other elements than dimensions")
    return _dimensions(tuple([element.text or "" for element in port]))


@functools.lru_cache(4096)
def _dimensions(texts: tuple[str, ...]) -> tuple[int, ...]:
    """Cached, since thousands of ports share a few shapes."""
    shape = tuple([-1 if text == "-1" else _number(text, "a dimension") for text in texts])
    if len(shape) > _MAX_RANK:
        raise GraphError(f"a tensor has {len(shape)} dimensions")
    if math.prod([max(size, 1) for size in shape]) > _MAX_ELEMENTS:
        raise GraphError(f"a tensor of shape {shape} is too large")
    return shape


def _check_constant(node: _Node, weights_size: int) -> None:
    kind, size = node.attributes["element_type"], _number(node.attributes["size"], "size")
    shape = _dimensions(tuple([d.strip() for d in _split(node.attributes["shape"])]))
    precision, width = _ELEMENT_TYPES[kind]
    name = _short(node.layer.get("name", ""))
    (port,) = node.outputs.values()
    if (port.precision, port.shape) != (precision, shape):
        raise GraphError(f"constant {name} differs from its port")
    if math.prod(shape) * width != size:
        raise GraphError(f"constant {name} of shape {shape} in {kind} has {size:,} bytes")
    if _number(node.attributes["offset"], "offset") + size > weights_size:
        raise GraphError(f"constant {name} lies outside of the weights")


def _check_edges(nodes: dict[int, _Node], edges: Element) -> None:
    """Each input has one source of the same type and shape, and no layer depends on itself."""
    sources: dict[int, set[int]] = {number: set() for number in nodes}
    connected: set[tuple[int, int]] = set()
    for edge in edges:
        if edge.tag != "edge" or edge.attrib.keys() != _EDGE_ATTRIBUTES or len(edge):
            raise GraphError("its edges are not as OpenVINO writes them")
        first, out, last, into = [_number(edge.attrib[name], name) for name in _EDGE]
        if first not in nodes or last not in nodes:
            raise GraphError("an edge leads to a layer that does not exist")
        given, taken = nodes[first].outputs.get(out), nodes[last].inputs.get(into)
        if given is None or taken is None:
            raise GraphError("an edge leads to a port that does not exist")
        if (given.precision, given.shape) != (taken.precision, taken.shape):
            raise GraphError(f"an edge from layer {first} to {last} changes type or shape")
        if (last, into) in connected:
            raise GraphError(f"an input of layer {last} has two sources")
        connected.add((last, into))
        sources[last].add(first)
    if len(connected) != sum(len(node.inputs) for node in nodes.values()):
        raise GraphError("an input has no source")
    _check_order(sources)


def _check_order(sources: dict[int, set[int]]) -> None:
    readers: dict[int, list[int]] = {number: [] for number in sources}
    for number, before in sources.items():
        for source in before:
            readers[source].append(number)
    waiting = {number: len(before) for number, before in sources.items()}
    ready = [number for number, count in waiting.items() if not count]
    done = depth = 0
    while ready:
        depth += 1
        done += len(ready)
        if depth > _MAX_DEPTH:
            raise GraphError(f"it is deeper than {_MAX_DEPTH:,} layers")
        following = []
        for number in ready:
            for reader in readers[number]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    following.append(reader)
        ready = following
    if done != len(sources):
        raise GraphError("a layer depends on its own result")


def _check_signature(nodes: Iterable[_Node], signature: Signature) -> None:
    found: dict[str, dict[str, Tensor]] = {"Parameter": {}, "Result": {}}
    count = 0
    for node in nodes:
        if node.kind not in found:
            continue
        count += 1
        if node.kind == "Parameter":
            (port,) = node.outputs.values()
            name = port.names
            shape = node.attributes["shape"].replace("?", "-1")
            stated = Tensor(node.attributes["element_type"], tuple(int(d) for d in _split(shape)))
            if stated != _tensor(port):
                raise GraphError(f"input {_short(name)} differs from its port")
        else:
            (port,) = node.inputs.values()
            name = node.layer.get("output_names", "")
        found[node.kind][name] = _tensor(port)
    wanted = {"Parameter": signature.inputs, "Result": signature.outputs}
    if found != wanted or count != len(signature.inputs) + len(signature.outputs):
        raise GraphError(
            f"inputs and outputs are {_listed(found)}, the manifest states {_listed(wanted)}"
        )


def _tensor(port: _Port) -> Tensor:
    kinds = {precision: kind for kind, (precision, _) in _ELEMENT_TYPES.items()}
    return Tensor(kinds[port.precision], port.shape)


def _listed(sides: Mapping[str, Mapping[str, Tensor]]) -> str:
    tensors = [
        f"{_short(name)} {tensor.element_type} {list(tensor.shape)}"
        for side in sides.values()
        for name, tensor in side.items()
    ]
    return _short("; ".join(tensors), 300)


def _split(text: str) -> list[str]:
    return text.split(",") if text else []


def _number(text: str, what: str) -> int:
    if not (text.isdigit() and text.isascii() and len(text) <= _MOST_DIGITS):
        raise GraphError(f"{what} cannot be {_short(text)}")
    return int(text)


def _short(text: str, most: int = 60) -> str:
    """An untrusted text, shortened for a message."""
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= most else f"{shown[:most]}..."

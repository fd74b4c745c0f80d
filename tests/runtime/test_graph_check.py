"""Graphs of strangers: what is not a graph of ours never reaches OpenVINO."""

import gzip
import re

import openvino as ov
import pytest
from embedded import EMBEDDED

from runtime.bundle import GENERATOR, TEXT_ENCODER, read_manifest
from runtime.graph_check import _MAX_DEPTH, GraphError, Signature, Tensor, checked_graph
from runtime.openvino_core import openvino_core

MANIFEST = read_manifest(EMBEDDED)
CHAIN = Signature({"tokens": Tensor("f32", (-1, 128))}, {"sentence": Tensor("f32", (-1, 128))})


def graph(name: str) -> str:
    return gzip.decompress((EMBEDDED / name).read_bytes()).decode()


TEXT = graph(TEXT_ENCODER)
SIZE = MANIFEST.files["text_encoder.bin"].size


def check(text: str | bytes, size: int = SIZE) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return checked_graph(text, size, MANIFEST.signature(TEXT_ENCODER))


def test_the_embedded_graphs_pass_without_their_history():
    for name, weights in ((TEXT_ENCODER, "text_encoder.bin"), (GENERATOR, "generator.bin")):
        size = MANIFEST.files[weights].size
        kept = checked_graph(graph(name).encode(), size, MANIFEST.signature(name))
        assert b"nncf>" not in kept
        assert kept.rstrip().endswith(b"</edges>\n</net>")


def test_graphs_of_every_precision_pass(tiny_bundles):
    for folder in tiny_bundles.values():
        manifest = read_manifest(folder)
        for name in (TEXT_ENCODER, GENERATOR):
            text = gzip.decompress((folder / name).read_bytes())
            size = manifest.files[name.replace(".xml.gz", ".bin")].size
            checked_graph(text, size, manifest.signature(name))


def sub(pattern: str, new: str, text: str = TEXT) -> str:
    changed, count = re.subn(pattern, new, text, count=1)
    assert count == 1
    return changed


@pytest.mark.parametrize("kind", ["nf4", "string", "u1", "f64", "bf16", "dynamic", "u4", "f8e4m3"])
def test_element_types_that_no_bundle_has_are_refused(kind):
    with pytest.raises(GraphError, match=f"element_type cannot be {kind}"):
        check(sub('element_type="f32"', f'element_type="{kind}"'))


@pytest.mark.parametrize(
    ("pattern", "new", "message"),
    [
        # element types and sizes that do not fit together
        ('element_type="f32" shape', 'element_type="f16" shape', "differs from its port"),
        (r'shape="8192, 128"', 'shape="8192, 129"', "differs from its port"),
        (r' size="1048576"', ' size="1048577"', "has 1,048,577 bytes"),
        (r' size="1048576"', ' size="99999999999"', "has 99,999,999,999 bytes"),
        (r' size="1048576"', ' size="18446744073709551617"', "size cannot be"),
        (r' offset="\d+"', ' offset="3701216"', "outside of the weights"),
        (r' offset="\d+"', ' offset="-1"', "offset cannot be"),
        (r' offset="\d+"', ' offset="0x10"', "offset cannot be"),
        # layers, attributes, ports
        ('type="SoftMax"', 'type="If"', "type If is not among"),
        ('type="SoftMax"', 'type="ReadValue"', "type ReadValue is not among"),
        ('type="Sigmoid" version="opset1"', 'type="Sigmoid" version="extension"', "standard opset"),
        ('transpose_a="false"', 'transpose_a="maybe"', "transpose_a cannot be"),
        ('transpose_a="false"', 'transpose_c="false"', "other attributes"),
        ('batch_dims="0"', 'batch_dims="-7"', "batch_dims cannot be"),
        ('axis="-1"', 'axis="100"', "axis cannot be"),
        ('levels="256"', 'levels="99999"', "levels cannot be"),
        ('destination_type="f32"', 'destination_type="string"', "destination_type cannot be"),
        ('<layer id="5"', '<layer id="4"', "two layers have the id 4"),
        ('<layer id="5"', '<layer id="five"', "id cannot be five"),
        ("<dim>128</dim>", "<dim>4000000000</dim>", "too large|changes type or shape|differs"),
        ("<dim>128</dim>", "<dim>-2</dim>", "a dimension cannot be"),
        ("<dim>128</dim>", "<dim><a/></dim>", "other elements than dimensions"),
        ('precision="FP32"', 'precision="NF4"', "NF4 is not among"),
        # edges
        ('<edge from-layer="[1-9]\\d+"', '<edge from-layer="99999"', "does not exist"),
        ('to-port="1" />', 'to-port="77" />', "port that does not exist"),
        ("\t\t<edge [^>]*>\n", "", "an input has no source"),
        # what is no graph at all
        ("<edges>", "<edges><edge/>", "edges are not as"),
        ("<layers>", "<pre/><layers>", "other sections"),
        ("<layers>", "<layers><!-- hello -->", "comment"),
        ("<layers>", "<layers><?run x?>", "does not start"),
        ("onnx_Frontend_IR", "\u00e9", "invalid characters"),
        ('<net name="onnx_Frontend_IR" version="11"', '<net name="x" version="99"', "format 11"),
        ("</layer>", "</later>", "not XML"),
        # inputs and output
        ('names="tokens"', 'names="words"', "the manifest states"),
        ('output_names="sentence"', 'output_names="image"', "the manifest states"),
        ('shape="\\?,\\?"', 'shape="?,77"', "differs from its port"),
    ],
)
def test_changed_graphs_are_refused(pattern, new, message):
    with pytest.raises(GraphError, match=message):
        check(sub(pattern, new))


def test_weights_that_are_too_short_are_refused():
    with pytest.raises(GraphError, match="outside of the weights"):
        check(TEXT, SIZE - 1)


def test_entities_and_other_encodings_are_refused():
    bomb = '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    for text in (
        TEXT.replace("<net", f"{bomb}<net", 1).encode(),
        TEXT.encode("utf-16"),
        TEXT.replace('version="1.0"', 'version="1.0" encoding="cp037"', 1).encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        b"",
        b"<a>" * 100_000,
    ):
        with pytest.raises(GraphError):
            check(text)


def test_deep_and_many_elements_are_refused_fast():
    start, end = TEXT.split("<edges>")
    for body in ("<edge>" * 100_000, "<edge/>" * 300_000, "<x/>" * 2_000_000):
        with pytest.raises(GraphError):
            check(f"{start}<edges>{body}</edges>{end}")


def test_a_layer_that_depends_on_itself_is_refused():
    multiply = re.search(
        r'<edge from-layer="(\d+)" from-port="2" to-layer="(\d+)" to-port="0" />', TEXT
    )
    assert multiply
    with pytest.raises(GraphError, match="own result|changes type or shape"):
        check(
            TEXT.replace(multiply[0], multiply[0].replace(f'"{multiply[1]}"', f'"{multiply[2]}"'))
        )


def chain(length: int) -> bytes:
    """A text encoder of so many ReLU in a row."""
    port = '<port id="{}" precision="FP32"><dim>-1</dim><dim>128</dim></port>'
    layers = [
        '<layer id="0" name="tokens" type="Parameter" version="opset1"><data shape="?,128" '
        'element_type="f32" /><output><port id="0" precision="FP32" names="tokens"><dim>-1</dim>'
        "<dim>128</dim></port></output></layer>"
    ]
    edges = []
    for i in range(1, length + 1):
        layers.append(
            f'<layer id="{i}" name="r{i}" type="ReLU" version="opset1"><input>{port.format(0)}'
            f"</input><output>{port.format(1)}</output></layer>"
        )
        edges.append((i - 1, int(i > 1), i))
    layers.append(
        f'<layer id="{length + 1}" name="s" type="Result" version="opset1" '
        f'output_names="sentence"><input>{port.format(0)}</input></layer>'
    )
    edges.append((length, 1, length + 1))
    lines = "".join(
        f'<edge from-layer="{a}" from-port="{p}" to-layer="{b}" to-port="0" />' for a, p, b in edges
    )
    return (
        f'<?xml version="1.0"?><net name="g" version="11"><layers>{"".join(layers)}</layers>'
        f"<edges>{lines}</edges></net>"
    ).encode()


def test_depth_is_bounded():
    """OpenVINO walks a graph by recursion."""
    deepest = checked_graph(chain(_MAX_DEPTH - 2), 0, CHAIN)
    with pytest.raises(GraphError, match="deeper"):
        checked_graph(chain(_MAX_DEPTH), 0, CHAIN)
    model = openvino_core().read_model(deepest, ov.Tensor(ov.Type.u8, ov.Shape([0])))
    assert len(model.get_ops()) == _MAX_DEPTH

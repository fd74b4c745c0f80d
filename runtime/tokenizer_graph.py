"""The tokenizer as an OpenVINO model, for programs without one.

It consists of OpenVINO Tokenizers' operations (extra `export`), which a program loads as an
extension: `core.add_extension("openvino_tokenizers")`.

Ids equal those of `runtime.Tokenizer`, except that repairs of broken text are not among the
operations: mojibake, HTML entities other than the most common ones, and lower case that depends on
its neighbors (a final sigma) or becomes two characters (a dotted capital I).
"""

from __future__ import annotations

from typing import Any

import openvino as ov

from runtime.errors import GalipEdgeError, install_hint
from runtime.tokenizer import END, START, WORD_END, WORDS, Tokenizer

# Steps of `runtime.tokenizer.clean`, in order, that replacements can express.
_REPLACEMENTS = (
    ("&(?:amp;)+", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;|&#34;", '"'),
    ("&apos;|&#0?39;", "'"),
    ("&nbsp;", " "),
    (r"[\x00-\x08\x0e-\x1f\x7f\x{feff}]", ""),
    (r"[\x{02bc}\x{2018}-\x{201b}]", "'"),
    (r"[\x{201c}-\x{201f}]", '"'),
    (r"\x{fb00}", "ff"),
    (r"\x{fb01}", "fi"),
    (r"\x{fb02}", "fl"),
    (r"\x{fb03}", "ffi"),
    (r"\x{fb04}", "ffl"),
)
# Full-width forms of these are written as themselves.
_HALF_WIDTH = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
_FULL_WIDTH_OFFSET = 0xFEE0


def tokenizer_model(tokenizer: Tokenizer) -> ov.Model:
    """A model from texts to token ids.

    Returns:
        From `text`, strings (B,), to `tokens`, (B,context_length) int64, as `Tokenizer` returns.

    Raises:
        GalipEdgeError: OpenVINO Tokenizers is not installed.
    """
    pipeline = _pipeline(tokenizer)
    model = pipeline.get_tokenizer_ov_subgraph()
    tokens = ov.opset13.convert(model.output("input_ids").get_node().input_value(0), ov.Type.i64)
    tokens.output(0).set_names({"tokens"})
    model = ov.Model([ov.opset13.result(tokens)], model.get_parameters(), "tokenizer")
    model.inputs[0].set_names({"text"})
    model.validate_nodes_and_infer_types()
    return model


def add_tokenizer_operations(core: ov.Core) -> None:
    """Let a core read and compile `tokenizer_model`.

    Raises GalipEdgeError if OpenVINO Tokenizers is not installed.
    """
    core.add_extension(str(extension_library()))


def extension_library() -> str:
    """Path of the library with the operations, for programs in other languages.

    Raises GalipEdgeError if OpenVINO Tokenizers is not installed.
    """
    return str(_package()._ext_path)


def _package() -> Any:
    try:
        import openvino_tokenizers
    except ImportError as error:
        raise GalipEdgeError(
            "a tokenizer as an OpenVINO model needs openvino-tokenizers, which is not installed: "
            f"{install_hint('export')}"
        ) from error
    return openvino_tokenizers


def _pipeline(tokenizer: Tokenizer) -> Any:
    _package()
    from openvino_tokenizers import tokenizer_pipeline as steps

    # It appends the end of a word to special tokens too.
    special = {f"{START}{WORD_END}": tokenizer.start_id, f"{END}{WORD_END}": tokenizer.end_id}
    vocabulary = [*tokenizer.vocabulary, *special]
    start, end = (
        steps.AddToken(token=text, _token_id=number)
        for text, number in ((START, tokenizer.start_id), (END, tokenizer.end_id))
    )
    pipeline = steps.TokenizerPipeline()
    pipeline.vocab = vocabulary
    pipeline.add_steps(
        [
            steps.SpecialTokensSplit([steps.SpecialToken(START), steps.SpecialToken(END)]),
            *(steps.RegexNormalizationStep(*pair) for pair in _REPLACEMENTS),
            steps.NormalizeUnicode("NFC"),
            steps.CaseFoldStep(),
            *(
                steps.RegexNormalizationStep(
                    rf"\x{{{ord(character) + _FULL_WIDTH_OFFSET:04x}}}",
                    "$$" if character == "$" else character,
                )
                for character in _HALF_WIDTH
            ),
            steps.RegexNormalizationStep(r"\s+", " "),
            steps.RegexSplitStep(WORDS, invert=True, behaviour="remove"),
            steps.BytesToCharsStep(),
            steps.BPETokenizationStep(
                vocab=vocabulary,
                merges=list(tokenizer.merges),
                end_suffix=WORD_END,
                added_tokens=special,
            ),
            _truncation(steps, tokenizer.room),
            steps.CombineSegmentsStep([start, steps.Sequence(), end]),
            steps.PaddingStep(
                _token_id=0, max_length=tokenizer.context_length, pad_to_max_length=True
            ),
        ]
    )
    return pipeline


def _truncation(steps: Any, length: int) -> Any:
    """Cuts rows to `length`. The package's own step keeps a switch for it in a variable."""

    class Truncation(steps.PostTokenizationStep):  # type: ignore[misc]
        def get_ov_subgraph(self, input_nodes: list[Any]) -> list[Any]:
            values = [
                *steps.make_constant_node(length, ov.Type.i32).outputs(),
                *steps.create_string_constant_node("right"),
                *steps.create_string_constant_node("longest_first"),
            ]
            nodes = steps._get_factory().create("Truncate", [*input_nodes, *values])
            return list(nodes.outputs())

    return Truncation()

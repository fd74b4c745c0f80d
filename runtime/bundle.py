"""The bundle: a folder with everything a target machine needs to generate, nothing executable.

bundle.json           dimensions, precision, provenance, fidelity, hash of every file
text_encoder.xml.gz   OpenVINO: tokens (B,L) int64 -> sentence embedding (B,E) float32
text_encoder.bin      its weights
generator.xml.gz      OpenVINO: noise (B,Z), sentence (B,E) -> image (B,H,W,3) uint8
generator.bin         its weights
merges.txt            the tokenizer's byte-pair merges
golden.bin            PyTorch's results for two prompts (runtime/golden.py); since format 3

Bundles of other authors are untrusted. Hashes prove that a bundle is complete and unchanged, not
that it is harmless: sizes, names, types and graphs are checked as well.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import BundleError
from runtime.files import HEAD, FileState, describe, open_regular, read_regular, sha256_of
from runtime.graph_check import Signature, Tensor

if TYPE_CHECKING:
    from runtime.compiled_cache import VerifiedFiles

FORMAT = "galip-edge bundle"
FORMAT_VERSION = 3
# Format without golden numbers, still supported.
_WITHOUT_GOLDEN = 2
MANIFEST = "bundle.json"
TEXT_ENCODER = "text_encoder.xml.gz"
GENERATOR = "generator.xml.gz"
MERGES = "merges.txt"
GOLDEN = "golden.bin"

PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "int8")
INFERENCE_PRECISIONS = ("f32", "bf16")
# Choices of --precision; auto is the bundle's own where it is accurate.
RUN_PRECISIONS = ("auto", *INFERENCE_PRECISIONS)

_LARGEST_MANIFEST = 4 * 1024**2
# Largest size of files by suffix; at full size they have 560 MB, 0.3 MB and 0.5 MB.
_LARGEST = {".bin": 4 * 1024**3, ".xml.gz": 16 * 1024**2, ".txt": 2 * 1024**2}
_LARGEST_OTHER = 64 * 1024**2
_MOST_FILES = 100
_MOST_DIMENSIONS = {
    "noise_dim": 1 << 16,
    "embedding_dim": 1 << 16,
    "image_size": 4096,
    "context_length": 1024,
}
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 4000
_DEEPEST = 8
# Suffixes of files that hold a checkpoint.
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def weights_file(graph: Path) -> Path:
    """Path of the weights of the graph `NAME.xml.gz`: `NAME.bin` in the same folder."""
    return graph.with_name(graph.name.removesuffix(".xml.gz") + ".bin")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 in hexadecimal of one file."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise ValueError(f"a file's size must be a number of bytes, got {_short(self.size)}")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, got {_short(self.sha256)}")


@dataclass(frozen=True)
class GoldenEntry:
    """Golden numbers of a bundle: inputs of `golden.bin`, and tolerances.

    Attributes:
        prompts: one for each image, with index 0.
        seed: of the noise.
        sentence_cosine: minimum cosine between a sentence embedding and PyTorch's.
        image_psnr_db: minimum PSNR in dB between an image and PyTorch's.
    """

    prompts: tuple[str, ...]
    seed: int
    sentence_cosine: float
    image_psnr_db: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not 1 <= len(self.prompts) <= 8 or not all(
            isinstance(prompt, str) and 0 < len(prompt) <= 200 for prompt in self.prompts
        ):
            raise ValueError(f"golden prompts must be strings, got {_short(self.prompts)}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"the golden seed must be an integer, got {_short(self.seed)}")
        for name in ("sentence_cosine", "image_psnr_db"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"golden {name} must be a number, got {_short(value)}")


@dataclass(frozen=True)
class Manifest:
    """Content of `bundle.json`.

    Attributes:
        name: of the model.
        noise_dim, embedding_dim, image_size, context_length: the model's dimensions.
        precision: of weights and activations: fp32, fp16, bf16 or int8; in bundles of version 0.1
            also mixed.
        inference_precision: arithmetic of all parts that are not int8, f32 or bf16 (f32 where the
            CPU has no bf16).
        files: all files except the manifest.
        checkpoint: hash and kind of the checkpoint that was converted.
        tools: versions of the converting packages.
        fidelity: measured differences from PyTorch, one entry for each step of the conversion.
        quantization: counts, settings, and the operations kept in floating point, with reasons;
            the candidates where the precision was chosen by measurement.
        golden: None in a bundle of format 2, which has no golden numbers.
    """

    name: str
    noise_dim: int
    embedding_dim: int
    image_size: int
    context_length: int
    precision: str
    inference_precision: str
    files: dict[str, FileEntry]
    checkpoint: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    fidelity: list[dict[str, Any]] = field(default_factory=list)
    quantization: dict[str, Any] = field(default_factory=dict)
    golden: GoldenEntry | None = None

    def __post_init__(self) -> None:
        _check_plain([self.name, self.checkpoint, self.tools, self.fidelity, self.quantization])
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200:
            raise ValueError(f"name must be a string, got {_short(self.name)}")
        for name, most in _MOST_DIMENSIONS.items():
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {_short(value)}")
            if value > most:
                raise ValueError(f"{name} must be at most {most:,}, got {_short(value)}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {_short(self.precision)}"
            )
        if self.inference_precision not in INFERENCE_PRECISIONS:
            raise ValueError(
                f"inference_precision must be f32 or bf16, got {_short(self.inference_precision)}"
            )
        for name, kind in (("checkpoint", dict), ("tools", dict), ("quantization", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be an object, got {_short(getattr(self, name))}")
        if not isinstance(self.fidelity, list):
            raise ValueError(f"fidelity must be a list, got {_short(self.fidelity)}")
        self._check_files()

    def _check_files(self) -> None:
        if not isinstance(self.files, dict) or len(self.files) > _MOST_FILES:
            raise ValueError(f"files must be an object of at most {_MOST_FILES} files")
        for name, entry in self.files.items():
            if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(
                    f"a file of a bundle lies directly in its folder, got {_short(name)}"
                )
            ending = next((e for e in _LARGEST if name.endswith(e)), "")
            if entry.size > (most := _LARGEST.get(ending, _LARGEST_OTHER)):
                raise ValueError(f"{name} of a bundle has at most {most:,} bytes")
        weights = (weights_file(Path(graph)).name for graph in (TEXT_ENCODER, GENERATOR))
        golden = () if self.golden is None else (GOLDEN,)
        for name in (TEXT_ENCODER, GENERATOR, *weights, MERGES, *golden):
            if name not in self.files:
                raise ValueError(f"files must list {name}")
        if self.golden is not None and self.files[GOLDEN].size != self.golden_size:
            raise ValueError(f"{GOLDEN} must have {self.golden_size:,} bytes")

    @property
    def golden_size(self) -> int:
        """Bytes of `golden.bin`: float32 sentence embeddings, then uint8 images."""
        assert self.golden is not None
        numbers = 4 * self.embedding_dim + 3 * self.image_size**2
        return len(self.golden.prompts) * numbers

    @property
    def model_hash(self) -> str:
        """Identity of the model: hash of all files that images depend on, in hexadecimal."""
        lines = "".join(
            f"{name} {entry.sha256}\n"
            for name, entry in sorted(self.files.items())
            if name != GOLDEN
        )
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def is_all_int8(self) -> bool:
        """True if no part of the generator is floating point, where sums depend on threads."""
        scheme = self.quantization.get("scheme")
        generator = scheme.get("generator") if isinstance(scheme, dict) else None
        keeps_float = isinstance(generator, dict) and bool(generator.get("keep_float"))
        return self.precision == "int8" and not keeps_float

    def signature(self, graph: str) -> Signature:
        """Inputs and output that the graph `TEXT_ENCODER` or `GENERATOR` must have."""
        sentence = Tensor("f32", (-1, self.embedding_dim))
        if graph == TEXT_ENCODER:
            return Signature({"tokens": Tensor("i64", (-1, -1))}, {"sentence": sentence})
        size = self.image_size
        return Signature(
            {"noise": Tensor("f32", (-1, self.noise_dim)), "sentence": sentence},
            {"image": Tensor("u8", (-1, size, size, 3))},
        )

    def to_json(self) -> str:
        """The text of `bundle.json`, which carries its own hash."""
        values = asdict(self)
        version = FORMAT_VERSION
        if self.golden is None:
            version = _WITHOUT_GOLDEN
            del values["golden"]
        body = {"format": FORMAT, "format_version": version, **values}
        return json.dumps({**body, "manifest_sha256": _own_hash(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the text of `to_json`.

        Raises ValueError, KeyError or TypeError if it is invalid, NewerFormatError if a later
        version of galip-edge wrote it.
        """
        try:
            body = json.loads(text, parse_constant=_constant)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        _check_plain(body)
        found = body["format_version"]
        if type(found) is not int or found < _WITHOUT_GOLDEN:
            raise ValueError(f"format_version cannot be {_short(found)}")
        if found > FORMAT_VERSION:
            raise NewerFormatError(found)
        if body.pop("manifest_sha256") != _own_hash(body):
            raise ValueError("its content does not match its own hash")
        values = {f.name: body[f.name] for f in fields(cls) if f.name != "golden"}
        golden = None if found == _WITHOUT_GOLDEN else GoldenEntry(**body["golden"])
        files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
        return cls(files=files, golden=golden, **values)


class NewerFormatError(ValueError):
    """The bundle's format requires a later version of galip-edge."""


def _constant(name: str) -> float:
    if name != "Infinity":  # the PSNR of equal images
        raise ValueError(f"{name} is not a number")
    return math.inf


def _check_plain(value: Any) -> None:
    """Check for JSON of limited depth with printable texts. Raises ValueError."""
    level = [value]
    for _ in range(_DEEPEST):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                following += item
            elif isinstance(item, str):
                if len(item) > _LONGEST_TEXT or not item.isprintable():
                    raise ValueError(f"a string has invalid characters: {_short(item)}")
            elif item is not None and not isinstance(item, (bool, int, float)):
                raise ValueError(f"unexpected value {_short(item)}")
        if not following:
            return
        level = following
    raise ValueError("it is nested too deeply")


def _short(value: Any) -> str:
    """An untrusted value, shortened for a message."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number beyond 64 bits"
    shown = ascii(value[:100] if isinstance(value, (str, bytes, list, tuple)) else value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _own_hash(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: Path, **values: Any) -> Manifest:
    """Hash the files in `folder` and write its manifest."""
    files = {
        path.name: FileEntry(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    return save_manifest(folder, Manifest(files=files, **values))


def save_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest`, whose hashes must be current; returns it as it is read."""
    text = manifest.to_json()
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Manifest.from_json(text)


def default_bundle() -> Path:
    """Folder of the embedded model. Raises BundleError if this installation has none."""
    folder = Path(__file__).with_name("default_model")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            "this installation has no embedded model: pass a bundle as --model "
            "(galip-edge convert creates one from a checkpoint)"
        )
    return folder


def is_bundle(folder: str | Path) -> bool:
    """Test for a folder with a manifest, complete or not."""
    folder = Path(folder)
    return (folder / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Read a bundle's manifest, and no other file.

    Raises BundleError if it is missing, damaged or of another format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(_not_a_folder(folder))
    path = folder / MANIFEST
    try:
        content = read_regular(path, _LARGEST_MANIFEST)
    except FileNotFoundError as error:
        raise BundleError(_not_a_bundle(folder)) from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise BundleError(_damaged(path, error.strerror)) from error
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Manifest.from_json(content.decode("utf-8"))
    except NewerFormatError as error:
        raise BundleError(
            f"the bundle in {folder} has format {error.args[0]}, this version of galip-edge reads "
            f"up to {FORMAT_VERSION}: update galip-edge"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = describe(content[:HEAD])
        raise BundleError(f"{path} is {kind}" if kind else _damaged(path, error)) from error


def _damaged(path: Path, reason: object) -> str:
    return (
        f"{path} is damaged or not a bundle's manifest ({reason}); copy or convert the bundle again"
    )


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"no bundle at {path}: no such folder"
    if is_bundle(path.parent):
        return f"{path} is a file of a bundle: pass the bundle's folder, {path.parent}"
    if path.suffix in _CHECKPOINTS:
        return (
            f"{path} is a checkpoint, not a bundle: convert it with galip-edge convert {path}, "
            "and pass the new folder"
        )
    return f"{path} is a file, not a bundle: a bundle is a folder with a {MANIFEST}"


def _not_a_bundle(folder: Path) -> str:
    checkpoints = sorted(p.name for p in folder.iterdir() if p.suffix in _CHECKPOINTS)
    if checkpoints:
        return (
            f"{folder} is not a bundle, it holds the checkpoint {checkpoints[0]}: convert it with "
            f"galip-edge convert {folder / checkpoints[0]}"
        )
    return f"{folder} is not a bundle: it has no {MANIFEST}; create one with galip-edge convert"


def verify_files(
    folder: str | Path, manifest: Manifest, verified: VerifiedFiles | None = None
) -> dict[str, FileState]:
    """Check size and SHA-256 of every file.

    Args:
        folder: of the bundle.
        manifest: of `read_manifest`.
        verified: skips files that have not changed since they were verified; None hashes all.

    Returns:
        State of each file at verification.

    Raises:
        BundleError: a file is missing, not a regular one, truncated or changed.
    """
    folder = Path(folder)
    states = {}
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            states[name] = _verified(path, entry, verified)
        except OSError as error:
            raise BundleError(
                f"cannot read {path}, a file of the bundle: {error.strerror}"
            ) from error
    return states


def _verified(path: Path, entry: FileEntry, verified: VerifiedFiles | None) -> FileState:
    with open_regular(path) as file:
        state = FileState.of(file.fileno())
        head = file.read(HEAD)
    if state.size != entry.size:
        kind = describe(head)
        reason = f"it is {kind}" if kind else "the copy is incomplete or damaged"
        raise BundleError(
            f"{path} has {state.size:,} bytes, expected {entry.size:,}: {reason}; copy or "
            "convert the bundle again"
        )
    if verified is not None and verified.has(path, state, entry.sha256):
        return state
    if sha256_of(path, entry.size) != entry.sha256 or FileState.of(path) != state:
        raise BundleError(
            f"{path} was changed or damaged: its SHA-256 differs from {MANIFEST}; "
            "copy or convert the bundle again"
        )
    if verified is not None:
        verified.add(path, state, entry.sha256)
    return state


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Its files must not change while it is in use.

    Attributes:
        folder: of the bundle.
        manifest: its content.
        states: of its files at verification.
    """

    folder: Path
    manifest: Manifest
    states: Mapping[str, FileState]

    @classmethod
    def open(cls, folder: Path, verified: VerifiedFiles | None = None) -> Bundle:
        """Read the manifest and verify every file. Raises BundleError."""
        manifest = read_manifest(folder)
        return cls(folder, manifest, verify_files(folder, manifest, verified))

    def read(self, name: str) -> bytes:
        """Read one of the smaller files.

        Raises BundleError if it changed since it was verified.
        """
        entry = self.manifest.files[name]
        try:
            content = read_regular(self.folder / name, entry.size)
        except OSError as error:
            raise BundleError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(self._changed(name))
        return content

    def check_unchanged(self, *names: str) -> None:
        """Raises BundleError if one of the files was changed since it was verified."""
        for name in names:
            try:
                unchanged = FileState.of(self.folder / name) == self.states[name]
            except OSError:
                unchanged = False
            if not unchanged:
                raise BundleError(self._changed(name))

    def _changed(self, name: str) -> str:
        return f"{self.folder / name} was changed while it was in use: load the bundle again"


def check_export_folder(folder: Path, force: bool, mark: str, kind: str) -> None:
    """Refuse to write an export over anything but an earlier one.

    Args:
        folder: folder to write.
        force: replace an earlier export.
        mark: file by which an export is recognized.
        kind: the export in words, such as "a model repository".

    Raises:
        BundleError: `folder` exists and may not be replaced.
    """
    if not folder.exists() or (force and (folder / mark).is_file()):
        return
    raise BundleError(
        f"{folder} exists and is not {kind}, so --force does not replace it"
        if force
        else f"{folder} exists: choose another folder, or pass --force"
    )

"""The bundle: a folder with everything an edge box needs to generate, and nothing executable.

bundle.json           dimensions, precision, provenance, fidelity, hash of every file
text_encoder.xml.gz   OpenVINO: tokens (B,77) int64 -> sentence embedding (B,E) float32
text_encoder.bin      its weights
generator.xml.gz      OpenVINO: noise (B,Z), sentence (B,E) -> image (B,H,W,3) uint8
generator.bin         its weights
merges.txt            the tokenizer's byte-pair merges
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.cache import Stamps
from runtime.errors import BundleError
from runtime.files import sha256_of

FORMAT = "galip-edge bundle"
FORMAT_VERSION = 2
MANIFEST = "bundle.json"
TEXT_ENCODER = "text_encoder.xml.gz"
GENERATOR = "generator.xml.gz"
MERGES = "merges.txt"

PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "int8")
INFERENCE_PRECISIONS = ("f32", "bf16")


def weights_file(graph: Path) -> Path:
    """Where the weights of the graph `NAME.xml.gz` are: `NAME.bin` beside it."""
    return graph.with_name(graph.name.removesuffix(".xml.gz") + ".bin")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 in hexadecimal of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `bundle.json` says.

    Attributes:
        name: of the model, as shown to people.
        noise_dim, embedding_dim, image_size, context_length: the model's dimensions.
        precision: how weights and activations are stored: fp32, fp16, bf16, int8, or mixed (int8
            but for a few small parts).
        inference_precision: what the parts that are not int8 are calculated in, f32 or bf16
            (f32 where the CPU has no bf16).
        files: every file but the manifest.
        checkpoint: hash and kind of the checkpoint that was converted.
        tools: versions of what converted it.
        fidelity: measured differences from PyTorch, one entry for each step of the conversion.
        quantization: counts, settings, and the operations left in floating point, with reasons;
            where the precision was chosen by measurement, what it was chosen from.
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

    def __post_init__(self) -> None:
        for name in ("noise_dim", "embedding_dim", "image_size", "context_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.inference_precision not in INFERENCE_PRECISIONS:
            raise ValueError(
                f"inference_precision must be f32 or bf16, got {self.inference_precision!r}"
            )
        for name in self.files:
            if Path(name).name != name or name.startswith("."):
                raise ValueError(f"a file of a bundle lies directly in its folder, got {name!r}")
        weights = (weights_file(Path(graph)).name for graph in (TEXT_ENCODER, GENERATOR))
        for name in (TEXT_ENCODER, GENERATOR, *weights, MERGES):
            if name not in self.files:
                raise ValueError(f"files must list {name}")

    @property
    def model_hash(self) -> str:
        """Identifies the model by its files alone, in hexadecimal."""
        lines = "".join(f"{name} {entry.sha256}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `bundle.json`, which carries its own hash."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**body, "manifest_sha256": _own_hash(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError or KeyError if the text is not a manifest as `to_json` wrote it."""
        body = json.loads(text)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        if body["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"it has format {body['format_version']}, this version reads {FORMAT_VERSION}"
            )
        if body.pop("manifest_sha256") != _own_hash(body):
            raise ValueError("its content does not match its own hash")
        values = {f.name: body[f.name] for f in fields(cls)}
        files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
        return cls(files=files, **values)


def _own_hash(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(folder: Path, **values: Any) -> Manifest:
    """Hash the files that lie in `folder` and write its manifest."""
    files = {
        path.name: FileEntry(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    return save_manifest(folder, Manifest(files=files, **values))


def save_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` of files that did not change since they were hashed."""
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def is_bundle(folder: Path) -> bool:
    """Whether `folder` looks like a bundle, whole or not."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without looking at its other files.

    Raises BundleError if it is missing, damaged or of another format version.
    """
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: there is no such folder")
    try:
        return Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; make one with galip-edge convert"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BundleError(
            f"{folder / MANIFEST} is damaged or not a bundle's manifest ({error}); copy or "
            "convert the bundle again"
        ) from error


def verify_files(folder: Path, manifest: Manifest, stamps: Stamps | None = None) -> None:
    """Check size and SHA-256 of every file.

    Args:
        folder: of the bundle.
        manifest: what `read_manifest` returned for it.
        stamps: remembers which files were verified; one whose size, time and inode have not
            changed since is not hashed again. None hashes all.

    Raises:
        BundleError: a file is missing, truncated or changed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                raise BundleError(
                    f"{path} has {size:,} bytes where {entry.size:,} are expected: the copy is "
                    "incomplete or damaged; copy or convert the bundle again"
                )
            if stamps is not None and stamps.has(path, entry.sha256):
                continue
            if sha256_of(path) != entry.sha256:
                raise BundleError(
                    f"{path} was changed or damaged: its SHA-256 is not the one in {MANIFEST}; "
                    "copy or convert the bundle again"
                )
        except OSError as error:
            raise BundleError(
                f"cannot read {path}, which belongs to the bundle: {error.strerror}"
            ) from error
        if stamps is not None:
            stamps.add(path, entry.sha256)

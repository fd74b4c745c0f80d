import json
import os
from dataclasses import replace

import pytest

from runtime.bundle import MANIFEST, Manifest, read_manifest, verify_files
from runtime.compiled_cache import VerifiedFiles
from runtime.errors import BundleError

NAMES = [
    "text_encoder.xml.gz",
    "text_encoder.bin",
    "generator.xml.gz",
    "generator.bin",
    "merges.txt",
    "golden.bin",
]


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_manifest_round_trips(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert sorted(manifest.files) == sorted(NAMES)
    verify_files(tiny_bundle, manifest)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("remembered", [False, True])
def test_a_flipped_byte_is_found(name, remembered, tiny_bundle, tmp_path):
    verified = VerifiedFiles(tmp_path / "cache") if remembered else None
    manifest = read_manifest(tiny_bundle)
    verify_files(tiny_bundle, manifest, verified)
    flip(tiny_bundle / name, (tiny_bundle / name).stat().st_size // 2)
    with pytest.raises(BundleError, match=f"{name} was changed or damaged"):
        verify_files(tiny_bundle, manifest, verified)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_found(name, tiny_bundle):
    os.truncate(tiny_bundle / name, (tiny_bundle / name).stat().st_size - 1)
    with pytest.raises(BundleError, match=rf"{name} has [\d,]+ bytes, expected [\d,]+"):
        verify_files(tiny_bundle, read_manifest(tiny_bundle))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_found(name, tiny_bundle):
    (tiny_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"cannot read .*{name}.*No such file"):
        verify_files(tiny_bundle, read_manifest(tiny_bundle))


def test_every_flipped_byte_of_the_manifest_is_found(tiny_bundle):
    path = tiny_bundle / MANIFEST
    good = path.read_bytes()
    manifest = read_manifest(tiny_bundle)
    for position in range(0, len(good), 37):
        flip(path, position)
        try:
            assert read_manifest(tiny_bundle) == manifest  # white space may change
        except BundleError:
            pass
        path.write_bytes(good)
    # A number that is still a number is caught by the manifest's own hash.
    path.write_text(path.read_text().replace('"noise_dim": 16', '"noise_dim": 17'))
    with pytest.raises(BundleError, match="does not match its own hash"):
        read_manifest(tiny_bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("[]", "damaged"),
        ("{}", 'damaged or not .*"format" is not'),
        (
            '{"format": "galip-edge bundle", "format_version": 9}',
            "has format 9, this version of galip-edge reads up to 3: update galip-edge",
        ),
        ("\udcff", "damaged"),
    ],
)
def test_other_manifests_are_refused(text, message, tiny_bundle):
    (tiny_bundle / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=message):
        read_manifest(tiny_bundle)


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        read_manifest(tmp_path)


def test_files_outside_the_folder_are_refused(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    entry = manifest.files["merges.txt"]
    with pytest.raises(ValueError, match=r"got '\.\./secret'"):
        replace(manifest, files={**manifest.files, "../secret": entry})


def test_model_hash_depends_on_files_alone(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert replace(manifest, name="other").model_hash == manifest.model_hash
    other = replace(manifest.files["merges.txt"], sha256="0" * 64)
    changed = replace(manifest, files={**manifest.files, "merges.txt": other})
    assert changed.model_hash != manifest.model_hash


def test_remembered_hashes_save_hashing_and_survive_damage(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.compiled_cache._TICK_NS", 0)  # the files were copied just now
    manifest, verified = read_manifest(tiny_bundle), VerifiedFiles(tmp_path / "cache")
    verify_files(tiny_bundle, manifest, verified)

    def hashing(path, size):
        raise AssertionError(f"hashed {path} again")

    with monkeypatch.context() as patch:
        patch.setattr("runtime.bundle.sha256_of", hashing)
        verify_files(tiny_bundle, manifest, verified)
    for record in (tmp_path / "cache" / "verified").iterdir():
        record.write_text("{")
    verify_files(tiny_bundle, manifest, verified)


def test_fidelity_and_provenance_are_recorded(tiny_bundle):
    body = json.loads((tiny_bundle / MANIFEST).read_text())
    assert [step["step"] for step in body["fidelity"]] == ["onnx", "openvino fp32", "bundle int8"]
    assert len(body["checkpoint"]["sha256"]) == 64
    assert {"torch", "onnx", "openvino", "galip-edge"} <= body["tools"].keys()

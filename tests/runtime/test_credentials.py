"""Images signed by C2PA, read back by its own reader."""

import base64
import io
import pickle

import numpy as np
import pytest

c2pa = pytest.importorskip("c2pa")

from certificates import check_signed, pem_of, write_pair  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa  # noqa: E402
from PIL import Image  # noqa: E402

from runtime.animation import save_animation  # noqa: E402
from runtime.credentials import MEDIA_TYPES, Signer  # noqa: E402
from runtime.errors import GalipEdgeError  # noqa: E402
from runtime.images import (  # noqa: E402
    ImageFormat,
    ImageMetadata,
    read_metadata,
    save_png,
)

METADATA = ImageMetadata("a bird", 0, 0, "m", "ab" * 32)
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_images_are_signed_and_keep_recipe_and_pixels(name, tmp_path):
    signer = Signer.from_files(*write_pair(tmp_path))
    signer = pickle.loads(pickle.dumps(signer))  # as workers of a job get it
    content = ImageFormat(name, signer=signer).encode(IMAGE, METADATA)
    check_signed(content, f"image/{name}")
    (tmp_path / f"x.{name}").write_bytes(content)
    assert read_metadata(tmp_path / f"x.{name}") == METADATA
    plain = ImageFormat(name).encode(IMAGE, METADATA)
    pixels = [np.asarray(Image.open(io.BytesIO(it))) for it in (content, plain)]
    np.testing.assert_array_equal(*pixels)
    assert ImageFormat(name, signer=signer) == ImageFormat(name)
    with pytest.raises(AssertionError):
        check_signed(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:], f"image/{name}")


@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4"])
def test_animations_are_signed(ending, tmp_path):
    signer = Signer.from_files(*write_pair(tmp_path))
    save_animation([IMAGE, IMAGE[::-1]], tmp_path / f"x{ending}", signer=signer)
    check_signed((tmp_path / f"x{ending}").read_bytes(), MEDIA_TYPES[ending])


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_kinds_of_keys(key, tmp_path):
    signer = Signer.from_files(*write_pair(tmp_path, key))
    save_png(IMAGE, tmp_path / "x.png", METADATA, signer)
    check_signed((tmp_path / "x.png").read_bytes(), "image/png")


def test_what_cannot_sign_is_one_sentence(tmp_path):
    key, chain = write_pair(tmp_path)
    other = tmp_path / "other.pem"

    def message(first, second):
        with pytest.raises(GalipEdgeError) as caught:
            Signer.from_files(first, second)
        return str(caught.value)

    assert "cannot read" in message(tmp_path / "none.pem", chain)
    assert "is not a PEM private key" in message(chain, chain)
    assert "C2PA refused to sign" in message(key, key)
    other.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1())))
    assert "that belongs to the key" in message(other, chain)
    other.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    assert "encrypted" in message(other, chain)
    other.write_bytes(pem_of(dsa.generate_private_key(2048)))
    assert "does not support" in message(other, chain)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(GalipEdgeError, match=r"pip install .*\[c2pa\]"):
        Signer.from_files(*write_pair(tmp_path))


@pytest.mark.slow
def test_the_server_signs_what_it_delivers(tmp_path):
    from starlette.testclient import TestClient

    from runtime import Pipeline
    from runtime.bundle import default_bundle
    from runtime.server.app import create_app
    from runtime.server.options import ServerOptions

    options = ServerOptions(signer=Signer.from_files(*write_pair(tmp_path)))
    app = create_app(Pipeline.from_bundle(default_bundle()), options)
    with TestClient(app, base_url="http://localhost") as client:
        body = {"prompt": "a bird", "response_format": "b64_json", "output_format": "webp"}
        (item,) = client.post("/v1/images/generations", json=body).json()["data"]
        check_signed(base64.b64decode(item["b64_json"]), "image/webp")
        (item,) = client.post("/v1/images/generations", json={"prompt": "a"}).json()["data"]
        check_signed(client.get(item["url"]).content, "image/png")
        found = client.post("/sdapi/v1/txt2img", json={"prompt": "a"}).json()
        check_signed(base64.b64decode(found["images"][0]), "image/png")
        between = {"start": {"prompt": "a"}, "end": {"prompt": "b"}, "noise_share": 0.5}
        content = client.post("/v1/images/interpolations", json=between).content
        check_signed(content, "image/png")

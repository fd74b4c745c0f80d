"""Content credentials: images signed by C2PA with the user's key (extra `c2pa`).

The manifest states that a trained model generated the file; the certificates identify the signer.
Signatures contain the time and random numbers, so signed files differ from run to run, but their
pixels do not. No time stamp is requested: nothing is sent anywhere.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runtime.errors import GalipEdgeError, install_hint
from runtime.files import read_regular
from runtime.recipes import TRAINED_ALGORITHMIC_MEDIA
from runtime.version import __version__

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
}
_LARGEST_PEM = 1024**2

# C2PA's names of signature algorithms, by the type of the key.
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

# One white pixel, to test a key with.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)


@dataclass(frozen=True)
class Signer:
    """Signs files; may be sent to other processes.

    Attributes:
        algorithm: C2PA's name of the signature algorithm.
        key: private key as PEM.
        certificates: its certificate and those of its issuers as PEM.
    """

    algorithm: str
    key: bytes = field(repr=False)
    certificates: bytes = field(repr=False)

    @classmethod
    def from_files(cls, key: Path, certificates: Path) -> Signer:
        """A signer from PEM files, tested on an image.

        Raises:
            GalipEdgeError: c2pa-python is not installed, or the files cannot sign.
        """
        _require_c2pa()
        pem = _read(key), _read(certificates)
        signer = cls(_algorithm(pem[0], key), *pem)
        try:
            signer.sign(_PIXEL, "image/png")
        except GalipEdgeError as error:
            raise GalipEdgeError(
                f"cannot sign with {key} and {certificates}: {error}; C2PA needs a certificate for "
                "documents or e-mail, followed by its issuer's, that belongs to the key"
            ) from error
        return signer

    def sign(self, content: bytes, media_type: str) -> bytes:
        """The file with its credentials.

        Args:
            content: a whole file.
            media_type: one of the values of `MEDIA_TYPES`.

        Raises:
            GalipEdgeError: c2pa-python is not installed, or refuses.
        """
        c2pa = _require_c2pa()
        signed = io.BytesIO()
        info = c2pa.C2paSignerInfo(
            self.algorithm.encode(), self.certificates, self.key, ta_url=None
        )
        try:
            with (
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(_manifest(), context=_context()) as builder,
            ):
                builder.sign(signer, media_type, io.BytesIO(content), signed)
        except c2pa.C2paError as error:
            raise GalipEdgeError(f"C2PA refused to sign ({str(error).strip()})") from error
        return signed.getvalue()


def _manifest() -> str:
    agent = {"name": "galip-edge", "version": __version__}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
        "softwareAgent": agent,
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return json.dumps({"claim_generator_info": [agent], "assertions": [actions]})


def _require_c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise GalipEdgeError(
            f"signing needs c2pa-python, which is not installed: {install_hint('c2pa')}"
        ) from error
    return c2pa


@cache
def _context() -> Any:
    # A thumbnail would be larger than many of our images.
    settings = {"builder": {"thumbnail": {"enabled": False}}}
    return _require_c2pa().Context.from_dict(settings)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _LARGEST_PEM)
    except OSError as error:
        raise GalipEdgeError(f"cannot read {path}: {error.strerror or error}") from error


def _algorithm(pem: bytes, path: Path) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise GalipEdgeError(f"{path} is encrypted: use an unencrypted PEM key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise GalipEdgeError(f"{path} is not a PEM private key") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise GalipEdgeError(
        f"{path} has a key type that C2PA does not support: use P-256, RSA or Ed25519"
    )

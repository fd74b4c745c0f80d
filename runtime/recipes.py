"""Recipes inside of image files, in the forms that other programs read.

PNG          text chunks `parameters` (A1111's form) and `galip-edge` (JSON), XMP
JPEG, WebP   EXIF UserComment (A1111's form), XMP
GIF, MP4     XMP

The XMP packet marks the image as made by a trained model (IPTC DigitalSourceType), and has the
prompt as description and the recipe as JSON. Nothing in it depends on the time or the machine.
"""

from __future__ import annotations

import html
import io
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import GalipEdgeError
from runtime.files import read_regular

# https://cv.iptc.org/newscodes/digitalsourcetype/
TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Keys of the text chunks of a PNG.
PARAMETERS, JSON_CHUNK = "parameters", "galip-edge"

# Largest file that is read for its recipe; an image of 2048x2048 pixels has at most 13 MB.
LARGEST_FILE = 64 * 1024**2
_LARGEST_PACKET = 1024**2

_SOFTWARE, _EXIF_IFD, _USER_COMMENT = 0x0131, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OURS = "urn:galip-edge:recipe:1.0:"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="{_IPTC}" '
    f'xmlns:galip="{_OURS}">'
    f"<Iptc4xmpExt:DigitalSourceType>{TRAINED_ALGORITHMIC_MEDIA}</Iptc4xmpExt:DigitalSourceType>"
    "{properties}</rdf:Description></rdf:RDF></x:xmpmeta>\n"
    '<?xpacket end="w"?>'
)
# Characters that XML cannot express.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# MP4 box of an XMP packet (XMP specification, part 3).
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
# GIF extension of an XMP packet, and the bytes that end it.
_XMP_EXTENSION = b"\x21\xff\x0bXMP DataXMP"
_XMP_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\0"


class Recipe(Protocol):
    """Inputs from which a file was generated."""

    @property
    def version(self) -> str:
        """Version of galip-edge that made it."""

    @property
    def caption(self) -> str:
        """The prompt, or all of them in lines."""

    def parameters(self, size: tuple[int, int]) -> str:
        """A1111's form, for an image of this width and height."""

    def recorded(self) -> dict[str, Any]:
        """Values for JSON."""


def xmp_packet(recipe: Recipe | None) -> bytes:
    """The XMP packet of an image; without a recipe, only the mark."""
    properties = "" if recipe is None else _properties(recipe)
    return _PACKET.format(properties=properties).encode()


def _properties(recipe: Recipe) -> str:
    stored = json.dumps(recipe.recorded(), ensure_ascii=False)
    stored = _NO_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", stored)
    caption = _escaped(_NO_XML.sub("\ufffd", recipe.caption))
    return (
        f"<xmp:CreatorTool>galip-edge {_escaped(recipe.version)}</xmp:CreatorTool>"
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{caption}</rdf:li></rdf:Alt>'
        f"</dc:description><galip:recipe>{_escaped(stored)}</galip:recipe>"
    )


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def save_options(name: str, size: tuple[int, int], recipe: Recipe | None) -> dict[str, Any]:
    """Arguments of `PIL.Image.Image.save` that store a recipe.

    Args:
        name: png, jpeg or webp.
        size: width and height of the image.
        recipe: None stores the mark alone.
    """
    packet = xmp_packet(recipe)
    if name == "png":
        info = PngInfo()
        if recipe is not None:
            info.add_text(PARAMETERS, recipe.parameters(size))
            info.add_text(JSON_CHUNK, json.dumps(recipe.recorded()))
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        return {"pnginfo": info}
    if recipe is None:
        return {"xmp": packet}
    exif = Image.Exif()
    exif[_SOFTWARE] = f"galip-edge {recipe.version}"
    comment = recipe.parameters(size).encode("utf-16-be", "surrogatepass")
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + comment
    return {"xmp": packet, "exif": exif.tobytes()}


def with_packet(content: bytes, packet: bytes) -> bytes:
    """A GIF or MP4 with an XMP packet, which Pillow and PyAV cannot write."""
    if content.startswith(b"GIF"):
        return content[:-1] + _XMP_EXTENSION + packet + _XMP_TRAILER + content[-1:]
    box = struct.pack(">I4s16s", 24 + len(packet), b"uuid", _XMP_BOX)
    return content + box + packet


@dataclass(frozen=True)
class StoredRecipe:
    """Recipe that an image file contains. It is untrusted.

    Attributes:
        format: PNG, JPEG, WEBP, GIF or MP4.
        size: width and height in pixels; None of an MP4.
        parameters: in A1111's form.
        recorded: our recipe's JSON object.
        source_type: IPTC DigitalSourceType.
    """

    format: str
    size: tuple[int, int] | None
    parameters: str | None = None
    recorded: dict[str, Any] | None = None
    source_type: str | None = None


def read_recipe(path: Path) -> StoredRecipe:
    """The recipe in an image file of at most `LARGEST_FILE` bytes.

    Raises:
        GalipEdgeError: the file cannot be read, or is no image of a known format.
    """
    try:
        content = read_regular(path, LARGEST_FILE)
    except OSError as error:
        raise GalipEdgeError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return recipe_in(content)
    except ValueError as error:
        raise GalipEdgeError(f"cannot read {path}: {error}") from error


def recipe_in(content: bytes) -> StoredRecipe:
    """The recipe in an image file's content; pixels are not decoded.

    Raises:
        ValueError: it is no PNG, JPEG, WebP, GIF or MP4, or a damaged one.
    """
    if content[4:8] == b"ftyp":
        return StoredRecipe("MP4", None, None, *_read_packet(content.rpartition(_XMP_BOX)[2]))
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            name, size, info = str(image.format), image.size, dict(image.info)
            comment = None
            if name in ("JPEG", "WEBP"):
                comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception as error:
        raise ValueError("not a PNG, JPEG, WebP, GIF or MP4, or damaged") from error
    parameters = info.get(PARAMETERS) if name == "PNG" else _user_comment(comment)
    packet = info.get("xmp", b"")
    if name == "GIF":
        packet = content.rpartition(_XMP_EXTENSION)[2].partition(_XMP_TRAILER)[0]
    recorded, source_type = _read_packet(packet if isinstance(packet, bytes) else b"")
    if name == "PNG" and isinstance(text := info.get(JSON_CHUNK), str):
        recorded = _json_object(text) or recorded
    parameters = str(parameters) if isinstance(parameters, str) and parameters else None
    return StoredRecipe(name, size, parameters, recorded, source_type)


def _user_comment(value: object) -> str | None:
    if not isinstance(value, bytes) or not value.startswith(_UNICODE):
        return None
    return value[len(_UNICODE) :].decode("utf-16-be", "replace")


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_packet(packet: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """Our recipe and the IPTC source type, as elements or as attributes."""
    text = packet[:_LARGEST_PACKET].decode("utf-8", "ignore").strip("\0\ufeff \r\n\t")
    text = text[: text.rfind(">") + 1]
    if not text or "<!" in text:  # document types and their entities
        return None, None
    from xml.etree import ElementTree  # writing needs none of it

    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None, None
    found: dict[str, str] = {}
    for element in root.iter():
        found[element.tag] = element.text or ""
        found.update(element.attrib)
    return _json_object(found.get(f"{{{_OURS}}}recipe", "")), found.get(
        f"{{{_IPTC}}}DigitalSourceType"
    )

"""Recipes in files, as this program and others read them."""

import io
import json
import shlex
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.animation import save_animation
from runtime.errors import GalipEdgeError
from runtime.images import ImageFormat, ImageMetadata, png_file
from runtime.latent import Keyframe
from runtime.recipes import TRAINED_ALGORITHMIC_MEDIA, read_recipe, recipe_in, xmp_packet
from runtime.reproduce import SeriesRecipe, recipe_of, reproduction, shown

PLAIN = ImageMetadata("a red bird", 42, 3, "coco", "ab" * 32)
ODD = ImageMetadata(
    "<b> & \"q\" 'x' 🐦\n\x07\uffff ]]> \\u0041",
    2**63 - 1,
    0,
    "m",
    "cd" * 32,
    psi=0.5,
    end=Keyframe("à, b: c"),
    sentence_share=1 / 3,
    noise_share=1.0,
)
# As long as recipes can be.
LONG = replace(ODD, prompt="🐦" * 2000, end=Keyframe("🦆" * 2000, 2**63 - 1))
SERIES = SeriesRecipe(
    "explore", ("a bird",), (3,), "m", "ab" * 32, {"n": 4, "columns": 2, "psi": 0.5}
)
FORMATS = ("png", "jpeg", "webp")


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("recipe", [PLAIN, ODD, LONG], ids=["plain", "odd", "long"])
def test_each_format_keeps_the_whole_recipe(recipe, name):
    content = ImageFormat(name).encode(image(), recipe)
    stored = recipe_in(content)
    assert recipe_of(stored.recorded) == recipe
    assert stored.parameters == recipe.parameters((24, 16))
    assert stored.source_type == TRAINED_ALGORITHMIC_MEDIA
    assert stored.size == (24, 16)
    assert ImageFormat(name).encode(image(), recipe) == content
    plain = io.BytesIO()
    settings = {} if name == "png" else {"quality": 95}
    Image.fromarray(image()).save(plain, name, **settings)
    pixels = [np.asarray(Image.open(io.BytesIO(it))) for it in (content, plain.getvalue())]
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4"])
def test_animations_keep_theirs(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    options = {"steps": 2, "loop": True, "fps": 23.976, "psi": 1.0}
    recipe = SeriesRecipe("interpolate", ("a", "b & c"), (1, 2), "m", "ab" * 32, options)
    save_animation([image(i) for i in range(3)], path, recipe=recipe)
    stored = read_recipe(path)
    assert recipe_of(stored.recorded) == recipe
    assert stored.source_type == TRAINED_ALGORITHMIC_MEDIA
    if ending != ".mp4":
        with Image.open(path) as opened:
            assert opened.n_frames == 3
    else:
        av = pytest.importorskip("av")
        with av.open(str(path)) as video:
            assert len(list(video.decode(video=0))) == 3


def test_sheets_and_images_without_a_recipe_are_marked_too():
    stored = recipe_in(png_file(image(), SERIES))
    assert recipe_of(stored.recorded) == SERIES
    assert 'Command: "galip-edge explore' in stored.parameters
    bare = recipe_in(png_file(image(), None))
    assert bare.source_type == TRAINED_ALGORITHMIC_MEDIA
    assert bare.recorded is bare.parameters is None


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
@pytest.mark.parametrize("name", FORMATS)
def test_exiftool_reads_it(name, tmp_path):
    path = tmp_path / f"x.{name}"
    path.write_bytes(ImageFormat(name).encode(image(), PLAIN))
    done = subprocess.run(["exiftool", "-j", "-G0", str(path)], capture_output=True, check=True)
    (found,) = json.loads(done.stdout)
    assert found["XMP:DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    assert found["XMP:Description"] == "a red bird"
    recipe = found["XMP:Recipe"]
    assert (json.loads(recipe) if isinstance(recipe, str) else recipe) == PLAIN.recorded()
    parameters = found["PNG:Parameters" if name == "png" else "EXIF:UserComment"]
    assert "Seed: 42, Image index: 3" in parameters
    assert "ExifTool:Warning" not in found


@pytest.mark.skipif(not shutil.which("identify"), reason="ImageMagick is not installed")
@pytest.mark.parametrize("name", FORMATS)
def test_imagemagick_reads_it(name, tmp_path):
    path = tmp_path / f"x.{name}"
    path.write_bytes(ImageFormat(name).encode(image(), PLAIN))

    def output(*command) -> bytes:
        return subprocess.run(command, capture_output=True, check=True).stdout

    text = output("identify", "-verbose", path).decode("utf-8", "replace")
    if name == "png":
        assert "Seed: 42, Image index: 3" in text
    else:  # version 6 parses no EXIF of WebP, but has it as a profile
        profile = output("convert", path, "exif:-")
        assert "Seed: 42, Image index: 3".encode("utf-16-be") in profile
    if name == "jpeg":  # version 6 has no XMP of PNG, and takes that of every WebP for damaged
        assert TRAINED_ALGORITHMIC_MEDIA in text


def test_a1111s_reader_finds_the_parameters():
    """UserComment as piexif's helper reads it: a character code of 8 bytes, then UTF-16, big."""
    for name in ("jpeg", "webp"):
        with Image.open(io.BytesIO(ImageFormat(name).encode(image(), PLAIN))) as opened:
            comment = opened.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        assert comment[8:].decode("utf-16-be") == PLAIN.parameters((24, 16))


def foreign(packet: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "webp", xmp=packet)
    return buffer.getvalue()


def test_xmp_that_another_program_rewrote():
    packet = xmp_packet(PLAIN).decode()
    recipe = packet.partition("<galip:recipe>")[2].partition("</galip:recipe>")[0]
    as_attribute = packet.replace(f"<galip:recipe>{recipe}</galip:recipe>", "").replace(
        'rdf:about=""', f'rdf:about="" galip:recipe="{recipe.replace(chr(34), "&quot;")}"'
    )
    assert recipe_of(recipe_in(foreign(as_attribute.encode())).recorded) == PLAIN


BOMB = b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>]><x>" + b"&a;" * 1000 + b"</x>"


@pytest.mark.parametrize(
    "packet",
    [b"", b"<", b"\xff\xfe<\0", BOMB, b"<x>" * 300_000, xmp_packet(PLAIN)[:-60], b"<a/>" * 9],
    ids=["empty", "open", "utf16", "entities", "deep", "cut", "many roots"],
)
@pytest.mark.slow
def test_odd_xmp_is_no_recipe(packet):
    assert recipe_in(foreign(packet)).recorded is None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
PACKED_BOMB = chunk(b"zTXt", b"galip-edge\0\0" + zlib.compress(b"a" * 100_000_000))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        HEADER,
        HEADER + PACKED_BOMB + chunk(b"IDAT", b""),
        HEADER[:20],
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0MM\0*",
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"GIF89a" + b"\xff" * 7,
        b"BM" + b"\0" * 100,
    ],
)
def test_odd_files_are_one_sentence(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(GalipEdgeError, match="not a PNG, JPEG, WebP, GIF or MP4, or damaged"):
        read_recipe(tmp_path / "x.png")


def test_files_are_read_within_bounds(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(100 * 1024**2)
    with pytest.raises(GalipEdgeError, match="larger than"):
        read_recipe(tmp_path / "x.png")
    with pytest.raises(GalipEdgeError, match="cannot read /dev/zero"):
        from pathlib import Path

        read_recipe(Path("/dev/zero"))


SEVERAL = SERIES.recorded()


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"prompt": 5, "seed": 0, "index": 0, "model": "m", "model_hash": "h"},
        PLAIN.recorded() | {"seed": -1},
        PLAIN.recorded() | {"seed": "1"},
        PLAIN.recorded() | {"psi": float("nan")},
        PLAIN.recorded() | {"model": ["m"]},
        PLAIN.recorded() | {"model": "m" * 10_000},
        PLAIN.recorded() | {"other": 1},
        PLAIN.recorded() | {"end": {"prompt": 1}},
        SEVERAL | {"command": "convert"},
        SEVERAL | {"command": ["explore"]},
        SEVERAL | {"prompts": []},
        SEVERAL | {"prompts": "text", "seeds": 5},
        SEVERAL | {"seeds": [True]},
        SEVERAL | {"options": {"out": "/etc/passwd"}},
        SEVERAL | {"options": {"n": "; rm -rf /"}},
        SEVERAL | {"options": 5},
        SEVERAL | {"version": 7},
        # Integers that no float can hold.
        PLAIN.recorded() | {"psi": 10**400},
        SEVERAL | {"options": {"psi": 10**400}},
        SEVERAL | {"command": "generate", "options": {"grid": 10**400}},
        SEVERAL | {"command": "interpolate", "options": {"fps": 10**400}},
        # What the command would refuse.
        SEVERAL | {"command": "interpolate", "options": {"fps": -1}},
    ],
)
def test_recipes_of_strangers_are_checked(recorded):
    with pytest.raises(ValueError):
        recipe_of(recorded)


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        (PLAIN, "galip-edge generate --seed 42 -n 4 -- 'a red bird'"),
        (
            replace(PLAIN, index=0, psi=0.5),
            "galip-edge generate --seed 42 --psi 0.5 -- 'a red bird'",
        ),
        (replace(PLAIN, index=0, prompt="-n"), "galip-edge generate --seed 42 -- -n"),
        (replace(PLAIN, prompt="-"), None),
        (ODD, None),
        (
            replace(PLAIN, index=0, end=Keyframe("b", 7), sentence_share=0.5, noise_share=0.5),
            "galip-edge interpolate --seed 42 --seed 7 --steps 2 --out frames -- 'a red bird' b",
        ),
        (SERIES, "galip-edge explore --seed 3 -n 4 --columns 2 --psi 0.5 -- 'a bird'"),
    ],
)
def test_commands(recipe, command):
    found = reproduction(recipe)
    assert (found.arguments and shown(found.arguments)) == command
    assert found.note or command


@pytest.mark.parametrize("prompt", ["a 'b' $HOME", "a\nb", "\x1b[31m\x07 \\'", "鳥 🐦", "a\u202eb"])
def test_a_shell_reads_the_prompt(prompt):
    command = shown(["printf", "%s", prompt])
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode() == prompt
    if prompt.isprintable():
        assert shlex.split(command)[2] == prompt


def test_a_foreign_png_with_odd_texts():
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20")
    info.add_text("galip-edge", "[" * 100_000)
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "png", pnginfo=info)
    stored = recipe_in(buffer.getvalue())
    assert (stored.parameters, stored.recorded) == ("a cat\nSteps: 20", None)

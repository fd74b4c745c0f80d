"""Icon sets in Iconify's format as a folder of captioned images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galip_edge.cli import main
from galip_edge.data import DataConfig, DataError, check
from galip_edge.data.icons import captions_of, export_icons, read_icon_set
from runtime.errors import GalipEdgeError

pytest.importorskip("resvg_py")

RED = '<rect width="20" height="20" fill="#f00"/>'


def package(folder: Path, prefix: str, bodies: dict[str, str], **files: object) -> Path:
    """An npm package in Iconify's format, of 20 by 20 units."""
    root = folder / prefix
    root.mkdir(parents=True)
    icons = {name: {"body": body} for name, body in bodies.items()}
    info = {
        "prefix": prefix,
        "name": prefix.title(),
        "author": {"name": "Ada"},
        "license": {"title": "MIT", "spdx": "MIT", "url": "https://example.com/licence"},
    }
    content = {
        "icons": {"prefix": prefix, "icons": icons, "width": 20, "height": 20},
        "info": info,
        "package": {"version": "1.2.3"},
        **files,
    }
    for name, value in content.items():
        (root / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return root


@pytest.fixture
def noto(tmp_path: Path) -> Path:
    return package(
        tmp_path,
        "noto",
        {"red-apple": RED, "tiger": RED, "tram-car": RED},
        chars={"1f34e": "red-apple", "1f405-fe0f": "tiger"},
        metadata={"categories": {"Food & Drink": ["red-apple"], "Animals": ["tiger"]}},
    )


@pytest.fixture
def emojibase(tmp_path: Path) -> Path:
    folder = tmp_path / "emojibase-data"
    (folder / "en").mkdir(parents=True)
    (folder / "meta").mkdir()
    data = [
        {"hexcode": "1F34E", "subgroup": 42, "tags": ["red", "fruit", "ripe"]},
        {"hexcode": "1F405", "tags": ["zoo"]},
    ]
    (folder / "en/data.json").write_text(json.dumps(data))
    (folder / "meta/groups.json").write_text(json.dumps({"subgroups": {"42": "food-fruit"}}))
    return folder


def test_icons_become_a_folder_that_can_be_trained_on(noto, emojibase, tmp_path):
    out = tmp_path / "out"
    seen = []
    count = export_icons(
        [noto], out, size=24, keywords=emojibase, progress=lambda *n: seen.append(n)
    )
    assert count == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    report = check(DataConfig("folder", str(out), image_size=24, augment=False))
    assert report.ok
    assert (report.images, report.captions) == (3, 3 + 3 + 2)
    assert (out / "noto/red-apple.txt").read_text().splitlines() == [
        "red apple", "red apple, Noto", "red apple, food, fruit, ripe, Noto",
    ]  # fmt: skip
    assert "zoo" in (out / "noto/tiger.txt").read_text()
    sources = (out / "SOURCES.md").read_text()
    assert all(text in sources for text in ("1.2.3", "Ada", "MIT", "https://example.com/licence"))


def test_an_icon_is_drawn_in_the_middle_of_white(noto, tmp_path):
    export_icons([noto], tmp_path / "out", size=54, categories=["Animals"])
    with Image.open(tmp_path / "out/noto/tiger.png") as image:
        assert (image.mode, image.size) == ("RGB", (54, 54))
        pixels = np.asarray(image)
    assert (pixels[2:-2, 2:-2] == (255, 0, 0)).all()
    assert (pixels[[0, 1, -2, -1]] == 255).all()
    assert (pixels[:, [0, 1, -2, -1]] == 255).all()


def test_a_wide_icon_keeps_its_proportions(tmp_path):
    wide = {"body": '<rect width="40" height="20" fill="#00f"/>', "width": 40, "height": 20}
    path = package(tmp_path, "flags", {}, icons={"prefix": "flags", "icons": {"blue": wide}})
    export_icons([path], tmp_path / "out", size=54)
    with Image.open(tmp_path / "out/flags/blue.png") as image:
        blue = np.asarray(image)[:, :, 0] < 128
    assert blue.any(axis=0).sum() == 50
    assert abs(blue.any(axis=1).sum() - 25) <= 1


def test_categories_serve_sets_that_have_none(noto, tmp_path):
    other = package(tmp_path, "plain", {"tiger": RED, "red-apple": RED})
    assert export_icons([noto, other], tmp_path / "out", size=8, categories=["food-drink"]) == 2
    assert sorted(p.parent.name for p in (tmp_path / "out").glob("*/*.png")) == ["noto", "plain"]


def test_the_plainest_caption_comes_first():
    assert captions_of("red-apple", "Noto", []) == ["red apple", "red apple, Noto"]
    long = captions_of("cat", "Noto", ["cat", "pet", "pet", *map(str, range(20))])[-1]
    assert long == "cat, pet, 0, 1, 2, 3, 4, 5, 6, Noto"


def test_an_unknown_category_lists_the_known_ones(noto, tmp_path):
    with pytest.raises(DataError, match=r"'Birds'.*Animals, Food & Drink"):
        export_icons([noto], tmp_path / "out", size=8, categories=["Birds"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_not_touched(noto, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(GalipEdgeError, match="out exists"):
        export_icons([noto], tmp_path / "out", size=8)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "A"])
def test_names_that_are_no_file_names_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="plain name"):
        read_icon_set(package(tmp_path, "set", {name: RED}))
    info = {"prefix": name, "name": "Set"}
    with pytest.raises(DataError, match="plain name"):
        read_icon_set(package(tmp_path, "other", {"tiger": RED}, info=info))


def test_what_is_no_icon_set_is_named(noto, tmp_path):
    with pytest.raises(DataError, match="no such file.*npm package"):
        read_icon_set(tmp_path / "absent")
    (noto / "icons.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="not an icon set in Iconify's format"):
        read_icon_set(noto)
    (noto / "icons.json").write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        read_icon_set(noto)


def test_a_drawing_that_is_no_svg_is_named(tmp_path):
    path = package(tmp_path, "set", {"tiger": "<rect"})
    with pytest.raises(DataError, match="icon tiger"):
        export_icons([path], tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()


def test_the_same_set_twice_is_refused(noto, tmp_path):
    with pytest.raises(DataError, match="duplicate icon set noto"):
        export_icons([noto, noto], tmp_path / "out", size=8)


def test_the_command(noto, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["data", "icons", str(noto), "--out", str(tmp_path / "out"), "--size", "8"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"3 images in {tmp_path / 'out'}"

"""Icon sets from npm as a folder of captioned images: `galip-edge data icons`.

Iconify publishes more than 200 icon sets as npm packages, all in one format: `icons.json` holds SVG
bodies by name, `info.json` the licence, `metadata.json` categories, and `chars.json` the code point
of each emoji.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from galip_edge.data.captions import tidy
from galip_edge.data.errors import DataError, require
from runtime.errors import GalipEdgeError
from runtime.files import atomic_folder

# Called with the number of finished icons, and the total.
Progress = Callable[[int, int], None]

# Names become file names.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SIZE_LIMIT = 2048

# Emoji may have more than thirty keywords.
_KEYWORDS = 8


@dataclass(frozen=True)
class Icon:
    """One icon of a set.

    Attributes:
        name: words joined by hyphens, such as `red-apple`.
        svg: body of its SVG document.
        view_box: left, top, width and height, in the units of `svg`.
        character: code points in hexadecimal, such as `1f34e`; empty if the set has none.
    """

    name: str
    svg: str
    view_box: tuple[float, float, float, float]
    character: str = ""


@dataclass(frozen=True)
class IconSet:
    """An icon set, as its npm package describes it.

    Attributes:
        prefix, title: identifier and name, such as `noto` and `Noto Emoji`.
        version: of the package.
        author, license, license_url: from `info.json`, or empty.
        icons: by name, without aliases.
        categories: names of the icons in each category; empty without categories.
    """

    prefix: str
    title: str
    version: str
    author: str
    license: str
    license_url: str
    icons: dict[str, Icon]
    categories: dict[str, frozenset[str]]


def read_icon_set(package: Path) -> IconSet:
    """Read the folder of an npm package such as `@iconify-json/noto`.

    Raises DataError if a file is missing, damaged, or not in Iconify's format.
    """
    icons, info = _read_json(package / "icons.json"), _read_json(package / "info.json")
    metadata = _read_json(package / "metadata.json", missing={})
    try:
        prefix = str(info["prefix"])
        if not _NAME.fullmatch(prefix):
            raise ValueError(f"the prefix {prefix!r} is not a plain name")
        license_ = info.get("license", {})
        return IconSet(
            prefix=prefix,
            title=str(info["name"]),
            version=str(_read_json(package / "package.json", missing={}).get("version", "")),
            author=str(info.get("author", {}).get("name", "")),
            license=str(license_.get("spdx") or license_.get("title", "")),
            license_url=str(license_.get("url", "")),
            icons=_icons(icons, _read_json(package / "chars.json", missing={})),
            categories={
                str(name): frozenset(map(str, members))
                for name, members in metadata.get("categories", {}).items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{package} is not an icon set in Iconify's format ({type(error).__name__}: {error}); "
            "install one with npm install @iconify-json/NAME"
        ) from error


def _icons(content: Mapping[str, Any], characters: Mapping[str, str]) -> dict[str, Icon]:
    characters_of: dict[str, str] = {}
    for character, name in characters.items():
        characters_of.setdefault(name, character)
    found = {}
    for name, icon in content["icons"].items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"the icon name {name!r} is not a plain name")
        if icon.get("hidden"):
            continue
        box = [icon.get(key, content.get(key, default)) for key, default in _VIEW_BOX]
        left, top, width, height = map(float, box)
        found[name] = Icon(
            name, str(icon["body"]), (left, top, width, height), characters_of.get(name, "")
        )
    return found


_VIEW_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def read_keywords(package: Path) -> dict[str, list[str]]:
    """Keywords of emoji by code points, from the folder of the npm package `emojibase-data`.

    Raises DataError if a file is missing, damaged, or not in emojibase's format.
    """
    emoji = _read_json(package / "en" / "data.json")
    subgroups = _read_json(package / "meta" / "groups.json")
    try:
        return {
            _code_points(entry["hexcode"]): [
                *str(subgroups["subgroups"].get(str(entry.get("subgroup")), "")).split("-"),
                *map(str, entry.get("tags", ())),
            ]
            for entry in emoji
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{package} is not in emojibase's format ({type(error).__name__}: {error}); install it "
            "with npm install emojibase-data"
        ) from error


def _code_points(text: str) -> str:
    """`text` in lower case, without variation selectors, which not all sets have."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def _read_json(path: Path, missing: Any = None) -> Any:
    """Content of a JSON file, or `missing` if the file does not exist. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing is not None:
            return missing
        raise DataError(
            f"cannot read {path}: no such file; pass the folder of an npm package, such as "
            "node_modules/@iconify-json/noto"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; install the package again") from error


def captions_of(name: str, style: str, keywords: Iterable[str]) -> list[str]:
    """Captions of an icon, from shortest to longest.

    Args:
        name: of the icon, such as `red-apple`.
        style: title of its set.
        keywords: the first 8 that are not in the name are used.
    """
    words = tidy(name.replace("-", " "))
    more = list(dict.fromkeys(tidy(k) for k in keywords if k and k not in words.split()))
    captions = [words, f"{words}, {style}"]
    if more:
        captions.append(", ".join([words, *more[:_KEYWORDS], style]))
    return captions


def export_icons(
    packages: Sequence[Path],
    out: Path,
    *,
    size: int,
    categories: Collection[str] = (),
    keywords: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Write each icon as `<out>/<prefix>/<name>.png`, and its captions as `.txt` next to it.

    Icons are drawn on white with a small margin. `SOURCES.md` names the sets and their licences.

    Args:
        packages: folders of npm packages in Iconify's format.
        out: a new folder, written atomically.
        size: side of the images in pixels.
        categories: only these, compared by letters and digits. Default: all icons. A set without
            categories uses those of the other sets, by icon name.
        keywords: folder of the npm package `emojibase-data`, for longer captions.
        progress: called after each icon.

    Returns:
        Number of images.

    Raises:
        DataError: a package cannot be read, or no icon matches.
        GalipEdgeError: `out` exists, or cannot be written.
    """
    if not 1 <= size <= _SIZE_LIMIT:
        raise ValueError(f"size must be between 1 and {_SIZE_LIMIT}, got {size}")
    if out.exists():
        raise GalipEdgeError(f"{out} exists: choose another folder, or delete it first")
    require("resvg_py", "drawing SVG")
    sets = [read_icon_set(package) for package in packages]
    if twice := {s.prefix for s in sets if [t.prefix for t in sets].count(s.prefix) > 1}:
        raise DataError(f"duplicate icon set {', '.join(sorted(twice))}")
    words = read_keywords(keywords) if keywords else {}
    chosen = [(set_, icon) for set_, icon in _chosen(sets, categories)]
    characters = {
        icon.name: icon.character for set_ in sets for icon in set_.icons.values() if icon.character
    }
    with atomic_folder(out) as folder:
        for done, (set_, icon) in enumerate(chosen, start=1):
            path = folder / set_.prefix / f"{icon.name}.png"
            path.parent.mkdir(exist_ok=True)
            draw_icon(icon, size).save(path)
            character = _code_points(icon.character or characters.get(icon.name, ""))
            captions = captions_of(icon.name, set_.title, words.get(character, ()))
            path.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
            if progress is not None:
                progress(done, len(chosen))
        (folder / "SOURCES.md").write_text(_sources(sets), encoding="utf-8")
    return len(chosen)


def _chosen(sets: Sequence[IconSet], categories: Collection[str]) -> Iterator[tuple[IconSet, Icon]]:
    wanted = {_letters(category) for category in categories}
    known: dict[str, set[str]] = {}
    for set_ in sets:
        for category, names in set_.categories.items():
            known.setdefault(_letters(category), set()).update(names)
    if unknown := [c for c in categories if _letters(c) not in known]:
        titles = sorted({category for set_ in sets for category in set_.categories})
        raise DataError(
            f"no icon set has the category {unknown[0]!r}; known are {', '.join(titles) or 'none'}"
        )
    chosen = {name for category in wanted for name in known[category]}
    found = False
    for set_ in sets:
        for icon in set_.icons.values():
            if not wanted or icon.name in chosen:
                found = True
                yield set_, icon
    if not found:
        raise DataError("no icon matches: choose other categories, or other icon sets")


def _letters(category: str) -> str:
    return "".join(filter(str.isalnum, category.lower()))


def draw_icon(icon: Icon, size: int) -> Image.Image:
    """An RGB image of `size` by `size` pixels: the icon on white, with a margin of 4 %.

    Raises DataError if resvg cannot draw it.
    """
    left, top, width, height = icon.view_box
    side = max(width, height) * 1.08
    left, top = left - (side - width) / 2, top - (side - height) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}" width="{size}" height="{size}">{icon.svg}</svg>'
    )
    resvg = require("resvg_py", "drawing SVG")
    try:
        png = resvg.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise DataError(f"cannot draw the icon {icon.name}: {error}") from error
    with Image.open(io.BytesIO(png)) as image:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _sources(sets: Iterable[IconSet]) -> str:
    lines = ["# Sources of these images", ""]
    for set_ in sets:
        lines.append(
            f"- {set_.title} (npm @iconify-json/{set_.prefix} {set_.version}) by {set_.author}: "
            f"{set_.license}, {set_.license_url}"
        )
    return "\n".join(lines) + "\n"

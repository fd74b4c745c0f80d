"""Hooks of mkdocs: the command-line reference; pages and images from outside of `docs/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
COMMANDS = "<!-- commands -->"
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages, and the images that pages take from `benchmarks/results`."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_moved(text)))
    for image in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave `docs/` at what `on_files` added; others of the kind become text."""

    def changed(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if not target.startswith("../"):
            return found[0]
        name = target.removeprefix("../")
        if name in PAGES:
            return f"]({name}{anchor})"
        if name.startswith("benchmarks/results/"):
            return f"](results/{Path(name).name})"
        return found[0]

    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_command_line()))
    return _without_foreign(LINK.sub(changed, markdown))


def _command_line() -> Iterator[str]:
    """The help of every command, as a terminal of 100 columns shows it."""
    from galip_edge.cli import galip_edge

    def helped(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
        context = click.Context(command, parent, name, terminal_width=100, max_content_width=100)
        yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                if found is not None and not found.hidden:
                    yield from helped(found, context, each)

    return helped(galip_edge, None, "galip-edge")


def _moved(text: str) -> str:
    """A page of the root as if it stood in `docs/`."""

    def changed(found: re.Match[str]) -> str:
        target = found[2]
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}{found[3] or ''})"
        if ":" in target or target in PAGES:
            return found[0]
        return f"](../{target}{found[3] or ''})"

    return LINK.sub(changed, text)


def _without_foreign(text: str) -> str:
    """Links to files of the repository that are no pages become their text."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)

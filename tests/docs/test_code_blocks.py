"""Code blocks of README and docs: cheap ones run, the options of all others are checked."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import click
import pytest
from markdown import Block, blocks, pages

from galip_edge.cli import galip_edge, main
from runtime import default_bundle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
BLOCKS = [block for page in pages(ROOT) for block in blocks(ROOT, page)]
CODE = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == ""]

# "text" marks diagrams.
READERS = {"json": json.loads, "toml": tomllib.loads, "text": str}

# Commands that run here, on the embedded model, in this order in each page.
RUN = ("generate", "info", "verify", "interpolate", "explore", "batch", "export-ovms")
# Names of bundles and data in the pages, which are the embedded model and small files here.
BUNDLES = ("galip-coco", "emoji", "own", "my-bundle")

# Commands of other programs, and why they are not run.
NOT_RUN = {
    "apt": "installs",
    "build/generate": "tests/runtime/test_openvino_export.py builds and runs it",
    "cmake": "tests/runtime/test_openvino_export.py builds the example",
    "cp": "set-up of another machine",
    "curl": "needs a server; the servers' tests send the same request",
    "docker": "needs Docker",
    "exiftool": "tests/runtime/test_recipes.py runs it",
    "git": "packs the repository, or needs its history",
    "grep": "reads /proc/cpuinfo",
    "mkdir": "set-up of another machine",
    "node": "needs onnxruntime-web and a full-size export",
    "npm": "downloads",
    "pip": "installs; .ci/run runs those of README",
    "pre-commit": "installs",
    "pytest": "is what runs this",
    "ray": "tests/runtime/jobs/test_ray.py starts a cluster",
    "ruff": "CI runs it",
    "tensorboard": "does not end",
    "python3": "set-up; .ci/run does the same",
}
# Blocks of Python that are not run, by a part of their text, and why.
NOT_RUN_PYTHON = {
    "requests.post(": "needs OpenVINO Model Server",
    "galip.pth": "needs a checkpoint of the authors",
}
# Blocks that are no code: output, formulas, listings, and settings of other programs.
ILLUSTRATIONS = (
    "prompts.csv.gz: CSV",
    "images per hour",
    "data/own/noto/tiger.png",
    "photos/0001.jpg",
    "galip_edge/   the model",
    "location /",
    "server {",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files that the pages assume: bundles, a file of prompts."""
    folder = tmp_path_factory.mktemp("pages")
    for name in BUNDLES:
        (folder / name).symlink_to(default_bundle())
    (folder / "prompts.csv").write_text("caption,seed\na red bird,3\na blue duck,8\n")
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command, without assignments and `nice` before it; no `cd` and the like."""
    found: list[list[str]] = []
    waiting = ""
    for line in block.lines:
        waiting += re.sub(r"\{[\w,-]+\}", "one", line)
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # an unfinished quotation
            continue
        waiting = ""
        for is_end, command in groupby(words, lambda word: word in ("&&", "|")):
            command = list(command)
            while command and (command[0] == "nice" or re.fullmatch(r"[A-Z_]+=.*", command[0])):
                command = command[1:]
            if command and not is_end and command[0] not in ("cd", "tar", "gzip", "source", "sort"):
                found.append(command)
    assert not waiting, block
    return found


def check_options(words: list[str]) -> None:
    """Fail where galip-edge would refuse an option or the number of arguments."""
    try:
        command = galip_edge.get_command(click.Context(galip_edge), words[0])
    except ModuleNotFoundError as error:
        pytest.skip(f"galip-edge {words[0]} needs {error.name}")
    assert command is not None, f"no command {words[0]}"
    words = words[1:]
    while isinstance(command, click.Group):
        context = click.Context(command)
        command = command.get_command(context, words[0])
        assert command is not None, f"no command {words[0]}"
        words = words[1:]
    context = click.Context(command)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest, rest
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and values.get(parameter.name):
            for value in [values[parameter.name]]:
                parameter.type_cast_value(context, value)


def check_script(words: list[str]) -> None:
    """Fail where a script of the repository does not exist or lacks an option."""
    if words[1] == "-m":
        module = words[2]
        if module in ("build", "http.server", "venv"):
            return
        path = ROOT / f"{module.replace('.', '/')}.py"
    else:
        path = ROOT / words[1]
    source = path.read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{path} has no {word}"


def galip_edge_command(words: list[str]) -> list[str] | None:
    """The arguments of a call of galip-edge, also one under torchrun."""
    if words[0] == "galip-edge":
        return words[1:]
    if words[0] == "torchrun":
        at = words.index("galip-edge" if "galip-edge" in words else "galip_edge")
        return words[at + 1 :]
    return None


def illustration(block: Block) -> bool:
    return block.text.lstrip().startswith(ILLUSTRATIONS)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist_and_know_their_options(block):
    if illustration(block):
        return
    for words in commands_of(block):
        arguments = galip_edge_command(words)
        if arguments is not None:
            if not any(word.startswith("[") or word == "COMMAND" for word in arguments):
                check_options(arguments)
        elif words[0] == "python":
            check_script(words)
        else:
            assert words[0] in NOT_RUN, f"{block}: {words[0]} is not known here"


def helps() -> Iterator[Block]:
    """The examples in the help of each command."""

    def of(command: click.Command, name: str) -> Iterator[Block]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for each in command.list_commands(context):
                yield from of(command.get_command(context, each), f"{name} {each}")
        else:
            text = inspect.cleandoc(command.help or "").partition("\b\nExample")[2]
            yield Block(name, 0, "", textwrap.dedent(text.partition("\n")[2]))

    context = click.Context(galip_edge)
    for name in galip_edge.list_commands(context):
        try:
            command = galip_edge.get_command(context, name)
        except ModuleNotFoundError:  # of an extra
            continue
        yield from of(command, name)


def test_each_help_has_examples_with_known_options():
    for block in helps():
        assert block.text, f"the help of {block.page} has no example"
        for words in commands_of(block):
            arguments = galip_edge_command([word for word in words if word != ">"])
            if arguments is None:
                check_script(words)
            else:
                check_options(arguments[: 2 if arguments[0] == "completion" else None])


def cheap(block: Block) -> list[list[str]]:
    """The commands of a block that run here."""
    if illustration(block):
        return []
    found = [galip_edge_command(words) for words in commands_of(block)]
    return [words for words in found if words and words[0] in RUN and not needs_more(words)]


def needs_more(words: list[str]) -> bool:
    """True if a command needs a hub, a cluster, another device, keys, or a file of the reader."""
    if {"--executor", "--engine", "--device", "--sign-key"} & set(words):
        return True
    own_file = words[0] == "info" and words[-1].endswith((".png", ".webp"))
    return own_file or any("hf:" in word for word in words)


RUNNING = [block for block in SHELL if cheap(block)]


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNING, ids=str)
def test_cheap_commands_run(block, inside):
    for words in cheap(block):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, shlex.join(words)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in READERS], ids=str)
def test_settings_can_be_read(block):
    READERS[block.language](block.text)


def test_every_fenced_block_is_checked():
    assert {block.language for block in BLOCKS} <= {"", "python", *READERS}


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server with a model."""
    command = [sys.executable, "-m", "galip_edge", "serve", "--port", "0", "--model", model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            for line in server.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                pytest.fail("the server ended")
            yield found[0]
        finally:
            server.terminate()
            server.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("block", CODE, ids=str)
def test_python_runs(block, inside):
    reasons = [why for part, why in NOT_RUN_PYTHON.items() if part in block.text]
    compile(block.text, str(block), "exec")
    if reasons:
        pytest.skip(reasons[0])
    if "http://127.0.0.1:8000" in block.text:
        with served("galip-coco") as address:
            run(block, block.text.replace("http://127.0.0.1:8000", address))
    else:
        run(block, block.text)


def run(block: Block, text: str) -> None:
    if "load_dataset" in text:
        shutil.rmtree("images", ignore_errors=True)
        with pytest.raises(SystemExit):
            main(["batch", "prompts.csv", "--out", "images", "--model", "galip-coco"])
    elif "Job(" in text:
        shutil.rmtree("images", ignore_errors=True)
    exec(compile(text, str(block), "exec"), {"__name__": "page"})

"""Links and names of files in README and docs lead somewhere."""

import re
from pathlib import Path

import pytest
from markdown import pages

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)|(?:src|srcset)=\"([^\"]+)\"")
# In backticks, a path of the repository.
FOLDERS = "galip_edge|convert|runtime|benchmarks|tests|docs|deploy|models"
NAMED = re.compile(rf"`((?:{FOLDERS})/[^`\s]*)`")
# Files that commands in the pages write.
WRITTEN = ("benchmarks/results/gpu.json", "models/aviary-wide")


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for target, _, source in LINK.findall(text):
        name = target or source
        if ":" not in name and not (page.parent / name).exists():
            missing.append(name)
    for name in NAMED.findall(text):
        written = name.startswith(WRITTEN) or re.search(r"[*<{}=]|NAME", name)
        if not written and not (ROOT / name.split(":")[0]).exists():
            missing.append(name)
    assert not missing


def test_classes_of_the_api_reference_exist():
    """The site's build would fail, but only there."""
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        folder = ROOT / module.replace(".", "/")
        files = [folder.with_suffix(".py"), folder / "__init__.py"]
        source = "".join(path.read_text(encoding="utf-8") for path in files if path.exists())
        defined = re.search(rf"^(class|def) {attribute}\b", source, re.MULTILINE)
        assert defined or (folder / f"{attribute}.py").exists(), name

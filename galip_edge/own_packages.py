"""Detection of foreign modules that hide the packages `runtime` and `convert` of galip-edge.

`python -m` puts the current directory first on Python's search path, so a `runtime.py` or a folder
`convert/` there is found instead of ours. It is detected, not imported: that would run it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


class ForeignPackageError(ImportError):
    """Another module hides a package of galip-edge; the message names its file."""


def require_own_package(name: str) -> None:
    """Check that `import NAME` finds the package that belongs to this installation.

    Raises:
        ForeignPackageError: a file or folder of that name comes first on Python's search path.
    """
    if place := _foreign(name):
        raise ForeignPackageError(
            f"{place} hides the package {name!r} of galip-edge: rename it, or {_remedy(place)}",
            name=name,
            path=str(place),
        )


def _remedy(place: Path) -> str:
    spec = sys.modules["__main__"].__spec__
    if spec and spec.name == "galip_edge.__main__" and place.parent.samefile(Path.cwd()):
        return "run galip-edge instead of python -m galip_edge (torchrun --no-python galip-edge)"
    return f"remove {place.parent} from Python's search path"


def _foreign(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ValueError:  # a module that a program has made up
        return None
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if _ROOT / name in (folder.resolve() for folder in folders):
        return None
    if folders:  # with an __init__.py or without
        return folders[0]
    return Path(spec.origin or name)

"""Optional packages that add kinds of data, pretraining and metrics.

The rest of `galip_edge` imports none of them. It looks them up here by name, and works without
them: deleting the folder `galip_edge/aviary` only removes what this table lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.errors import GalipEdgeError

PACKAGES = ("aviary",)

# (interface, name) -> module and attribute.
#   data settings: subclass of galip_edge.data.DataConfig
#   data source: function of those settings that returns a galip_edge.data.records.Source
#   metrics: implementation of galip_edge.evaluation.evaluate.ExtraMetrics
#   pretraining: subclass of galip_edge.training.pretraining.PretrainingConfig
#   text pretraining: subclass of galip_edge.training.contrastive.TextPretrainingConfig
_EXTENSIONS = {
    ("data settings", "aviary"): "galip_edge.aviary.data.config:AviaryConfig",
    ("data source", "aviary"): "galip_edge.aviary.data.source:AviarySource",
    ("metrics", "aviary"): "galip_edge.aviary.metrics:AviaryMetrics",
    ("pretraining", "regression"): "galip_edge.aviary.pretraining:RegressionConfig",
    ("text pretraining", "words"): "galip_edge.aviary.text_pretraining:WordsConfig",
}


def installed(package: str) -> bool:
    """True if this installation has `galip_edge/<package>`."""
    try:
        spec = find_spec(f"galip_edge.{package}")
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None  # not a folder of leftovers


def names(interface: str) -> list[str]:
    """Extensions of an interface that this installation has."""
    return [name for key, name in _EXTENSIONS if key == interface and _found(interface, name)]


def find(interface: str, name: object) -> Any | None:
    """The extension, or None if there is none or its package is missing."""
    if not isinstance(name, str) or not _found(interface, name):
        return None
    module, _, attribute = _EXTENSIONS[interface, name].partition(":")
    return getattr(import_module(module), attribute)


def require(interface: str, name: str) -> Any:
    """The extension. Raises GalipEdgeError if its package is missing."""
    extension = find(interface, name)
    if extension is None:
        raise GalipEdgeError(
            f"{interface} {name!r} needs galip_edge/aviary, which this installation lacks: "
            "install the complete package"
        )
    return extension


def _found(interface: str, name: str) -> bool:
    target = _EXTENSIONS.get((interface, name), "")
    return bool(target) and installed(target.split(".")[1])


def config_folders(subfolder: str = "") -> Iterator[Path]:
    """Folders of the configurations in the package, and in its extensions."""
    root = Path(__file__).parent
    for package in ("", *PACKAGES):
        yield root / package / "configs" / subfolder

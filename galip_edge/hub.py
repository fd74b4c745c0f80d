"""Bundles on a hub: `hf:owner/name[@revision]` (extra `hub`).

Files are downloaded into huggingface_hub's own cache, at one commit. Which commit a name stands for
is kept in our cache, so that later runs need neither the network nor huggingface_hub, and give the
same images until `galip-edge pull` queries the hub again. Bundles from a hub are untrusted: only
files that the manifest lists are downloaded, and they are verified like those of any bundle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from runtime.bundle import MANIFEST, Bundle, Manifest, read_manifest
from runtime.compiled_cache import private_folder
from runtime.errors import BundleError, GalipEdgeError, install_hint
from runtime.files import cache_folder, read_regular, write_whole

_log = logging.getLogger(__name__)

PREFIX = "hf:"
# As huggingface_hub accepts them.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"
_LARGEST_PIN = 64 * 1024
# Receives progress messages.
Report = Callable[[str], None]
# A manifest's largest size, see runtime.bundle.
_LARGEST_MANIFEST = 4 * 1024**2


@dataclass(frozen=True)
class HubModel:
    """A model on a hub.

    Attributes:
        repository: owner/name.
        revision: branch, tag or commit.
    """

    repository: str
    revision: str = _MAIN

    @classmethod
    def parse(cls, text: str) -> HubModel:
        """Parse `[hf:]owner/name[@revision]`. Raises GalipEdgeError for any other text."""
        repository, at, revision = text.removeprefix(PREFIX).partition("@")
        valid = _REPOSITORY.fullmatch(repository) and "--" not in repository
        if not valid or ".." in text or (at and not _REVISION.fullmatch(revision)):
            raise GalipEdgeError(
                f"{text[:200]!r} is not a hub model: use hf:owner/name or hf:owner/name@revision"
            )
        return cls(repository, revision or _MAIN)

    def __str__(self) -> str:
        at = "" if self.revision == _MAIN else f"@{self.revision}"
        return f"{PREFIX}{self.repository}{at}"


@dataclass(frozen=True)
class Pulled:
    """A pulled model.

    Attributes:
        model: as it was named.
        commit: the commit of its revision at that time.
        folder: of the bundle.
    """

    model: HubModel
    commit: str
    folder: Path

    @property
    def manifest(self) -> Manifest:
        """Raises BundleError if the files are no longer there."""
        return read_manifest(self.folder)


def resolve(text: str, report: Report) -> Path:
    """The bundle's folder of a model that `hf:...` names, downloaded if missing.

    Args:
        text: `hf:owner/name[@revision]`.
        report: receives lines about what is downloaded.

    Raises:
        GalipEdgeError: the model is not on this machine, and cannot be downloaded.
        BundleError: the download is not an intact bundle.
    """
    model = HubModel.parse(text)
    pulled = _pinned(model)
    if pulled is None:
        return pull(model, report).folder
    if _is_whole(pulled.folder):
        return pulled.folder
    return _download(model, pulled.commit, report).folder


def pull(model: HubModel, report: Report, force: bool = False) -> Pulled:
    """Query the hub for the newest commit of a model's revision, and download missing files.

    With `force`, download all files. Raises as `resolve` does.
    """
    hub = _library()
    with _errors_of_hub(model):
        commit = hub.HfApi().model_info(model.repository, revision=model.revision).sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise GalipEdgeError(f"the hub reports no commit for {model}")
    return _download(model, commit, report, force)


def pulled_models() -> Iterator[Pulled]:
    """Pulled models that still exist, by name."""
    folder = private_folder(cache_folder(), "hub")
    pins = map(_read_pin, folder.glob("*.json")) if folder else ()
    for pulled in sorted(filter(None, pins), key=lambda pulled: str(pulled.model)):
        if _is_whole(pulled.folder):
            yield pulled


def _download(model: HubModel, commit: str, report: Report, force: bool = False) -> Pulled:
    hub, folder = _library(), None

    def fetch(name: str, most: int, again: bool) -> Path:
        url = hub.hf_hub_url(model.repository, name, revision=commit)
        size = hub.get_hf_file_metadata(url).size
        if size is None or size > most:
            raise BundleError(f"{name} of {model} is larger than {most:,} bytes")
        if again and folder is not None:
            (folder / name).unlink(missing_ok=True)  # a link; the library would keep it
        return Path(
            hub.hf_hub_download(model.repository, name, revision=commit, force_download=again)
        )

    with _errors_of_hub(model):
        folder = fetch(MANIFEST, _LARGEST_MANIFEST, force).parent
        files = read_manifest(folder).files
        missing = [name for name, it in files.items() if force or not _has(folder, name, it.size)]
        if missing:
            size = decimal(sum(files[name].size for name in missing))
            report(f"downloading {model} ({size}) from {hub.HfApi().endpoint}")
        for number, name in enumerate(missing, 1):
            report(f"{number}/{len(missing)} {name}, {decimal(files[name].size)}")
            fetch(name, files[name].size, again=force or (folder / name).exists())
    try:
        Bundle.open(folder)
    except BundleError as error:
        raise BundleError(
            f"{model} is not an intact bundle: {error}; or run galip-edge pull --force {model}"
        ) from error
    pulled = Pulled(model, commit, folder)
    _write_pin(pulled)
    return pulled


def _is_whole(folder: Path) -> bool:
    """True if all files have their sizes; hashes are verified when the bundle is opened."""
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return False
    return all(_has(folder, name, entry.size) for name, entry in manifest.files.items())


def _has(folder: Path, name: str, size: int) -> bool:
    try:
        return (folder / name).stat().st_size == size
    except OSError:
        return False


def _pin_file(model: HubModel) -> Path | None:
    folder = private_folder(cache_folder(), "hub")
    # A hash: revisions may contain slashes, differ in case alone, or be longer than file names.
    name = hashlib.sha256(f"{model.repository}@{model.revision}".encode()).hexdigest()[:32]
    return folder / f"{name}.json" if folder else None


def _pinned(model: HubModel) -> Pulled | None:
    file = _pin_file(model)
    return _read_pin(file) if file else None


def _read_pin(file: Path) -> Pulled | None:
    try:
        found = json.loads(read_regular(file, _LARGEST_PIN))
        model = HubModel(found["repository"], found["revision"])
        return Pulled(model, found["commit"], Path(found["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_pin(pulled: Pulled) -> None:
    if file := _pin_file(pulled.model):
        values = {
            "repository": pulled.model.repository,
            "revision": pulled.model.revision,
            "commit": pulled.commit,
            "folder": str(pulled.folder),
        }
        try:
            write_whole(file, json.dumps(values).encode())
        except GalipEdgeError as error:
            _log.warning("later runs will query the hub again: %s", error)


def _library() -> Any:
    """huggingface_hub, without its usage reports."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise GalipEdgeError(
            "models from a hub need huggingface_hub, which is not installed: "
            f"{install_hint('hub')}, or copy the bundle's folder and pass its path"
        ) from error
    return huggingface_hub


@contextmanager
def _errors_of_hub(model: HubModel | str) -> Iterator[None]:
    """Errors of huggingface_hub and of the network as one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise GalipEdgeError(
            f"{model} is gated: accept its terms on the hub, then run hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise GalipEdgeError(f"{model} has no such revision") from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise GalipEdgeError(_unreachable(model, error)) from error
        raise BundleError(f"{model} is not a galip-edge bundle: a file is missing") from error
    except errors.RepositoryNotFoundError as error:
        raise GalipEdgeError(
            f"{model} does not exist on the hub, or is private: check the name, or log in "
            "with hf auth login"
        ) from error
    except GalipEdgeError:
        raise
    except Exception as error:  # httpx, requests, hf_xet: by version
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise GalipEdgeError(
                f"the hub denies access to {model}: run hf auth login, or set HF_TOKEN to "
                "a token with that permission"
            ) from error
        raise GalipEdgeError(_unreachable(model, error)) from error


def _unreachable(model: HubModel | str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"cannot reach the hub for {model} ({reason}): try again with a connection, or copy the "
        "bundle's folder from another machine and pass its path as --model"
    )


def push(
    bundle: Bundle,
    repository: str,
    extra: Sequence[tuple[str, bytes]],
    private: bool,
    message: str,
    replace_card: bool,
) -> tuple[str, bool]:
    """Upload a bundle in one commit; the repository is created if it does not exist.

    Args:
        bundle: verified.
        repository: owner/name.
        extra: names and contents of further files; README.md is the card.
        private: visibility of a new repository.
        message: of the commit.
        replace_card: whether to replace an existing card.

    Returns:
        URL of the commit, and whether an existing card was kept.

    Raises:
        GalipEdgeError: the hub refuses or cannot be reached.
    """
    hub = _library()
    api = hub.HfApi()
    with _errors_of_hub(f"{PREFIX}{repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        kept = not replace_card and api.file_exists(repository, "README.md")
        files: list[tuple[str, Any]] = [
            (name, bundle.folder / name) for name in (MANIFEST, *bundle.manifest.files)
        ]
        files += [(name, it) for name, it in extra if not (kept and name == "README.md")]
        operations = [hub.CommitOperationAdd(name, content) for name, content in files]
        commit = api.create_commit(repository, operations, commit_message=message)
    return str(commit.commit_url), kept

"""Where the images of a part go: files of a folder, a tar shard for webdataset, or a Parquet shard.

Everything appears whole or not at all. A part is made by one process at a time.

A finished shard is not touched again, except where an image of it is damaged or its row changed:
then the shard is written anew, with all images that are still good.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from runtime.files import remove_temporary, sha256_of, write_whole
from runtime.jobs.journal import COLUMNS, DONE, INVALID, Entry, Record
from runtime.jobs.parts import Item, Part

FORMS = ("folder", "tar", "parquet")

# What differs from run to run is not written into shards.
IN_SHARDS = ("row", "id", "prompt", "index", "seed", "model", "sha256")


class Output(Protocol):
    """The images of one part, in the order of its items."""

    # Whether entries are recorded all together, when the part is finished.
    at_once: bool

    def resume(self, record: Record, wanted: Sequence[Entry], verify: bool) -> list[Entry]:
        """Which of an earlier run's entries need no more work; what else is left is removed.

        Called first.

        Args:
            record: of the earlier run.
            wanted: its entries whose items did not change.
            verify: compare contents with their hashes, not only their sizes.
        """

    def store(self, item: Item, data: bytes) -> None:
        """Take a file's content early, from any thread and in any order."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """Take it in order, and note in `entry` where it is found."""

    def suspend(self) -> None:
        """No more in this run."""

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        """All are there: sizes in bytes and SHA-256 of finished shards, by name."""


def open_output(
    form: str, folder: Path, state: Path, part: Part, suffix: str, types: dict[str, Any]
) -> Output:
    """The output of `part`.

    Args:
        form: one of `FORMS`.
        folder: of the job.
        state: folder for what is not finished, on the same file system.
        part: see there.
        suffix: of image files.
        types: Arrow types of the kept columns.
    """
    if form == "folder":
        return FolderOutput(folder, part, suffix)
    if form == "tar":
        return TarOutput(folder, state, part, suffix)
    return ParquetOutput(folder, state, part, suffix, types)


def sample_of(entry: Entry) -> dict[str, Any]:
    """What shards and `metadata.jsonl` say of an image."""
    carried = {
        name: value for name, value in entry.items() if name not in COLUMNS and name != INVALID
    }
    return {name: entry[name] for name in IN_SHARDS} | carried


def _size_of(file: Path) -> int | None:
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _place(entry: Entry) -> tuple[int, int]:
    return entry["row"], entry["index"]


class FolderOutput:
    """Each image a file, in a folder for each part."""

    at_once = False

    def __init__(self, folder: Path, part: Part, suffix: str) -> None:
        self._folder, self._part, self._suffix = folder, part, suffix

    def _file(self, item: Item) -> str:
        return f"{self._part.name}/{item.key}.{self._suffix}"

    def resume(self, record: Record, wanted: Sequence[Entry], verify: bool) -> list[Entry]:
        """See Output."""
        remove_temporary(self._folder / self._part.name)
        files = {self._file(item) for item in self._part.items}
        for entry in record.entries:
            if entry["status"] == DONE and entry["file"] not in files:
                (self._folder / entry["file"]).unlink(missing_ok=True)
        return [e for e in wanted if e["status"] != DONE or self._has(e, verify)]

    def _has(self, entry: Entry, verify: bool) -> bool:
        file = self._folder / entry["file"]
        if _size_of(file) != entry["bytes"]:
            return False
        return not verify or sha256_of(file) == entry["sha256"]

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""
        write_whole(self._folder / self._file(item), data)

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        entry["file"], entry["key"] = self._file(item), item.key

    def suspend(self) -> None:
        """See Output."""

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        """See Output."""
        return {}, {}


class _Shards:
    """What shards have in common: a name, and that they are whole or not there.

    Attributes:
        at_once: whether a finished shard is written anew; it is in its place until then.
    """

    ending: str

    def __init__(self, folder: Path, state: Path, part: Part, suffix: str) -> None:
        self._folder, self._part, self._suffix = folder, part, suffix
        self._shards: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._name = f"{part.name}.{self.ending}"
        self._state = state
        # Shards that are written anew, all as one, and the entries of their good images.
        self._old: list[str] = []
        self._kept: deque[Entry] = deque()
        self.at_once = False

    @property
    def _open(self) -> Path:
        return self._state / self._name

    def resume(self, record: Record, wanted: Sequence[Entry], verify: bool) -> list[Entry]:
        """See Output."""
        shards = record.shards or {}
        finished = [e for e in record.entries if e["status"] == DONE and e["file"] in shards]
        known = {id(entry) for entry in wanted}
        good = [entry for entry in finished if id(entry) in known]
        intact = all(self._is_intact(record, name, finished, verify) for name in shards)
        others = [e for e in wanted if e["status"] != DONE]
        if shards and not (intact and len(good) == len(finished)):
            return others + self._begin_anew(shards, good)
        self._shards, self._hashes = dict(shards), dict(record.hashes)
        if shards:
            self._name = f"{self._part.name}-retry{len(shards)}.{self.ending}"
        unfinished = [e for e in record.entries if e["status"] == DONE and e["file"] == self._name]
        return others + good + self._resume_open(unfinished, wanted)

    def _is_intact(
        self, record: Record, name: str, finished: Sequence[Entry], verify: bool
    ) -> bool:
        file = self._folder / name
        if _size_of(file) != (record.shards or {})[name]:
            return False
        if not verify:
            return True
        if name in record.hashes:
            return sha256_of(file) == record.hashes[name]
        mine = [e for e in finished if e["file"] == name]
        return len(self._images([name], mine)) == len(mine)

    def _begin_anew(self, shards: dict[str, int], good: Sequence[Entry]) -> list[Entry]:
        """Write all shards of the part as one, with the images that are still good."""
        self._old, self.at_once = sorted(shards), True
        self._open.unlink(missing_ok=True)
        found = self._images(self._old, good)
        self._kept = deque(sorted((e for e in good if e["key"] in found), key=_place))
        self._begin(found)
        for entry in self._kept:
            entry["file"] = self._name
        return list(self._kept)

    def _kept_before(self, place: tuple[int, int] | None) -> Iterator[Entry]:
        """Good images that come before this one, or all that are left."""
        while self._kept and (place is None or _place(self._kept[0]) < place):
            yield self._kept.popleft()

    def _finished(self, size: int, digest: str) -> tuple[dict[str, int], dict[str, str]]:
        """The shards after this one took its place."""
        for name in self._old:
            if name != self._name:
                (self._folder / name).unlink(missing_ok=True)
        return self._shards | {self._name: size}, self._hashes | {self._name: digest}

    def _resume_open(self, unfinished: list[Entry], wanted: Sequence[Entry]) -> list[Entry]:
        """Which images of a shard that was not finished are kept."""
        raise NotImplementedError

    def _images(self, shards: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        """Where the images of entries are, by key, where their hash is right."""
        raise NotImplementedError

    def _begin(self, found: dict[str, Any]) -> None:
        """Prepare to write the images anew that `_images` found."""
        raise NotImplementedError


class TarOutput(_Shards):
    """A tar file of samples as webdataset reads them: image, `.txt` with the prompt, `.json`.

    It grows in the state folder, so that a job which was killed continues after its last image.
    """

    ending = "tar"

    def __init__(self, folder: Path, state: Path, part: Part, suffix: str) -> None:
        super().__init__(folder, state, part, suffix)
        self._file: BinaryIO | None = None
        self._found: dict[str, tuple[str, int]] = {}

    def _resume_open(self, unfinished: list[Entry], wanted: Sequence[Entry]) -> list[Entry]:
        if not self._open.exists():
            whole = self._folder / self._name
            if not whole.exists():
                return []
            # A process was killed when this was in its place, but the record did not say so yet.
            self._open.parent.mkdir(parents=True, exist_ok=True)
            whole.replace(self._open)
        end, good = 0, []
        known = {id(entry) for entry in wanted}
        for entry in unfinished:
            sample = self._sample_at(entry, end) if id(entry) in known else None
            if sample is None:
                break
            end += len(sample)
            good.append(entry)
        self._tar().truncate(end)
        self._tar().seek(end)
        return good

    def _sample_at(self, entry: Entry, start: int) -> bytes | None:
        """Its sample, if it is whole at `start`: a power cut may have left less, or zeros."""
        self._tar().seek(0, os.SEEK_END)
        if start + entry["bytes"] > self._tar().tell():
            return None
        self._tar().seek(start)
        sample = self._tar().read(len(self._packed(entry, bytes(entry["bytes"]))))
        image = sample[512 : 512 + entry["bytes"]]
        whole = hashlib.sha256(image).hexdigest() == entry["sha256"]
        return sample if whole and sample == self._packed(entry, image) else None

    def _tar(self) -> BinaryIO:
        if self._file is None:
            self._open.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open.open("r+b" if self._open.exists() else "w+b")
        return self._file

    def _images(self, shards: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        wanted = {f"{entry['key']}.{self._suffix}": entry for entry in entries}
        found = {}
        for name in shards:
            with (
                suppress(OSError, tarfile.TarError, ValueError),
                (self._folder / name).open("rb") as file,
                tarfile.open(fileobj=file, mode="r:") as archive,
            ):
                for member in archive:
                    entry = wanted.get(member.name)
                    if entry is None or member.size != entry["bytes"]:
                        continue
                    image = os.pread(file.fileno(), member.size, member.offset_data)
                    if hashlib.sha256(image).hexdigest() == entry["sha256"]:
                        found[entry["key"]] = name, member.offset_data
        return found

    def _begin(self, found: dict[str, Any]) -> None:
        self._found = found
        self._tar()

    def _write_kept(self, place: tuple[int, int] | None) -> None:
        for entry in self._kept_before(place):
            name, start = self._found[entry["key"]]
            with (self._folder / name).open("rb") as old:
                image = os.pread(old.fileno(), entry["bytes"], start)
            self._tar().write(self._packed(entry, image))

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        self._write_kept(item.place)
        entry["file"], entry["key"] = self._name, item.key
        self._tar().write(self._packed(entry, data))
        self._tar().flush()

    def _packed(self, entry: Entry, image: bytes) -> bytes:
        """The members of a sample as the archive holds them, the image first."""
        sample = json.dumps(sample_of(entry), ensure_ascii=False).encode()
        contents = {self._suffix: image, "txt": entry["prompt"].encode(), "json": sample}
        packed = b""
        for ending, content in contents.items():
            member = tarfile.TarInfo(f"{entry['key']}.{ending}")
            member.size, member.mode = len(content), 0o644
            packed += member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
        return packed

    def suspend(self) -> None:
        """See Output."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk: what is not written is made again
                self._file.close()
            self._file = None

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        """See Output."""
        if self._file is None:
            return self._shards, self._hashes
        self._write_kept(None)
        if self._tar().tell() == 0:  # no image of the part is wanted any more
            self.suspend()
            self._open.unlink()
            for name in self._old:
                (self._folder / name).unlink(missing_ok=True)
            return {}, {}
        self._file.write(bytes(1024))  # two empty blocks end an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self.suspend()
        digest = sha256_of(self._open)
        self._open.replace(self._folder / self._name)
        return self._finished(size, digest)


class ParquetOutput(_Shards):
    """A Parquet file with an image's bytes in each row, as Hugging Face's datasets have them.

    It is written when all of its images are there, so that a part which was not finished is made
    again.
    """

    ending = "parquet"

    def __init__(
        self, folder: Path, state: Path, part: Part, suffix: str, types: dict[str, Any]
    ) -> None:
        super().__init__(folder, state, part, suffix)
        self._types = types
        self._rows: list[tuple[tuple[int, int], dict[str, Any]]] = []

    def _resume_open(self, unfinished: list[Entry], wanted: Sequence[Entry]) -> list[Entry]:
        return []

    def _images(self, shards: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = {f"{entry['key']}.{self._suffix}": entry for entry in entries}
        found = {}
        for name in shards:
            with (
                suppress(OSError, pa.ArrowException, KeyError, TypeError),
                pq.ParquetFile(self._folder / name) as file,
            ):
                for image in file.read(["image"])["image"].to_pylist():
                    entry = wanted.get(image["path"])
                    if entry and hashlib.sha256(image["bytes"]).hexdigest() == entry["sha256"]:
                        found[entry["key"]] = image["bytes"]
        return found

    def _begin(self, found: dict[str, Any]) -> None:
        for entry in self._kept:
            self._add(found[entry["key"]], entry)

    def _add(self, data: bytes, entry: Entry) -> None:
        image = {"bytes": data, "path": f"{entry['key']}.{self._suffix}"}
        self._rows.append((_place(entry), {"image": image} | sample_of(entry)))

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        entry["file"], entry["key"] = self._name, item.key
        self._add(data, entry)

    def suspend(self) -> None:
        """See Output."""
        self._rows = []

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        """See Output."""
        if not self._rows:
            for name in self._old:  # no image of the part is wanted any more
                (self._folder / name).unlink(missing_ok=True)
            return self._shards, self._hashes
        import pyarrow.parquet as pq

        from runtime.jobs.tables import schema_of, table_of

        rows = [row for _, row in sorted(self._rows, key=lambda each: each[0])]
        schema = schema_of(["image", *IN_SHARDS, *self._types], self._types)
        buffer = io.BytesIO()
        pq.write_table(table_of(rows, schema), buffer, compression="none")  # images are compressed
        content = buffer.getvalue()
        write_whole(self._folder / self._name, content)
        return self._finished(len(content), hashlib.sha256(content).hexdigest())

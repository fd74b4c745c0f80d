"""Where the images of a part go: files of a folder, a tar shard for webdataset, or a Parquet shard.

Everything appears whole or not at all. A part is made by one process at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from runtime.files import remove_temporary, write_whole
from runtime.jobs.journal import COLUMNS, DONE, Entry, Record
from runtime.jobs.parts import Item, Part

FORMS = ("folder", "tar", "parquet")

# What differs from run to run is not written into shards.
_IN_SHARDS = ("row", "id", "prompt", "index", "seed", "model", "sha256")


class Output(Protocol):
    """The images of one part, in the order of its items."""

    def resume(self, record: Record) -> Record:
        """What of an earlier run's record is still there; what else is left of it is removed.

        Called first. Those entries are not made again.
        """

    def store(self, item: Item, data: bytes) -> None:
        """Take a file's content early, from any thread and in any order."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """Take it in order, and note in `entry` where it is found."""

    def suspend(self) -> None:
        """No more in this run."""

    def finish(self) -> dict[str, int]:
        """All are there: sizes of finished shards in bytes, by name."""


def open_output(form: str, folder: Path, state: Path, part: Part, suffix: str) -> Output:
    """The output of `part`.

    Args:
        form: one of `FORMS`.
        folder: of the job.
        state: folder for what is not finished, on the same file system.
        part: see there.
        suffix: of image files.
    """
    if form == "folder":
        return FolderOutput(folder, part, suffix)
    if form == "tar":
        return TarOutput(folder, state, part, suffix)
    return ParquetOutput(folder, state, part, suffix)


def _size_of(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


class FolderOutput:
    """Each image a file, in a folder for each part."""

    def __init__(self, folder: Path, part: Part, suffix: str) -> None:
        self._folder, self._name, self._suffix = folder, part.name, suffix

    def _file(self, item: Item) -> str:
        return f"{self._name}/{item.key}.{self._suffix}"

    def resume(self, record: Record) -> Record:
        """See Output."""
        remove_temporary(self._folder / self._name)
        there = [e for e in record.entries if e["status"] != DONE or self._has(e)]
        return Record(there, record.shards)

    def _has(self, entry: Entry) -> bool:
        return _size_of(self._folder / entry["file"]) == entry["bytes"]

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""
        write_whole(self._folder / self._file(item), data)

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        entry["file"], entry["key"] = self._file(item), item.key

    def suspend(self) -> None:
        """See Output."""

    def finish(self) -> dict[str, int]:
        """See Output."""
        return {}


class _Shard:
    """What shards have in common: a name, and that they are whole or not there."""

    ending: str

    def __init__(self, folder: Path, state: Path, part: Part, suffix: str) -> None:
        self._folder, self._part, self._suffix = folder, part, suffix
        self._shards: dict[str, int] = {}
        self._name = f"{part.name}.{self.ending}"
        self._open = state / self._name

    def _finished(self, record: Record) -> Record:
        """What needs no more work: rows that failed, and images of finished shards.

        What is new goes to another shard. If one of them is gone or damaged, all are made again.
        """
        shards = record.shards or {}
        if all(_size_of(self._folder / name) == size for name, size in shards.items()):
            self._shards = dict(shards)
        else:
            for name in shards:
                (self._folder / name).unlink(missing_ok=True)
        if self._shards:
            self._name = f"{self._part.name}-retry{len(self._shards)}.{self.ending}"
            self._open = self._open.with_name(self._name)
        there = [e for e in record.entries if e["status"] != DONE or e["file"] in self._shards]
        return Record(there, None if record.shards is None else self._shards)

    def _sample(self, entry: Entry) -> dict[str, Any]:
        """What a shard says of an image."""
        carried = {name: value for name, value in entry.items() if name not in COLUMNS}
        return {name: entry[name] for name in _IN_SHARDS} | carried


class TarOutput(_Shard):
    """A tar file of samples as webdataset reads them: image, `.txt` with the prompt, `.json`.

    It grows in the state folder, so that a job which was killed goes on after its last image.
    """

    ending = "tar"

    def __init__(self, folder: Path, state: Path, part: Part, suffix: str) -> None:
        super().__init__(folder, state, part, suffix)
        self._file: BinaryIO | None = None

    def resume(self, record: Record) -> Record:
        """See Output."""
        found = self._finished(record)
        good = found.entries
        if not self._open.exists():
            whole = self._folder / self._name
            if not whole.exists():
                return found
            # A process was killed when this was in its place, but the record did not say so yet.
            self._open.parent.mkdir(parents=True, exist_ok=True)
            whole.replace(self._open)
        end = 0
        for entry in record.entries:
            if entry["status"] == DONE and entry["file"] == self._name:
                if (sample := self._sample_at(entry, end)) is None:
                    break
                end += len(sample)
                good.append(entry)
        self._tar().truncate(end)
        self._tar().seek(end)
        return Record(good, found.shards)

    def _sample_at(self, entry: Entry, start: int) -> bytes | None:
        """Its sample, if it is whole at `start`: a power cut may have left less, or zeros."""
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

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        entry["file"], entry["key"] = self._name, item.key
        self._tar().write(self._packed(entry, data))
        self._tar().flush()

    def _packed(self, entry: Entry, image: bytes) -> bytes:
        """The members of a sample as the archive holds them, the image first."""
        sample = json.dumps(self._sample(entry), ensure_ascii=False).encode()
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

    def finish(self) -> dict[str, int]:
        """See Output."""
        if self._file is None:
            return self._shards
        self._file.write(bytes(1024))  # two empty blocks end an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self.suspend()
        self._open.replace(self._folder / self._name)
        return self._shards | {self._name: size}


class ParquetOutput(_Shard):
    """A Parquet file with an image's bytes in each row, as Hugging Face's datasets have them.

    It is written when all of its images are there, so that a part which was not finished is made
    again.
    """

    ending = "parquet"

    def __init__(self, folder: Path, state: Path, part: Part, suffix: str) -> None:
        super().__init__(folder, state, part, suffix)
        self._rows: list[dict[str, Any]] = []

    def resume(self, record: Record) -> Record:
        """See Output."""
        return self._finished(record)

    def store(self, item: Item, data: bytes) -> None:
        """See Output."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """See Output."""
        entry["file"], entry["key"] = self._name, item.key
        path = f"{item.key}.{self._suffix}"
        self._rows.append({"image": {"bytes": data, "path": path}} | self._sample(entry))

    def suspend(self) -> None:
        """See Output."""
        self._rows = []

    def finish(self) -> dict[str, int]:
        """See Output."""
        if not self._rows:
            return self._shards
        import pyarrow.parquet as pq

        from runtime.jobs.tables import table_of

        buffer = io.BytesIO()
        pq.write_table(table_of(self._rows), buffer, compression="none")  # images are compressed
        content = buffer.getvalue()
        write_whole(self._folder / self._name, content)
        return self._shards | {self._name: len(content)}

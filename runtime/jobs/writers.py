"""Writers of a shard: image files in a folder, a tar file for webdataset, or a Parquet file.

Every file is complete or does not exist, and one process at a time writes a shard. A finished shard
file is not touched again, except to replace an image that is damaged or has a changed row: then
the shard is rewritten with all images that are still valid.

To add an output format, implement `ShardWriter` and return it from `open_writer`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.errors import JobError
from runtime.files import remove_temporary, sha256_of, write_whole
from runtime.jobs.journal import COLUMNS, DONE, INVALID, Entry, ShardRecord
from runtime.jobs.prompts import PromptFile, Row
from runtime.jobs.shards import Item, Shard

OUTPUT_FORMATS = ("folder", "tar", "parquet")

# Columns of samples in shards: those that do not vary from run to run.
SAMPLE_COLUMNS = ("row", "id", "prompt", "index", "seed", "model", "sha256")

_COLUMN_TYPES = {
    "row": pa.int64(),
    "index": pa.int64(),
    "seed": pa.int64(),
    "bytes": pa.int64(),
    "milliseconds": pa.float64(),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}

# Rows per Parquet row group: bounded memory, few groups.
_GROUP = 1024

# Arrow types of the kept columns, by name.
ColumnTypes = dict[str, Any]


class ShardWriter(Protocol):
    """Writes the images of one shard, in the order of its items.

    Attributes:
        atomic: whether journal entries are recorded together, when the shard is finished.
        unfinished: after `resume`, whether images are in a shard file that is not finished.
    """

    atomic: bool
    unfinished: bool

    def resume(self, record: ShardRecord, valid: Sequence[Entry], verify: bool) -> list[Entry]:
        """Return the entries that need no more work, and remove all other files of the shard.

        Called first.

        Args:
            record: what earlier runs recorded.
            valid: its entries with unchanged items.
            verify: compare SHA-256, not only sizes.
        """

    def store(self, item: Item, data: bytes) -> None:
        """Write an encoded image early; called from any thread and in any order."""

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        """Write an encoded image in order, and set `file` and `key` of its entry."""

    def suspend(self) -> None:
        """Close files; a later run resumes."""

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        """Complete the shard; return sizes in bytes and SHA-256 of its shard files, by name."""


def open_writer(
    output_format: str, folder: Path, state: Path, shard: Shard, suffix: str, types: ColumnTypes
) -> ShardWriter:
    """Create the writer of `shard`.

    Args:
        output_format: one of `OUTPUT_FORMATS`.
        folder: the job's folder.
        state: folder for unfinished files, on the same file system.
        shard: the shard to write.
        suffix: of image files.
        types: Arrow types of the kept columns.
    """
    if output_format == "folder":
        return _FolderWriter(folder, shard, suffix)
    if output_format == "tar":
        return _TarWriter(folder, state, shard, suffix)
    return _ParquetWriter(folder, state, shard, suffix, types)


def sample_of(entry: Entry) -> dict[str, Any]:
    """Metadata of an image for shards and `metadata.jsonl`, with the kept columns."""
    kept = {name: it for name, it in entry.items() if name not in COLUMNS and name != INVALID}
    return {name: entry[name] for name in SAMPLE_COLUMNS} | kept


def _size_of(file: Path) -> int | None:
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _position(entry: Entry) -> tuple[int, int]:
    return entry["row"], entry["index"]


class _FolderWriter:
    """One file per image, in a folder per shard."""

    atomic = False
    unfinished = False

    def __init__(self, folder: Path, shard: Shard, suffix: str) -> None:
        self._folder, self._shard, self._suffix = folder, shard, suffix

    def _file(self, item: Item) -> str:
        return f"{self._shard.name}/{item.key}.{self._suffix}"

    def resume(self, record: ShardRecord, valid: Sequence[Entry], verify: bool) -> list[Entry]:
        remove_temporary(self._folder / self._shard.name)
        files = {self._file(item) for item in self._shard.items}
        for entry in record.entries:
            if entry["status"] == DONE and entry["file"] not in files:
                (self._folder / entry["file"]).unlink(missing_ok=True)
        return [e for e in valid if e["status"] != DONE or self._is_intact(e, verify)]

    def _is_intact(self, entry: Entry, verify: bool) -> bool:
        file = self._folder / entry["file"]
        if _size_of(file) != entry["bytes"]:
            return False
        return not verify or sha256_of(file) == entry["sha256"]

    def store(self, item: Item, data: bytes) -> None:
        write_whole(self._folder / self._file(item), data)

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        entry["file"], entry["key"] = self._file(item), item.key

    def suspend(self) -> None:
        pass

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        return {}, {}


class _FileWriter:
    """Base of writers with one file per shard.

    Attributes:
        atomic: whether a finished shard file is being rewritten; the old one stays until then.
        unfinished: after `resume`, whether it returned images of an unfinished shard file.
    """

    suffix: str

    def __init__(self, folder: Path, state: Path, shard: Shard, image_suffix: str) -> None:
        self._folder, self._state, self._shard = folder, state, shard
        self._image_suffix = image_suffix
        self._sizes: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._name = f"{shard.name}.{self.suffix}"
        # Shard files that are being rewritten as one, and the entries of their valid images.
        self._replaced: list[str] = []
        self._kept: deque[Entry] = deque()
        self.atomic = self.unfinished = False

    @property
    def _open(self) -> Path:
        return self._state / self._name

    def resume(self, record: ShardRecord, valid: Sequence[Entry], verify: bool) -> list[Entry]:
        sizes = record.sizes or {}
        finished = [e for e in record.entries if e["status"] == DONE and e["file"] in sizes]
        known = {id(entry) for entry in valid}
        good = [entry for entry in finished if id(entry) in known]
        intact = all(self._is_intact(record, name, finished, verify) for name in sizes)
        failed = [e for e in valid if e["status"] != DONE]
        if sizes and not (intact and len(good) == len(finished)):
            return failed + self._begin_rewrite(sizes, good)
        self._sizes, self._hashes = dict(sizes), dict(record.hashes)
        if sizes:
            self._name = f"{self._shard.name}-retry{len(sizes)}.{self.suffix}"
        unfinished = [e for e in record.entries if e["status"] == DONE and e["file"] == self._name]
        resumed = self._resume_open(unfinished, valid)
        self.unfinished = bool(resumed)
        return failed + good + resumed

    def _is_intact(
        self, record: ShardRecord, name: str, finished: Sequence[Entry], verify: bool
    ) -> bool:
        file = self._folder / name
        if _size_of(file) != (record.sizes or {})[name]:
            return False
        if not verify:
            return True
        if name in record.hashes:
            return sha256_of(file) == record.hashes[name]
        entries = [e for e in finished if e["file"] == name]
        return len(self._find_images([name], entries)) == len(entries)

    def _begin_rewrite(self, sizes: Mapping[str, int], good: Sequence[Entry]) -> list[Entry]:
        """Begin one new file for all files of the shard, with the images that are still valid."""
        self._replaced, self.atomic = sorted(sizes), True
        self._open.unlink(missing_ok=True)
        found = self._find_images(self._replaced, good)
        self._kept = deque(sorted((e for e in good if e["key"] in found), key=_position))
        self._begin(found)
        for entry in self._kept:
            entry["file"] = self._name
        return list(self._kept)

    def _kept_before(self, position: tuple[int, int] | None) -> Iterator[Entry]:
        """Pop kept entries before this position, or all of them."""
        while self._kept and (position is None or _position(self._kept[0]) < position):
            yield self._kept.popleft()

    def _finished(self, size: int, digest: str) -> tuple[dict[str, int], dict[str, str]]:
        """Remove replaced files, once the new one is in place."""
        self._remove_replaced(except_name=self._name)
        return self._sizes | {self._name: size}, self._hashes | {self._name: digest}

    def _remove_replaced(self, except_name: str | None = None) -> None:
        for name in self._replaced:
            if name != except_name:
                (self._folder / name).unlink(missing_ok=True)

    def store(self, item: Item, data: bytes) -> None:
        pass

    def _resume_open(self, unfinished: list[Entry], valid: Sequence[Entry]) -> list[Entry]:
        """Resume an unfinished shard file; return the entries of its intact images."""
        raise NotImplementedError

    def _find_images(self, files: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        """Find the intact images of entries, by key."""
        raise NotImplementedError

    def _begin(self, found: dict[str, Any]) -> None:
        """Prepare to rewrite the images that `_find_images` found."""
        raise NotImplementedError


class _TarWriter(_FileWriter):
    """Tar file of webdataset samples: image, `.txt` with the prompt, `.json` with metadata.

    It grows in the state folder, so that a killed job resumes after its last complete sample.
    """

    suffix = "tar"

    def __init__(self, folder: Path, state: Path, shard: Shard, image_suffix: str) -> None:
        super().__init__(folder, state, shard, image_suffix)
        self._file: BinaryIO | None = None
        self._found: dict[str, tuple[str, int]] = {}

    def _resume_open(self, unfinished: list[Entry], valid: Sequence[Entry]) -> list[Entry]:
        if not self._open.exists():
            finished = self._folder / self._name
            if not finished.exists():
                return []
            # The process was killed between moving the file into place and recording that.
            self._open.parent.mkdir(parents=True, exist_ok=True)
            finished.replace(self._open)
        end, good = 0, []
        known = {id(entry) for entry in valid}
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
        """Read the sample at `start`; None if it is incomplete, as after a power cut."""
        self._tar().seek(0, os.SEEK_END)
        if start + entry["bytes"] > self._tar().tell():
            return None
        self._tar().seek(start)
        sample = self._tar().read(len(self._packed(entry, bytes(entry["bytes"]))))
        image = sample[512 : 512 + entry["bytes"]]
        intact = hashlib.sha256(image).hexdigest() == entry["sha256"]
        return sample if intact and sample == self._packed(entry, image) else None

    def _tar(self) -> BinaryIO:
        if self._file is None:
            self._open.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open.open("r+b" if self._open.exists() else "w+b")
        return self._file

    def _find_images(self, files: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        wanted = {f"{entry['key']}.{self._image_suffix}": entry for entry in entries}
        found = {}
        for name in files:
            with (
                suppress(OSError, tarfile.TarError, ValueError),
                (self._folder / name).open("rb") as file,
                tarfile.open(fileobj=file, mode="r:") as archive,
            ):
                for member in archive:
                    entry = wanted.get(member.name)
                    if entry is None or member.size != entry["bytes"]:
                        continue
                    image = _content(archive, member)
                    if hashlib.sha256(image).hexdigest() == entry["sha256"]:
                        found[entry["key"]] = name, member.offset_data
        return found

    def _begin(self, found: dict[str, Any]) -> None:
        self._found = found
        self._tar()

    def _write_kept(self, position: tuple[int, int] | None) -> None:
        for entry in self._kept_before(position):
            name, start = self._found[entry["key"]]
            with (self._folder / name).open("rb") as old:
                old.seek(start)
                image = old.read(entry["bytes"])
            self._tar().write(self._packed(entry, image))

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        self._write_kept(item.position)
        entry["file"], entry["key"] = self._name, item.key
        self._tar().write(self._packed(entry, data))
        self._tar().flush()

    def _packed(self, entry: Entry, image: bytes) -> bytes:
        """Pack a sample as members of the archive, the image first."""
        sample = json.dumps(sample_of(entry), ensure_ascii=False).encode()
        contents = {self._image_suffix: image, "txt": entry["prompt"].encode(), "json": sample}
        packed = b""
        for suffix, content in contents.items():
            member = tarfile.TarInfo(f"{entry['key']}.{suffix}")
            member.size, member.mode = len(content), 0o644
            packed += member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
        return packed

    def suspend(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # disk full: unwritten images are generated again
                self._file.close()
            self._file = None

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        if self._file is None:
            return self._sizes, self._hashes
        self._write_kept(None)
        if self._tar().tell() == 0:  # no image of the shard is wanted any more
            self.suspend()
            self._open.unlink()
            self._remove_replaced()
            return {}, {}
        self._file.write(bytes(1024))  # two empty blocks end an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self.suspend()
        digest = sha256_of(self._open)
        self._open.replace(self._folder / self._name)
        return self._finished(size, digest)


class _ParquetWriter(_FileWriter):
    """Parquet file with the image bytes in each row, in the layout of Hugging Face datasets.

    It is written once all of its images exist; an unfinished shard is generated again.
    """

    suffix = "parquet"

    def __init__(
        self, folder: Path, state: Path, shard: Shard, image_suffix: str, types: ColumnTypes
    ) -> None:
        super().__init__(folder, state, shard, image_suffix)
        self._types = types
        self._rows: list[tuple[tuple[int, int], dict[str, Any]]] = []

    def _resume_open(self, unfinished: list[Entry], valid: Sequence[Entry]) -> list[Entry]:
        return []

    def _find_images(self, files: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
        wanted = {f"{entry['key']}.{self._image_suffix}": entry for entry in entries}
        found = {}
        for name in files:
            with (
                suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError),
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
        image = {"bytes": data, "path": f"{entry['key']}.{self._image_suffix}"}
        self._rows.append((_position(entry), {"image": image} | sample_of(entry)))

    def append(self, item: Item, data: bytes, entry: Entry) -> None:
        entry["file"], entry["key"] = self._name, item.key
        self._add(data, entry)

    def suspend(self) -> None:
        self._rows = []

    def finish(self) -> tuple[dict[str, int], dict[str, str]]:
        if not self._rows:  # nothing new, or no image of the shard is wanted any more
            self._remove_replaced()
            return self._sizes, self._hashes
        rows = [row for _, row in sorted(self._rows, key=lambda each: each[0])]
        schema = schema_of(["image", *SAMPLE_COLUMNS, *self._types], self._types)
        buffer = io.BytesIO()
        pq.write_table(_table_of(rows, schema), buffer, compression="none")  # images are compressed
        content = buffer.getvalue()
        write_whole(self._folder / self._name, content)
        return self._finished(len(content), hashlib.sha256(content).hexdigest())


class TypeInference:
    """Infers the Arrow types of the kept columns while rows stream through.

    Raises JobError, naming the column, if no type fits all of its values.
    """

    def __init__(self, prompts: PromptFile) -> None:
        self._path = prompts.path
        self._types: ColumnTypes = dict.fromkeys(prompts.keep_columns, pa.null())
        self._rows: list[Row] = []

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass the rows through."""
        for row in rows:
            if self._types:
                self._rows.append(row)
                if len(self._rows) == _GROUP:
                    self._flush()
            yield row
        self._flush()

    def _flush(self) -> None:
        for name, known in self._types.items():
            values = [row.columns[name] for row in self._rows]
            try:
                self._types[name] = _unified(known, pa.array(values).type)
            except (pa.ArrowException, OverflowError):
                self._types[name] = self._unify_each(name)
        self._rows = []

    def _unify_each(self, name: str) -> Any:
        """Unify row by row, to name the row that does not fit."""
        kind = self._types[name]
        for row in self._rows:
            try:
                kind = _unified(kind, pa.array([row.columns[name]]).type)
            except (pa.ArrowException, OverflowError) as error:
                raise JobError(
                    f"column {name!r} of {self._path} cannot be kept: it is {kind} before row "
                    f"{row.number}, which has {row.columns[name]!r:.60}; give it one type, or do "
                    "not keep it"
                ) from error
        raise JobError(f"column {name!r} of {self._path} cannot be kept: its types are mixed")

    def result(self) -> ColumnTypes:
        """Types after the last row. Raises JobError if Parquet cannot store one of them."""
        found = {name: _without_nulls(kind) for name, kind in self._types.items()}
        for name, kind in found.items():
            if _has_empty_struct(kind):
                raise JobError(
                    f"column {name!r} of {self._path} cannot be kept: it has objects without keys"
                )
        return found


def _unified(one: Any, other: Any) -> Any:
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _without_nulls(kind: Any) -> Any:
    """Replace the type of all-null columns by string."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in kind])
    return kind


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_list(kind):
        return _has_empty_struct(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return False


def types_to_text(types: ColumnTypes) -> str:
    """Serialize column types; inverse of `types_from_text`."""
    return base64.b64encode(pa.schema(list(types.items())).serialize().to_pybytes()).decode()


def types_from_text(text: str) -> ColumnTypes:
    """Deserialize column types. Raises ValueError if the text is damaged."""
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the column types are damaged: {error}") from error
    return dict(zip(schema.names, schema.types))


def schema_of(columns: Sequence[str], types: Mapping[str, Any]) -> Any:
    """Arrow schema, with `image` as an Image feature of Hugging Face datasets.

    Args:
        columns: names.
        types: of the kept columns; default: string.
    """
    schema = pa.schema(
        [(name, types.get(name, _COLUMN_TYPES.get(name, pa.string()))) for name in columns]
    )
    if "image" not in columns:
        return schema
    features = {
        field.name: {"_type": "Image"} if field.name == "image" else _feature(field.type)
        for field in schema
    }
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: Any) -> Any:
    """Feature of Hugging Face datasets for an Arrow type."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    name = {"double": "float64", "float": "float32"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}


def _table_of(rows: Sequence[dict[str, Any]], schema: Any) -> Any:
    """Build a table. Raises JobError, naming the column, if a value has another type."""
    columns = {}
    for field in schema:
        values = [_cell(row.get(field.name), field.type) for row in rows]
        try:
            columns[field.name] = pa.array(values, field.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise JobError(
                f"column {field.name!r} has a value that is not {field.type}: {error}"
            ) from error
    return pa.table(columns, schema=schema)


def _cell(value: Any, kind: Any) -> Any:
    if kind != pa.string() or value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> None:
    """Write any number of rows in bounded memory."""
    with pq.ParquetWriter(path, schema) as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, _GROUP)):
            writer.write_table(_table_of(group, schema))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()

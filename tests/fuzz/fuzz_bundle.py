"""Fuzz the readers of bundles and of the cache: every outcome is success or one of our errors.

    python tests/fuzz/fuzz_bundle.py --minutes 30 --seed 1

Damaged files have their hashes made right again, as a stranger would. What passes all checks is
loaded by OpenVINO and run, in a child process. The seed of each failure is printed; `--case SEED`
runs it again.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import damaged, damaged_json, damaged_xml

from runtime.bundle import (
    GENERATOR,
    GOLDEN,
    MANIFEST,
    MERGES,
    TEXT_ENCODER,
    Bundle,
    read_manifest,
    weights_file,
)
from runtime.compiled_cache import VerifiedFiles, read_kept
from runtime.errors import GalipEdgeError
from runtime.golden import read_golden
from runtime.graph_check import checked_graph
from runtime.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "runtime" / "default_model"
# No outcome may take longer, in seconds of this process.
SLOW = 10

# Reads folders from stdin, and answers each with a line.
CHILD = """
import sys
from pathlib import Path
from runtime import Pipeline, PipelineOptions
from runtime.errors import GalipEdgeError
options = PipelineOptions(threads=1, cache=False, precision="f32")
for line in sys.stdin:
    folder, whole = line.rstrip("\\n").rsplit(" ", 1)
    try:
        pipeline = Pipeline.from_bundle(folder, options)
        sentence = pipeline.encode(["a bird on a branch"])
        if whole == "1":
            pipeline.generate("a bird on a branch")
        print("passed", flush=True)
    except GalipEdgeError as error:
        print("refused", flush=True)
"""


class Fuzzer:
    """Damages one bundle again and again.

    Args:
        folder: of a bundle; it is copied.
        load: whether what passes the checks is loaded by OpenVINO.
    """

    def __init__(self, folder: Path, load: bool) -> None:
        self.load, self.outcomes = load, Counter[str]()
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name) / "bundle"
        shutil.copytree(folder, self.folder)
        self.good = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.manifest = read_manifest(self.folder)
        self.body = json.loads(self.good[MANIFEST])
        self.graphs = {
            name: gzip.decompress(self.good[name]).decode() for name in (TEXT_ENCODER, GENERATOR)
        }
        self._child: subprocess.Popen[str] | None = None

    def close(self) -> None:
        if self._child:
            self._child.kill()
            self._child.wait()
        self._temporary.cleanup()

    def run(self, seed: int) -> None:
        """One damaged bundle. Raises what is not one of our errors."""
        rng = random.Random(seed)
        case = rng.choice(
            (self.bytes, self.fields, self.graph, self.constants, self.merges, self.cache)
        )
        start = time.process_time()  # the machine may be busy
        try:
            outcome = case(rng)
        except GalipEdgeError as error:
            message, outcome = str(error), "refused"
            if len(message.encode()) > 2000:  # which it also can be
                raise ValueError("a long message") from error
        finally:
            for name, content in self.good.items():
                if (path := self.folder / name).read_bytes() != content:
                    path.write_bytes(content)
        assert time.process_time() - start < SLOW, f"slow: {case.__name__}"
        self.outcomes[f"{case.__name__}: {outcome}"] += 1

    def bytes(self, rng: random.Random) -> str:
        """Any file, and no hash made right."""
        name = rng.choice(list(self.good))
        (self.folder / name).write_bytes(damaged(self.good[name], rng))
        opened = Bundle.open(self.folder)
        assert opened.manifest == self.manifest
        return "passed"

    def fields(self, rng: random.Random) -> str:
        """A manifest whose own hash is right."""
        body = damaged_json(self.body, rng)
        if isinstance(body, dict):
            body.pop("manifest_sha256", None)
            try:
                canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
                text = json.dumps(
                    body | {"manifest_sha256": hashlib.sha256(canonical.encode()).hexdigest()}
                )
            except (RecursionError, ValueError):
                return "not written"
            (self.folder / MANIFEST).write_text(text)
        opened = Bundle.open(self.folder)
        read_golden(opened)
        return "passed"

    def graph(self, rng: random.Random) -> str:
        """A graph, with right hashes."""
        name = rng.choice((TEXT_ENCODER, GENERATOR))
        text = damaged_xml(self.graphs[name], rng)
        if rng.randrange(4) == 0:
            text = damaged(text.encode(), rng).decode("utf-8", "replace")
        packed = gzip.compress(text.encode(), 1)
        if rng.randrange(8) == 0:
            packed = damaged(packed, rng)
        return self._loaded(name, packed, text)

    def constants(self, rng: random.Random) -> str:
        """Shapes, axes and indices among the weights, with right hashes."""
        name = rng.choice((TEXT_ENCODER, GENERATOR))
        weights = weights_file(Path(name)).name
        content = bytearray(self.good[weights])
        places = [
            (
                int(line.split('offset="')[1].split('"')[0]),
                int(line.split('size="')[1].split('"')[0]),
            )
            for line in self.graphs[name].split("\n")
            if 'element_type="i64"' in line and "offset" in line
        ]
        for _ in range(rng.choice((1, 1, 3))):
            offset, size = rng.choice(places)
            at = offset + 8 * rng.randrange(size // 8)
            value = rng.choice((-1, 0, 1, 2, 77, 10**9, 2**31, 2**62, -(2**63), 2**40))
            content[at : at + 8] = value.to_bytes(8, "little", signed=True)
        return self._loaded(weights, bytes(content), None)

    def _loaded(self, name: str, content: bytes, text: str | None) -> str:
        (self.folder / name).write_bytes(content)
        self._rehash(name)
        opened = Bundle.open(self.folder)
        if text is not None:
            try:
                size = len(self.good[weights_file(Path(name)).name])
                checked_graph(text.encode(), size, self.manifest.signature(name))
            except ValueError:
                return "refused"
        if not self.load:
            return "passed"
        assert opened.manifest.model_hash
        return self._in_child(int("generator" in name))

    def _in_child(self, whole: int) -> str:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(f"{self.folder} {whole}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise AssertionError(f"OpenVINO ended the process with {self._child.wait()}")
        return "loaded" if answer == "passed\n" else "refused by OpenVINO"

    def merges(self, rng: random.Random) -> str:
        """A tokenizer's merges, with right hashes."""
        (self.folder / MERGES).write_bytes(damaged(self.good[MERGES], rng))
        self._rehash(MERGES)
        opened = Bundle.open(self.folder)
        try:
            Tokenizer(opened.read(MERGES).decode().splitlines())
        except ValueError:
            return "refused"
        return "passed"

    def cache(self, rng: random.Random) -> str:
        """VerifiedFiles, compiled models and marks in the user's own cache."""
        with tempfile.TemporaryDirectory() as name:
            root, path = Path(name), self.folder / GOLDEN
            stamps = VerifiedFiles(root)
            opened = Bundle.open(self.folder)
            state, sha256 = opened.states[GOLDEN], self.manifest.files[GOLDEN].sha256
            stamps.add(path, state._replace(ctime_ns=0), sha256)
            (stamp,) = (root / "verified").iterdir()
            stamp.write_bytes(damaged(stamp.read_bytes(), rng))
            assert stamps.has(path, state, sha256) in (True, False)
            assert read_kept(stamp) == stamp.read_bytes()
        return "passed"

    def _rehash(self, name: str) -> None:
        content = (self.folder / name).read_bytes()
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        body: dict[str, Any] = {**self.body, "files": {**self.body["files"], name: entry}}
        body.pop("manifest_sha256")
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        own = hashlib.sha256(canonical.encode()).hexdigest()
        (self.folder / MANIFEST).write_text(json.dumps(body | {"manifest_sha256": own}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run the case with this seed alone")
    parser.add_argument("--no-load", action="store_true", help="do not run OpenVINO")
    arguments = parser.parse_args()
    fuzzer, failed = Fuzzer(EMBEDDED, load=not arguments.no_load), 0
    try:
        if arguments.case is not None:
            fuzzer.run(arguments.case)
        end = time.monotonic() + 60 * arguments.minutes
        seed = arguments.seed * 1_000_000
        while arguments.case is None and time.monotonic() < end:
            try:
                fuzzer.run(seed)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                failed += 1
                print(f"case {seed}: {type(error).__name__}: {error}", flush=True)
            seed += 1
    finally:
        fuzzer.close()
    for outcome, count in sorted(fuzzer.outcomes.items()):
        print(f"{outcome:24} {count}")
    print(f"{sum(fuzzer.outcomes.values())} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""A bounded run of the fuzzer of checkpoints (tests/fixtures/fuzz_checkpoints.py runs longer)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_checkpoints import fuzz, kinds, outcome

pytestmark = pytest.mark.slow


def test_sound_files_load(tmp_path: Path) -> None:
    for name, (content, read) in kinds(tmp_path).items():
        (tmp_path / "sound").write_bytes(content)
        assert outcome(tmp_path / "sound", read) == "loaded", name


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_end_in_our_errors(seed: int, tmp_path: Path) -> None:
    odd: list[str] = []
    outcomes = fuzz(tmp_path, 150, seed, odd.append)
    assert not odd
    assert sum(n for name, n in outcomes.items() if name.endswith("refused")) > 50

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from made_data import batches, same, write

from galip_edge.data import Batch, DataConfig, DataError, Loader, Position, Schedule, build_loader
from galip_edge.data.dataset import CaptionedImages
from galip_edge.data.errors import PROBLEM_KINDS
from galip_edge.data.samples import Draw
from galip_edge.data.sources import build_dataset


def loader_of(root: Path, batch_size: int, workers: int = 0, **options: int) -> Loader:
    config = DataConfig("folder", str(root), image_size=16, seed=3, workers=workers)
    return build_loader(config, batch_size, **options)  # type: ignore[arg-type]


def test_an_epoch_has_every_image_once_and_the_next_another_order(folder: Path) -> None:
    loader = loader_of(folder, 4)
    epochs = [[key for batch in loader for key in batch.keys] for _ in range(3)]
    assert len(loader) == 3
    assert all(sorted(keys) == [f"{n:02}" for n in range(12)] for keys in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_a_sample_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    def dataset(seed: int) -> CaptionedImages:
        built = build_dataset(DataConfig("folder", str(folder), image_size=16, seed=seed))
        assert isinstance(built, CaptionedImages)
        return built

    reference = dataset(1)[Draw(2, 5)]
    assert torch.equal(dataset(1)[Draw(2, 5)].image, reference.image)
    assert not torch.equal(dataset(1)[Draw(3, 5)].image, reference.image)
    assert not torch.equal(dataset(2)[Draw(2, 5)].image, reference.image)
    assert torch.equal(dataset(1)[5].image, dataset(1)[Draw(0, 5)].image)
    captions = {dataset(1)[Draw(epoch, 5)].caption for epoch in range(20)}
    assert captions == {"caption 5 one", "caption 5 two"}
    with pytest.raises(IndexError, match=r"0\.\.11, got 12"):
        dataset(1)[12]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, workers: int) -> None:
    assert same(batches(loader_of(folder, 5, workers), 7), batches(loader_of(folder, 5), 7))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(folder: Path, world_size: int) -> None:
    whole = batches(loader_of(folder, 2 * world_size), 5)
    parts = [
        batches(loader_of(folder, 2, rank=rank, world_size=world_size), 5)
        for rank in range(world_size)
    ]
    joined = [
        Batch(
            torch.cat([part.images for part in step]),
            [caption for part in step for caption in part.captions],
            [key for part in step for key in part.keys],
            [],
        )
        for step in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 3, 5])
@pytest.mark.slow
def test_resume_is_exact(folder: Path, workers: int, done: int) -> None:
    undisturbed = batches(loader_of(folder, 5, workers), 8)
    first = loader_of(folder, 5, workers)
    batches(first, done)
    position = first.position
    assert position == Position(done // 2, 5 * (done % 2))
    second = loader_of(folder, 5, workers)
    second.resume(position)
    assert same(batches(second, 8 - done), undisturbed[done:])


def test_resume_with_another_number_of_processes(folder: Path) -> None:
    whole = batches(loader_of(folder, 4), 3)
    part = loader_of(folder, 2, rank=1, world_size=2)
    part.resume(Position(0, 4))
    assert [batch.keys for batch in batches(part, 2)] == [batch.keys[2:] for batch in whole[1:]]


def test_resume_where_no_batch_fits_any_more(folder: Path) -> None:
    loader = loader_of(folder, 8)
    loader.resume(Position(0, 6))
    assert loader.position == Position(1, 0)


def test_an_epoch_that_is_left_goes_on_where_it_was_left(folder: Path) -> None:
    loader = loader_of(folder, 4, workers=1)
    undisturbed = batches(loader_of(folder, 4), 3)
    assert same([next(iter(loader)), *loader], undisturbed)


def test_torchs_global_generator_is_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    batches(loader_of(folder, 4, workers=1), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_and_counted(folder: Path, workers: int) -> None:
    (folder / "03.jpg").write_bytes((folder / "03.jpg").read_bytes()[:300])
    write(folder / "05.txt", "\n \n")
    (folder / "07.txt").unlink()
    loader = loader_of(folder, 4, workers)
    seen = batches(loader, 3)
    assert [len(batch) for batch in seen] == [4, 4, 4]
    assert all(batch.images.shape == (4, 3, 16, 16) for batch in seen)
    assert not {"03", "05", "07"} & {key for batch in seen for key in batch.keys}
    skipped = {(p.kind, p.key) for batch in seen for p in batch.skipped}
    assert skipped == {
        ("unreadable image", "03"),
        ("empty captions", "05"),
        ("missing captions", "07"),
    }
    assert loader.skips.total == sum(len(batch.skipped) for batch in seen) >= 3
    assert list(loader.skips.to_dict()) == [k for k in PROBLEM_KINDS if k in loader.skips.counts]
    assert "unreadable image (first: 03)" in str(loader.skips)
    # The replacements are as repeatable as all else.
    again = loader_of(folder, 4)
    again.resume(Position(0, 4))
    assert same(batches(again, 2), seen[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_one_clear_sentence(folder: Path, workers: int) -> None:
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^32 images in a row are invalid, .*run galip-edge") as e:
        batches(loader_of(folder, 4, workers), 1)
    assert "\n" not in str(e.value)


def test_batch_larger_than_the_data_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"12 samples, too few .* 7 on each of 2 process\(es\)"):
        loader_of(folder, 7, world_size=2)


@pytest.mark.parametrize(
    ("length", "batch", "world", "expected"), [(12, 4, 1, 3), (12, 5, 1, 2), (12, 5, 2, 1)]
)
def test_batches_per_epoch(length: int, batch: int, world: int, expected: int) -> None:
    schedule = Schedule(length, batch, 0, world)
    assert schedule.batches_per_epoch == expected
    draws = list(islice(schedule.draws(Position(), seed=0), expected + 1))
    assert {draw.epoch for batch in draws[:-1] for draw in batch} == {0}
    assert {draw.epoch for draw in draws[-1]} == {1}
    position = Position()
    for _ in range(expected):
        assert position.epoch == 0
        position = schedule.after(position)
    assert position == Position(1, 0)


def test_bad_ranks_and_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1, got 2"):
        Schedule(10, 1, 2, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        Position(0, -1)


class DyingSource:
    """As if the system had killed the process for its memory."""

    def __len__(self) -> int:
        return 12

    def __getattr__(self, name: str) -> object:
        os._exit(9)


def test_dead_worker_is_one_clear_sentence(folder: Path) -> None:
    loader = loader_of(folder, 4, workers=1)
    loader.dataset.source = DyingSource()  # type: ignore[union-attr, assignment]
    with pytest.raises(DataError, match=r"a data-loading process died .*reduce workers"):
        batches(loader, 1)

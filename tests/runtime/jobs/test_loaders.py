"""Output folders as the data loaders of their users read them, with no glob."""

import io
import json
import shutil

import datasets
import pyarrow.parquet as pq
import pytest
from left import entries
from PIL import Image

from runtime import Job, JobOptions, PromptFile

pytestmark = pytest.mark.slow


@pytest.fixture(params=[1, 23])
def prompts(request, tmp_path) -> PromptFile:
    """A few, and one that is invalid: a manifest has more lines than there are images."""
    path = tmp_path / "p.jsonl"
    kept = {"score": 0.5, "tags": ["a", "b"], "of": {"kind": "wild", "seen": [1, 2]}}
    rows = [{"prompt": f"bird {i}", **kept} for i in range(request.param)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": " "}]))
    return PromptFile(path, keep_columns=tuple(kept))


def load(folder, tmp_path):
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    return found["train"]


@pytest.mark.parametrize("output_format", ["folder", "tar", "parquet"])
@pytest.mark.parametrize("finished", [True, False])
def test_datasets_loads_the_folder(output_format, finished, prompts, bundle, tmp_path, plain_model):
    job = Job(
        prompts, bundle, tmp_path / "out", JobOptions(output_format=output_format, shard_size=10)
    )
    for count, _ in enumerate(job):
        if not finished and count == 10:
            job.stop()
    if not list((tmp_path / "out").glob("0*")):
        pytest.skip("it has no image")
    found = load(tmp_path / "out", tmp_path)
    done = [entry for entry in entries(tmp_path / "out") if entry["status"] == "done"]
    assert len(found) == len(done) > 0
    # In the order of files for a folder, which is that of the rows.
    for row, entry in zip(found, done):
        image = row["png"] if output_format == "tar" else row["image"]
        assert isinstance(image, Image.Image)
        assert image.size == (8, 8)
        facts = row["json"] if output_format == "tar" else row
        assert (row["txt"] if output_format == "tar" else facts["prompt"]) == entry["prompt"]
        assert (facts["seed"], facts["score"]) == (entry["seed"], 0.5)
        assert list(facts["tags"]) == ["a", "b"]
        assert facts["of"] == {"kind": "wild", "seen": [1, 2]}
    shutil.rmtree(tmp_path / "cache")


def test_images_of_parquet_are_an_image_feature(prompts, bundle, tmp_path, plain_model):
    list(Job(prompts, bundle, tmp_path / "out", JobOptions(output_format="parquet", shard_size=10)))
    shard = tmp_path / "out" / "00000000.parquet"
    features = datasets.Features.from_arrow_schema(pq.read_schema(shard))
    assert isinstance(features["image"], datasets.Image)
    assert features["seed"].dtype == "int64"
    # pyarrow, and all that builds on it, reads the folder as one table.
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == sum(e["status"] == "done" for e in entries(tmp_path / "out"))
    Image.open(io.BytesIO(table["image"][0].as_py()["bytes"])).load()


def test_imagefolder_has_the_captions(prompts, bundle, tmp_path, plain_model):
    list(Job(prompts, bundle, tmp_path / "out", JobOptions(shard_size=10)))
    options = {"data_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
    found = datasets.load_dataset("imagefolder", **options)["train"]
    done = [entry for entry in entries(tmp_path / "out") if entry["status"] == "done"]
    assert list(found["prompt"]) == [entry["prompt"] for entry in done]


def test_webdataset_reads_every_tar_of_the_folder(prompts, bundle, tmp_path, plain_model):
    import webdataset

    list(Job(prompts, bundle, tmp_path / "out", JobOptions(output_format="tar", shard_size=10)))
    shards = sorted(map(str, (tmp_path / "out").rglob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    done = [entry for entry in entries(tmp_path / "out") if entry["status"] == "done"]
    assert [sample["txt"] for sample in samples] == [entry["prompt"] for entry in done]
    assert all(sample["json"]["of"]["seen"] == [1, 2] for sample in samples)

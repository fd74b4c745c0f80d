"""Text pretraining after contrastive training of a CLIP: resuming, order, settings."""

import json

import pytest
import torch
from clip_runs import SETTINGS, steps_of, train_killed, write_images
from safetensors.torch import load_file

from galip_edge.aviary.data import AviaryConfig
from galip_edge.aviary.text_pretraining import WordTraining
from galip_edge.errors import ConfigError
from galip_edge.training.contrastive import (
    ContrastiveConfig,
    _comparable,
    load_contrastive_config,
    train_clip,
)

pytestmark = pytest.mark.slow


def config(folder, *changes) -> ContrastiveConfig:
    settings = [*SETTINGS, "words.steps=0", "data.samples=64", f"output={folder}"]
    settings += [f"data.cache={folder.parent / 'cache'}", *changes]
    return load_contrastive_config("aviary-narrow", settings)


@pytest.mark.parametrize("killed_at", [{"step": 4}, {"words_step": 2}, {"words_step": 6}])
def test_killed_anywhere_it_ends_where_an_unbroken_run_ends(killed_at, tmp_path):
    changes = ("patch_dropout=0.5", "words.steps=7", "words.batch_size=4", "words.warmup=2")
    whole = train_clip(config(tmp_path / "whole", *changes))
    broken = config(tmp_path / "broken", *changes)
    train_killed(broken, killed_at)
    a, b = load_file(whole), load_file(train_clip(broken))
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "broken")]
    assert [steps_of(log) for log in logs] == [[2, 4, 6, 2, 4, 6, 7]] * 2
    if "words_step" in killed_at:
        assert logs[0] == logs[1]


def test_the_word_phase_continues_and_does_not_start_over(tmp_path):
    changes = ("words.steps=9", "words.batch_size=4", "words.warmup=2")
    train_killed(config(tmp_path / "run", *changes), {"words_step": 8})
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["words"]["steps_done"] == 6
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        step = WordTraining.step
        patch.setattr(
            WordTraining, "step", lambda self: (steps.append(self.steps_done), step(self))[1]
        )
        train_clip(config(tmp_path / "run", *changes))
    assert steps == [6, 7, 8]


def test_a_run_killed_at_its_words_may_end_without_them(tmp_path):
    """The section [words] is deleted."""
    settings = [*SETTINGS, f"output={tmp_path}/run", "steps=3"]
    settings.append(f"data.root={write_images(tmp_path / 'images', 16)}")
    words = ("words.steps=6", "words.batch_size=4", "words.warmup=2")
    train_killed(load_contrastive_config("own", [*settings, *words]), {"words_step": 4})
    before = (tmp_path / "run/clip.safetensors").read_bytes()
    assert train_clip(load_contrastive_config("own", settings)).read_bytes() == before


def test_more_contrast_after_the_words_teaches_them_again(tmp_path):
    changes = ("words.steps=9", "words.batch_size=4", "words.warmup=2")
    train_killed(config(tmp_path / "run", *changes), {"words_step": 8})
    before = load_file(tmp_path / "run/clip.safetensors")
    after = load_file(train_clip(config(tmp_path / "run", *changes, "steps=8")))
    assert not torch.equal(before["visual.proj"], after["visual.proj"])
    log = (tmp_path / "run/metrics.jsonl").read_text()
    assert steps_of(log)[-5:] == [2, 4, 6, 8, 9]


def test_words_are_taught_at_last_and_once(tmp_path):
    changes = ("words.steps=6", "words.batch_size=4", "words.warmup=2")
    path = train_clip(config(tmp_path / "run", *changes))
    plain, taught = load_file(train_clip(config(tmp_path / "plain"))), load_file(path)
    for name, tensor in plain.items():
        same = torch.equal(tensor, taught[name])
        assert same == (name.startswith("visual.") or name == "logit_scale"), name
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("words_step") for line in lines][-3:] == [2, 4, 6]
    assert load_file(train_clip(config(tmp_path / "run", *changes))).keys() == taught.keys()
    assert (tmp_path / "run/metrics.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("words.steps=-1", "words.*steps.*-1"),
        ("words.learning_rate=0", "learning_rate.*0"),
    ],
)
def test_bad_settings_are_named(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path / "run", setting)


def test_states_of_earlier_versions_are_of_the_same_run():
    data = {"kind": "aviary", "samples": 64, "seed": 0}
    before = json.dumps([{"vision_width": 64}, data, 8])

    def now(**changes):
        settings = AviaryConfig(samples=64, **changes).to_dict()
        return _comparable(json.dumps([{"vision_width": 64}, settings, 8]))

    assert _comparable(before) == now(variety="narrow")
    assert _comparable(before) != now()
    assert _comparable(before) != now(variety="narrow", seed=1)

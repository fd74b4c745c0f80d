"""The phases before adversarial training: rendering, then features, then both together."""

import json

import pytest
import torch
from aviary_pairs import aviary_config, batch, trainer
from changed_parts import changed_parts, snapshot
from safetensors.torch import load_file

from galip_edge.aviary.pretraining import RegressionConfig
from galip_edge.errors import ConfigError
from galip_edge.training.pretraining import phase_at
from galip_edge.training.run import train

pytestmark = pytest.mark.slow

SETTINGS = [
    "steps=8", "pretraining.warmup_lr=2e-3",
    "pretraining.autoencoder_steps=2", "pretraining.features_steps=2", "pretraining.warmup_steps=2",
]  # fmt: skip


def config(tmp_path, *changes):
    return aviary_config(tmp_path, *SETTINGS, *changes)


def test_phases_follow_one_another():
    lengths = {"autoencoder_steps": 2, "features_steps": 3, "detail_steps": 2, "warmup_steps": 1}
    config = RegressionConfig(weight=1, **lengths)
    names = [phase and phase.name for phase in (phase_at(i, config.phases) for i in range(9))]
    assert names == [*["autoencoder"] * 2, *["features"] * 3, *["details"] * 2, "all", None]
    assert phase_at(0, RegressionConfig().phases) is None


def test_the_rate_rises_stays_and_falls_in_each_phase():
    config = RegressionConfig(weight=1, autoencoder_steps=100, warmup_steps=1000)
    for first, steps in ((0, 100), (100, 1000)):
        factors = [phase_at(first + i, config.phases).rate_factor for i in range(steps)]
        assert 0 < factors[0] <= 0.5
        assert factors[steps // 10] == factors[steps // 2] == 1
        assert 0 < factors[-1] < 0.03
        top = factors.index(1)
        assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(
    ("phase", "term", "moved"),
    [
        ("autoencoder_steps=40", "reconstruction", {"upsampling", "feature_encoder"}),
        ("features_steps=40", "features", {"lower"}),
        ("detail_steps=40", "regression", {"upsampling", "lower"}),
        ("warmup_steps=40", "regression", {"upsampling", "lower"}),
    ],
)
def test_each_phase_learns_its_own_part(tmp_path, phase, term, moved):
    before_it = ["autoencoder_steps=2", "features_steps=0", "warmup_steps=0"]
    settings = [*before_it, phase]
    mine = trainer(config(tmp_path, *(f"pretraining.{s}" for s in settings)))
    first = 0 if phase.startswith("autoencoder") else 2
    for number in range(first):
        mine.step(number, *batch())
    before = snapshot(mine)
    reports = [mine.step(first + i, *batch()).values for i in range(40)]
    assert set(reports[0]) == {f"generator/{term}", "generator/norm"}
    assert reports[-1][f"generator/{term}"] < 0.8 * reports[0][f"generator/{term}"]
    assert changed_parts(before, mine) == moved


def test_features_start_small(tmp_path):
    mine = trainer(config(tmp_path, "pretraining.features_steps=5000"))
    projection = mine.model.generator.visual_projection.weight
    for number in range(2):
        mine.step(number, *batch())
    before = projection.norm().item()
    mine.step(2, *batch())
    assert projection.norm().item() == pytest.approx(0.05 * before, rel=0.1)


def test_the_features_phase_has_its_own_rate_and_the_visual_concept_joins_late(tmp_path):
    changes = ["features_steps=4", "features_without_concept=0.5", "features_learning_rate=1e-4"]
    mine, seen, rates = trainer(config(tmp_path, *(f"pretraining.{c}" for c in changes))), [], []
    mine.model.generator.vit.register_forward_hook(lambda *_: seen.append(number))
    for number in range(7):
        mine.step(number, *batch())
        rates.append(mine.generator.optimizer.param_groups[0]["lr"])
    assert seen == [4, 5, 6]  # the last one is a step of the whole generator
    assert max(rates[2:6]) == pytest.approx(1e-4)
    assert rates[0] == pytest.approx(2e-3)


@pytest.mark.parametrize("first", [0, 2, 4])
def test_parts_equal_the_whole_batch(tmp_path, first):
    values = []
    for size in ("6", "4"):
        mine = trainer(config(tmp_path, "pretraining.detail_steps=2", f"micro_batch_size={size}"))
        values.append([mine.step(i, *batch()).values for i in range(first + 1)][-1])
    assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-5)


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path):
    details = "pretraining.detail_steps=2"
    whole = train(config(tmp_path, details, "steps=10"))
    (tmp_path / "again").mkdir()
    for steps in (1, 3, 5, 8, 10):  # in the middle of phases, and at their borders
        train(config(tmp_path, details, f"steps={steps}", f"output={tmp_path}/again"))
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(whole.model).items())
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    terms = [set(json.loads(line)) for line in lines]
    for at, term in enumerate(("reconstruction", "features", "regression", "regression")):
        assert f"generator/{term}" in terms[2 * at]
    assert "discriminator/total" in terms[8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["pretraining.autoencoder_steps=-1"], "autoencoder_steps.*-1"),
        (["pretraining.autoencoder_steps=0"], "features_steps.*autoencoder_steps"),
        (["pretraining.weight=0"], "autoencoder_steps is 2.*weight"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, *changes)

"""Regression on images whose noise is known, before and during adversarial training."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aviary_pairs import aviary_config, batch, trainer
from two_processes import run_twice

from galip_edge.aviary import pretraining
from galip_edge.aviary.classifier import FACING
from galip_edge.aviary.data import AviaryConfig, AviarySource, draw, drawing
from galip_edge.errors import ConfigError
from galip_edge.training.config import TrainConfig, load_config
from galip_edge.training.distributed import World, join_world
from galip_edge.training.run import train

pytestmark = pytest.mark.slow


def config(tmp_path, *changes):
    return aviary_config(tmp_path, "steps=4", "pretraining.warmup_steps=2", *changes)


def test_warming_up_changes_the_generator_alone_and_learns(tmp_path):
    settings = ("pretraining.warmup_steps=1000", "pretraining.warmup_lr=2e-3")
    mine = trainer(config(tmp_path, *settings))
    before = [p.clone() for p in mine.discriminator.parameters.values()]
    examples = batch()
    first = mine.step(0, *examples).values
    assert set(first) == {"generator/regression", "generator/norm"}
    for number in range(1, 40):
        last = mine.step(number, *examples).values
    assert last["generator/regression"] < 0.9 * first["generator/regression"]
    assert all(torch.equal(a, b) for a, b in zip(before, mine.discriminator.parameters.values()))


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_long_gradients_are_clipped(tmp_path, limit):
    changes = ("pretraining.warmup_betas=[0.5, 0.999]", f"pretraining.max_grad_norm={limit}")
    mine = trainer(config(tmp_path, *changes))
    norm = mine.step(0, *batch()).values["generator/norm"]  # before clipping
    moments = [state["exp_avg"] for state in mine.generator.optimizer.state.values()]
    used = 2 * torch.stack([each.norm() for each in moments]).norm().item()
    assert 1e-3 < norm < 1e3
    assert used == pytest.approx(min(norm, limit), rel=1e-4)


def test_the_optimizer_changes_when_adversarial_training_begins(tmp_path):
    settings = ("pretraining.warmup_steps=1", "pretraining.warmup_lr=2e-3")
    mine, seen = trainer(config(tmp_path, *settings)), []
    for number in range(2):
        mine.step(number, *batch())
        group = mine.generator.optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"]))
    usual = config(tmp_path).optimizer
    assert seen == [(2e-3, (0.9, 0.999)), (usual.generator_lr, usual.betas)]


def test_after_that_both_losses_act(tmp_path):
    reports = {}
    for weight in (10.0, 20.0):
        changes = ("pretraining.warmup_steps=0", f"pretraining.weight={weight}")
        mine = trainer(config(tmp_path, *changes))
        reports[weight] = mine.step(0, *batch()).values
    assert reports[10.0]["generator/regression"] == reports[20.0]["generator/regression"]
    assert reports[10.0]["generator/norm"] != pytest.approx(reports[20.0]["generator/norm"])
    assert reports[10.0]["discriminator/total"] == reports[20.0]["discriminator/total"]


@pytest.mark.parametrize("warmup", [0, 10])
def test_parts_equal_the_whole_batch(tmp_path, warmup):
    values = []
    for size in ("6", "4"):
        settings = (f"micro_batch_size={size}", f"pretraining.warmup_steps={warmup}")
        values.append(trainer(config(tmp_path, *settings)).step(0, *batch()).values)
    assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-5)


PROJECTED = ("projected.weight=1", "projected.width=16", "projected.projection=8")


@pytest.mark.parametrize("phase", ["autoencoder_steps", "warmup_steps", "none"])
def test_features_are_compared_wherever_images_are(tmp_path, phase):
    found = []
    for weight in (0.02, 20.0):
        steps = {"autoencoder_steps": 0, "features_steps": 0, "warmup_steps": 0}
        if phase != "none":
            steps[phase] = 4
        changes = [f"pretraining.{name}={value}" for name, value in steps.items()]
        changes.append(f"pretraining.perceptual_weight={weight}")
        mine = trainer(config(tmp_path, *PROJECTED, *changes))
        found.append(mine.step(0, *batch()).values)
    assert ("generator/perceptual" in found[0]) == (phase != "none")
    assert found[1]["generator/norm"] > 2 * found[0]["generator/norm"]


@pytest.mark.parametrize("name", ["beak_weight", "bird_weight"])
@pytest.mark.parametrize("phase", ["autoencoder_steps", "warmup_steps", "none"])
def test_pixels_around_the_beak_or_bird_may_weigh_more(tmp_path, phase, name):
    steps = {"autoencoder_steps": 0, "warmup_steps": 0} | ({} if phase == "none" else {phase: 4})
    changes = [f"pretraining.{name}={value}" for name, value in steps.items()]
    images, sentence, keys, captions = batch()
    found = []
    for weight, size in ((0, 6), (50, 6), (50, 4)):
        settings = (f"pretraining.{name}={weight}", f"micro_batch_size={size}")
        mine = trainer(config(tmp_path, *changes, *settings))
        values = mine.step(0, images, sentence, keys, captions).values
        term = "reconstruction" if phase == "autoencoder_steps" else "regression"
        found.append(values[f"generator/{term}"])
    assert found[1] > 1.1 * found[0]
    assert found[2] == pytest.approx(found[1], rel=1e-4)


def test_the_weight_of_a_bird_lies_on_it_and_is_larger_for_small_ones(tmp_path):
    """Where an image changes without its bird, the weight is several times as high."""
    changes = ("bird_weight=1", "warmup_steps=0", "autoencoder_steps=0", "features_steps=0")
    mine = trainer(config(tmp_path, *(f"pretraining.{each}" for each in changes))).pretraining
    source, (*_, keys, captions) = AviarySource(AviaryConfig(variety="wide")), batch(24)
    mine.noise(0, keys, captions)
    images = torch.zeros(24, 3, 64, 64)
    weights = mine._importance(SimpleNamespace(images=images, noise=images, first=0))[:, 0] - 1
    totals = {"small": [], "large": []}
    for index, weight in enumerate(weights):
        scene, noise = source.scene(index), source.noise(index)
        whole = np.asarray(draw(scene, noise, 64), int)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing._Plan, "figure", "")
            differs = np.abs(np.asarray(draw(scene, noise, 64)) - whole).max(2) > 8
        bird = torch.from_numpy(differs)
        assert weight[bird].mean() > 2.5 * weight[~bird].mean()
        totals[scene.size].append(weight[bird].mean())
    assert np.mean(totals["small"]) > 1.5 * np.mean(totals["large"])


def test_half_of_the_parts_show_the_beak(tmp_path):
    settings = ("pretraining.detail_steps=4", "pretraining.warmup_steps=0")
    mine = trainer(config(tmp_path, *settings)).pretraining
    *_, keys, captions = batch(40)
    mine.noise(0, keys, captions)
    first, side = mine._corners.clone(), mine.trainer.model.config.block_sizes[0]
    inside = mine._beaks[:, :2] * side - first  # in a part of half the side
    shown = ((inside >= side / 8) & (inside <= side * 3 / 8)).all(1)
    assert 0.4 < shown.float().mean() < 0.9
    assert first.min() == 0
    assert first.max() == side // 2
    mine.noise(0, keys[:6], captions[:6])
    assert torch.equal(mine._corners, first[:6])
    mine.noise(1, keys, captions)
    assert (mine._corners != first).any()


def test_parts_at_bodies_contain_their_center(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "_PARTS_AT_BEAKS", 0)
    monkeypatch.setattr(pretraining, "_PARTS_AT_BODIES", 1)
    settings = ("pretraining.detail_steps=4", "pretraining.warmup_steps=0")
    mine, (*_, keys, captions) = trainer(config(tmp_path, *settings)).pretraining, batch(40)
    mine.noise(0, keys, captions)
    source, side = AviarySource(AviaryConfig()), mine.trainer.model.config.block_sizes[0]
    centers = [(at.x * side, at.y * side) for at in map(source.layout, range(40))]
    inside = torch.tensor(centers) - mine._corners
    assert (inside > -0.6).all()  # corners are whole pixels
    assert (inside < side / 2 + 0.6).all()


def test_further_noise_is_drawn_while_it_is_learned_from(tmp_path):
    changes = (*MAPPING, "pretraining.autoencoder_steps=1", "pretraining.features_steps=1")
    mine, (*_, keys, captions) = trainer(config(tmp_path, *changes)).pretraining, batch()
    drawn = []
    for number in range(4):
        mine.noise(number, keys, captions)
        drawn.append(mine._more_noise.shape[1])
    assert drawn == [32, 32, 0, 0]


@pytest.mark.parametrize("weight", [0, 50])
@pytest.mark.parametrize("phase", ["details", "adversarial"])
def test_details_are_compared_with_the_same_part_of_the_image(tmp_path, phase, weight):
    """A generator that is right there has no error, whatever it draws elsewhere."""
    in_details = ("pretraining.detail_steps=4", "pretraining.warmup_steps=0")
    later = ("pretraining.adversarial_detail_weight=1", "pretraining.warmup_steps=0")
    settings = {"details": in_details, "adversarial": later}[phase]
    mine = trainer(config(tmp_path, *settings, f"pretraining.beak_weight={weight}"))
    images, sentence, keys, captions = batch()
    noise = mine.pretraining.noise(0, keys, captions)
    with torch.no_grad():
        rendered = mine.model.generator(noise, sentence)
    right = images.clone()
    for i, (column, row) in enumerate((mine.pretraining._corners * 8).tolist()):
        place = (i, slice(None), slice(row, row + 32), slice(column, column + 32))
        right[place] = rendered[place]
    name = {"details": "generator/regression", "adversarial": "generator/details"}[phase]
    errors = [
        trainer(mine.config).step(0, real, sentence, keys, captions).values[name]
        for real in (images, right)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_the_adversarial_loss_of_details_has_a_weight(tmp_path):
    found = []
    for weight in (0, 0.02, 100.0):
        changes = ("warmup_steps=0", f"adversarial_detail_weight={weight}")
        mine = trainer(config(tmp_path, *(f"pretraining.{each}" for each in changes)))
        found.append(mine.step(0, *batch()).values)
    assert ["generator/details" in values for values in found] == [False, True, True]
    assert found[2]["generator/norm"] > 2 * found[1]["generator/norm"]


@pytest.mark.parametrize("change", ["weight=0", "adversarial_weight=0"])
def test_an_adversarial_loss_of_details_needs_regression(tmp_path, change):
    none = ("autoencoder_steps=0", "features_steps=0", "warmup_steps=0")
    changes = (*none, "adversarial_detail_weight=1", change)
    with pytest.raises(ConfigError, match=r"adversarial_detail_weight is 1.*set weight"):
        config(tmp_path, *(f"pretraining.{each}" for each in changes))


def test_a_distance_of_features_needs_features(tmp_path):
    with pytest.raises(ConfigError, match=r"perceptual_weight needs .*projected\.weight"):
        config(tmp_path, "pretraining.perceptual_weight=1")


def test_only_the_first_caption_of_a_narrow_image_has_noise(tmp_path):
    with pytest.raises(ConfigError, match=r"narrow.*data\.captions = 1, got 4"):
        config(tmp_path, "data.variety=narrow", "data.captions=4")


def test_captions_of_an_image_have_noise_of_their_own(tmp_path):
    mine = trainer(config(tmp_path, "data.captions=4"))
    source = AviarySource(AviaryConfig(captions=4))
    texts = source.captions(0)
    assert len(texts) > 1
    keys = ["train/000000"] * len(texts)
    noise = mine.pretraining.noise(3, keys, texts)
    assert torch.equal(noise, mine.pretraining.noise(3, keys, texts))
    assert torch.equal(noise[1:], mine.pretraining.noise(3, keys[1:], texts[1:]))
    assert not torch.equal(noise, mine.pretraining.noise(4, keys, texts))
    assert (noise[0] != noise[1]).any()
    assert torch.equal(noise[0, -56:], noise[1, -56:])


def test_images_without_keys_are_refused(tmp_path):
    images, sentence, *_ = batch()
    with pytest.raises(ValueError, match="noise"):
        trainer(config(tmp_path)).step(0, images, sentence)


def test_a_run_warms_up_and_goes_on(tmp_path):
    result = train(config(tmp_path))
    assert result.finished
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert ["discriminator/total" in record for record in records] == [False, False, True, True]
    assert all("generator/regression" in record for record in records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.flip=true", "flip"),
        ("data.resize=80", "resize.*80"),
        ("model.noise_dim=16", "noise_dim.*100.*16"),
        ("pretraining.weight=-1", "weight.*-1"),
        ("pretraining.beak_weight=-1", "beak_weight.*-1"),
        ("pretraining.weight=0", "warmup_steps"),
        ("pretraining.warmup_steps=-1", "warmup_steps.*-1"),
        ("pretraining.warmup_lr=0", "warmup_lr.*0"),
        ("pretraining.warmup_betas=[0.9, 1.0]", "warmup_betas.*1.0"),
        ("pretraining.max_grad_norm=0", "max_grad_norm.*0"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, change)


def test_other_data_has_no_noise(tmp_path):
    with pytest.raises(ConfigError, match="regression"):
        load_config("cub", ["data.root=x", "pretraining.weight=1"])


def test_the_former_section_is_accepted(tmp_path):
    path = tmp_path / "former.toml"
    path.write_text(
        'output = "x"\nsteps = 1\nclip = "random"\n[model]\npreset = "tiny"\nnoise_dim = 100\n'
        '[data]\nkind = "aviary"\nflip = false\nimage_size = 64\nresize = 64\n'
        "[regression]\nweight = 10.0\nwarmup_steps = 2\nwarmup_rate = 1e-3\n"
    )
    found = load_config(str(path), ["regression.warmup_steps=5"]).pretraining
    assert (found.weight, found.warmup_steps, found.warmup_lr) == (10.0, 5, 1e-3)
    changed = load_config(str(path), ["pretraining.weight=3"]).pretraining
    assert (changed.weight, changed.warmup_steps) == (3.0, 2)


MAPPING = ("model.mapping_width=64", "model.categories=[5, 9, 5, 6, 4, 2, 4, 6, 6]")


LAYOUT_TOO = ("model.mapping_width=64", "model.categories=[5, 9, 5, 6, 4, 2, 4, 6, 6, 2, 6]")


@pytest.mark.parametrize("mapping", [MAPPING, LAYOUT_TOO])
def test_a_mapping_network_learns_the_choices_of_the_scenes(tmp_path, mapping):
    changes = ("warmup_steps=1000", "warmup_lr=5e-3", "choice_samples=0")
    mine = trainer(config(tmp_path, *mapping, *(f"pretraining.{each}" for each in changes)))
    images, sentence, keys, captions = batch()
    reports = [mine.step(i, images, sentence, keys, captions).values for i in range(60)]
    assert set(reports[0]) == {"generator/regression", "generator/choices", "generator/norm"}
    assert reports[-1]["generator/choices"] < 0.3 * reports[0]["generator/choices"]
    source = AviarySource(AviaryConfig(variety="wide"))
    labels = torch.tensor([[*source.scene(i).labels().values()] for i in range(len(keys))])
    noise = mine.pretraining.noise(60, keys, captions)
    scores = mine.model.generator.mapping.logits(noise, sentence)
    found = torch.stack([each.argmax(1) for each in scores], dim=1)
    assert (found[:, : labels.shape[1]] == labels).float().mean() > 0.9
    for direction in found[:, labels.shape[1] : labels.shape[1] + 1].T:
        facing = [source.layout(i).facing for i in range(len(keys))]
        assert [FACING[index] for index in direction] == facing


def test_a_mapping_network_learns_from_further_noise_for_each_caption(tmp_path):
    """Without, it would have to infer from 6 images how noise decides."""
    images, sentence, keys, captions = batch()
    right = []
    for count in (0, 32):
        changes = ("warmup_steps=1000", "warmup_lr=5e-3", f"choice_samples={count}")
        mine = trainer(config(tmp_path, *LAYOUT_TOO, *(f"pretraining.{each}" for each in changes)))
        for number in range(60):
            mine.step(number, images, sentence, keys, captions)
        mine.pretraining.config = replace(mine.pretraining.config, choice_samples=32)
        mine.pretraining.noise(999, keys, captions)
        noise, values = mine.pretraining._more_noise, mine.pretraining._more_values
        assert noise.shape == (6, 32, 100)
        sentences = sentence.repeat_interleave(32, dim=0)
        scores = mine.model.generator.mapping.logits(noise.flatten(0, 1), sentences)
        found = torch.stack([each.argmax(1) for each in scores], dim=1)
        right.append((found == values.flatten(0, 1)).float().mean())
    assert right[1] > right[0] + 0.1


def test_other_layers_learn_from_the_true_choices(tmp_path):
    """So they learn the same, whatever the mapping network chooses."""
    losses = []
    for factor in (0, 100):
        mine = trainer(config(tmp_path, *MAPPING))
        with torch.no_grad():
            mine.model.generator.mapping.layers[-1].weight *= factor
        losses.append(mine.step(0, *batch()).values)
    assert losses[0]["generator/regression"] == losses[1]["generator/regression"]
    assert losses[0]["generator/choices"] != losses[1]["generator/choices"]


@pytest.mark.parametrize("size", [4, 1])
def test_choices_of_parts_are_those_of_the_whole_batch(tmp_path, size):
    values = []
    for each in (6, size):
        mine = trainer(config(tmp_path, *MAPPING, f"micro_batch_size={each}"))
        values.append(mine.step(0, *batch()).values)
    assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-5)


def first_step(settings, world=None):
    """Values that the first step reports, with a part of the batch for each process."""
    world = world or World()
    examples = batch()
    count = len(examples[0]) // world.size
    part = slice(world.rank * count, (world.rank + 1) * count)
    return trainer(settings, world).step(0, *(each[part] for each in examples)).values


@pytest.mark.parametrize("warmup", [0, 4])
def test_choices_of_two_processes_are_those_of_one(tmp_path, warmup):
    settings = config(tmp_path, *MAPPING, f"pretraining.warmup_steps={warmup}")
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict()))
    run_twice(__file__, tmp_path)
    values = json.loads((tmp_path / "values.json").read_text())
    assert values == pytest.approx(first_step(settings), rel=1e-4, abs=1e-5)
    assert "generator/choices" in values


def test_categories_must_be_the_attributes(tmp_path):
    with pytest.raises(ConfigError, match=r"set model\.categories to \[5, 9, .*got \[2, 3\]"):
        config(tmp_path, "model.mapping_width=8", "model.categories=[2, 3]")
    with pytest.raises(ConfigError, match="narrow images have one direction and composition: set"):
        config(tmp_path, *LAYOUT_TOO, "data.variety=narrow", "data.captions=1")


PHASES = ("autoencoder_steps", "features_steps", "detail_steps", "warmup_steps")


@pytest.mark.parametrize(
    ("lengths", "taught"),
    [
        ((1, 1, 1, 1), [True, True, False, False, False]),
        ((0, 0, 1, 1), [True, True, False]),
        ((0, 0, 0, 0), [True]),
    ],
)
def test_a_mapping_network_is_trained_until_it_has_learned(lengths, taught, tmp_path):
    settings = [f"pretraining.{name}={n}" for name, n in zip(PHASES, lengths, strict=True)]
    mine = trainer(config(tmp_path, *MAPPING, *settings, "optimizer.generator_delay=0"))
    images, sentence, keys, captions = batch()
    mapping, found = mine.model.generator.mapping, []
    for number in range(len(taught)):
        before = mapping.layers[-1].weight.detach().clone()
        mine.step(number, images, sentence, keys, captions)
        found.append(not torch.equal(before, mapping.layers[-1].weight))
    assert found == taught


def test_adversarial_training_may_go_on_with_captioned_images_alone(tmp_path):
    settings = ("pretraining.warmup_steps=1", "pretraining.adversarial_weight=0")
    mine = trainer(config(tmp_path, *MAPPING, *settings))
    images, sentence, keys, captions = batch()
    assert "generator/regression" in mine.step(0, images, sentence, keys, captions).values
    assert "generator/regression" not in mine.step(1, images, sentence, keys, captions).values
    assert mine.pretraining.noise(1, keys, captions) is None
    other = trainer(config(tmp_path, *MAPPING, "pretraining.warmup_steps=1"))
    other.step(0, images, sentence, keys, captions)
    assert other.pretraining.noise(1, keys, captions) is not None
    report = other.step(1, images, sentence, keys, captions).values
    assert "generator/regression" in report


if __name__ == "__main__":  # one of the two processes
    folder = Path(sys.argv[1])
    with join_world("cpu") as joined:
        given = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
        found = first_step(given, joined)
        if joined.rank == 0:
            (folder / "values.json").write_text(json.dumps(found))

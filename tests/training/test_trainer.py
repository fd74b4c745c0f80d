"""The step: the same for any division of the batch, in every precision."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from two_processes import run_twice

from galip_edge.models import GALIP
from galip_edge.training.distributed import World
from galip_edge.training.micro_batch import mismatched_sentences, step_noise
from galip_edge.training.precision import LossScale, fastest_precision
from galip_edge.training.resume import load_trainer_state, trainer_state
from galip_edge.training.trainer import Trainer

pytestmark = pytest.mark.slow

BATCH = 8


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 3, 64, 64, generator=generator) * 2 - 1
    return images, torch.randn(BATCH, 32, generator=generator)


def stepped(config, world=None, first=0, count=BATCH, steps=1, loss_scale=None):
    """A trainer after some steps, and the last report."""
    torch.manual_seed(0)
    trainer = Trainer(GALIP(config.model), config, world or World())
    for network in trainer.modules:  # gates that start at 0 would hide what is behind them
        for parameter in network.parameters.values():
            torch.nn.init.normal_(parameter, std=0.05)
        network.scale.value = loss_scale or network.scale.value
    images, sentence = batch()
    for number in range(steps):
        part = slice(first, first + count)
        report = trainer.step(number, images[part], sentence[part])
    return trainer, report


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Gradients of the last step: with the published beta1 = 0, they are Adam's first moment."""
    return {
        name: network.optimizer.state[p]["exp_avg"].clone()
        for network in trainer.modules
        for name, p in network.parameters.items()
    }


def assert_same_gradients(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name in expected:
        error = (actual[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize(("size", "translation"), [(2, 0.0), (3, 0.0), (3, 0.25)])
def test_accumulated_parts_equal_the_whole_batch(make_config, size, translation):
    whole, whole_report = stepped(make_config(translation=translation))
    parts, parts_report = stepped(make_config(translation=translation, micro_batch_size=size))
    assert_same_gradients(gradients(parts), gradients(whole))
    assert parts_report.values == pytest.approx(whole_report.values, rel=1e-4, abs=1e-5)


def test_translation_changes_what_the_discriminator_sees(make_config):
    still, _ = stepped(make_config())
    moved, _ = stepped(make_config(translation=0.25))
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients(moved), gradients(still))


def test_two_processes_equal_one_with_the_doubled_batch(make_config, tmp_path):
    config = make_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    run_twice(__file__, tmp_path)

    one, report = stepped(config)
    expected = gradients(one)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same_gradients(two["gradients"], expected)
        assert two["values"] == pytest.approx(report.values, rel=1e-4, abs=1e-5)


def test_mismatched_sentences_are_the_next_ones_while_they_differ():
    sentences = torch.randn(6, 4)
    mismatched, weights = mismatched_sentences(sentences, 0, 6)
    assert torch.equal(mismatched, sentences.roll(-1, 0))
    assert weights.tolist() == [1] * 6
    part, _ = mismatched_sentences(sentences, 2, 3)
    assert torch.equal(part, mismatched[2:5])


def test_a_sentence_never_mismatches_itself():
    a, b, c = torch.randn(3, 4)
    nearly = b * (1 + 1e-7)  # the same text, computed by another process
    mismatched, weights = mismatched_sentences(torch.stack([a, b, nearly, b, c, a]), 0, 6)
    assert torch.equal(mismatched, torch.stack([b, c, c, c, a, b]))
    assert weights.tolist() == [1] * 6
    _, weights = mismatched_sentences(torch.stack([a, a, a]), 1, 2)
    assert weights.tolist() == [0, 0]


def test_without_another_caption_there_is_no_mismatch_loss(make_config):
    torch.manual_seed(0)
    config = make_config()
    trainer = Trainer(GALIP(config.model), config, World())
    images, sentence = batch()
    report = trainer.step(0, images, sentence[:1].expand(BATCH, -1))
    assert report.values["discriminator/mismatch"] == 0
    assert report.values["discriminator/real"] > 0


def test_noise_belongs_to_step_and_place():
    whole = step_noise(0, 5, first=0, count=6, size=16)
    assert torch.equal(whole[2:5], step_noise(0, 5, first=2, count=3, size=16))
    assert not torch.equal(whole, step_noise(0, 6, first=0, count=6, size=16))
    assert not torch.equal(whole, step_noise(1, 5, first=0, count=6, size=16))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_near_float32(make_config, precision):
    _, exact = stepped(make_config())
    trainer, report = stepped(make_config(precision=precision), loss_scale=64.0)
    assert not report.skipped
    for name in ("discriminator/total", "generator/total"):
        assert report.values[name] == pytest.approx(exact.values[name], abs=0.02)
    saved = trainer.model.clip.visual.conv1.weight
    assert saved.dtype == torch.float32
    assert trainer.model.image_encoder.visual.conv1.weight.dtype == getattr(torch, precision)


@pytest.mark.parametrize("size", [None, 3])
def test_the_first_step_in_float16_is_not_lost(make_config, size):
    """It begins at a scale of 65536, far too much for these gradients."""
    config = make_config(precision="float16", micro_batch_size=size)
    trainer, found = stepped(config)
    assert not found.skipped
    scale = found.values["discriminator/loss_scale"]
    assert scale < 65536
    given, expected = stepped(config, loss_scale=scale)
    assert not expected.skipped
    assert found.values["discriminator/total"] == expected.values["discriminator/total"]
    first, second = gradients(trainer), gradients(given)
    for name in first:
        if name.startswith("discriminator."):
            assert torch.equal(first[name], second[name])


def test_a_batch_that_no_scale_fits_is_skipped(make_config):
    config = make_config(precision="float16")
    trainer = Trainer(GALIP(config.model), config, World())
    images, sentence = batch()
    assert trainer.step(0, images * float("nan"), sentence).skipped == ("discriminator",)
    assert trainer.discriminator.scale.value == 16384
    assert trainer.discriminator.scale.searching
    assert not trainer.step(1, images, sentence).skipped


def test_float16_finds_its_loss_scale(make_config):
    _, report = stepped(make_config(precision="float16"), steps=6)
    assert not report.skipped
    assert 64 <= report.values["discriminator/loss_scale"] < 65536


def test_values_that_are_not_finite_change_nothing(make_config):
    trainer, _ = stepped(make_config(ema_decay=0.5))
    before = {n: p.clone() for net in trainer.modules for n, p in net.parameters.items()}
    images, sentence = batch()
    report = trainer.step(1, images, sentence * float("nan"))
    assert report.skipped == ("discriminator", "generator")
    for network in trainer.modules:
        for name, parameter in network.parameters.items():
            assert torch.equal(parameter, before[name])
    assert all(a.isfinite().all() for a in trainer.average.averages.values())
    assert not trainer.step(2, images, sentence).skipped


def test_images_that_are_not_finite_only_stop_the_discriminator(make_config):
    trainer, _ = stepped(make_config())
    images, sentence = batch()
    images[0, 0, 0, 0] = float("inf")
    assert trainer.step(1, images, sentence).skipped == ("discriminator",)


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_left_where_a_cpu_would_emulate_it(monkeypatch, caplog, fast):
    monkeypatch.setattr("galip_edge.training.precision._cpu_has_bfloat16", lambda: fast)
    cpu = torch.device("cpu")
    assert fastest_precision(cpu, "bfloat16") == ("bfloat16" if fast else "float32")
    assert ("bfloat16" in caplog.text) == (not fast)
    assert fastest_precision(cpu, "float16") == "float16"


@pytest.mark.parametrize(
    ("capability", "found"), [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16")]
)
def test_bfloat16_is_left_where_a_gpu_would_emulate_it(monkeypatch, caplog, capability, found):
    """V100 and T4 have none, an A100 has; float32 where the loss is not scaled."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert fastest_precision(gpu, "bfloat16") == found
    assert ("GPU has no bfloat16" in caplog.text) == (found != "bfloat16")
    unscaled = fastest_precision(gpu, "bfloat16", without_bfloat16="float32")
    assert unscaled == found.replace("float16", "float32") or found == "bfloat16"
    assert fastest_precision(gpu, "float16") == "float16"


def test_loss_scale_follows_the_published_rule():
    scale = LossScale("float16")
    assert scale.value == 65536
    for _ in range(2000):
        scale.update(finite=True)
    assert scale.value == 131072
    for _ in range(11):
        scale.update(finite=False)
    assert scale.value == 64
    scale.update(finite=False)
    assert scale.value == 16384
    again = LossScale("float16")
    again.load(scale.state())
    assert again.value == 16384


def test_loss_scale_does_nothing_in_other_precisions():
    scale = LossScale("bfloat16")
    scale.update(finite=False)
    assert scale.value == 1


def test_average_follows_the_weights_and_is_exchanged_only_inside(make_config):
    config = make_config(ema_decay=0.5)
    trainer, _ = stepped(config, steps=2)
    name, weight = next(iter(trainer.generator.parameters.items()))
    average, current = trainer.average.averages[name].clone(), weight.detach().clone()
    assert not torch.equal(average, current)
    with trainer.averaged():
        assert torch.equal(weight, average)
    assert torch.equal(weight, current)


def test_early_averages_are_of_trained_weights(make_config):
    """With the published-style decay alone, half of the average would be initial weights."""
    trainer, _ = stepped(make_config(ema_decay=0.999), steps=1)
    name, weight = next(iter(trainer.generator.parameters.items()))
    average = trainer.average
    average.updates = 0
    average.averages[name].fill_(1.0)  # the initial weights
    weight.data.zero_()
    for _ in range(500):
        average.update()
    assert average.averages[name].max() < 1e-9
    for _ in range(20_000):  # then the decay is the one that is set
        average.updates += 1
    average.averages[name].fill_(1.0)
    average.update()
    assert average.averages[name].max() == pytest.approx(0.999)


def test_states_without_the_number_of_averages_continue_with_the_full_decay(make_config):
    trainer, _ = stepped(make_config(ema_decay=0.9))
    state = {**trainer_state(trainer), "step": 5000}
    load_trainer_state(trainer, state)
    assert trainer.average.updates == 1
    del state["average_updates"]
    load_trainer_state(trainer, state)
    assert trainer.average.updates == 5000


def test_compiled_networks_have_the_same_gradients(make_config, monkeypatch):
    """Through the whole of torch.compile but the generated code, the second derivative included."""
    compiled = partial(torch.compile, backend="aot_eager")
    expected, expected_report = stepped(make_config(translation=0.25))
    monkeypatch.setattr("torch.compile", compiled)
    actual, actual_report = stepped(make_config(translation=0.25, compile=True))
    assert_same_gradients(gradients(actual), gradients(expected))
    assert actual_report.values == pytest.approx(expected_report.values, rel=1e-4, abs=1e-5)


def test_original_clip_input_differs(make_config):
    config = make_config()
    original = replace(config, model=replace(config.model, clip_input="original"))
    assert stepped(config)[1].values != stepped(original)[1].values


if __name__ == "__main__":  # one of the two processes
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.distributed import join_world

    folder = Path(sys.argv[1])
    settings = json.loads((folder / "config.json").read_text())
    with join_world("cpu") as joined:
        half = BATCH // joined.size
        mine, result = stepped(
            TrainConfig.from_dict(settings), joined, first=joined.rank * half, count=half
        )
        torch.save(
            {"gradients": gradients(mine), "values": result.values}, folder / f"{joined.rank}.pt"
        )

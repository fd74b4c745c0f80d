"""CUDA graphs, with a capture that repeats Python calls instead of kernels."""

from types import SimpleNamespace

import pytest
import torch

from galip_edge.models import GALIP
from galip_edge.training.cuda_graphs import CUDAGraphs, Undo, _Captured
from galip_edge.training.distributed import World
from galip_edge.training.trainer import Trainer

pytestmark = pytest.mark.slow

COUNT = 6
SETTINGS = {
    "batch_size": COUNT,
    "precision": "float32",
    "translation": 0.1,
    "ema_decay": 0.9,
    "projected": {"weight": 1.0, "width": 8, "projection": 8, "matching_weight": 1.0},
    "augmentation": {"blur": 0.1, "blur_steps": 9, "contrast": 0.2},
    "optimizer": {"generator_delay": 2},
    "pretraining": {
        "kind": "vae",
        "autoencoder_steps": 2,
        "features_steps": 20,
        "steps": 1,
        "encoded": 0.5,
        "weight": 1.0,
    },
}
STEPS = 38  # of all phases, and until captured steps have no blur


class Repeated:
    """A pass that `replay` computes again, with its results where the first ones were."""

    def __init__(self, parameters, compute):
        self.parameters, self.compute = parameters, compute
        self.values, self.gradients = self.computed()
        self.replays = 0

    def computed(self):
        for parameter in self.parameters:
            parameter.grad = None
        values = self.compute()
        return values, [parameter.grad for parameter in self.parameters]

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        with torch.enable_grad():
            values, gradients = self.computed()
        self.values.copy_(values)
        for kept, new in zip(self.gradients, gradients, strict=True):
            if kept is not None:
                kept.copy_(new)


class Graphs(CUDAGraphs):
    """Captures on the CPU."""

    def __init__(self):
        self.passes = []
        super().__init__(SimpleNamespace(device=torch.device("cpu")))

    def _capture(self, parameters, compute):
        self.passes.append(Repeated(parameters, compute))
        return _Captured(self.passes[-1], self.passes[-1].values, self.passes[-1].gradients)


class Failing(Graphs):
    def _capture(self, parameters, compute):
        compute()  # leaves gradients behind
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Stale(Graphs):
    """Captured passes never see new inputs."""

    def begin(self, signature, batch):
        super().begin(signature, batch)
        return batch


def run(config, graphs=None, steps=STEPS):
    torch.manual_seed(0)
    mine = Trainer(GALIP(config.model), config, World())
    mine._graphs = graphs
    reports = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(COUNT, 3, 64, 64, generator=generator) * 2 - 1
        sentence = torch.randn(COUNT, config.model.clip.embedding_dim, generator=generator)
        reports.append(mine.step(step, images, sentence))
    return mine, reports


def assert_same(mine, reports, other, others):
    for step, (a, b) in enumerate(zip(reports, others, strict=True)):
        assert a.values.keys() == b.values.keys()
        for name, value in a.values.items():
            assert value == pytest.approx(b.values[name], rel=1e-3, abs=1e-4), (step, name)
    for a, b in zip(mine.average.averages.values(), other.average.averages.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_replayed_steps_are_those_of_eager_training(make_config, caplog):
    config = make_config(**SETTINGS)
    graphs = Graphs()
    captured = run(config, graphs)
    assert captured[0]._graphs is graphs, caplog.text
    assert_same(*captured, *run(config))
    # Features; discriminators alone are too few steps; all three modules, with and without blur.
    assert len(graphs.passes) == 1 + 3 + 3
    assert all(each.replays >= 2 for each in graphs.passes)
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize(
    ("graphs", "reason"), [(Failing, "operation not permitted"), (Stale, "differs from an eager")]
)
def test_training_continues_without_graphs_that_fail(make_config, caplog, graphs, reason):
    config = make_config(**{**SETTINGS, "pretraining": None})
    mine = run(config, graphs(), 9)
    assert mine[0]._graphs is None
    assert f"continuing without CUDA graphs: {reason}" in caplog.text.replace(
        "a captured step ", ""
    )
    assert_same(*mine, *run(config, steps=9))


def test_a_step_is_undone(make_config):
    config = make_config(**{**SETTINGS, "pretraining": None})
    mine, _ = run(config, steps=3)
    tensors = {
        name: tensor.clone()
        for module in mine.modules
        for name, tensor in (*module.parameters.items(), *module.buffers.items())
    }
    undo = Undo(mine.modules)
    images = torch.zeros(COUNT, 3, 64, 64)
    wanted = mine.step(3, images, torch.ones(COUNT, config.model.clip.embedding_dim)).values
    undo()
    for module in mine.modules:
        for name, tensor in (*module.parameters.items(), *module.buffers.items()):
            assert torch.equal(tensor, tensors[name]), name
    again = mine.step(3, images, torch.ones(COUNT, config.model.clip.embedding_dim)).values
    assert again == pytest.approx(wanted, rel=1e-4)  # moments, too

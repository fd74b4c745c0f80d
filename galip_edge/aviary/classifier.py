"""A classifier of the aviary's attributes, to check generated birds against their captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.aviary.data import ATTRIBUTES, AviarySource, Caption
from galip_edge.config import build
from galip_edge.devices import keeping_free_memory
from galip_edge.errors import CheckpointError
from galip_edge.training.precision import Precision, autocast
from runtime.arrays import Images
from runtime.files import atomic_path

# Weight of the squared error of the bird's place, relative to the cross entropies.
_PLACE_WEIGHT = 10.0

# Directions, which captions never state.
FACING = ("right", "left")


@dataclass(frozen=True)
class ClassifierConfig:
    """Dimensions of a classifier; the defaults apply to files without dimensions.

    Attributes:
        size: side in pixels to which images are resized.
        widths: channels of each level; every level halves the resolution.
        layout: whether it also predicts layouts.
    """

    size: int = 64
    widths: tuple[int, ...] = (24, 48, 96, 128)
    layout: bool = False


# Details need the full resolution: a beak has four pixels of 64.
CURRENT = ClassifierConfig(128, (16, 32, 64, 128, 160), layout=True)


class AttributeClassifier(nn.Module):
    """A small convolutional network with one output per attribute."""

    def __init__(self, config: ClassifierConfig = CURRENT) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for before, after in zip((3, *config.widths), config.widths):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        # Position matters (water below, wings above), so the 4x4 grid is kept.
        self.hidden = nn.Linear(config.widths[-1] * 16, 256)
        outputs = {**ATTRIBUTES, **({"facing": FACING} if config.layout else {})}
        self.heads = nn.ModuleDict({n: nn.Linear(256, len(v)) for n, v in outputs.items()})
        self.place = nn.Linear(256, 2) if config.layout else None

    def _hidden(self, images: Tensor) -> Tensor:
        side = (self.config.size,) * 2
        if images.shape[-2:] != side:
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True)
        hidden: Tensor = F.relu(self.hidden(self.features(images).flatten(1)))
        return hidden

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B,3,H,W) in [-1,1] -> logits (B,values) by attribute.

        With layouts also `facing`, and `place` (B,2): the bird's x and y as in `Layout`.
        """
        hidden = self._hidden(images)
        found = {name: head(hidden) for name, head in self.heads.items()}
        if self.place is not None:
            found["place"] = self.place(hidden)
        return found

    @torch.no_grad()
    def predict(self, pixels: np.ndarray, batch_size: int = 64) -> dict[str, np.ndarray]:
        """uint8 images (N,H,W,3) -> probabilities (N,values) by attribute, and `place` (N,2)."""
        self.eval()
        device = next(self.parameters()).device
        found: dict[str, list[Tensor]] = {}
        for at in range(0, len(pixels), batch_size):
            batch = torch.from_numpy(pixels[at : at + batch_size]).to(device).permute(0, 3, 1, 2)
            for name, output in self(batch.float() / 127.5 - 1).items():
                values = output if name == "place" else output.softmax(dim=1)
                found.setdefault(name, []).append(values.cpu())
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    def classify(self, pixels: np.ndarray, batch_size: int = 64) -> dict[str, np.ndarray]:
        """uint8 images (N,H,W,3) -> index of the most probable value (N,), by attribute."""
        found = self.predict(pixels, batch_size)
        return {name: found[name].argmax(axis=1) for name in ATTRIBUTES}


@dataclass(frozen=True)
class AttributeAccuracy:
    """Accuracy of an attribute in the images of captions that state it.

    Attributes:
        right: share in [0,1]; NaN if no caption states the attribute.
        count: captions that state it.
    """

    right: float
    count: int


@keeping_free_memory()
def train_classifier(
    source: AviarySource,
    epochs: int = 6,
    batch_size: int = 64,
    seed: int = 0,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    device: torch.device | None = None,
    precision: Precision = "float32",
    config: ClassifierConfig = CURRENT,
) -> AttributeClassifier:
    """Train a classifier on real images of the aviary.

    Args:
        source: of the images; all are held in memory.
        epochs, batch_size, seed: of the training.
        report: called with stage, done and total.
        device: of training and of the returned classifier. Default: the CPU.
        precision: of the forward passes.
        config: dimensions.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    device = device or torch.device("cpu")
    model = AttributeClassifier(config).train().to(device).to(memory_format=torch.channels_last)
    targets = _targets(source)
    pixels = _pixels(source, len(source), report)
    steps = epochs * (len(source) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    done = 0
    for _ in range(epochs):
        for rows in order.permutation(len(source))[: steps // epochs * batch_size].reshape(
            -1, batch_size
        ):
            images = torch.from_numpy(pixels[rows]).to(device).permute(0, 3, 1, 2).float()
            wanted = {name: values[rows].to(device) for name, values in targets.items()}
            images, wanted = _mirrored(images / 127.5 - 1, wanted, order)
            with autocast(device, precision):
                found = model(images)
            loss = torch.zeros((), device=device)
            for name, output in found.items():
                if name == "place":
                    loss = loss + _PLACE_WEIGHT * F.mse_loss(output.float(), wanted[name])
                else:
                    loss = loss + F.cross_entropy(output.float(), wanted[name])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            done += 1
            report("training", done, steps)
    return model.eval()


def _targets(source: AviarySource) -> dict[str, Tensor]:
    """Labels (N,) by attribute, and of layouts `facing` (N,) and `place` (N,2)."""
    labels = [source.scene(i).labels() for i in range(len(source))]
    layouts = [source.layout(i) for i in range(len(source))]
    return {
        **{name: torch.tensor([row[name] for row in labels]) for name in ATTRIBUTES},
        "facing": torch.tensor([FACING.index(layout.facing) for layout in layouts]),
        "place": torch.tensor([(layout.x, layout.y) for layout in layouts]),
    }


def _mirrored(
    images: Tensor, targets: dict[str, Tensor], order: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirror a batch and its layouts with probability 1/2."""
    if order.random() < 0.5:
        return images, targets
    x, y = targets["place"].unbind(1)
    return images.flip(3), {
        **targets,
        "facing": 1 - targets["facing"],
        "place": torch.stack([1 - x, y], dim=1),
    }


def _pixels(
    source: AviarySource,
    count: int,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Images:
    first = np.asarray(source.image(0))
    pixels = np.empty((count, *first.shape), np.uint8)
    for index in range(count):
        pixels[index] = source.image(index)
        report("drawing", index + 1, count)
    return pixels


def accuracy(
    classifier: AttributeClassifier, source: AviarySource, count: int
) -> dict[str, AttributeAccuracy]:
    """Accuracy on the first `count` real images of `source`."""
    pixels = _pixels(source, count)
    found = classifier.classify(pixels)
    labels = [source.scene(i).labels() for i in range(count)]
    result = {
        name: AttributeAccuracy(float(np.mean(found[name] == [row[name] for row in labels])), count)
        for name in ATTRIBUTES
    }
    if classifier.config.layout:
        facing = classifier.predict(pixels)["facing"].argmax(axis=1)
        wanted = [FACING.index(source.layout(i).facing) for i in range(count)]
        result["facing"] = AttributeAccuracy(float(np.mean(facing == wanted)), count)
    return result


def agreement(
    classifier: AttributeClassifier,
    pixels: np.ndarray,
    labels: Sequence[dict[str, int]],
    captions: Sequence[Caption],
) -> dict[str, AttributeAccuracy]:
    """Accuracy of the attributes that captions state, in the images generated from them.

    Args:
        classifier: trained on real images.
        pixels: (N,H,W,3) uint8, one image per caption.
        labels: of the scenes that the captions describe.
        captions: an attribute counts only where its caption states it.
    """
    found = classifier.classify(pixels)
    result = {}
    for name in ATTRIBUTES:
        rows = [i for i, caption in enumerate(captions) if name in caption.states]
        right = [found[name][i] == labels[i][name] for i in rows]
        result[name] = AttributeAccuracy(
            float(np.mean(right)) if right else float("nan"), len(rows)
        )
    return result


def save_classifier(classifier: AttributeClassifier, path: str | Path) -> None:
    """Write weights in float16, with dimensions and attributes."""
    path = Path(path)
    tensors = {
        n: (t.half() if t.is_floating_point() else t).contiguous().cpu()
        for n, t in classifier.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(
            tensors,
            temporary,
            {
                "attributes": json.dumps(ATTRIBUTES),
                "config": json.dumps(asdict(classifier.config)),
            },
        )


def load_classifier(path: str | Path) -> AttributeClassifier:
    """Raises CheckpointError if the file is missing, damaged, or has other attributes."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            known = json.loads(metadata.get("attributes", "null"))
            config = build(ClassifierConfig, json.loads(metadata.get("config", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has its own exception, not exported everywhere
        raise CheckpointError(f"cannot read the classifier {path}: {error}") from error
    if known != {name: list(values) for name, values in ATTRIBUTES.items()}:
        raise CheckpointError(f"{path} was trained for other attributes: train a new classifier")
    try:
        classifier = AttributeClassifier(config)
        classifier.load_state_dict(
            {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} does not fit the classifier: {error}") from error
    return classifier.eval()

"""A classifier of the aviary's attributes: whether a generated bird is what its caption says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.data.aviary import ATTRIBUTES, AviarySource, Caption
from runtime.errors import CheckpointError
from runtime.files import atomic_path

# Attributes are plain to see at half the size, for a quarter of the work.
_SIZE = 64
_WIDTHS = (24, 48, 96, 128)


class AttributeClassifier(nn.Module):
    """A small convolutional network with one output per attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *_WIDTHS), _WIDTHS):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        # Where things are matters (water below, wings above), so the 4x4 grid is kept.
        self.hidden = nn.Linear(_WIDTHS[-1] * 16, 256)
        self.heads = nn.ModuleDict({n: nn.Linear(256, len(v)) for n, v in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B,3,H,W) in [-1,1] -> logits (B,values) by attribute."""
        small = F.interpolate(images, size=(_SIZE, _SIZE), mode="bilinear", antialias=True)
        hidden = F.relu(self.hidden(self.features(small).flatten(1)))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def classify(self, pixels: np.ndarray, batch_size: int = 64) -> dict[str, np.ndarray]:
        """uint8 images (N,H,W,3) -> the number of each attribute's value (N,), by attribute."""
        self.eval()
        device = next(self.parameters()).device
        found: dict[str, list[Tensor]] = {name: [] for name in ATTRIBUTES}
        for at in range(0, len(pixels), batch_size):
            batch = torch.from_numpy(pixels[at : at + batch_size]).to(device).permute(0, 3, 1, 2)
            for name, logits in self(batch.float() / 127.5 - 1).items():
                found[name].append(logits.argmax(dim=1).cpu())
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}


@dataclass(frozen=True)
class AttributeAccuracy:
    """How often an attribute that captions state is found in their images.

    Attributes:
        right: share in [0,1]; NaN if no caption states it.
        count: captions that state it.
    """

    right: float
    count: int


def train_classifier(
    source: AviarySource,
    epochs: int = 6,
    batch_size: int = 64,
    seed: int = 0,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
    device: torch.device | None = None,
) -> AttributeClassifier:
    """A classifier trained on real images of the aviary.

    Args:
        source: the images; all are held in memory.
        epochs, batch_size, seed: of the training.
        report: called with stage, done and total.
        device: to train on, by default the CPU; the classifier stays there.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    device = device or torch.device("cpu")
    model = AttributeClassifier().train().to(device).to(memory_format=torch.channels_last)
    labels = [source.scene(i).labels() for i in range(len(source))]
    targets = {name: torch.tensor([row[name] for row in labels]) for name in ATTRIBUTES}
    pixels = _pixels(source, len(source), report)
    steps = epochs * (len(source) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    done = 0
    for _ in range(epochs):
        for rows in order.permutation(len(source))[: steps // epochs * batch_size].reshape(
            -1, batch_size
        ):
            images = (
                torch.from_numpy(pixels[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            )
            if order.random() < 0.5:
                images = images.flip(3)
            loss = torch.zeros((), device=device)
            for name, logits in model(images).items():
                loss = loss + F.cross_entropy(logits, targets[name][rows].to(device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            done += 1
            report("training", done, steps)
    return model.eval()


def _pixels(
    source: AviarySource,
    count: int,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> npt.NDArray[np.uint8]:
    pixels: list[npt.NDArray[np.uint8]] = []
    for index in range(count):
        pixels.append(np.asarray(source.image(index)))
        report("drawing", index + 1, count)
    return np.stack(pixels)


def accuracy(
    classifier: AttributeClassifier, source: AviarySource, count: int
) -> dict[str, AttributeAccuracy]:
    """On the first `count` real pictures of `source`."""
    pixels = _pixels(source, count)
    found = classifier.classify(pixels)
    labels = [source.scene(i).labels() for i in range(count)]
    return {
        name: AttributeAccuracy(float(np.mean(found[name] == [row[name] for row in labels])), count)
        for name in ATTRIBUTES
    }


def agreement(
    classifier: AttributeClassifier,
    pixels: np.ndarray,
    labels: Sequence[dict[str, int]],
    captions: Sequence[Caption],
) -> dict[str, AttributeAccuracy]:
    """How often what a caption states is found in the image generated for it.

    Args:
        classifier: trained on real pictures.
        pixels: (N,H,W,3) uint8, one image per caption.
        labels: of the scenes that the captions were written for.
        captions: an attribute counts only where the caption states it.
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
    """Write weights in float16, with the attributes that they know."""
    path = Path(path)
    tensors = {
        n: (t.half() if t.is_floating_point() else t).contiguous().cpu()
        for n, t in classifier.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"attributes": json.dumps(ATTRIBUTES)})


def load_classifier(path: str | Path) -> AttributeClassifier:
    """Raises CheckpointError if the file is missing, damaged, or knows other attributes."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get("attributes", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has its own exception, not exported everywhere
        raise CheckpointError(f"cannot read the classifier {path}: {error}") from error
    if known != {name: list(values) for name, values in ATTRIBUTES.items()}:
        raise CheckpointError(f"{path} was trained for other attributes: train it again")
    classifier = AttributeClassifier()
    try:
        classifier.load_state_dict(
            {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the classifier: {error}") from error
    return classifier.eval()

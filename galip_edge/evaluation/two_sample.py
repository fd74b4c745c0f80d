"""A classifier two-sample test of real and generated images.

A small convolutional network is trained to distinguish them on one half of the images, and tested
on the other half (Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545). An accuracy of 0.5
means that it cannot.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.arrays import Images

_WIDTHS = (24, 48, 96, 128)


def two_sample_accuracy(
    real: Images, generated: Images, epochs: int = 12, batch_size: int = 32, seed: int = 0
) -> float:
    """Accuracy of the classifier on held-out images.

    Args:
        real, generated: (N,H,W,3) uint8, N at least 4. The first halves are for training, the
            second halves for testing.
        epochs, batch_size, seed: of the training, with random mirroring.

    Raises:
        ValueError: the sets differ in shape, or are too small.
    """
    if real.shape != generated.shape or len(real) < 4:
        raise ValueError(
            f"need two sets of at least 4 images of one shape, got {real.shape} and "
            f"{generated.shape}"
        )
    half = len(real) // 2
    train = np.concatenate([real[:half], generated[:half]])
    labels = torch.cat([torch.ones(half), torch.zeros(half)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network()
        _fit(model, train, labels, epochs, batch_size, np.random.default_rng(seed))
    right = [
        (_scores(model, images) > 0) == wanted
        for images, wanted in ((real[half:], True), (generated[half:], False))
    ]
    return float(torch.cat(right).float().mean())


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *_WIDTHS), _WIDTHS):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    pooled = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(_WIDTHS[-1] * 4, 1))
    return nn.Sequential(*layers, *pooled).to(memory_format=torch.channels_last)


def _fit(
    model: nn.Module,
    pixels: Images,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    batches = -(-len(pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=epochs * batches + 1
    )
    model.train()
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(pixels)), batches):
            images = _tensor(pixels[rows])
            mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            scores = model(images)[:, 0]
            loss = F.binary_cross_entropy_with_logits(scores, labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def _scores(model: nn.Module, pixels: Images) -> Tensor:
    rows = range(0, len(pixels), 64)
    return torch.cat([model(_tensor(pixels[at : at + 64]))[:, 0] for at in rows])


def _tensor(pixels: Images) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

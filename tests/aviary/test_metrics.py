"""Metrics of the aviary, on data with known answers."""

import numpy as np
import pytest
import torch

from galip_edge.aviary.classifier import (
    AttributeClassifier,
    ClassifierConfig,
    _mirrored,
    accuracy,
    train_classifier,
)
from galip_edge.aviary.data import ATTRIBUTES, AviaryConfig, AviarySource, Caption
from galip_edge.aviary.metrics import (
    AviaryMetrics,
    layout_diversity,
    mixed_share,
    unstated_shares,
)
from galip_edge.evaluation.efficientnet import EfficientNetFeatures
from galip_edge.evaluation.evaluate import EvaluationOptions, MetricModels, evaluate

OPEN, TOLD = Caption("a bird", frozenset()), Caption("a duck", frozenset({"species", "body"}))


def one_hot(name, *values):
    table = ATTRIBUTES.get(name, ("right", "left"))
    return np.eye(len(table), dtype=np.float32)[[table.index(v) for v in values]]


def test_mixtures_have_no_clear_body_or_background():
    body, back = one_hot("body", *["red"] * 4), one_hot("background", *["sky"] * 4)
    body[1] = [0.5, 0.5, 0, 0, 0, 0, 0, 0, 0]
    body[2] = [0.81, 0.19, 0, 0, 0, 0, 0, 0, 0]
    back[3] = [0.7, 0.3, 0, 0, 0, 0]
    assert mixed_share({"body": body, "background": back}) == 0.5


def test_shares_count_only_what_captions_leave_open():
    found = {
        "body": one_hot("body", "red", "blue", "red", "green"),
        "facing": one_hot("facing", "left", "left", "right", "left"),
    }
    shares = unstated_shares(found, [OPEN, OPEN, OPEN, TOLD])
    assert shares["body"]["red"] == pytest.approx(2 / 3)
    assert shares["body"]["green"] == 0
    assert shares["facing"] == {"right": 0.25, "left": 0.75}
    assert set(shares) == {"body", "facing"}
    assert "body" not in unstated_shares(found, [TOLD] * 4)


def test_layouts_differ_in_pairs():
    three = {
        "facing": one_hot("facing", "left", "right", "left"),
        "species": one_hot("species", "duck", "duck", "duck"),
        "place": np.array([[0.2, 0.5], [0.5, 0.9], [0.2, 0.5]], np.float32),
    }
    found = layout_diversity([three], [OPEN])
    assert found["facing"] == pytest.approx(2 / 3)
    assert found["species"] == 0
    assert found["place"] == pytest.approx((0.5 + 0 + 0.5) / 3, abs=1e-6)
    assert "species" not in layout_diversity([three], [TOLD])


def test_features_of_alike_images_are_near():
    source = AviarySource(AviaryConfig(image_size=64, resize=64))
    birds = np.stack([np.asarray(source.image(i)) for i in range(4)])
    extractor = EfficientNetFeatures()
    features = extractor(birds)
    assert features.shape == (4, 1280)
    assert features.dtype == np.float32
    brighter = extractor(np.clip(birds.astype(int) + 4, 0, 255).astype(np.uint8))
    near = np.linalg.norm(features - brighter, axis=1)
    far = np.linalg.norm(features - np.roll(features, 1, 0), axis=1)
    assert near.max() < 0.5 * far.min()
    assert extractor(birds[:1]) == pytest.approx(features[:1], abs=1e-3)


class Birds:
    """A model that draws: its images are real ones of its captions, or all of the first."""

    name, sha256, image_size = "birds", "", 64

    def __init__(self, source, narrow=False):
        self._source, self._narrow = source, narrow
        self._rng = np.random.default_rng(9)
        self._numbers = {source.captions(i)[0]: i for i in range(len(source))}

    def images(self, prompts, indices, seed):
        drawn = []
        for prompt in prompts:
            number = 0 if self._narrow else self._numbers[prompt]
            noise = self._rng.standard_normal(100, dtype=np.float32)
            if self._narrow:
                noise = np.zeros(100, np.float32)
            drawn.append(np.asarray(self._source.another(number, noise, 64)[1]))
        return np.stack(drawn)

    def midpoints(self, starts, ends, seed):
        return self.images(starts, [0] * len(starts), seed)


class Scorer:
    """Stands in for CLIP."""

    def images(self, pixels, form="standard"):
        flat = pixels[:, ::16, ::16].reshape(len(pixels), -1).astype(np.float32) + 1
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def sentences(self, captions):
        return np.stack([self.images(np.full((1, 64, 64, 3), len(c), np.uint8))[0]
                         for c in captions])  # fmt: skip


@pytest.mark.slow
def test_evaluate_tells_a_wide_model_from_a_narrow_one():
    torch.manual_seed(0)
    source = AviarySource(AviaryConfig(split="test", image_size=64, augment=False, samples=40))
    captions = [source.captions(i)[0] for i in range(40)]
    networks = MetricModels(Scorer(), {"lite1": EfficientNetFeatures()})
    extra = AviaryMetrics(source, Scorer(), AttributeClassifier())
    options = EvaluationOptions(40, diversity_captions=3, diversity_images=3, midpoints=8,
                                two_sample=40)  # fmt: skip
    results = {}
    for narrow in (False, True):
        results[narrow] = evaluate(
            Birds(source, narrow), captions, networks, options,
            real=lambda i: np.asarray(source.image(i)),
            second=extra.second_real, extra=extra,
        )  # fmt: skip
    wide, poor = results[False]["metrics"], results[True]["metrics"]
    assert wide["fd_lite1"] < poor["fd_lite1"]
    assert wide["coverage_lite1"] > 2 * poor["coverage_lite1"]
    assert wide["recall_lite1"] > poor["recall_lite1"]
    assert wide["two_sample_accuracy"] < poor["two_sample_accuracy"]
    assert poor["two_sample_accuracy"] > 0.8
    assert wide["diversity_pixels"] > 2 * poor["diversity_pixels"]
    assert 0 <= wide["midpoint_precision_lite1"] <= 1
    assert {"place", "facing"} <= set(wide["diversity_layout"])
    assert poor["diversity_layout"]["place"] < wide["diversity_layout_real"]["place"]
    assert wide["unstated"]["facing"].keys() == {"right", "left"}
    # A model that is as good as real images comes as near as a second real set.
    assert wide["fd_lite1"] < 1.5 * results[False]["second_real"]["fd_lite1"]


def test_mirrored_birds_look_the_other_way_from_the_other_side():
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    targets = {"facing": torch.tensor([0, 1]), "place": torch.tensor([[0.2, 0.4], [0.9, 0.1]]),
               "body": torch.tensor([3, 4])}  # fmt: skip
    seen = set()
    for seed in range(8):
        found, wanted = _mirrored(images, targets, np.random.default_rng(seed))
        flipped = not torch.equal(found, images)
        seen.add(flipped)
        assert torch.equal(found, images.flip(3) if flipped else images)
        assert wanted["facing"].tolist() == ([1, 0] if flipped else [0, 1])
        xs = [0.8, 0.1] if flipped else [0.2, 0.9]
        assert wanted["place"][:, 0].tolist() == pytest.approx(xs)
        assert wanted["body"].tolist() == [3, 4]
    assert seen == {False, True}


@pytest.mark.slow
def test_the_classifier_finds_layouts():
    config = ClassifierConfig(64, (12, 24, 32, 48), layout=True)
    source = AviarySource(AviaryConfig(image_size=64, samples=64, augment=False))
    trained = train_classifier(source, epochs=25, batch_size=16, config=config)
    assert accuracy(trained, source, 64)["facing"].right > 0.7
    pixels = np.stack([np.asarray(source.image(i)) for i in range(64)])
    wanted = np.array([(source.layout(i).x, source.layout(i).y) for i in range(64)])
    off = np.abs(trained.predict(pixels)["place"] - wanted).mean()
    assert off < 0.7 * np.abs(wanted - wanted.mean(0)).mean()

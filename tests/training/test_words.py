"""Words in the sentence embedding: what is asked of it, and that it can then be read off."""

from itertools import cycle

import pytest
import torch

from galip_edge.models import PRESETS
from galip_edge.models.clip import build_clip
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.words import WordReader, WordsConfig, present_words, teach_words

TOKENIZE = build_tokenizer(PRESETS["tiny"].clip)


def present(*captions: str) -> torch.Tensor:
    return present_words(torch.from_numpy(TOKENIZE(captions)))


def test_words_and_pairs_of_neighbours_are_told_apart():
    red_blue, blue_red, again = present(
        "a red bird with blue wings", "a blue bird with red wings", "a red bird with blue wings"
    )
    assert torch.equal(red_blue, again)
    # Same words, other neighbours.
    assert 4 <= (red_blue != blue_red).sum() <= 10
    words = len(TOKENIZE.encode("a red bird with blue wings")) + 1  # and the end
    assert 2 * words - 2 <= red_blue.sum() <= 2 * words


def test_padding_says_nothing():
    short, long = present("a duck", "a duck on a branch under the blue sky in winter")
    alone = present_words(torch.from_numpy(TOKENIZE(["a duck"])[:, :6]))[0]
    assert torch.equal(short, alone)
    assert short.sum() < long.sum()


def test_the_loss_is_that_of_a_linear_reader():
    torch.manual_seed(0)
    reader = WordReader(8)
    sentence = torch.randn(2, 8)
    tokens = torch.from_numpy(TOKENIZE(["a red bird", "a duck"]))
    logits = reader.head((sentence - sentence.mean(1, keepdim=True))
                         / (sentence.var(1, correction=0, keepdim=True) + 1e-5).sqrt())  # fmt: skip
    there = present_words(tokens).bool()
    cost = -logits.sigmoid().log()[there].sum() - (1 - logits.sigmoid()).log()[~there].sum()
    assert reader(sentence, tokens).item() == pytest.approx((cost / there.sum()).item(), rel=1e-4)
    assert reader(3 * sentence, tokens).item() == pytest.approx(
        reader(sentence, tokens).item(), rel=1e-4
    )  # of any length


def test_words_that_contrast_overlooked_can_be_read_afterwards():
    config = PRESETS["tiny"].clip
    torch.manual_seed(0)
    clip = build_clip(config)
    captions = cycle([f"a {bird} on a {perch}" for bird in ("duck", "heron", "magpie")
                      for perch in ("rock", "fence", "branch")])  # fmt: skip
    visual = {name: p.clone() for name, p in clip.visual.named_parameters()}
    reports = []
    teach_words(
        clip, captions, TOKENIZE, WordsConfig(steps=60, batch_size=9, warmup=5),
        report=lambda *values: reports.append(values),
    )  # fmt: skip
    assert [step for step, _, _ in reports] == list(range(1, 61))
    assert reports[-1][1] < 0.6 * reports[0][1]
    assert all(torch.equal(p, visual[name]) for name, p in clip.visual.named_parameters())


def test_the_embedding_stays_near_where_it_was():
    distances = {}
    for keep in (0.0, 100.0):
        torch.manual_seed(0)
        clip = build_clip(PRESETS["tiny"].clip)
        reports = []
        teach_words(
            clip, cycle(["a duck", "a heron on a rock", "two birds"]), TOKENIZE,
            WordsConfig(steps=20, batch_size=3, warmup=5, keep_weight=keep),
            report=lambda *values, to=reports: to.append(values),
        )  # fmt: skip
        distances[keep] = reports[-1][2]
    assert distances[100.0] < 0.5 * distances[0.0]

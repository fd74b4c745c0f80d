"""Words in the sentence embedding: what is asked of it, and that it can then be read off."""

from itertools import cycle, islice

import pytest
import torch

from galip_edge.data.errors import DataError, SampleError
from galip_edge.models import PRESETS
from galip_edge.models.clip import build_clip
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.words import (
    WordReader,
    WordsConfig,
    WordTeaching,
    endless_captions,
    present_words,
)

TOKENIZE = build_tokenizer(PRESETS["tiny"].clip)


def taught(clip, captions, config: WordsConfig) -> list[tuple[float, float]]:
    """Losses of the words and distances from before, of each step."""
    teaching = WordTeaching(clip, TOKENIZE, config)
    losses = []
    while not teaching.finished:
        losses.append(teaching.step(list(islice(captions, config.batch_size))))
    return losses


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
    losses = taught(clip, captions, WordsConfig(steps=60, batch_size=9, warmup=5))
    assert len(losses) == 60
    assert losses[-1][0] < 0.6 * losses[0][0]
    assert all(torch.equal(p, visual[name]) for name, p in clip.visual.named_parameters())


def test_the_embedding_stays_near_where_it_was():
    distances = {}
    for keep in (0.0, 100.0):
        torch.manual_seed(0)
        clip = build_clip(PRESETS["tiny"].clip)
        captions = cycle(["a duck", "a heron on a rock", "two birds"])
        config = WordsConfig(steps=20, batch_size=3, warmup=5, keep_weight=keep)
        distances[keep] = taught(clip, captions, config)[-1][1]
    assert distances[100.0] < 0.5 * distances[0.0]


class Captions:
    """A source of captions; images that `broken` names have none."""

    def __init__(self, count: int, broken: set[int]) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def captions(self, index: int) -> tuple[str, ...]:
        if index in self.broken:
            raise SampleError("missing captions", str(index), "no file")
        return tuple(f"{index} {n}" for n in range(index % 3 + 1))


def test_captions_resume_where_they_were():
    source = Captions(20, {3, 4, 11})
    whole = list(islice(endless_captions(source, 7), 200))
    assert len(set(whole)) > 25
    assert not {c.split()[0] for c in whole} & {"3", "4", "11"}
    for done in (1, 60, 199):
        rest = list(islice(endless_captions(source, 7, done), 200 - done))
        assert rest == whole[done:]
    assert list(islice(endless_captions(source, 8), 200)) != whole


def test_captions_that_are_all_broken_end_the_run():
    with pytest.raises(DataError, match="missing captions: .*data check"):
        next(endless_captions(Captions(5, set(range(5))), 0))

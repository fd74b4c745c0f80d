"""Words in the sentence embedding: what is asked of it, and that it can then be read off."""

from itertools import islice

import pytest
import torch

from galip_edge.aviary.text_pretraining import WordsConfig, endless_captions
from galip_edge.data.errors import DataError, SampleError
from galip_edge.models import PRESETS
from galip_edge.models.clip import build_clip
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.words import WordReader, present_words

pytestmark = pytest.mark.slow

TOKENIZE = build_tokenizer(PRESETS["tiny"].clip)


class Captions:
    """A source of images with one caption each, except the `broken` ones."""

    def __init__(self, captions: list[str], broken: frozenset[int] = frozenset()) -> None:
        self._captions, self._broken = captions, broken

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, index: int) -> tuple[str, ...]:
        if index in self._broken:
            raise SampleError("missing captions", str(index), "no file")
        return (self._captions[index], f"{self._captions[index]} again")[: index % 2 + 1]


def trained(clip, captions: list[str], config: WordsConfig) -> list[dict[str, float]]:
    """The values of each step."""
    training = config.build(clip, TOKENIZE, Captions(captions), 0, "float32")
    values = []
    while not training.finished:
        values.append(training.step())
    return values


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
    captions = [f"a {bird} on a {perch}" for bird in ("duck", "heron", "magpie")
                for perch in ("rock", "fence", "branch")]  # fmt: skip
    visual = {name: p.clone() for name, p in clip.visual.named_parameters()}
    losses = trained(clip, captions, WordsConfig(steps=60, batch_size=9, warmup=5))
    assert len(losses) == 60
    assert losses[-1]["words"] < 0.6 * losses[0]["words"]
    assert all(torch.equal(p, visual[name]) for name, p in clip.visual.named_parameters())


def test_the_embedding_stays_near_where_it_was():
    distances = {}
    for keep in (0.0, 100.0):
        torch.manual_seed(0)
        clip = build_clip(PRESETS["tiny"].clip)
        captions = ["a duck", "a heron on a rock", "two birds"]
        config = WordsConfig(steps=20, batch_size=3, warmup=5, keep_weight=keep)
        distances[keep] = trained(clip, captions, config)[-1]["distance"]
    assert distances[100.0] < 0.5 * distances[0.0]


def test_captions_resume_where_they_were():
    source = Captions([f"{i} bird" for i in range(20)], frozenset({3, 4, 11}))
    whole = list(islice(endless_captions(source, 7), 200))
    assert len(set(whole)) > 20
    assert not {c.split()[0] for c in whole} & {"3", "4", "11"}
    for done in (1, 60, 199):
        rest = list(islice(endless_captions(source, 7, done), 200 - done))
        assert rest == whole[done:]
    assert list(islice(endless_captions(source, 8), 200)) != whole


def test_captions_that_are_all_broken_end_the_run():
    with pytest.raises(DataError, match="missing captions: .*data check"):
        next(endless_captions(Captions(["a"] * 5, frozenset(range(5))), 0))

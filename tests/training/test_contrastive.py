"""Training a CLIP of one's own: exact rewrites, learning, resuming, settings."""

import json

import numpy as np
import pytest
import torch
from clip_runs import SETTINGS, steps_of, train_killed, write_images
from open_clip.loss import ClipLoss
from safetensors.torch import load_file

from galip_edge.checkpoints.format import read_clip
from galip_edge.cli import main
from galip_edge.errors import CheckpointError, ConfigError
from galip_edge.models import CLIPConfig
from galip_edge.models.clip import build_clip
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.contrastive import (
    ContrastiveConfig,
    contrastive_loss,
    equal_captions,
    load_contrastive_config,
    train_clip,
)
from galip_edge.training.fast_attention import with_fast_attention
from galip_edge.training.resume import only_run
from galip_edge.training.text_cache import sentence_embeddings
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow


def config(folder, *changes, images=64) -> ContrastiveConfig:
    root = folder.parent / f"images-{images}"
    if not root.exists():
        write_images(root, images)
    settings = [*SETTINGS, f"output={folder}", f"data.root={root}", *changes]
    return load_contrastive_config("own", settings)


@pytest.fixture
def small() -> CLIPConfig:
    return CLIPConfig(
        embedding_dim=16,
        image_size=32,
        patch_size=16,
        vision_width=64,
        vision_heads=1,
        vision_layers=2,
        text_width=64,
        text_heads=1,
        text_layers=2,
        vocabulary_size=1000,
    )


@torch.no_grad()
def test_the_fast_form_is_the_clip_itself(small):
    torch.manual_seed(0)
    clip = build_clip(small).double()
    fast = with_fast_attention(clip)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    captions = ["a bird", "a large red bird with white wings on a branch, in winter", ""]
    tokens = torch.from_numpy(build_tokenizer(small)(captions))
    np.testing.assert_allclose(fast.encode_image(images), clip.encode_image(images), rtol=1e-9)
    np.testing.assert_allclose(
        sentence_embeddings(fast, tokens), clip.encode_text(tokens), rtol=1e-9, atol=1e-12
    )
    for p, q in zip(clip.parameters(), fast.parameters()):
        assert p is q  # training one trains the other


def test_it_learns_to_tell_captions_apart(tmp_path):
    changes = ("steps=80", "batch_size=8", "learning_rate=5e-4", "warmup=10",
               "patch_dropout=0", "save_interval=80", "log_interval=2",
               "data.augment=false")  # fmt: skip
    train_clip(config(tmp_path / "run", *changes, images=8))
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert log[0]["top1"] < 0.3
    assert log[-1]["top1"] > 0.6
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]


def test_the_loss_is_clips_where_all_captions_differ():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    scale = torch.tensor(14.0)
    loss = contrastive_loss(image, text, scale, equal_captions("abcdef"))
    torch.testing.assert_close(loss, ClipLoss()(image, text, scale))


def test_an_equal_caption_is_no_wrong_answer():
    image = torch.eye(3)
    # The first two images have the same caption, which fits both of them equally.
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), dim=1)
    same = equal_captions(["a bird", "a bird", "a fish"])
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    scale = torch.tensor(100.0)
    assert contrastive_loss(image, text, scale, same) < 1e-6
    assert ClipLoss()(image, text, scale) > 0.4


def test_killed_anywhere_it_ends_where_an_unbroken_run_ends(tmp_path):
    whole = train_clip(config(tmp_path / "whole", "patch_dropout=0.5"))
    broken = config(tmp_path / "broken", "patch_dropout=0.5")
    train_killed(broken, {"step": 4})
    a, b = load_file(whole), load_file(train_clip(broken))
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "broken")]
    assert [steps_of(log) for log in logs] == [[2, 4, 6]] * 2


def test_its_weights_serve_galip(tmp_path, small):
    path = train_clip(config(tmp_path / "run"))
    tensors = read_clip(path, small)
    assert tensors["token_embedding.weight"].shape == (1000, 64)
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_another_run_in_the_folder_is_not_overwritten(tmp_path):
    path = train_clip(config(tmp_path / "run"))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="another run"):
        train_clip(config(tmp_path / "run", "batch_size=4"))
    assert path.read_bytes() == before


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path):
    with (
        only_run(tmp_path / "run"),
        pytest.raises(GalipEdgeError, match="another process is training in"),
    ):
        train_clip(config(tmp_path / "run"))


def test_a_damaged_state_is_named(tmp_path):
    train_clip(config(tmp_path / "run"))
    state = tmp_path / "run/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        train_clip(config(tmp_path / "run"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size=1", "batch_size.*1"),
        ("learning_rate=0", "learning_rate.*0"),
        ("patch_dropout=1", "patch_dropout.*1"),
        ("weight_decay=-1", "weight_decay.*-1"),
        ("steps=0", "steps.*0"),
        ("speed=3", "speed"),
    ],
)
def test_bad_settings_are_named(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path / "run", setting)


def test_an_unknown_configuration_lists_the_known_ones():
    with pytest.raises(ConfigError, match="own"):
        load_contrastive_config("none-such")


def test_the_command_prints_where_the_weights_are(tmp_path, capsys):
    images = write_images(tmp_path / "images", 64)
    settings = [*SETTINGS, f"output={tmp_path}/run", f"data.root={images}"]
    with pytest.raises(SystemExit) as exit_:
        main(["train-clip", "own", *(f"--set={s}" for s in settings)])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/run/clip.safetensors"


def test_it_starts_from_other_weights(tmp_path, small):
    first = train_clip(config(tmp_path / "first", "steps=2"))
    second = train_clip(
        config(tmp_path / "second", "steps=1", "learning_rate=1e-9", f"start={first}")
    )
    before, after = load_file(first), load_file(second)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(CheckpointError, match=r"text_width 64 \(not 128\)"):
        train_clip(
            config(tmp_path / "third", f"start={first}", "clip.text_width=128", "clip.text_heads=2")
        )


def test_words_are_read_off_image_embeddings_too(tmp_path):
    changes = (
        "steps=60",
        "learning_rate=2e-3",
        "warmup=5",
        "log_interval=1",
        "save_interval=60",
        "patch_dropout=0",
        "data.augment=false",
        "image_words_weight=1",
    )
    train_clip(config(tmp_path / "run", *changes, images=8))
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    contrast = np.log(8)  # what undecided embeddings have
    assert log[0]["loss"] > contrast + 3  # words, of which none is known
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    with pytest.raises(ConfigError, match="image_words_weight"):
        config(tmp_path / "x", "image_words_weight=-1")

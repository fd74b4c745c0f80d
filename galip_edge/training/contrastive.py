"""Contrastive training of a CLIP: `galip-edge train-clip` (Radford et al. 2021, section 2.3)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from open_clip.transformer import PatchDropout
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F

from galip_edge import extensions
from galip_edge.checkpoints.format import fill, is_ours, load_checkpoint, read_clip
from galip_edge.config import (
    build,
    check_fractions,
    check_integers,
    check_not_negative,
    check_positive,
    read_config,
)
from galip_edge.data import CaptionedImages, DataConfig, Position, build_loader
from galip_edge.data.records import Source
from galip_edge.data.samples import generator_for
from galip_edge.devices import DeviceName, choose_device, compute_settings, default_threads
from galip_edge.errors import CheckpointError
from galip_edge.models import CLIPConfig
from galip_edge.models.clip import build_clip, clip_pixels
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.fast_attention import with_fast_attention
from galip_edge.training.precision import Precision, autocast, fastest_precision
from galip_edge.training.resume import only_run
from galip_edge.training.text_cache import sentence_embeddings
from galip_edge.training.words import WordReader
from runtime.files import atomic_path, write_whole
from runtime.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_MAY_CHANGE = ("cache", "workers", "root")
_MAXIMAL_LOGIT_SCALE = math.log(100)  # as in CLIP's paper, against instability


class TextPretraining(Protocol):
    """A second stage, which trains the text transformer on captions alone."""

    steps_done: int

    @property
    def finished(self) -> bool:
        """True if all steps are done."""
        ...

    def step(self) -> dict[str, float]:
        """Perform one update; returns the values to report."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State for `load_state_dict`."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Raises KeyError or RuntimeError if the state does not fit."""
        ...


@dataclass(frozen=True)
class TextPretrainingConfig:
    """Base of the settings of a `TextPretraining`; `galip_edge.extensions` has the kinds.

    Attributes:
        steps: 0 for none.
    """

    steps: int = 0

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[TextPretrainingConfig]:
        """The class of the settings. Raises GalipEdgeError if it is missing."""
        found: type[TextPretrainingConfig] = extensions.require("text pretraining", "words")
        return found

    def __post_init__(self) -> None:
        check_integers(self, 0, "steps")

    def build(
        self, clip: Any, tokenize: Tokenizer, source: Source, seed: int, precision: Precision
    ) -> TextPretraining:
        """The stage for `clip`, an `open_clip.CLIP`, with captions of `source`."""
        raise NotImplementedError


@dataclass(frozen=True)
class ContrastiveConfig:
    """Settings of contrastive training.

    Attributes:
        output: folder of the run; training resumes if it holds this run's state.
        data: captioned images.
        clip: dimensions.
        batch_size, steps: pairs per step, and number of steps.
        learning_rate, warmup: peak of the learning rate, and the steps of its linear rise; then
            it follows a half cosine.
        weight_decay: of matrices; norms, biases, embeddings and the logit scale have none.
        patch_dropout: share of patches that are dropped at random, except in the last tenth of
            the steps (Li et al. 2023). Dropping half of them halves the time, with little effect.
        image_words_weight: of a second loss: a linear layer predicts the caption's words from the
            image embedding (Joulin et al. 2016, https://arxiv.org/abs/1511.02251). In the small
            batches of a CPU, the contrastive loss alone teaches few details. 0 disables it.
        start: checkpoint or CLIP weights to start from, with the same dimensions.
        words: text pretraining after contrastive training.
        precision, seed, device, threads: as for `galip-edge train`.
        save_interval, log_interval: in steps.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {
        "save_every": "save_interval",
        "log_every": "log_interval",
    }

    output: str
    data: DataConfig
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    batch_size: int = 128
    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.1
    patch_dropout: float = 0.0
    image_words_weight: float = 0.0
    start: str | None = None
    words: TextPretrainingConfig = field(default_factory=TextPretrainingConfig)
    precision: Precision = "bfloat16"
    seed: int = 0
    device: DeviceName = "auto"
    threads: int | None = None
    save_interval: int = 200
    log_interval: int = 10

    def __post_init__(self) -> None:
        check_integers(self, 1, "steps", "warmup", "save_interval", "log_interval", "threads")
        check_integers(self, 2, "batch_size")
        check_positive(self, "learning_rate")
        check_fractions(self, "patch_dropout")
        check_not_negative(self, "weight_decay", "image_words_weight")
        if self.words.steps and self.data.kind == "webdataset":
            raise ValueError("words.steps needs data with random access, not WebDataset shards")


def load_contrastive_config(config: str, assignments: Iterable[str] = ()) -> ContrastiveConfig:
    """Read a TOML file, or a configuration in the package by name.

    Raises ConfigError if the file is missing, or a setting is unknown, missing or invalid.
    """
    return read_config(config, assignments, lambda values: build(ContrastiveConfig, values), "clip")


def train_clip(config: ContrastiveConfig) -> Path:
    """Train, resuming if `config.output` holds a state of this run.

    Returns:
        The weights under OpenAI's names, a `.safetensors` file for `clip = ...` in training.

    Raises:
        DataError, CheckpointError: the data or the stored state is invalid.
        GalipEdgeError: another process trains in `config.output`, or it cannot be written.
    """
    device = choose_device(config.device)
    with (
        only_run(Path(config.output)),
        compute_settings(config.threads or default_threads(config.data.workers)),
    ):
        return _ContrastiveRun(config, device).go()


class _ContrastiveRun:
    def __init__(self, config: ContrastiveConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.precision = fastest_precision(device, config.precision)
        self.scaler = GradScaler(device.type, enabled=self.precision == "float16")
        self.folder = Path(config.output)
        torch.manual_seed(config.seed)
        self.clip: Any = build_clip(config.clip).requires_grad_(True).train()
        if config.start:
            self._start(Path(config.start))
        self.clip.to(device)
        self.towers = with_fast_attention(self.clip)
        self.reader: WordReader | None = None
        if config.image_words_weight:
            self.reader = WordReader(config.clip.embedding_dim).to(device)
        matrices = [p for n, p in self.clip.named_parameters() if _decays(n, p)]
        others = [p for n, p in self.clip.named_parameters() if not _decays(n, p)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
                *(
                    [{"params": self.reader.parameters(), "weight_decay": 0.0}]
                    if self.reader
                    else []
                ),
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            eps=1e-6,
        )
        self.loader = build_loader(config.data, config.batch_size, pin_memory=device.type == "cuda")
        self.tokenize = build_tokenizer(config.clip)
        self.step = 0
        self.text_finished = not config.words.steps
        self.text_pretraining: TextPretraining | None = None
        self._resume()

    def _start(self, path: Path) -> None:
        """Load the weights of a CLIP, or of the CLIP in a checkpoint."""
        if is_ours(path):
            tensors = load_checkpoint(path).model.clip.state_dict()
        else:
            tensors = read_clip(path, self.config.clip)
        fill(self.clip, self.clip.state_dict(), tensors, str(path))

    def go(self) -> Path:
        console = Console(stderr=True)
        self._contrast(console)
        if not self.text_finished:
            self._pretrain_text(console)
        self.loader.close()
        return self.folder / "clip.safetensors"

    def _contrast(self, console: Console) -> None:
        figures: list[Tensor] = []  # loss and top-1 accuracy, on the device
        while self.step < self.config.steps:
            for batch in self.loader:
                for group in self.optimizer.param_groups:
                    group["lr"] = self._rate()
                self.towers.visual.patch_dropout = self._patch_dropout()
                torch.manual_seed(_step_seed(self.config.seed, self.step))  # of the dropout
                tokens = torch.from_numpy(self.tokenize(batch.captions))
                images = batch.images.to(self.device, non_blocking=True)
                with autocast(self.device, self.precision):
                    pixels = clip_pixels(images, self.config.clip.image_size)
                    image = nn.functional.normalize(self.towers.encode_image(pixels).float(), dim=1)
                    text = nn.functional.normalize(
                        sentence_embeddings(self.towers, tokens).float(), dim=1
                    )
                same = equal_captions(batch.captions).to(self.device)
                loss = contrastive_loss(image, text, self.clip.logit_scale.exp(), same)
                if self.reader:
                    loss = loss + self.config.image_words_weight * self.reader(image, tokens)
                self.optimizer.zero_grad()
                torch.autograd.backward(self.scaler.scale(loss))
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                with torch.no_grad():
                    self.clip.logit_scale.clamp_(0, _MAXIMAL_LOGIT_SCALE)
                    best = (image @ text.T).argmax(1, keepdim=True)
                    right = same.gather(1, best).float().mean()
                    figures.append(torch.stack([loss.detach(), right]))
                self.step += 1
                self.text_finished = not self.config.words.steps
                if self.step % self.config.log_interval == 0:
                    mean_loss, mean_right = torch.stack(figures).mean(0).tolist()
                    self._log(console, mean_loss, mean_right)
                    figures = []
                if self.step % self.config.save_interval == 0 or self.step == self.config.steps:
                    self._save()
                if self.step == self.config.steps:
                    break

    def _pretrain_text(self, console: Console) -> None:
        stage = self.text_pretraining = self.text_pretraining or self._text_pretraining()
        while not stage.finished:
            values, step = stage.step(), stage.steps_done
            if step % self.config.log_interval == 0 or stage.finished:
                shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
                line = f"words, step {step}/{self.config.words.steps}  {shown}"
                console.print(line, highlight=False)
                self._append({"words_step": step, **values})
            self.text_finished = stage.finished
            if step % self.config.save_interval == 0 or stage.finished:
                self._save()

    def _text_pretraining(self) -> TextPretraining:
        dataset, config = self.loader.dataset, self.config
        assert isinstance(dataset, CaptionedImages)  # checked by the configuration
        return config.words.build(
            self.clip, self.tokenize, dataset.source, config.seed, self.precision
        )

    def _rate(self) -> float:
        if self.step < self.config.warmup:
            return self.config.learning_rate * (self.step + 1) / self.config.warmup
        done = (self.step - self.config.warmup) / max(1, self.config.steps - self.config.warmup)
        return self.config.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def _patch_dropout(self) -> nn.Module:
        early = self.step < 0.9 * self.config.steps
        if not self.config.patch_dropout or not early:
            return nn.Identity()
        return PatchDropout(self.config.patch_dropout)

    def _log(self, console: Console, loss: float, found: float) -> None:
        console.print(
            f"step {self.step}/{self.config.steps}  loss {loss:.3f}  "
            f"top-1 of {self.config.batch_size}: {found:.1%}",
            highlight=False,
        )
        self._append({"step": self.step, "loss": loss, "top1": found})

    def _append(self, record: Mapping[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _identity(self) -> str:
        # A run may resume with a longer schedule, but not with another model or other data.
        data = {k: v for k, v in self.config.data.to_dict().items() if k not in _MAY_CHANGE}
        return json.dumps([asdict(self.config.clip), data, self.config.batch_size])

    def _save(self) -> None:
        weights = {n: t.detach().contiguous().cpu() for n, t in self.clip.state_dict().items()}
        with atomic_path(self.folder / "clip.safetensors") as temporary:
            save_file(weights, temporary, {"clip": json.dumps(asdict(self.config.clip))})
        state = {
            "run": self._identity(),
            "step": self.step,
            "epoch": self.loader.position.epoch,
            "samples": self.loader.position.samples,
            "weights": weights,
            "reader": self.reader.state_dict() if self.reader else {},
            "taught": self.text_finished,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.text_pretraining and not self.text_finished:
            state["words"] = self.text_pretraining.state_dict()
        with atomic_path(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if _comparable(state["run"]) != _comparable(self._identity()):
                raise CheckpointError(
                    f"{self.folder} holds another run: choose another output, or delete that folder"
                )
            self.clip.load_state_dict(state["weights"])
            if self.reader:
                self.reader.load_state_dict(state["reader"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self.text_finished |= state["taught"]
            if "words" in state and not self.text_finished and state["step"] >= self.config.steps:
                self.text_pretraining = self._text_pretraining()
                self.text_pretraining.load_state_dict(state["words"])
        except (KeyError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"{path} is damaged ({type(error).__name__}): delete it to start over"
            ) from error
        self.step = state["step"]
        self.loader.resume(Position(state["epoch"], state["samples"]))
        self._drop_later_metrics()
        _log.info("resuming %s after %s", self.folder, self._progress())

    def _progress(self) -> str:
        if self.text_pretraining:
            return f"step {self.text_pretraining.steps_done} of text pretraining"
        return f"step {self.step}"

    def _drop_later_metrics(self) -> None:
        """Remove records of steps after the stored state, which are repeated."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        words_step = self.config.words.steps if self.text_finished else 0
        if self.text_pretraining:
            words_step = self.text_pretraining.steps_done
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off when the process was killed
                continue
            if record.get("step", 0) <= self.step and record.get("words_step", 0) <= words_step:
                kept.append(line + "\n")
        write_whole(path, "".join(kept).encode())


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross entropy over all pairs of a batch (Radford et al. 2021, figure 3).

    Images with an equal caption are not negatives, and are excluded from the sums; otherwise a data
    set with few distinct captions would train CLIP to separate similar images.

    Args:
        image, text: (B,E) embeddings of length 1.
        scale: scalar, the inverse temperature.
        same: (B,B), True where captions are equal.
    """
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = (scale * image @ text.T).masked_fill(others, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def equal_captions(captions: Sequence[str]) -> Tensor:
    """(B,B) booleans, True where two captions of a batch are equal."""
    numbers: dict[str, int] = {}
    ids = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    return ids[:, None] == ids[None]


def _step_seed(seed: int, step: int) -> int:
    return int(generator_for("patch dropout", seed, step).integers(1 << 63))


def _comparable(identity: str) -> tuple[Any, ...]:
    """An identity without default settings, which states of earlier versions may lack."""
    clip, data, batch_size = json.loads(identity)
    return clip, DataConfig.class_for(data).changed_settings(data), batch_size


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and "embedding" not in name

"""The configuration of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from galip_edge.checkpoints.clip_weights import Activation, read_clip_weights
from galip_edge.config import (
    build,
    check_fractions,
    check_integers,
    check_not_negative,
    check_positive,
    read_config,
    rename,
)
from galip_edge.data import DataConfig
from galip_edge.devices import DeviceName
from galip_edge.evaluation.names import lower_is_better
from galip_edge.models import PRESETS, ModelConfig
from galip_edge.training.diff_augment import AugmentConfig
from galip_edge.training.losses import LossConfig
from galip_edge.training.precision import Precision
from galip_edge.training.pretraining import PretrainingConfig
from galip_edge.training.projected import ProjectedConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for both networks. The defaults are the authors'.

    Attributes:
        generator_lr, discriminator_lr: learning rates.
        betas: of both.
        generator_delay: steps of adversarial training before the generator's first update, for
            untrained discriminators of a trained generator.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {
        "generator_rate": "generator_lr",
        "discriminator_rate": "discriminator_lr",
    }

    generator_lr: float = 1e-4
    discriminator_lr: float = 4e-4
    betas: tuple[float, float] = (0.0, 0.9)
    generator_delay: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "generator_lr", "discriminator_lr")
        check_fractions(self, "betas")
        check_integers(self, 0, "generator_delay")


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved, and which states are kept.

    Attributes:
        interval: steps between two checkpoints.
        minutes: also save a checkpoint when the last one is older than this; 0 to disable.
        keep: number of newest checkpoints to keep.
        keep_interval: keep the checkpoints of multiples of this step permanently, and their
            models as `model-step-N.safetensors`; 0 for none.
        best: evaluation metric, such as `cmmd`, `fid_torchvision` or `clip_score`; the model
            with the best value is kept as `model-best.safetensors`.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {"every": "interval", "keep_every": "keep_interval"}

    interval: int = 1000
    minutes: float = 30.0
    keep: int = 3
    keep_interval: int = 0
    best: str | None = None

    def __post_init__(self) -> None:
        check_integers(self, 1, "interval", "keep")
        check_integers(self, 0, "keep_interval")
        check_not_negative(self, "minutes")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training, on held-out images; see docs/evaluation.md.

    Attributes:
        interval: steps between two evaluations; 0 for none. There is none while pretraining trains
            layers apart.
        minutes: with `interval`, also evaluate when the last evaluation is older than this; 0 for
            never. The evaluated steps, and so the best model, then depend on the machine's speed.
        count: captions, generated images (one per caption), and real images.
        batch_size: images at once; does not affect the result.
        diversity_captions, diversity_images: captions for diversity, and images of each; 0
            captions disable it.
        data: held-out data. Default: the `test` split of the training data. In a file, settings
            default to those of the training data.
        inception_torchvision, inception_tf: files of Inception weights; each adds FID and KID.
        efficientnet: add the metrics of EfficientNet-Lite1, such as `fd_lite1`. Its weights come
            from a package, and no training uses it.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {"every": "interval"}

    interval: int = 0
    minutes: float = 0.0
    count: int = 500
    batch_size: int = 32
    diversity_captions: int = 10
    diversity_images: int = 4
    data: DataConfig | None = None
    inception_torchvision: str | None = None
    inception_tf: str | None = None
    efficientnet: bool = False

    def __post_init__(self) -> None:
        check_integers(self, 0, "interval", "diversity_captions")
        check_integers(self, 1, "batch_size")
        check_integers(self, 2, "count", "diversity_images")
        check_not_negative(self, "minutes")
        if self.minutes and not self.interval:
            raise ValueError(f"minutes = {self.minutes} has no effect without interval: set both")


@dataclass(frozen=True)
class LogConfig:
    """Logging, in steps.

    Attributes:
        interval: steps between two reports of losses and speed.
        samples_interval: steps between two grids of sample images; 0 for none.
        prompts: of the samples. Default: the first held-out captions, with their real images
            next to the generated ones, or without evaluation the first captions of the data.
        sample_count: number of samples if `prompts` is empty.
        tensorboard: also write TensorBoard event files.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {
        "every": "interval",
        "samples_every": "samples_interval",
    }

    interval: int = 10
    samples_interval: int = 1000
    prompts: tuple[str, ...] = ()
    sample_count: int = 16
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_integers(self, 1, "interval", "sample_count")
        check_integers(self, 0, "samples_interval")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        output: folder of the run. Training resumes if it holds checkpoints of the same run.
        data: training data.
        model: dimensions, and how pixels are fed to CLIP. In a file, `preset` names dimensions
            to start from.
        loss, projected, augmentation, optimizer, checkpoint, log, evaluation: see these classes.
        pretraining: training of the generator before adversarial training; None for none.
        batch_size: samples per step, over all processes.
        micro_batch_size: samples that a process computes at once. Default: its share of the
            batch. A smaller size saves memory, takes about a quarter more time, and does not
            change the result.
        epochs, steps: length of training; the smaller limit applies, at least one is required.
        precision: of the forward passes; weights and optimizer are always float32. On hardware
            that emulates bfloat16, a CPU uses float32 and a GPU float16 instead.
        translation: largest random translation of real and generated images before CLIP, as a
            fraction of their width; 0 as published. With little data or a small CLIP it prevents
            noise in the images that CLIP ignores.
        ema_decay: of the generator's moving average; 0 for none, as published. The decay ramps up
            over the first steps.
        seed: of initial weights and noise, and of the data unless `data.seed` is set.
        device: `auto` selects CUDA where it is available.
        threads: CPU threads of each process. Default: its share of the cores, minus one for
            data workers. More threads than free cores are slower than one thread.
        tf32: on CUDA, compute float32 products with 10 bits of mantissa.
        cudnn_benchmark: on CUDA, time convolution algorithms for each new input shape.
        clip: CLIP weights: a file by OpenAI, open_clip, Hugging Face or `train-clip`, or one
            of our checkpoints. Default: OpenAI's ViT-B/32, through open_clip. In a
            configuration file it determines `model.clip`. `random` is for tests, and for trying
            dimensions without a CLIP.
        clip_activation: of that CLIP, if neither its file nor its folder states it.
        start: checkpoint to start from, ours or an original .pth. `clip` replaces the CLIP in a
            checkpoint of ours.
        text_cache: folder of cached sentence embeddings. Default: the user's cache folder;
            `none` disables the cache.
        channels_last: memory layout of the convolutions; usually faster.
        compile: apply torch.compile to the networks; needs a C++ compiler, or Triton. On a CPU
            it takes many minutes to start, and gains nothing at full size.
        cuda_graphs: on CUDA, capture forward and backward passes as CUDA graphs: a step launches
            its kernels at once instead of one by one. Not with float16 or micro-batches.
        non_finite_limit: stop after this many consecutive steps with non-finite values. Such a
            step is reported and skipped, and in float16 the loss scale is halved.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {"regression": "pretraining"}

    output: str
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    projected: ProjectedConfig = field(default_factory=ProjectedConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    pretraining: PretrainingConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    batch_size: int = 64
    micro_batch_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    precision: Precision = "bfloat16"
    translation: float = 0.0
    ema_decay: float = 0.0
    seed: int = 0
    device: DeviceName = "auto"
    threads: int | None = None
    tf32: bool = False
    cudnn_benchmark: bool = True
    clip: str | None = None
    clip_activation: Activation | None = None
    start: str | None = None
    text_cache: str | None = None
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    non_finite_limit: int = 20

    def __post_init__(self) -> None:
        check_integers(
            self, 1, "non_finite_limit", "micro_batch_size", "epochs", "steps", "threads"
        )
        check_integers(self, 0, "seed")
        check_integers(self, 2, "batch_size")  # a single sample has no mismatched sentence
        if self.epochs is None and self.steps is None:
            raise ValueError("set epochs or steps: how long to train")
        check_fractions(self, "translation", "ema_decay")
        if self.cuda_graphs and (self.precision == "float16" or self.micro_batch_size):
            raise ValueError(
                "cuda_graphs supports neither precision = 'float16' nor micro_batch_size: use "
                "bfloat16 and a smaller batch, or set cuda_graphs = false"
            )
        if not self.model.tap_blocks and self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} must be the model's "
                f"{self.model.image_size}, because a discriminator without tap_blocks compares "
                "pixels"
            )
        if self.pretraining:
            self.pretraining.check(self)
        if self.evaluation.interval and self.held_out_data is None:
            raise ValueError(
                f"evaluation.interval is {self.evaluation.interval}, but data of kind "
                f"{self.data.kind!r} has no held-out images: set data.held_out, such as 0.05, or "
                "evaluation.data"
            )
        if self.checkpoint.best is not None:
            self._check_best(self.checkpoint.best)

    def _check_best(self, metric: str) -> None:
        lower_is_better(metric)
        if not self.evaluation.interval:
            raise ValueError(
                f"checkpoint.best = {metric!r} needs evaluation: set evaluation.interval"
            )
        if metric.endswith("_lite1") and not self.evaluation.efficientnet:
            raise ValueError(
                f"checkpoint.best = {metric!r} needs EfficientNet: set evaluation.efficientnet"
            )
        for name in ("torchvision", "tf"):
            if metric.endswith(f"_{name}") and not getattr(self.evaluation, f"inception_{name}"):
                raise ValueError(
                    f"checkpoint.best = {metric!r} needs Inception weights: set "
                    f"evaluation.inception_{name}"
                )

    @property
    def held_out_data(self) -> DataConfig | None:
        """Data for evaluation, without augmentation; None if none is held out of training."""
        if self.evaluation.data is not None:
            return self.evaluation.data
        if not self.data.has_test_split:
            return None
        return replace(self.data, **_HELD_OUT)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from plain values. Raises ValueError naming the setting."""
        values = rename(values, cls.ALIASES)
        model, data = values.get("model", {}), values.get("data", {})
        resolved = {**values, "model": _with_preset(model)}
        if isinstance(data, Mapping) and data:
            # The seed of the run is the default for the data.
            resolved["data"] = {"seed": values.get("seed", 0), **data}
        evaluation = values.get("evaluation")
        if isinstance(evaluation, Mapping) and isinstance(evaluation.get("data"), Mapping):
            held_out = _held_out(resolved["data"], evaluation["data"])
            resolved["evaluation"] = {**evaluation, "data": held_out}
        return build(cls, resolved)


# Settings of held-out data that differ from those of the training data.
_HELD_OUT: dict[str, Any] = {"split": "test", "augment": False, "resize": None}


def _held_out(data: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of held-out data with those of training data of the same kind."""
    if given.get("kind", data["kind"]) != data["kind"]:
        shared = {name: data[name] for name in ("image_size", "seed") if name in data}
        return {**shared, "augment": False, **given}
    if "root" in given and "held_out" not in given:  # all of another folder
        return {**data, **_HELD_OUT, "held_out": 0.0, "split": data.get("split", "train"), **given}
    return {**data, **_HELD_OUT, **given}


def _with_preset(model: Any) -> Any:
    """Apply the settings of `model` to the preset that it names."""
    if not isinstance(model, Mapping) or "preset" not in model:
        return model
    if model["preset"] not in PRESETS:
        raise ValueError(
            f"model.preset must be one of {', '.join(PRESETS)}, got {model['preset']!r}"
        )
    preset = PRESETS[model["preset"]].to_dict()
    mine = {name: value for name, value in model.items() if name != "preset"}
    clip = {**preset["clip"], **mine.pop("clip", {})}
    return {**preset, **mine, "clip": clip}


def load_config(config: str, assignments: Iterable[str] = ()) -> TrainConfig:
    """Read a configuration.

    Args:
        config: path of a TOML file, or the name of a configuration in the package.
        assignments: `a.b=value`, as given to `--set`; they override the file.

    Raises:
        ConfigError: the file is missing, or a setting is unknown, missing or invalid.
    """
    return read_config(
        config,
        assignments,
        lambda values: TrainConfig.from_dict(_with_dimensions_of_clip(values)),
    )


def _with_dimensions_of_clip(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Set `model.clip` to the dimensions of the CLIP file that `values` name.

    A run that resumes does not need that file: its exported model contains the CLIP.

    Raises:
        ValueError: `model.clip` contradicts the file.
        CheckpointError: the file is not a supported CLIP.
    """
    model = values.get("model", {})
    path = _clip_file(values)
    if path is None or not isinstance(model, Mapping):
        return values
    weights, stated = read_clip_weights(path), values.get("clip_activation")
    given = model.get("clip", {})
    if stated is None and "quick_gelu" in given:
        stated = "quick_gelu" if given["quick_gelu"] else "gelu"
    dimensions = asdict(weights.infer_config(stated))
    differing = [
        f"{name} is {value}, the file has {dimensions[name]}"
        for name, value in given.items()
        if name in dimensions and dimensions[name] != value
    ]
    if differing:
        raise ValueError(
            f"[model.clip] does not fit {path}: {', '.join(differing)}; omit [model.clip], "
            "it is read from the file"
        )
    # CLIPConfig rejects unknown names.
    return {**values, "model": {**model, "clip": {**given, **dimensions}}}


def _clip_file(values: Mapping[str, Any]) -> Path | None:
    clip, output = values.get("clip"), values.get("output")
    if not isinstance(clip, str) or clip == "random":
        return None
    given = [Path(clip)]
    if isinstance(output, str):
        given.append(Path(output) / "model.safetensors")
    return next((path for path in given if path.exists()), None)

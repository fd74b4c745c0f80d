"""Everything that determines a training run, in one typed, validated place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import galip_edge
from galip_edge.checkpoints.clip_weights import Activation, read_clip_weights
from galip_edge.data import DataConfig
from galip_edge.data.aviary import NOISE_DIM
from galip_edge.devices import DeviceName
from galip_edge.evaluation.names import lower_is_better
from galip_edge.models import PRESETS, ModelConfig
from galip_edge.training.diff_augment import AugmentConfig
from galip_edge.training.losses import LossConfig
from galip_edge.training.precision import Precision
from galip_edge.training.projected import ProjectedConfig
from galip_edge.training.regression import RegressionConfig
from galip_edge.training.settings import build, override, parse_toml
from runtime.errors import GalipEdgeError

_T = TypeVar("_T")

# The configurations that come with the package, by name: `galip-edge train cub`.
CONFIGS = Path(galip_edge.__file__).parent / "configs"


class ConfigError(GalipEdgeError):
    """A training configuration cannot be used; the message names the setting."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for both networks. The defaults are the authors'.

    Attributes:
        generator_rate, discriminator_rate: learning rates.
        betas: of both.
        generator_delay: steps of adversarial training before the generator's first update, for
            discriminators that start untrained against a generator that does not.
    """

    generator_rate: float = 1e-4
    discriminator_rate: float = 4e-4
    betas: tuple[float, float] = (0.0, 0.9)
    generator_delay: int = 0

    def __post_init__(self) -> None:
        for name in ("generator_rate", "discriminator_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        _at_least(self, 0, "generator_delay")


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved, and what is kept.

    Attributes:
        every: steps between two checkpoints.
        minutes: a checkpoint is saved as well when the last one is older than this; 0 for never.
        keep: number of newest checkpoints that are kept.
        keep_every: checkpoints of steps that this divides are kept for good, and their model as
            `model-step-N.safetensors`; 0 for none.
        best: figure of evaluation, such as `cmmd`, `fid_torchvision` or `clip_score`; the model
            with the best value is kept as `model-best.safetensors`.
    """

    every: int = 1000
    minutes: float = 30.0
    keep: int = 3
    keep_every: int = 0
    best: str | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "keep")
        _at_least(self, 0, "keep_every")
        if not self.minutes >= 0:
            raise ValueError(f"minutes must not be negative, got {self.minutes!r}")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training, on images that are not trained on; see docs/evaluation.md.

    Attributes:
        every: steps between two evaluations; 0 for none.
        count: captions, with an image generated for each, and as many real images.
        batch_size: images at once; changes no result.
        diversity_captions, diversity_images: captions for diversity, and images of each; 0
            captions skip it.
        data: held-out data, by default the `test` split of the training data. In a file, only
            settings that differ from those of the training data are needed.
        inception_torchvision, inception_tf: files of Inception weights; each adds FID and KID.
        efficientnet: add the figures of EfficientNet-Lite1, such as `fd_lite1`; a package has its
            weights, and no training reads it.
    """

    every: int = 0
    count: int = 500
    batch_size: int = 32
    diversity_captions: int = 10
    diversity_images: int = 4
    data: DataConfig | None = None
    inception_torchvision: str | None = None
    inception_tf: str | None = None
    efficientnet: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 0, "every", "diversity_captions")
        _at_least(self, 1, "batch_size")
        _at_least(self, 2, "count", "diversity_images")


@dataclass(frozen=True)
class LogConfig:
    """What is reported, and when (in steps).

    Attributes:
        every: steps between two reports of losses and speed.
        samples_every: steps between two grids of sample images; 0 for none.
        prompts: of the samples; by default the first held-out captions, with their real images
            next to the generated ones, or without evaluation the first captions of the data.
        sample_count: samples when `prompts` is empty.
        tensorboard: write TensorBoard's event files as well.
    """

    every: int = 10
    samples_every: int = 1000
    prompts: tuple[str, ...] = ()
    sample_count: int = 16
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "sample_count")
        _at_least(self, 0, "samples_every")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        output: the run's folder. If it holds checkpoints of the same run, training resumes.
        data: what to train on.
        model: dimensions, and how pixels reach CLIP. In a file, `preset` names the ones to
            start from.
        loss, projected, augmentation, regression, optimizer, checkpoint, log, evaluation: see
            there.
        batch_size: samples per step, over all processes.
        micro_batch_size: samples that a process computes at once; by default its whole share of
            the batch. Smaller needs less memory and about a quarter more time, and changes no
            result.
        epochs, steps: when to stop; whichever comes first, at least one is needed.
        precision: of the forward passes; weights and optimizer are float32 in any case. Where
            bfloat16 would be emulated, a CPU takes float32 and a GPU float16 instead.
        translation: images are moved at random before the discriminator's CLIP sees them, real
            and generated ones alike, by up to this fraction of their width; 0 as published. With
            little data or a small CLIP it keeps noise that CLIP overlooks out of the images.
        ema_decay: of the generator's moving average; 0 for none, as published. It ramps up over
            the first steps.
        seed: of initial weights and noise, and of the data unless `data.seed` is set.
        device: `auto` takes CUDA where it is available.
        threads: CPU threads of each process; by default its share of the cores, less one for
            data workers. More threads than free cores are slower than one.
        tf32: on CUDA, compute float32 products with 10 bits of mantissa.
        cudnn_benchmark: on CUDA, time convolution algorithms for each new input shape.
        clip: CLIP's weights: a file of OpenAI, open_clip, Hugging Face or `train-clip`, or one
            of our checkpoints; by default OpenAI's ViT-B/32, through open_clip. In a
            configuration file it decides `model.clip`. `random` is only for tests and for trying
            out dimensions for which there is no CLIP.
        clip_activation: of that CLIP, if neither its file nor its folder states it.
        start: checkpoint to start from, ours or an original .pth. With `clip`, a checkpoint of ours
            gets that CLIP instead of its own.
        text_cache: folder in which sentence embeddings are kept; by default the user's cache
            folder. `none` keeps none.
        channels_last: memory layout of the convolutions; mostly faster.
        compile: run the networks through torch.compile; needs a C++ compiler, or Triton. On a
            CPU it takes many minutes to begin and gains nothing at full size.
        non_finite_limit: stop after so many steps in a row with a value that is not finite. Until
            then such a step is reported and left out, and in float16 the loss scale is halved.
    """

    output: str
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    projected: ProjectedConfig = field(default_factory=ProjectedConfig)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
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
    non_finite_limit: int = 20

    def __post_init__(self) -> None:
        _at_least(self, 1, "non_finite_limit")
        _at_least(self, 0, "seed")
        _at_least(self, 2, "batch_size")  # a batch of one has no mismatched sentence
        for name in ("micro_batch_size", "epochs", "steps", "threads"):
            if getattr(self, name) is not None:
                _at_least(self, 1, name)
        if self.epochs is None and self.steps is None:
            raise ValueError("set epochs or steps: how long to train")
        if not 0 <= self.translation < 1:
            raise ValueError(f"translation must be in [0, 1), got {self.translation!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay!r}")
        if not self.model.tap_blocks and self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} must be the model's "
                f"{self.model.image_size}, because a discriminator without tap_blocks compares "
                "pixels"
            )
        if self.regression.weight:
            self._check_regression()
        if self.evaluation.every and self.held_out_data is None:
            raise ValueError(
                f"evaluation.every is {self.evaluation.every}, but data of kind "
                f"{self.data.kind!r} has no held-out images: set data.held_out, such as 0.05, or "
                "evaluation.data"
            )
        if self.checkpoint.best is not None:
            self._check_best(self.checkpoint.best)

    def _check_best(self, metric: str) -> None:
        lower_is_better(metric)
        if not self.evaluation.every:
            raise ValueError(f"checkpoint.best = {metric!r} needs evaluation: set evaluation.every")
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
        """Data for evaluation, not augmented; None if nothing is held out of training."""
        if self.evaluation.data is not None:
            return self.evaluation.data
        if not self.data.has_test_split:
            return None
        return DataConfig(**{**self.data.to_dict(), **_HELD_OUT})

    def _check_regression(self) -> None:
        if self.data.kind != "aviary":
            raise ValueError(
                f"regression needs images whose noise is known, which data of kind "
                f"{self.data.kind!r} has not: leave regression.weight out"
            )
        if self.model.noise_dim != NOISE_DIM:
            raise ValueError(
                f"model.noise_dim must be the aviary's {NOISE_DIM} for regression, got "
                f"{self.model.noise_dim}"
            )
        sizes = (self.data.image_size, self.data.shorter_side)
        if sizes != (self.model.image_size,) * 2 or (self.data.augment and self.data.flip):
            raise ValueError(
                "regression compares pixels: set data.image_size and data.resize to the model's "
                f"{self.model.image_size}, and data.flip = false; got sizes {sizes}, "
                f"flip = {self.data.flip}"
            )
        halvings, rest = divmod(self.model.image_size, self.model.clip.grid)
        if self.regression.encodes and (rest or halvings & (halvings - 1)):
            raise ValueError(
                f"autoencoder_steps need an image size that halves to CLIP's grid, and "
                f"{self.model.image_size} does not halve to {self.model.clip.grid}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Raises ValueError naming an unknown, missing or invalid setting."""
        model, data = values.get("model", {}), values.get("data", {})
        resolved = {**values, "model": _with_preset(model)}
        if isinstance(data, Mapping) and data:
            # One seed, unless two are wanted; images as large as the recipe says.
            resolved["data"] = {"seed": values.get("seed", 0), **data}
        evaluation = values.get("evaluation")
        if isinstance(evaluation, Mapping) and isinstance(evaluation.get("data"), Mapping):
            held_out = _held_out(resolved["data"], evaluation["data"])
            resolved["evaluation"] = {**evaluation, "data": held_out}
        return build(cls, resolved)


# How held-out data differs from the training data whose settings it takes over.
_HELD_OUT: dict[str, Any] = {"split": "test", "augment": False, "resize": None}


def _held_out(data: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of held-out data, on top of those of the training data of the same kind."""
    if given.get("kind", data["kind"]) != data["kind"]:
        shared = {name: data[name] for name in ("image_size", "seed") if name in data}
        return {**shared, "augment": False, **given}
    if "root" in given and "held_out" not in given:  # all of another folder
        return {**data, **_HELD_OUT, "held_out": 0.0, "split": data.get("split", "train"), **given}
    return {**data, **_HELD_OUT, **given}


def _with_preset(model: Any) -> Any:
    """The settings of `model`, on top of those of the preset that it names."""
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
        config: path of a TOML file, or the name of one that comes with the package.
        assignments: `a.b=value`, as given to `--set`; they override the file.

    Raises:
        ConfigError: there is no such file, or a setting is unknown, missing or invalid.
    """
    return read_config(
        CONFIGS,
        config,
        assignments,
        lambda values: TrainConfig.from_dict(_with_dimensions_of_clip(values)),
    )


def _with_dimensions_of_clip(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` with the `model.clip` of the CLIP file that they name.

    A run that has begun needs that file no longer: its exported model has the CLIP inside.

    Raises:
        ValueError: `model.clip` says otherwise.
        CheckpointError: the file is no CLIP that can be used.
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
            f"[model.clip] does not fit {path}: {', '.join(differing)}; leave [model.clip] out, "
            "it is read from the file"
        )
    # Names that no CLIP has are left for the model's own check.
    return {**values, "model": {**model, "clip": {**given, **dimensions}}}


def _clip_file(values: Mapping[str, Any]) -> Path | None:
    clip, output = values.get("clip"), values.get("output")
    if not isinstance(clip, str) or clip == "random":
        return None
    given = [Path(clip)]
    if isinstance(output, str):
        given.append(Path(output) / "model.safetensors")
    return next((path for path in given if path.exists()), None)


def read_config(
    folder: Path, config: str, assignments: Iterable[str], make: Callable[[Mapping[str, Any]], _T]
) -> _T:
    """`make` from the values of a TOML file, or of one in `folder` by name; see `load_config`."""
    path = Path(config)
    if not path.is_file() and (folder / f"{config}.toml").is_file():
        path = folder / f"{config}.toml"
    try:
        return make(override(parse_toml(path.read_text(encoding="utf-8")), assignments))
    except OSError as error:
        names = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise ConfigError(
            f"cannot read {config} ({error.strerror}); give a TOML file or one of {names}"
        ) from error
    except ValueError as error:  # UTF-8 decoding raises it too
        raise ConfigError(f"{config}: {error}") from error


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

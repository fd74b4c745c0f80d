"""`galip-edge evaluate`: image quality by named protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import console, counting_progress
from galip_edge.commands.options import (
    clip_activation_option,
    evaluation_device_option,
    input_path,
    integer_option,
    json_option,
)
from runtime.errors import GalipEdgeError
from runtime.files import sha256_of

if TYPE_CHECKING:  # imported in functions: a mistyped path is reported before torch loads
    import numpy as np
    import torch

    from galip_edge.checkpoints.clip_weights import Activation
    from galip_edge.data import DataConfig
    from galip_edge.data.records import Source
    from galip_edge.evaluation.clip_space import CLIPScorer
    from galip_edge.evaluation.evaluate import FeatureExtractor
    from galip_edge.evaluation.inception import InceptionPublished

_DEFAULT_COUNT = 1000

# Images of an unlimited data set for --count 0.
_UNLIMITED = 1000


@click.command("evaluate", cls=GroupedCommand)
@click.argument("model", type=input_path)
@option_group(
    "Models",
    click.option("--reference", type=input_path, help="Second model, for comparison."),
    click.option("--clip", type=input_path, help="CLIP weights, for an original checkpoint."),
    clip_activation_option,
    evaluation_device_option,
)
@option_group(
    "Data",
    click.option(
        "--data",
        metavar="CONFIG",
        help="Real images and captions: aviary, KIND=FOLDER such as folder=photos, or a training "
        "configuration: its held-out images if there are any, otherwise its [data].",
    ),
    click.option(
        "--captions",
        "captions_file",
        type=input_path,
        help="Captions, one per line; no real images.",
    ),
    integer_option(
        "--count",
        least=0,
        default=None,
        help="Number of captions and generated images; 0 for all. Default: 1000, or all if there "
        "are fewer.",
    ),
    integer_option("--seed", least=0, default=0, help="Seed of the noise."),
    integer_option("--batch-size", least=1, default=16, help="Images per batch."),
)
@option_group(
    "Metrics",
    click.option("--scorer", type=input_path, help="Checkpoint with the CLIP for scores."),
    click.option("--classifier", type=input_path, help="Attribute classifier of the aviary."),
    click.option(
        "--inception-torchvision",
        metavar="FILE|download",
        help="Weights of torchvision's Inception, as used in the GALIP paper; adds FID and KID.",
    ),
    click.option(
        "--inception-tf",
        metavar="FILE|download",
        help="Weights of the TensorFlow FID's Inception; adds FID and KID.",
    ),
    click.option(
        "--efficientnet",
        is_flag=True,
        help="Add distances, precision, recall, density and coverage in the features of "
        "EfficientNet-Lite1.",
    ),
    integer_option(
        "--midpoints",
        least=0,
        default=0,
        help="Number of interpolations whose middle image is evaluated, such as 200.",
    ),
    integer_option(
        "--two-sample",
        least=0,
        default=0,
        help="Number of real and of generated images for a classifier two-sample test.",
    ),
    integer_option(
        "--diversity-captions",
        least=0,
        default=20,
        help="Captions whose images are compared with each other; 0 for none.",
    ),
)
@option_group(
    "Published FID",
    click.option(
        "--statistics",
        type=input_path,
        help="Statistics of real images (.npz) for fid_published, GALIP's own protocol; needs "
        "--inception-torchvision.",
    ),
    integer_option(
        "--passes",
        least=1,
        help="For fid_published: passes over the images, each with random captions "
        "[default: 1; published: 12 for CUB].",
    ),
    click.option(
        "--per-caption",
        is_flag=True,
        help="For fid_published: one image for every caption of every image.",
    ),
)
@option_group(
    "Output",
    click.option(
        "-o", "--out", type=click.Path(path_type=Path), help="Append to this JSON Lines file."
    ),
    json_option,
)
def command(
    model: Path,
    reference: Path | None,
    data: str | None,
    captions_file: Path | None,
    scorer: Path | None,
    clip: Path | None,
    clip_activation: Activation | None,
    classifier: Path | None,
    inception_torchvision: str | None,
    inception_tf: str | None,
    efficientnet: bool,
    midpoints: int,
    two_sample: int,
    statistics: Path | None,
    passes: int | None,
    per_caption: bool,
    count: int | None,
    seed: int,
    diversity_captions: int,
    batch_size: int,
    device: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate MODEL, a checkpoint or a bundle, and with --reference compare it with another.

    \b
    Example:
      galip-edge evaluate galip-int8 --data coco=/data/coco --reference galip.safetensors
    """
    if (data is None) == (captions_file is None):
        raise click.UsageError("pass either --data or --captions")
    extractors = inception_tf or inception_torchvision or efficientnet
    if captions_file and (extractors or two_sample):
        raise click.UsageError("distances and two-sample tests need real images: add --data")
    if midpoints and not extractors:
        raise click.UsageError("--midpoints needs features of EfficientNet: add --efficientnet")
    if statistics and not inception_torchvision:
        raise click.UsageError("--statistics needs --inception-torchvision")
    if not statistics and (passes or per_caption):
        raise click.UsageError(
            "--passes and --per-caption apply only to fid_published: add --statistics"
        )
    if passes and per_caption:
        raise click.UsageError("pass either --passes or --per-caption, not both")
    from galip_edge.devices import choose_device, keeping_free_memory
    from galip_edge.evaluation.evaluate import (
        EvaluationOptions,
        MetricModels,
        append_result,
        evaluate,
    )
    from galip_edge.evaluation.models import open_model
    from galip_edge.evaluation.published import fid_published, load_statistics

    real_statistics = load_statistics(statistics) if statistics else None
    place = choose_device("auto" if device in (None, "gpu", "npu") else device)
    bundle_device = "cpu" if device in (None, "cuda") else device
    evaluated = open_model(model, clip, place, clip_activation, bundle_device)
    other = (
        open_model(reference, clip, place, clip_activation, bundle_device) if reference else None
    )
    inceptions = _inceptions({"torchvision": inception_torchvision, "tf": inception_tf}, place)
    if efficientnet:
        from galip_edge.evaluation.efficientnet import EfficientNetFeatures

        inceptions["lite1"] = EfficientNetFeatures(place)
    networks = MetricModels(
        _scorer(scorer, clip, place, evaluated, other),
        inceptions,
    )
    inputs = _inputs(
        data, captions_file, evaluated.image_size, _DEFAULT_COUNT if count is None else count
    )
    captions, real = inputs.captions, inputs.real
    if len(captions) < 2:
        raise GalipEdgeError(
            f"evaluation needs at least 2 captions, {data or captions_file} has {len(captions)}"
        )
    if count is None:
        count = min(_DEFAULT_COUNT, len(captions))
    elif count > len(captions):
        raise GalipEdgeError(
            f"{data or captions_file} has {len(captions)} captions, fewer than --count {count}: "
            "pass --count 0 for all"
        )
    extra = _extra_metrics(inputs, networks.scorer, classifier, place)
    with keeping_free_memory(), counting_progress() as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        result = evaluate(
            evaluated,
            captions,
            networks,
            EvaluationOptions(
                count or len(captions),
                seed,
                batch_size,
                min(diversity_captions, len(captions)),
                midpoints=midpoints,
                two_sample=two_sample,
            ),
            real=real,
            second=extra.second_real if extra and extractors else None,
            extra=extra,
            reference=other,
            progress=report,
        )
        if statistics and real_statistics:
            prompts = _published_prompts(inputs.all_captions(), passes, per_caption, seed)
            published = _inception_published(str(inception_torchvision), place)
            for found, each in ((result, evaluated), (result.get("reference"), other)):
                if found is None or each is None:
                    continue
                found["metrics"]["fid_published"] = fid_published(
                    each, prompts, published, real_statistics, seed=seed, batch_size=batch_size,
                    progress=report,
                )  # fmt: skip
            result["published"] = {
                "statistics": str(statistics),
                "statistics_sha256": sha256_of(statistics),
                "captions": "all" if per_caption else f"random, {passes or 1} passes",
                "images": len(prompts),
            }
    result["data"] = data or str(captions_file)
    if out:
        append_result(out, result)
    click.echo(json.dumps(result, indent=1) if as_json else "\n".join(_lines(result)))


def _scorer(
    path: Path | None, clip: Path | None, device: torch.device, *models: object
) -> CLIPScorer:
    """CLIP of the checkpoint `path`, or else of the first checkpoint among `models`."""
    from galip_edge.checkpoints.format import load_checkpoint
    from galip_edge.evaluation.clip_space import CLIPScorer
    from galip_edge.evaluation.models import CheckpointModel

    if path is not None:
        return CLIPScorer(load_checkpoint(path, clip).model.to(device))
    for candidate in models:
        if isinstance(candidate, CheckpointModel):
            return CLIPScorer(candidate.model)
    raise GalipEdgeError(
        "a bundle has no image encoder for scores: pass the checkpoint that it was converted from "
        "with --scorer or --reference"
    )


def _inceptions(given: dict[str, str | None], device: torch.device) -> dict[str, FeatureExtractor]:
    """Inception networks by protocol, with given or downloaded weights."""
    files = {variant: value for variant, value in given.items() if value}
    if not files:
        return {}
    from galip_edge.evaluation import inception

    extractors: dict[str, FeatureExtractor] = {}
    for variant, value in files.items():
        if value == "download":
            console().print(f"Inception weights from {inception.WEIGHTS[variant].url}")
            path = inception.fetch_weights(variant)
        else:
            path = Path(value)
        network = inception.InceptionTF if variant == "tf" else inception.InceptionTorchvision
        extractors[variant] = network(path, device)
    return extractors


def _inception_published(value: str, device: torch.device) -> InceptionPublished:
    """The Inception of fid_published, from the file of --inception-torchvision."""
    from galip_edge.evaluation import inception

    path = inception.fetch_weights("torchvision") if value == "download" else Path(value)
    return inception.InceptionPublished(path, device)


def _published_prompts(
    captions: list[tuple[str, ...]], passes: int | None, per_caption: bool, seed: int
) -> list[str]:
    if per_caption:
        return [caption for own in captions for caption in own]
    from galip_edge.evaluation.published import captions_of_passes

    return list(captions_of_passes(captions, passes or 1, seed))


@dataclass(frozen=True)
class _Inputs:
    """A caption for each image, all captions of each image, real images, and their source."""

    captions: list[str]
    all_captions: Callable[[], list[tuple[str, ...]]]
    real: Callable[[int], np.ndarray] | None = None
    source: Source | None = None
    kind: str = ""


def _inputs(data: str | None, captions_file: Path | None, size: int, count: int) -> _Inputs:
    if captions_file is not None:
        try:
            lines = captions_file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise GalipEdgeError(f"{captions_file} is not UTF-8 text: {error.reason}") from error
        captions = [line for line in lines if line.strip()]
        return _Inputs(captions, lambda: [(caption,) for caption in captions])
    from galip_edge.data import build_dataset
    from galip_edge.data.dataset import CaptionedImages

    config = _data_config(str(data), size, count)
    dataset = build_dataset(config)
    if not isinstance(dataset, CaptionedImages):
        raise GalipEdgeError("WebDataset shards have no random access: evaluate on other data")
    source = dataset.source
    rows = range(min(count or len(source), len(source)))

    def real(index: int) -> np.ndarray:
        image = dataset[index].image
        pixels: np.ndarray = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return pixels

    return _Inputs(
        [source.captions(i)[0] for i in rows],
        lambda: [source.captions(i) for i in rows],
        real,
        source,
        config.kind,
    )


def _extra_metrics(
    inputs: _Inputs, scorer: CLIPScorer, classifier: Path | None, device: torch.device
) -> Any | None:
    """Further metrics of this kind of data, if it has any."""
    from galip_edge import extensions

    metrics = extensions.find("metrics", inputs.kind)
    if classifier is None:
        return metrics(inputs.source, scorer) if metrics else None
    if metrics is None:
        raise click.UsageError("--classifier supports only the aviary: add --data aviary")
    return metrics.with_classifier(inputs.source, scorer, classifier, device)


def _data_config(data: str, size: int, count: int) -> DataConfig:
    from galip_edge import extensions
    from galip_edge.config import build
    from galip_edge.data import DataConfig
    from galip_edge.training.config import load_config

    kind, equals, root = data.partition("=")
    if settings := extensions.find("data settings", data):
        drawn: DataConfig = settings(split="test", image_size=size, augment=False)
        return drawn.first(count or _UNLIMITED)
    if equals:
        values = {"kind": kind, "root": root, "image_size": size, "augment": False}
        given = build(DataConfig, values)
        return replace(given, split="test") if given.has_test_split else given
    config = load_config(data)
    return replace(config.held_out_data or config.data, augment=False, image_size=size, resize=None)


def _lines(result: dict[str, Any]) -> list[str]:
    """A table with one metric per line, and the reference's value next to the model's."""
    columns = [result["metrics"]]
    if "reference" in result:
        columns.append(result["reference"]["metrics"])
    lines = [f"{'images':24}{result['protocol']['count']:10}"]
    for name, value in columns[0].items():
        if name == "attributes":
            for attribute, found in value.items():
                cells = [f"{column[name][attribute]['right']:10.1%}" for column in columns]
                lines.append(f"{attribute:24}{''.join(cells)}  of {found['count']}")
        elif name == "unstated":
            for attribute, shares in value.items():
                row = "  ".join(f"{v} {share:.1%}" for v, share in shares.items())
                lines.append(f"unstated {attribute:15}{row}")
        elif isinstance(value, float):
            lines.append(f"{name:24}" + "".join(f"{column[name]:10.4f}" for column in columns))
        else:
            lines.append(f"{name}: {value}")
    for name, value in result.get("second_real", {}).items():
        if isinstance(value, float):
            lines.append(f"{'second real set: ' + name:40}{value:10.4f}")
    for name, value in result.get("reference", {}).get("psnr_db", {}).items():
        lines.append(f"{'PSNR, dB, ' + name:24}{value:10.2f}")
    return lines

"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from galip_edge.commands.console import notice
from runtime.bundle import RUN_PRECISIONS
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError


class RenamedOption(click.Option):
    """An option whose former spellings still work, but are hidden.

    Args:
        former: the spellings, such as `--part`.
    """

    def __init__(self, declarations: Sequence[str], *, former: Sequence[str], **attrs: Any) -> None:
        super().__init__([*declarations, *former], **attrs)
        self._former = frozenset(former)

    def _shown(self) -> list[str]:
        return [name for name in self.opts if name not in self._former]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Without the former spellings."""
        all_names, self.opts = self.opts, self._shown()
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = all_names

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Without the former spellings."""
        return " / ".join(f"'{name}'" for name in self._shown())


existing_path = click.Path(path_type=Path)


def model_path(text: str, ctx: click.Context | None = None) -> Path | None:
    """The folder of a model named `hf:owner/name`, downloaded if necessary; None for a path.

    Raises GalipEdgeError if it cannot be found or downloaded.
    """
    if not text.startswith("hf:"):
        return None
    if ctx is not None and ctx.resilient_parsing:  # shell completion downloads nothing
        return Path(text)
    from galip_edge.hub import resolve

    return resolve(text, notice)


class BundlePath(click.Path):
    """Folder of a bundle, or a model from a hub."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The folder. Raises GalipEdgeError if a hub model cannot be obtained."""
        return model_path(str(value), ctx) or Path(str(super().convert(value, param, ctx)))


bundle_path = BundlePath()


class InputPath(click.Path):
    """A path that must exist; checked while options are read, before anything slow is imported."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises GalipEdgeError if there is none, naming similar ones."""
        path = model_path(str(value), ctx) or Path(str(super().convert(value, param, ctx)))
        if not (ctx and ctx.resilient_parsing):
            require_path(path)
        return path


input_path = InputPath()


def require_path(path: Path, what: str = "") -> None:
    """Raise GalipEdgeError if there is nothing at `path`; the message names a similar one."""
    try:
        if path.exists():
            return
        siblings = [other.name for other in path.parent.iterdir()]
    except (OSError, ValueError):  # no such folder either, or a NUL in the name
        siblings = []
    similar = get_close_matches(path.name, siblings, 1)
    hint = f"; did you mean {path.with_name(similar[0])}?" if similar else ""
    raise GalipEdgeError(f"cannot read {what}{path}: no such file or folder{hint}")


# The values of galip_edge.checkpoints.clip_weights.ACTIVATIONS, whose import takes seconds.
clip_activation_option = click.option(
    "--clip-activation",
    type=click.Choice(["quick_gelu", "gelu"]),
    help="Activation of CLIP, if its file does not state it: quick_gelu for OpenAI's CLIPs.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

settings_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as batch_size=32 or data.root=photos; an empty value restores "
    "the default. May be repeated.",
)

model_option = click.option(
    "--model",
    type=bundle_path,
    help="Bundle folder, or hf:owner/name[@revision]; default: the embedded model.",
)

truncation_option = click.option(
    "--psi",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Truncation trick: below 1, more typical, less diverse images.",
)


def integer_option(
    *names: str, least: int, most: int | None = None, **attributes: Any
) -> Callable[[Any], Any]:
    """An option with an integer from `least` to `most`; help shows the range and the default."""
    attributes = {"show_default": True, **attributes}
    return click.option(*names, type=click.IntRange(least, most), **attributes)


threads_option = integer_option(
    "--threads", least=0, default=0, show_default="all cores", help="CPU cores to use."
)


class _DeviceName(click.ParamType):  # type: ignore[type-arg] # in some versions of click
    """OpenVINO's name of a device, in any case."""

    name = "device"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        from runtime.devices import checked_name

        try:
            return checked_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


inference_device_option = click.option(
    "--device",
    type=_DeviceName(),
    metavar="[CPU|GPU|NPU|AUTO]",
    default="CPU",
    show_default=True,
    help="Device to run the model on, see galip-edge devices; AUTO: the fastest one, measured "
    "once.",
)

_DEVICES = click.Choice(["auto", "cpu", "cuda"])

device_option = click.option(
    "--device",
    type=_DEVICES,
    default="auto",
    show_default=True,
    help="Device for PyTorch; auto: CUDA if available.",
)

evaluation_device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "gpu", "npu"], case_sensitive=False),
    help="auto, cpu, cuda: for PyTorch; auto, cpu, gpu, npu: for a bundle, see galip-edge devices. "
    "Default: auto for PyTorch, the CPU for a bundle.",
)

device_setting_option = click.option(
    "--device", type=_DEVICES, help="Short for --set device=...; default: the setting in CONFIG."
)

cache_option = click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Keep compiled models in the user's cache folder.",
)

vnni_option = click.option(
    "--vnni/--no-vnni",
    default=True,
    show_default=True,
    help="VNNI on the CPU of the target machine (2019 and later); --no-vnni halves INT8 weights, "
    "which would overflow there.",
)

precision_option = click.option(
    "--precision",
    type=click.Choice(RUN_PRECISIONS),
    default="auto",
    show_default=True,
    help="Precision of layers that are not INT8; auto: the bundle's own if this machine computes "
    "it correctly, else f32.",
)


def pipeline_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of a pipeline; the command has the argument `options`, a `PipelineOptions`.

    A command with its own option `--streams` passes it on.
    """

    @functools.wraps(function)
    def command(
        threads: int, cache: bool, precision: str, device: str, streams: int = 0, **others: Any
    ) -> None:
        from runtime.pipeline import PipelineOptions

        options = PipelineOptions(threads, streams, cache, precision, device)
        function(**others, options=options)

    for option in (inference_device_option, precision_option, cache_option, threads_option):
        command = option(command)
    return command


def signing_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of a C2PA signature; the command has the argument `signer`."""

    @functools.wraps(function)
    def command(sign_key: Path | None, sign_cert: Path | None, **options: Any) -> None:
        function(**options, signer=_signer(sign_key, sign_cert))

    file = click.Path(path_type=Path, dir_okay=False)
    for name, what in (("cert", "certificate chain (PEM)"), ("key", "private key (PEM)")):
        command = click.option(
            f"--sign-{name}",
            type=file,
            metavar="FILE",
            help=f"Sign images with C2PA: {what}; needs the extra c2pa.",
        )(command)
    return command


def _signer(key: Path | None, certificates: Path | None) -> Signer | None:
    if key is None and certificates is None:
        return None
    if key is None or certificates is None:
        raise click.UsageError("--sign-key and --sign-cert belong together: pass both")
    return Signer.from_files(key, certificates)


overwrite_option = click.option("--force", is_flag=True, help="Replace existing files.")


def refuse_existing(path: Path, force: bool) -> None:
    """Raise GalipEdgeError if `path` exists and must not be replaced."""
    if not force and path.exists():
        raise GalipEdgeError(f"{path} exists: choose another --out, or pass --force to replace it")


# Kinds of data whose root is a folder or file of this machine.
_LOCAL_KINDS = ("folder", "table", "cub", "coco", "cc3m", "cc12m")


def require_config(config: str, assignments: tuple[str, ...], folder: str = "") -> None:
    """Refuse a training configuration that does not exist, or refers to files that do not.

    Raises GalipEdgeError. It imports no torch, so that a mistyped path is reported at once.
    """
    from galip_edge.config import named_configs, override, parse_toml

    path, known = Path(config), named_configs(folder)
    built_in = known.get(config)
    if not path.is_file():
        if built_in is None:
            names = list(known)
            similar = get_close_matches(config, names, 1)
            hint = f"did you mean {similar[0]}? " if similar else ""
            raise GalipEdgeError(
                f"cannot read {config} (No such file or directory); {hint}pass a TOML file or one "
                f"of {', '.join(names)}"
            )
        path = built_in
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
        given = override({} if path == built_in else values, assignments)
        _require_files(override(values, assignments), given)
    except (OSError, ValueError):
        return  # reported with its place by what reads it


def _require_files(values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check the files of a configuration's `values` that the user has `given`."""
    data, given_data = values.get("data"), given.get("data")
    rooted = isinstance(given_data, Mapping) and "root" in given_data
    if rooted and isinstance(data, Mapping) and data.get("kind") in _LOCAL_KINDS:
        require_path(Path(str(data["root"])), "data.root = ")
    if (Path(str(values.get("output", ""))) / "model.safetensors").exists():
        return  # a run that resumes needs no other file
    for name in ("start", "clip"):
        if isinstance(value := given.get(name), str) and value != "random":
            require_path(Path(value), f"{name} = ")


output_setting_option = click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    help="Folder of the run; short for --set output=FOLDER.",
)


def output_argument(
    name: str, text: str, **attributes: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The output, as argument or with `-o`; the command has the argument `out`, a path.

    Args:
        name: of the argument in help, such as FOLDER.
        text: help of the option.
        attributes: of `click.Path`.
    """
    kind = click.Path(path_type=Path, **attributes)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(output_argument: Path | None, out: Path | None, **others: Any) -> None:
            if (output_argument is None) == (out is None):
                raise click.UsageError("pass exactly one output, with -o")
            function(**others, out=output_argument or out)

        command = click.option("-o", "--out", type=kind, help=text)(command)
        argument = click.argument("output_argument", metavar=f"[{name}]", required=False, type=kind)
        return argument(command)

    return decorate


def with_settings(assignments: tuple[str, ...], **settings: str | None) -> tuple[str, ...]:
    """Assignments of `--set`, followed by the settings that have a value."""
    given = (f"{name}={value}" for name, value in settings.items() if value is not None)
    return (*assignments, *given)

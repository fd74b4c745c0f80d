"""The command line: `galip-edge COMMAND`. Each command is a thin module in `commands/`.

Command modules are imported only when they run, so `generate` never imports torch.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from typing import Any

import click
from click.shell_completion import CompletionItem

from galip_edge import extensions
from galip_edge.own_packages import ForeignPackageError, require_own_package
from galip_edge.variables import name_variables
from runtime.errors import GalipEdgeError, install_hint, log_to_stderr, one_line
from runtime.version import __version__

# Command -> (module, in galip_edge.commands or by its full name; extra that it needs; help).
COMMANDS: dict[str, tuple[str, str | None, str]] = {
    "generate": ("generate", None, "Generate images from prompts, as PNG files."),
    "serve": ("serve", "serve", "Serve a studio page, OpenAI's images API and A1111's."),
    "mcp": ("mcp", "mcp", "Serve a tool for AI assistants (Model Context Protocol)."),
    "interpolate": (
        "interpolate",
        None,
        "Interpolate between images: animation, frames or grid.",
    ),
    "explore": ("explore", None, "Generate many seeds of one prompt on a labelled sheet."),
    "batch": ("batch", "batch", "Generate images for a file of prompts, in a resumable job."),
    "convert": (
        "convert",
        "convert",
        "Convert a checkpoint to a bundle that runs without torch.",
    ),
    "info": ("info", None, "Show the contents of a bundle or the recipe of an image."),
    "models": ("models", None, "List the models available on this machine."),
    "pull": ("pull", "hub", "Download a model from a hub."),
    "push": ("push", "hub", "Upload a bundle to a hub, with a model card."),
    "verify": ("verify", None, "Check a bundle: hashes, graphs, golden numbers."),
    "benchmark": ("benchmark", None, "Measure speed and memory of a model on this machine."),
    "completion": ("completion", None, "Print a script for shell completion."),
    "doctor": ("doctor", None, "Check this machine: CPU, extras, cache, models."),
    "devices": ("devices", None, "List the devices that can run a model."),
    "export-ovms": ("export_ovms", None, "Write a bundle for OpenVINO Model Server."),
    "export-openvino": (
        "export_openvino",
        None,
        "Write a bundle as OpenVINO models, for C++ and other languages.",
    ),
    "export-original": (
        "export_original",
        "convert",
        "Write a checkpoint in the layout of the authors' code.",
    ),
    "export-web": (
        "export_web",
        "convert",
        "Export a bundle as a static web page.",
    ),
    "train": ("train", "train", "Train a model, or resume a run."),
    "train-clip": ("train_clip", "train", "Train a small CLIP on captioned images."),
    "export-checkpoint": (
        "export_checkpoint",
        "train",
        "Write the model of a run to one or more files, optionally in float16.",
    ),
    "data": ("data", "train", "Validate a data set, or draw one."),
    "evaluate": ("evaluate", "evaluate", "Measure the quality of a checkpoint or a bundle."),
    "train-classifier": (
        "galip_edge.aviary.commands.train_classifier",
        "train",
        "Train the attribute classifier used by evaluate.",
    ),
    "init": ("init", "convert", "Write an untrained checkpoint, for tests and latency."),
}

# Commands that import the package `convert`.
_USING_CONVERT = ("convert", "export-web")


def _missing_extra(command: str, error: ModuleNotFoundError) -> GalipEdgeError | None:
    """An error that names the extra of a missing package; None if no extra has it."""
    extra, package = COMMANDS[command][1], (error.name or "").split(".")[0]
    if extra is None or package in ("galip_edge", "runtime"):
        return None
    return GalipEdgeError(
        f"galip-edge {command} needs {package}, which is not installed: {install_hint(extra)}"
    )


def _module(command: str) -> str:
    module = COMMANDS[command][0]
    return module if "." in module else f"galip_edge.commands.{module}"


def _installed(command: str) -> bool:
    """True if this installation has the package of the command."""
    package = _module(command).split(".")[1]
    return package not in extensions.PACKAGES or extensions.installed(package)


class CommandGroup(click.Group):
    """Lists commands without importing them; imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands of this installation, in the order in which a user needs them."""
        return [name for name in COMMANDS if _installed(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        if not _installed(cmd_name):
            raise GalipEdgeError(
                f"galip-edge {cmd_name} needs galip_edge/aviary, which this installation lacks: "
                "install the complete package"
            )
        if cmd_name in _USING_CONVERT:
            require_own_package("convert")
        try:
            loaded = importlib.import_module(_module(cmd_name))
        except ModuleNotFoundError:
            if ctx.resilient_parsing:  # shell completion
                return None
            raise
        command: click.Command = loaded.command
        if not any(parameter.name == "debug" for parameter in command.params):
            command.params += _verbosity_options()
            name_variables(command, cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and help lines of commands without importing them, and our own options."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=COMMANDS[name][2]) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a missing package is reported with its extra."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            command = ctx.invoked_subcommand
            if command in COMMANDS and (named := _missing_extra(command, error)):
                raise named from error
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and remember its name for error messages."""
        if args:
            ctx.invoked_subcommand = args[0]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


def _verbosity_option(name: str, level: int, text: str, *more: str) -> click.Option:
    """A flag that the context's root remembers, and that sets the level of our loggers."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            (ctx.find_root().obj or {})[name] = True
            for package in ("galip_edge", "convert", "runtime"):
                logging.getLogger(package).setLevel(level)

    return click.Option(
        [f"--{name}", *more],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        envvar=f"GALIP_EDGE_{name.upper()}",
        callback=remember,
        help=text,
    )


def _verbosity_options() -> list[click.Parameter]:
    return [
        _verbosity_option("quiet", logging.ERROR, "Print results and errors only.", "-q"),
        _verbosity_option("debug", logging.DEBUG, "Show tracebacks and debug messages."),
    ]


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    from importlib.metadata import version

    from runtime.cpu import available_cores, cpu_name, instruction_sets

    click.echo(f"galip-edge {__version__}")
    click.echo(f"OpenVINO {version('openvino')}")
    sets = ", ".join(instruction_sets()) or "instruction sets unknown"
    click.echo(f"{cpu_name()}, {available_cores()} cores, {sets}")
    ctx.exit()


@click.group(
    cls=CommandGroup,
    params=_verbosity_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of galip-edge and OpenVINO, and the CPU's instruction sets.",
)
def galip_edge() -> None:
    """Text-to-image with GALIP on machines without a GPU."""


def _sentence(error: BaseException) -> str:
    """The error in one sentence for users."""
    if isinstance(error, (GalipEdgeError, ForeignPackageError)):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: free some space and rerun the command"
    if isinstance(error, OSError) and error.filename:
        return f"cannot use {error.filename}: {error.strerror}"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory"
    kind = type(error).__name__
    return f"unexpected {kind}: {error}; rerun with --debug and report the traceback"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 1 on an error, 2 on wrong usage."""
    log_to_stderr()
    # Its report of a missing CUDA runtime is irrelevant here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    state: dict[str, Any] = {"debug": False}
    try:
        with warnings.catch_warnings():
            if "--debug" not in (sys.argv if arguments is None else arguments):
                warnings.simplefilter("ignore")  # from libraries; users cannot fix them
            status = galip_edge.main(
                args=arguments, prog_name="galip-edge", standalone_mode=False, obj=state
            )
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has exited: not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if state["debug"]:
            raise
        click.echo(f"Error: {one_line(_sentence(error))}", err=True)
        sys.exit(1)

"""`galip-edge completion`: shell completion, by click's own mechanism."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_GALIP_EDGE_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    Examples:
      galip-edge completion bash > ~/.local/share/bash-completion/completions/galip-edge
      galip-edge completion zsh > ~/.zfunc/_galip-edge  # a folder of fpath
      galip-edge completion fish > ~/.config/fish/completions/galip-edge.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "galip-edge", _VARIABLE).source())

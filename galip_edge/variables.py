"""Environment variables that give options their values.

`GALIP_EDGE_COMMAND_OPTION`, such as GALIP_EDGE_GENERATE_SEED for `galip-edge generate --seed`, for
each option of each command. The command line comes first.
"""

from __future__ import annotations

import click

PREFIX = "GALIP_EDGE"


def name_variables(command: click.Command, *names: str) -> None:
    """Let each option of a command, and of the commands in it, read its variables.

    Args:
        command: a command, or a group whose commands are imported.
        names: the words by which it is called.
    """
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            known = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
            own = [it for it in variables(parameter, *names) if it not in (known or ())]
            parameter.envvar = [*(known or ()), *own]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            name_variables(child, *names, name)


def variables(option: click.Option, *names: str) -> list[str]:
    """The variables of an option: one for each of its spellings without a minus in front."""
    long = [name for name in option.opts if name.startswith("--")]
    return ["_".join((PREFIX, *map(_upper, names), _upper(name))) for name in long or option.opts]


def _upper(name: str) -> str:
    return name.lstrip("-").replace("-", "_").upper()

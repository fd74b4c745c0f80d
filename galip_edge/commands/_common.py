"""Commands with many options: help in titled groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]


class GroupedCommand(click.Command):
    """A command that lists its options by the groups of `option_group`, in order."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group; options without a group come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title in sorted(groups, key=lambda title: title == "Options"):
            with formatter.section(title):
                formatter.write_dl(groups[title])


def option_group(title: str, *options: Decorator) -> Decorator:
    """Add options to a `GroupedCommand` under a title of its help."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            known = len(getattr(function, "__click_params__", ()))
            function = option(function)
            for param in function.__click_params__[known:]:
                param.group = title
        return function

    return decorate

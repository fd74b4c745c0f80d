"""`galip-edge doctor`: diagnose this machine and installation."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import json_option
from galip_edge.doctor import OK, examine, is_healthy


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check CPU, memory, extras, cache and models; exit with 1 if there is a problem.

    A `note` is a limitation; a `problem` states its remedy.

    \b
    Example:
      galip-edge doctor --json
    """
    found = []
    with console().status("examining"):
        for finding in examine():
            found.append(finding)
            if not as_json:
                mark = "" if finding.state == OK else f"{finding.state}: "
                click.echo(f"{finding.name:12} {mark}{finding.text}")
    healthy = is_healthy(found)
    if as_json:
        values = {"healthy": healthy, "findings": [asdict(finding) for finding in found]}
        click.echo(json.dumps(values, indent=1))
    if not healthy:
        raise click.exceptions.Exit(1)

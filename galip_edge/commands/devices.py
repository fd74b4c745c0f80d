"""`galip-edge devices`: values of `--device` on this machine."""

from __future__ import annotations

import json

import click
from rich.filesize import decimal

from galip_edge.commands.options import json_option
from runtime.devices import AUTO, Device, available_devices


@click.command("devices")
@json_option
def command(as_json: bool) -> None:
    """List the devices that OpenVINO finds here: name, precisions, memory.

    A GPU or NPU needs its vendor's driver. --device AUTO measures once which one is fastest.

    \b
    Example:
      galip-edge devices
    """
    devices = available_devices()
    if as_json:
        click.echo(json.dumps({"devices": [device.described() for device in devices]}, indent=1))
        return
    for device in devices:
        click.echo(_line(device))
    click.echo(f"{AUTO:8} the fastest of them, measured once")


def _line(device: Device) -> str:
    memory = "memory unknown" if device.memory is None else decimal(device.memory)
    return f"{device.name:8} {device.full_name}; {', '.join(device.precisions)}; {memory}"

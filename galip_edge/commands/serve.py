"""`galip-edge serve`: pictures over HTTP."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import click
import uvicorn

from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import cache_option, model_option, precision_option, threads_option
from runtime.errors import GalipEdgeError
from runtime.pipeline import PipelineOptions
from runtime.server.app import create_app
from runtime.server.options import ServerOptions


@click.command("serve")
@model_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--api-key",
    envvar="GALIP_EDGE_API_KEY",
    help="That clients must give; needed where others can reach the server.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=ServerOptions.most,
    show_default=True,
    help="Pictures of one request.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=ServerOptions.queue,
    show_default=True,
    help="Pictures that may wait.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=ServerOptions.seconds,
    show_default=True,
    help="Seconds after which a request is given up.",
)
@threads_option
@cache_option
@precision_option
def command(
    model: Path | None,
    host: str,
    port: int,
    api_key: str | None,
    most: int,
    queue: int,
    timeout: float,
    threads: int,
    cache: bool,
    precision: str,
) -> None:
    """Serve a studio page, and pictures over HTTP as OpenAI's images API has them.

    SIGTERM and SIGINT finish what was accepted.
    """
    if api_key is None and not _is_loopback(host):
        raise GalipEdgeError(
            f"{host} can be reached by others: give --api-key or GALIP_EDGE_API_KEY, or leave the "
            "default --host"
        )
    options = ServerOptions(api_key, most, queue, timeout)
    with listening(host, port) as listener:
        pipeline = load_pipeline(model, PipelineOptions(threads, cache=cache, precision=precision))
        pipeline.generate("a bird on a branch")  # what is wrong with a bundle is told here
        config = uvicorn.Config(
            create_app(pipeline, options),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=int(timeout) + 1,
        )
        _Server(config).run([listener])


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so when requests are taken."""
        await super().startup(sockets)
        for each in sockets or ():
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"studio and API: http://{shown}:{port}/", err=True)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises GalipEdgeError if it cannot.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise GalipEdgeError(
            f"cannot listen at {host}, port {port} ({reason}): choose another --port or --host"
        ) from error
    # Connections inherit it; asyncio sets it on its own sockets only. Without, answers take 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

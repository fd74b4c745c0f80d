"""`galip-edge serve`: images over HTTP."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from pathlib import Path
from typing import Any

import click
import uvicorn

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import console, notice
from galip_edge.commands.options import (
    RenamedOption,
    integer_option,
    model_path,
    pipeline_options,
    signing_options,
)
from runtime.bundle import default_bundle
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError
from runtime.pipeline import PipelineOptions
from runtime.server.access import is_loopback
from runtime.server.app import create_app
from runtime.server.connections import (
    BACKLOG,
    Connections,
    HeaderGate,
    connection_limits,
    limit_logs,
    raise_file_limit,
)
from runtime.server.models import ModelSource
from runtime.server.options import ServerOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class _Bytes(click.ParamType):  # type: ignore[type-arg] # in some versions of click
    """A number of bytes, such as 2GB or 512MiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", str(value).lower())
        if not found:
            self.fail(f"{value!r} is not a size such as 2GB or 512MB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2] or ""])


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Read defaults of options from a TOML file."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no text, no TOML
        raise GalipEdgeError(f"cannot read the configuration {path}: {error}") from error
    names = {
        option.lstrip("-").replace("-", "_"): parameter.name
        for parameter in ctx.command.params
        if parameter.name not in ("config", "debug")
        for option in parameter.opts
    }
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            raise GalipEdgeError(
                f"unknown option {key!r} in {path}: options are those of galip-edge serve --help"
            )
        if isinstance(value, dict):
            raise GalipEdgeError(f"{key} in {path} must be a value, not a table")
        repeated = isinstance(value, str) and name in _REPEATED
        defaults[name] = [value] if repeated else value
    ctx.default_map = defaults


# Options that may be repeated: a list in the configuration, or one value.
_REPEATED = ("models", "cors_origins", "allowed_hosts", "trusted_proxies")


@click.command(
    "serve", context_settings={"auto_envvar_prefix": "GALIP_EDGE_SERVE"}, cls=GroupedCommand
)
@option_group(
    "Configuration",
    click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with values for these options, such as port = 8080.",
    ),
)
@option_group(
    "Models",
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="[NAME=]PATH",
        help="Bundle folder or hf:owner/name; default: the embedded model. May be repeated: "
        "requests select one by name; the first is the default.",
    ),
    click.option(
        "--memory",
        type=_Bytes(),
        help="Memory for models, such as 2GB; the least recently used are unloaded. Default: no "
        "limit.",
    ),
)
@option_group(
    "Address",
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    integer_option(
        "--port", least=0, most=65535, default=8000, help="Port to listen on; 0 for any free port."
    ),
    click.option(
        "--root-path",
        default="",
        metavar="PATH",
        help="Path prefix of the server behind a proxy, such as /images.",
    ),
)
@option_group(
    "Access",
    click.option(
        "--api-key",
        envvar=["GALIP_EDGE_API_KEY", "GALIP_EDGE_SERVE_API_KEY"],
        help="API key required from clients; mandatory for non-loopback hosts.",
    ),
    click.option(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        metavar="NAME",
        help="Host name accepted without an API key, in addition to localhost; may be repeated.",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Other origin that may use the API, such as https://example.com, or *; may be "
        "repeated.",
    ),
    click.option(
        "--trusted-proxy",
        "trusted_proxies",
        multiple=True,
        metavar="ADDRESS",
        help="Address or network of a proxy whose X-Forwarded headers are used, or *; may be "
        "repeated. Default: this machine.",
    ),
)
@option_group(
    "Limits",
    integer_option(
        "--max-images",
        least=1,
        default=ServerOptions.max_images,
        cls=RenamedOption,
        former=["--most"],
        envvar=["GALIP_EDGE_SERVE_MAX_IMAGES", "GALIP_EDGE_SERVE_MOST"],
        help="Maximum number of images per request.",
    ),
    integer_option(
        "--queue-size",
        least=1,
        default=ServerOptions.queue_size,
        cls=RenamedOption,
        former=["--queue"],
        envvar=["GALIP_EDGE_SERVE_QUEUE_SIZE", "GALIP_EDGE_SERVE_QUEUE"],
        help="Maximum number of queued images per model.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=1),
        default=ServerOptions.timeout,
        show_default=True,
        help="Limit in seconds for a request, and for receiving its body.",
    ),
    integer_option(
        "--max-connections",
        least=1,
        default=ServerOptions.max_connections,
        help="Open connections; beyond it, idle ones are closed.",
    ),
    click.option(
        "--header-timeout",
        type=click.FloatRange(min=0.1),
        default=ServerOptions.header_timeout,
        show_default=True,
        help="Limit in seconds for receiving the header of a request.",
    ),
)
@option_group(
    "Execution",
    pipeline_options,
)
@option_group("Signing", signing_options)
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    options: PipelineOptions,
    trusted_proxies: tuple[str, ...],
    root_path: str,
    signer: Signer | None,
    **settings: Any,
) -> None:
    """Serve a studio page, OpenAI's images API and A1111's.

    Each option may also come from --config, or from an environment variable such as
    GALIP_EDGE_SERVE_PORT.

    SIGTERM and SIGINT stop accepting requests and finish those accepted.

    \b
    Examples:
      galip-edge serve --model galip-coco
      galip-edge serve --model birds=galip-cub --model scenes=galip-coco --memory 2GB
    """
    if settings["api_key"] is None and not is_loopback(host):
        raise GalipEdgeError(
            f"{host} is not a loopback address: pass --api-key, set GALIP_EDGE_API_KEY, or omit "
            "--host"
        )
    server_options = ServerOptions(
        **settings,
        trusted_proxies=trusted_proxies or ServerOptions.trusted_proxies,
        root_path=root_path.rstrip("/"),
        signer=signer,
    )
    with listening(host, port) as listener:
        sources = model_sources(models, options)
        first = next(iter(sources))
        with console().status("loading the model"):
            sources[first] = sources[first].loaded()  # a fault ends the command here
        server_of(sources, server_options).run([listener])


def model_sources(models: tuple[str, ...], options: PipelineOptions) -> dict[str, ModelSource]:
    """Models by name, from `NAME=PATH`, or `PATH` with the name in the bundle.

    Raises:
        GalipEdgeError: a name is given twice, or a bundle is missing or damaged.
    """
    found: dict[str, ModelSource] = {}
    for each in models or (str(default_bundle()),):
        name, separator, path = each.partition("=")
        if not separator or Path(each).is_dir():
            name, path = "", each
        source = ModelSource.of_bundle(model_path(path) or Path(path), options)
        name = name.strip() or source.manifest.name
        if name in found:
            raise GalipEdgeError(f"two models are named {name!r}: pass --model NAME=PATH")
        found[name] = source
    return found


def server_of(sources: dict[str, ModelSource], options: ServerOptions) -> Server:
    """Create a server with limits on its connections; see `Server`."""
    limit_logs()
    limit, unfinished = connection_limits(options.max_connections, raise_file_limit())
    connections = Connections(limit, options.header_timeout)
    config = uvicorn.Config(
        create_app(sources, options),
        http=connections.protocol,  # type: ignore[arg-type] # called as a class is
        ws="none",
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # runtime.server.access reads them
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(options.timeout) + 1,
    )
    return Server(config, unfinished, options.header_timeout)


class Server(uvicorn.Server):
    """uvicorn's server behind a `HeaderGate`; prints its address when it accepts requests.

    Args:
        config: uvicorn's.
        unfinished: limit of connections without a complete header.
        header_timeout: seconds for receiving a header.
    """

    def __init__(self, config: uvicorn.Config, unfinished: int, header_timeout: float) -> None:
        super().__init__(config)
        self._unfinished, self._header_timeout = unfinished, header_timeout
        self._gate: HeaderGate | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Run uvicorn; on Windows in an event loop that can watch sockets, which the gate needs."""
        if sys.platform != "win32":
            super().run(sockets)
            return
        loop = asyncio.SelectorEventLoop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self.serve(sockets=sockets))
        finally:
            loop.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start uvicorn without sockets, which the gate listens on."""
        await super().startup([])
        if self.should_exit:
            return
        loop = asyncio.get_running_loop()
        self._gate = HeaderGate(loop, self._unfinished, self._header_timeout, self._take)
        for each in sockets or ():
            self._gate.listen(each)
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            notice(f"studio and API: http://{shown}:{port}/")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._gate is not None:
            self._gate.close()
        await super().shutdown(sockets)

    def _take(self, connection: socket.socket, received: bytes) -> None:
        """Serve a connection that has sent a header."""
        task = asyncio.get_running_loop().create_task(self._connect(connection, received))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    async def _connect(self, connection: socket.socket, received: bytes) -> None:
        def protocol() -> asyncio.Protocol:
            made: Any = self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            made.received = received
            return made

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:
            connection.close()


def listening(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 selects a free one.

    Raises GalipEdgeError if it cannot.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise GalipEdgeError(
            f"cannot listen on {host}, port {port} ({reason}): choose another --port or --host"
        ) from error
    # Inherited by connections; asyncio sets it on its own sockets only. Without it, responses take
    # 40 ms longer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener

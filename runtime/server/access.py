"""Access control: API key, Host and Origin checks, headers of proxies.

Without an API key, any request that reaches the loopback address may come from a web page: of
another site, or of a domain that resolves to 127.0.0.1 (DNS rebinding). Therefore Host and Origin
are checked, in addition to what the browser reports about the site.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.options import ServerOptions, is_prefix
from runtime.server.schema import error_response

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # of no effect in a page's own <meta>
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def middleware(options: ServerOptions) -> list[Middleware]:
    """Middleware, outermost first."""
    found = [
        Middleware(SecurityHeaders),
        Middleware(HostCheck, allowed=options.allowed_hosts, with_key=options.api_key is not None),
        Middleware(ProxyHeaders, trusted=options.trusted_proxies, root_path=options.root_path),
    ]
    if options.cors_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Galip-Edge-Warning"],
            )
        )
    return [*found, Middleware(OriginCheck, allowed=options.cors_origins)]


class SecurityHeaders:
    """Adds headers that prevent framing by other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostCheck:
    """Rejects Host names other than loopback ones, unless an API key is required.

    Args:
        app: protected application.
        allowed: further names, without port; `*` for all.
        with_key: whether an API key is required.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str], with_key: bool) -> None:
        self._app = app
        self._allowed = {name.lower() for name in allowed}
        self._all = with_key or "*" in self._allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._all:
            name = host_name(Headers(scope=scope).get("host", ""))
            if not is_loopback(name) and name not in self._allowed:
                message = (
                    f"the host {name[:100]!r} is not allowed: use 127.0.0.1 or localhost, or start "
                    "the server with --allowed-host or --api-key"
                )
                await error_response(403, message, "invalid_host")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(host: str) -> str:
    """The name in a Host header, in lower case, without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def is_loopback(name: str) -> bool:
    """Test for host names and addresses that always mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class ProxyHeaders:
    """Restores scheme, host and path of the client's request from a trusted proxy's headers.

    Reads X-Forwarded-Proto, -Host, -Port and -Prefix, and X-Script-Name. Proxies may strip the
    prefix from the path or keep it.

    Args:
        app: application behind the proxy.
        trusted: addresses or networks of proxies, `*` for all.
        root_path: prefix of the path where no header states one.
    """

    def __init__(self, app: ASGIApp, trusted: Iterable[str], root_path: str) -> None:
        self._app, self._root_path = app, root_path
        trusted = set(trusted)
        self._all = "*" in trusted
        self._networks = [ipaddress.ip_network(each) for each in trusted - {"*"}]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = self._seen_by_client(scope)
        await self._app(scope, receive, send)

    def _seen_by_client(self, scope: Scope) -> Scope:
        found = dict(scope)
        prefix = self._root_path
        if self._is_trusted(scope.get("client")):
            headers = Headers(scope=scope)

            def first(name: str) -> str:
                return headers.get(name, "").partition(",")[0].strip()

            if (scheme := first("x-forwarded-proto").lower()) in _DEFAULT_PORTS:
                found["scheme"] = scheme
            if _HOST.fullmatch(host := first("x-forwarded-host")):
                found["headers"] = _with_host(scope, _with_port(host, first("x-forwarded-port")))
            for name in ("x-forwarded-prefix", "x-script-name"):
                if is_prefix(given := first(name).rstrip("/")):
                    prefix = given
        if prefix:
            found["root_path"] = prefix
            path = scope["path"]
            if path != prefix and not path.startswith(f"{prefix}/"):  # stripped by the proxy
                found["path"] = prefix + path
        return found

    def _is_trusted(self, client: Any) -> bool:
        if self._all:
            return True
        try:
            address = ipaddress.ip_address(client[0])
        except (TypeError, ValueError):  # no address, such as that of a Unix socket
            return False
        return any(address in network for network in self._networks)


def _with_port(host: str, port: str) -> str:
    has_port = re.search(r":\d+$", host)
    if has_port or port in ("", "80", "443") or not re.fullmatch(r"\d{1,5}", port):
        return host
    return f"{host}:{port}"


def _with_host(scope: Scope, host: str) -> list[tuple[bytes, bytes]]:
    others = [pair for pair in scope["headers"] if pair[0] != b"host"]
    return [(b"host", host.encode("latin-1")), *others]


class OriginCheck:
    """Rejects requests from pages of other origins.

    Browsers send `Origin` with every request that could change state, over plain HTTP as well,
    where they send no Sec-Fetch-Site.

    Args:
        app: protected application.
        allowed: further origins, `*` for all.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app, self._allowed = app, {origin.lower() for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin", "").lower()
            if origin and not self._is_allowed(origin, headers):
                message = (
                    f"pages of {origin[:100]!r} are not allowed to use this server: start it with "
                    "--cors-origin to allow them"
                )
                await error_response(403, message, "cross_site")(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, origin: str, headers: Headers) -> bool:
        if self._allowed & {"*", origin}:
            return True
        if headers.get("sec-fetch-site") == "same-origin":
            return True  # reported by the browser; holds where a proxy replaced the Host
        scheme, _, netloc = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None or urlsplit(origin).path:
            return False
        return netloc.removesuffix(port) == headers.get("host", "").lower().removesuffix(port)


def is_cross_site(headers: Headers, allowed: Iterable[str]) -> bool:
    """Test for requests that the browser reports as cross-site, except from `allowed` origins."""
    if headers.get("sec-fetch-site") != "cross-site":
        return False
    return not {"*", headers.get("origin", "").lower()} & {origin.lower() for origin in allowed}


def has_key(headers: Headers, key: str) -> bool:
    """Check the API key: bearer token, or password of basic authentication."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":  # A1111's clients
        try:
            given = base64.b64decode(given, validate=True).decode("latin-1")
        except (binascii.Error, ValueError):
            return False
        matches = [given, given.partition(":")[2]]
    else:
        matches = [given] if scheme.lower() == "bearer" else []
    return any(hmac.compare_digest(each.encode(), key.encode()) for each in matches)

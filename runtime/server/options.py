"""Settings of a server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from runtime.credentials import Signer

_ORIGIN = re.compile(r"https?://[^/?#@\s]+")


@dataclass(frozen=True)
class ServerOptions:
    """Settings of a server.

    Attributes:
        api_key: required from clients; None: only loopback and `allowed_hosts` names are accepted.
        max_images: of one request.
        queue_size: queued images, including those in progress.
        timeout: seconds for a request, and for receiving its body.
        body_bytes: largest body of a request.
        cors_origins: other origins that may use the API, `*` for all.
        allowed_hosts: Host names accepted without an API key, in addition to loopback names.
        trusted_proxies: addresses or networks whose X-Forwarded headers are used, `*` for all.
        root_path: path under which a proxy offers the server, such as `/images`.
        memory: bytes for loaded models; the least recently used ones are unloaded. None: no limit.
        max_connections: open connections; idle ones are closed to make room.
        header_timeout: seconds for receiving the header of a request.
        signer: signs each file, if there is one.
    """

    api_key: str | None = None
    max_images: int = 10
    queue_size: int = 64
    timeout: float = 60.0
    body_bytes: int = 64 * 1024
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    root_path: str = ""
    memory: int | None = None
    max_connections: int = 512
    header_timeout: float = 10.0
    signer: Signer | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_images <= self.queue_size:
            raise ValueError(
                f"max_images must be from 1 to queue_size ({self.queue_size}), got "
                f"{self.max_images}"
            )
        for name in ("timeout", "header_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, least in (("body_bytes", 1024), ("max_connections", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"memory must be at least 1 byte, got {self.memory}")
        self._check_key()
        self._check_names()

    def _check_key(self) -> None:
        key = self.api_key
        if key is None:
            return
        if len(key) < 8:
            raise ValueError("the API key must have at least 8 characters")
        # HTTP headers carry nothing else reliably, so such a key could never match.
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError(
                "the API key must consist of ASCII letters, digits and punctuation, without spaces"
            )

    def _check_names(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"an origin is scheme, host and port, such as https://example.com, got "
                    f"{origin!r}"
                )
        for address in self.trusted_proxies:
            if address == "*":
                continue
            try:
                ipaddress.ip_network(address)
            except ValueError as error:
                raise ValueError(
                    f"a trusted proxy is an IP address, a network or *, got {address!r}"
                ) from error
        if self.root_path and not is_prefix(self.root_path):
            raise ValueError(
                f"root_path must start with / and must not end with it, got {self.root_path!r}"
            )


def is_prefix(path: str) -> bool:
    """Test for one or more segments of a URL path, without a trailing slash."""
    return re.fullmatch(r"(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)+", path) is not None

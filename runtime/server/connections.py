"""Limits on connections: how many, how long for a header, and how much is logged about them.

uvicorn waits for the header of a request without limit, and asyncio creates a task and a transport
for each connection and logs each failed accept, so one client with many slow connections blocks all
other clients. Here a connection is a socket and a few bytes until its header is complete
(`HeaderGate`); then uvicorn takes it over, up to a limit (`Connections`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Connections queued in the kernel: below 50 ms of work.
BACKLOG = 1024

# Sockets that a process can wait for on Windows.
_SELECTABLE = 512

_log = logging.getLogger(__name__)

# File descriptors for models, the cache and everything else except connections.
_RESERVED_FILES = 64

# Connections accepted, or closed after their deadline, before other events are handled.
_AT_ONCE = 64

# Seconds between two checks of deadlines.
_LOOK = 0.1

# Bytes of an unfinished header, beyond which h11 may refuse it; and of all of them together.
_HEADER_BYTES = 16 << 10
_HEADERS_BYTES = 16 << 20

_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")


def raise_file_limit() -> int | None:
    """Raise the soft limit of open files to the hard limit, and return it; None: no limit."""
    if sys.platform == "win32":
        return _SELECTABLE
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS reports a higher limit than it has
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def connection_limits(wanted: int, files: int | None) -> tuple[int, int]:
    """Limits of connections with (at most `wanted`) and without a header, given the file limit."""
    if files is None:
        return wanted, 32 * wanted
    most = max(2, files - _RESERVED_FILES)
    with_header = min(wanted, most // 2)
    return with_header, min(32 * wanted, most - with_header)


@dataclass
class _Unfinished:
    """A connection with an incomplete header."""

    deadline: float
    header: bytearray = field(default_factory=bytearray)


class HeaderGate:
    """Accepts connections and hands them over when their first header is complete.

    Args:
        loop: event loop.
        limit: connections without a complete header; beyond it the oldest one is closed.
        header_timeout: seconds for receiving a header.
        hand_over: receives a connection and the bytes received so far.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: int,
        header_timeout: float,
        hand_over: Callable[[socket.socket, bytes], None],
    ) -> None:
        self._loop, self._limit, self._header_timeout = loop, limit, header_timeout
        self._hand_over = hand_over
        self._unfinished: OrderedDict[socket.socket, _Unfinished] = OrderedDict()
        self._bytes = 0
        self._listeners: list[socket.socket] = []
        self._timer = loop.call_later(_LOOK, self._close_late)

    def __len__(self) -> int:
        return len(self._unfinished)

    def listen(self, listener: socket.socket) -> None:
        """Start to accept connections of a socket."""
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listeners.append(listener)
        self._loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Accept no more connections, and close those without a header."""
        self._timer.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        for connection in list(self._unfinished):
            self._close(connection)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file or memory is free
                _log.error("cannot accept a connection: %s", error)
                self._close_oldest()
                return
            connection.setblocking(False)
            deadline = self._loop.time() + self._header_timeout
            self._unfinished[connection] = _Unfinished(deadline)
            self._loop.add_reader(connection, self._receive, connection)
            if len(self._unfinished) > self._limit:
                self._close_oldest()

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_HEADER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        header = self._unfinished[connection].header
        header += data
        self._bytes += len(data)
        if not data:
            self._close(connection)
        elif _END_OF_HEADER.search(header) or len(header) >= _HEADER_BYTES:
            self._forget(connection)
            self._hand_over(connection, bytes(header))
        elif self._bytes > _HEADERS_BYTES:
            self._close_oldest()

    def _close_late(self) -> None:
        now = self._loop.time()
        for _ in range(_AT_ONCE):
            oldest = next(iter(self._unfinished), None)
            if oldest is None or self._unfinished[oldest].deadline > now:
                break
            self._close(oldest)
        self._timer = self._loop.call_later(_LOOK, self._close_late)

    def _close_oldest(self) -> None:
        if self._unfinished:
            self._close(next(iter(self._unfinished)))

    def _close(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        self._bytes -= len(self._unfinished.pop(connection).header)


class Connections:
    """Connections with a complete header, least recently served first.

    Args:
        limit: open connections. A new one beyond it closes the first idle one, or is closed itself
            while all are busy.
        header_timeout: seconds for receiving the header of a further request.
    """

    def __init__(self, limit: int, header_timeout: float) -> None:
        self.limit, self.header_timeout = limit, header_timeout
        self._open: OrderedDict[LimitedProtocol, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, **settings: Any) -> LimitedProtocol:
        """Create the protocol of a new connection, for uvicorn."""
        return LimitedProtocol(self, **settings)

    def add(self, connection: LimitedProtocol) -> None:
        """Register an accepted connection."""
        if len(self._open) >= self.limit:
            idle = next((each for each in self._open if each.is_idle), connection)
            self.discard(idle)
            idle.transport.abort()
            if idle is connection:
                return
        self._open[connection] = None

    def discard(self, connection: LimitedProtocol) -> None:
        """Remove a closed connection."""
        self._open.pop(connection, None)

    def served(self, connection: LimitedProtocol) -> None:
        """Mark a connection as most recently served."""
        if connection in self._open:
            self._open.move_to_end(connection)


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol, with limits on connections and on the time for a header.

    Attributes:
        received: bytes received before the hand-over; read first, since the client may have closed
            its side already.
    """

    received = b""

    def __init__(self, open_connections: Connections, **settings: Any) -> None:
        super().__init__(**settings)
        self._open_connections = open_connections
        self._header_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """The server waits for the client: for a header or body, or to read the response."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open_connections.add(self)
        self._watch_header()
        if self.received and not transport.is_closing():
            self.data_received(self.received)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.discard(self)
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # part of a header
            self._watch_header()
        else:
            self._stop_watching()

    def on_response_complete(self) -> None:
        """Mark as served; uvicorn's keep-alive timeout limits the wait for the next request."""
        self._open_connections.served(self)
        super().on_response_complete()

    def _watch_header(self) -> None:
        if self._header_timer is None:
            seconds = self._open_connections.header_timeout
            self._header_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class RepeatFilter(logging.Filter):
    """Rate limit for each message; the next one logged states how many were dropped.

    Args:
        seconds: between two messages with the same format string.
    """

    _MOST_TEXTS = 256

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._passed: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = str(record.msg)[:100], time.monotonic()
        passed, dropped = self._passed.get(text, (-self._seconds, 0))
        if now - passed < self._seconds:
            self._passed[text] = passed, dropped + 1
            return False
        if len(self._passed) >= self._MOST_TEXTS:
            self._passed.clear()
        self._passed[text] = now, 0
        if dropped:
            record.msg = f"{record.msg} (and {dropped} more like it)"
        return True


def limit_logs() -> None:
    """Rate-limit what clients can make the server log."""
    repeats = RepeatFilter()
    for name in ("asyncio", "uvicorn.error", __name__, "runtime.server.queue"):
        logging.getLogger(name).addFilter(repeats)

"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server.

    Attributes:
        api_key: that clients must give; None lets everybody in.
        most: pictures of one request.
        queue: pictures that may be waited for at once.
        seconds: after which a request is given up.
        body_bytes: largest body of a request.
    """

    api_key: str | None = None
    most: int = 10
    queue: int = 64
    seconds: float = 60.0
    body_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.most <= self.queue:
            raise ValueError(
                f"a request may ask for 1 picture to as many as may wait ({self.queue}), got "
                f"{self.most}"
            )
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if self.body_bytes < 1024:
            raise ValueError(f"body_bytes must be at least 1024, got {self.body_bytes}")
        if self.api_key is not None and len(self.api_key) < 8:
            raise ValueError("the API key must have at least 8 characters")

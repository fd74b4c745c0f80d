"""Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From an idle server to a long queue.
_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Metrics of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pictures = Counter("galip_pictures", "Generated images.", registry=registry)
        self.refused = Counter(
            "galip_refused_requests",
            "Requests refused because the queue was full.",
            registry=registry,
        )
        self.given_up = Counter(
            "galip_given_up_requests",
            "Requests that timed out or whose client disconnected.",
            registry=registry,
        )
        self.waiting = Gauge("galip_waiting_pictures", "Queued images.", registry=registry)
        self.seconds = Histogram(
            "galip_request_seconds",
            "Time from a request to its images.",
            buckets=_SECONDS,
            registry=registry,
        )

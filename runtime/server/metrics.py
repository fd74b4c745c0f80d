"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a picture at once to a long queue.
_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pictures = Counter("galip_pictures", "Pictures that were given.", registry=registry)
        self.refused = Counter(
            "galip_refused_requests", "Requests that the queue had no room for.", registry=registry
        )
        self.given_up = Counter(
            "galip_given_up_requests",
            "Requests that took too long, or whose client left.",
            registry=registry,
        )
        self.waiting = Gauge("galip_waiting_pictures", "Pictures waited for.", registry=registry)
        self.seconds = Histogram(
            "galip_request_seconds",
            "From a request to its answer, if it was met.",
            buckets=_SECONDS,
            registry=registry,
        )

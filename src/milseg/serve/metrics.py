"""Counts of answers and times, by prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client import disable_created_metrics as leave_out_creation_times

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = ("GET", "HEAD", "POST")


class Metrics:
    """Counts of one server; safe to call from any thread.

    Args:
        gauges: name -> (its description, a function that gives its value).
    """

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        leave_out_creation_times()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "milseg_requests",
            "Answers, by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "milseg_request_seconds",
            "Time from request to answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        for name, (about, value) in gauges.items():
            Gauge(name, about, registry=self._registry).set_function(value)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer; `route` is the path's pattern, so that no client can make up new ones."""
        self._answers.labels(route, method if method in METHODS else "other", status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

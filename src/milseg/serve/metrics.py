"""Counts of what the server did, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """How many values were at most each of some bounds, their number and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total, self.sum = bounds, [0] * len(bounds), 0, 0.0

    def add(self, value: float) -> None:
        self.total += 1
        self.sum += value
        for i, bound in enumerate(self.bounds):
            self.counts[i] += value <= bound

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        more = f",{labels}" if labels else ""
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), (*self.counts, self.total), strict=True):
            yield f'{name}_bucket{{le="{bound}"{more}}} {count}'
        own = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{own} {self.sum:.6f}"
        yield f"{name}_count{own} {self.total}"


class Metrics:
    """Counters of one server; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answer; `route` is the path's pattern, so that no client can make up new ones."""
        with self._lock:
            known = method if method in ("GET", "HEAD", "POST") else "other"
            self._answers[route, known, status] += 1
            self._seconds.setdefault(route, Histogram(SECONDS)).add(seconds)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Everything, with `gauges`: name -> (what it is, its value)."""
        with self._lock:
            return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        yield "# HELP milseg_requests_total Answers, by route, method and status."
        yield "# TYPE milseg_requests_total counter"
        for (route, method, status), count in sorted(self._answers.items()):
            yield f'milseg_requests_total{{route="{route}",method="{method}",status="{status}"}} {count}'
        yield "# HELP milseg_request_seconds Time from request to answer."
        yield "# TYPE milseg_request_seconds histogram"
        for route, histogram in sorted(self._seconds.items()):
            yield from histogram.lines("milseg_request_seconds", f'route="{route}"')
        for name, (about, value) in gauges.items():
            yield f"# HELP {name} {about}"
            yield f"# TYPE {name} gauge"
            yield f"{name} {value:g}"

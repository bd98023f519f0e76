"""Which of some media types a client wants, by its Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def best_type(accept: str, offered: Sequence[str]) -> str | None:
    """The offered type with the highest weight, the first of equals; None where the client takes none of them.

    >>> best_type("image/*, application/json;q=0.5", ("application/json", "image/png"))
    'image/png'
    >>> best_type("", ("application/json", "image/png"))
    'application/json'
    """
    ranges = [_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    weights = {kind: _weight(kind, ranges) for kind in offered}
    best = max(offered, key=lambda kind: weights[kind])
    return best if weights[best] > 0 else None


def _range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                return name.lower(), min(1.0, max(0.0, float(value)))
            except ValueError:
                return name.lower(), 0.0
    return name.lower(), 1.0


def _weight(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the range that names the type most closely."""
    for pattern in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [weight for name, weight in ranges if name == pattern]
        if found:
            return found[0]
    return 0.0

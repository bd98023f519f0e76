"""Log lines that no request can forge or flood."""

from __future__ import annotations

import logging
import time
import unicodedata

NAMES = ("milseg", "uvicorn", "asyncio")
LINE = 2000  # characters of a message
REPEATS, PER_SECONDS = 20, 60.0


def one_line(text: str) -> str:
    """A text without line ends, escapes and other characters that are not seen or change what is seen.

    >>> one_line("a.png\\n[INFO] all is well \\x1b[2J")
    'a.png\\\\n[INFO] all is well \\\\x1b[2J'
    """
    # C: controls, formats such as those that turn the direction of writing, halves of characters.
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c
        for c in text
    )


class OneLine(logging.Formatter):
    """Time, level and message in one line; a trace follows in lines that are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__ | {"message": one_line(record.message[:LINE])})
        return super().formatMessage(shown)

    def formatException(self, info: object) -> str:
        trace = super().formatException(info)  # type: ignore[arg-type]
        return "\n".join(f"    {one_line(line[:LINE])}" for line in trace.splitlines())


class NoFlood(logging.Filter):
    """Lets through `REPEATS` lines of one kind a minute, and says that there were more."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._counts = 0.0, dict[str, int]()

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since > PER_SECONDS:
            self._since, self._counts = now, {}
        # Where it was written, for its words may come from a request.
        kind = f"{record.pathname}:{record.lineno}"
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == REPEATS:
            record.msg = f"{record.getMessage()[:LINE]} (more of this kind in this minute are left out)"
            record.args = ()
        return count <= REPEATS


def set_up_logs() -> None:
    """Send the server's log to standard error, a line a message."""
    logging.raiseExceptions = False  # a log that cannot be written is no reason to write more
    one_line("\n")  # loads what it needs, while there are file descriptors
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    handler.addFilter(NoFlood())
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)

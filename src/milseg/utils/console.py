"""What a command says: results to standard output, status and warnings to standard error by the logger "milseg"."""

from __future__ import annotations

import logging
import sys


class _Lines(logging.Handler):
    """One line a message on the standard error of now, above a progress bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # slow to import, and help says nothing here

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as every handler: a message that cannot be written must not end the work
            self.handleError(record)


def set_up_console() -> None:
    """Let every text be printed on any console, and the logger "milseg" speak, as `main` needs both.

    A console that is not UTF-8 shows what it cannot print by number, as standard error does already, and so do file
    names that are no text.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    logger = logging.getLogger("milseg")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        handler = _Lines()
        handler.setFormatter(logging.Formatter("milseg: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)

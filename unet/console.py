"""Messages of a stage: progress to the terminal and the log file, errors as one sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from unet.errors import to_user_error

INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


class MessageFormatter(logging.Formatter):
    """The time and the message. A warning says that it is one, since the run goes on after it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line of one record."""
        if record.levelno == logging.WARNING:
            record.message = f"WARNING: {record.message}"
        return super().formatMessage(record)


@contextmanager
def report_to(log_file: str) -> Iterator[None]:
    """Send this project's messages to the terminal and to `log_file`.

    A UserError, or a full disk, ends the process with its sentence and exit status 1; any other
    exception is a bug and keeps its traceback, which goes to the file too.
    """
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stderr),
        logging.FileHandler(log_file, mode="a", encoding="utf-8"),
    ]
    for handler in handlers:
        handler.setFormatter(MessageFormatter())
    log = logging.getLogger("unet")
    log.setLevel(logging.INFO)
    before, log.handlers[:] = log.handlers[:], handlers
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted. Finished blocks are kept: run the same command to resume.")
        raise SystemExit(INTERRUPTED) from None
    except BaseException as error:
        user_error = to_user_error(error)
        if user_error is None:
            log.exception("The stage ended with an error of the program, not of the input:")
            raise
        log.error("%s: %s", type(user_error).__name__, user_error)
        raise SystemExit(1) from None
    finally:
        log.handlers[:] = before
        for handler in handlers:
            handler.close()

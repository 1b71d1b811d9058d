"""What a stage tells: progress to the terminal and the log file, and errors as one sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from unet.errors import to_user_error

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
FORMAT = "%(asctime)s %(message)s"


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
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    log = logging.getLogger("unet")
    log.setLevel(logging.INFO)
    before, log.handlers[:] = log.handlers[:], handlers
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted. What is done is kept; give the same command to go on.")
        raise SystemExit(INTERRUPTED) from None
    except BaseException as error:
        told_as = to_user_error(error)
        if told_as is None:
            log.exception("The stage ended with an error that is not the input's:")
            raise
        log.error("%s: %s", type(told_as).__name__, told_as)
        raise SystemExit(1) from None
    finally:
        log.handlers[:] = before
        for handler in handlers:
            handler.close()

"""What a stage tells: progress to the terminal and the log file, and errors as one sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from unet.errors import UserError

FORMAT = "%(asctime)s %(message)s"


@contextmanager
def told(log_file: str) -> Iterator[None]:
    """Send this project's messages to the terminal and to `log_file`.

    A UserError ends the process with its sentence and exit status 1; any other exception is a bug
    and keeps its traceback, which goes to the file too.
    """
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stderr),
        logging.FileHandler(log_file, mode="a", encoding="utf-8"),
    ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    log = logging.getLogger("unet")
    log.setLevel(logging.INFO)
    log.handlers[:] = handlers
    try:
        yield
    except UserError as error:
        log.error("%s: %s", type(error).__name__, error)
        raise SystemExit(1) from None
    except BaseException:
        log.exception("The stage ended with an error that is not the input's:")
        raise
    finally:
        for handler in handlers:
            handler.close()

"""The errors that a user can meet; most are also a kind of builtin error.

Why own classes: the workflow shows these as one sentence and no traceback, since the cause lies in
the input, the configuration or the machine; every other exception is a bug here and keeps its
traceback. A message says what was expected, what was found, the likely cause and what to do.
"""

from __future__ import annotations

import errno
import re

# "://", a name and password, the place, and what follows a question mark: in a link to a private
# file, that is the signature by which anyone may read it.
URL = re.compile(r"(://)([^\s/'\"]+@)?([^\s?'\"]*)(\?[^\s'\"]+)?")
LONGEST_MESSAGE = 4000  # of characters; what it repeats of a file may be of any length
EXCERPT = 300


class UserError(Exception):
    """Base of all errors whose cause a user can remove.

    Its message goes to logs that many may read, so secrets of a URL in it are left out, and so is
    the middle of a message that is too long to read.
    """

    def __str__(self) -> str:
        return _readable(super().__str__(), LONGEST_MESSAGE)


def excerpt(text: object) -> str:
    """What a message repeats of a text that may have any length: its ends, on one line."""
    return _readable(" ".join(str(text).split()), EXCERPT)


def _readable(text: str, most: int) -> str:
    """First without its secrets, since half of a URL is not known for one."""
    text, half = URL.sub(_without_secrets, text), most // 2 - 3
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def _without_secrets(url: re.Match[str]) -> str:
    begin, user, place, query = url.groups("")
    return begin + ("...@" if user else "") + place + ("?..." if query else "")


class ConfigError(UserError, ValueError):
    """The configuration breaks its schema, or names what does not exist."""


class SourceError(UserError, ValueError):
    """An input image cannot be read, or does not say what has to be known about it."""


class AxesError(SourceError):
    """The axes of the configuration do not fit an image, or it does not say which it has."""


class ModelError(UserError, ValueError):
    """A model folder or its weights are missing, damaged, or do not fit the image."""


class PlanError(UserError, ValueError):
    """No plan fits: the memory, the shards and the window of the options contradict each other."""


class DeviceError(UserError, RuntimeError):
    """The device of the options is missing, or cannot hold even the smallest window."""


class WorkerError(UserError, RuntimeError):
    """A worker computes other numbers than it should, so it may not write."""


class RunError(UserError, RuntimeError):
    """A run cannot finish: a block failed after its retries, or the disk is full."""


class StoreError(UserError, OSError):
    """A store does not hold what the plan says: a shard is missing, damaged or from another run."""


class ServerError(UserError):
    """A server of a URL does not answer, refuses the keys, or has no such bucket.

    No kind of builtin error: else code that handles damaged files would handle it too.
    """


def to_user_error(error: BaseException) -> UserError | None:
    """The error as a UserError if a user can remove its cause, such as a full disk; else None."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"Expected free space on the disk, but it is full: {error}. What was done is kept. "
            "Make room, then run again."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(
            f"Expected to be allowed to write the results and to read the image, but: {error}. "
            f"Change the permissions, or run where you may write; what was done is kept."
        )
    return None


def inner_cause(error: BaseException) -> BaseException:
    """What is at the bottom of an error that a library raised from another."""
    while isinstance(error.__cause__, Exception) and str(error.__cause__):
        error = error.__cause__
    return error

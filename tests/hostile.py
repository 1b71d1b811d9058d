"""Running something in a process of its own, which may take little time and little memory.

A fork server imports the readers once, so that a process costs some milliseconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from unet.errors import LONGEST_MESSAGE, UserError
from unet.planning.geometry import BlockGrid
from unet.sources import open_source
from unet.sources.base import SourceSpec
from unet.stages import ingest
from unet.storage.store import open_image
from unet.storage.workspace import Workspace

SECONDS, BYTES = 5, 10**9
PATIENCE = 60  # of the clock, for a process that waits; the limit above is one of computing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("unet.config", "unet.network.weights", "unet.stages.ingest"),
        *("unet.sources.npy", "unet.sources.slices", "unet.sources.tiff.series"),
        *("unet.sources.zarr_source", "hostile"),
    ]
)


@dataclass(frozen=True)
class Ending:
    """How a process ended: an own error and its message, or whatever else it was."""

    kind: str
    message: str
    is_own: bool
    bytes: int


def run_bounded(do: Callable[..., Any], *arguments: Any) -> Ending:
    """Call a function in a process that is ended after SECONDS of computing."""
    mine, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_run, args=(theirs, do, *arguments))
    process.start()
    theirs.close()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        return Ending("hang", f"no end in {PATIENCE} s", False, 0)
    try:
        ending: Ending = mine.recv()
    except EOFError:
        return Ending("killed", f"by signal {-(process.exitcode or 0)}", False, 0)
    return ending


def _run(to: Connection, do: Callable[..., Any], *arguments: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    space = psutil.Process().memory_info().vms + 2 * BYTES  # what is reserved and not used is free
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    warnings.simplefilter("error")
    kind, message, is_own = "read", "", True
    try:
        do(*arguments)
    except UserError as error:
        kind, message = type(error).__name__, str(error)
    except BaseException as error:  # noqa: BLE001  # the parent judges it
        kind, message, is_own = type(error).__name__, traceback.format_exc(), False
    used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    to.send(Ending(kind, message[: LONGEST_MESSAGE + 1], is_own, used))


def assert_refused(do: Callable[..., Any], *arguments: Any) -> str:
    """It ends in an own error, whose message a person can read, in time and in memory."""
    ending = run_bounded(do, *arguments)
    assert ending.is_own, (ending.kind, ending.message)
    assert ending.kind != "read"
    assert len(ending.message) <= LONGEST_MESSAGE
    assert ending.bytes < BYTES
    return ending.message


def read_image(path: Path) -> None:
    """Open an image and read its first block, as ingest does, but in this process."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    spec = SourceSpec(str(path))
    with closing(open_source(spec)) as source:
        image, block = ingest._locate_image(source, spec, Workspace(path.parent / "results"))
        box = BlockGrid(image.shape, block).box(0)
        if image.copied:
            source.read(box)
        else:
            open_image(image).read(box)

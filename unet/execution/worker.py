"""What a worker does for a job: it opens it once, and then does block after block.

What may go wrong with a block is told apart in `dispatch`, which hears of it from here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from uuid import uuid4

from distributed import Worker, WorkerPlugin, get_worker

from unet.errors import (
    DeviceError,
    ModelError,
    SourceError,
    StoreError,
    UserError,
    WorkerError,
    to_user_error,
)
from unet.planning.plan import BLOCKS_PER_WORKER

LEAST_LIMIT_SECONDS = 1800.0
TIMES_THE_LONGEST = 20.0
SECONDS_OF_GRACE = 1.0  # for a last word to the client
# Of this worker's process, whatever the runs that share it: memory is planned for so many blocks.
BLOCK_SLOTS = threading.Semaphore(BLOCKS_PER_WORKER)
IDLE_SECONDS = 600.0  # after which what was opened is let go of: its client may have been killed


class Job(Protocol):
    """The work of one stage on one image: small, picklable, the same on every worker."""

    @property
    def name(self) -> str:
        """What its progress lines call it."""
        ...

    def open(self) -> Callable[[int], Any]:
        """What does a block, given its number: called once a worker."""
        ...


# What a block may return besides its result. Returned and not raised, since Dask tries again what
# is raised, and shows its traceback.


@dataclass(frozen=True)
class AbortRun:
    """No other try and no other block would fare better."""

    error: UserError


@dataclass(frozen=True)
class Failed:
    """This block failed, and another try would fail alike."""

    error: BaseException


@dataclass(frozen=True)
class WorkerRejected:
    """This worker must not do any block."""

    error: UserError
    worker: str

    @classmethod
    def by(cls, error: UserError, worker: str) -> WorkerRejected | AbortRun:
        """What an error in opening a job means: it may be the worker's own, or everybody's."""
        its_own = isinstance(error, WorkerError | DeviceError)
        return cls(error, worker) if its_own else AbortRun(error)


class JobPlugin(WorkerPlugin):
    """What one worker holds for one job; opened with its first block, and again after a long rest.

    limit  seconds that a block may take; None: 20 times the longest on this worker so far, and
           at least half an hour
    """

    def __init__(self, job: Job, limit: float | None) -> None:
        self.job = job
        # Two runs that share a scheduler may have images of the same name.
        self.name = f"{job.name} {uuid4().hex}"
        self.idle_seconds = IDLE_SECONDS
        self._given_limit = limit

    def setup(self, worker: Worker) -> None:
        """Called by Dask on every worker, also on those that come later."""
        self._worker = worker
        self._lock = threading.Lock()
        self._do: Callable[[int], Any] | None = None
        self._busy = 0
        self._doubted = False
        self._rest: threading.Timer | None = None
        self._longest = 0.0

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - as Dask calls it
        """Called by Dask when the run ends: nothing may hold the network any longer."""
        with self._lock:
            self._do = None
            if self._rest is not None:
                self._rest.cancel()

    def do(self, block: int) -> Any:
        """Do one block, and end this worker's process if it takes too long.

        As many at once as the plan counts memory for; the others wait.
        """
        with BLOCK_SLOTS, self._watched(block):
            try:
                do = self._begin()
            except UserError as error:
                return WorkerRejected.by(error, self._worker.address)
            try:
                return do(block)
            except Exception as error:
                if to_user_error(error) is None:
                    self._doubt()
                raise
            finally:
                self._end()

    def _begin(self) -> Callable[[int], Any]:
        with self._lock:
            self._do = self._do or self._opened()
            self._busy += 1
            if self._rest is not None:
                self._rest.cancel()
            return self._do

    def _opened(self) -> Callable[[int], Any]:
        try:
            return self.job.open()
        except Exception as error:
            if not self._doubted or isinstance(error, UserError):
                raise
            self._give_up(f"it failed in a block, and now before one: {error}")

    def _doubt(self) -> None:
        """Let the next block open the job anew: that tests this worker, as before its first.

        What is broken for good, such as the CUDA context of a process after an illegal access,
        fails at once, so that its worker is always idle and would be handed all that is left.
        """
        with self._lock:
            self._do, self._doubted = None, True

    def _end(self) -> None:
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._rest = threading.Timer(self.idle_seconds, self._let_go)
                self._rest.daemon = True
                self._rest.start()

    def _let_go(self) -> None:
        with self._lock:
            if not self._busy:
                self._do = None

    @contextmanager
    def _watched(self, block: int) -> Iterator[None]:
        limit = self._given_limit or max(LEAST_LIMIT_SECONDS, TIMES_THE_LONGEST * self._longest)
        late = f"block {block} took longer than {limit:.0f} s"
        watchdog = threading.Timer(limit, self._give_up, [late])
        watchdog.daemon = True
        watchdog.start()
        begin = time.monotonic()
        try:
            yield
        finally:
            watchdog.cancel()
            self._longest = max(self._longest, time.monotonic() - begin)

    def _give_up(self, why: str) -> NoReturn:
        """End the process: a thread that hangs cannot be ended alone. Its nanny starts another."""
        self._worker.log_event(self.name, why)
        time.sleep(SECONDS_OF_GRACE)
        os._exit(1)


def do_block(station_name: str, block: int) -> Any:
    """Do one block on the worker that this is called on; what went wrong is returned."""
    station: JobPlugin = get_worker().plugins[station_name]  # type: ignore[assignment]
    try:
        return station.do(block)
    except Exception as error:
        told_as = to_user_error(error)
        if told_as is None:
            raise
        of_this_block = isinstance(told_as, SourceError | StoreError | ModelError)
        return Failed(told_as) if of_this_block else AbortRun(told_as)

"""What a worker does for a job: it opens the job once, and then does block after block.

What goes wrong with a block is returned to `dispatch`, which decides what follows from it.
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
from unet.planning.memory import BLOCKS_PER_WORKER

LEAST_LIMIT_SECONDS = 1800.0
TIMES_THE_LONGEST = 20.0
SECONDS_OF_GRACE = 1.0  # for a last message to the client
# For all runs that share this worker's process: its memory is planned for this many blocks.
BLOCK_SLOTS = threading.Semaphore(BLOCKS_PER_WORKER)
IDLE_SECONDS = 600.0  # then an open job is closed: its client may have been killed


class Job(Protocol):
    """The work of one stage on one image: small, picklable, the same on every worker."""

    @property
    def name(self) -> str:
        """What its progress lines call it."""
        ...

    def open(self) -> Callable[[int], Any]:
        """The function that does a block, given its number. Called once on each worker."""
        ...


# What a block may return besides its result. It is returned and not raised, since Dask tries again
# after an error, and logs its traceback.


@dataclass(frozen=True)
class AbortRun:
    """Every other try, and every other block, would fail too."""

    error: UserError


@dataclass(frozen=True)
class Failed:
    """This block failed, and another try would fail too."""

    error: BaseException


@dataclass(frozen=True)
class WorkerRejected:
    """This worker must not do any block."""

    error: UserError
    worker: str

    @classmethod
    def by(cls, error: UserError, worker: str) -> WorkerRejected | AbortRun:
        """What an error in opening a job means: this worker is at fault, or all would fail."""
        its_own = isinstance(error, WorkerError | DeviceError)
        return cls(error, worker) if its_own else AbortRun(error)


class JobPlugin(WorkerPlugin):
    """What one worker holds for one job: opened with the first block, closed after a long rest.

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

        At most BLOCKS_PER_WORKER at once, which the plan counts memory for; the others wait.
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
        """Let the next block open the job again, which tests this worker as before its first block.

        Why: a process that is broken for good, such as one whose CUDA context saw an illegal
        access, fails each block at once. So it is always idle, and would be given all that is left.
        """
        with self._lock:
            self._do, self._doubted = None, True

    def _end(self) -> None:
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._rest = threading.Timer(self.idle_seconds, self._close)
                self._rest.daemon = True
                self._rest.start()

    def _close(self) -> None:
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
        """End the process: a thread that hangs cannot be ended alone. A nanny starts another."""
        self._worker.log_event(self.name, why)
        time.sleep(SECONDS_OF_GRACE)
        os._exit(1)


def do_block(plugin_name: str, block: int) -> Any:
    """Do one block on the worker that this is called on; what went wrong is returned."""
    plugin: JobPlugin = get_worker().plugins[plugin_name]  # type: ignore[assignment]
    try:
        return plugin.do(block)
    except Exception as error:
        user_error = to_user_error(error)
        if user_error is None:
            raise
        of_this_block = isinstance(user_error, SourceError | StoreError | ModelError)
        return Failed(user_error) if of_this_block else AbortRun(user_error)


def threads_of_worker() -> int:
    """The CPUs that the worker of this task was given: a thread of Dask stands for one."""
    return int(get_worker().state.nthreads)

"""Hands blocks to Dask workers, and decides what follows from each result.

Each stage does the same thing: do every block once, and record it. A `Job` says what a block is.
`dispatch` keeps a bounded number of blocks in flight, so that neither the client nor the scheduler
grows with the image. These are the ways in which a block can fail, and what follows:

    it raises            it is tried again, then named; the others finish
    its input is bad     it is named at once, without another try; the others finish
    its worker dies      another worker does it; a block whose workers always die is named
    its worker hangs     the watchdog, or Dask if it is silent, ends it: as if it died
    its worker is wrong  it is retired before it writes anything; another worker does the block
    its worker breaks    it is tested before its next block, and replaced if it fails that too
    all would fail       a full disk, no device: the run ends at once
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client, Future, KilledWorker, LocalCluster, SpecCluster

from unet.errors import RunError, UserError
from unet.execution.settings import RETRIES
from unet.execution.worker import AbortRun, Failed, Job, JobPlugin, WorkerRejected, do_block

log = logging.getLogger(__name__)

MOST_FAILURES = 10  # a run with more, and with fewer successes, ends: its blocks are not the cause
NAMED_FAILURES = 5
PATIENCE_KEY = "distributed.scheduler.no-workers-timeout"  # of Dask's configuration
PATIENCE_SECONDS = 600  # where that is not set: workers of a cluster may wait in a queue
OWN_PATIENCE_SECONDS = 180  # workers of this machine do not
SECONDS_BETWEEN_CHECKS = 2.0


def patience() -> float:
    """Seconds to wait for a first or another worker."""
    return float(parse_timedelta(dask.config.get(PATIENCE_KEY) or PATIENCE_SECONDS))


def dispatch(
    client: Client,
    job: Job,
    blocks: Iterator[int],
    record: Callable[[int, Any], None],
    in_flight: int,
    limit: float | None = None,
) -> None:
    """Do all `blocks` in any order, at most `in_flight` at a time; `record` gets each result.

    limit  seconds that a block may take before its worker is replaced; see `JobPlugin`

    A block that fails is named when the others have finished: by the error itself where the input
    is to blame, else by a RunError after RETRIES more tries. A failure that every other block would
    meet too, such as a full disk, ends the run at once. So do more than MOST_FAILURES failures,
    where fewer blocks succeeded.
    """
    plugin = JobPlugin(job, limit)
    _register(client, plugin)
    client.subscribe_topic(plugin.name, _log_replaced)
    blocks_out = _Dispatch(client, plugin.name, record)
    try:
        blocks_out.all(blocks, in_flight)
    except OSError as error:
        # Dask's own errors of a lost connection carry no number of the system's.
        if isinstance(error, UserError) or (error.errno and not isinstance(error, ConnectionError)):
            raise
        raise _no_scheduler() from error
    finally:
        with suppress(OSError):
            blocks_out.cancel()
            _unregister(client, plugin.name)
    blocks_out.raise_failures()


class _Dispatch:
    """The blocks of one run that are out, and those that failed."""

    def __init__(
        self, client: Client, plugin_name: str, record: Callable[[int, Any], None]
    ) -> None:
        self._client, self._plugin_name, self._record = client, plugin_name, record
        self._out: dict[Any, tuple[int, Future[Any]]] = {}
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self._failed: dict[int, BaseException] = {}
        self._deaths: dict[int, tuple[int, int]] = {}  # how often, and successes until then
        self._successes = 0
        self._submissions = 0
        self._no_worker_since: float | None = None

    def all(self, blocks: Iterator[int], in_flight: int) -> None:
        """Do all blocks; what ends the run at once is raised."""
        self._submit(list(islice(blocks, in_flight)))
        while self._out and not self._too_many_failed():
            for block, result in self._results(self._next_ended()):
                self._handle(block, result)
            self._submit(list(islice(blocks, in_flight - len(self._out))))

    def cancel(self) -> None:
        """Take back what is still out."""
        if self._out and self._client.status == "running":
            self._client.cancel([future for _, future in self._out.values()])

    def raise_failures(self) -> None:
        """Raise the first failure, if there is one, naming the others."""
        if not self._failed:
            return
        block, error = next(iter(self._failed.items()))
        others = list(self._failed)[1 : NAMED_FAILURES + 1]
        more = "; ..." if len(self._failed) > NAMED_FAILURES + 1 else ""
        also = f" Also failed: blocks {', '.join(map(str, others))}{more}." if others else ""
        if isinstance(error, UserError):
            raise type(error)(
                f"{error} That is block {block}.{also} The blocks that did not fail are done and "
                f"are kept."
                if others or self._successes
                else str(error)
            ) from error
        raise RunError(
            f"Expected every block to be done, but {len(self._failed)} failed {RETRIES + 1} times "
            f"each; the first is block {block}: {_describe(error)}.{also} The other blocks are "
            f"done and are kept: mend the cause and run again."
        ) from error

    def _submit(self, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        self._submissions += 1
        futures = self._client.map(
            do_block,
            [self._plugin_name] * len(blocks),
            blocks,
            key=[f"{self._plugin_name}-{self._submissions}-{block}" for block in blocks],
            pure=False,
            retries=RETRIES,
        )
        for block, future in zip(blocks, futures, strict=True):
            self._out[future.key] = (block, future)
            future.add_done_callback(self._ended.put)

    def _next_ended(self) -> list[Future[Any]]:
        """Wait for at least one block to end; raises RunError where none will."""
        while True:
            try:
                ended = [self._ended.get(timeout=SECONDS_BETWEEN_CHECKS)]
            except Empty:
                self._refuse_endless_wait()
                continue
            self._no_worker_since = None
            while not self._ended.empty():
                ended.append(self._ended.get())
            return ended

    def _refuse_endless_wait(self) -> None:
        if self._client.status == "closed":
            raise _no_scheduler()
        if self._client.scheduler_info()["workers"]:
            self._no_worker_since = None
            return
        now = time.monotonic()
        self._no_worker_since = self._no_worker_since or now
        own = type(self._client.cluster) in (LocalCluster, SpecCluster)
        longest = OWN_PATIENCE_SECONDS if own else patience()
        if now - self._no_worker_since > longest:
            last = "".join(
                f" Of block {b}: {_describe(e)}." for b, e in islice(self._failed.items(), 1)
            )
            raise RunError(
                f"Expected at least one worker, but for {longest:.0f} s there was none: they "
                f"ended, or could not start again.{last} Look into their logs, start others, "
                f"and run again: what was done is kept."
            )

    def _results(self, ended: Iterable[Future[Any]]) -> Iterator[tuple[int, Any]]:
        """The blocks that ended and their results; of those that failed the error."""
        of_status: dict[str | None, list[Future[Any]]] = {}
        for future in ended:
            of_status.setdefault(future.status, []).append(future)
        finished = of_status.pop("finished", [])
        for future, result in zip(finished, self._client.gather(finished), strict=True):
            yield self._out.pop(future.key)[0], result
        for future in of_status.pop("error", []):
            yield self._out.pop(future.key)[0], Failed(future.exception())
        # A result may die with its worker before it was fetched; its block is then done again.
        for future in of_status.pop("lost", []) + of_status.pop("pending", []):
            future.add_done_callback(self._ended.put)
        if of_status:
            raise _no_scheduler()

    def _handle(self, block: int, result: Any) -> None:
        if isinstance(result, AbortRun):
            raise result.error
        if isinstance(result, WorkerRejected):
            self._retire(result)
            self._submit([block])
        elif self._may_be_innocent(block, result):
            self._submit([block])
        elif isinstance(result, Failed):
            log.error("block %d failed: %s. The others go on.", block, _describe(result.error))
            self._failed[block] = result.error
        else:
            self._successes += 1
            self._record(block, result)

    def _may_be_innocent(self, block: int, result: Any) -> bool:
        """Whether to try a block again whose workers died, since other blocks succeeded between.

        Its workers may have died of another block that they held at the same time.
        """
        if not (isinstance(result, Failed) and isinstance(result.error, KilledWorker)):
            return False
        times, before = self._deaths.get(block, (0, 0))
        self._deaths[block] = (times + 1, self._successes)
        return times < RETRIES and self._successes > before

    def _too_many_failed(self) -> bool:
        return len(self._failed) >= max(MOST_FAILURES, self._successes)

    def _retire(self, rejected: WorkerRejected) -> None:
        """Retire a worker for good; raises its error where no other is left."""
        workers = self._client.nthreads()
        if set(workers) <= {rejected.worker}:
            raise rejected.error
        if rejected.worker in workers:
            log.error("the worker %s is retired: %s", rejected.worker, rejected.error)
            self._client.retire_workers([rejected.worker], close_workers=True)


def _log_replaced(event: tuple[float, str]) -> None:
    log.warning("a worker is replaced: %s", event[1])


def _register(client: Client, plugin: JobPlugin) -> None:
    """Have a job on all workers, also where one of them ends at that moment."""
    for tries_left in range(RETRIES, -1, -1):
        try:
            client.register_plugin(plugin, name=plugin.name)
        except OSError:
            if not tries_left:
                raise _no_scheduler() from None
            time.sleep(SECONDS_BETWEEN_CHECKS)
        else:
            return


def _unregister(client: Client, plugin_name: str) -> None:
    """Take a job from the workers, unless the scheduler is gone and they with it."""
    if client.status != "running":
        return
    client.unsubscribe_topic(plugin_name)
    client.unregister_worker_plugin(plugin_name)


def _no_scheduler() -> RunError:
    return RunError(
        "Expected the Dask scheduler to stay, but the connection to it is lost: it ended, or the "
        "network did. What was done is kept: run again when it is back."
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, KilledWorker):
        return "each worker that tried it died, or took too long and was replaced"
    if isinstance(error, UserError):
        return str(error).removesuffix(".")
    return f"{type(error).__name__}: {error}"

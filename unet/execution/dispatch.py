"""Handing blocks to Dask workers, and hearing what became of each.

Each stage does the same thing, "do every block once, and record it". A `Job` says what a block is;
`run` keeps a bounded number of blocks in flight, so that neither the client nor the scheduler grows
with the image. What can go wrong with a block is told apart here:

    it raises            tried again, then named; the others finish
    its input is bad     named at once, without another try; the others finish
    its worker dies      done by another; a block whose workers always die is named
    its worker hangs     ended by its watchdog, or by Dask where it is silent: as if it died
    its worker is wrong  sent away before it wrote anything; the block is done by another
    its worker breaks    tested again before its next block, and replaced if it fails that too
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
from unet.execution.worker import AbortRun, Failed, Job, JobPlugin, WorkerRejected, do_block

log = logging.getLogger(__name__)

RETRIES = 2
MOST_FAILURES = 10  # of which more fail than end well: the cause is not in the blocks
NAMED_FAILURES = 5
PATIENCE = "distributed.scheduler.no-workers-timeout"  # in Dask's configuration; or else
PATIENCE_SECONDS = 600  # since workers of a cluster may have to queue
OWN_PATIENCE_SECONDS = 180  # but not those of this machine
SECONDS_BETWEEN_LOOKS = 2.0


def patience() -> float:
    """Seconds to wait for a first or another worker."""
    return float(parse_timedelta(dask.config.get(PATIENCE) or PATIENCE_SECONDS))


def run(
    client: Client,
    job: Job,
    blocks: Iterator[int],
    done: Callable[[int, Any], None],
    in_flight: int,
    limit: float | None = None,
) -> None:
    """Do all `blocks` in any order, at most `in_flight` at a time; `done` hears each result.

    limit  seconds that a block may take before its worker is replaced; see `JobPlugin`

    A block that fails is named when the others have finished: by the error itself where the input
    is to blame, else by a RunError after RETRIES more tries. Ends at once with what no other block
    would be spared, such as a full disk, and where more than MOST_FAILURES fail and most do.
    """
    station = JobPlugin(job, limit)
    _settle_in(client, station)
    client.subscribe_topic(station.name, _tell_replaced)
    dispatched = _Dispatch(client, station.name, done)
    try:
        dispatched.all(blocks, in_flight)
    except OSError as error:
        # Dask's own errors of a lost connection carry no number of the system's.
        if isinstance(error, UserError) or (error.errno and not isinstance(error, ConnectionError)):
            raise
        raise _no_scheduler() from error
    finally:
        with suppress(OSError):
            dispatched.cancel()
            _leave(client, station.name)
    dispatched.raise_failures()


class _Dispatch:
    """The blocks of one run that are out, and those that failed."""

    def __init__(self, client: Client, station: str, done: Callable[[int, Any], None]) -> None:
        self._client, self._station, self._done = client, station, done
        self._out: dict[Any, tuple[int, Future[Any]]] = {}
        self._ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self._failed: dict[int, BaseException] = {}
        self._deaths: dict[int, tuple[int, int]] = {}  # how often, and successes until then
        self._successes = 0
        self._submissions = 0
        self._lonely_since: float | None = None

    def all(self, blocks: Iterator[int], in_flight: int) -> None:
        """Do all blocks; what ends the run at once is raised."""
        self._submit(list(islice(blocks, in_flight)))
        while self._out and not self._is_hopeless():
            for block, result in self._results(self._next_ended()):
                self._hear(block, result)
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
            f"each; the first is block {block}: {_said(error)}.{also} The other blocks are done "
            f"and are kept: mend the cause and run again."
        ) from error

    def _submit(self, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        self._submissions += 1
        futures = self._client.map(
            do_block,
            [self._station] * len(blocks),
            blocks,
            key=[f"{self._station}-{self._submissions}-{block}" for block in blocks],
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
                ended = [self._ended.get(timeout=SECONDS_BETWEEN_LOOKS)]
            except Empty:
                self._refuse_to_wait_in_vain()
                continue
            self._lonely_since = None
            while not self._ended.empty():
                ended.append(self._ended.get())
            return ended

    def _refuse_to_wait_in_vain(self) -> None:
        if self._client.status == "closed":
            raise _no_scheduler()
        if self._client.scheduler_info()["workers"]:
            self._lonely_since = None
            return
        now = time.monotonic()
        self._lonely_since = self._lonely_since or now
        own = type(self._client.cluster) in (LocalCluster, SpecCluster)
        longest = OWN_PATIENCE_SECONDS if own else patience()
        if now - self._lonely_since > longest:
            last = "".join(
                f" Of block {b}: {_said(e)}." for b, e in islice(self._failed.items(), 1)
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

    def _hear(self, block: int, result: Any) -> None:
        if isinstance(result, AbortRun):
            raise result.error
        if isinstance(result, WorkerRejected):
            self._send_away(result)
            self._submit([block])
        elif self._may_be_another_s(block, result):
            self._submit([block])
        elif isinstance(result, Failed):
            log.error("block %d failed: %s. The others go on.", block, _said(result.error))
            self._failed[block] = result.error
        else:
            self._successes += 1
            self._done(block, result)

    def _may_be_another_s(self, block: int, result: Any) -> bool:
        """Whether a block is tried again whose workers died: others ended well between."""
        if not (isinstance(result, Failed) and isinstance(result.error, KilledWorker)):
            return False
        times, before = self._deaths.get(block, (0, 0))
        self._deaths[block] = (times + 1, self._successes)
        return times < RETRIES and self._successes > before

    def _is_hopeless(self) -> bool:
        return len(self._failed) >= max(MOST_FAILURES, self._successes)

    def _send_away(self, turned: WorkerRejected) -> None:
        """Retire a worker for good; raises its error where no other is left."""
        there = self._client.nthreads()
        if set(there) <= {turned.worker}:
            raise turned.error
        if turned.worker in there:
            log.error("the worker %s is sent away: %s", turned.worker, turned.error)
            self._client.retire_workers([turned.worker], close_workers=True)


def _tell_replaced(event: tuple[float, str]) -> None:
    log.warning("a worker is replaced: %s", event[1])


def _settle_in(client: Client, station: JobPlugin) -> None:
    """Have a job's station on all workers, also where one of them ends just then."""
    for patience in range(RETRIES, -1, -1):
        try:
            client.register_plugin(station, name=station.name)
        except OSError:
            if not patience:
                raise _no_scheduler() from None
            time.sleep(SECONDS_BETWEEN_LOOKS)
        else:
            return


def _leave(client: Client, station: str) -> None:
    """Take a job's station from the workers, unless the scheduler is gone and they with it."""
    if client.status != "running":
        return
    client.unsubscribe_topic(station)
    client.unregister_worker_plugin(station)


def _no_scheduler() -> RunError:
    return RunError(
        "Expected the Dask scheduler to stay, but the connection to it is lost: it ended, or the "
        "network did. What was done is kept: run again when it is back."
    )


def _said(error: BaseException) -> str:
    if isinstance(error, KilledWorker):
        return "each worker that tried it died, or took too long and was replaced"
    if isinstance(error, UserError):
        return str(error).removesuffix(".")
    return f"{type(error).__name__}: {error}"

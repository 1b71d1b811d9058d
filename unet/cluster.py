"""Running blocks on Dask: the only module that imports distributed.

Why one engine for all stages: each of them does the same thing, "do every block once, and record
it". A `Job` says what a block is; `run` keeps a bounded number of blocks in flight, so that neither
the client nor the scheduler grows with the image; the ledger is written here, by one process.

A worker opens a job once (its stores, its network) and then does block after block. It runs
several blocks at a time: while one computes, another is read and a third is written.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol
from uuid import uuid4

import dask
from dask.utils import parse_timedelta
from distributed import Client as Client  # the one name of it that other modules use
from distributed import (
    Future,
    LocalCluster,
    Nanny,
    Scheduler,
    SpecCluster,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
)

from unet.errors import RunError, UserError, to_user_error
from unet.plan import BLOCKS_A_WORKER

log = logging.getLogger(__name__)

RETRIES = 2
PATIENCE = "distributed.scheduler.no-workers-timeout"  # in Dask's configuration; or else
PATIENCE_SECONDS = 600  # since workers of a cluster may have to queue
MOST_FAILURES = 10  # with no success between them
MOST_WORKERS = 256
CORES_A_NETWORK = 8  # convolutions gain little from more
SECONDS_BETWEEN_LINES = 5.0
# An error in a block reaches the client, which tells it once; a worker's own log tells it again,
# and every worker's last heartbeat, sent to a scheduler that has ended, would be an error there.
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}
# By Dask's own settings a worker returns what it freed at once, and each block then waits for the
# system to hand out, and clear, the same memory again: half of the time of moving pixels.
KEEP_FREED_MEMORY = {f"MALLOC_{name}_THRESHOLD_": 1 << 28 for name in ("TRIM", "MMAP")}
# Dask serves a status page even so; of any free port, since 8787 may be another run's.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


class Job(Protocol):
    """The work of one stage on one image: small, picklable, the same on every worker."""

    @property
    def name(self) -> str:
        """What its progress lines call it."""
        ...

    def open(self) -> Callable[[int], Any]:
        """What does a block, given its number: called once a worker."""
        ...


@dataclass(frozen=True)
class Machines:
    """Where blocks run; the first that is given: an address, devices, CPU workers.

    address   of a Dask scheduler that is already there
    devices   names of GPUs, as CUDA_VISIBLE_DEVICES lists them; one worker each
    cores     CPU cores of this job
    threads   blocks that a worker has in hand at once
    cores_a_worker  of CPU workers: a process for each so many cores
    """

    address: str | None
    devices: tuple[str, ...]
    cores: int
    threads: int
    cores_a_worker: int = 1

    @classmethod
    def for_data(cls, address: str | None, cores: int) -> Machines:
        """For stages that move pixels: a process a core, each with a block to wait for."""
        return cls(address, (), cores, threads=2)

    @classmethod
    def for_network(cls, address: str | None, devices: tuple[str, ...], cores: int) -> Machines:
        """For the network: a process a GPU, or one for every 8 cores that convolve together."""
        return cls(address, devices, cores, BLOCKS_A_WORKER, min(cores, CORES_A_NETWORK))

    def at_least(self, workers: int) -> Machines:
        """With so many CPU workers, but no more than cores: they wait less for one another.

        In one process threads take turns at Python's own work, which a light network feels.
        """
        fewer = self.cores // min(self.cores, workers)
        return replace(self, cores_a_worker=min(self.cores_a_worker, fewer))

    @property
    def workers(self) -> int:
        """How many workers this job starts, if it starts its own."""
        return len(self.devices) or max(1, self.cores // self.cores_a_worker)

    @property
    def in_flight(self) -> int:
        """Blocks handed out at once: what the workers have in hand, and as many waiting.

        With an address the number of workers is not known here and may change.
        """
        return 2 * self.threads * (MOST_WORKERS if self.address else self.workers)


class Station(WorkerPlugin):
    """What one worker holds for one job; opened with its first block."""

    def __init__(self, job: Job) -> None:
        self.job = job
        # Two runs that share a scheduler may have images of the same name.
        self.name = f"{job.name} {uuid4().hex}"

    def setup(self, worker: Worker) -> None:
        """Called by Dask on every worker, also on those that come later."""
        del worker
        self._lock = threading.Lock()
        self._do: Callable[[int], Any] | None = None
        # A worker of a cluster that is already there may have more threads than that.
        self._hands = threading.Semaphore(BLOCKS_A_WORKER)

    def do(self, block: int) -> Any:
        """Do one block; as many at once as the plan counts memory for, the others wait."""
        with self._lock:
            if self._do is None:
                self._do = self.job.open()
        with self._hands:
            return self._do(block)


@contextmanager
def connect(machines: Machines) -> Iterator[Client]:
    """A client of the workers that `machines` describes; local workers end with it."""
    if machines.address:
        with Client(machines.address) as client:
            _wait_for_a_worker(client, machines.address)
            yield client
        return
    device = f"GPU {', '.join(machines.devices)}" if machines.devices else "the CPU"
    log.info("%d worker(s) for %s, %s", machines.workers, device, _where())
    key = "distributed.nanny.pre-spawn-environ"
    environ = {**dask.config.get(key), **QUIET, **KEEP_FREED_MEMORY}
    with (
        dask.config.set({key: environ}),
        _local_cluster(machines) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _where() -> str:
    """The node of this process, and the GPUs that its scheduler gave it, whether used or not."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    return f"on {socket.gethostname()} (CUDA_VISIBLE_DEVICES: {given})"


def _wait_for_a_worker(client: Client, address: str) -> None:
    log.info("waiting for a worker of the scheduler %s", address)
    patience = parse_timedelta(dask.config.get(PATIENCE) or PATIENCE_SECONDS)
    try:
        # A task, and not only a look: a cluster that adapts starts workers for tasks alone.
        where = client.submit(_where, pure=False).result(timeout=patience)
    except TimeoutError as error:
        raise RunError(
            f"Expected the Dask scheduler {address} to have a worker, but none came in "
            f"{patience:.0f} s. Start workers for it, or leave `scheduler` and "
            f"DASK_SCHEDULER_ADDRESS out."
        ) from error
    log.info("%d worker(s) are there, one %s", len(client.nthreads()), where)


def run(
    client: Client,
    job: Job,
    blocks: Iterator[int],
    done: Callable[[int, Any], None],
    in_flight: int,
) -> None:
    """Do all `blocks` in any order, at most `in_flight` at a time; `done` hears each result.

    A block that fails is tried again RETRIES times; then the others still finish, and RunError
    names it. A UserError or a full disk ends the run at once.
    """
    station = Station(job)
    client.register_plugin(station, name=station.name)
    failed: dict[int, BaseException] = {}
    any_done = False
    running: dict[Any, tuple[int, Future[Any]]] = {}

    def submit(block: int) -> Future[Any]:
        return client.submit(
            _do, station.name, block, key=f"{station.name}-{block}", pure=False, retries=RETRIES
        )

    try:
        for block in islice(blocks, in_flight):
            future = submit(block)
            running[future.key] = (block, future)
        finished = as_completed([future for _, future in running.values()])
        for future in finished:
            block, _ = running.pop(future.key)
            if future.status != "finished":
                failed[block] = future.exception()
                if len(failed) == MOST_FAILURES and not any_done:
                    break  # nothing works: the cause is not in these blocks
            elif isinstance(result := future.result(), _Hopeless):
                raise result.error
            else:
                any_done = True
                done(block, result)
            for following in islice(blocks, 1):
                added = submit(following)
                running[added.key] = (following, added)
                finished.add(added)
    finally:
        client.cancel([future for _, future in running.values()])
        client.unregister_worker_plugin(station.name)
    if failed:
        block, error = next(iter(failed.items()))
        raise RunError(
            f"Expected every block to be done, but {len(failed)} failed {RETRIES + 1} times each; "
            f"the first is block {block}: {type(error).__name__}: {error}. The other blocks are "
            f"done and are kept: mend the cause and run again."
        ) from error


class Progress:
    """Says how far a stage is: blocks, megapixels a second, time left."""

    def __init__(self, title: str, blocks: int, already: int, pixels: int) -> None:
        self._title, self._blocks, self._pixels = title, blocks, pixels
        self._already = self._done = already
        self._begin = self._said = time.monotonic()
        log.info("%s: %d of %d blocks were done before", title, already, blocks)

    def step(self) -> None:
        """One more block is done."""
        self._done += 1
        now = time.monotonic()
        if self._done < self._blocks and now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        seconds = max(now - self._begin, 1e-9)
        share = (self._done - self._already) / self._blocks
        rate = share * self._pixels / seconds / 1e6
        left = (self._blocks - self._done) / (self._done - self._already) * seconds
        log.info(
            "%s: %d / %d blocks, %.2f Mpx/s, %.0f s left",
            *(self._title, self._done, self._blocks, rate, left),
        )


@dataclass(frozen=True)
class _Hopeless:
    """The result of a block that no other try and no other block would fare better than.

    Returned and not raised, since Dask tries again what is raised, and shows its traceback.
    """

    error: UserError


def _do(station_name: str, block: int) -> Any:
    station: Station = get_worker().plugins[station_name]  # type: ignore[assignment]
    try:
        return station.do(block)
    except Exception as error:
        told_as = to_user_error(error)
        if told_as is None:
            raise
        return _Hopeless(told_as)


def _local_cluster(machines: Machines) -> LocalCluster | SpecCluster:
    if machines.devices:
        scheduler = {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "port": 0, **NO_DASHBOARD},
        }
        workers = {
            device: {
                "cls": Nanny,
                "options": {
                    "nthreads": machines.threads,
                    "host": "127.0.0.1",
                    "memory_limit": None,
                    # Set before the worker's process starts, so before torch can look.
                    "env": {"CUDA_VISIBLE_DEVICES": device},
                },
            }
            for device in machines.devices
        }
        return SpecCluster(workers=workers, scheduler=scheduler)
    return LocalCluster(
        n_workers=machines.workers,
        threads_per_worker=machines.threads,
        processes=True,
        host="127.0.0.1",
        memory_limit=None,
        scheduler_kwargs=NO_DASHBOARD,
    )


def cores_of_worker() -> int:
    """The cores that the worker of this task was given: a thread of Dask counts for one."""
    return int(get_worker().state.nthreads)


def scheduler_address(configured: str | None) -> str | None:
    """The scheduler to use: of the configuration, or of DASK_SCHEDULER_ADDRESS."""
    return configured or os.environ.get("DASK_SCHEDULER_ADDRESS")

"""The Dask workers of a run: where they are, and how many. What they do is in `dispatch`.

A worker opens a job once (its stores, its network) and then does block after block. It runs
several blocks at a time: while one computes, another is read and a third is written.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import dask
from distributed import Client as Client  # the one name of it that other modules use
from distributed import LocalCluster, Nanny, Scheduler, SpecCluster, get_worker
from distributed.system import MEMORY_LIMIT

from unet.errors import RunError
from unet.execution.dispatch import RETRIES, patience
from unet.execution.dispatch import run as run
from unet.execution.worker import Job as Job
from unet.planning.plan import BLOCKS_PER_WORKER, COPIES, PROCESS_BYTES

log = logging.getLogger(__name__)

MOST_WORKERS = 256
MEGABYTE = 10**6
CPUS_PER_NETWORK = 8  # convolutions gain little from more
# An error in a block reaches the client, which tells it once; a worker's own log tells it again,
# and every worker's last heartbeat, sent to a scheduler that has ended, would be an error there.
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}
# By default a worker returns what it freed at once, and what its threads allocate is returned
# whatever the thresholds say, so each layer of the network waits for the system to hand out, and
# clear, the same memory again: a fifth of the time in float32, half of it in bfloat16 and where
# only pixels are moved. One arena that keeps all is one heap, which is used again.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": 1,
    "MALLOC_TRIM_THRESHOLD_": 1 << 40,
    "MALLOC_MMAP_THRESHOLD_": 1 << 40,
}
SILENT_SECONDS = 60  # a worker that is stopped, or whose node hangs, sends no heartbeat
# A silent worker is replaced, and a block whose workers always die is given up.
NOT_FOR_EVER = {
    "distributed.scheduler.worker-ttl": SILENT_SECONDS,
    "distributed.scheduler.allowed-failures": RETRIES,
}
# A local cluster drops a worker, and its nanny, that is not back so long after it was lost: one
# that happens to start again just then, or takes long to import torch, would never be replaced.
NEVER_DROPPED = {"distributed.deploy.lost-worker-timeout": "1000 days"}
# Dask serves a status page even so; of any free port, since 8787 may be another run's.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@dataclass(frozen=True)
class Machines:
    """Where blocks run; the first that is given: an address, devices, CPU workers.

    address   of a Dask scheduler that is already there
    devices   names of GPUs, as CUDA_VISIBLE_DEVICES lists them; one worker each
    cores     CPU cores of this job
    threads   blocks that a worker has in hand at once
    processes  CPU workers, which share the cores
    block_seconds   that a block may take before its worker is replaced; None: see `dispatch`
    memory    bytes that this job may use
    """

    address: str | None
    devices: tuple[str, ...]
    cores: int
    threads: int
    processes: int = 1
    block_seconds: float | None = None
    memory: int = MEMORY_LIMIT

    @classmethod
    def for_data(
        cls,
        address: str | None,
        cores: int,
        block_seconds: float | None = None,
        mem_mb: int | None = None,
    ) -> Machines:
        """For stages that move pixels: a process a core, each with a block to wait for.

        mem_mb  megabytes that a scheduler gave this job; None: all of the machine
        """
        return cls(
            address=address,
            devices=(),
            cores=cores,
            threads=2,
            processes=cores,
            block_seconds=block_seconds,
            memory=_bytes_of_job(mem_mb),
        )

    @classmethod
    def for_network(
        cls,
        address: str | None,
        devices: tuple[str, ...],
        cores: int,
        block_seconds: float | None = None,
        mem_mb: int | None = None,
    ) -> Machines:
        """For the network: a process a GPU, or one for every 8 cores that convolve together."""
        return cls(
            address=address,
            devices=devices,
            cores=cores,
            threads=BLOCKS_PER_WORKER,
            processes=max(1, cores // CPUS_PER_NETWORK),
            block_seconds=block_seconds,
            memory=_bytes_of_job(mem_mb),
        )

    def at_least(self, workers: int) -> Machines:
        """With up to so many CPU workers, if that is more: they wait less for one another.

        In one process threads take turns at Python's own work, which a light network feels.
        """
        return replace(self, processes=max(self.processes, min(self.cores, workers)))

    def fitting(self, blocks: int, worker_bytes: int) -> Machines:
        """With as many workers as have a block to do, and CPU workers as the memory holds.

        worker_bytes  that a worker may come to hold

        Workers elsewhere stay as they are. Raises RunError where not even one fits.
        """
        if self.address or self.devices:
            return replace(self, devices=self.devices[: max(1, blocks)])
        fits = self.memory // worker_bytes
        if not fits:
            raise RunError(
                f"Expected a worker of {worker_bytes / 1e9:.3g} GB to fit the memory of this job, "
                f"but that is {self.memory / 1e9:.3g} GB. Give it more, choose fewer `channels` of "
                f"the image, or where the network needs it set a smaller `split: memory`."
            )
        if fits < self.processes:
            log.warning("only %d worker(s) for %d cores: no more fit", fits, self.cores)
        return replace(self, processes=min(self.processes, max(1, blocks), fits))

    def moving(self, blocks: int, block_bytes: int) -> Machines:
        """As `fitting`, where workers only move pixels; if need be with one block each.

        block_bytes  of the largest block
        """
        fits = self.address or self.memory >= self.mover_bytes(block_bytes)
        machines = self if fits else replace(self, threads=1)
        return machines.fitting(blocks, machines.mover_bytes(block_bytes))

    def mover_bytes(self, block_bytes: int) -> int:
        """What a worker may come to hold that only moves blocks, the largest of so many bytes."""
        return PROCESS_BYTES + self.threads * COPIES * block_bytes

    @property
    def workers(self) -> int:
        """How many workers this job starts, if it starts its own."""
        return len(self.devices) or self.processes

    @property
    def in_flight(self) -> int:
        """Blocks handed out at once: what the workers have in hand, and as many waiting.

        With an address the number of workers is not known here and may change.
        """
        return 2 * self.threads * (MOST_WORKERS if self.address else self.workers)


def _bytes_of_job(mem_mb: int | None) -> int:
    return MEMORY_LIMIT if mem_mb is None else min(MEMORY_LIMIT, mem_mb * MEGABYTE)


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
    # A worker that is slow to end is ended, which is no matter for a warning.
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
    key = "distributed.nanny.pre-spawn-environ"
    environ = {**dask.config.get(key), **QUIET, **KEEP_FREED_MEMORY}
    with (
        dask.config.set({key: environ, **NOT_FOR_EVER, **NEVER_DROPPED}),
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
    try:
        # A task, and not only a look: a cluster that adapts starts workers for tasks alone.
        where = client.submit(_where, pure=False).result(timeout=patience())
    except TimeoutError as error:
        raise RunError(
            f"Expected the Dask scheduler {address} to have a worker, but none came in "
            f"{patience():.0f} s. Start workers for it, or leave `scheduler` and "
            f"DASK_SCHEDULER_ADDRESS out."
        ) from error
    log.info("%d worker(s) are there, one %s", len(client.nthreads()), where)


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

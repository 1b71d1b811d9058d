"""What a job may run on: CPUs, GPUs or a Dask scheduler, and how many workers its memory holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from distributed.system import MEMORY_LIMIT

from unet.errors import RunError
from unet.planning.memory import BLOCKS_PER_WORKER, mover_bytes

log = logging.getLogger(__name__)

MOST_WORKERS = 256
MEGABYTE = 10**6
CPUS_PER_NETWORK = 8  # convolutions gain little from more


@dataclass(frozen=True)
class Machines:
    """Where blocks run: on the first that is given of an address, devices and CPU workers.

    address    of a Dask scheduler that is already running
    devices    names of GPUs, as CUDA_VISIBLE_DEVICES lists them; one worker each
    cpus       CPUs of this job
    threads    blocks that a worker holds at once
    processes  CPU workers, which share the CPUs
    block_seconds  that a block may take before its worker is replaced; None: see `JobPlugin`
    memory     bytes that this job may use
    """

    address: str | None
    devices: tuple[str, ...]
    cpus: int
    threads: int
    processes: int = 1
    block_seconds: float | None = None
    memory: int = MEMORY_LIMIT

    @classmethod
    def for_data(
        cls,
        address: str | None,
        cpus: int,
        block_seconds: float | None = None,
        mem_mb: int | None = None,
    ) -> Machines:
        """For stages that move pixels: a process for each CPU, with one block more to wait for.

        mem_mb  megabytes that a scheduler gave this job; None: all of the machine
        """
        return cls(
            address=address,
            devices=(),
            cpus=cpus,
            threads=2,
            processes=cpus,
            block_seconds=block_seconds,
            memory=_bytes_of_job(mem_mb),
        )

    @classmethod
    def for_network(
        cls,
        address: str | None,
        devices: tuple[str, ...],
        cpus: int,
        block_seconds: float | None = None,
        mem_mb: int | None = None,
    ) -> Machines:
        """For the network: a process for each GPU, or for every 8 CPUs, which convolve together."""
        return cls(
            address=address,
            devices=devices,
            cpus=cpus,
            threads=BLOCKS_PER_WORKER,
            processes=max(1, cpus // CPUS_PER_NETWORK),
            block_seconds=block_seconds,
            memory=_bytes_of_job(mem_mb),
        )

    def at_least(self, workers: int) -> Machines:
        """With up to `workers` CPU workers, if that is more than there are.

        Why more: the threads of one process take turns at Python's own work, which slows down a
        light network.
        """
        return replace(self, processes=max(self.processes, min(self.cpus, workers)))

    def fitting(self, blocks: int, worker_bytes: int) -> Machines:
        """With no more workers than blocks, and no more CPU workers than the memory holds.

        worker_bytes  that a worker may hold at most

        Workers of an address stay as they are. Raises RunError where not even one fits.
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
            log.warning("only %d worker(s) for %d CPUs: the memory holds no more", fits, self.cpus)
        return replace(self, processes=min(self.processes, max(1, blocks), fits))

    def moving(self, blocks: int, block_bytes: int) -> Machines:
        """As `fitting`, where workers only move pixels; with one block each if memory is short.

        block_bytes  of the largest block
        """
        fits = self.address or self.memory >= mover_bytes(self.threads, block_bytes)
        machines = self if fits else replace(self, threads=1)
        return machines.fitting(blocks, mover_bytes(machines.threads, block_bytes))

    @property
    def workers(self) -> int:
        """How many workers this job starts, if it starts its own."""
        return len(self.devices) or self.processes

    @property
    def in_flight(self) -> int:
        """Blocks handed out at once: those that the workers hold, and as many waiting.

        With an address the number of workers is not known here and may change.
        """
        return 2 * self.threads * (MOST_WORKERS if self.address else self.workers)


def _bytes_of_job(mem_mb: int | None) -> int:
    return MEMORY_LIMIT if mem_mb is None else min(MEMORY_LIMIT, mem_mb * MEGABYTE)

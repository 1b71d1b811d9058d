"""The Dask workers of a run: how they are started and reached. What they do is in `dispatch`.

A worker opens a job once (its stores, its network) and then does block after block. It holds
several blocks at a time: while one is computed, another is read and a third is written.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

from unet.errors import RunError
from unet.execution.dispatch import RETRIES, dispatch, patience
from unet.execution.machines import Machines
from unet.execution.worker import Job

log = logging.getLogger(__name__)

# An error in a block reaches the client, which logs it once. A worker's own log would repeat it,
# and would call each last heartbeat to a scheduler that has ended an error.
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}
# By default a process gives freed memory back to the system at once. Then each layer of the network
# waits until the system hands out, and clears, the same memory again. That took a fifth of the time
# in float32, and half of it in bfloat16 and where only pixels are moved. One arena that keeps its
# memory avoids this.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": 1,
    "MALLOC_TRIM_THRESHOLD_": 1 << 40,
    "MALLOC_MMAP_THRESHOLD_": 1 << 40,
}
SILENT_SECONDS = 60  # without a heartbeat: a worker that is stopped, or whose node hangs
# A silent worker is replaced, and a block whose workers always die fails.
END_OF_WAITING = {
    "distributed.scheduler.worker-ttl": SILENT_SECONDS,
    "distributed.scheduler.allowed-failures": RETRIES,
}
# A local cluster drops a worker, and its nanny, when it was lost for this long. A worker that is
# just starting again, or that is slow to import torch, would then never be replaced.
NEVER_DROPPED = {"distributed.deploy.lost-worker-timeout": "1000 days"}
# Dask serves a status page even so: on any free port, since 8787 may belong to another run.
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@dataclass(frozen=True)
class Pool:
    """Workers that are running, and the machines that they were started for."""

    client: Client
    machines: Machines

    def run(self, job: Job, blocks: Iterable[int], record: Callable[[int, Any], None]) -> None:
        """Do `blocks` in any order; `record` gets the number and the result of each."""
        machines = self.machines
        dispatch(self.client, job, iter(blocks), record, machines.in_flight, machines.block_seconds)


@contextmanager
def connect(machines: Machines) -> Iterator[Pool]:
    """The workers that `machines` describes; local workers end with the context."""
    if machines.address:
        with Client(machines.address) as client:
            _wait_for_a_worker(client, machines.address)
            yield Pool(client, machines)
        return
    device = f"GPU {', '.join(machines.devices)}" if machines.devices else "the CPU"
    log.info("%d worker(s) for %s, %s", machines.workers, device, _node())
    # A nanny warns when it has to kill a worker that ends slowly: that is no fault here.
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
    key = "distributed.nanny.pre-spawn-environ"
    environ = {**dask.config.get(key), **QUIET, **KEEP_FREED_MEMORY}
    with (
        dask.config.set({key: environ, **END_OF_WAITING, **NEVER_DROPPED}),
        _local_cluster(machines) as cluster,
        Client(cluster) as client,
    ):
        yield Pool(client, machines)


def _node() -> str:
    """The node of this process, and the GPUs that its scheduler gave it, whether used or not."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    return f"on {socket.gethostname()} (CUDA_VISIBLE_DEVICES: {devices})"


def _wait_for_a_worker(client: Client, address: str) -> None:
    log.info("waiting for a worker of the scheduler %s", address)
    try:
        # A task, since an adaptive cluster starts workers for tasks only.
        node = client.submit(_node, pure=False).result(timeout=patience())
    except TimeoutError as error:
        raise RunError(
            f"Expected the Dask scheduler {address} to have a worker, but none came in "
            f"{patience():.0f} s. Start workers for it, or leave `scheduler` and "
            f"DASK_SCHEDULER_ADDRESS out."
        ) from error
    log.info("%d worker(s) are there, one %s", len(client.nthreads()), node)


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

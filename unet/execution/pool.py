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
from importlib import import_module
from typing import Any

from distributed import Client

from unet.errors import RunError, inner_cause
from unet.execution.dispatch import dispatch, patience
from unet.execution.machines import Machines
from unet.execution.own_cluster import own_cluster
from unet.execution.scheduler import scheduler_client
from unet.execution.worker import Job

log = logging.getLogger(__name__)


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
        with scheduler_client(machines.address) as client:
            _wait_for_a_worker(client, machines.address)
            yield Pool(client, machines)
        return
    device = f"GPU {', '.join(machines.devices)}" if machines.devices else "the CPU"
    log.info("%d worker(s) for %s, %s", machines.workers, device, _node())
    with own_cluster(machines) as cluster, Client(cluster) as client:
        yield Pool(client, machines)


def _node() -> str:
    """The node of this process, and the GPUs that its scheduler gave it, whether used or not."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    return f"on {socket.gethostname()} (CUDA_VISIBLE_DEVICES: {devices})"


def _wait_for_a_worker(client: Client, address: str) -> None:
    log.info("waiting for a worker of the scheduler %s", address)
    try:
        # Tasks, since an adaptive cluster starts workers for tasks only. The first needs nothing of
        # ours: a worker without this project loses its connection over any other, again and again.
        client.submit(import_module, __name__, pure=False).result(timeout=patience())
        node = client.submit(_node, pure=False).result(timeout=patience())
    except TimeoutError as error:
        raise RunError(
            f"Expected the Dask scheduler {address} to have a worker, but none came in "
            f"{patience():.0f} s. Start workers for it, or leave `scheduler` and "
            f"DASK_SCHEDULER_ADDRESS out."
        ) from error
    except (ImportError, RuntimeError) as error:  # on the worker, or on the scheduler
        why = str(inner_cause(error)).removesuffix(".")
        raise RunError(
            f"Expected the Dask scheduler {address} and its workers to have the packages of this "
            f"run, but: {why}. Install this project there too, in the same versions, and start "
            f"them again."
        ) from error
    log.info("%d worker(s) are there, one %s", len(client.nthreads()), node)

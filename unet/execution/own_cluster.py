"""Workers that a run starts for itself on this machine."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

import dask
from distributed import LocalCluster, Nanny, Scheduler, SpecCluster

from unet.errors import RunError, inner_cause
from unet.execution.machines import Machines
from unet.execution.settings import NO_DASHBOARD, own_settings

SEMAPHORES_OF_NANNY = 6  # of its two queues to its worker


@contextmanager
def own_cluster(machines: Machines) -> Iterator[LocalCluster | SpecCluster]:
    """A scheduler and workers on loopback, which end with the context.

    Raises RunError where this machine cannot start them.
    """
    _refuse_no_shared_memory(machines.workers)
    _refuse_no_temporary_folder()
    # A nanny warns when it has to kill a worker that ends slowly: that is no fault here.
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
    settings = dask.config.set(own_settings())
    with _variables_restored(), settings, _started(machines) as cluster:
        yield cluster


@contextmanager
def _variables_restored() -> Iterator[None]:
    """Leave this process its variables: a nanny sets those of its workers here too, for good."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _refuse_no_shared_memory(workers: int) -> None:
    """Make the semaphores that the nannies will need, which the system keeps in /dev/shm.

    Why: without them a nanny fails in ways that Dask tells by tracebacks.
    """
    context = get_context("spawn")
    try:
        for semaphore in [context.Semaphore() for _ in range(SEMAPHORES_OF_NANNY * workers)]:
            del semaphore
    except OSError as error:
        raise RunError(
            f"Expected shared memory (/dev/shm) that can be written, since processes are started "
            f"through it, but: {error}. Mount it writable, with a megabyte or more; for a "
            f"container `--shm-size` sets its size. Or use a Dask scheduler elsewhere."
        ) from error


def _refuse_no_temporary_folder() -> None:
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise RunError(
            f"Expected a temporary folder that can be written, but: {error.strerror}. Set TMPDIR "
            f"to one."
        ) from error


def _started(machines: Machines) -> LocalCluster | SpecCluster:
    try:
        return _gpu_cluster(machines) if machines.devices else _cpu_cluster(machines)
    except (OSError, RuntimeError) as error:
        why = str(inner_cause(error)).removesuffix(".")
        raise RunError(
            f"Expected {machines.workers} worker(s) to start on this machine, but: {why}. Often "
            f"the machine is short of memory, processes or open files, or the temporary folder "
            f"({tempfile.gettempdir()}; TMPDIR names another) is full."
        ) from error


def _cpu_cluster(machines: Machines) -> LocalCluster:
    return LocalCluster(
        n_workers=machines.workers,
        threads_per_worker=machines.threads,
        processes=True,
        host="127.0.0.1",
        memory_limit=None,
        scheduler_kwargs=NO_DASHBOARD,
    )


def _gpu_cluster(machines: Machines) -> SpecCluster:
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **NO_DASHBOARD}}
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

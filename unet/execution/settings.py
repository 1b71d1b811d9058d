"""Dask's settings for the workers that a run starts."""

from __future__ import annotations

from typing import Any

import dask

RETRIES = 2

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
ENVIRONMENT = "distributed.nanny.pre-spawn-environ"


def own_settings() -> dict[str, Any]:
    """The settings of workers on this machine: those that Dask comes with, and ours.

    Not those of the site (/etc/dask, ~/.config/dask, DASK_*), which are for its clusters: a
    certificate that it wants, a script that it preloads, or a folder that only its nodes have would
    end a run that needs none of them. A worker gets all of them from its nanny.
    """
    settings: dict[str, Any] = {}
    dask.config.refresh(config=settings, paths=[], env={})
    environment = dask.config.get(ENVIRONMENT, config=settings)
    return {
        **settings,
        ENVIRONMENT: {**environment, **QUIET, **KEEP_FREED_MEMORY},
        **END_OF_WAITING,
        **NEVER_DROPPED,
    }

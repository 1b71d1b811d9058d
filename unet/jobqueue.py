"""Workers as jobs of Slurm for as long as one command runs: `python -m unet.jobqueue`.

Why around a command, and no key of the configuration: where blocks are done changes no result, so
no result must be made again for it. And why one set of workers for the whole command: on a cluster
a job may queue for hours. Here each queues once and serves all stages of all images, which find the
workers as they find any that are already there, by DASK_SCHEDULER_ADDRESS.

What a job asks for stands in `jobqueue: slurm:` of Dask's own configuration, which many sites have
and dask-jobqueue reads by itself; workflow/profiles/jobqueue/ holds one to start from.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from dask_jobqueue.slurm import SLURMCluster
from distributed import Security

from unet.console import report_to
from unet.errors import ConfigError, RunError
from unet.execution.pool import END_OF_WAITING, KEEP_FREED_MEMORY, NO_DASHBOARD, QUIET

log = logging.getLogger(__name__)

SECTION = "jobqueue.slurm"
LOGS = Path("logs/jobqueue")
# A worker's status page, which Dask serves whether or not it is wanted.
LOOPBACK_PAGE = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
LOOK_SECONDS = 10.0
# Looks without a worker and without a job until it is an error: a lost job is replaced sooner.
MOST_LOOKS = 6


def main(arguments: list[str] | None = None) -> int:
    """Run a command with workers on Slurm. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m unet.jobqueue", description=__doc__)
    parser.add_argument("--jobs", type=int, required=True, help="how many jobs Slurm is asked for")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as: snakemake --cores 8")
    asked = parser.parse_args(arguments)
    if asked.jobs < 1 or not asked.command:
        parser.error("expected at least one job, and a command to run")
    # The jobs must end with this process, whatever ends it (dask-jobqueue sets a handler too).
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    LOGS.mkdir(parents=True, exist_ok=True)
    with report_to(str(LOGS / "jobqueue.log")), slurm_workers(asked.jobs) as (cluster, environment):
        return _run(asked.command, cluster, environment)


@contextmanager
def slurm_workers(jobs: int) -> Iterator[tuple[SLURMCluster, dict[str, str]]]:
    """A scheduler with `jobs` jobs of workers, and the environment in which stages find it.

    A job that is lost (it died, or reached its time limit) is replaced. The scheduler answers only
    who has the keys of this run: whoever reaches one can run any code as its user.
    """
    if not dask.config.get(f"{SECTION}.cores") or not dask.config.get(f"{SECTION}.memory"):
        raise ConfigError(
            f"Expected `cores` and `memory` of a job in the section {SECTION} of Dask's "
            f"configuration, found none. Copy workflow/profiles/jobqueue/jobqueue.yaml to "
            f"~/.config/dask/ and change it, or name its folder by DASK_CONFIG."
        )
    exports = [f"export {key}={value}" for key, value in (QUIET | KEEP_FREED_MEMORY).items()]
    with (
        _keys() as keys,
        dask.config.set({f"distributed.comm.tls.{key}": path for key, path in keys.items()}),
        dask.config.set(END_OF_WAITING),
        SLURMCluster(
            # One worker a job: it has the job's GPU, and all of its cores.
            processes=dask.config.get(f"{SECTION}.processes") or 1,
            log_directory=dask.config.get(f"{SECTION}.log-directory") or str(LOGS),
            worker_extra_args=[*dask.config.get(f"{SECTION}.worker-extra-args"), *LOOPBACK_PAGE],
            job_script_prologue=[*dask.config.get(f"{SECTION}.job-script-prologue"), *exports],
            scheduler_options=NO_DASHBOARD | dask.config.get(f"{SECTION}.scheduler-options", {}),
            security=Security(require_encryption=True),
        ) as cluster,
    ):
        # Not scale(), which never replaces a lost job.
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        yield (
            cluster,
            {
                "DASK_SCHEDULER_ADDRESS": cluster.scheduler_address,
                # As long as a job is queued or runs its worker may come; _run looks after that.
                "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "365 days",
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": keys["ca-file"],
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": keys["client.cert"],
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": keys["client.key"],
            },
        )


@contextmanager
def _keys() -> Iterator[dict[str, str]]:
    """Files of a certificate made for this run, by their keys in Dask's configuration.

    They lie in the working folder, which the nodes see, and only its user can read them.
    """
    made = Security.temporary()
    folder = Path(tempfile.mkdtemp(prefix=".jobqueue-", dir=Path.cwd()))
    try:
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_text(made.tls_client_cert, encoding="utf-8")
        key.write_text(made.tls_client_key, encoding="utf-8")
        roles = ("scheduler", "worker", "client")
        yield {
            "ca-file": str(certificate),
            **{f"{role}.cert": str(certificate) for role in roles},
            **{f"{role}.key": str(key) for role in roles},
        }
    finally:
        shutil.rmtree(folder)


def _run(command: list[str], cluster: SLURMCluster, environment: dict[str, str]) -> int:
    # A process group of its own: whatever ends this process, it is told once, and all of it.
    process = subprocess.Popen(command, env=os.environ | environment, process_group=0)  # noqa: S603
    idle = 0
    try:
        while True:
            try:
                return process.wait(timeout=LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                idle = idle + 1 if _nothing_left(cluster) else 0
            if idle == MOST_LOOKS:
                raise RunError(
                    f"Expected workers, but every job of Slurm ended and none has a worker. What "
                    f"they said is in {LOGS}: often a Python or a folder that the nodes do not "
                    f"have, or too little memory."
                )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


def _nothing_left(cluster: SLURMCluster) -> bool:
    """Whether there is no worker, and no job that could become one."""
    if cluster.scheduler_info["workers"]:
        return False
    numbers = {job.job_id for job in cluster.workers.values()}
    asked = subprocess.run(  # noqa: S603
        ["squeue", "--noheader", "--format=%i", "--user", getpass.getuser()],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.returncode == 0 and not numbers & set(asked.stdout.split())


if __name__ == "__main__":
    sys.exit(main())

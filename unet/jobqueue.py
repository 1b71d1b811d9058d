"""Workers as jobs of Slurm for as long as one command runs: `python -m unet.jobqueue`.

Why a command, not a key of the configuration: where blocks run changes no result, so it must not
make Snakemake compute a result once more.

Why one set of workers for the whole command: on a cluster a job may queue for hours. Here each job
queues once and serves all stages of all images. The stages find the workers by
DASK_SCHEDULER_ADDRESS, as they find any running cluster.

The resources of a job are in `jobqueue: slurm:` of Dask's own configuration, which many sites have
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
from unet.execution.settings import END_OF_WAITING, KEEP_FREED_MEMORY, NO_DASHBOARD, QUIET

log = logging.getLogger(__name__)

SECTION = "jobqueue.slurm"
LOGS = Path("logs/jobqueue")
# Dask always serves a worker's status page; so it is served to this machine only.
LOOPBACK_PAGE = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
SECONDS_BETWEEN_CHECKS = 10.0
MOST_EMPTY_CHECKS = 6  # without a worker and without a job; a lost job is replaced sooner


def main(arguments: list[str] | None = None) -> int:
    """Run a command with workers on Slurm. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m unet.jobqueue", description=__doc__)
    parser.add_argument("--jobs", type=int, required=True, help="number of jobs on Slurm")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as: snakemake --cores 8")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or not options.command:
        parser.error("expected at least one job, and a command to run")
    # The jobs must end with this process, whatever ends it (dask-jobqueue sets a handler too).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    LOGS.mkdir(parents=True, exist_ok=True)
    log_file = str(LOGS / "jobqueue.log")
    with report_to(log_file), slurm_workers(options.jobs) as (cluster, environment):
        return _run(options.command, cluster, environment)


@contextmanager
def slurm_workers(jobs: int) -> Iterator[tuple[SLURMCluster, dict[str, str]]]:
    """A scheduler with `jobs` jobs of workers, and the environment in which stages find it.

    A lost job (it died, or reached its time limit) is replaced. Only a process with the keys of
    this run can connect to the scheduler, since a client can run any code as the scheduler's user.
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
            # One worker per job: it has the job's GPU, and all of its CPUs.
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
                # While a job is queued or runs, its worker may still come; _run checks that.
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
    security = Security.temporary()
    folder = Path(tempfile.mkdtemp(prefix=".jobqueue-", dir=Path.cwd()))
    try:
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_text(security.tls_client_cert, encoding="utf-8")
        key.write_text(security.tls_client_key, encoding="utf-8")
        roles = ("scheduler", "worker", "client")
        yield {
            "ca-file": str(certificate),
            **{f"{role}.cert": str(certificate) for role in roles},
            **{f"{role}.key": str(key) for role in roles},
        }
    finally:
        shutil.rmtree(folder)


def _run(command: list[str], cluster: SLURMCluster, environment: dict[str, str]) -> int:
    # A process group of its own: when this process ends, one signal reaches the whole group.
    process = subprocess.Popen(command, env=os.environ | environment, process_group=0)  # noqa: S603
    empty_checks = 0
    try:
        while True:
            try:
                return process.wait(timeout=SECONDS_BETWEEN_CHECKS)
            except subprocess.TimeoutExpired:
                empty_checks = empty_checks + 1 if _is_empty(cluster) else 0
            if empty_checks == MOST_EMPTY_CHECKS:
                raise RunError(
                    f"Expected workers, but every job of Slurm ended and none has a worker. Their "
                    f"logs are in {LOGS}. Often the nodes do not have the same Python or folder, "
                    f"or a job has too little memory: correct that, and run again."
                )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


def _is_empty(cluster: SLURMCluster) -> bool:
    """Whether there is no worker, and no job that could become one."""
    if cluster.scheduler_info["workers"]:
        return False
    numbers = {job.job_id for job in cluster.workers.values()}
    squeue = subprocess.run(  # noqa: S603
        ["squeue", "--noheader", "--format=%i", "--user", getpass.getuser()],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return squeue.returncode == 0 and not numbers & set(squeue.stdout.split())


if __name__ == "__main__":
    sys.exit(main())

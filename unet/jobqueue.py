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
from ipaddress import ip_address
from pathlib import Path

import dask
from dask_jobqueue.slurm import SLURMCluster
from distributed import Security, Status
from distributed.comm.addressing import get_address_host

from unet.console import report_to
from unet.errors import ConfigError, RunError, inner_cause
from unet.execution.settings import END_OF_WAITING, KEEP_FREED_MEMORY, NO_DASHBOARD, QUIET

log = logging.getLogger("unet.jobqueue")  # also where it is run, and called __main__

SECTION = "jobqueue.slurm"
PROGRAMS = ("sbatch", "squeue", "scancel")
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
    if shutil.which(options.command[0]) is None:
        parser.error(f"expected a command to run, but there is no program {options.command[0]!r}")
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

    Raises ConfigError or RunError, at once, where Slurm is not there or refuses the jobs.
    """
    _refuse_incomplete_settings()
    with (
        _keys() as keys,
        dask.config.set({f"distributed.comm.tls.{key}": path for key, path in keys.items()}),
        dask.config.set(END_OF_WAITING),
        _scheduler() as cluster,
    ):
        cluster.sync(_submit, cluster, jobs)
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


def _refuse_incomplete_settings() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"Expected the programs of Slurm on the PATH, found no {', '.join(missing)}. Run this "
            f"where jobs are submitted, such as a login node, perhaps after `module load slurm`. "
            f"Without Slurm, leave `python -m unet.jobqueue` out: the run starts its own workers."
        )
    if not dask.config.get(f"{SECTION}.cores") or not dask.config.get(f"{SECTION}.memory"):
        raise ConfigError(
            f"Expected `cores` and `memory` of a job in the section {SECTION} of Dask's "
            f"configuration, found none. Copy workflow/profiles/jobqueue/jobqueue.yaml to "
            f"~/.config/dask/ and change it, or name its folder by DASK_CONFIG."
        )


def _scheduler() -> SLURMCluster:
    """A scheduler without jobs yet. It listens beyond this machine, since its workers are there."""
    exports = [f"export {key}={value}" for key, value in (QUIET | KEEP_FREED_MEMORY).items()]
    try:
        cluster = SLURMCluster(
            # One worker per job: it has the job's GPU, and all of its CPUs.
            processes=dask.config.get(f"{SECTION}.processes") or 1,
            log_directory=dask.config.get(f"{SECTION}.log-directory") or str(LOGS),
            worker_extra_args=[*dask.config.get(f"{SECTION}.worker-extra-args"), *LOOPBACK_PAGE],
            job_script_prologue=[*dask.config.get(f"{SECTION}.job-script-prologue"), *exports],
            scheduler_options=dask.config.get(f"{SECTION}.scheduler-options", {}) | NO_DASHBOARD,
            security=Security(require_encryption=True),
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected a scheduler by the section {SECTION} of Dask's configuration, but: "
            f"{str(inner_cause(error)).removesuffix('.')}. Correct its keys; `interface` is the "
            f"network that the nodes and this machine share."
        ) from error
    listener = cluster.scheduler.listener  # type: ignore[union-attr]
    if not ip_address(get_address_host(listener.listen_address)).is_loopback:
        log.info(
            "the scheduler %s and its workers listen beyond this machine: only programs with the "
            "keys of this run (TLS) can connect",
            cluster.scheduler_address,
        )
    return cluster


async def _submit(cluster: SLURMCluster, jobs: int) -> None:
    """Submit the first jobs. Raises RunError with the words of sbatch where it refuses one.

    Why not leave that to `adapt`: it only logs a refusal, and tries again for ever.
    """
    for _ in range(jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        await cluster
    except (OSError, RuntimeError) as error:
        # Dask can close only jobs that began or failed, and leaves those that were refused as new.
        for job in cluster.workers.values():
            if job.status is Status.created:
                job.status = Status.failed
        lines = map(str.strip, str(error).rpartition("stderr:")[2].split("\n"))
        said = "; ".join(filter(None, lines)).removesuffix(".") or "without a reason"
        raise RunError(
            f"Expected Slurm to take the jobs, but it refused: {said}. Correct `account`, `queue` "
            f"(the partition) or what else it names in the section {SECTION} of Dask's "
            f"configuration."
        ) from error


@contextmanager
def _keys() -> Iterator[dict[str, str]]:
    """Files of a certificate made for this run, by their keys in Dask's configuration.

    They lie in the working folder, which the nodes see, and only its user can read them.
    """
    security = Security.temporary()
    with tempfile.TemporaryDirectory(prefix=".jobqueue-", dir=Path.cwd()) as folder:
        certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
        certificate.write_text(security.tls_client_cert, encoding="utf-8")
        key.write_text(security.tls_client_key, encoding="utf-8")
        roles = ("scheduler", "worker", "client")
        yield {
            "ca-file": str(certificate),
            **{f"{role}.cert": str(certificate) for role in roles},
            **{f"{role}.key": str(key) for role in roles},
        }


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

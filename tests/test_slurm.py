"""The real Slurm: the profile, placement, jobs that end before their time, workers as jobs.

Skipped where it cannot be started: tests/start-slurm.sh needs root and Slurm's own programs.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import dask
import psutil
import pytest
import tifffile
import yaml
from conftest import REPOSITORY, ModelSpec, files_in, picture
from support import listening, run_stages

from unet import jobqueue
from unet.console import report_to
from unet.errors import ConfigError, RunError
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.sources.base import SourceSpec
from unet.storage.ledger import recorded
from unet.storage.workspace import Workspace

# Each waits for Slurm, which looks at time limits twice a minute, more than it computes.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

START, STOP = (str(REPOSITORY / "tests" / f"{word}-slurm.sh") for word in ("start", "stop"))
SNAKEMAKE = (
    str(Path(sys.executable).with_name("snakemake")),
    *("--snakefile", str(REPOSITORY / "workflow" / "Snakefile")),
)
PROFILE = str(REPOSITORY / "workflow" / "profiles" / "slurm")
Start = Callable[..., "subprocess.Popen[bytes]"]
SMALL_JOB = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB"}
KEYS = {"AWS_SECRET_ACCESS_KEY": "secret/key+of=runs", "AWS_SESSION_TOKEN": "token/of+runs=="}
CUT = {"shard": (64, 64), "chunk": (32, 32)}
ONE_EACH = ("ingest=1", "predict=1", "stitch=1")
# The profile is the one that a user takes. Only here: jobs of seconds are looked at after a
# second, and cores that nodes claim without having them are not used.
IMPATIENT = (
    *("--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "2"),
    *("--set-threads", *ONE_EACH),
)


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.fixture
def slurm(daemons: Path) -> Iterator[Path]:
    """Two nodes of two GPUs, up and idle; the value is the folder of their state."""
    subprocess.run([START, str(daemons)], check=True)
    yield daemons
    shell("scancel", f"--user={getpass.getuser()}")
    wait_until(lambda: not shell("squeue", "--noheader"), "jobs that are cancelled")


@pytest.fixture(scope="module")
def daemons() -> Iterator[Path]:
    """A Slurm of our own, ended after the tests."""
    wanted = ("munged", "slurmctld", "slurmd", "sbatch")
    if missing := [program for program in wanted if shutil.which(program) is None]:
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (see tests/start-slurm.sh)")
    if os.getuid() != 0:
        pytest.skip("no Slurm here: its daemons have to be started as root")
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("no Slurm for tests here: /etc/slurm/slurm.conf is there, so one is in use")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        yield folder
    finally:
        subprocess.run([STOP, str(folder)], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, picture(150, 210))
    return path


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, source: Path, tiny_model: ModelSpec
) -> dict[str, bytes]:
    """The stores of a run of one slab in this machine's own workers."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed") / "image")
    run_stages(SourceSpec(str(source)), tiny_model, workspace, **CUT)
    return stores(workspace)


def stores(workspace: Workspace) -> dict[str, bytes]:
    """Every byte of the probabilities and of the result."""
    (folder,) = (workspace.root / "work").glob("predict-*")
    return {
        **files_in(folder / "probabilities.ome.zarr"),
        **{f"result/{name}": content for name, content in files_in(workspace.result).items()},
    }


def done(workspace: Workspace) -> list[int]:
    """The blocks that were recorded as done, as often as they were."""
    ledgers = workspace.root.glob("work/predict-*/ledger")
    return [block for ledger in ledgers for block, _ in recorded(ledger)]


@pytest.fixture
def workspace(tmp_path: Path, source: Path, tiny_model: ModelSpec) -> Workspace:
    """Where a run of the workflow puts its results, with its configuration beside it."""
    configure(tmp_path, source, tiny_model, "cpu")
    return Workspace(tmp_path / "results" / "image")


def configure(folder: Path, source: Path, model: ModelSpec, device: str) -> None:
    image = {"name": "image", "path": str(source), "model": str(model.folder)}
    config = {
        "images": [image],
        "split": {key: list(value) for key, value in CUT.items()},
        "predict": {"device": device},
    }
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in the test's folder; `environment` goes to its jobs too."""
    started = []

    def run(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        dropped = ("PYTHONWARNINGS", "SNAKEMAKE_PROFILE", "DASK_SCHEDULER_ADDRESS")
        environ = {key: value for key, value in os.environ.items() if key not in dropped}
        path = [environment.pop("PYTHONPATH", ""), str(REPOSITORY), environ.get("PYTHONPATH", "")]
        environ |= {"XDG_CACHE_HOME": str(tmp_path / ".cache"), **KEYS, **environment}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        with (tmp_path / "said.log").open("a") as log:
            started.append(
                subprocess.Popen(
                    command, cwd=tmp_path, env=environ, stdout=log, stderr=subprocess.STDOUT
                )
            )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()


def finished(run: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for a run, and return what it said. No file that it leaves may hold its keys."""
    status = run.wait(timeout=600)
    said = (folder / "said.log").read_text()
    assert status == 0, said
    for name, content in files_in(folder).items():
        assert not [key for key in KEYS.values() if key.encode() in content], name
    return said


def jobs() -> dict[str, tuple[str, str]]:
    """The slabs that Slurm predicts at the moment: its number and node of each."""
    lines = shell("squeue", "--noheader", "--states=running", "--format=%i %N %k").splitlines()
    found = {}
    for line in lines:
        number, node, comment = line.split(maxsplit=2)
        if slab := re.search(r"(\d)-of-\d", comment):
            found[slab[1]] = (number, node)
    return found


def cut_power(slurm: Path, node: str) -> None:
    """A node's daemon and all that it started are gone at once, and nobody says so."""
    mine = [number for number, on in jobs().values() if on == node]
    os.kill(int((slurm / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    for process in psutil.process_iter(["cmdline"]):
        step = re.match(r"slurmstepd: \[(\d+)\.", " ".join(process.info["cmdline"] or ()))
        if step and step[1] in mine:
            # The step first, or it would report the end of the rest.
            for started in [process, *process.children(recursive=True)]:
                started.kill()


def test_four_slabs_have_a_gpu_each_and_outlive_what_slurm_does_to_jobs(
    slurm: Path,
    start: Start,
    workspace: Workspace,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """scancel, the time limit, and a node that is lost, each while a block is written."""
    hold = tmp_path / "hold"
    hold.mkdir()
    # The middle one of each slab's three blocks; the grid is 3 x 4.
    shards = {"1": "0-1", "2": "1-0", "3": "1-3", "4": "2-2"}
    for shard in shards.values():
        (hold / shard).touch()
    run = start(
        *(*SNAKEMAKE, "--workflow-profile", PROFILE, "--set-scatter", "slab=4", *IMPATIENT),
        HOLD=str(hold),
        PYTHONPATH=str(REPOSITORY / "tests" / "hold"),
    )

    wait_until(
        lambda: run.poll() is not None or len(done(workspace)) == 8, "two blocks of each slab"
    )
    assert run.poll() is None, (tmp_path / "said.log").read_text()
    wait_until(lambda: len(list(hold.glob("*.held"))) == 4, "four blocks that are written")
    assert len(list(workspace.root.rglob("*.partial"))) == 4

    running = jobs()
    given = {
        (node, device_given(tmp_path / "logs/image" / f"predict-{slab}-of-4.log"))
        for slab, (_, node) in running.items()
    }
    assert given == {("node1", "0"), ("node1", "1"), ("node2", "0"), ("node2", "1")}

    (cancelled, out_of_time) = sorted(
        number for number, node in running.values() if node == "node1"
    )
    shell("scontrol", "update", f"jobid={out_of_time}", "EndTime=now")
    shell("scancel", cancelled)
    cut_power(slurm, "node2")
    numbers = {number for number, _ in running.values()}
    wait_until(lambda: not numbers & {number for number, _ in jobs().values()}, "four lost jobs")
    for shard in shards.values():
        (hold / shard).unlink()
    said = finished(run, tmp_path)
    assert states(*numbers) == ["CANCELLED", "NODE_FAIL", "NODE_FAIL", "TIMEOUT"]
    assert said.count("Trying to restart job") == 4
    assert stores(workspace) == undisturbed
    assert sorted(done(workspace)) == list(range(12)), "a finished block was computed again"
    for slab in shards:
        log = (tmp_path / "logs/image" / f"predict-{slab}-of-4.log").read_text()
        assert "2 of 3 blocks were done before" in log
    assert not list(workspace.root.rglob("*.partial"))


def device_given(log: Path) -> str:
    """What a job said of its devices."""
    (given,) = re.findall(r"CUDA_VISIBLE_DEVICES: (.+)\)", log.read_text())
    return given


def workers() -> list[str]:
    """Numbers of the jobs of workers that run at the moment."""
    return shell(
        "squeue", "--noheader", "--states=running", "--name=dask-worker", "--format=%i"
    ).split()


@pytest.mark.usefixtures("slurm")
def test_workers_as_jobs_come_late_die_and_reach_their_time_limit(
    start: Start,
    workspace: Workspace,
    source: Path,
    tiny_model: ModelSpec,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Two slabs share the workers at the same time; then one slab has them for itself."""
    again = tmp_path / "again"
    again.mkdir()
    configure(again, source, tiny_model, "cpu")
    # Three of the four GPUs are not free at first.
    others = ("--job-name=others", "--output=/dev/null", "--mem=100", "--wrap=sleep 600")
    for gpus in ("1", "2"):
        shell("sbatch", f"--gpus={gpus}", *others)
    hold = tmp_path / "hold"
    hold.mkdir()
    for shard in ("0-1", "1-3"):  # one block of each slab
        (hold / shard).touch()
    snakemake = shlex.join([*SNAKEMAKE, "--cores", "2", "--set-threads", *ONE_EACH])
    run = start(
        *(sys.executable, "-m", "unet.jobqueue", "--jobs", "2", "sh", "-c"),
        f"{snakemake} --set-scatter slab=2 && {snakemake} --directory again",
        HOLD=str(hold),
        PYTHONPATH=str(REPOSITORY / "tests" / "hold"),
        DASK_CONFIG=str(REPOSITORY / "workflow" / "profiles" / "jobqueue"),
        DASK_JOBQUEUE__SLURM__INTERFACE="lo",
        DASK_JOBQUEUE__SLURM__CORES="2",
    )
    wait_until(lambda: run.poll() is not None or len(list(hold.glob("*.held"))) == 2, "two blocks")
    assert run.poll() is None, (tmp_path / "said.log").read_text()
    (first,) = workers()
    shell("scancel", "--name=others")
    wait_until(lambda: len(workers()) == 2, "a worker that comes late")
    (second,) = {*workers()} - {first}
    shell("scontrol", "update", f"jobid={second}", "EndTime=now")
    shell("scancel", first)
    wait_until(lambda: not {first, second} & {*workers()}, "two lost workers")
    for shard in ("0-1", "1-3"):
        (hold / shard).unlink()
    finished(run, tmp_path)
    assert states(first, second) == ["CANCELLED", "TIMEOUT"]
    assert stores(workspace) == undisturbed
    assert sorted(done(workspace)) == list(range(12))
    assert stores(Workspace(again / "results" / "image")) == undisturbed
    wait_until(lambda: not shell("squeue", "--noheader"), "no job that outlives its command")
    assert not list(tmp_path.glob(".jobqueue-*"))


REFUSED = {
    "a partition that is not there": ("queue", "nosuch", "Invalid partition name"),
    "a time that is none": ("walltime", "soon", "Invalid --time"),
    "a device that is not there": ("job-extra-directives", ["--gres=none:1"], "generic resource"),
}


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("name", REFUSED)
def test_jobs_that_slurm_refuses_are_told_in_its_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, value, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    with (
        dask.config.set(SMALL_JOB | {f"jobqueue.slurm.{key}": value}),
        pytest.raises(RunError, match=rf"it refused: sbatch: .*{words}.*jobqueue\.slurm"),
        jobqueue.slurm_workers(2),
    ):
        pass
    assert time.monotonic() - begin < 30
    assert not list(tmp_path.glob(".jobqueue-*"))
    wait_until(lambda: not shell("squeue", "--noheader"), "no job that was taken")


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("interface", ["lo", None])
def test_what_listens_beyond_this_machine_has_tls_and_is_said(
    interface: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    site = {
        "jobqueue.slurm.interface": interface,
        "jobqueue.slurm.scheduler-options": {"dashboard": True, "dashboard_address": ":0"},
    }
    without_keys = {"distributed.comm.tls.ca-file": None}
    with (
        report_to(str(tmp_path / "log")),
        dask.config.set(SMALL_JOB | site),
        jobqueue.slurm_workers(1) as (cluster, _),
    ):
        cluster.wait_for_workers(1)
        with cluster.get_client() as client:
            (worker,) = client.run(os.getpid).values()
        ((address, described),) = cluster.scheduler_info["workers"].items()
        found = listening() | listening(psutil.Process(worker).parent())
        contacts = {cluster.scheduler_address, address, described["nanny"]}
        with (
            dask.config.set(without_keys),
            pytest.raises(ConfigError, match="Expected TLS keys"),
            connect(Machines.for_data(cluster.scheduler_address, 1)),
        ):
            pass
    assert all(contact.startswith("tls://") for contact in contacts)
    beyond = {port for _, ip, port in found if not ip_address(ip).is_loopback}
    assert beyond == (set() if interface else {int(each.rpartition(":")[2]) for each in contacts})
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert ("listen beyond this machine" in said) == (interface is None)


def states(*numbers: str) -> list[str]:
    """How jobs ended."""
    listed = ("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={','.join(numbers)}")
    return sorted(shell(*listed).split())


@pytest.mark.usefixtures("slurm")
def test_a_job_of_two_gpus_has_a_worker_for_each_and_never_takes_the_cpu_instead() -> None:
    code = """if True:
        import os
        from unet.execution.machines import Machines
        from unet.execution.pool import connect
        from unet.errors import DeviceError
        from unet.network.devices import choose_devices

        given = tuple(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        if __name__ == "__main__":
            with connect(Machines.for_network(None, given, 2)) as workers:
                seen = workers.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
            print(given, sorted(seen.values()))
            try:
                choose_devices("auto", len(given))
            except DeviceError as error:
                print(error)
    """
    said = shell("srun", "--quiet", "--gpus=2", "--nodes=1", sys.executable, "-c", code)
    assert "('0', '1') ['0', '1']" in said
    # The GPUs are links to /dev/null, so torch finds none.
    assert "Expected 2 GPU(s), as asked for, and found none" in said

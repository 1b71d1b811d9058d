"""Faults, injected on purpose into real stages: what is left is byte for byte an undisturbed run's.

Kills come at random moments of seeded sequences: whole groups of processes by SIGKILL, again and
again within one run, at four moments of each stage, or as many as `pytest --kills` says. What was
recorded as done is never done again, which the ledgers show, since a block that is done twice is
recorded twice.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import tifffile
import yaml
from conftest import REPOSITORY, ModelMaker, files_in, picture
from support import GENEROUS, ONE_CORE
from test_errors import small_disk

from unet.errors import DeviceError, RunError, SourceError, WorkerError, to_user_error
from unet.execution import dispatch, pool, settings
from unet.execution.dispatch import dispatch as hand_out
from unet.execution.machines import Machines
from unet.model.folder import ModelSpec
from unet.planning import layout
from unet.planning.options import SplitOptions, StitchOptions
from unet.planning.result_layout import FOLDERS, MASK
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.storage import disk_space
from unet.storage.ledger import recorded
from unet.storage.locks import lock_file
from unet.storage.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BLOCK = 16
BLOCKS_A_KILL = 25  # so that some are always left to be killed in
SMALL_BLOCKS = SplitOptions(
    memory=GENEROUS, shard=(BLOCK, BLOCK), chunk=(BLOCK, BLOCK), core=(BLOCK, BLOCK)
)
TWO_CORES = Machines.for_data(None, 2)
STAGES = ("ingest", "predict", "stitch")
LEDGERS = {
    "ingest": "work/ingest-*/ledger",
    "predict": "work/predict-*/ledger",
    "stitch": "work/stitch-*/ledger/mask/0",
}


@dataclass(frozen=True)
class Case:
    """An image and a model, and the folder of an undisturbed run.

    side   of the image, in blocks
    kills  how often each stage is killed
    """

    source: SourceSpec
    model: Path
    workspace: Workspace
    side: int
    kills: int

    @property
    def blocks(self) -> int:
        return self.side**2


def run_stage(name: str, case: Case, workspace: Workspace, machines: Machines) -> None:
    """A stage as its script calls it, but that ingest too has many blocks of a small image."""
    ingest.BLOCK_PIXELS, layout.CHUNK = BLOCK * BLOCK, BLOCK
    if name == "ingest":
        ingest.run(case.source, workspace, machines)
    elif name == "split":
        split.run(workspace, str(case.model), SMALL_BLOCKS, slabs=1)
    elif name == "predict":
        predict.run(workspace, 0, 1, machines, "cpu")
    else:
        stitch.run(workspace, StitchOptions(), machines)


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: ModelSpec,
    machines: Machines,
    pytestconfig: pytest.Config,
) -> Iterator[Case]:
    folder, kills = tmp_path_factory.mktemp("faults"), pytestconfig.getoption("kills")
    side = math.isqrt(BLOCKS_A_KILL * kills - 1) + 1
    pixels = picture(side * BLOCK, side * BLOCK)
    tifffile.imwrite(folder / "image.tif", pixels, tile=(BLOCK, BLOCK))
    workspace = Workspace(folder / "image")
    found = Case(SourceSpec(str(folder / "image.tif")), tiny_model.folder, workspace, side, kills)
    with pytest.MonkeyPatch.context() as restored:
        restored.setattr(ingest, "BLOCK_PIXELS", ingest.BLOCK_PIXELS)
        restored.setattr(layout, "CHUNK", layout.CHUNK)
        for stage in ("ingest", "split", "predict", "stitch"):
            run_stage(stage, found, workspace, machines)
        yield found


def stores(workspace: Workspace) -> dict[str, bytes]:
    """Every byte of the image's copy, the probabilities and the result."""
    return {
        f"{folder.name}/{name}": content
        for pattern in ("work/*/*.ome.zarr", "*.ome.zarr")
        for folder in sorted(workspace.root.glob(pattern))
        for name, content in files_in(folder).items()
    }


def times_done(workspace: Workspace, stage: str) -> Counter[int]:
    return Counter(
        block for folder in workspace.root.glob(LEDGERS[stage]) for block, _ in recorded(folder)
    )


def assert_undisturbed(workspace: Workspace, case: Case) -> None:
    assert stores(workspace) == stores(case.workspace)
    assert not list(workspace.root.rglob("*.partial"))
    for stage in STAGES:
        found = times_done(workspace, stage)
        assert found == times_done(case.workspace, stage), (
            f"{stage}: a finished block was done again"
        )
        assert set(found.values()) == {1}


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool]) -> None:
    while not happened():
        assert alive(), "the stage ended before it could be disturbed"
        time.sleep(0.002)


class Moments:
    """Random moments of a stage, by how many blocks are done: each a few more than the last."""

    def __init__(self, seed: str, most_blocks: int) -> None:
        self._draw, self._most = random.Random(seed), most_blocks

    def wait(self, workspace: Workspace, stage: str, alive: Callable[[], bool]) -> None:
        wanted = sum(times_done(workspace, stage).values()) + self._draw.randint(1, self._most)
        wait_until(lambda: sum(times_done(workspace, stage).values()) >= wanted, alive)
        time.sleep(self._draw.uniform(0, 0.02))


def workers_of(pid: int, but: set[int]) -> list[psutil.Process]:
    """The worker processes that a process started."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # it ended since
            if child.pid not in but and "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_killed_workers(case: Case, tmp_path: Path) -> None:
    """SIGKILL of a worker, again and again, in each stage: others are started and go on."""
    workspace = Workspace(tmp_path / "image")
    others = {child.pid for child in psutil.Process().children()}
    for stage in ("ingest", "split", "predict", "stitch"):
        running = threading.Thread(target=run_stage, args=(stage, case, workspace, TWO_CORES))
        running.start()
        moments = Moments(f"worker {stage}", most_blocks=12)
        for _ in range(case.kills if stage in STAGES else 0):
            moments.wait(workspace, stage, running.is_alive)
            while not (found := workers_of(os.getpid(), others)):
                assert running.is_alive(), "the stage ended before it could be disturbed"
            found[0].kill()
        running.join()
    assert_undisturbed(workspace, case)


def test_killed_stages(case: Case, tmp_path: Path) -> None:
    """SIGKILL of a stage's process, in which its scheduler lives, again and again in each."""
    workspace = Workspace(tmp_path / "image")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_faults"])
    for stage in ("ingest", "split", "predict", "stitch"):
        arguments = (stage, case, workspace, ONE_CORE)
        moments = Moments(f"stage {stage}", most_blocks=12)
        for _ in range(case.kills if stage in STAGES else 0):
            running = context.Process(target=run_stage, args=arguments)
            running.start()
            moments.wait(workspace, stage, running.is_alive)
            workers = workers_of(running.pid, but=set())
            running.kill()
            running.join()
            psutil.wait_procs(workers, timeout=30)
            assert not [worker for worker in workers if worker.is_running()], "a worker stayed"
        running = context.Process(target=run_stage, args=arguments)
        running.start()
        running.join()
        assert running.exitcode == 0
    assert_undisturbed(workspace, case)


def test_killed_workflows(case: Case, tmp_path: Path) -> None:
    """SIGKILL of Snakemake and all that it started, again and again in each stage."""
    config = {
        "images": [{"name": "image", "path": case.source.path, "model": str(case.model)}],
        "split": {key: [BLOCK, BLOCK] for key in ("shard", "chunk", "core")},
        "predict": {"device": "cpu"},
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        *("--snakefile", str(REPOSITORY / "workflow" / "Snakefile"), "--cores", "1"),
        *("--directory", str(tmp_path), "--rerun-incomplete", "--nolock", "--quiet"),
    ]
    workspace = Workspace(tmp_path / "results" / "image")
    draw, log = random.Random("workflow"), tmp_path / "logs" / "image" / "ingest.log"
    for stage in STAGES:
        moments = Moments(f"workflow {stage}", most_blocks=18)
        for _ in range(case.kills):
            running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)

            def alive(running: subprocess.Popen[bytes] = running) -> bool:
                return running.poll() is None

            if stage == "ingest":  # which has one block here: a moment while it runs
                wait_until(log.exists, alive)
                time.sleep(draw.uniform(0, 0.6))
            else:
                moments.wait(workspace, stage, alive)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            if stage == "ingest":
                assert not workspace.manifest("ingest").exists(), (
                    "ingest ended before it was killed"
                )
                log.unlink()
    subprocess.run(command, check=True, capture_output=True)
    probabilities = {n: c for n, c in stores(workspace).items() if n.startswith("probabilities")}
    expected = {n: c for n, c in stores(case.workspace).items() if n.startswith("probabilities")}
    assert probabilities == expected
    masks = [files_in(each.result / FOLDERS[MASK] / "0") for each in (workspace, case.workspace)]
    assert masks[0] == masks[1]
    assert set(times_done(workspace, "predict").values()) == {1}
    assert not list(workspace.root.rglob("*.partial"))


# --- Workers that are wrong, hang, or cannot start ------------------------------------------------


@dataclass(frozen=True)
class Faulty:
    """A job whose blocks say their number, after what `fault` does in its worker."""

    name: str
    folder: Path
    fault: str

    def open(self) -> Callable[[int], int]:
        if self.fault == "dies":
            os._exit(1)
        if self.fault == "wrong" or (self.fault == "one wrong" and self.first("open")):
            raise WorkerError("Expected other numbers.")
        if self.fault == "one blind" and self.first("open"):
            raise DeviceError("Expected a GPU.")
        self.refuse_if_broken()
        return self.do

    def do(self, block: int) -> int:
        if block == 3 and (self.fault == "hangs" or (self.fault == "hangs once" and self.first())):
            time.sleep(600)
        if block == 3 and self.fault == "slow":
            time.sleep(3)
        if block == 3 and self.fault == "quota":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        if block in (3, 5) and self.fault == "bad input":
            raise SourceError(f"Expected another block than {block}.")
        if self.fault == "breaks" and block == 3 and self.first():
            os.environ["BROKEN"] = "yes"
        self.refuse_if_broken()
        return block

    def refuse_if_broken(self) -> None:
        """As a process whose CUDA context is broken: at once and for good."""
        if os.environ.get("BROKEN"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def first(self, what: str = "hung") -> bool:
        """Whether no worker came here before."""
        try:
            (self.folder / what).open("x").close()
        except FileExistsError:
            return False
        return True


def do_blocks(
    job: Faulty, count: int, machines: Machines = ONE_CORE, limit: float | None = None
) -> list[int]:
    done: list[int] = []
    with pool.connect(machines) as workers:
        hand_out(workers.client, job, iter(range(count)), lambda b, _: done.append(b), 6, limit)
    return done


def test_a_worker_that_hangs_is_replaced_and_its_block_done_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = do_blocks(Faulty("job", tmp_path, "hangs once"), 40, limit=2)
    assert sorted(done) == list(range(40))
    assert "a worker is replaced: block 3 took longer than 2 s" in caplog.text


def test_a_worker_that_is_slow_to_start_again_is_not_given_up(tmp_path: Path) -> None:
    """As where torch is imported from a busy file system: by Dask's own settings after 15 s."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "10 ms"}):
        done = do_blocks(Faulty("job", tmp_path, "hangs once"), 40, limit=1)
    assert sorted(done) == list(range(40))


def test_a_block_that_always_hangs_is_named_and_the_others_finish(tmp_path: Path) -> None:
    done: list[int] = []
    job = Faulty("job", tmp_path, "hangs")
    with (
        pool.connect(ONE_CORE) as workers,
        pytest.raises(RunError, match=r"block 3: each worker that tried it died, or took too long"),
    ):
        hand_out(workers.client, job, iter(range(20)), lambda b, _: done.append(b), 2, 1)
    assert sorted(done) == [block for block in range(20) if block != 3]


def test_a_stopped_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: it answers nothing more, and no watchdog in it runs."""
    monkeypatch.setitem(settings.END_OF_WAITING, "distributed.scheduler.worker-ttl", 2)
    stopped: list[int] = []
    done: list[int] = []

    def hear(block: int, _: Any) -> None:
        done.append(block)
        if not stopped:
            stopped.extend(workers.client.run(os.getpid).values())
            os.kill(stopped[0], signal.SIGSTOP)

    with pool.connect(ONE_CORE) as workers:
        hand_out(workers.client, Faulty("job", tmp_path, "none"), iter(range(40)), hear, 4)
    assert sorted(done) == list(range(40))
    assert not psutil.pid_exists(stopped[0])


def test_a_slow_block_delays_no_other(tmp_path: Path) -> None:
    assert do_blocks(Faulty("job", tmp_path, "slow"), 40)[-1] == 3


def test_a_worker_that_computes_something_else_is_sent_away(tmp_path: Path) -> None:
    done = do_blocks(Faulty("job", tmp_path, "one wrong"), 20, TWO_CORES)
    assert sorted(done) == list(range(20))


def test_a_worker_without_a_gpu_is_sent_away_where_one_was_asked_for(tmp_path: Path) -> None:
    assert sorted(do_blocks(Faulty("job", tmp_path, "one blind"), 20, TWO_CORES)) == [*range(20)]
    (tmp_path / "open").unlink()
    with pytest.raises(DeviceError, match=r"Expected a GPU"):
        do_blocks(Faulty("job", tmp_path, "one blind"), 20)


def test_a_worker_that_breaks_is_replaced_and_fails_no_other_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = do_blocks(Faulty("job", tmp_path, "breaks"), 60, TWO_CORES)
    assert sorted(done) == list(range(60))
    assert "a worker is replaced: it failed in a block, and now before one: CUDA" in caplog.text


def test_a_run_ends_where_every_worker_computes_something_else(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="other numbers"):
        do_blocks(Faulty("job", tmp_path, "wrong"), 20)


def test_workers_that_die_at_their_start_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "OWN_PATIENCE_SECONDS", 10)
    with pytest.raises(RunError, match="each worker that tried it died"):
        do_blocks(Faulty("job", tmp_path, "dies"), 20)


def test_no_worker_is_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "OWN_PATIENCE_SECONDS", 1)
    with pool.connect(ONE_CORE) as workers:
        workers.client.retire_workers(close_workers=True)
        with pytest.raises(RunError, match="at least one worker, but for 1 s there was none"):
            hand_out(workers.client, Faulty("job", tmp_path, ""), iter([1]), lambda *_: None, 4)


def test_bad_input_in_some_blocks_is_named_and_the_others_finish(
    machines: Machines, tmp_path: Path
) -> None:
    done: list[int] = []
    job = Faulty("job", tmp_path, "bad input")
    with (
        pool.connect(machines) as workers,
        pytest.raises(SourceError, match=r"another block than 3.* Also failed: blocks 5\."),
    ):
        hand_out(workers.client, job, iter(range(20)), lambda b, _: done.append(b), 1)
    assert sorted(done) == [block for block in range(20) if block not in (3, 5)]


def test_a_lost_scheduler_is_told(case: Case, tmp_path: Path) -> None:
    """SIGKILL of a scheduler that was there before; with another the run goes on."""
    workspace = Workspace(tmp_path / "image")
    shutil.copytree(case.workspace.root, workspace.root)
    shutil.rmtree(next((workspace.root / "work").glob("predict-*")))
    # The shared workers made the copy's plan; only the paths in its manifest have to be its own.
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        with started_scheduler(tmp_path) as (scheduler, address):
            machines = Machines.for_network(address, (), 1)
            killer = threading.Thread(target=kill_when_some_are_done, args=(workspace, scheduler))
            killer.start()
            with pytest.raises(RunError, match="Dask scheduler to stay"):
                run_stage("predict", case, workspace, machines)
            killer.join()
        already = times_done(workspace, "predict")
        assert 0 < len(already) < case.blocks
        with started_scheduler(tmp_path) as (_, address):
            run_stage("predict", case, workspace, Machines.for_network(address, (), 1))
    assert set(times_done(workspace, "predict").values()) == {1}
    (found,) = (workspace.root / "work").glob("predict-*/probabilities.ome.zarr")
    (expected,) = (case.workspace.root / "work").glob("predict-*/probabilities.ome.zarr")
    assert files_in(found) == files_in(expected)


def kill_when_some_are_done(workspace: Workspace, scheduler: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: len(times_done(workspace, "predict")) > 5, lambda: scheduler.poll() is None)
    scheduler.kill()


@contextmanager
def started_scheduler(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Dask scheduler and a worker as one starts them by hand, and its address."""
    said = folder / "scheduler.json"
    said.unlink(missing_ok=True)
    dask_command = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*dask_command, "scheduler", *options, "--scheduler-file", str(said)], **quiet
    )
    options = ["--host", "127.0.0.1", "--nthreads", "2", "--no-dashboard", "--death-timeout", "20"]
    worker = subprocess.Popen(
        [*dask_command, "worker", *options, "--scheduler-file", str(said)], **quiet
    )
    try:
        wait_until(lambda: said.exists() and said.stat().st_size > 0, lambda: worker.poll() is None)
        yield scheduler, yaml.safe_load(said.read_text())["address"]
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


# --- Two runs at once -----------------------------------------------------------------------------


def claim_elsewhere(workspace: Workspace, blocks: str = "None") -> subprocess.Popen[str]:
    """Another process that works on an image, or on some of its blocks."""
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from unet.storage.workspace import Workspace
        with Workspace(Path({str(workspace.root)!r})).lock({blocks}):
            print("claimed", flush=True)
            time.sleep(600)"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "claimed\n"
    return other


def test_a_second_run_of_an_output_is_refused(
    case: Case, machines: Machines, tmp_path: Path
) -> None:
    """Also by a process that its killed Snakemake left behind; it is free when that has ended."""
    workspace = Workspace(tmp_path / "image")
    shutil.copytree(case.workspace.root, workspace.root)
    before = files_in(workspace.root)
    with claim_elsewhere(workspace, f"range({case.blocks - 20}, {case.blocks})") as other:
        for stage in ("ingest", "split", "predict", "stitch"):
            with pytest.raises(RunError, match=r"no other run of .*image, but a process is"):
                run_stage(stage, case, workspace, machines)
        assert files_in(workspace.root) == before
        with workspace.lock(range(case.blocks - 20)):
            pass  # the other slabs of a run do not exclude each other
        other.kill()
        other.wait()
        run_stage("stitch", case, workspace, machines)


# --- Room -----------------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_written(
    case: Case, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "image")
    shutil.copytree(case.workspace.root, workspace.root)
    shutil.rmtree(next((workspace.root / "work").glob("predict-*")))
    free = case.blocks * BLOCK * BLOCK - 1  # less than a quarter of the probabilities
    monkeypatch.setattr(
        disk_space.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free)
    )
    for stage in ("split", "predict"):
        with pytest.raises(
            RunError,
            match=r"need [1-9][\d.]* kB before they are compressed, and .* has [1-9][\d.]* kB",
        ):
            run_stage(stage, case, workspace, machines)
    assert not times_done(workspace, "predict")


def test_a_disk_that_becomes_read_only(case: Case, machines: Machines, tmp_path: Path) -> None:
    """As a file system does that found an error in itself; nothing is lost when it is mended."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "16m"):
        workspace = Workspace(disk / "image")
        run_stage("ingest", case, workspace, machines)
        run_stage("split", case, workspace, machines)
        before = files_in(workspace.root)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OSError, match="Read-only") as raised:
            run_stage("predict", case, workspace, machines)
        assert re.search("allowed to write", str(to_user_error(raised.value)))
        assert files_in(workspace.root) == before
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        run_stage("predict", case, workspace, machines)
        run_stage("stitch", case, workspace, machines)
        assert_undisturbed(workspace, case)


def test_a_quota_ends_the_run_as_a_full_disk_does(machines: Machines, tmp_path: Path) -> None:
    job = Faulty("job", tmp_path, "quota")
    with (
        pool.connect(machines) as workers,
        pytest.raises(
            RunError, match=r"free space on the disk.*quota exceeded.* What was done is kept"
        ),
    ):
        hand_out(workers.client, job, iter(range(20)), lambda *_: None, 4)


# --- What changed ---------------------------------------------------------------------------------


def test_only_what_depends_on_a_change_is_made_again(
    case: Case, machines: Machines, make_model: ModelMaker, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "image")
    shutil.copytree(case.workspace.root, workspace.root)
    work = workspace.root / "work"

    def kept(stage: str) -> list[tuple[Path, int]]:
        files = [path for path in work.glob(f"{stage}-*/*.ome.zarr/0/c/**/*") if path.is_file()]
        return [(path, path.stat().st_ino) for path in sorted(files)]

    copied, predicted = kept("ingest"), kept("predict")
    stitch.run(workspace, StitchOptions(threshold=0.4), machines)
    assert (kept("ingest"), kept("predict")) == (copied, predicted)
    split.run(workspace, str(make_model(seed=7).folder), SMALL_BLOCKS, slabs=1)
    run_stage("predict", replace(case, model=case.model), workspace, machines)
    assert kept("ingest") == copied
    assert set(predicted) < set(kept("predict"))


def test_a_claim_is_free_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    """A slab without blocks: byte 0 for no bytes would mean the whole file."""
    with lock_file(tmp_path / "work" / "lock", range(5, 5)):
        assert not (tmp_path / "work").exists()

"""Faults, injected on purpose into real stages: what is left is byte for byte an undisturbed run's.

Kills come at random moments of seeded sequences: whole groups of processes by SIGKILL, again and
again within one run. What was recorded as done is never done again, which the ledgers show, since a
block that is done twice is recorded twice.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tifffile
import yaml
from conftest import REPOSITORY, files_in, picture
from support import GENEROUS, ONE_CORE

from unet.cluster import Machines
from unet.ledger import recorded
from unet.model_folder import ModelSpec
from unet.plan import Request
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, split, stitch
from unet.workspace import Workspace

KILLS = 10
SIDE, BLOCK = 384, 16  # 576 blocks, so that some are always left to be killed in
SMALL_BLOCKS = Request(
    memory=GENEROUS, shard=(BLOCK, BLOCK), chunk=(BLOCK, BLOCK), core=(BLOCK, BLOCK)
)
TWO_CORES = Machines.for_data(None, 2)
STAGES = ("ingest", "predict", "stitch")
LEDGERS = {
    "ingest": "work/ingest-*/ledger",
    "predict": "work/predict-*/ledger",
    "stitch": "work/stitch-*/ledgers/mask/0",
}


@dataclass(frozen=True)
class Case:
    """An image and a model, and the folder of an undisturbed run."""

    source: SourceSpec
    model: Path
    place: Workspace


def run_stage(name: str, case: Case, place: Workspace, machines: Machines) -> None:
    """A stage as its script calls it, but that ingest too has many blocks of a small image."""
    ingest.BLOCK_PIXELS = BLOCK * BLOCK
    if name == "ingest":
        ingest.run(case.source, place, machines)
    elif name == "split":
        split.run(place, str(case.model), SMALL_BLOCKS, slabs=1)
    elif name == "predict":
        predict.run(place, 0, 1, machines, "cpu")
    else:
        stitch.run(place, stitch.Choice(), machines)


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelSpec, machines: Machines
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("faults")
    tifffile.imwrite(folder / "image.tif", picture(SIDE, SIDE), tile=(BLOCK, BLOCK))
    place = Workspace(folder / "image")
    found = Case(SourceSpec(str(folder / "image.tif")), tiny_model.folder, place)
    before = ingest.BLOCK_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet.layout.CHUNK", BLOCK)  # so that the copy's chunks are small too
        for stage in ("ingest", "split", "predict", "stitch"):
            run_stage(stage, found, place, machines)
        yield found
    ingest.BLOCK_PIXELS = before


def stores(place: Workspace) -> dict[str, bytes]:
    """Every byte of the image's copy, the probabilities and the result."""
    return {
        f"{folder.name}/{name}": content
        for pattern in ("work/*/*.ome.zarr", "*.ome.zarr")
        for folder in sorted(place.root.glob(pattern))
        for name, content in files_in(folder).items()
    }


def times_done(place: Workspace, stage: str) -> Counter[int]:
    return Counter(
        block for folder in place.root.glob(LEDGERS[stage]) for block, _ in recorded(folder)
    )


def assert_undisturbed(place: Workspace, case: Case) -> None:
    assert stores(place) == stores(case.place)
    assert not list(place.root.rglob("*.partial"))
    for stage in STAGES:
        found = times_done(place, stage)
        assert found == times_done(case.place, stage), f"{stage}: a finished block was done again"
        assert set(found.values()) == {1}


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool]) -> None:
    while not happened():
        assert alive(), "the stage ended before it could be disturbed"
        time.sleep(0.002)


class Moments:
    """Random moments of a stage, by how many blocks are done: each a few more than the last."""

    def __init__(self, seed: str, most_blocks: int) -> None:
        self._draw, self._most = random.Random(seed), most_blocks

    def wait(self, place: Workspace, stage: str, alive: Callable[[], bool]) -> None:
        wanted = sum(times_done(place, stage).values()) + self._draw.randint(1, self._most)
        wait_until(lambda: sum(times_done(place, stage).values()) >= wanted, alive)
        time.sleep(self._draw.uniform(0, 0.02))


def workers_of(pid: int, but: set[int]) -> list[psutil.Process]:
    """The worker processes that a process started."""
    return [
        child
        for child in psutil.Process(pid).children()
        if child.pid not in but and "spawn_main" in " ".join(child.cmdline())
    ]


def test_killed_workers(case: Case, tmp_path: Path) -> None:
    """SIGKILL of a worker, ten times in each stage: others are started and go on."""
    place = Workspace(tmp_path / "image")
    others = {child.pid for child in psutil.Process().children()}
    for stage in ("ingest", "split", "predict", "stitch"):
        running = threading.Thread(target=run_stage, args=(stage, case, place, TWO_CORES))
        running.start()
        moments = Moments(f"worker {stage}", most_blocks=20)
        for _ in range(KILLS if stage in STAGES else 0):
            moments.wait(place, stage, running.is_alive)
            wait_until(lambda: bool(workers_of(os.getpid(), others)), running.is_alive)
            for worker in workers_of(os.getpid(), others)[:1]:
                worker.kill()
        running.join()
    assert_undisturbed(place, case)


def test_killed_stages(case: Case, tmp_path: Path) -> None:
    """SIGKILL of a stage's process, in which its scheduler lives, ten times in each stage."""
    place = Workspace(tmp_path / "image")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_faults"])
    for stage in ("ingest", "split", "predict", "stitch"):
        arguments = (stage, case, place, ONE_CORE)
        moments = Moments(f"stage {stage}", most_blocks=20)
        for _ in range(KILLS if stage in STAGES else 0):
            running = context.Process(target=run_stage, args=arguments)
            running.start()
            moments.wait(place, stage, running.is_alive)
            workers = workers_of(running.pid, but=set())
            running.kill()
            running.join()
            psutil.wait_procs(workers, timeout=30)
            assert not [worker for worker in workers if worker.is_running()], "a worker stayed"
        running = context.Process(target=run_stage, args=arguments)
        running.start()
        running.join()
        assert running.exitcode == 0
    assert_undisturbed(place, case)


def test_killed_workflows(case: Case, tmp_path: Path) -> None:
    """SIGKILL of Snakemake and all that it started, ten times, in each stage."""
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
    place = Workspace(tmp_path / "results" / "image")
    draw = random.Random("workflow")
    for stage, kills in (("ingest", 3), ("predict", 4), ("stitch", 3)):
        moments = Moments(f"workflow {stage}", most_blocks=60)
        for _ in range(kills):
            running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)

            def alive(running: subprocess.Popen[bytes] = running) -> bool:
                return running.poll() is None

            if stage == "ingest":  # of one block: a moment while it runs
                (tmp_path / "logs" / "image").mkdir(parents=True, exist_ok=True)
                log = tmp_path / "logs" / "image" / "ingest.log"
                said = log.stat().st_size if log.exists() else 0
                wait_until(
                    lambda log=log, said=said: log.exists() and log.stat().st_size > said, alive
                ) if not place.manifest("ingest").exists() else None
                time.sleep(draw.uniform(0, 0.3))
            else:
                moments.wait(place, stage, alive)
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    subprocess.run(command, check=True, capture_output=True)
    probabilities = {n: c for n, c in stores(place).items() if n.startswith("probabilities")}
    expected = {n: c for n, c in stores(case.place).items() if n.startswith("probabilities")}
    assert probabilities == expected
    masks = [files_in(each.result / stitch.MASK) for each in (place, case.place)]
    assert masks[0] == masks[1]
    assert set(times_done(place, "predict").values()) == {1}
    assert not list(place.root.rglob("*.partial"))

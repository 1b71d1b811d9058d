"""The engine on real Dask clusters: placement, bounds, shared schedulers, failures."""

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from support import ONE_CORE

from unet.errors import DeviceError, RunError, SourceError
from unet.execution import pool
from unet.execution.dispatch import dispatch
from unet.execution.machines import Machines
from unet.execution.worker import JobPlugin, do_block
from unet.network.devices import choose_devices
from unet.planning.memory import BLOCKS_PER_WORKER, mover_bytes
from unet.stages.predict import network_machines


@dataclass(frozen=True)
class Counting:
    """Writes a file a block and says in which process; `opened` counts how often it was opened."""

    name: str
    folder: Path

    def open(self):
        (self.folder / f"opened-{os.getpid()}-{time.monotonic_ns()}").touch()

        def do(block: int) -> int:
            (self.folder / f"block-{block}").touch()
            return os.getpid()

        return do


def run(workers, job, blocks, in_flight=4):
    done = {}
    dispatch(workers.client, job, iter(blocks), done.__setitem__, in_flight)
    return done


def test_a_worker_opens_a_job_once(tmp_path):
    with pool.connect(ONE_CORE) as workers:
        done = run(workers, Counting("count", tmp_path), range(50))
    assert sorted(done) == list(range(50))
    assert len(list(tmp_path.glob("opened-*"))) == len(set(done.values())) == 1


@pytest.mark.slow
def test_what_was_opened_is_let_go_of_when_no_block_comes(tmp_path):
    """A client that was killed takes nothing away from the workers of a cluster that stays."""
    plugin = JobPlugin(Counting("count", tmp_path), limit=None)
    plugin.idle_seconds = 0.2
    with pool.connect(ONE_CORE) as workers:
        workers.client.register_plugin(plugin, name=plugin.name)
        for _ in range(3):
            workers.client.submit(do_block, plugin.name, 1, pure=False).result()
        assert len(list(tmp_path.glob("opened-*"))) == 1
        time.sleep(1)
        workers.client.submit(do_block, plugin.name, 1, pure=False).result()
    assert len(list(tmp_path.glob("opened-*"))) == 2


@given(cores=st.integers(1, 200), workers=st.integers(1, 300))
def test_at_least_so_many_workers_are_never_more(cores, workers):
    """Memory was counted for so many: what comes on top would be too much."""
    machines = Machines.for_network(None, (), cores)
    found = machines.at_least(workers).workers
    assert machines.workers <= found <= max(workers, machines.workers)


@given(
    cores=st.integers(1, 200),
    blocks=st.integers(0, 300),
    size=st.integers(1, 100),
    network=st.booleans(),
)
def test_workers_are_as_many_as_have_work_and_as_fit(cores, blocks, size, network):
    machines = Machines.for_data(None, cores)
    if network:
        machines = Machines.for_network(None, (), cores)
    fitted = replace(machines, memory=100).fitting(blocks, size)
    assert fitted.workers == min(machines.workers, max(1, blocks), 100 // size)


@given(cores=st.integers(1, 50), size=st.integers(1, 10**9), memory=st.integers(1, 10**10))
def test_workers_that_move_pixels_take_one_block_each_before_they_are_refused(cores, size, memory):
    machines = replace(Machines.for_data(None, cores), memory=memory)
    if memory < mover_bytes(1, size):
        with pytest.raises(RunError, match="Expected a worker of"):
            machines.moving(100, size)
        return
    found = machines.moving(100, size)
    assert found.workers * mover_bytes(found.threads, size) <= memory
    assert found.threads == (2 if mover_bytes(2, size) <= memory else 1)


def test_workers_of_gpus_are_no_more_than_blocks_and_others_stay():
    gpus = replace(Machines.for_network(None, ("0", "1", "2"), 8), memory=1)
    assert gpus.fitting(2, 1000).devices == ("0", "1")
    elsewhere = replace(Machines.for_network("tcp://127.0.0.1:1", (), 8), memory=1)
    assert elsewhere.fitting(1, 1000) == elsewhere


def test_a_job_has_no_more_memory_than_its_scheduler_gave_it():
    assert Machines.for_data(None, 1, mem_mb=300).memory == 300 * 10**6
    assert Machines.for_network(None, (), 1, mem_mb=10**9).memory < 10**15
    with pytest.raises(RunError, match=r"worker of 7 GB to fit .* but that is 6 GB"):
        Machines.for_network(None, (), 8, mem_mb=6000).fitting(5, 7 * 10**9)


def timers() -> int:
    return sum(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_nothing_of_a_run_stays_on_a_worker_that_stays(tmp_path):
    with pool.connect(ONE_CORE) as workers:
        run(workers, Counting("count", tmp_path), range(20))
        deadline = time.monotonic() + 20
        while any(workers.client.run(timers).values()):
            assert time.monotonic() < deadline, "a timer still holds what was opened"
            time.sleep(0.05)


def test_no_more_blocks_are_handed_out_than_said(tmp_path):
    asked = []

    def blocks():
        for block in range(100):
            asked.append(block)
            yield block

    ahead = []
    with pool.connect(ONE_CORE) as workers:
        dispatch(
            workers.client,
            Counting("bounded", tmp_path),
            blocks(),
            lambda *_: ahead.append(len(asked) - len(ahead)),
            in_flight=5,
        )
    assert len(ahead) == 100
    assert max(ahead) == 5


@pytest.mark.slow
def test_two_jobs_share_a_scheduler_that_is_there(tmp_path):
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as running:
        machines = Machines.for_network(running.scheduler_address, (), 1)
        with pool.connect(machines) as one, pool.connect(machines) as two:
            for workers, name in ((one, "one"), (two, "two"), (one, "again")):
                (tmp_path / name).mkdir()
                done = run(workers, Counting(name, tmp_path / name), range(20))
                assert len(list((tmp_path / name).glob("block-*"))) == len(done) == 20
        with Client(running) as still_there:
            assert still_there.submit(sum, [1, 2]).result() == 3


@dataclass(frozen=True)
class Held:
    """Counts the blocks that are in hand at the same time."""

    name: str
    folder: Path

    def open(self):
        def do(block: int) -> int:
            mark = self.folder / f"{os.getpid()}-{block}"
            mark.touch()
            time.sleep(0.02)
            held = len(list(self.folder.glob(f"{os.getpid()}-*")))
            mark.unlink()
            return held

        return do


@pytest.mark.slow
def test_a_worker_of_many_threads_holds_no_more_blocks_than_memory_was_planned_for(tmp_path):
    with LocalCluster(
        n_workers=1, threads_per_worker=8, dashboard_address="127.0.0.1:0"
    ) as running:
        machines = Machines.for_network(running.scheduler_address, (), 1)
        with pool.connect(machines) as workers:
            done = run(workers, Held("held", tmp_path), range(60), machines.in_flight)
    assert len(done) == 60
    assert max(done.values()) == BLOCKS_PER_WORKER


@pytest.mark.slow
def test_a_cluster_that_starts_workers_for_tasks_alone_is_waited_for(tmp_path):
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as running:
        running.adapt(minimum=0, maximum=1, wait_count=1000)  # and does not end them soon
        with pool.connect(Machines.for_data(running.scheduler_address, 1)) as workers:
            assert len(run(workers, Counting("adapted", tmp_path), range(5))) == 5


def test_a_cluster_without_workers_is_an_error(monkeypatch):
    monkeypatch.setattr("unet.execution.dispatch.PATIENCE_SECONDS", 0.1)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as running,
        pytest.raises(RunError, match=r"to have a worker, but none came in 0 s"),
        pool.connect(Machines.for_data(running.scheduler_address, 1)),
    ):
        pass


def test_each_gpu_has_a_worker_of_its_own():
    """Two devices by name, on a machine that need not have them: only placement is seen."""
    with pool.connect(Machines.for_network(None, ("3", "GPU-7"), 2)) as workers:
        seen = workers.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        threads = workers.client.nthreads()
    assert sorted(seen.values()) == ["3", "GPU-7"]
    assert set(threads.values()) == {3}


@pytest.mark.parametrize(("wanted", "gpus"), [("gpu", 0), ("auto", 1), ("gpu", 2)])
def test_a_gpu_that_was_asked_for_is_never_replaced_by_the_cpu(wanted, gpus, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(DeviceError, match=r"as asked for, and found none"):
        choose_devices(wanted, gpus)
    with pytest.raises(DeviceError, match=r"as asked for, and found none"):
        network_machines(None, wanted, gpus, cpus=4)
    assert network_machines("tcp://127.0.0.1:1", wanted, gpus, cpus=4)[1] == "gpu"


def test_gpus_are_taken_as_the_scheduler_named_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert choose_devices("auto", 0) == ("4", "6")
    assert choose_devices("auto", 1) == ("4",)
    assert choose_devices("cpu", 0) == ()
    with pytest.raises(DeviceError, match=r"Expected 3 GPUs.*found 2 \(4, 6\)"):
        choose_devices("gpu", 3)


def test_an_error_of_every_block_ends_the_run_soon(tmp_path):
    class Refusing:
        name = "refusing"

        def open(self):
            def do(block: int) -> int:
                (tmp_path / f"tried-{block}").touch()
                raise SourceError("Expected something else.")

            return do

    with (
        pool.connect(ONE_CORE) as workers,
        pytest.raises(SourceError, match="something else"),
    ):
        dispatch(workers.client, Refusing(), iter(range(1000)), lambda *_: None, 4)
    assert len(list(tmp_path.iterdir())) < 20

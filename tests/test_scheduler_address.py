"""A Dask scheduler that is not there, is none, or wants other keys: told at once, in a sentence."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pytest
from conftest import Workflow
from distributed import LocalCluster, Security
from hypothesis import given, settings
from hypothesis import strategies as st

from unet.errors import ConfigError, RunError, UserError
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.model.folder import ModelSpec

TLS = "distributed.comm.tls"
REQUIRED = "distributed.comm.require-encryption"
QUICK = {"distributed.comm.timeouts.connect": "2s"}
LONGEST = 15.0  # seconds until the sentence; Dask itself takes 30 or more


def refusal(address: str, **site: Any) -> UserError:
    """The error of a run that was given `address`, in the Dask settings of a site."""
    begin = time.monotonic()
    with (
        dask.config.set(QUICK | site),
        pytest.raises((ConfigError, RunError)) as told,
        connect(Machines.for_data(address, 1)),
    ):
        pass
    assert time.monotonic() - begin < LONGEST
    text = str(told.value)
    assert text.startswith("Expected "), text
    assert text.endswith("."), text
    return told.value


@contextmanager
def program(answer: bytes | None) -> Iterator[str]:
    """A program that says `answer` to whoever connects, then hangs up; None: it says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    with suppress(OSError):  # of a client that has hung up
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


@contextmanager
def scheduler(protocol: str = "tcp://", **options: Any) -> Iterator[LocalCluster]:
    listens = {"protocol": protocol, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, processes=False, **listens, **options) as cluster:
        yield cluster


def keys_in(folder: Path, security: Security) -> dict[str, str]:
    """The keys of `security` as a site sets them, in files."""
    folder.mkdir()
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(security.tls_client_cert)
    key.write_text(security.tls_client_key)
    return {
        f"{TLS}.ca-file": str(certificate),
        f"{TLS}.client.cert": str(certificate),
        f"{TLS}.client.key": str(key),
    }


ADDRESSES = {
    "myhost": "missing port number",
    "tcp://": "missing port number",
    "tcp://host:port": "invalid literal",
    "http://127.0.0.1:8786": "unknown address scheme 'http'",
    "tcp://127.0.0.1:1": "Connection refused",
    "127.0.0.1:1": "Connection refused",
    "ws://127.0.0.1:1": "Connection refused",
    "tcp://[::1]:1": "(Connection refused|Cannot assign|not supported)",
    "tcp://127.0.0.1:99999": "not in 1-65535",
    "tcp://nosuchhost.invalid:8786": "[Nn]ame",
    "tcp://two..dots:8786": "(label|[Nn]ame)",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_where_no_scheduler_is(address: str) -> None:
    text = str(refusal(address))
    assert address in text
    assert re.search(ADDRESSES[address], text), text
    assert "DASK_SCHEDULER_ADDRESS" in text


@settings(max_examples=25)
@given(answer=st.none() | st.binary(max_size=64) | st.just(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
def test_a_program_that_does_not_speak_as_a_scheduler(answer: bytes | None) -> None:
    with program(answer) as address:
        text = str(refusal(address, **{"distributed.comm.timeouts.connect": "500ms"}))
    assert "does not speak as one" in text
    assert address in text


def test_a_worker_is_no_scheduler() -> None:
    with scheduler() as cluster:
        (worker,) = cluster.scheduler.workers
        assert "is a Worker of Dask" in str(refusal(worker))


def test_a_scheduler_that_wants_keys(tmp_path: Path) -> None:
    """With the keys of its site it is used; with none, others or damaged ones that is told."""
    security = Security.temporary()
    right = keys_in(tmp_path / "right", security)
    other = keys_in(tmp_path / "other", Security.temporary())
    damaged = {**right, f"{TLS}.client.key": __file__}
    missing = {**right, f"{TLS}.ca-file": str(tmp_path / "none.pem")}
    with scheduler(security=security, protocol="tls://") as cluster:
        address = cluster.scheduler_address
        open_address = address.replace("tls://", "tcp://")
        with dask.config.set({**right, REQUIRED: True}), connect(Machines.for_data(address, 1)):
            pass
        assert "found none" in str(refusal(address))
        assert "verify failed" in str(refusal(address, **other))
        for wrong in (damaged, missing):
            assert "TLS keys that can be used" in str(refusal(address, **wrong))
        assert "want TLS (tls://)" in str(refusal(open_address))
        assert "require encryption" in str(refusal(open_address, **right, **{REQUIRED: True}))


def test_a_scheduler_without_tls_is_not_spoken_to_by_a_site_that_wants_it(tmp_path: Path) -> None:
    keys = keys_in(tmp_path / "keys", Security.temporary())
    with scheduler() as cluster:
        address = cluster.scheduler_address.replace("tcp://", "tls://")
        assert "or have none" in str(refusal(address, **keys))


def test_a_scheduler_that_is_just_starting_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ended = threading.Event()

    def start_late() -> None:
        ended.wait(1)
        with scheduler(scheduler_port=port):
            ended.wait()

    late = threading.Thread(target=start_late)
    late.start()
    try:
        with connect(Machines.for_data(f"tcp://127.0.0.1:{port}", 1)) as workers:
            assert len(workers.client.nthreads()) == 1
    finally:
        ended.set()
        late.join()


@contextmanager
def started(command: str, with_project: bool, folder: Path) -> Iterator[None]:
    """A scheduler or a worker as one starts it by hand, in a Python that has Dask."""
    # Without `site`, what is installed to be edited is not found, and this project is.
    python = [sys.executable, *([] if with_project else ["-S"])]
    listens = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"]
    process = subprocess.Popen(
        [*python, "-m", "dask", command, *listens, "--scheduler-file", "scheduler.json"]
        + (["--port", "0"] if command == "scheduler" else []),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("of_worker", [False, True])
@pytest.mark.parametrize("of_scheduler", [False, True])
def test_a_cluster_without_this_project(
    of_scheduler: bool, of_worker: bool, tmp_path: Path
) -> None:
    with started("scheduler", of_scheduler, tmp_path), started("worker", of_worker, tmp_path):
        described, end = tmp_path / "scheduler.json", time.monotonic() + 60
        while not (described.exists() and described.stat().st_size):
            assert time.monotonic() < end, "the scheduler did not start"
            time.sleep(0.05)
        address = json.loads(described.read_text())["address"]
        if of_scheduler and of_worker:
            with connect(Machines.for_data(address, 1)) as workers:
                assert len(workers.client.nthreads()) == 1
            return
        told = str(refusal(address, **{"distributed.comm.timeouts.connect": "10s"}))
    assert "No module named 'unet'" in told
    assert "Install this project there" in told


@pytest.mark.slow
@pytest.mark.parametrize("said", ["configuration", "environment"])
def test_the_workflow_tells_it_before_anything_is_written(
    said: str,
    run_workflow: Workflow,
    small_image: Path,
    tiny_model: ModelSpec,
    tmp_path: Path,
) -> None:
    image = {"name": "image", "path": str(small_image), "model": str(tiny_model.folder)}
    config: dict[str, Any] = {"images": [image]}
    if said == "configuration":
        config["predict"] = {"scheduler": "tcp://127.0.0.1:1"}
        environment = {}
    else:
        environment = {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:1"}
    done = run_workflow(config, tmp_path, **environment)
    assert done.returncode != 0
    assert re.search(r"RunError: Expected a Dask scheduler at tcp://127\.0\.0\.1:1", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.ome.zarr"))

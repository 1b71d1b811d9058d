"""A machine as a site set it up: what of that a run's own workers take over, and what they need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Workflow, files_in
from dask.config import serialize

from unet.model.folder import ModelSpec

PRELOAD = "preload.py"

# What a run says of itself: the settings of its client and its worker, and what a block gives.
RUN = """if True:
    import json
    import os

    import dask
    from unet.console import report_to
    from unet.execution.machines import Machines
    from unet.execution.pool import connect

    def settings():
        keys = ("distributed", "temporary-directory")
        return json.dumps([dask.config.get(key) for key in keys], default=str, sort_keys=True)

    if __name__ == "__main__":
        before = dict(os.environ)
        with report_to("/dev/null"), connect(Machines.for_data(None, 2)) as workers:
            print(settings())
            print(workers.client.submit(settings, pure=False).result())
            print(workers.client.submit(sum, [1, 2]).result())
        print(os.environ == before)
"""


def site(folder: Path) -> dict[str, Any]:
    """Settings that would end or change a run that took them over."""
    (folder / PRELOAD).write_text(f"open({str(folder / 'preloaded')!r}, 'a').close()")
    none = str(folder / "none" / "none.pem")
    keys = {"cert": none, "key": none}
    preload = {"preload": [str(folder / PRELOAD)]}
    return {
        "temporary-directory": "/proc/no-such-folder",
        "scheduler-address": "tcp://127.0.0.1:1",
        "distributed": {
            "admin": {"event-loop": "none-such"},
            "comm": {
                "require-encryption": True,
                "default-scheme": "tls",
                "tls": {"ca-file": none, "client": keys, "worker": keys, "scheduler": keys},
                "timeouts": {"connect": "1ms", "tcp": "1ms"},
            },
            "client": preload,
            "scheduler": {
                **preload,
                "blocked-handlers": ["register-worker"],
                "contact-address": "tcp://192.0.2.1:1",
                "idle-timeout": "1ms",
                "worker-saturation": "none",
            },
            "nanny": {**preload, "environ": {"PYTHONHASHSEED": "none"}},
            "worker": {
                **preload,
                "resources": {"none": "none"},
                "lifetime": {"duration": "1ms", "restart": True},
                "multiprocessing-method": "none",
            },
        },
    }


def in_files(settings: dict[str, Any], folder: Path) -> dict[str, str]:
    (folder / "site.yaml").write_text(yaml.safe_dump(settings))
    return {"DASK_CONFIG": str(folder)}


def in_variables(settings: dict[str, Any], folder: Path) -> dict[str, str]:  # noqa: ARG001
    """As DASK_A__B, one for each value."""

    def flat(part: dict[str, Any], name: str) -> Iterator[tuple[str, str]]:
        for key, value in part.items():
            longer = f"{name}{key.upper().replace('-', '_')}"
            if isinstance(value, dict):
                yield from flat(value, f"{longer}__")
            else:
                yield longer, value if isinstance(value, str) else repr(value)

    return dict(flat(settings, "DASK_"))


def inherited(settings: dict[str, Any], folder: Path) -> dict[str, str]:  # noqa: ARG001
    """As one program of Dask hands its settings to another."""
    return {"DASK_INTERNAL_INHERIT_CONFIG": serialize(settings)}


def run(*prefix: str, **site: str) -> subprocess.CompletedProcess[str]:
    """Run RUN on a machine that `prefix` makes, where a site set the variables `site`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
    return subprocess.run(
        [*prefix, sys.executable, "-c", RUN],
        env={**kept, "PYTHONWARNINGS": "default", "DASK_CONFIG": "/no/such/folder", **site},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("way", [in_files, in_variables, inherited])
def test_own_workers_take_over_nothing_from_the_site(way: Any, tmp_path: Path) -> None:
    undisturbed = run()
    assert undisturbed.returncode == 0, undisturbed.stderr
    disturbed = run(**way(site(tmp_path), tmp_path))
    assert disturbed.returncode == 0, disturbed.stderr
    assert disturbed.stdout == undisturbed.stdout
    assert not (tmp_path / "preloaded").exists()


def test_own_workers_leave_no_variables_behind() -> None:
    done = run()
    assert done.stdout.splitlines()[-2:] == ["3", "True"], done.stderr


BROKEN = {
    "no YAML": "distributed: [",
    "no mapping": "3",
    "a file of logging that is not there": "distributed: {logging-file-config: /no/such/file}",
    "a level that is none": "logging: {distributed: loudly}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_settings_that_dask_cannot_read_are_told_before_the_first_stage(
    name: str, run_workflow: Workflow, small_image: Path, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    (tmp_path / "site.yaml").write_text(BROKEN[name])
    image = {"name": "image", "path": str(small_image), "model": str(tiny_model.folder)}
    done = run_workflow({"images": [image]}, tmp_path, "--dry-run", DASK_CONFIG=str(tmp_path))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert re.search(r"wrong\. Expected settings of Dask .*, but: .+\. Correct them:", said)
    assert "Traceback" not in said


# --- The folders that a machine has for programs -------------------------------------------------


def machine(*commands: str) -> tuple[str, ...]:
    """Begins a command on this machine as `commands` change it, and for that command alone."""
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    return (*alone, "sh", "-ec", "; ".join((*commands, 'exec "$@"')), "sh")


def mounted(folder: str, options: str) -> str:
    return f"mount -t tmpfs -o {options} tmpfs {folder}"


def assert_told(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(f"RunError: Expected {sentence}", done.stderr.splitlines()[-1]), done.stderr


PAGE = os.sysconf("SC_PAGE_SIZE")
NEEDED_PAGES = 12  # of two workers


@pytest.mark.parametrize("pages", [0, 1, NEEDED_PAGES - 1, NEEDED_PAGES])
def test_a_shared_memory_that_is_read_only_or_tiny(pages: int) -> None:
    """Told before a worker starts, or enough: never a traceback, never a wait."""
    options = f"size={pages * PAGE}" if pages else "ro"
    done = run(*machine(mounted("/dev/shm", options)))
    if pages < NEEDED_PAGES:
        inner = "No space left" if pages else "Read-only"
        assert_told(done, rf"shared memory \(/dev/shm\) .*{inner}.*--shm-size")
    else:
        assert done.returncode == 0, done.stderr


READ_ONLY = [mounted(folder, "ro") for folder in ("/tmp", "/var/tmp")]


def test_no_temporary_folder_that_can_be_written() -> None:
    # In a folder that can be written by its name, Python would take that.
    done = run(*machine(*READ_ONLY, "cd /proc"))
    assert_told(done, "a temporary folder that can be written, .*TMPDIR")


@pytest.mark.parametrize("folder", ["/proc", "/no/such/folder", "/dev/null"])
def test_a_temporary_folder_that_cannot_be_written_is_not_used(folder: str) -> None:
    done = run(TMPDIR=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_on_a_site_that_has_settings_gives_the_same_files(
    run_workflow: Workflow, small_image: Path, tiny_model: ModelSpec, tmp_path: Path
) -> None:
    image = {"name": "image", "path": str(small_image), "model": str(tiny_model.folder)}
    results = []
    for name, environment in {"without": {}, "with": in_files(site(tmp_path), tmp_path)}.items():
        done = run_workflow({"images": [image]}, tmp_path / name, **environment)
        assert done.returncode == 0, done.stderr
        results.append(files_in(tmp_path / name / "results/image/image.ome.zarr"))
    assert results[0] == results[1]
    assert not (tmp_path / "preloaded").exists()

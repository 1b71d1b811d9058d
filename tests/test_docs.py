"""The pages are true: commands run, examples are valid, links lead somewhere.

Above each block of commands a comment, which readers do not see, says what becomes of it:

    <!-- run here -->                    this file runs it as it stands, on an own image
    <!-- dry run here -->                this file runs it with --dry-run
    <!-- run by: tests/test_x.py::y -->  that test runs it; or `make demo`, or `.ci/run`
    <!-- not run: REASON -->             nothing runs it

Blocks of YAML and Python need no comment: they are always checked, and always run. A block of YAML
that commands name as a file has <!-- saved as: FILE -->.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from conftest import REPOSITORY, picture

import unet
from unet.config import read_config
from unet.errors import ConfigError
from unet.training.config import read_training

SCHEMA = REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"
README = REPOSITORY / "README.md"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    *DOCS,
    *sorted((REPOSITORY / "config").glob("*.md")),
]
LINKED = [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "unet" / "DESIGN.md"]
SHELLS = ("sh", "bash", "console")
LANGUAGES = (*SHELLS, "python", "yaml", "text")
MOST_LINES = 120
# Which file, and how many CPUs: each test has its own.
NEUTRAL = {"--configfile", "--cores"}
COMMAND = re.compile(r"(\$ )?([\w./]*/)?(snakemake|make|git|pip|python3?|source|export)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `mark` is the comment above it, "" for none."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """One command each, continued lines joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(text: str, page: str = "page.md") -> Iterator[Block]:
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{page}: a fence that is not closed"
    for begin, end in zip(fences[::2], fences[1::2], strict=True):
        above = re.fullmatch(r"<!-- (.+) -->", lines[begin - 1].strip()) if begin else None
        yield Block(
            page=page,
            line=begin + 1,
            language=lines[begin].strip().removeprefix("```"),
            text="\n".join(lines[begin + 1 : end]) + "\n",
            mark=above[1] if above else "",
        )


def prose_of(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


BLOCKS = [
    block
    for page in PAGES
    for block in blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(REPOSITORY)))
]
SHELL_BLOCKS = [block for block in BLOCKS if block.language in SHELLS]
RUN_HERE = [block for block in SHELL_BLOCKS if block.mark == "run here"]
# Snakemake itself says whether targets, options and profiles are there.
DRY_RUN = [
    block
    for block in SHELL_BLOCKS
    if block.mark == "dry run here"
    or (block.mark.startswith("run by: tests/") and block.commands[0].startswith("snakemake "))
]


# --- What a block of commands says of itself ----------------------------------------------------


def trouble_with(block: Block) -> str:
    """Why the comment above a block of commands is not true; "" where nothing is wrong."""
    kind, _, said = block.mark.partition(": ")
    if block.mark in ("run here", "dry run here"):
        return ""
    if kind == "not run":
        return "" if len(said.split()) > 2 else "expected a reason"
    if kind == "run by":
        return _trouble_with_runner(block.commands, said)
    return f"expected a comment that says what runs it, got {block.mark!r}"


def _trouble_with_runner(commands: list[str], runner: str) -> str:
    if runner.startswith("make "):
        target = runner.removeprefix("make ")
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        is_there = re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE)
        return "" if is_there and commands == [runner] else f"{runner} does not run {commands}"
    if runner == ".ci/run":
        lines = (REPOSITORY / runner).read_text(encoding="utf-8").splitlines()
        left_out = [command for command in commands if command not in lines]
        return f".ci/run does not run {left_out}" if left_out else ""
    file, _, name = runner.partition("::")
    path = REPOSITORY / file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    if name not in {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}:
        return f"there is no test {runner}"
    left_out = [word for word in telling_words(commands) if word not in source]
    return f"{file} does not use {left_out}" if left_out else ""


def telling_words(commands: list[str]) -> list[str]:
    """The options of commands and the modules that they run: a test that runs them names them."""
    words = [word for command in commands for word in shlex.split(command)]
    modules = [word for before, word in pairwise(words) if before == "-m"]
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    return sorted(options - NEUTRAL) + modules


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_each_block_of_commands_says_what_runs_it(block):
    assert trouble_with(block) == ""


JOBQUEUE = "test_workers_as_jobs_come_late_die_and_reach_their_time_limit"


@pytest.mark.parametrize(
    ("mark", "command", "trouble"),
    [
        ("", "make demo", "what runs it"),
        ("run by hand", "make demo", "what runs it"),
        ("not run: no", "make demo", "a reason"),
        ("run by: make demo", "make demo && make test", "does not run"),
        ("run by: make away", "make away", "does not run"),
        ("run by: .ci/run", "make demo", "does not run"),
        ("run by: tests/test_away.py::test_it", "make demo", "no test"),
        ("run by: tests/test_slurm.py::test_away", "make demo", "no test"),
        (f"run by: tests/test_slurm.py::{JOBQUEUE}", "snakemake --away", "does not use"),
        (f"run by: tests/test_slurm.py::{JOBQUEUE}", "python -m unet.away", "does not use"),
    ],
)
def test_a_comment_that_is_not_true_is_found(mark, command, trouble):
    text = f"<!-- {mark} -->\n```sh\n{command}\n```\n" if mark else f"```sh\n{command}\n```\n"
    (block,) = blocks_of(text)
    assert trouble in trouble_with(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_outside_a_block_of_commands(page):
    """In a block without a language, in one of text, or in an indented one."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for block in BLOCKS if block.page == str(page.relative_to(REPOSITORY))]
    assert [str(block) for block in blocks if block.language not in LANGUAGES] == []
    assert hidden_commands(text) == []


def hidden_commands(text: str) -> list[str]:
    indented = [line for line in prose_of(text).splitlines() if line.startswith(("    ", "\t"))]
    plain = [b.text.splitlines() for b in blocks_of(text) if b.language not in (*SHELLS, "python")]
    lines = [*indented, *(line for lines in plain for line in lines)]
    return [line for line in lines if COMMAND.match(line.strip())]


@pytest.mark.parametrize(
    "text",
    ["    .venv/bin/snakemake --cores 8\n", "```text\n$ make demo\n```\n", "```\nmake demo\n```\n"],
)
def test_a_command_that_hides_is_found(text):
    assert len(hidden_commands(text)) == 1


def swallowed_targets(command: str) -> list[str]:
    """The words that Snakemake would take for more files of `--configfile`: targets, above all."""
    words = shlex.split(command)
    after = [words[at + 2 :] for at, word in enumerate(words) if word == "--configfile"]
    return [word for rest in after for word in takewhile(lambda w: not w.startswith("-"), rest)]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_no_target_stands_where_it_is_taken_for_a_configuration(block):
    assert [word for command in block.commands for word in swallowed_targets(command)] == []


def test_a_target_that_is_taken_for_a_configuration_is_found():
    assert swallowed_targets("snakemake --configfile my.yaml verify --cores 8") == ["verify"]
    assert swallowed_targets("snakemake verify --configfile my.yaml") == []


# --- What is run here ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Clone:
    """A clone as the README leaves it, with `my.yaml` and the image that it names."""

    folder: Path

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands as a reader does who works in the clone."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command as a terminal does: Ctrl-C and a kill reach all that it started."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this process, without those that change what the pages say."""
        dropped = ("PYTHONWARNINGS", "SNAKEMAKE_PROFILE", "DASK_SCHEDULER_ADDRESS")
        kept = {key: value for key, value in os.environ.items() if key not in dropped}
        search = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        cache = str(self.folder.parent / ".cache")
        return {**kept, "PATH": search, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": cache}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    return new_clone(tmp_path_factory.mktemp("docs") / "unet-stitch")


def new_clone(folder: Path) -> Clone:
    (folder / "data").mkdir(parents=True)
    for name in ("Snakefile", "workflow", "scripts", "unet", "config"):
        (folder / name).symlink_to(REPOSITORY / name)
    # Stands in for the file of a virtual environment: `Clone.run` has set what it would.
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    tifffile.imwrite(folder / "data" / "mine.tif", picture(300, 400))
    for block in BLOCKS:
        if block.mark.startswith("saved as: "):
            file = folder / block.mark.removeprefix("saved as: ")
            assert not file.exists(), f"{block}: {file.name} is another page's"
            file.write_text(block.text, encoding="utf-8")
    return Clone(folder)


@pytest.fixture(scope="module")
def finished(clone) -> Clone:
    """After the README's commands for an own image, as they stand there."""
    for block in RUN_HERE:
        if block.page == "README.md":
            done = clone.run(block.text)
            assert done.returncode == 0, done.stdout + done.stderr
    return clone


@pytest.mark.slow
def test_the_readme_leads_from_a_clone_to_the_mask_of_an_own_image(finished):
    mask = zarr.open_array(finished.folder / "results/mine/mine.ome.zarr/labels/mask/0", mode="r")
    image = tifffile.imread(finished.folder / "data" / "mine.tif")
    probabilities = unet.predict(unet.load_model("fluo-nuclei"), image)
    assert np.array_equal(mask[...], probabilities[1] > 0.5)
    assert 0 < mask[...].mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [block for block in RUN_HERE if block.page != "README.md"], ids=str
)
def test_what_is_said_to_run_here_runs(finished, block):
    done = finished.run(block.text)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_as_the_pages_say(tmp_path, stop):
    """After Ctrl-C by the same command; after a harder kill by that of docs/recovery.md."""
    after_a_kill = next(block for block in RUN_HERE if block.page == "docs/recovery.md")
    unlock, again = after_a_kill.commands
    assert "--unlock" in unlock
    clone = new_clone(tmp_path / "unet-stitch")
    running = clone.start(f"exec {again}")
    wait_until((clone.folder / "logs" / "mine" / "ingest.log").exists, running)
    os.killpg(running.pid, stop)
    assert running.wait(timeout=120) != 0
    if stop == signal.SIGKILL:
        refused = clone.run(again)
        assert refused.returncode != 0
        assert "LockException" in refused.stdout + refused.stderr
        assert clone.run(unlock).returncode == 0
    done = clone.run(again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone.folder / "results" / "mine" / "mine.ome.zarr").is_dir()


def wait_until(is_true: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    while not is_true():
        assert running.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("block", DRY_RUN, ids=str)
def test_snakemake_knows_what_its_commands_name(finished, block):
    for command in block.commands:
        assert command.startswith("snakemake "), f"{block}: nothing to run dry in {command}"
        done = finished.run(f"{command} --dry-run")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(finished, page, monkeypatch):
    """From top to bottom, as a notebook; a shape that a comment tells is the shape."""
    monkeypatch.chdir(finished.folder)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.page == str(page.relative_to(REPOSITORY)) and block.language == "python":
            for told, value in run_python(block.text, names):
                assert tuple(value) == told, block


def run_python(text: str, names: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Run statements; yields what a comment tells of an expression, with its value."""
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        source = ast.get_source_segment(text, statement)
        assert source is not None
        if not isinstance(statement, ast.Expr):
            exec(source, names)
            continue
        value = eval(source, names)
        if told := re.search(r"# (\(\d[\d, ]*\))", lines[(statement.end_lineno or 1) - 1]):
            yield ast.literal_eval(told[1]), value


def test_a_shape_that_a_comment_tells_is_compared():
    assert list(run_python("x = (1, 2)\nx  # (1, 3)\n", {})) == [((1, 3), (1, 2))]


# --- Examples of the configuration --------------------------------------------------------------


def check_example(text: str) -> None:
    """Raises ConfigError where an example is no configuration, or no training."""
    raw = yaml.safe_load(text)
    if "train" in raw:
        named = [i.get(key) for i in raw["train"]["images"] for key in ("image", "label")]
        read_training(raw["train"], rule_outputs=named)
        return
    images = raw.setdefault("images", [{"name": "a", "path": "a.tif", "model": "fluo-nuclei"}])
    labels = [item["label"] for item in raw.get("evaluate", [])]
    read_config(raw, SCHEMA, rule_outputs=[*labels, *(image["path"] for image in images)])


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_each_example_is_valid(block):
    check_example(block.text)


def test_each_key_of_the_readme_is_valid_also_those_in_comments():
    (own,) = [block for block in BLOCKS if block.page == "README.md" and block.language == "yaml"]
    told = re.findall(r"^ *# (\w+): ", own.text, flags=re.MULTILINE)
    assert {"axes", "pixel_size", "level_pixel_size"} <= set(told)
    check_example(re.sub(r"^( *)# ", r"\1", own.text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "text", ["images: [{name: a, path: a.tif}]", "stitch: {treshold: 0.4}", "{train: {images: []}}"]
)
def test_an_example_that_is_wrong_is_found(text):
    with pytest.raises(ConfigError):
        check_example(text)


# --- Links and lengths --------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose_of(text), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        times = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.append(f"{slug}-{times}" if times else slug)
    return set(found)


def dead_links(page: Path, text: str) -> list[str]:
    """The links to files and headings of this project that lead nowhere."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(text)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_there = target.is_relative_to(REPOSITORY) and target.exists()
        if not is_there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_each_link_leads_somewhere(page):
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "link", ["docs/away.md", "docs/cluster.md#away", "#away", "../outside.md", "README.md#slurm"]
)
def test_a_link_that_leads_nowhere_is_found(link):
    assert dead_links(README, f"[it]({link})") == [link]


def test_the_readme_is_short_and_leads_to_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for page in PAGES[1:]:
        assert f"]({page.relative_to(REPOSITORY)}" in text, page


def test_each_training_took_as_long_as_its_curves_say():
    text = (REPOSITORY / "config" / "TRAINING.md").read_text(encoding="utf-8")
    table = text.partition("| model | steps | minutes |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (\d+), [\w ]+ \| (\d+) \|", table, flags=re.MULTILINE)
    assert len(rows) == len(list((REPOSITORY / "unet" / "shipped_models").glob("*/curves.csv")))
    shipped = REPOSITORY / "unet" / "shipped_models"
    for model, steps, minutes in rows:
        last = (shipped / model / "curves.csv").read_text(encoding="utf-8").splitlines()[-1]
        step, seconds = last.split(",")[:2]
        assert step == steps, model
        assert round(float(seconds) / 60) == int(minutes), model
    told = re.search(r"Their training took (\d+) to (\d+) minutes", text)
    assert told is not None
    assert sorted(int(row[2]) for row in rows)[:: len(rows) - 1] == [int(told[1]), int(told[2])]


def test_the_readme_names_every_model():
    text = README.read_text(encoding="utf-8")
    folders = (REPOSITORY / "unet" / "shipped_models").glob("*/model.yaml")
    shipped = {file.parent.name for file in folders}
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)) == shipped

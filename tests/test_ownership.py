"""Nothing that belongs to somebody else is replaced or deleted."""

import ast
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import tifffile
import zarr
from conftest import REPOSITORY, files_in, make_tiny_model, picture
from hypothesis import given
from hypothesis import strategies as st
from support import GENEROUS, run_stages

from unet.errors import RunError, StoreError
from unet.planning.options import SplitOptions, StitchOptions
from unet.sources.base import SourceSpec
from unet.stages import ingest, split, stitch
from unet.storage import ownership
from unet.storage.ownership import (
    claim,
    delete_files,
    delete_partial_files,
    delete_replaced,
    publish,
    refuse_files_of_others,
    write_whole,
)
from unet.storage.workspace import Workspace

CUT = {"shard": (64, 64), "chunk": (32, 32), "core": (32, 64)}

# --- No other module replaces or deletes --------------------------------------------------------

ONE_MODULE = "unet/storage/ownership.py"
DESTRUCTIVE = {
    *("unlink", "rmdir", "rmtree", "rename", "renames", "removedirs", "truncate"),
    *("move", "copy2", "copyfile", "copyfileobj", "copytree", "link", "symlink"),
    *("hardlink_to", "symlink_to", "write_bytes", "write_text", "copy_to", "put", "delete"),
    *("imwrite", "TiffWriter", "create_group", "open_group", "FileHandler", "os.remove"),
    *("obstore.copy", "os.replace", "safetensors.torch.save_file", "torch.save"),
}
EXCEPTIONS = {
    ("unet/console.py", "FileHandler"): "appends to the log that Snakemake names",
    ("unet/jobqueue.py", "write_text"): "the keys of this run, in a folder that it has just made",
    ("unet/stages/train.py", "write_text"): "what a process says, in a folder just made",
    ("unet/storage/fetched_file.py", "link"): "fails where something is",
    ("unet/storage/fetched_file.py", "open"): "fails where something is",
    ("unet/storage/fetched_file.py", "write_bytes"): "in a folder that it has just made",
    ("unet/storage/ledger.py", "open"): "appends to the ledger of a process",
    ("unet/storage/link.py", "copy_to"): "a shard of our own, in a claimed place on a server",
    ("unet/storage/location.py", "obstore.copy"): "what `copy_to` is",
    ("unet/storage/location.py", "put"): "what `write_bytes` and `write_new` are",
    ("unet/storage/locks.py", "open"): "changes nothing: the file is there to be locked",
    ("scripts/picture.py", "write_bytes"): "the file that the user names on the command line",
}


def destructive_call(call):
    """The name of a call that may replace or delete a file; None for others."""
    if isinstance(call.func, ast.Name):
        name = whole = call.func.id
    elif isinstance(call.func, ast.Attribute):
        name, whole = call.func.attr, ast.unparse(call.func)
    else:
        return None
    found = next((each for each in (whole, name) if each in DESTRUCTIVE), None)
    if name == "replace" and len(call.args) == 1 and not call.keywords:
        found = name  # of a path: that of a text has two arguments, that of a dataclass has names
    if name in ("open", "open_array", "fdopen"):
        modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
        for word in call.keywords:
            if word.arg == "mode":
                modes.append(word.value.value if isinstance(word.value, ast.Constant) else "w")
        found = name if any(isinstance(m, str) and set(m) & set("wax+") for m in modes) else None
    return found


def calls():
    for folder in ("unet", "scripts", "workflow"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            path = file.relative_to(REPOSITORY).as_posix()
            if not path.startswith("scripts/benchmark/"):  # in folders that it has just made
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                    name = destructive_call(node) if isinstance(node, ast.Call) else None
                    if name:
                        yield path, name


def test_no_call_replaces_or_deletes_outside_of_one_module():
    found = Counter(calls())
    assert {name for path, name in found if path == ONE_MODULE} >= {"unlink", "rename", "rmdir"}
    elsewhere = {call for call in found if call[0] != ONE_MODULE}
    assert elsewhere == EXCEPTIONS.keys()


@pytest.mark.parametrize(
    "code",
    [
        "path.unlink()",
        "shutil.rmtree(folder)",
        "partial.replace(path)",
        "os.replace(a, b)",
        "os.remove(a)",
        "path.open('wb')",
        "open(path, 'a')",
        "zarr.open_array(path, mode='r+')",
        "zarr.open_array(path, mode=mode)",
        "Path(a).rename(b)",
    ],
)
def test_a_call_that_destroys_is_seen(code):
    assert destructive_call(ast.parse(code).body[0].value)


@pytest.mark.parametrize(
    "code", ["text.replace('a', 'b')", "replace(plan, core=core)", "path.open('rb')", "open(path)"]
)
def test_a_call_that_reads_is_none(code):
    assert destructive_call(ast.parse(code).body[0].value) is None


# --- Replacing and deleting ---------------------------------------------------------------------

NAMES = st.sampled_from(["zarr.json", "c/0/0", "c/0/1", "labels/mask/c/0", "labels/own/c/0", "a"])
CONTENTS = st.sampled_from([b"ours", b"ours too", b"somebody else's"])
TREES = st.dictionaries(NAMES, CONTENTS, max_size=6)


def make_tree(folder, tree):
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def owns(folder, file):
    return (folder / file).read_bytes().startswith(b"ours")


@given(old=TREES, earlier=TREES)
def test_a_result_makes_way_only_if_all_its_files_are_ours(old, earlier, tmp_path_factory):
    """Also where a killed run has left one that made way already."""
    root = tmp_path_factory.mktemp("root")
    built = make_tree(root / "built" / "a.ome.zarr", {"zarr.json": b"ours, and new"})
    result = make_tree(root / "a.ome.zarr", old)
    make_tree(root / "a.ome.zarr.replaced", earlier)
    before = files_in(root)
    foreign = {name: content for name, content in before.items() if not content.startswith(b"ours")}
    if foreign:
        with pytest.raises(StoreError, match=r"Expected .*somebody else"):
            publish(built, result, owns)
        after = files_in(root)
        gone = {name for name in before if name not in after}
        assert all(name.startswith("a.ome.zarr.replaced/") for name in gone)
        assert {name: after[name] for name in before if name not in gone} == {
            name: before[name] for name in before if name not in gone
        }
        assert foreign.items() <= after.items()
    else:
        publish(built, result, owns)
        assert files_in(root) == {"a.ome.zarr/zarr.json": b"ours, and new"}


def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch):
    built = make_tree(tmp_path / "built" / "a.ome.zarr", {"zarr.json": b"ours, and new"})
    result = make_tree(tmp_path / "a.ome.zarr", {"zarr.json": b"ours", "c/0/0": b"ours"})

    def killed(*_):
        raise KeyboardInterrupt

    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda a, b: killed() if str(a) == str(built) else rename(a, b))
        with pytest.raises(KeyboardInterrupt):
            publish(built, result, owns)
    assert built.exists()
    assert (tmp_path / "a.ome.zarr.replaced" / "c/0/0").exists()
    publish(built, result, owns)
    assert files_in(tmp_path) == {"a.ome.zarr/zarr.json": b"ours, and new"}


def test_where_the_new_result_cannot_be_put_the_old_one_comes_back(tmp_path, monkeypatch):
    built = make_tree(tmp_path / "built" / "a.ome.zarr", {"zarr.json": b"ours, and new"})
    result = make_tree(tmp_path / "a.ome.zarr", {"zarr.json": b"ours"})
    before, rename = files_in(tmp_path), os.rename

    def refused(a, b):
        if str(a) == str(built):
            raise OSError("no rename")
        rename(a, b)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="no rename"):
        publish(built, result, owns)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "file", "link in it"])
def test_a_link_or_a_file_in_the_place_of_a_result_is_somebody_elses(tmp_path, kind):
    others = make_tree(tmp_path / "others", {"c/0/0": b"ours"})
    result = tmp_path / "a.ome.zarr"
    if kind == "link":
        result.symlink_to(others)
    elif kind == "file":
        result.write_bytes(b"ours")
    else:
        result.mkdir()
        (result / "c").symlink_to(others / "c")
    with pytest.raises(StoreError, match=r"found a (link|file)|somebody else added or changed c"):
        refuse_files_of_others(result, lambda folder, file: not (folder / file).is_symlink())
    assert (others / "c/0/0").exists()


def test_only_what_a_killed_writer_left_is_deleted(tmp_path):
    left, digits = [".0.%s.partial", "c/0/.1.%s.partial"], "0123456789abcdef" * 2
    others = [".0.partial", "a.partial", "c/.1.0123.partial", f"0.{digits}.partial", "zarr.json"]
    make_tree(tmp_path, dict.fromkeys([name % digits for name in left] + others, b""))
    delete_partial_files(tmp_path)
    assert sorted(files_in(tmp_path)) == sorted(others)


def test_a_folder_goes_only_if_it_is_empty_then(tmp_path):
    make_tree(tmp_path / "work", {"checkpoint-1.safetensors": b"", "notes.txt": b""})
    delete_files(tmp_path / "work", "checkpoint-*.safetensors")
    assert list(files_in(tmp_path)) == ["work/notes.txt"]
    delete_files(tmp_path / "work", "*")
    assert not (tmp_path / "work").exists()
    delete_replaced(tmp_path / "nothing", owns)


def test_a_file_is_old_or_new_and_never_a_part(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(ownership, "sync_file", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "a", b"new")
    assert files_in(tmp_path) == {"a": b"old"}


def test_stores_are_written_from_one_results_folder_only(tmp_path):
    one, other, home = tmp_path / "one", tmp_path / "other", tmp_path / "stores"
    claim(one, home)
    claim(one, home)
    with pytest.raises(RunError, match="from this results folder only, but another one was"):
        claim(other, home)
    (home / "owner").unlink()
    claim(other, home)
    claim(other, other)  # the results themselves need no mark


# --- Runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "image.tif"
    tifffile.imwrite(path, picture(150, 210), tile=(64, 64))
    return SourceSpec(str(path))


@pytest.fixture
def finished(source, tiny_model, machines, tmp_path):
    workspace = Workspace(tmp_path / "results" / "image")
    run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    return workspace


OTHER = StitchOptions(threshold=0.4)


def add_labels(result):
    labels = zarr.create_array(result / "labels" / "corrected", data=np.ones((9, 9), "u1"))
    labels.attrs["by"] = "a person"


def draw_into_the_image_group(result):
    (result / "notes.txt").write_text("look at the lower left")


def save_colours(result):
    zarr.open_group(result, mode="r+").attrs["viewer"] = {"colour": "red"}


ADDITIONS = {
    "labels": (add_labels, "labels/corrected/"),
    "a file": (draw_into_the_image_group, "notes.txt"),
    "attributes": (save_colours, "zarr.json"),
}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_what_others_added_stays_or_the_run_ends_before_it_predicts(
    finished, source, machines, kind, tiny_model, tmp_path
):
    add, named = ADDITIONS[kind]
    add(finished.result)
    before = files_in(finished.result)
    run_stages(source, tiny_model, finished, machines=machines, **CUT)
    assert files_in(finished.result) == before, "the same settings"
    with pytest.raises(StoreError, match=rf"somebody else added or changed .*{named}"):
        stitch.run(finished, OTHER, machines)
    assert files_in(finished.result) == before, "another threshold"
    another = make_tiny_model(tmp_path / "another", seed=5)
    ingest.run(source, finished, machines)
    with pytest.raises(StoreError, match=rf"somebody else added or changed .*{named}"):
        split.run(finished, str(another.folder), SplitOptions(memory=GENEROUS, **CUT), 1)
    assert files_in(finished.result) == before, "another model"


@pytest.mark.parametrize("kind", ["a store", "a file", "a link"])
def test_what_lies_in_the_place_of_a_result_stays_and_is_told_first(
    source, machines, tiny_model, tmp_path, kind
):
    workspace, kept = Workspace(tmp_path / "results" / "image"), tmp_path / "kept"
    zarr.create_array(kept, data=picture(20, 30))
    workspace.root.mkdir(parents=True)
    if kind == "a store":
        shutil.copytree(kept, workspace.result)
    elif kind == "a file":
        workspace.result.write_bytes(b"data")
    else:
        workspace.result.symlink_to(kept)
    before = files_in(tmp_path)
    with pytest.raises(StoreError, match=r"Expected .* to hold only|Expected nothing at"):
        run_stages(source, tiny_model, workspace, machines=machines, **CUT)
    after = files_in(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not list(workspace.root.glob("work/ingest-*")), "told before the image was copied"


def test_the_result_of_another_run_makes_way_whole(finished, machines):
    """With its old pyramid, and nothing of it is left."""
    before = {name for name in files_in(finished.root) if ".replaced" in name}
    stitch.run(finished, OTHER, machines)
    assert before == {name for name in files_in(finished.root) if ".replaced" in name} == set()
    assert not list(finished.root.glob("stitch-*"))


def test_two_folders_with_one_folder_of_stores_never_meet(source, machines, tiny_model, tmp_path):
    stores = str(tmp_path / "stores")
    one, other = (Workspace(tmp_path / name / "results/image", stores) for name in ("one", "other"))
    run_stages(source, tiny_model, one, machines=machines, **CUT)
    before = files_in(tmp_path / "stores")
    with pytest.raises(RunError, match="from this results folder only, but another one was"):
        run_stages(source, tiny_model, other, machines=machines, **CUT)
    assert files_in(tmp_path / "stores") == before

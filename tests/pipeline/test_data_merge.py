"""Two people's changes of a data set become one: lists of files, dvc.lock, and git's own merge of two clones."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dvc_objects import folders_that_are_files
from pipeline.errors import UserError
from pipeline.revisions.merge import merge_files, merge_lock, merge_tracked, three_way

NAMES = ["a", "a/b", "a/c", "b", "b/a/a", "c", "d"]
folders = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("xyz"), max_size=5).filter(
    lambda files: not list(folders_that_are_files(files))
)


@given(folders, folders, folders)
def test_a_merged_folder_is_what_the_edits_of_both_sides_make_of_it(base, ours, theirs):
    merged, conflicts = merge_files(base, ours, theirs)
    assert not list(folders_that_are_files(merged))
    for name in NAMES:
        was, our, their = base.get(name), ours.get(name), theirs.get(name)
        edits = {side for side in (our, their) if side != was}
        if name in conflicts:
            assert merged.get(name) == our
        else:
            assert len(edits) < 2
            assert merged.get(name) == (edits.pop() if edits else was)
    other, swapped = merge_files(base, theirs, ours)
    assert swapped == conflicts
    assert {n: v for n, v in merged.items() if n not in conflicts} == {
        n: v for n, v in other.items() if n not in conflicts
    }


@given(folders, folders, folders)
def test_nothing_is_in_conflict_without_a_cause(base, ours, theirs):
    _, conflicts = merge_files(base, ours, theirs)
    there = ours | theirs
    for name in conflicts:
        both = base.get(name) not in (ours.get(name), theirs.get(name)) and ours.get(name) != theirs.get(name)
        assert both or any(name in pair for pair in folders_that_are_files(there))


@given(folders, folders)
def test_a_side_without_edits_gives_the_other_side(base, ours):
    assert merge_files(base, ours, base) == (ours, [])
    assert merge_files(base, base, ours) == (ours, [])
    assert merge_files(base, ours, ours) == (ours, [])


# dvc.lock


def lock(**stages: str) -> bytes:
    outs = {name: {"cmd": f"memoir {name}", "outs": [{"path": name, "md5": md5 * 32}]} for name, md5 in stages.items()}
    return yaml.safe_dump({"schema": "2.0", "stages": outs}, sort_keys=False).encode()


def test_a_lock_takes_what_either_ran_and_drops_what_both_ran():
    merged = merge_lock(
        lock(a="0", b="0", c="0", d="0"), lock(a="1", b="1", c="1", d="0"), lock(a="0", b="2", c="1"), "dvc.lock"
    )
    held = {name: stage["outs"][0]["md5"][0] for name, stage in yaml.safe_load(merged.data)["stages"].items()}
    assert held == {"a": "1", "c": "1"}
    assert (merged.notes, merged.conflict) == (["dvc.lock: both branches ran b; `dvc repro` runs that again"], False)


def test_the_projects_lock_is_merged_with_itself_to_the_same_bytes():
    text = (Path(__file__).parents[2] / "dvc.lock").read_bytes()
    assert merge_lock(text, text, text, "dvc.lock").data == text
    assert merge_lock(b"", text, text, "dvc.lock").data == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n", "not YAML; mend the conflict in it"),
        (b"stages: &a {x: {cmd: y}}\nmore: *a\n", "an alias"),
        (b"stages: !!python/object:os.system {}\n", "a tag"),
        (b"stages: " + b"[" * 1000 + b"]" * 1000, "nesting"),
        (b"stages: {a: {outs: [{path: x, md5: ../../etc}]}}\n", "stages.a.outs.0.md5"),
        (b"- a\n", "it:"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_hostile_or_half_merged_lock_is_one_line(text, said):
    with pytest.raises(UserError) as told:
        merge_lock(b"", text, b"", "dvc.lock")
    assert str(told.value).startswith("dvc.lock of ours")
    assert said in str(told.value)


# git


def git(clone: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(["git", *arguments], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A data set of three files in a git repository with a remote of DVC's: make a clone of it by name."""
    for variable, value in {"NAME": "someone", "EMAIL": "some@one"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{variable}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{variable}", value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "remote").mkdir()
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")

    def clone(name: str) -> Path:
        root = tmp_path / name
        git(tmp_path, "clone", "-q", "origin.git", name)
        if name == "first":
            Repo.init(str(root)).close()
            (root / ".dvc/config").write_text(
                "[core]\nremote = team\nanalytics = false\n['remote \"team\"']\nurl = ../../remote\n"
            )
            commit(root, {"photos/a.png": "a", "photos/b.png": "b", "photos/deep/c.png": "c"}, "first")
            git(root, "branch", "-M", "main")
            git(root, "push", "-q", "-u", "origin", "main")
        git(root, "config", "merge.conflictStyle", "merge")
        return root

    return clone


def commit(root: Path, files: dict[str, str | None], message: str) -> None:
    """Write these files, or remove those that are None, below datasets/, and put them into DVC, its remote and git."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with Repo() as repo:
            if (root / "datasets.dvc").exists() and not (root / "datasets").exists():
                repo.pull("datasets.dvc")
            for name, text in files.items():
                path = root / "datasets" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # it may be a link into the cache
                if text is not None:
                    path.write_text(text)
            repo.add("datasets")
            repo.push()
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", message)


def installed(root: Path, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert cli("data", "install-merge")[0] == 0
    git(root, "add", ".gitattributes")
    if git(root, "status", "--porcelain"):
        git(root, "commit", "-q", "-m", "attributes")


def pulled(root: Path) -> dict[str, str]:
    """The files of datasets/ after `dvc pull`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with Repo() as repo:
            repo.pull("datasets.dvc")
    return {
        p.relative_to(root / "datasets").as_posix(): p.read_text()
        for p in (root / "datasets").rglob("*")
        if p.is_file()
    }


def test_two_clones_edits_of_a_data_set_become_one(clones, cli, monkeypatch):
    first = clones("first")
    second = clones("second")
    commit(first, {"photos/new.png": "new", "photos/a.png": None, "photos/both.png": "same"}, "ours")
    commit(second, {"photos/b.png": "better", "photos/deep/d.png": "dd", "photos/both.png": "same"}, "theirs")
    git(second, "push", "-q", "origin", "HEAD:theirs")
    git(first, "fetch", "-q")
    installed(first, cli, monkeypatch)
    said = git(first, "merge", "--no-edit", "origin/theirs")
    assert "4 files" not in said
    assert "datasets: 5 files, of 4 of ours and 5 of theirs" in said
    union = {"photos/new.png": "new", "photos/b.png": "better", "photos/deep/c.png": "c", "photos/deep/d.png": "dd"}
    union["photos/both.png"] = "same"
    assert pulled(first) == union
    held = yaml.safe_load((first / "datasets.dvc").read_text())["outs"][0]
    with Repo(str(first)) as repo:
        repo.add(str(first / "datasets"))
        repo.push()
    assert yaml.safe_load((first / "datasets.dvc").read_text())["outs"][0] == held  # as DVC itself writes it
    assert (held["nfiles"], held["size"]) == (5, sum(map(len, union.values())))
    git(first, "push", "-q", "origin", "HEAD:main")
    git(second, "pull", "-q", "--no-rebase", "--no-edit", "origin", "main")
    assert pulled(second) == union


def test_a_rebase_joins_the_edits_as_a_merge_does(clones, cli, monkeypatch):
    first = clones("first")
    installed(first, cli, monkeypatch)
    git(first, "push", "-q", "origin", "HEAD:main")  # a project has the attributes from its beginning
    second = clones("second")
    git(second, "pull", "-q", "origin", "main")
    commit(first, {"photos/new.png": "new", "photos/a.png": None}, "ours")
    commit(second, {"photos/b.png": "better"}, "theirs")
    git(second, "push", "-q", "origin", "HEAD:main")
    said = git(first, "pull", "--rebase", "origin", "main")
    assert "datasets: 3 files, of 3 of ours and 3 of theirs" in said
    assert pulled(first) == {"photos/new.png": "new", "photos/b.png": "better", "photos/deep/c.png": "c"}
    assert git(first, "log", "--format=%s", "-2").split() == ["ours", "theirs"]


def test_an_image_that_both_changed_is_named_and_the_rest_is_merged(clones, cli, monkeypatch):
    first, second = clones("first"), clones("second")
    commit(first, {"photos/a.png": "ours", "photos/new.png": "new"}, "ours")
    commit(second, {"photos/a.png": "theirs", "photos/b.png": None}, "theirs")
    git(second, "push", "-q", "origin", "HEAD:theirs")
    git(first, "fetch", "-q")
    installed(first, cli, monkeypatch)
    said = git(first, "merge", "--no-edit", "origin/theirs", code=1)
    (line,) = (line for line in said.splitlines() if line.startswith("memoir: "))
    assert line.startswith("memoir: datasets: both branches changed datasets/photos/a.png; ours is kept.")
    assert "Traceback" not in said
    assert git(first, "diff", "--name-only", "--diff-filter=U").strip() == "datasets.dvc"
    assert pulled(first) == {"photos/a.png": "ours", "photos/new.png": "new", "photos/deep/c.png": "c"}
    get, add = re.findall(r"`(dvc (?:get|add) [^`]*)`", line)
    for command in (get, add):
        subprocess.run([sys.executable, "-m", *command.split()], cwd=first, check=True)
    assert (first / "datasets/photos/a.png").read_text() == "theirs"
    commit(first, {}, "mended")
    assert yaml.safe_load((first / "datasets.dvc").read_text())["outs"][0]["size"] == 6 + 3 + 1


def test_a_list_of_files_that_nobody_pushed_is_one_line_and_ours_stays(clones, cli, monkeypatch, tmp_path):
    first, second = clones("first"), clones("second")
    commit(first, {"photos/new.png": "new"}, "ours")
    commit(second, {"photos/b.png": "better"}, "theirs")
    md5 = yaml.safe_load((second / "datasets.dvc").read_text())["outs"][0]["md5"]
    (tmp_path / f"remote/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    git(second, "push", "-q", "origin", "HEAD:theirs")
    git(first, "fetch", "-q")
    installed(first, cli, monkeypatch)
    before = (first / "datasets.dvc").read_text()
    said = git(first, "merge", "--no-edit", "origin/theirs", code=1)
    (line,) = (line for line in said.splitlines() if line.startswith("memoir: "))
    assert f"{md5[2:]}: not there; `dvc push` it from where it was made" in line
    assert (first / "datasets.dvc").read_text() == before


def test_git_merges_the_stages_that_two_branches_ran(tmp_path, cli, monkeypatch):
    for variable in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{variable}_NAME", "someone")
        monkeypatch.setenv(f"{variable}_EMAIL", "some@one")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    git(tmp_path, "init", "-q", "-b", "main")
    installed(tmp_path, cli, monkeypatch)
    for branch, text in {"main": lock(a="0", b="0"), "theirs": lock(a="2", b="1"), "ours": lock(a="1", b="0")}.items():
        git(tmp_path, "checkout", "-q", *(() if branch == "main" else ("-b", branch, "main")))
        (tmp_path / "dvc.lock").write_bytes(text)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", branch)
    said = git(tmp_path, "merge", "--no-edit", "theirs")
    assert "memoir: dvc.lock: both branches ran a; `dvc repro` runs that again" in said
    assert (tmp_path / "dvc.lock").read_bytes() == merge_lock(b"", lock(b="1"), lock(b="1"), "dvc.lock").data


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            "outs: [{path: a, md5: %s, hash: md5}]" % ("a" * 32),
            "outs: [{path: a, md5: %s, hash: md5}]" % ("b" * 32),
            "a, a file",
        ),
        ("outs: [{path: a, md5: %s.dir}]" % ("a" * 32), "outs: [{path: a, md5: %s.dir}]" % ("b" * 32), "DVC 2"),
        ("outs: [{path: a}]\ndesc: x", "outs: [{path: a}]\ndesc: y", "its desc"),
        ("outs: [{path: a}, {path: b}]", "outs: [{path: a}]", "outs"),
        ("outs: []", "outs: [{path: a}]", "outs"),
    ],
)
def test_what_is_no_folder_of_both_is_one_line(ours, theirs, said):
    with pytest.raises(UserError) as told:
        merge_tracked(b"", ours.encode(), theirs.encode(), "a.dvc")
    assert said in str(told.value)


def test_three_way_knows_a_value_of_nothing_from_no_value():
    assert three_way({"a": None}, {"a": None}, {}) == ({}, [])
    assert three_way({}, {"a": None}, {}) == ({"a": None}, [])


def test_a_merge_outside_of_a_project_is_one_line(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    text = "outs:\n- md5: {}.dir\n  hash: md5\n  path: a\n"
    for name, digit in {"o": "0", "a": "1", "b": "2"}.items():
        (tmp_path / name).write_text(text.format(digit * 32))
    code, out, error = cli("data", "merge", "o", "a", "b", "a.dvc")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "run memoir in the project's folder" in error


def test_installing_twice_adds_the_attributes_once(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    code, _, error = cli("data", "install-merge")
    assert (code, error.count("\n")) == (1, 1)
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitattributes").write_text("*.png binary")
    assert "commit it" in cli("data", "install-merge")[1]
    assert "commit it" not in cli("data", "install-merge")[1]
    expected = ["*.png binary", "*.dvc merge=memoir-dvc", "dvc.lock merge=memoir-lock"]
    assert (tmp_path / ".gitattributes").read_text().splitlines() == expected
    assert json.dumps(git(tmp_path, "config", "merge.memoir-dvc.driver")).count("%P") == 1

import json
import os
import time

import pytest
from teams import Clone, md5

from jobs.sharing import garbage
from jobs.sharing.garbage import delete, find_garbage
from jobs.sharing.probe import MARK
from pipeline.dvc_objects import object_name
from pipeline.errors import UserError
from pipeline.storage import storage

OLD = time.time() - 30 * 86400


@pytest.fixture
def clone(tmp_path):
    clone = Clone(
        tmp_path / "clone", str(tmp_path / "remote"), store=str(tmp_path / "store"), shards=str(tmp_path / "shards")
    )
    clone.track("images", {"a": b"a", "b": b"b"})
    clone.push()
    clone.commit()
    age(tmp_path)
    return clone


def age(tmp_path, when=OLD):
    for place in ("remote", "store", "shards"):
        for path in (tmp_path / place).rglob("*"):
            os.utime(path, (when, when))


def found(clone, **options):
    return find_garbage(clone.root, None, **{"also": [], "days": 14, "tips": False} | options)


def names(clone, kind=garbage.OBJECTS, **options):
    (found_kind,) = (each for each in found(clone, **options).kinds if each.name == kind)
    return sorted(entry.name for entry in found_kind.garbage)


def lost(clone, tmp_path, data=b"lost"):
    """An object that nothing names, of long ago."""
    storage(clone.remote).write(object_name(md5(data)), data)
    age(tmp_path)
    return object_name(md5(data))


def shards_json(*shards):
    """What gc needs of a shards.json; another version of memoir may have written the rest. Each shard has the table of its rows."""
    listed = [
        {"split": "train", "name": f"{shard}.tar", "bytes": 10240, "sha256": shard * 4, "groups": 1, "members": 2}
        for shard in shards
    ]
    parts = [{"shards": 1, "index": shard * 4} for shard in shards]
    return json.dumps({"task": "t", "format": 1, "shards": listed, "parts": parts}).encode()


# objects of DVC


def test_what_a_commit_names_stays_and_what_nobody_names_goes(clone, tmp_path):
    gone = lost(clone, tmp_path)
    assert names(clone) == [gone]
    before = set(storage(clone.remote).names())
    assert sum(number for _, number in delete(found(clone))) == 1
    assert set(storage(clone.remote).names()) == before - {gone}
    assert names(clone) == []


def test_looking_deletes_nothing(clone, tmp_path, cli, monkeypatch):
    gone = lost(clone, tmp_path)
    monkeypatch.chdir(clone.root)
    code, out, _ = cli("gc")
    assert code == 0
    assert [line.split()[3:] for line in out.splitlines() if line.startswith("objects of DVC")] == [
        ["1", "4", "3", "0"]
    ]
    assert "1 objects would be deleted with --delete" in out
    assert gone in storage(clone.remote).names()
    assert "deleted: 1 of objects of DVC" in cli("gc", "--delete")[1]
    assert gone not in storage(clone.remote).names()
    assert cli("gc", "--older", "soon")[2].count("\n") == 1


@pytest.mark.parametrize(
    "where", ["branch", "tag", "remote-tracking", "experiment", "worktree", "not committed", "stash"]
)
def test_whatever_names_an_object_keeps_it(clone, tmp_path, where):
    first = clone.git("rev-parse", "HEAD")
    kept = clone.track("more", b"more")
    clone.push()
    age(tmp_path)
    if where not in ("not committed", "stash"):
        commit = clone.commit()
        clone.git("reset", "--quiet", "--hard", first)
        clone.git("reflog", "expire", "--expire=now", "--all")
        assert names(clone) == [object_name(kept)]
        command = {
            "branch": ("branch", "other", commit),
            "tag": ("tag", "-a", "-m", "x", "v1", commit),
            "remote-tracking": ("update-ref", "refs/remotes/origin/x", commit),
            "experiment": ("update-ref", "refs/exps/ab/cdef/exp-1", commit),
            "worktree": ("worktree", "add", "--quiet", "--detach", str(tmp_path / "other"), commit),
        }[where]
        clone.git(*command)
        if where == "worktree":  # only a commit behind a HEAD without a branch names it
            clone.git("-C", str(tmp_path / "other"), "rm", "--quiet", "more.dvc")
            clone.git("-C", str(tmp_path / "other"), "commit", "--quiet", "-m", "another")
    elif where == "stash":
        clone.git("add", "--all")
        clone.git("stash")
    assert names(clone) == []


def test_history_counts_unless_only_tips_are_looked_at(clone, tmp_path):
    kept = clone.track("images", {"a": b"a", "c": b"c"})
    clone.push()
    clone.commit()
    age(tmp_path)
    assert names(clone) == []
    first = clone.git("rev-parse", "HEAD~:images.dvc")
    old = clone.git("cat-file", "blob", first).split("md5: ")[1].split()[0]
    assert old != kept
    assert names(clone, tips=True) == sorted([object_name(old), object_name(md5(b"b"))])


def test_another_clone_keeps_what_it_has_not_pushed_to_git(clone, tmp_path):
    other = Clone(tmp_path / "other", clone.remote)
    other.track("theirs", b"theirs")
    other.push()
    other.commit()
    age(tmp_path)
    assert names(clone) == [object_name(md5(b"theirs"))]
    assert names(clone, also=[other.root]) == []


def test_commits_that_are_not_fetched_are_a_refusal_that_says_what_to_type(clone, tmp_path):
    other = tmp_path / "other"
    clone.git("clone", "--quiet", "--bare", str(clone.root), str(tmp_path / "hub"))
    clone.git("remote", "add", "origin", str(tmp_path / "hub"))
    assert names(clone) == []
    clone.git("clone", "--quiet", str(tmp_path / "hub"), str(other))
    theirs = Clone.__new__(Clone)
    theirs.root, theirs.remote = other, clone.remote
    theirs.track("theirs", b"theirs")
    theirs.push()
    theirs.commit()
    theirs.git("push", "--quiet", "origin", "HEAD:refs/heads/theirs")
    age(tmp_path)
    with pytest.raises(
        UserError, match=r"origin has commits that are not here: refs/heads/theirs; run `git fetch origin"
    ):
        found(clone)
    clone.git("fetch", "--quiet", "origin", "theirs")  # the commit is here, and no ref of this clone names it
    clone.git("update-ref", "-d", "refs/remotes/origin/theirs")
    assert names(clone) == []
    theirs.git("push", "--quiet", "origin", ":theirs")
    assert names(clone) == [object_name(md5(b"theirs"))]


def test_what_is_young_stays_with_all_that_it_needs(clone, tmp_path):
    folder = clone.track("next", {"a": b"lost", "b": b"new"})
    clone.push()
    (clone.root / "next.dvc").unlink()  # a colleague's push, of which nothing is here
    age(tmp_path)
    assert len(names(clone)) == 3
    os.utime(tmp_path / "remote" / object_name(folder))
    assert names(clone) == []
    assert len(names(clone, days=0)) == 3


def test_a_list_of_files_goes_before_its_files(clone, tmp_path):
    clone.track("next", {"a": b"lost", "b": b"new"})
    clone.push()
    (clone.root / "next.dvc").unlink()
    age(tmp_path)
    (kind,) = (each for each in found(clone).kinds if each.name == garbage.OBJECTS)
    assert [entry.name.endswith(".dir") for entry in kind.garbage] == [True, False, False]


def test_a_list_that_nobody_has_keeps_all_objects(clone, tmp_path):
    lost(clone, tmp_path)
    folder = next(name for name in storage(clone.remote).names() if name.endswith(".dir"))
    storage(clone.remote).remove(folder)
    assert len(names(clone)) == 1
    (clone.root / ".dvc/cache" / folder).unlink()
    assert names(clone) == []
    assert any("all objects of DVC are kept: neither" in note and "images/ (" in note for note in found(clone).notes)


def test_the_run_cache_keeps_its_objects(clone, tmp_path):
    entry = f"runs/ab/ab{'0' * 62}/{'1' * 64}"
    gone = lost(clone, tmp_path)
    text = json.dumps({"cmd": "x", "outs": [{"path": "y", "hash": "md5", "md5": md5(b"lost")}]})
    storage(clone.remote).write(entry, text.encode())
    age(tmp_path)
    assert names(clone) == []
    storage(clone.remote).remove(entry)
    assert names(clone) == [gone]


def test_what_memoir_does_not_know_is_listed_and_never_deleted(clone, tmp_path):
    strange = {"remote": "files/md5/00/readme", "store": "notes/plan.txt", "shards": "recipes/mine.json"}
    for place, name in strange.items():
        storage(str(tmp_path / place)).write(name, b"mine")
        storage(str(tmp_path / place)).write(f"models/{MARK}" if place == "store" else MARK, b"")
    age(tmp_path)
    result = found(clone)
    assert {name: [e.name for e in entries] for name, entries in result.unknown.items()} == {
        str(tmp_path / place): [name] for place, name in strange.items()
    }
    assert sum(number for _, number in delete(result)) == 0


# shards


def shard(tmp_path, digit):
    name = digit * 16
    entry = json.dumps({"groups": 1, "name": f"{name}.tar", "bytes": 10240, "sha256": digit * 64, "rows": []})
    store = storage(str(tmp_path / "shards"))
    store.write(f"recipes/{digit * 64}.json", entry.encode())
    store.write(f"{name}.tar", b"shard")
    store.write(f"index/{name}.parquet", b"rows")
    return [f"recipes/{digit * 64}.json", f"{name}.tar", f"index/{name}.parquet"]


def test_shards_that_no_data_set_lists_go_with_their_recipes_first(clone, tmp_path):
    of_commit, of_cluster, here, gone, young = (shard(tmp_path, digit) for digit in "12345")
    clone.track("data/built", {"shards.json": shards_json("1" * 16)})
    clone.push()
    clone.commit()
    storage(str(tmp_path / "store")).write("data/0123/t/shards.json", shards_json("2" * 16))
    (clone.root / "data/mine").mkdir(parents=True)
    (clone.root / "data/mine/shards.json").write_bytes(shards_json("3" * 16))
    age(tmp_path)
    os.utime(tmp_path / "shards" / young[0])  # of a build that found its shard there
    (kind,) = (each for each in found(clone).kinds if each.name == garbage.SHARDS)
    assert [entry.name for entry in kind.garbage][:1] == gone[:1]
    assert {entry.name for entry in kind.garbage} == {*gone, young[2]}  # a build puts no tables beside its shards
    assert {*of_commit, *of_cluster, *here, young[1]} == {entry.name for entry in kind.kept}
    assert not found(clone).unknown


def test_a_data_set_that_nobody_can_read_keeps_all_shards(clone, tmp_path):
    shard(tmp_path, "4")
    clone.track("data/built", {"shards.json": b"{}"})
    clone.push()
    age(tmp_path)
    assert names(clone, garbage.SHARDS) == []
    assert any("all built shards are kept" in note for note in found(clone).notes)


# runs and versions


def test_runs_without_a_pointer_and_half_versions_go(clone, tmp_path):
    store = storage(str(tmp_path / "store"))
    for run in ("named-1", "published-2", "here-3", "lost-4", "training-5"):
        for file in ("step-00000001/model.safetensors", "step-00000001/checkpoint.sha256", "done.json"):
            store.write(f"runs/{run}/{file}", b"x")
    store.write("models/x/111111111111/SHA256SUMS", b"")
    store.write("models/x/111111111111/provenance.json", b'{"run": "published-2"}')
    store.write("models/x/222222222222/model.safetensors", b"half")
    store.write("models/x/333333333333/model.safetensors", b"being published")
    store.write("models/x/latest.json", b"{}")
    store.write("models/x/promoted.json", b"{}")
    clone.lock({"runs/x/checkpoint.json": json.dumps({"run": "named-1"}).encode()})
    clone.push()
    clone.commit()
    (clone.root / "runs/y").mkdir(parents=True)
    (clone.root / "runs/y/checkpoint.json").write_text(json.dumps({"run": "here-3"}))
    age(tmp_path)
    for name in ("runs/training-5/done.json", "models/x/333333333333/model.safetensors"):
        os.utime(tmp_path / "store" / name)
    kinds = {kind.name: [entry.name for entry in kind.garbage] for kind in found(clone).kinds}
    assert kinds[garbage.VERSIONS] == ["models/x/222222222222/model.safetensors"]
    assert kinds[garbage.RUNS] == [
        "runs/lost-4/done.json",
        "runs/lost-4/step-00000001/checkpoint.sha256",
        "runs/lost-4/step-00000001/model.safetensors",
    ]
    assert found(clone).unknown == {}


def test_what_may_go_on_has_a_day_whatever_is_asked_for(clone, tmp_path):
    store = storage(str(tmp_path / "store"))
    for name in ("runs/training-5/origin.json", "runs/ended-6/done.json", "models/x/333333333333/model.safetensors"):
        store.write(name, b"x")
    age(tmp_path, time.time() - 3600 * 5)
    assert names(clone, garbage.RUNS, days=1 / 24) == ["runs/ended-6/done.json"]
    assert names(clone, garbage.VERSIONS, days=1 / 24) == []
    age(tmp_path)
    assert len(names(clone, garbage.RUNS, days=1 / 24)) == 2


def test_a_shallow_clone_cannot_tell_what_the_commits_before_name(clone, tmp_path):
    clone.commit()
    other = Clone.__new__(Clone)
    other.root = tmp_path / "shallow"
    clone.git("clone", "--quiet", "--depth", "1", f"file://{clone.root}", str(other.root))
    with pytest.raises(UserError, match="a shallow clone, which lacks the commits before; run `git fetch --unshallow`"):
        found(other)
    assert found(other, tips=True).revisions == 1


def test_a_pointer_that_nobody_has_keeps_all_runs(clone, tmp_path):
    storage(str(tmp_path / "store")).write("runs/lost-4/done.json", b"x")
    age(tmp_path)
    assert len(names(clone, garbage.RUNS)) == 1
    clone.lock({"runs/x/checkpoint.json": b'{"run": "other"}'})
    (clone.root / ".dvc/cache" / object_name(md5(b'{"run": "other"}'))).unlink()
    assert names(clone, garbage.RUNS) == []
    assert any(
        "all runs are kept: neither the cache nor the remote has runs/x/checkpoint.json" in n
        for n in found(clone).notes
    )


def test_places_inside_each_other_are_each_looked_at_once(tmp_path, s3):
    clone = Clone(tmp_path / "clone", f"{s3}/dvc", store=s3, shards=f"{s3}/shards")
    clone.track("images", {"a": b"a"})
    clone.push()
    storage(s3).write("shards/4444444444444444.tar", b"shard")
    storage(s3).write("vgg19.pth", b"weights")
    result = found(clone, days=-1)
    assert {kind.name: [entry.name for entry in kind.garbage] for kind in result.kinds if kind.garbage} == {
        garbage.SHARDS: ["4444444444444444.tar"]
    }
    assert {uri: [entry.name for entry in entries] for uri, entries in result.unknown.items()} == {s3: ["vgg19.pth"]}

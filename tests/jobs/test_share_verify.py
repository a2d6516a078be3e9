import json
import os
import shutil
import subprocess
import sys

import pytest
from teams import Clone, md5

from jobs.sharing.verify import verify
from pipeline.dvc_objects import object_name
from pipeline.errors import UserError
from pipeline.storage import storage

FILES = {"a.png": b"a" * 50, "b/c.png": b"c" * 60, "b/d.png": b"d" * 70}


@pytest.fixture(params=["folder", "bucket"])
def remote(request, tmp_path):
    return str(tmp_path / "remote") if request.param == "folder" else f"{request.getfixturevalue('s3')}/dvc"


@pytest.fixture
def clone(tmp_path, remote):
    clone = Clone(tmp_path / "clone", remote)
    clone.track("data/images", FILES)
    clone.track("one.bin", b"one" * 30)
    clone.push()
    clone.commit()
    return clone


def wrong(found):
    return {(problem.what.split(" (")[0], *problem.paths) for problem in found.problems}


def test_a_whole_remote_is_known_by_what_the_server_says(clone, remote):
    (folder,) = (clone.root / ".dvc/cache").glob("files/md5/*/*.dir")
    found = verify(clone.root)
    assert (found.problems, found.objects, found.bytes) == (
        [],
        5,
        sum(map(len, FILES.values())) + 90 + len(folder.read_bytes()),
    )
    if remote.startswith("s3"):
        assert (found.by_contents, found.by_size, found.by_name) == (5, 0, 0)
    else:
        assert (found.by_contents, found.by_size, found.by_name) == (1, 4, 0)  # the list of files is read in any case
        assert verify(clone.root, contents=True).by_contents == 5


def test_what_is_missing_or_changed_is_named_by_the_users_file(clone, remote):
    store = storage(remote)
    store.remove(object_name(md5(FILES["a.png"])))
    store.write(object_name(md5(FILES["b/c.png"])), b"c" * 59)
    store.write(object_name(md5(b"one" * 30)), b"eno" * 30)
    found = verify(clone.root, contents=True)
    assert wrong(found) == {
        ("missing", "data/images/a.png"),
        ("truncated", "data/images/b/c.png"),
        ("other contents", "one.bin"),
    }


def test_a_file_of_a_folder_that_is_cut_off_is_found_without_a_cache(clone, remote):
    storage(remote).write(object_name(md5(FILES["b/c.png"])), b"c" * 59)
    shutil.rmtree(clone.root / ".dvc/cache")
    assert wrong(verify(clone.root)) == {("other contents", "data/images/b/c.png")}


def test_other_contents_of_the_same_length_need_the_servers_md5_or_a_look(clone, remote):
    storage(remote).write(object_name(md5(FILES["a.png"])), b"b" * 50)
    expected = {("other contents", "data/images/a.png")}
    assert wrong(verify(clone.root)) == (expected if remote.startswith("s3") else set())
    assert wrong(verify(clone.root, contents=True)) == expected


def test_a_damaged_list_of_files_is_found_and_its_files_are_looked_at(clone, remote):
    (folder,) = (clone.root / ".dvc/cache").glob("files/md5/*/*.dir")
    name = folder.relative_to(clone.root / ".dvc/cache").as_posix()
    storage(remote).write(name, b"x" * len(folder.read_bytes()))
    storage(remote).remove(object_name(md5(FILES["a.png"])))
    assert {what for what, *_ in wrong(verify(clone.root))} == {"missing", "other contents"}


def test_repair_sends_what_the_cache_has_whole_and_names_the_rest(clone, remote):
    store = storage(remote)
    for name, data in FILES.items():
        store.write(object_name(md5(data)), name.encode())
    store.remove(object_name(md5(b"one" * 30)))
    (clone.root / ".dvc/cache" / object_name(md5(FILES["a.png"]))).write_bytes(b"a" * 49)  # damaged here too
    (clone.root / ".dvc/cache" / object_name(md5(FILES["b/c.png"]))).unlink()
    found = verify(clone.root, repair=True)
    assert sorted(path for problem in found.repaired for path in problem.paths) == ["data/images/b/d.png", "one.bin"]
    assert {path for problem in found.problems for path in problem.paths} == {
        "data/images/a.png",
        "data/images/b/c.png",
    }
    assert store.read(object_name(md5(FILES["b/d.png"]))) == FILES["b/d.png"]
    assert store.read(object_name(md5(FILES["a.png"]))) == b"a.png"


def test_the_list_of_a_folder_is_sent_after_its_files(clone, remote, monkeypatch):
    if remote.startswith("s3"):
        shutil.rmtree(clone.root / "data")  # no matter: what counts is what the .dvc files name
        clone.git("checkout", "--", "data")
    store = storage(remote)
    for entry in store.entries():
        store.remove(entry.name)
    sent = []
    write = type(store).write
    monkeypatch.setattr(type(store), "write", lambda self, name, data: (sent.append(name), write(self, name, data))[1])
    assert verify(clone.root, repair=True).problems == []
    assert len(sent) == 5
    assert [name.endswith(".dir") for name in sent] == [False] * 4 + [True]


def test_what_other_branches_and_tags_name_is_looked_at_when_asked_for(clone, remote):
    clone.git("checkout", "--quiet", "-b", "other")
    clone.track("more.bin", b"more")
    clone.commit()
    clone.git("checkout", "--quiet", "main")
    clone.track("tagged.bin", b"tagged")
    clone.commit()
    clone.git("tag", "-a", "-m", "x", "v1")
    clone.git("reset", "--quiet", "--hard", "HEAD~")
    assert wrong(verify(clone.root)) == set()
    assert wrong(verify(clone.root, all_revisions=True)) == {
        ("missing", "more.bin (other)"),
        ("missing", "tagged.bin (v1)"),
    }


def test_what_the_remote_need_not_have_is_left_out(clone):
    lock = {
        "schema": "2.0",
        "stages": {"s": {"cmd": "x", "outs": [{"path": "metrics.json", "hash": "md5", "md5": "0" * 32}]}},
    }
    (clone.root / "dvc.lock").write_text(json.dumps(lock))
    assert wrong(verify(clone.root)) == {("missing", "metrics.json")}
    (clone.root / "metrics.json").write_text("{}")
    clone.commit()  # git has it: an output with `cache: false`
    for name, text in {
        "import.dvc": '{"deps": [{"path": "x", "repo": {"url": "other"}}], "outs": [{"md5": "%s", "hash": "md5", "path": "i"}]}',
        "push.dvc": '{"outs": [{"md5": "%s", "hash": "md5", "path": "p", "push": false}]}',
        "away.dvc": '{"outs": [{"md5": "%s", "hash": "md5", "path": "r", "remote": "another"}]}',
    }.items():
        (clone.root / name).write_text(text % ("1" * 32))
    assert wrong(verify(clone.root)) == set()
    (clone.root / "old.dvc").write_text('{"outs": [{"md5": "%s", "path": "old"}]}' % ("1" * 32))
    found = verify(clone.root)
    assert [(each.path, "DVC 2" in each.reason) for each in found.skipped] == [("old", True)]


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ([{"md5": "1" * 32, "relpath": "../../etc/passwd"}], "which is no path inside its folder"),
        ([{"md5": "../1", "relpath": "a"}], "not a list of files"),
        ({"md5": "1" * 32}, "not a list of files"),
    ],
)
def test_a_list_that_was_made_to_harm_is_one_line(clone, listed, told):
    name = clone.keep(json.dumps(listed).encode(), ".dir")
    (clone.root / "bad.dvc").write_text(f'{{"outs": [{{"md5": "{name}", "hash": "md5", "path": "bad"}}]}}')
    clone.push()
    with pytest.raises(UserError, match=told):
        verify(clone.root)


def test_mistakes_in_the_settings_are_one_line(tmp_path, s3, monkeypatch):
    clone = Clone(tmp_path / "clone", f"{s3}/dvc")
    with pytest.raises(UserError, match=r"no remote 'bukket'.*did you mean 'bucket'"):
        verify(clone.root, "bukket")
    config = clone.root / ".dvc/config"
    kept = config.read_text()
    config.write_text(f"{kept}    secret_access_key = averysecret\n")
    with pytest.raises(UserError, match="secret_access_key is in DVC's configuration") as error:
        verify(clone.root)
    assert "averysecret" not in str(error.value)
    config.write_text(f"{kept}    profile = team\n")
    with pytest.raises(UserError, match="set AWS_PROFILE=team"):
        verify(clone.root)
    config.write_text("")
    with pytest.raises(UserError, match="no default remote; `memoir share init"):
        verify(clone.root)
    config.write_text("['remote \"x\"']\n    url = ssh://host/x\n[core]\n    remote = x\n")
    with pytest.raises(UserError, match="neither a bucket"):
        verify(clone.root)
    (tmp_path / "bare").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(UserError, match="not a git repository"):
        verify(tmp_path / "bare")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git: not found; install it"):
        verify(clone.root)


def test_dvc_itself_takes_a_hurt_remote_for_whole_and_a_colleague_pulls_the_right_bytes_after_a_repair(
    tmp_path, s3, monkeypatch
):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))  # s3fs refuses /dev/null

    def dvc(root, *arguments):
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    mine, theirs = Clone(tmp_path / "mine", f"{s3}/dvc"), tmp_path / "theirs"
    config = mine.root / ".dvc/config"
    config.write_text(f"{config.read_text()}    endpointurl = {os.environ['AWS_ENDPOINT_URL']}\n")
    for name, data in FILES.items():
        (mine.root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (mine.root / "images" / name).write_bytes(data)
    dvc(mine.root, "add", "--quiet", "images")
    mine.commit()
    dvc(mine.root, "push", "--quiet")
    store = storage(f"{s3}/dvc")
    store.remove(object_name(md5(FILES["a.png"])))
    store.write(object_name(md5(FILES["b/c.png"])), b"c")
    assert "in sync" in dvc(mine.root, "status", "--cloud")
    assert len(verify(mine.root).problems) == 2
    assert verify(mine.root, repair=True).problems == []
    mine.git("clone", "--quiet", str(mine.root), str(theirs))
    dvc(theirs, "pull", "--quiet")
    assert {name: (theirs / "images" / name).read_bytes() for name in FILES} == FILES
    assert "in sync" in dvc(theirs, "status", "--cloud")


@pytest.mark.parametrize("committed", [False, True])
def test_outputs_of_a_task_of_the_past_are_not_missed(clone, committed):
    lock = {
        "schema": "2.0",
        "stages": {
            "build@old": {
                "cmd": "memoir build old",
                "outs": [{"path": "data/old", "md5": "0" * 32, "hash": "md5", "size": 9}],
            }
        },
    }
    (clone.root / "dvc.lock").write_text(json.dumps(lock))
    for tasks, missing in (("[]", set()), ("[old]", {("missing", "data/old")})):
        (clone.root / "params.yaml").write_text(f"store: store\ndatasets: {{}}\ntasks: {tasks}\nrecipes: {{}}\n")
        if committed:
            clone.commit()
        assert wrong(verify(clone.root, all_revisions=committed)) == missing


def test_a_lock_of_many_stages_is_read(clone):
    stages = {
        f"train@recipe-{i}": {"cmd": f"memoir train recipe-{i}", "params": {f"jobs/recipes/{i}.yaml": {"x": "y" * 500}}}
        for i in range(400)
    }
    stages["ingest"] = {
        "cmd": "memoir ingest",
        "outs": [{"path": "data/lost", "md5": "0" * 32, "hash": "md5", "size": 9}],
    }
    (clone.root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}, indent=1))
    assert (clone.root / "dvc.lock").stat().st_size > 2**17
    assert wrong(verify(clone.root)) == {("missing", "data/lost")}

"""`memoir data diff`: what changed between two revisions, in images, shards, bytes and leaks."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from projects import begin, commit, enter, git, picture

from pipeline.errors import UserError
from pipeline.revisions.diff import diff

pytestmark = pytest.mark.usefixtures("without_ray")


def sizes(pattern: str) -> int:
    return sum(path.stat().st_size for path in Path("data").glob(pattern))


def drop(*names: str) -> None:
    """Remove what DVC keeps of data: the cache, the remote or the working tree's."""
    for name in names:
        shutil.rmtree(name)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with a project at v1, and DVC's remote beside it."""
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "project").mkdir()
        (folder / "remote").mkdir()
        commit(begin(folder / "project", "../../remote", patch), "v1")
    return folder


@pytest.fixture
def project(pristine, tmp_path, monkeypatch):
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return enter(tmp_path / "project", monkeypatch)


def test_images_shards_bytes_and_leaks_of_a_change(project):
    before = {path.name: path.stat().st_size for path in Path("data/tiny").glob("*/*.tar")}
    project.add("train/2.png", Path("photos/val/9.png").read_bytes() + b"")
    picture(Path("photos/train/0.png"), 50)
    Path("photos/train/1.png").unlink()
    project.task()  # `photos/val` is as it was
    project.ingest()
    with pytest.raises(UserError, match="are the same image"):  # the build refuses the leak, and the manifest shows it
        project.build()
    found = diff("v1")
    assert found["images"] == [
        {
            "dataset": "photos",
            "split": "train",
            "added": ["photos/train/2.png"],
            "removed": ["photos/train/1.png"],
            "changed": ["photos/train/0.png"],
        }
    ]
    assert [(leak["kind"], leak["path_a"], leak["path_b"]) for leak in found["leaks"]] == [
        ("exact", "photos/train/2.png", "photos/val/9.png")
    ]
    assert found["bytes"]["shards"] == 0
    Path("photos/train/2.png").unlink()
    commit(project, "v2")
    after = {path.name: path.stat().st_size for path in Path("data/tiny").glob("*/*.tar")}
    added = after.keys() - before.keys()
    assert added
    found = diff("v1", "v2")
    (task,) = found["tasks"]
    assert task["shards"] == {
        "added": len(added),
        "removed": len(before.keys() - after.keys()),
        "kept": len(before.keys() & after.keys()),
    }
    assert found["bytes"]["shards"] == task["bytes"] == sum(after[name] for name in added)
    tables = ["manifest/manifest.json", "manifest/images/*", "tiny/index/*", "tiny/shards.json", "tiny/recipes.json"]
    assert found["bytes"]["tables"] == sum(sizes(name) for name in tables)
    assert found["leaks"] == []
    back = diff("v2", "v1")
    assert back["images"][0]["added"] == ["photos/train/1.png"]
    assert back["bytes"]["shards"] == sum(before[name] for name in before.keys() - after.keys())


def test_a_revision_is_itself_wherever_its_data_are(project, cli):
    nothing = "v1 -> the working tree: the same data\n"
    assert cli("data", "diff", "v1") == (0, nothing, "")
    drop(".dvc/cache")
    assert cli("data", "diff", "v1") == (0, nothing, "")  # from the remote
    drop("data")
    code, out, error = cli("data", "diff", "v1")
    assert (code, out, error) == (1, "", "memoir: data/manifest: not here; `dvc pull data/manifest`, or `dvc repro`\n")
    assert cli("data", "diff", "v1", "main") == (0, "v1 -> main: the same data\n", "")


def test_what_is_not_there_is_one_line(project, cli, tmp_path):
    git("rm", "-q", "--cached", "dvc.lock")
    git("commit", "-q", "-m", "without")
    for name, said in {
        "v9": "v9: not a revision that git knows here",
        "--output=x": "not a git revision",
        "HEAD": "HEAD: has no dvc.lock",
    }.items():
        code, out, error = cli("data", "diff", "--", name)
        assert (code, out, error.count("\n")) == (1, "", 1), error
        assert said in error
    drop(".dvc/cache", str(tmp_path / "remote/files"))
    code, _, error = cli("data", "diff", "v1")
    assert (code, error.count("\n")) == (1, 1)
    assert "`dvc push` it from where it was made" in error


def test_a_half_pulled_data_set_is_told(project, cli):
    first = min(Path("data/tiny").glob("train/*.tar"))
    first.unlink()
    code, out, _ = cli("data", "diff", "v1")
    assert code == 0
    assert "data/tiny: 1 of its shards are not here; `dvc pull data/tiny`" in out.splitlines()


def test_an_object_that_only_the_list_names_is_told(project, cli, tmp_path):
    drop(".dvc/cache")
    md5s = {
        entry["relpath"]: entry["md5"] for entry in json.loads(next((tmp_path / "remote").rglob("*.dir")).read_text())
    }
    for listing in (tmp_path / "remote").rglob("*.dir"):
        md5s |= {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}
    table = md5s["manifest.json"]
    path = tmp_path / f"remote/files/md5/{table[:2]}/{table[2:]}"
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1])
    code, _, error = cli("data", "diff", "v1")
    assert (code, error.count("\n")) == (1, 1)
    assert "its contents are not those of its md5" in error
    path.unlink()
    code, _, error = cli("data", "diff", "v1")
    assert (code, error.count("\n")) == (1, 1)
    assert "manifest.json: its object is missing" in error


def test_other_versions_of_the_encoders_are_told(project, cli):
    def older() -> None:
        path = Path("data/tiny/versions.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"opencv": "1.2.3"}))

    commit(project, "v2", after_build=older)
    code, out, error = cli("data", "diff", "v1", "v2")
    assert (code, error) == (0, "")
    (line,) = (line for line in out.splitlines() if "versions" in line)
    assert "whose bytes may differ for that alone: opencv " in line
    assert line.endswith("-> 1.2.3")


def test_new_leaks_alone_are_told(project, cli):
    project.add("train/2.png", Path("photos/val/9.png").read_bytes())
    project.ingest()
    code, out, error = cli("data", "diff", "v1")
    assert code == 0
    assert "photos/train: images: 1 added (photos/train/2.png)" in out
    assert error.startswith(
        "new in two splits: exact copies photos/train/2.png (photos/train) and photos/val/9.png (photos/val)"
    )
    code, out, _ = cli("data", "diff", "v1", "--json")
    assert json.loads(out)["images"][0]["added"] == ["photos/train/2.png"]


def test_leaks_that_were_there_before_are_not_told(project, cli):
    project.add("test/9.png", Path("photos/val/9.png").read_bytes())  # a split of no task, which may be built then
    commit(project, "v2")
    assert diff("v1", "v2")["leaks"]
    assert cli("data", "diff", "v2") == (0, "v2 -> the working tree: the same data\n", "")


def test_what_the_lock_keeps_of_a_task_of_the_past_is_passed_by(project, cli):
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["build@old"] = {"cmd": "memoir build old", "outs": [{"path": "data/old", "md5": "0" * 32 + ".dir"}]}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    git("commit", "-qam", "v2")
    assert cli("data", "diff", "HEAD") == (0, "HEAD -> the working tree: the same data\n", "")
    Path("params.yaml").write_text("store: store\ndatasets: {}\ntasks: [old]\nrecipes: {}\n")
    git("commit", "-qam", "v3")
    assert cli("data", "diff", "HEAD")[0] == 1

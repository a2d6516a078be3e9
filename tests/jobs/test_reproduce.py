"""`memoir reproduce`: what it refuses before it trains, where it finds the data, and what it compares."""

import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import untrained_run
from projects import begin, commit, enter, git, picture
from versions import altered

from jobs.evaluation.metrics import METRICS
from jobs.publishing.publish import publish
from jobs.reproducing import compare, data, place
from jobs.reproducing.compare import Row
from jobs.reproducing.data import bring_data
from jobs.reproducing.original import Original, read_original
from jobs.reproducing.place import Place
from pipeline.errors import UserError
from pipeline.storage import DeniedError, UnavailableError

RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 12}
optimisation: {optimiser: adam, lr: 0.00001, schedule: cosine, length: {steps: 6}}
training: {workers: 3}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
SCORES = {
    "images/jpeg-q10": {"psnr": 28.125, "images": 5, "protocol": "p", "baseline": {"psnr": 27.5}, "paper": {}},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A version of a recipe `tiny` in a store."""
    place = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        runs = untrained_run(place, RECIPE, metrics={"step": 6, "loss": 0.1}, scores=SCORES)
        return Path(publish("tiny", str(place / "team"), runs)["uri"])


@pytest.fixture
def clone(tmp_path, monkeypatch) -> str:
    """The current directory, a clone of a repository beside it without DVC's remote; returns its commit."""
    enter(tmp_path, monkeypatch)
    git("init", "-q", "-b", "main", "work")
    (tmp_path / "work/.dvc").mkdir()
    (tmp_path / "work/.dvc/config").touch()
    (tmp_path / "work/params.yaml").write_text("store: store\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    git("-C", "work", "add", "-A")
    git("-C", "work", "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", "work", "team.git")
    git("clone", "-q", str(tmp_path / "team.git"), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return git("rev-parse", "HEAD").strip()


@pytest.fixture
def version(published, clone, tmp_path):
    """Make a version that says what it is told to, of a clean training in this repository: returns its folder."""
    count = iter(range(10))

    def made(**said: Any) -> str:
        told = {"repository": str(tmp_path / "team.git"), "commit": clone, "dirty": False} | said
        number = f"{next(count):012x}"
        store = tmp_path / "store/models/tiny"
        store.mkdir(parents=True, exist_ok=True)
        copy = altered(published, number, lambda document: document.update(told))
        copy.rename(store / number)
        return str(store / number)

    return made


def refused(cli, *arguments: str) -> str:
    """The one line with which the command ends."""
    code, out, error = cli("reproduce", *arguments)
    assert (code, out) == (1, "")
    assert error.count("\n") == 1 or "runs the code of" in error.splitlines()[0]
    return error.splitlines()[-1]


def test_a_version_that_is_not_there(cli, version):
    store = Path(version()).parents[2]
    assert "no published model" in refused(cli, f"tiny/{'f' * 12}", "--store", str(store))
    assert "no published model" in refused(cli, "other", "--store", str(store))


def test_a_version_that_does_not_say_what_it_was_made_of(cli, version):
    assert "from which commit" in refused(cli, version(commit=None), "--here")
    assert "from which repository" in refused(cli, version(repository=None), "--here")
    assert "of which task" in refused(cli, version(data={"digest": "d"}), "--here")
    for task in ("../../etc", "a/b", "-x"):
        assert "of which task" in refused(cli, version(data={"digest": "d", "task": task}), "--here")


def test_the_code_of_another_repository_is_not_run_without_trust(cli, version, clone, tmp_path):
    git("clone", "-q", "--bare", str(tmp_path / "team.git"), str(tmp_path / "other.git"))
    other = version(repository=str(tmp_path / "other.git"))
    told = refused(cli, other, "--here", "--into", str(tmp_path / "into"))
    assert f"run the code of {tmp_path}/other.git at {clone}" in told
    assert "--trust-repository" in told
    assert not (tmp_path / "into").exists()
    told = refused(cli, version(), "--here", "--repository", str(tmp_path / "other.git"))
    assert "--trust-repository" in told
    told = refused(cli, other, "--here", "--trust-repository", "--into", str(tmp_path / "into"))
    assert "cannot be brought" in told  # it went on to the data
    assert (tmp_path / "into/memoir/params.yaml").exists()


def test_a_password_in_a_url_is_neither_shown_nor_kept(cli, version, tmp_path):
    told = refused(cli, version(), "--here", "--repository", "https://me:secret@127.0.0.1:1/x.git")
    assert "secret" not in told
    assert "https://127.0.0.1:1/x.git" in told
    into = tmp_path / "into"
    refused(
        cli, version(), "--trust-repository", "--repository", "https://me:secret@127.0.0.1:1/x.git", "--into", str(into)
    )
    assert "secret" not in (into / "reproduce.json").read_text()


def test_a_password_is_not_shown_for_a_commit_that_is_not_there(published, tmp_path, monkeypatch):
    monkeypatch.setattr(place, "git", lambda *arguments, **more: b"")
    with pytest.raises(UserError, match=r"^https://git\.example\.com/x: has no commit") as told:
        place.clone(tmp_path, told_of("d"), "https://me:secret@git.example.com/x")
    assert "secret" not in str(told.value)


def test_a_commit_that_is_in_no_branch(cli, version, tmp_path, clone):
    into = ("--into", str(tmp_path / "into"))
    assert f"has no commit {'a' * 40}" in refused(cli, version(commit="a" * 40), "--here", *into)
    # it is among the repository's objects, where anybody who may propose a change can leave it
    git("-C", str(tmp_path / "work"), "commit", "-q", "--allow-empty", "-m", "proposed")
    git("-C", str(tmp_path / "work"), "push", "-q", str(tmp_path / "team.git"), "HEAD:refs/pull/1/head")
    proposed = git("-C", str(tmp_path / "work"), "rev-parse", "HEAD").strip()
    told = refused(cli, version(commit=proposed), "--here", "--into", str(tmp_path / "another"))
    assert f"has no commit {proposed} in a branch or a tag" in told


def test_changes_that_were_not_committed(cli, version):
    told = refused(cli, version(dirty=True, diff="d" * 64), "--here")
    assert f"changes that were not committed (sha256 {'d' * 16})" in told
    assert "with unknown changes" in refused(cli, version(dirty=None), "--here")
    assert "cannot be brought" in refused(cli, version(dirty=True, diff="d" * 64), "--here", "--anyway")


def test_a_folder_that_is_anothers(cli, version, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    assert "is not empty" in refused(cli, version(), "--here", "--into", str(full))
    assert "is not empty" in refused(cli, version(), "--here", "--into", str(full / "file"))
    assert [path.name for path in full.iterdir()] == ["file"]
    one, other = version(), version(when="2026-02-02T00:00:00Z")
    into = str(tmp_path / "into")
    refused(cli, one, "--here", "--into", into)
    told = refused(cli, other, "--here", "--into", into)
    assert f"is the reproduction of {one}" in told
    assert "cannot be brought" in refused(cli, one, "--here", "--into", into)  # the same again goes on


def test_a_folder_that_another_process_works_in(cli, version, tmp_path):
    one, into = version(), tmp_path / "into"
    refused(cli, one, "--here", "--into", str(into))
    with (into / "reproduce.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process works in it" in refused(cli, one, "--here", "--into", str(into))


def test_a_commit_without_a_remote_and_one_without_an_environment(cli, version, tmp_path):
    told = refused(cli, version(), "--here", "--into", str(tmp_path / "into"))
    assert "DVC has no default remote" in told
    assert f"{tmp_path}/into/memoir/data/photos-jpeg" in told
    told = refused(cli, version(), "--into", str(tmp_path / "another"))
    assert "has no Makefile and no requirements.lock" in told


@pytest.mark.parametrize("value", ["model.name=os:system", "model.name='os:system'", "model={name: 'os:system'}"])
def test_a_version_cannot_name_code_that_its_repository_does_not(value, cli, version):
    assert "replaces the network by one of its own" in refused(cli, version(overrides=[value]), "--here")


def test_the_run_is_carried_out_as_it_was(version):
    given = read_original(version(overrides=["optimisation.lr=0.1"]), "").overrides()
    assert given[:2] == ["optimisation.lr=0.1", "training.workers=3"]
    assert not [each for each in given if each.startswith(("training.seed", "training.portable"))]
    assert "training.track=[]" in given  # it would be the version's run there


# ---- data


@pytest.fixture
def history(tmp_path, monkeypatch, without_ray) -> Path:
    """A project whose data set at v1 and v2 are in DVC's remote, checked out at the commit before v1, without any data."""
    (tmp_path / "project").mkdir()
    place = begin(tmp_path / "project", str(tmp_path / "remote"), monkeypatch)
    git("add", "-A")
    git("commit", "-q", "-m", "before")
    git("tag", "before")
    commit(place, "v1")
    picture(place.root / "photos/train/8.png", 8)
    commit(place, "v2")
    git("clone", "-q", str(place.root), str(tmp_path / "again/memoir"))
    git("-C", str(tmp_path / "again/memoir"), "checkout", "-q", "--detach", "before")
    return tmp_path


def told_of(digest: str) -> Original:
    told = {"recipe": "tiny", "data": {"task": "tiny", "digest": digest}}
    return Original("u", "0" * 12, "c" * 40, "0" * 64, "0" * 64, {}, {}, told)


def digest_at(folder: Path, tag: str) -> str:
    from jobs.sharing.repo import contents, tracked_files
    from pipeline.dvc_objects import DvcFolder
    from pipeline.revisions.lock import Lock, parse
    from pipeline.storage import storage

    project = folder / "project"
    lock = Lock.model_validate(parse(contents(project, tracked_files(project, tag)["dvc.lock"]), tag, Lock))
    (md5,) = [out.md5 for stage in lock.stages.values() for out in stage.outs if out.path == "data/tiny"]
    assert md5 is not None
    built = DvcFolder([storage(str(folder / "remote"))], md5.removesuffix(".dir"))
    return json.loads(built.read("shards.json"))["digest"]


@pytest.mark.parametrize("tag", ["v1", "v2"])
def test_the_data_set_of_a_digest_is_found_in_whichever_commit_has_it(tag, history):
    here = Place(history / "again", sys.executable, {})
    wanted = digest_at(history, tag)
    assert bring_data(here, "c" * 40, "tiny", wanted) == wanted
    assert len({digest_at(history, each) for each in ("v1", "v2")}) == 2
    assert [path.name for path in (here.clone / "data").iterdir()] == ["tiny"]  # nothing half


def test_a_data_set_that_is_half_there_is_fetched_to_its_end(history, monkeypatch):
    here = Place(history / "again", sys.executable, {})
    wanted = digest_at(history, "v1")
    from pipeline.dvc_objects import DvcFolder

    download, names = DvcFolder.download, []

    def broken(self, name, path, limit=None):
        if len(names) == 2:
            raise KeyboardInterrupt
        names.append(name)
        download(self, name, path, limit)

    monkeypatch.setattr(DvcFolder, "download", broken)
    with pytest.raises(KeyboardInterrupt):
        bring_data(here, "c" * 40, "tiny", wanted)
    assert not (here.clone / "data/tiny").exists()
    later = []
    monkeypatch.setattr(
        DvcFolder, "download", lambda self, name, *rest: later.append(name) or download(self, name, *rest)
    )
    assert bring_data(here, "c" * 40, "tiny", wanted) == wanted
    assert not set(names) & set(later)


def test_a_data_set_whose_shards_are_damaged_is_built_instead(history, monkeypatch, capsys):
    here = Place(history / "again", sys.executable, {})
    wanted = digest_at(history, "v1")
    # whole by its md5: DVC kept what was damaged before
    monkeypatch.setattr("jobs.reproducing.data.verify", lambda place: iter(["a shard: changed since it was built"]))
    asked = []

    def run(self, *arguments):
        asked.append(arguments[:2])
        raise UserError("stop")

    monkeypatch.setattr(Place, "run", run)
    with pytest.raises(UserError, match="stop"):
        bring_data(here, "c" * 40, "tiny", wanted)
    assert asked == [("memoir", "ingest")]
    assert "not taken: a shard: changed" in capsys.readouterr().err
    assert not any((here.clone / "data").iterdir())


@pytest.mark.parametrize("error", [UnavailableError, DeniedError])
def test_a_remote_that_does_not_answer_is_no_reason_to_build(error, history, monkeypatch):
    def silent(place):
        raise error("no answer")

    monkeypatch.setattr("jobs.reproducing.data.read_shards_json", silent)
    with pytest.raises(error, match="no answer"):
        bring_data(Place(history / "again", sys.executable, {}), "c" * 40, "tiny", "0" * 64)


def test_a_data_set_whose_shards_are_elsewhere_is_not_taken(history, monkeypatch):
    wanted = digest_at(history, "v1")
    read = data.read_shards_json
    monkeypatch.setattr(data, "read_shards_json", lambda place: read(place) | {"shards_in": "/elsewhere"})
    monkeypatch.setattr(data, "_build", lambda place, original: pytest.fail("built"))
    with pytest.raises(pytest.fail.Exception, match="built"):
        bring_data(Place(history / "again", sys.executable, {}), "c" * 40, "tiny", wanted)


def test_test_images_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    here = Place(tmp_path, sys.executable, {})
    git("init", "-q", str(here.clone))
    (here.clone / ".dvc").mkdir()
    (here.clone / "images").mkdir()
    (here.clone / "photos.dvc").write_text(f"outs:\n- {{md5: {'0' * 32}.dir, path: photos}}\n")
    git("-C", str(here.clone), "add", "photos.dvc")
    monkeypatch.setattr(Place, "run", lambda self, *arguments: pytest.fail("pulled without a remote"))
    runs = [{"data": "images"}, {"data": "photos/test"}, {"data": str(tmp_path)}]
    assert data.bring_tests(here, {"evaluation": {"benchmarks": runs}}) == ["photos/test"]
    assert "DVC has no default remote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "pulled"),
    [
        ("photos/val", ["photos/val"]),
        ("photos", ["photos"]),
        (".", ["photos", "data/tiny", "data/manifest"]),
        ("other", []),
    ],
)
def test_only_the_test_images_are_pulled(folder, pulled, history, monkeypatch):
    here = Place(history / "again", sys.executable, {})
    git("-C", str(here.clone), "checkout", "-q", "v2")
    (here.clone / "photos.dvc").write_text(f"outs:\n- {{md5: {'0' * 32}.dir, path: photos}}\n")
    git("-C", str(here.clone), "add", "photos.dvc")
    asked = []
    monkeypatch.setattr(Place, "run", lambda self, *arguments: asked.append(arguments))
    data.bring_tests(here, {"evaluation": {"benchmarks": [{"data": folder}]}})
    assert asked == ([("dvc", "pull", "--quiet", "--", *pulled)] if pulled else [])


def test_what_fails_in_the_clone_is_one_line(tmp_path):
    (tmp_path / "memoir").mkdir()
    here = Place(tmp_path, sys.executable, {})
    with pytest.raises(UserError, match="`no_such_module` ended with exit code 1, see above"):
        here.run("no_such_module")
    with pytest.raises(UserError, match="gave no answer"):
        here.ask("import sys; print(1); sys.exit(3)")
    assert here.ask("print('noise'); print([1, 2])") == [1, 2]


# ---- what must be equal


@pytest.mark.parametrize(
    ("changes", "must"),
    [
        ({}, True),
        ({"portable": False}, False),
        ({"portable": False, "machine": True}, True),
        ({"library": False}, False),
        ({"clean": False}, False),
        ({"workers": [2, 4]}, False),
        ({"workers": [2, 2]}, True),
        ({"gpu": True, "portable": False, "machine": True}, False),
    ],
)
def test_the_bits_must_be_equal_where_nothing_else_decides_them(changes, must):
    case = {"portable": True, "machine": False, "library": True, "clean": True, "workers": 2, "gpu": False} | changes
    rows = [
        Row("library torch", "1", "2", case["library"], must=False),
        Row("machine", "a", "b", case["machine"], must=False),
    ]
    training = {key: case[key] for key in ("workers", "gpu", "portable")}
    assert bool(compare.bits_must_be_equal(rows, case["clean"], {"training": training})) is must


def test_each_library_that_differs_is_a_row():
    rows = compare.libraries({"torch": "1", "numpy": "2"}, {"torch": "1", "numpy": "3", "ray": "4"})
    assert [(row.stage, row.there, row.here, row.equal) for row in rows] == [
        ("library numpy", "2", "3", False),
        ("library ray", "none", "4", False),
    ]
    assert all(row.holds for row in rows)
    (row,) = compare.libraries({"torch": "1"}, {"torch": "1"})
    assert row.equal


def test_a_recipe_is_what_decides_the_model_and_its_scores():
    one = {
        "model": {"a": 1},
        "training": {"seed": 0, "portable": True, "workers": 1},
        "evaluation": {"benchmarks": [{"data": "x"}]},
    }
    how = one | {"training": {"seed": 0, "portable": True, "workers": 2}}
    assert [row.equal for row in compare.recipes(one, how)] == [True]
    other = {
        "model": {"a": 2},
        "training": {"seed": 1, "portable": True},
        "evaluation": {"benchmarks": [{"data": "y"}]},
    }
    assert [(row.stage, row.there, row.here) for row in compare.recipes(one, other)] == [
        ("recipe evaluation.benchmarks.0.data", "x", "y"),
        ("recipe model.a", "1", "2"),
        ("recipe training.seed", "0", "1"),
    ]


@pytest.mark.parametrize(
    ("there", "here", "exact", "equal"),
    [
        ({"psnr": 30.0}, {"psnr": 30.0}, True, True),
        ({"psnr": 30.0}, {"psnr": 30.000001}, True, False),
        ({"psnr": 30.0}, {"psnr": 30.09}, False, True),
        ({"psnr": 30.0}, {"psnr": 29.89}, False, False),
        ({"ssim": 0.9}, {"ssim": 0.9049}, False, True),
        ({"ssim": 0.9}, {"ssim": 0.906}, False, False),
        ({"psnr": None}, {"psnr": None}, True, True),
        ({"psnr": None}, {"psnr": 60.0}, False, False),
        ({"psnr": 30.0}, {}, False, False),
    ],
)
def test_scores_are_equal_to_the_last_bit_or_within_the_tolerance(there, here, exact, equal):
    (row,) = compare.scores({"a/b": there}, {"a/b": here}, exact=exact)
    assert (row.equal, row.holds) == (equal, equal)


def test_each_metric_has_a_tolerance():
    assert {metric.digits for metric in METRICS.values()} <= compare.TOLERANCE.keys()


def test_a_benchmark_that_one_side_lacks_is_a_difference():
    rows = compare.scores({"a/b": {"psnr": 1.0}}, {"a/c": {"psnr": 1.0}}, exact=False)
    assert [(row.stage, row.equal) for row in rows] == [("score a/b", False), ("score a/c", False)]


def test_a_machine_that_is_not_recorded_is_no_equal_one():
    assert not compare.machines(None, None, ("fp32", "fp32")).equal
    one = {"cpu": "A", "instructions": "AVX2"}
    assert compare.machines(one, one, ("fp32", "fp32")).equal
    assert not compare.machines(one, one, ("fp32", "bf16")).equal
    assert not compare.machines(one, one | {"instructions": "AVX512"}, ("fp32", "fp32")).equal


def test_the_table_stands_in_columns():
    rows = [Row("data", "a", "long value", False), Row("w", "a", "b", False, must=False), Row("s", "a", "", None)]
    assert compare.table(rows) == [
        "stage  there  here        equal",
        "data   a      long value  NO",
        "w      a      b           no",
        "s      a                  not compared",
    ]

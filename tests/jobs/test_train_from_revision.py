"""Training on what DVC's remote has of a git revision, without a checkout of the data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from projects import begin, commit, enter, git, picture

from jobs.recipe import read_recipe
from jobs.training import submit
from jobs.training.loop import Run
from jobs.training.run import plan_run
from pipeline.dvc_objects import DvcFolder, object_name
from pipeline.errors import UserError
from pipeline.revisions.revision import dataset_of_task
from pipeline.shards import shard_set
from pipeline.storage import storage

pytestmark = pytest.mark.usefixtures("one_thread", "without_ray")

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 4, "bn_momentum": 0.1},
    "data": {"task": "tiny", "patch": 24, "crops": 2, "batch": 4},
    "optimisation": {"optimiser": "adam", "lr": 0.01, "schedule": "cosine", "length": {"steps": 2}},
    "training": {"workers": 1, "log_every": 1, "validate_every": 2, "seed": 3},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with a project at v1, and DVC's remote beside it."""
    folder = tmp_path_factory.mktemp("revision")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("project/tiny-recipe", "remote"):
            (folder / name).mkdir(parents=True)
        (folder / "project/tiny-recipe/tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        commit(begin(folder / "project", "../../remote", patch), "v1")
    return folder


@pytest.fixture
def project(pristine, tmp_path, s3, monkeypatch):
    """The same with the remote in a bucket."""
    monkeypatch.setattr(shard_set, "CACHE", tmp_path / "copies")
    monkeypatch.setattr("jobs.training.loop.CACHE", tmp_path / "copies")
    (tmp_path / "aws").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))  # DVC takes none that is no file
    shutil.copytree(pristine / "project", tmp_path / "project")
    for path in (pristine / "remote/files").rglob("*"):
        if path.is_file():
            storage(s3).write(f"dvc/{path.relative_to(pristine / 'remote').as_posix()}", path)
    place = enter(tmp_path / "project", monkeypatch)
    config = Path(".dvc/config")
    config.write_text(config.read_text().replace("../../remote", f"{s3}/dvc"))
    git("commit", "-q", "-a", "-m", "bucket")
    return place


def trained(data: str) -> dict[str, torch.Tensor]:
    run = Run(read_recipe("tiny-recipe/tiny.yaml"), data, torch.device("cpu"))
    run.train(lambda run: None, lambda record: None)
    assert run.state.step == 2
    return dict(run.model.state_dict())


def batches(data: str) -> list[dict[str, torch.Tensor]]:
    loader = Run(read_recipe("tiny-recipe/tiny.yaml"), data, torch.device("cpu")).loader
    return [batch for _, (_, batch) in zip(range(3), loader.batches(), strict=False)]


def clone_without_data(project, monkeypatch) -> None:
    """A clone of git alone, as on a machine that has never pulled."""
    git("clone", "-q", ".", "../bare-clone")
    enter(project.root.parent / "bare-clone", monkeypatch)
    assert not Path("data").exists()
    assert not Path("photos").exists()


def test_a_revision_in_the_bucket_trains_the_same_weights_as_the_folder(project, s3, monkeypatch):
    here, shown = trained("data/tiny"), batches("data/tiny")
    planned = plan_run("tiny-recipe/tiny.yaml", data="data", store=s3)
    clone_without_data(project, monkeypatch)
    there = plan_run("tiny-recipe/tiny.yaml", data="dvc://v1", store=s3)
    assert there.run == planned.run
    assert there.built.uri.startswith(f"{s3}/dvc/files/md5/")
    # What follows needs neither git nor DVC: a worker on another machine has only this name.
    shutil.rmtree(".git")
    shutil.rmtree(".dvc")
    for one, other in zip(shown, batches(there.built.uri), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    weights = trained(there.built.uri)
    assert weights.keys() == here.keys()
    assert all(torch.equal(weights[name], here[name]) for name in here)
    assert plan_run("tiny-recipe/tiny.yaml", data=there.built.uri, store=s3).run == planned.run  # as a job has it
    assert submit._sent(there) == there.built.uri


def test_a_job_is_told_where_the_remote_is_though_its_store_is_a_folder(project, server, tmp_path):
    planned = plan_run("tiny-recipe/tiny.yaml", data="dvc://v1", store=str(tmp_path / "store"))
    assert submit._environment(planned)["AWS_ENDPOINT_URL_S3"] == server


def test_another_commit_and_a_changed_working_tree_do_not_change_what_a_revision_is(project, s3):
    before = plan_run("tiny-recipe/tiny.yaml", data="dvc://v1", store=s3).run
    picture(project.root / "photos/train/8.png", 8)
    commit(project, "v2", push=False)
    assert plan_run("tiny-recipe/tiny.yaml", data="dvc://v1", store=s3).run == before


def test_a_revision_that_was_not_pushed_is_one_line(project, s3, cli):
    (project.root / "photos/train/1.png").unlink()
    commit(project, "v2", push=False)
    code, _, error = cli("train", "tiny-recipe/tiny.yaml", "--data", "dvc://v2", "--store", "store")
    assert (code, error.count("\n")) == (1, 1)
    assert "not there; `dvc push` it from where it was made" in error


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("dvc://", "not a git revision"),
        ("dvc://v9", "v9: not a revision that git knows here"),
        ("dvc://--all", "not a git revision"),
    ],
)
def test_an_unknown_revision_is_one_line(data, said, project, cli):
    code, _, error = cli("train", "tiny-recipe/tiny.yaml", "--data", data)
    assert (code, error.count("\n")) == (1, 1)
    assert said in error


def test_a_task_that_a_revision_lacks_and_a_project_without_a_remote_are_one_line(project, s3):
    with pytest.raises(UserError, match=r"v1: its dvc.lock has no folder data/other"):
        dataset_of_task("dvc://v1", "other")
    config = Path(".dvc/config").read_text()
    for change, said in {
        "": r"no default remote here; `dvc remote add -d NAME URL`",
        f"{config}endpointurl = http://127.0.0.1:1/\n": r"is at http://127.0.0.1:1, and memoir's requests go to",
        config.replace(f"{s3}/dvc", "gs://elsewhere"): r"is at gs://elsewhere; memoir reads a folder or s3://",
        "[[[": r"\.dvc/config: config file error",
    }.items():
        Path(".dvc/config").write_text(change)
        with pytest.raises(UserError, match=said) as told:
            dataset_of_task("dvc://v1", "tiny")
        assert "\n" not in str(told.value)


def test_a_shard_that_is_not_what_shards_json_says_is_never_trained_on(project, s3, monkeypatch):
    place = dataset_of_task("dvc://v1", "tiny")
    assert isinstance(place, DvcFolder)
    shard = next(name for name in place.files if name.startswith("train/"))
    key = f"dvc/{object_name(place.files[shard])}"
    whole = storage(s3).read(key)
    storage(s3).write(key, whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    monkeypatch.setattr("pipeline.shards.download.LONGEST_PAUSE", 0.01)
    with pytest.raises(UserError, match=f"{shard}: its sha256 is"):
        trained(place.uri)


@pytest.mark.parametrize("name", ["shards.json", "index/"])
def test_a_table_that_is_not_what_the_list_says_is_one_line(name, project, s3):
    place = dataset_of_task("dvc://v1", "tiny")
    assert isinstance(place, DvcFolder)
    (name,) = place.names(name)
    key = f"dvc/{object_name(place.files[name])}"
    storage(s3).write(key, storage(s3).read(key) + b" ")
    with pytest.raises(UserError, match=f"{name}: its contents are not those of its md5"):
        trained(place.uri)
    storage(s3).remove(key)
    with pytest.raises(UserError, match=f"{name}: its object is missing"):
        trained(place.uri)


def test_a_list_that_is_not_what_its_name_says_is_one_line(project, s3):
    place = dataset_of_task("dvc://v1", "tiny")
    key = place.uri.removeprefix(f"{s3}/")
    storage(s3).write(key, storage(s3).read(key) + b" ")
    with pytest.raises(UserError, match=r"\.dir: damaged"):
        trained(place.uri)


def test_shards_elsewhere_than_in_the_remote_are_refused(project, s3):
    listing = json.loads(Path("data/tiny/shards.json").read_text()) | {"shards_in": "/etc"}

    def elsewhere() -> None:
        Path("data/tiny/shards.json").write_text(json.dumps(listing))

    commit(project, "v2", after_build=elsewhere)
    with pytest.raises(UserError, match=r"its shards are in /etc, and not in DVC's remote"):
        trained(dataset_of_task("dvc://v2", "tiny").uri)


def test_a_dataset_in_a_remote_is_verified_there(project, cli):
    place = dataset_of_task("dvc://v1", "tiny")
    code, out, error = cli("verify", place.uri)
    assert (code, error) == (0, "")
    assert out.endswith(": whole\n")


@pytest.mark.slow
def test_the_command_trains_from_the_bucket_what_it_trains_from_the_folder(project, s3, monkeypatch):
    def train(data: str, store: str) -> str:
        command = ["train", "tiny-recipe/tiny.yaml", "--data", data, "--store", f"{s3}/{store}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-m", "memoir", *command], env=environment, check=True)
        pointer = json.loads(Path("runs/tiny/checkpoint.json").read_text())
        return f"{pointer['run']} {pointer['sha256']}"

    here = train("data", "one")
    clone_without_data(project, monkeypatch)
    assert train("dvc://v1", "other") == here

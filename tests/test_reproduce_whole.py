"""A published version is trained anew by somebody who has nothing but the repository and DVC's remote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import JPEG, TINY_PARAMS, tiny_photographs
from versions import altered

from jobs.reproducing.original import read_original
from pipeline.shards.format import file_sha256

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 1, "recursions": 1, "channels": 2},
    "data": {"mix": [{"task": "tiny"}, {"task": "noisy"}], "patch": 12, "stride": 8, "batch": 2},
    "optimisation": {"optimiser": "adam", "lr": 0.001, "schedule": "cosine", "length": {"steps": 4}},
    "training": {"workers": 1, "portable": True},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = JPEG | {"splits": {"train": ["photos/train"], "val": ["photos/val"]}}
NOISE = {"kind": "noise", "sigma": [15, 25]}
STAGES = {
    "ingest": {"cmd": "memoir ingest", "deps": ["photos"], "outs": ["data/manifest"]},
    "build": {"cmd": "memoir build tiny", "deps": ["data/manifest"], "outs": ["data/tiny"]},
    "build-noisy": {"cmd": "memoir build noisy", "deps": ["data/manifest"], "outs": ["data/noisy"]},
}


class Team(NamedTuple):
    """ada: the clone that published. version: its folder in the store. first: the commit before, whose seed is another one."""

    ada: Path
    version: Path
    first: str

    @property
    def shared(self) -> dict[str, str]:
        """All files of the store, the store of shards, DVC's remote and MLflow, with their sha256."""
        places = ("ada/store", "shards", "remote", "mlflow")
        files = [path for name in places for path in (self.ada.parent / name).rglob("*")]
        return {str(path): file_sha256(path) for path in files if path.is_file()}


def run(root: Path, *command: str, code: int = 0, **variables: str) -> str:
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def commit(root: Path, message: str) -> None:
    for command in (["add", "-A"], ["commit", "-qm", message], ["push", "-q", "origin", "HEAD"]):
        run(root, "git", *command)


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Team:
    """A repository, DVC's remote in a folder, and a version that its first member has published."""
    folder = tmp_path_factory.mktemp("team")
    ada = folder / "ada"
    run(folder, "git", "init", "-q", "--bare", "-b", "main", "team.git")
    run(folder, "git", "clone", "-q", str(folder / "team.git"), "ada")
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, ada / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "memoir.py", ada / "memoir.py")
    for name, content in (
        ("jobs/recipes/tiny", RECIPE | {"training": {"workers": 1, "portable": True, "seed": 7}}),
        ("pipeline/tasks/tiny", TASK),
        ("pipeline/tasks/noisy", TASK | {"degradation": NOISE}),
        ("params", TINY_PARAMS | {"shards": str(folder / "shards")}),
        ("dvc", {"stages": STAGES}),
    ):
        (ada / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (ada / ".gitignore").write_text("/store\n/runs\n/data\n/.cache\n/reproduced\n__pycache__\n")
    tiny_photographs(ada)
    for command in ("dvc init -q", f"dvc remote add -q -d team {folder / 'remote'}", "dvc add -q photos"):
        run(ada, *command.split())
    commit(ada, "Another seed")
    first = run(ada, "git", "rev-parse", "HEAD").strip()
    (ada / "jobs/recipes/tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    commit(ada, "The recipe")
    # as `dvc repro` does it: what was built for a training is committed after it
    run(ada, "dvc", "repro", "-q")
    mlflow = {"MLFLOW_TRACKING_URI": f"file:{folder / 'mlflow'}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    run(ada, "memoir", "train", "tiny", "--set", "training.track=[mlflow]", **mlflow)
    assert list((folder / "mlflow").rglob("metrics/loss"))
    run(ada, "memoir", "evaluate", "--model", "tiny")
    run(ada, "memoir", "publish", "tiny")
    run(ada, "dvc", "push", "-q")
    commit(ada, "The data set")
    published = json.loads((ada / "runs/tiny/published.json").read_text())
    return Team(ada, ada / "store" / published["model"], first)


@pytest.fixture(scope="module")
def reproduced(team) -> tuple[Path, str]:
    """The folder of a reproduction, and what it printed."""
    before = team.shared
    # a cluster's address, which is not for this
    cluster = {"RAY_ADDRESS": "http://127.0.0.1:1"}
    mlflow = {"MLFLOW_TRACKING_URI": f"file:{team.ada.parent / 'mlflow'}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    out = run(team.ada, "memoir", "reproduce", f"tiny/{team.version.name}", "--here", **cluster, **mlflow)
    assert team.shared == before
    return team.ada / "reproduced" / f"tiny-{team.version.name}", out


def lines(out: str) -> dict[str, str]:
    """The last column of each row of the table, by its first."""
    rows = [line.split("  ") for line in out.splitlines()[1:-1]]
    return {row[0].strip(): row[-1].strip() for row in rows}


def test_the_weights_are_the_same_bits(team, reproduced):
    folder, out = reproduced
    pointer = json.loads((folder / "memoir/runs/tiny/checkpoint.json").read_text())
    weights = folder / "store" / pointer["checkpoint"] / "model.safetensors"
    assert file_sha256(weights) == file_sha256(team.version / "model.safetensors")
    assert "reproduced: the same weights, bit for bit" in out
    found = lines(out)
    assert set(found.values()) == {"yes"}
    assert [*found][:6] == ["code", "libraries", "data tiny", "data noisy", "recipe", "run"]
    assert {"machine", "weights", "score photos-val/jpeg-q10 psnr"} <= found.keys()
    assert not (team.ada.parent / "remote/files/md5/tmp").exists()


def test_the_data_set_is_found_in_the_commit_that_has_it(team, reproduced):
    folder, _ = reproduced
    assert not (folder / "memoir/dvc.lock").exists()  # the training's commit is from before
    assert not (folder / "shards").exists()  # nothing was built
    for built in ("data/tiny/shards.json", "data/noisy/shards.json"):
        assert (folder / "memoir" / built).read_bytes() == (team.ada / built).read_bytes()


def test_a_version_names_all_that_it_was_trained_on(team):
    data = json.loads((team.version / "provenance.json").read_text())["data"]
    digests = {
        task: json.loads((team.ada / f"data/{task}/shards.json").read_text())["digest"] for task in ("tiny", "noisy")
    }
    assert {data["task"]: data["digest"], **data["mixed_with"]} == digests
    card = (team.version / "card.md").read_text()
    assert "mixed in the proportions 1 of `tiny`, 1 of `noisy`" in card
    assert all(digest in card for digest in digests.values())


def test_the_same_command_goes_on_and_trains_nothing_twice(team, reproduced):
    folder, out = reproduced
    (done,) = folder.glob("store/runs/*/done.json")
    before = done.stat().st_mtime_ns
    assert run(team.ada, "memoir", "reproduce", f"tiny/{team.version.name}", "--here") == out
    assert done.stat().st_mtime_ns == before


def test_another_seed_in_the_commit_is_named(team):
    altered(team.version, "1" * 12, lambda told: told.update(commit=team.first))
    out = run(team.ada, "memoir", "reproduce", f"tiny/{'1' * 12}", "--here", code=1)
    assert "not reproduced; the first that differs: recipe training.seed: 0 there, 7 here" in out
    assert lines(out) == {
        "code": "yes",
        "libraries": "yes",
        "data tiny": "yes",
        "data noisy": "yes",
        "recipe training.seed": "NO",
    }


def test_a_clone_that_was_changed_is_named(team, reproduced):
    folder, _ = reproduced
    recipe = folder / "memoir/jobs/recipes/tiny.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("portable: true", "portable: true\n  seed: 7"))
    try:
        out = run(team.ada, "memoir", "reproduce", f"tiny/{team.version.name}", "--here", code=1)
    finally:
        recipe.write_text(text)
    assert "the first that differs: code: " in out
    assert ", changed: jobs/recipes/tiny.yaml here" in out


def test_other_data_are_named_after_they_were_built_from_the_raw_images(team):
    shutil.rmtree(team.ada.parent / "shards")  # the store of shards that params.yaml names: a build would fill it again
    before = team.shared
    digest = json.loads((team.ada / "data/tiny/shards.json").read_text())["digest"]
    copy = altered(team.version, "2" * 12, lambda told: told["data"].update(digest="0" * 64))
    out = run(team.ada, "memoir", "reproduce", f"tiny/{copy.name}", "--here", code=1)
    assert f"not reproduced; the first that differs: data tiny: {'0' * 16}... there, {digest[:16]}... here" in out
    assert {name: sha256 for name, sha256 in team.shared.items() if copy.name not in name} == before


def as_if_reproduced(folder: Path, version: Path) -> str:
    """A copy of a reproduction that is said to be of this other version, which saves its training; returns the folder."""
    copy = folder.parent / version.name
    shutil.copytree(folder, copy, symlinks=True)
    mark = json.loads((copy / "reproduce.json").read_text())
    (copy / "reproduce.json").write_text(json.dumps(mark | {"sums": read_original(str(version), "").sums}))
    return str(copy)


def test_another_library_is_named_and_equal_weights_are_equal_all_the_same(team, reproduced):
    version = altered(team.version, "3" * 12, lambda told: told["libraries"].update(torch="1.0"))
    into = as_if_reproduced(reproduced[0], version)
    out = run(team.ada, "memoir", "reproduce", f"tiny/{version.name}", "--here", "--into", into)
    assert "reproduced: the same weights, bit for bit; the first that differs: library torch: 1.0 there, " in out
    assert lines(out)["library torch"] == "no"


def test_other_weights_are_named_where_they_must_be_equal(team, reproduced):
    half = altered(team.version, "4" * 12, lambda told: None)
    (half / "model.safetensors").write_bytes(b"others")
    version = altered(half, "5" * 12, lambda told: None)
    into = as_if_reproduced(reproduced[0], version)
    out = run(team.ada, "memoir", "reproduce", f"tiny/{version.name}", "--here", "--into", into, code=1)
    assert "not reproduced; the first that differs: weights: " in out
    assert lines(out)["weights"] == "NO"
    assert lines(out)["score photos-val/jpeg-q10 psnr"] == "yes"

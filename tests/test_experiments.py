"""Experiments of DVC with the project's own stages, alone and in a team: what was asked for is trained, once, and comes to all."""

import csv
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import TINY_PARAMS, photograph

from pipeline.images import write_image
from pipeline.shards.format import file_sha256

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 1, "recursions": 1, "channels": 2},
    "data": {"task": "tiny", "patch": 12, "stride": 8, "batch": 2},
    "optimisation": {"optimiser": "adam", "lr": 0.001, "schedule": "cosine", "length": {"steps": 4}},
    "training": {"workers": 1},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/test"}]},
}
TASK = {"colour": "y", "degradation": {"kind": "jpeg", "quality": [10]}, "splits": {"train": ["photos/train"]}}
LR = "jobs/recipes/tiny.yaml:optimisation.lr"
PATIENCE = 240  # seconds for the experiments of a queue, on a machine that does other things


class Clone:
    """A clone of the team's repository, with the team's store and remote beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            **{f"GIT_{who}_{what}": "a@a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, *command: str, rc: int = 0) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *stages: str) -> list[str]:
        """`dvc repro`; returns the stages that ran."""
        return re.findall("Running stage '(.*)'", self.run("dvc", "repro", *stages))

    def commit(self, push: bool = True) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "another")
        if push:
            self.run("git", "push", "-q", "origin", "main")
            self.run("dvc", "push", "-q", "--run-cache")

    def clone(self, name: str = "b") -> "Clone":
        """Another clone beside this one, with nothing of DVC pulled."""
        self.run("git", "clone", "-q", "-b", "main", str(self.root.parent / "git"), str(self.root.parent / name))
        return Clone(self.root.parent / name)

    def learn_at(self, lr: float) -> None:
        """Another learning rate in the recipe."""
        recipe = self.root / "jobs/recipes/tiny.yaml"
        recipe.write_text(yaml.safe_dump({**RECIPE, "optimisation": {**RECIPE["optimisation"], "lr": lr}}))

    @property
    def store(self) -> Path:
        return self.root.parent / "store"

    def pointer(self, name: str = "checkpoint") -> dict[str, str]:
        return json.loads((self.root / f"runs/tiny/{name}.json").read_text())

    def trained(self) -> dict[float, str]:
        """The sha256 of the weights in the store, by the learning rate that they were trained with."""
        found = {}
        for done in self.store.glob("runs/*/done.json"):
            (weights,) = done.parent.glob("step-*/model.safetensors")
            recipe = json.loads((weights.parent / "recipe.json").read_text())
            found[recipe["optimisation"]["lr"]] = file_sha256(weights)
        return found

    def latest(self) -> dict[str, str]:
        return json.loads((self.store / "models/tiny/latest.json").read_text())

    def experiments(self) -> list[str]:
        return sorted(self.run("dvc", "exp", "list", "--name-only").split())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's folder: clone `a` with everything made and pushed, the bare repository `git`, DVC's `remote` and `store`."""
    base = tmp_path_factory.mktemp("experiments") / "team"
    root = base / "a"
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in ("memoir.py", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, root / name)
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write_image(root / f"photos/{split}/{i}.png", photograph(i + 10 * count, 24, 24))
    for name, content in (
        ("params", TINY_PARAMS | {"store": "../store"}),
        ("pipeline/tasks/tiny", TASK),
        ("jobs/recipes/tiny", RECIPE),
    ):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    a = Clone(root)
    a.run("git", "init", "-q", "-b", "main")
    a.run("git", "init", "-q", "--bare", "../git")
    a.run("git", "remote", "add", "origin", "../git")
    a.run("dvc", "remote", "add", "-q", "-d", "team", "../remote")
    a.run("dvc", "add", "-q", "photos")
    a.commit(push=False)
    assert a.repro()[-1] == "report"
    a.commit()
    return base


@pytest.fixture
def a(template: Path, tmp_path: Path) -> Clone:
    shutil.copytree(template, tmp_path / "team", symlinks=True)
    return Clone(tmp_path / "team/a")


@pytest.fixture(params=["embedded", "cluster"])
def ray(request: pytest.FixtureRequest, a: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the stages of clone `a` find Ray: each its own, or all of them one cluster at RAY_ADDRESS."""
    if request.param == "embedded":
        yield request.param
        return
    token, folder = a.root.parent / "token", tempfile.mkdtemp(prefix="ray-")  # a short path: sockets are in it
    token.write_text(secrets.token_hex(32))
    a.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ports = {name: free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
    options = ports | {
        "num-cpus": 2,
        "include-dashboard": "false",
        "object-store-memory": 10**8,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": folder,
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    head = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env=a.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    a.environment["RAY_ADDRESS"] = f"127.0.0.1:{ports['port']}"
    try:
        up = (
            sys.executable,
            "-c",
            "import ray; ray.init('auto', log_to_driver=False); assert ray.cluster_resources()['CPU']",
        )
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(up, env=a.environment, capture_output=True).returncode:
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
        yield request.param
    finally:
        mine = [psutil.Process(head.pid)] if head.poll() is None else []
        mine += [child for process in mine for child in process.children(recursive=True)]
        for process in mine:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(mine, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def queued(a: Clone, grid: str, *stages: str) -> str:
    """Run a grid, two experiments at a time, to its end; returns what the queue says then."""
    a.run("dvc", "exp", "run", "--queue", "-S", f"{LR}={grid}", *stages)
    a.run("dvc", "queue", "start", "-j", "2")
    deadline = time.monotonic() + PATIENCE
    try:
        while re.search("Queued|Running", status := a.run("dvc", "queue", "status")):
            assert time.monotonic() < deadline, status
            time.sleep(1)
    finally:
        a.run("dvc", "queue", "stop")
    return status


def test_a_grid_at_two_at_a_time_trains_what_it_was_asked_for_and_comes_to_the_team(a, ray):
    before, first = a.latest(), a.trained()
    status = queued(a, "0.002,0.003,0.004", "publish@tiny")
    assert status.count("Success") == 3, "".join(
        a.run("dvc", "queue", "logs", name) for name in re.findall(r"(\w+-\w+) .*Failed", status)
    )
    trained = a.trained()
    assert set(trained) == {0.001, 0.002, 0.003, 0.004}
    assert len(set(trained.values())) == 4
    assert trained[0.001] == first[0.001]
    assert a.latest() == before
    alone = ("--store", "../alone", "--runs", "runs-alone", "--set", "optimisation.lr=0.003")
    a.run("memoir", "train", "tiny", *alone)
    assert json.loads((a.root / "runs-alone/tiny+lr=0.003/checkpoint.json").read_text())["sha256"] == trained[0.003]
    shutil.rmtree(a.root / "runs-alone")

    names = a.experiments()
    columns, *rows = csv.reader(a.run("dvc", "exp", "show", "--only-changed", "--csv").splitlines())
    lr, psnr = columns.index("optimisation.lr"), next(i for i, name in enumerate(columns) if name.endswith("psnr"))
    assert len(columns) <= 30
    of_grid = {row[lr]: row[psnr] for row in rows if set(row) & set(names)}
    assert set(of_grid) == {"0.002", "0.003", "0.004"}
    assert all(of_grid.values())
    plots = json.loads(a.run("dvc", "plots", "diff", *names, "--json"))["data"]
    (curve,) = (points for name, points in plots.items() if "curve.tsv" in name)
    assert all(name in json.dumps(curve) for name in names)

    (chosen,) = (name for row in rows for name in names if name in row and row[lr] == "0.003")
    a.run("dvc", "exp", "push", "-q", "origin", chosen)
    b = a.clone()
    b.run("dvc", "exp", "pull", "-q", "origin", chosen)
    b.run("dvc", "exp", "apply", "-q", chosen)
    b.run("dvc", "pull", "-q")
    assert b.pointer()["sha256"] == trained[0.003]
    b.run("memoir", "evaluate", "--model", "tiny")
    assert b.latest() == before
    b.run("memoir", "publish", "tiny")
    assert b.latest() != before
    assert b.latest()["version"] == b.pointer("published")["model"].rpartition("/")[2]


def test_an_experiment_of_one_stage_sees_an_edit_of_the_images(a):
    path = a.root / "photos/train/0.png"
    path.unlink()
    write_image(path, photograph(77, 24, 24))
    a.run("dvc", "add", "-q", "photos")
    said = a.run("dvc", "exp", "run", "--temp", "train@tiny")
    assert re.findall("Running stage '(.*)'", said) == ["list", "ingest", "build@tiny", "train@tiny"]
    assert "memoir: runs the code of this directory" in said
    assert "not at hand" not in said
    a.run("dvc", "exp", "apply", "-q", *a.experiments())
    assert a.repro("train@tiny") == ["list"]  # the same as the stages make of the images here


def test_an_experiment_of_one_stage_lists_the_images_that_dvc_tracks(a):
    said = a.run("dvc", "exp", "run", "--temp", "-S", f"{LR}=0.01", "-s", "list")
    assert "not at hand" not in said
    assert "not there" not in said


def test_half_pulled_images_are_no_data_set_for_an_experiment(a):
    md5 = yaml.safe_load((a.root / "photos.dvc").read_text())["outs"][0]["md5"]
    cache = a.root / ".dvc/cache/files/md5"
    listed = json.loads((cache / md5[:2] / md5[2:]).read_text())
    lost = listed[0]["md5"]
    (cache / lost[:2] / lost[2:]).unlink()
    said = a.run("dvc", "exp", "run", "--temp", "-S", f"{LR}=0.01", "train@tiny", rc=255)
    assert "memoir: photos: DVC's cache has 4 of its 5 files; run `dvc pull photos.dvc` in the project" in said
    assert "Traceback" not in said
    assert 0.01 not in a.trained()


def test_what_a_colleague_has_trained_is_not_trained_again(a):
    a.learn_at(0.005)
    assert "train@tiny" in a.repro()
    a.run("dvc", "push", "-q", "--run-cache")  # of an edit that is not committed
    b = a.clone()
    b.learn_at(0.005)
    b.run("dvc", "pull", "-q", "--run-cache")
    assert b.repro("--pull") == ["list"]
    assert (b.pointer(), b.pointer("published")) == (a.pointer(), a.pointer("published"))
    assert (b.root / "dvc.lock").read_bytes() == (a.root / "dvc.lock").read_bytes()
    assert b.repro() == ["list"]


def test_going_back_to_an_older_recipe_trains_nothing(a):
    first = a.pointer()
    a.learn_at(0.005)
    a.repro()
    a.commit(push=False)
    assert a.pointer() != first
    a.run("git", "checkout", "-q", "HEAD~", "--", "jobs/recipes/tiny.yaml")
    assert a.repro() == ["list"]
    assert a.pointer() == first

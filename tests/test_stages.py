"""dvc.yaml tells the truth: which edits run which stages again, as the real DVC sees it. Nothing is trained."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import photograph, untrained_run

import memoir
from jobs.origin import digest, origin
from jobs.recipe import read_recipe
from pipeline.images import write_image
from pipeline.storage import storage

ROOT = Path(__file__).parent.parent
TASK = "colour: y\ndegradation: {kind: jpeg, quality: [10]}\nsplits: {train: [photos/train]}\nshard_bytes: 65536\n"
RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2}
data: {task: tiny, patch: 16, stride: 16, batch: 2}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 6}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: DATA}]}
"""


class Project:
    """A copy of the project as a git repository of its own, with one task, one recipe and photographs outside of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.photos = root, root.parent / "photographs"

    def write(self, **changes: Any) -> None:
        """params.yaml."""
        params: dict[str, Any] = {
            "store": "store",
            "datasets": {"photos": {"layout": "folder", "root": str(self.photos)}},
            "tasks": ["tiny"],
            "recipes": {"tiny": {"task": "tiny"}},
        }
        (self.root / "params.yaml").write_text(yaml.safe_dump(params | changes))

    def run(self, *command: str, rc: int = 0) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        }
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *stages: str, rc: int = 0) -> list[str]:
        """`dvc repro`; returns the stages that ran."""
        return re.findall("Running stage '(.*)'", self.run("dvc", "repro", *stages, rc=rc))

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stages") / "memoir"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(
        re.compile(r"(pipeline|jobs|\.dvc)/|memoir\.py$|dvc\.yaml$|\.gitignore$|\.dvcignore$").match,
        listed.stdout.split("\n"),
    ):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    project = Project(root)
    project.write()
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write_image(project.photos / split / f"{i}.png", photograph(i + 10 * count, 48, 48))
    (root / "pipeline/tasks/tiny.yaml").write_text(TASK)
    (root / "jobs/recipes/tiny.yaml").write_text(RECIPE.replace("DATA", str(project.photos / "test")))
    project.run("git", "init", "-q")
    project.commit()
    return root.parent


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    place = tmp_path / "place"
    shutil.copytree(template, place)
    project = Project(place / "memoir")
    project.write()
    recipe = project.root / "jobs/recipes/tiny.yaml"
    recipe.write_text(recipe.read_text().replace(str(template), str(place)))
    project.commit()
    return project


def trained(project: Project) -> None:
    """The outs of the stage `train`, as if it had run."""
    made = project.root.parent / "made"
    recipe = (project.root / "jobs/recipes/tiny.yaml").read_text()
    untrained_run(made, recipe.replace("task: tiny", "task: photos-jpeg"), metrics={"step": 6, "psnr": 20.5})
    for name in ("runs", "store"):
        shutil.copytree(made / name, project.root / name, dirs_exist_ok=True)
    path = project.root / "runs/tiny/checkpoint.json"
    run = json.loads(path.read_text())["run"]
    name = f"tiny-{digest(origin(read_recipe(str(project.root / 'jobs/recipes/tiny.yaml')), 'd1935'))}"
    path.write_text(path.read_text().replace(run, name))
    (project.root / "store/runs" / run).rename(project.root / "store/runs" / name)
    (project.root / "runs/tiny/curve.tsv").write_text("step\tloss\tpsnr\tval_psnr\tlr\n6\t0.1\t20.5\t\t0.1\n")
    (project.root / "data/tiny").mkdir(parents=True)
    (project.root / "data/tiny/shards.json").write_text("{}")
    project.run("dvc", "commit", "-q", "-f", "train@tiny")


def test_an_edit_outside_of_the_project_is_seen_and_nothing_is_done_without_one(project):
    assert project.repro("build@tiny") == ["list", "ingest", "build@tiny"]
    shards = (project.root / "data/tiny/shards.json").read_bytes()
    for path in project.photos.rglob("*.png"):
        os.utime(path)  # other times are no other contents
    assert project.repro("build@tiny") == ["list"]
    write_image(project.photos / "train/0.png", photograph(99, 48, 48))
    assert project.repro("build@tiny") == ["list", "ingest", "build@tiny"]
    assert (project.root / "data/tiny/shards.json").read_bytes() != shards


def test_an_edit_in_a_bucket_is_seen(project, s3):
    bucket = storage(f"{s3}/raw")
    for path in project.photos.rglob("*.png"):
        bucket.write(path.relative_to(project.photos).as_posix(), path)
    project.write(datasets={"photos": {"layout": "folder", "root": f"{s3}/raw"}})
    assert project.repro("ingest") == ["list", "ingest"]
    manifest = project.root / "data/manifest/manifest.json"
    before = manifest.read_bytes()
    bucket.write("train/1.png", project.photos / "train/1.png")  # once more: other times are no other contents
    assert project.repro("ingest") == ["list"]
    bucket.write("train/1.png", project.photos / "train/2.png")
    assert project.repro("ingest") == ["list", "ingest"]
    assert manifest.read_bytes() != before


def test_a_second_clone_with_equal_data_does_nothing(project):
    project.repro("build@tiny")
    clone = Project(project.root.parent / "clone")
    project.run("dvc", "remote", "add", "-d", "team", str(project.root.parent / "remote"))
    project.run("dvc", "push", "-q")
    project.commit()
    project.run("git", "clone", "-q", str(project.root), str(clone.root))
    clone.run("dvc", "pull", "-q", "list", "ingest", "build@tiny")
    assert clone.repro("build@tiny") == ["list"]
    shutil.rmtree(project.photos)  # a clone that has the shards needs no images
    said = clone.run("dvc", "repro", "build@tiny")
    assert re.findall("Running stage '(.*)'", said) == ["list"]
    assert "photos: taken as it was listed before, 5 files, for it is not at hand" in said


def test_scores_are_made_again_when_the_test_images_change_and_only_then(project):
    only = ("-s", "list", "evaluate@tiny")  # not what is before it: nothing is trained here
    project.repro("-s", "list", "ingest")
    trained(project)
    assert project.repro(*only) == ["list", "evaluate@tiny"]
    scores = (project.root / "runs/tiny/scores.json").read_bytes()
    write_image(project.photos / "train/new.png", photograph(5, 48, 48))
    (project.photos / "test/notes.txt").write_text("no image")
    assert project.repro(*only) == ["list"]
    write_image(project.photos / "test/0.png", photograph(6, 48, 48))
    assert project.repro(*only) == ["list", "evaluate@tiny"]
    assert (project.root / "runs/tiny/scores.json").read_bytes() != scores


def test_dvc_shows_the_parameter_that_differs_and_numbers(project):
    trained(project)
    project.repro("-s", "list", "evaluate@tiny")
    project.commit()
    metrics = json.loads(project.run("dvc", "metrics", "show", "--json"))
    files = metrics[""]["data"]
    assert set(files) == {"runs/tiny/metrics.json", "runs/tiny/scores.json"}
    scores = files["runs/tiny/scores.json"]["data"]
    assert {name: set(row) for name, row in scores.items()} == {"photographs-test/jpeg-q10": {"psnr", "ssim"}}
    assert all(isinstance(value, float) for row in scores.values() for value in row.values())
    recipe = project.root / "jobs/recipes/tiny.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.001", "lr: 0.01"))
    shown = csv.reader(project.run("dvc", "exp", "show", "--csv", "--only-changed").splitlines())
    columns = next(shown)
    assert "optimisation.lr" in columns
    assert not [name for name in columns if name.startswith(("optimisation.s", "model", "data.", "training"))]
    assert len(columns) < 30
    (name,) = json.loads(project.run("dvc", "params", "diff", "--json"))["jobs/recipes/tiny.yaml"]
    assert name == "optimisation.lr"
    (project.root / "runs/tiny/curve.tsv").write_text("step\tloss\tpsnr\tval_psnr\tlr\n6\t0.1\t25.5\t\t0.1\n")
    plots = json.loads(project.run("dvc", "plots", "diff", "HEAD", "--json"))["data"]
    (curve,) = (points for name, points in plots.items() if "curve.tsv" in name)
    assert "25.5" in json.dumps(curve)


def test_without_tasks_and_recipes_everything_ends_well(project):
    project.write(tasks=[], recipes={})
    assert project.repro() == ["list", "ingest", "report"]
    assert "There is nothing yet" in (project.root / "report/index.html").read_text()
    assert project.repro() == ["list"]


def commands(project: Project) -> list[str]:
    """`dvc repro --dry --force`, which is over all stages: their commands, each one that memoir takes with these arguments."""
    known = typer.main.get_command(memoir.app).commands
    names = []
    for line in re.findall("^> (.*)$", project.run("dvc", "repro", "--dry", "--force"), re.MULTILINE):
        program, name, *arguments = shlex.split(line)
        assert program == "memoir"
        known[name].make_context(name, arguments)  # raises for an argument too many, or an unknown option
        names.append(name)
    return names


STAGES = ["list", "ingest", "build", "train", "evaluate", "publish", "restore", "report"]


def test_every_stage_is_a_command_that_memoir_takes_also_for_names_with_dots(project):
    for folder, name in (("pipeline/tasks", "t.1"), ("jobs/recipes", "v1.5")):
        shutil.move(project.root / folder / "tiny.yaml", project.root / folder / f"{name}.yaml")
    project.write(tasks=["t.1"], recipes={"v1.5": {"task": "t.1"}})
    assert commands(project) == STAGES
    assert project.repro("build@t.1") == ["list", "ingest", "build@t.1"]
    assert json.loads((project.root / "data/t.1/shards.json").read_text())["task"] == "t.1"


@pytest.mark.skipif("${store}" in (ROOT / "dvc.yaml").read_text(), reason="the stages' commands name the store")
def test_a_store_may_have_a_space_in_its_path(project):
    project.write(store="our store")
    assert commands(project) == STAGES


def test_a_name_that_no_command_can_have_is_one_line(project):
    project.write(tasks=["two words"])
    said = project.run("dvc", "repro", "build", rc=255)
    assert re.findall("Running stage '(.*)'", said) == ["list"]
    assert "memoir: params.yaml:" in said
    assert "a name is of letters, digits" in said
    assert "Traceback" not in said

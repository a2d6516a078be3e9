"""Sweeps: what is planned before anything starts, which commands run, and the table."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_PARAMS, tiny_photographs

from jobs.evaluation.interval import margin
from jobs.recipe import read_recipe
from jobs.sweep import MOST, plan, read_grid, rungs, sweep, table
from pipeline.errors import UserError

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 1, "recursions": 1, "channels": 4, "bn_momentum": 0.1},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 8},
    "optimisation": {"optimiser": "adam", "lr": 0.002, "schedule": "cosine", "length": {"steps": 8}},
    "training": {"workers": 1, "log_every": 4, "validate_every": 8, "checkpoint_every": 8},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10, 20]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a built dataset `data/tiny` and a recipe `tiny.yaml` for it."""
    root = tmp_path_factory.mktemp("sweep")
    tiny_photographs(root)
    (root / "task").mkdir()
    for name, content in (("params", TINY_PARAMS), ("task/tiny", TASK), ("tiny", RECIPE)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for command in (["ingest"], ["build", "task/tiny.yaml", "--cpus", "1"]):
        subprocess.run([sys.executable, "-m", "memoir", *command], cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def planned(*grid: str, seeds: int | None = None, overrides: tuple[str, ...] = ()) -> Any:
    return plan("tiny.yaml", read_grid([*grid]), seeds, [*overrides], data="data", store="store")


def test_a_sweep_is_all_combinations_with_all_seeds(here):
    points = planned("optimisation.lr=1e-3,0.002", "optimisation.ema=null,{decay: 0.9}", seeds=2)
    assert [point.values for point in points] == [
        {"optimisation.lr": lr, "optimisation.ema": ema} for lr in (0.001, 0.002) for ema in (None, {"decay": 0.9})
    ]
    assert [each.recipe.training.seed for point in points for each in point.runs] == [0, 1] * 4
    assert len({each.run for point in points for each in point.runs}) == 8
    assert points[1].runs[0].recipe.optimisation.ema.decay == 0.9


@pytest.mark.parametrize(
    ("grid", "seeds", "says"),
    [
        (["optimisation.lr"], None, "--grid optimisation.lr: expected section.key=value,value"),
        (["optimisation.lr="], None, "expected section.key=value,value"),
        (["optimisation.lr=1", "optimisation.lr=2"], None, "--grid optimisation.lr: comes twice"),
        (["optimisation.rl=1e-3,2e-3"], None, "did you mean 'lr'"),
        (["optimisation.lr=0.001,-1"], None, "greater than 0"),
        (["optimisation.lr=0.001,1e-3"], None, "two of the combinations are the same run"),
        (["training.workers=1,2"], None, "two of the combinations are the same run"),
        (["model.predict_at=1,null"], None, "changes no weights"),
        (["optimisation.lr=0.1,0.2"], MOST, "runs are more than 1,000"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(grid, seeds, says, here):
    with pytest.raises(UserError, match=says.replace("(", r"\(")) as error:
        planned(*grid, seeds=seeds)
    assert "\n" not in str(error.value)


def fake(scores: dict[str, float | None], asked: list[list[str]]) -> Any:
    """A runner of commands that only notes them; scores: the PSNR by a part of the model's name."""

    def run(arguments: list[str]) -> str:
        asked.append(arguments)
        name = arguments[arguments.index("--model") + 1] if arguments[0] == "evaluate" else ""
        value = next((value for part, value in scores.items() if part in name), None)
        return json.dumps({"val/jpeg-q10": {"psnr": value, "ssim": 0.5, "baseline": {}}})

    return run


def test_each_run_is_trained_and_evaluated_and_the_best_comes_first(here):
    asked: list[list[str]] = []
    scores = {"lr=0.001+seed=0": 27.0, "lr=0.001+seed=1": 27.5, "lr=0.004+seed=0": 28.0, "lr=0.004+seed=1": 28.1}
    points = planned("optimisation.lr=0.001,0.004", seeds=2, overrides=("optimisation.clip=1", "training.log_every=2"))
    rows = sweep("tiny.yaml", points, data="data", store="store", runs=Path("runs"), run=fake(scores, asked))
    assert [arguments[0] for arguments in asked] == ["train", "evaluate"] * 4
    assert asked[2][:2] == ["train", "tiny.yaml"]
    assert asked[2][2:10:2] == ["--set"] * 4
    assert asked[2][3:11:2] == [
        "optimisation.clip=1",
        "training.log_every=2",
        "optimisation.lr=0.001",
        "training.seed=1",
    ]
    assert asked[3][1:3] == ["--model", f"tiny.yaml{points[0].runs[1].variant.removeprefix('tiny')}"]
    assert [row["values"]["optimisation.lr"] for row in rows] == [0.004, 0.001]
    found = rows[0]["scores"]["val/jpeg-q10"]["psnr"]
    assert found == {"mean": pytest.approx(28.05), "margin": margin([28.0, 28.1]), "each": [28.0, 28.1]}
    heads, best, worst = [line.split("  ") for line in table(rows)]
    assert heads[0] == "optimisation.lr"
    assert "val/jpeg-q10 PSNR (dB)" in heads
    assert best[0] == "0.004"
    assert "28.05 ± 0.64" in best
    assert worst[0] == "0.001"


def test_identical_images_are_the_best_there_is(here):
    points = planned("optimisation.lr=0.001,0.004")
    rows = sweep(
        "tiny.yaml", points, data="data", store="store", runs=Path("runs"), run=fake({"0.001": 30.0, "0.004": None}, [])
    )
    assert rows[0]["values"] == {"optimisation.lr": 0.004}
    assert "identical" in list(table(rows))[1]


@pytest.mark.parametrize(
    ("points", "factor", "expected"),
    [(2, 2, [32]), (3, 3, [16]), (4, 2, [16, 32]), (9, 3, [4, 20]), (12, 2, [8, 16, 32])],
)
def test_points_pause_where_there_is_a_checkpoint_and_a_validation(here, points, factor, expected):
    settings = ["optimisation.length.steps=64", "training.checkpoint_every=4", "training.validate_every=2"]
    recipe = read_recipe("tiny.yaml", [*settings])
    expected = [max(4, 64 // factor**k // 4 * 4) for k in range(len(expected), 0, -1)]
    assert rungs(recipe, points, factor) == expected


@pytest.mark.parametrize(
    ("settings", "points", "says"),
    [
        (["optimisation.length.steps=64"], 1, "--halving 2: 1 combinations are compared at steps []"),
        (["optimisation.length.steps=8"], 4, "a checkpoint and a validation at each 8 of 8"),
        (["optimisation.length={epochs: 3}"], 4, "give optimisation.length in steps"),
    ],
)
def test_a_sweep_that_cannot_be_halved_is_one_line(here, settings, points, says):
    with pytest.raises(UserError, match=re.escape(says)):
        rungs(read_recipe("tiny.yaml", settings), points, 2)


def test_of_four_the_better_two_and_then_the_best_one_goes_on(here, monkeypatch):
    """The mean over seeds decides; what a run is validated by is its learning rate and seed here."""
    validated = {0.001: (27.0, 27.0), 0.002: (29.0, 24.0), 0.003: (26.0, 29.0), 0.004: (25.0, 25.0)}
    asked: list[list[str]] = []

    def records(planned: Any) -> list[dict[str, Any]]:
        recipe = planned.recipe
        psnr = validated[recipe.optimisation.lr][recipe.training.seed]
        first = 8 if recipe.optimisation.lr == 0.004 else 16  # one stops early, for its validations do not get better
        return [{"step": step, "val_psnr": psnr if step < 32 else -psnr} for step in (first, 32)]

    monkeypatch.setattr("jobs.sweep.records_of", records)
    more = ("optimisation.length.steps=64",)
    points = planned("optimisation.lr=0.001,0.002,0.003,0.004", seeds=2, overrides=more)
    run = fake({"lr=0.001": 30.0}, asked)
    rows = sweep("tiny.yaml", points, data="data", store="store", runs=Path("runs"), run=run, halving=2)
    paused = [arguments[arguments.index("--data") - 1] for arguments in asked[:-4]]
    assert paused == ["training.until=16"] * 8 + ["training.until=32"] * 4
    assert [arguments[0] for arguments in asked[-4:]] == ["train", "evaluate"] * 2
    assert not any("until" in word for arguments in asked[-4:] for word in arguments)
    assert [row["values"]["optimisation.lr"] for row in rows] == [0.001, 0.003, 0.002, 0.004]
    assert [row.get("stopped") for row in rows] == [None, 32, 16, 16]
    lines = list(table(rows))
    assert lines[0].endswith("stopped at step")
    assert lines[2].endswith("32, at -27.5")
    assert lines[4].endswith("16, at 25")


@pytest.mark.slow
def test_a_halved_sweep_trains_the_best_one_to_its_end_as_a_run_of_its_own(here):
    settings = ["optimisation.length.steps=16", "training.validate_every=4", "training.checkpoint_every=4"]
    more = [word for each in settings for word in ("--set", each)]
    command = [
        sys.executable,
        "-m",
        "memoir",
        "sweep",
        "tiny.yaml",
        *more,
        "--store",
        "halved",
        "--runs",
        "halved-runs",
    ]
    grid = ["--grid", "optimisation.lr=0.004,0.0001", "--halving", "2", "--json"]
    done = subprocess.run([*command, *grid], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    best, other = json.loads(done.stdout)
    assert (best["values"], other["values"]) == ({"optimisation.lr": 0.004}, {"optimisation.lr": 0.0001})
    assert other["stopped"] == 8
    assert "sweep: to step 8: 2 of 2" in done.stderr
    whole = ["train", "tiny.yaml", *more, "--set", "optimisation.lr=0.004", "--store", "whole", "--runs", "whole-runs"]
    subprocess.run([sys.executable, "-m", "memoir", *whole], check=True, capture_output=True)
    name = best["names"][0]
    halved, undisturbed = (
        json.loads((here / place / name / "checkpoint.json").read_text()) for place in ("halved-runs", "whole-runs")
    )
    assert halved["sha256"] == undisturbed["sha256"]
    curves = [(here / place / name / "curve.tsv").read_bytes() for place in ("halved-runs", "whole-runs")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_sweep_trains_for_real_and_what_is_finished_is_not_done_again(here):
    command = [sys.executable, "-m", "memoir", "sweep", "tiny.yaml", "--grid", "optimisation.lr=0.001,0.004", "--json"]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    rows = json.loads(first.stdout)
    assert {row["values"]["optimisation.lr"] for row in rows} == {0.001, 0.004}
    best, worst = (row["scores"]["photos-val/jpeg-q10"]["psnr"]["mean"] for row in rows)
    assert best > worst
    assert rows == json.loads(again.stdout)
    assert "starting workers" not in again.stderr
    for row in rows:
        assert (here / "runs" / row["names"][0] / "scores.json").is_file()

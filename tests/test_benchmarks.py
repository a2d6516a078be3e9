"""The benchmarks start: what they need of memoir is where they look for it."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import photograph
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_measures(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python benchmarks/NAME` has it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.usefixtures("one_thread")
def test_a_training_takes_the_seconds_that_it_is_given(builder, tmp_path, monkeypatch, capsys):
    from benchmarks import train_here

    built = builder("train-here", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("""
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4}
data: {task: tiny, patch: 8, crops: 4, batch: 4}
optimisation: {optimiser: adam, lr: 0.002, schedule: cosine, length: {epochs: 1000}}
training: {workers: 2, log_every: 5}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
""")
    command = ["train_here.py", "tiny.yaml", "--data", str(built.parent), "--out", "out", "--seconds", "6"]
    monkeypatch.setattr(sys, "argv", command)
    train_here.main()
    head, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert head[:3] == ["seconds", "step", "loss"]
    recipe = json.loads(Path("out/recipe.json").read_text())
    steps = recipe["optimisation"]["length"]["steps"]
    assert steps > 10
    assert int(rows[-1][1]) == steps
    assert float(rows[-1][0]) < 60  # the machine may have other work
    assert load_file("out/weights.safetensors")


def test_a_study_has_the_gain_over_the_recipe_with_the_same_seed(tmp_path):
    from benchmarks import study
    from jobs.recipe import read_recipe

    options = argparse.Namespace(test=["jpeg-q10=images"], seeds=2, minutes=2)
    assert study.steps_of(options, {"each": 0.5, "first": 20.0}) == 200
    rows = [
        {"name": name, "seed": seed, "steps": 1000, "scores": {"jpeg-q10=images": score + seed + gain}}
        for name, score in zip(study.VARIANTS, (27.0, 27.5, 26.0, 28.0, 27.0), strict=True)
        for seed, gain in ((0, 0.0), (1, 0.0 if name == "as it is" else 0.02))
    ]
    lines = [line.strip("| ").split(" | ") for line in study.table(options, rows).splitlines()[2:]]
    assert [cells[0] for cells in lines] == list(study.VARIANTS)
    assert lines[0][2] == "27.500"
    mean, _, margin = lines[1][3].partition(" ± ")
    assert (mean, float(margin)) == ("+0.510", pytest.approx(12.706 * 0.01, abs=1e-3))
    for name in study.VARIANTS:
        recipe = read_recipe("memnet-jpeg-cpu", [*study.ONE_CORE, *study.overrides_of(name, 1000, 1)])
        assert recipe.optimisation.length.steps == 1000
        if name == "progressive":
            assert [stage.after for stage in recipe.data.stages] == [500, 800]
            assert [each.patch for each in recipe.data.in_stages] == [32, 48, 64]

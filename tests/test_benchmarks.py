"""The benchmarks start: what they need of memoir is where they look for it."""

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

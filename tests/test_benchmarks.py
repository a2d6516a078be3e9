"""The benchmarks start: what they need of memoir is where they look for it."""

import argparse
import importlib
import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import photograph
from safetensors.torch import load_file

from pipeline.images import write_image
from pipeline.shards import shard_set

ROOT = Path(__file__).parent.parent
TINY = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4}
data: {task: tiny, patch: 8, crops: 4, batch: 4}
optimisation: {optimiser: adam, lr: 0.002, schedule: cosine, length: {epochs: 1000}}
training: {workers: 2, log_every: 5}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_measures(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python benchmarks/NAME` has it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_start_ends_with_the_first_step():
    """Ten steps until the first record, of which nine are as quick as the later ones: a tenth of a second each."""
    from benchmarks.train import measured

    head = {"step": 10.0, "loss": 1.0, "seconds": 2.0, "images_per_s": 80.0, "network_s": 0.5}
    tail = {"step": 20.0, "loss": 1.0, "seconds": 1.0, "images_per_s": 160.0, "network_s": 0.2}
    found = measured([head, tail, {"step": 20.0, "val_psnr": 30.0}], began=100, first=112)
    assert found == pytest.approx((160, 0.2, 12 - 0.9))


@pytest.mark.usefixtures("one_thread")
def test_a_training_takes_the_seconds_that_it_is_given(builder, tmp_path, monkeypatch, capsys):
    from benchmarks import train_here

    built = builder("train-here", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
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


@pytest.mark.usefixtures("one_thread")
def test_a_study_times_what_its_variants_have(builder, tmp_path, monkeypatch):
    from benchmarks import study

    built = builder("study", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    large = ["data.batch=32", "model.channels=48"]
    variants = {"as it is": [(1, [])], "large": [(1, large)], "both": [(0.25, []), (0.75, large)]}
    monkeypatch.setattr(study, "VARIANTS", variants)
    took = study.speeds(argparse.Namespace(recipe="tiny.yaml", data=str(built.parent)))
    each = {name: times["each"] for name, times in took.items()}
    assert each["large"] > 1.5 * each["as it is"]  # 8 times the pixels, and 144 times the products
    assert each["both"] == pytest.approx(0.25 * each["as it is"] + 0.75 * each["large"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of as many images as a batch of load.py has pairs and one more; and what load.py builds of them."""
    photos, place = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("place")
    for i in range(33):
        write_image(photos / f"{i}.png", photograph(i, 256, 256, 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        importlib.import_module("load").build(sorted(photos.iterdir()), [256], place)
    return photos, place / "data"


@pytest.fixture
def measured(stores, monkeypatch, capsys, one_thread):
    """Runs load.py with options and returns what it prints; the cores and other things that it sets are given back."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    load = importlib.import_module("load")
    monkeypatch.setattr(load, "build", lambda _photos, _sides, place: (place / "data").symlink_to(stores[1]))
    monkeypatch.setattr(load, "measured_memory", lambda *_: (1, 1.0, 1.0, 1.0))  # it takes half a minute
    monkeypatch.setattr(load, "sources", lambda _folder: np.ones(2**26, np.uint8))  # not 256 MiB, four times
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(shard_set, "DECODED", shard_set.DECODED)
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())
    cores, opencv, method = os.sched_getaffinity(0), cv2.getNumThreads(), multiprocessing.get_start_method()

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["load.py", str(stores[0]), "--rounds", "1", *options])
        load.main()
        return capsys.readouterr().out

    yield run
    multiprocessing.set_start_method(method, force=True)
    cv2.setNumThreads(opencv)
    os.sched_setaffinity(0, cores)


def rows_of(table: str) -> dict[str, list[str]]:
    """The cells of a printed table by the first one, which may have spaces."""
    return {line[:22].strip(): line[22:].split() for line in table.splitlines() if line[22:].strip()}


def test_the_loader_is_measured_with_raw_pixels_with_png_and_with_16_bits(measured):
    cores = min(2, len(os.sched_getaffinity(0)))
    printed = measured("--sides", "256", "--seconds", "0", "--cores", str(cores))
    eight, sixteen = (rows_of(table.split("grey")[0]) for table in printed.split("RGB crops of ")[1:])
    assert eight.keys() > {"memoir", "memoir, PNG", "memoir, PNG, kept", "folder, PNG", "webdataset, PNG", "memcpy"}
    assert float(eight["memoir, PNG"][3]) < float(eight["memoir"][3])  # MB stored
    for rows, size in ((eight, 1), (sixteen, 2)):
        for name in ("memoir", "memcpy"):
            pairs, mb = (float(cell.replace(",", "")) for cell in rows[name][:2])
            assert mb / pairs == pytest.approx(2 * 3 * 256**2 * size / 1e6, rel=0.05)
    assert f"; {cores} of " in printed


def test_the_loader_is_measured_out_of_a_bucket(measured, s3):
    printed = measured("--s3", f"{s3}/load")
    rows = rows_of(printed[printed.index("33 pairs of 256x256") :])
    assert rows.keys() >= {"memoir", "memoir, PNG", "webdataset, PNG"}
    cold, warm = (float(cell.replace(",", "")) for cell in rows["memoir"])
    assert 0 < cold < warm


def test_a_peer_that_delivers_other_pixels_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    load, Pair = importlib.import_module("load"), importlib.import_module("peers").Pair
    pixels = np.zeros((256, 256, 3), np.uint8)
    pair = Pair("a", pixels, pixels + 1, b"", b"")

    def batches(lq):
        yield torch.from_numpy(pixels[None]), torch.from_numpy(lq[None])

    load.check("right", batches(pixels + 1), [pair])
    with pytest.raises(SystemExit, match="wrong: delivers other pixels"):
        load.check("wrong", batches(pixels + 2), [pair])

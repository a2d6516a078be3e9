"""The listing of test images: it changes with what a benchmark scores, and with nothing beside that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluation.listing import ListedRun, list_tests
from jobs.recipe import Recipe, read_recipe
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.raw.listing import Contents

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2}
data: {task: tiny, patch: 16, stride: 16, batch: 2}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 6}}
training: {workers: 1}
evaluation: {benchmarks: BENCHMARKS}
"""
FLAT = {"benchmark": "jpeg-q10", "data": "flat"}
HEAVY = {"benchmark": "pairs-y", "data": "rain", "layout": "rain13k", "subset": "Rain100H"}


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean images, and pairs of two subsets, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for i, place in enumerate(("flat", *(f"rain/test/Rain100{s}/{r}" for s in "HL" for r in ("input", "target")))):
        write_image(Path(place, "1.png"), np.full((20, 20, 3), i, np.uint8))


def recipe(*benchmarks: dict[str, Any]) -> Recipe:
    Path("tiny.yaml").write_text(RECIPE.replace("BENCHMARKS", json.dumps(benchmarks)))
    return read_recipe("tiny.yaml")


def listed(*benchmarks: dict[str, Any], before: str = "none.json") -> tuple[list[ListedRun], list[str]]:
    return list_tests(recipe(*benchmarks), Path(before), Contents())


@pytest.mark.parametrize(
    ("run", "file", "matters"),
    [
        (FLAT, "flat/1.png", True),
        (FLAT, "flat/2.png", True),
        (FLAT, "flat/readme.txt", False),
        (FLAT, "flat/more/2.png", False),
        (HEAVY, "rain/test/Rain100H/input/1.png", True),
        (HEAVY, "rain/test/Rain100H/target/1.png", True),
        (HEAVY, "rain/test/Rain100L/input/1.png", False),
        (HEAVY, "rain/train/Rain13K/input/1.png", False),
    ],
)
def test_a_run_is_listed_anew_when_its_own_images_change(run, file, matters):
    (before,), _ = listed(run)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_image(Path(file), np.full((20, 20, 3), 99, np.uint8)) if file.endswith("png") else Path(file).write_text("x")
    (after,), _ = listed(run)
    assert (after != before) == matters


def test_a_folder_that_is_gone_stays_as_it_was_listed_and_a_broken_pair_does_not():
    runs, lines = listed(FLAT, HEAVY)
    assert (lines, [run.images for run in runs]) == ([], [1, 1])
    Path("before.json").write_text(json.dumps([run.model_dump(mode="json") for run in runs]))
    Path("flat").rename("away")
    Path("rain/test/Rain100H/target/1.png").unlink()
    (flat, heavy), lines = listed(FLAT, HEAVY, before="before.json")
    assert flat == runs[0]
    assert (heavy.images, heavy.digest) == (0, None)
    assert lines[0] == "flat: not there; jpeg-q10 is taken as it was listed before"
    assert lines[1].startswith("pairs-y cannot be scored: rain/test/Rain100H/input/1.png: ")
    (never,), (line,) = listed(FLAT)
    assert (never.digest, line) == (None, "jpeg-q10 cannot be scored: flat: not a folder of images")


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"run": {}, "images": 0, "digest": "x"}]', "1"])
def test_a_listing_that_is_none_is_one_line(text):
    Path("before.json").write_text(text)
    with pytest.raises(UserError, match=r"^before.json: not what `memoir list` writes; remove it$"):
        listed(FLAT, before="before.json")


def test_the_command_writes_both_listings_and_forgets_recipes_that_are_gone(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.recipe.RECIPES", tmp_path)
    recipe(FLAT)
    params = "store: s\ntasks: []\ndatasets: {flat: {layout: folder, root: flat}}\nrecipes: "
    Path("params.yaml").write_text(params + "{tiny: {task: t}}\n")
    code, out, err = cli("list")
    assert (code, err) == (0, "")
    assert out.startswith("flat: 1 files, ")
    first = {path: path.read_bytes() for path in Path("data/listing").rglob("*.json")}
    assert {path.name for path in first} == {"datasets.json", "tiny.json"}
    assert cli("list")[0] == 0
    assert {path: path.read_bytes() for path in first} == first
    Path("params.yaml").write_text(params + "{}\n")
    assert cli("list")[0] == 0
    assert not list(Path("data/listing/tests").iterdir())
    assert Path("runs").is_dir()

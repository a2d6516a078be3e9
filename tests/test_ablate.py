"""The ablation tables: what each row trains, and what is printed."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Workplace, photograph

from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.published import PAPER
from jobs.recipe import build_model, read_recipe
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.shards import build as stage
from pipeline.task import read_task

pytestmark = pytest.mark.usefixtures("one_thread")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablate", Path(__file__).parent.parent / "benchmarks" / "ablate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ablate: Any = script()
ROWS = [
    pytest.param(table, row, id=f"{name}: {row.name}") for name, table in ablate.TABLES.items() for row in table.rows
]


def options(table: Any, row: Any) -> dict[str, Any]:
    return read_recipe(table.recipe, list(row.overrides)).model.model_dump()


def changes(name: str) -> dict[str, dict[str, Any]]:
    """Of each row of a table, the options in which it differs from its recipe."""
    table = ablate.TABLES[name]
    plain = read_recipe(table.recipe).model.model_dump()
    return {
        row.name: {key: value for key, value in options(table, row).items() if value != plain[key]}
        for row in table.rows
    }


# what the rows are


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_a_row_is_a_network_that_its_model_accepts(table, row):
    build_model(read_recipe(table.recipe, list(row.overrides)).model)


@pytest.mark.parametrize("table", ablate.TABLES.values(), ids=list(ablate.TABLES))
def test_a_row_has_figures_for_each_benchmark(table):
    benchmarks = len(read_recipe(table.recipe).evaluation.benchmarks)
    for figures in (table.input, *(row.paper for row in table.rows)):
        assert len(figures) == benchmarks
        assert all(re.fullmatch(r"-|\d\d\.\d{2,3}(/\.\d{3,4})?", figure) for figure in figures)


@pytest.mark.parametrize("name", ablate.TABLES)
def test_the_rows_differ_and_the_last_is_the_papers_method(name):
    different = list(changes(name).values())
    assert all(different.count(each) == 1 for each in different)
    assert different[-1] == {}


def test_the_rows_of_memnet_lack_one_mechanism_each():
    assert changes("memnet") == {
        "MemNet_NL": {"long_term": False},
        "MemNet_NS": {"short_term": False},
        "basic": {"multi_supervision": False},
        "MemNet": {},
    }


def test_the_rows_of_memorynet_are_memory_times_contrastive_loss():
    assert changes("memorynet") == {
        "baseline": {"memory": None, "contrastive": None},
        "+ memory": {"contrastive": None},
        "+ contrastive": {"memory": None},
        "+ both": {},
    }


def test_the_rows_of_drcnet_add_branches_and_then_negatives():
    table = ablate.TABLES["drcnet"]
    rows = {row.name: options(table, row) for row in table.rows}
    plain = rows["DFR + Intra-CR"]
    assert all(row["dfr"] | {"branches": "full"} == plain["dfr"] for row in rows.values())
    assert {name: row["dfr"]["branches"] for name, row in rows.items()} == {
        "base": "base",
        "SF": "sf",
        "EA": "ea",
        "SF + identity": "sf_id",
        "SF + EA": "sf_ea",
        "DFR": "full",
        "DFR + Extra-CR": "full",
        "DFR + Intra-CR": "full",
    }
    contrastive = [row["contrastive"] for row in rows.values()]
    assert contrastive[:6] == [None] * 6
    assert contrastive[6] == plain["contrastive"] | {"negatives": "extra"}
    assert plain["contrastive"]["negatives"] == "intra"


def test_a_loss_of_the_time_lapse_network_has_the_terms_in_the_rows_name():
    table = ablate.TABLES["timelapse"]
    model: Any
    terms = {"B_c": "bcs"}
    for row in table.rows[2:]:
        model = build_model(read_recipe(table.recipe, list(row.overrides)).model)
        used = {name for name, weight in model.weights.items() if weight}
        assert used == set(terms.get(row.name) or re.findall(r"\b[bscw]\b", row.name)), row.name
        assert (model.memory is None) == (row.name == "B_c")


def test_the_supervised_rows_of_the_time_lapse_network_learn_from_the_mean_of_a_scene():
    table = ablate.TABLES["timelapse"]
    for row, memory in zip(table.rows[:2], (False, True), strict=True):
        recipe = read_recipe(table.recipe, list(row.overrides))
        degradation = read_task(recipe.data.task).degradation
        assert (degradation.kind, degradation.target) == ("timelapse", "mean")
        model: Any = build_model(recipe.model)
        assert (model.siamese, model.memory is not None) == (False, memory)
    assert {read_recipe(table.recipe, list(row.overrides)).data.task for row in table.rows[2:]} == {"timelapse-pairs"}


def test_memnets_figures_are_those_of_its_results():
    table = ablate.TABLES["memnet"]
    for i, name in enumerate(("sr-x2", "sr-x3", "sr-x4")):
        for method, figures in (("Bicubic", table.input), ("MemNet", table.rows[-1].paper)):
            assert tuple(map(float, figures[i].split("/"))) == PAPER["Set5", name][method]


# what is run and printed


@pytest.fixture
def place(workplace: Workplace, without_ray: None) -> Workplace:
    """The super-resolution task built from two photographs, a third to score."""
    for i, name in enumerate(("train/0.png", "train/1.png", "val/0.png")):
        workplace.add(name, photograph(i, 48, 56, 1))
    workplace.ingest()
    stage.build("photos-sr", Path("data/manifest/manifest.json"), Path("data/photos-sr"))
    write_image(Path("datasets/photos/test/0.png"), photograph(3, 40, 44, 1))
    return workplace


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The script with these arguments: the lines that it prints."""

    def main(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
        capsys.readouterr()
        ablate.main()
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return main


def row(lines: list[str], name: str) -> list[str]:
    """The cells of the line of this name."""
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return line.removeprefix(name).split()


def test_each_row_is_printed_beside_the_papers(place, run):
    lines = run("memnet", "--steps", "2")
    assert "Such a run does not rank the variants: it shows that each trains." in lines
    assert "PSNR/SSIM on photos-test of memnet-sr-sample, 2 steps, seeds 0" in lines
    own = {}
    for each in ablate.TABLES["memnet"].rows:
        *cells, seconds = row(lines, each.name)
        assert tuple(cells[1::2]) == each.paper
        assert float(seconds) >= 0
        own[each.name] = tuple(cells[::2])
    assert len(set(own.values())) == 4
    recipe = read_recipe("memnet-sr-sample")
    given = [evaluate("identity", each, Path("runs")) for each in recipe.evaluation.benchmarks]
    figures = row(lines, "degraded input")
    assert figures[::2] == [f"{each['psnr']:.2f}/{each['ssim']:.4f}" for each in given]
    assert tuple(figures[1::2]) == ablate.TABLES["memnet"].input
    assert tuple(figures[::2]) not in own.values()


def test_each_row_is_trained_as_asked_for(place, run, monkeypatch):
    seen: list[Any] = []

    class Run(ablate.Run):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(self)

    monkeypatch.setattr(ablate, "Run", Run)
    Path("data").rename("elsewhere")
    run("memnet", "--steps", "2", "--seeds", "5", "7", "--data", "elsewhere")
    assert [each.state.step for each in seen] == [2] * 8
    assert [each.recipe.training.seed for each in seen] == [5, 7] * 4
    table = ablate.TABLES["memnet"]
    assert [each.recipe.model.model_dump() for each in seen[::2]] == [options(table, each) for each in table.rows]
    assert not any(each.model.training for each in seen)


def test_several_seeds_are_averaged_and_their_range_is_shown(place, run, monkeypatch):
    table = ablate.TABLES["memnet"]
    monkeypatch.setitem(ablate.TABLES, "memnet", table._replace(rows=table.rows[-1:]))
    one, two, again = (run("memnet", "--steps", "2", "--seeds", seed) for seed in ("1", "2", "1"))
    both = run("memnet", "--steps", "2", "--seeds", "1", "2")
    assert row(one, "MemNet")[:-1] == row(again, "MemNet")[:-1]
    for i in range(3):
        a, b = (float(row(lines, "MemNet")[2 * i].split("/")[0]) for lines in (one, two))
        assert a != b
        mean, spread, _ = row(both, "MemNet")[3 * i : 3 * i + 3]
        assert float(mean.split("/")[0]) == pytest.approx((a + b) / 2, abs=0.011)
        assert float(spread.strip("()")) == pytest.approx(abs(a - b), abs=0.011)


# mistakes


def error(run: Callable[..., list[str]], *arguments: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        run(*arguments)
    assert isinstance(leaving.value.code, str)  # on stderr, with exit code 1
    assert "\n" not in leaving.value.code
    return leaving.value.code


@pytest.mark.parametrize(("name", "task"), [("memnet", "photos-sr"), ("timelapse", "timelapse-mean")])
def test_missing_shards_are_named_with_the_command_that_builds_them(workplace, run, name, task):
    expected = f"ablate: nowhere/{task}/shards.json: not found; `memoir build` writes it"
    assert error(run, name, "--data", "nowhere") == expected


def test_missing_images_are_named_before_anything_is_trained(place, run, monkeypatch):
    Path("datasets/photos/test").rename("datasets/photos/gone")
    monkeypatch.setattr(ablate, "Run", None)
    assert error(run, "memnet") == "ablate: datasets/photos/test: not a folder of images"


@pytest.mark.parametrize(("option", "key"), [("--steps", "optimisation.length.steps"), ("--seeds", "training.seed")])
def test_a_length_or_seed_that_the_recipe_refuses_is_one_line(place, run, option, key):
    assert key in error(run, "memnet", option, "-1")


def test_a_defect_keeps_its_traceback(place, run, monkeypatch):
    def broken(*_: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(ablate, "Run", broken)
    with pytest.raises(ValueError, match="a defect") as raised:
        run("memnet")
    assert not isinstance(raised.value, UserError)

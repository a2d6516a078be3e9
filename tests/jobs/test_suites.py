"""Suites: the papers' tables as data, the degraded input that reproduces them, and the rows that are trained."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluation.published import Table, beside, decimals, number, suites
from jobs.report import write_report
from jobs.report.results import Grid, Result, ResultRow, grouped, read_results
from jobs.suites import tables
from jobs.suites.cost import cost
from jobs.suites.places import Places
from jobs.suites.run import run_suite
from jobs.suites.sets import SETS, home, lacking
from jobs.suites.state import states
from jobs.suites.tables import compare, run_table
from jobs.suites.text import lines
from jobs.suites.variants import trained_variant, variants_of
from pipeline.config import read_yaml
from pipeline.errors import UserError
from pipeline.images import write_image

TABLES = {name: suite for name, suite in suites().items() if isinstance(suite, Table)}
DATA = os.environ.get("MEMOIR_DATA")


def table(text: str, tmp_path: Path) -> Table:
    path = tmp_path / "table.yaml"
    path.write_text("kind: table\ntitle: T\nsection: s\ncaption: c\n" + text)
    return read_yaml(path, Table)


# the data


def test_the_tables_are_those_of_the_papers():
    assert [name for name in TABLES if name.startswith("memnet")] == [f"memnet-table{i}" for i in range(1, 7)]
    assert [name for name in TABLES if name.startswith("memorynet")] == [f"memorynet-table{i}" for i in range(1, 5)]
    assert [name for name in TABLES if name.startswith("timelapse")] == [f"timelapse-table{i}" for i in range(2, 8)]
    assert [name for name in TABLES if name.startswith("drcnet")] == [f"drcnet-table{i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_measures_on_sets_that_are_known_and_says_whose_rows_are_the_papers(name):
    for group in TABLES[name].columns:
        if group.set is not None and not group.average_of:
            assert group.set in SETS
            assert home(group.set)
    assert any(row.role == "paper" for row in TABLES[name].rows.values())


def test_a_number_as_printed():
    printed = ("29.69", "84.90%", "1,774K", "0.37M", "100")
    assert [number(text) for text in printed] == pytest.approx([29.69, 0.849, 1.774e6, 0.37e6, 100])
    assert number("-") is None
    assert [decimals(text) for text in ("29.69", "84.90%", "665K", "0.940")] == [2, 2, 0, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("columns: [{metrics: [psnr]}]\nrows: {A: {values: '1 2'}}\n", "2 values for 1 columns"),
        ("columns: [{metrics: [psnr]}]\nrows: {A: {values: '1x'}}\n", "could not convert"),
        ("columns: [{metrics: [psnrr]}]\nrows: {A: {values: '1'}}\n", "no metric 'psnrr'"),
        ("columns: [{benchmark: sr-x2, metrics: [psnr]}]\nrows: {A: {values: '1'}}\n", "a benchmark needs a set"),
        ("columns: [{set: A, metrics: [psnr], average_of: [B]}]\nrows: {A: {values: '1'}}\n", "average of 'B'"),
    ],
)
def test_a_table_that_does_not_add_up_is_one_line(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as error:
        table(text, tmp_path)
    assert "\n" not in str(error.value)


def off(printed: str, exact: float) -> str | None:
    """What the figure should be in the printed digits, if it is not what is printed."""
    percent = printed.endswith("%")
    value = 100 * exact if percent else exact
    text = f"{value:.{decimals(printed)}f}"
    low, high = (f"{value + e:.{decimals(printed)}f}" for e in (-1e-9, 1e-9))  # a tie may be rounded either way
    return None if printed.rstrip("%") in (text, low, high) else text + "%" * percent


def misprints(name: str) -> dict[tuple[str, str], tuple[str, str]]:
    found = TABLES[name].misprints
    columns = {column for group in TABLES[name].columns for column in group.names}
    return {(each.row, each.column): (each.printed, each.expected) for each in found if each.column in columns}


def test_the_averages_of_drcnets_table_1_are_the_means_of_the_five_sets():
    one, wrong = TABLES["drcnet-table1"], {}
    sets = next(group.average_of for group in one.columns if group.average_of)
    for method in one.rows:
        printed = one.printed(method)
        for metric in ("psnr", "ssim"):
            mean = math.fsum(float(printed[f"{each} pairs-y {metric}"]) for each in sets) / len(sets)
            # a mean of printed figures is as uncertain as they are: only what no rounding explains is called a misprint
            if expected := off(printed[f"Average {metric}"], mean):
                wrong[method, f"Average {metric}"] = (printed[f"Average {metric}"], expected)
    assert wrong == misprints("drcnet-table1")


def test_the_reductions_of_error_in_drcnets_table_2_follow_from_its_psnr_and_ssim():
    two, wrong = TABLES["drcnet-table2"], {}
    best = two.printed("DRCNet")
    for method in two.rows:
        printed = two.printed(method)
        for column in ("SIDD pairs-rgb-float", "DND"):
            fall = {
                "psnr": 1 - 10 ** ((float(printed[f"{column} psnr"]) - float(best[f"{column} psnr"])) / 20),
                "ssim": 1 - (1 - float(best[f"{column} ssim_3d"])) / (1 - float(printed[f"{column} ssim_3d"])),
            }
            for metric, exact in fall.items():
                text = printed[f"{column} {metric}_reduction"]
                if expected := off(text, exact):
                    wrong[method, f"{column} {metric}_reduction"] = (text, expected)
    assert wrong == misprints("drcnet-table2")


def test_every_misprint_of_a_figure_is_what_its_row_says():
    for name in TABLES:
        for (row, column), (printed, expected) in misprints(name).items():
            assert TABLES[name].printed(row)[column] == printed != expected


def test_tables_of_one_paper_agree_where_they_print_the_same_network():
    drcnet = [TABLES[f"drcnet-table{i}"] for i in range(1, 6)]
    full, dfr = drcnet[3].printed("base+DFR, Intra-CR"), drcnet[3].printed("base+DFR")
    column = "SIDD pairs-rgb-float psnr"
    assert full[column] == drcnet[1].printed("DRCNet")[column]
    assert dfr[column] == drcnet[4].printed("DFR")[column]
    memnet = [TABLES[f"memnet-table{i}"] for i in range(1, 7)]
    same = {
        t.printed(m)["Set5 sr-x3 psnr"]
        for t, m in zip([*memnet[:2], memnet[3], memnet[5]], ["MemNet"] * 3 + ["M6R6"], strict=True)
    }
    assert same == {"34.09"}
    four, five = TABLES["timelapse-table4"], TABLES["timelapse-table5"]
    assert four.printed("B_d") == five.printed("{s, b, c}")


# what stands beside a result


def test_rows_stand_beside_a_result_in_the_order_of_the_protocol():
    assert beside()["Classic5", "jpeg-q10"] == {
        "JPEG": (27.82, 0.7595),
        "ARCNN": (29.03, 0.7929),
        "TNRD": (29.28, 0.7992),
        "DnCNN": (29.40, 0.8026),
        "MemNet": (29.69, 0.8107),
    }
    assert beside()["ISTD-istd", "pairs-istd"]["MemoryNet"] == (
        28.03,
        34.44,
        30.234,
        0.952,
        0.986,
        0.970,
        6.03,
        9.72,
        5.425,
    )
    assert beside()["ISTD-istd", "pairs-istd"]["DHAN"] == (27.88, 34.79, 29.54, 0.921, 0.983, 0.941)
    assert "Yang" not in beside()["ISTD-istd", "pairs-istd"]
    assert beside()["Rain100L", "pairs-y-rcd"]["Cho et al. 2022"] == (38.45, 0.981)
    assert beside()["Rain100L", "pairs-y"]["DRCNet"] == (38.23, 0.976)


def test_no_row_of_a_variant_or_of_an_unsure_column_stands_beside_a_result():
    assert "MemNet_NL" not in beside()["Set5", "sr-x3"]
    assert not [key for key in beside() if key[0].startswith("RainDrop")]
    assert beside()["GoPro-blur", "pairs-rgb"]["MPRNet"] == (32.66, 0.959)  # not the 29.97 of MemoryNet's Table III


# the degraded input reproduces what is printed

# MATLAB's grey images of Set14, and roundings of 100 images: these differ in the last digit
DIFFERENT = {
    "memnet-table4": {
        "Set14 sr-x2 psnr",
        "Set14 sr-x2 ssim",
        "Set14 sr-x3 psnr",
        "Set14 sr-x3 ssim",
        "Set14 sr-x4 ssim",
        "BSD100 sr-x3 ssim",
        "BSD100 sr-x4 ssim",
    },
    "memnet-table5": set(),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_degraded_input_of_a_suite_is_the_printed_row(name):
    here = [g for g in TABLES[name].columns if DATA and g.set and lacking(g.set, Path(DATA)) is None]
    if not here:
        needed = sorted({SETS[str(group.set)].folder for group in TABLES[name].columns})
        pytest.skip(f"needs {', '.join(needed)} in the folder named by MEMOIR_DATA")
    found = run_table(TABLES[name], Places(datasets=Path(str(DATA))), "identity", None)
    ours = next(row.values for row in found.grids[0].rows if row.source == "here")
    printed = TABLES[name].printed(next(m for m, row in TABLES[name].rows.items() if row.role == "input"))
    assert len(ours) == sum(len(group.metrics) for group in here)
    wrong = {column for column, text in ours.items() if text != printed[column]}
    assert wrong <= DIFFERENT[name]
    assert all(abs(float(ours[c]) - float(printed[c])) < (0.011 if c.endswith("psnr") else 0.001) for c in wrong)
    assert f"{len(ours) - len(wrong)} of {len(ours)} figures" in found.ran[-1]


def test_the_suites_with_a_printed_degraded_input_have_a_golden_test():
    assert {name for name, each in TABLES.items() if any(row.role == "input" for row in each.rows.values())} == {
        *DIFFERENT
    }


def test_comparison_with_a_printed_row():
    printed = {"a psnr": "27.82", "a ssim": "0.7595", "b psnr": "30.00"}
    line = compare("JPEG", printed, {"a psnr": 27.8249, "a ssim": 0.75956})
    assert line == "the row JPEG recomputed: 1 of 2 figures to the last printed digit; a ssim 0.7596 for 0.7595"


# the rows that are trained


@pytest.mark.parametrize("scale", ["paper", "sample"])
@pytest.mark.parametrize("name", [n for n, t in TABLES.items() if t.recipe])
def test_each_row_of_a_paper_is_a_recipe_of_its_own(name, scale):
    missing: list[str] = []
    found = variants_of(TABLES[name], scale, missing)
    rows = [row for row in TABLES[name].rows.values() if row.role == "paper"]
    if scale == "sample" and not TABLES[name].sample:
        assert not found
        return
    assert not missing
    assert len(found) == len(rows) * (len(TABLES[name].recipe) if scale == "paper" else 1)
    if scale == "paper":
        assert len({each.name for each in found}) == len(found)
    assert all(each.command.startswith(f"memoir train {each.given}") for each in found)


def changes(name: str) -> dict[str, dict[str, Any]]:
    """Of each row of a table, the options in which it differs from its recipe."""
    found = variants_of(TABLES[name], "sample", [])
    plain = found[-1].recipe.model.model_dump()
    return {
        v.method: {k: value for k, value in v.recipe.model.model_dump().items() if value != plain[k]} for v in found
    }


def test_the_rows_of_memnets_table_1_lack_one_kind_of_connection_each():
    assert changes("memnet-table1") == {
        "MemNet_NL": {"long_term": False},
        "MemNet_NS": {"short_term": False},
        "MemNet": {},
    }


def test_the_rows_of_memorynets_table_4_are_memory_times_contrastive_loss():
    assert changes("memorynet-table4") == {
        "Baseline": {"memory": None, "contrastive": None},
        "Added memory": {"contrastive": None},
        "Added contrastive learning": {"memory": None},
        "Added memory and contrastive": {},
    }


def test_the_rows_of_the_time_lapse_tables_have_the_terms_in_their_names():
    rows = TABLES["timelapse-table5"].rows
    for name, row in rows.items():
        without = {each.removeprefix("model.loss.").removesuffix("=0") for each in row.overrides}
        assert without == set("sbcw") - set(re.findall(r"\w", name))
    four = TABLES["timelapse-table4"].rows
    assert [("model.siamese=false" in r.overrides, "model.memory=null" in r.overrides) for r in four.values()] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    ]


def test_rows_at_sample_size_have_values_of_their_own_where_the_papers_do_not_fit():
    tasks = {
        s: [v.recipe.data.task for v in variants_of(TABLES["timelapse-table4"], s, [])] for s in ("paper", "sample")
    }
    assert tasks["paper"] == ["timelap-mean", "timelap-mean", "timelap", "timelap"]
    assert tasks["sample"] == ["timelapse-mean", "timelapse-mean", "timelapse-pairs", "timelapse-pairs"]


def test_the_rows_of_drcnets_table_4_add_branches_and_then_negatives():
    rows = {v.method: v.recipe.model.model_dump() for v in variants_of(TABLES["drcnet-table4"], "sample", [])}
    assert [row["dfr"]["branches"] for row in rows.values()] == [
        "base",
        "sf",
        "ea",
        "sf_id",
        "sf_ea",
        "full",
        "full",
        "full",
    ]
    assert [row["contrastive"] and row["contrastive"]["negatives"] for row in rows.values()] == [None] * 6 + [
        "extra",
        "intra",
    ]


PRINTED = {  # parameters of the papers' rows in millions, and how far ours may be from them
    ("memnet-table2", "MemNet"): (0.677, 0.03),
    ("timelapse-table7", "Cho et al. 2022"): (0.81, 0.02),
    ("drcnet-table4", "base"): (12.7, 0.6),
    ("drcnet-table4", "base+DFR"): (18.9, 0.1),
}


@pytest.mark.parametrize(("name", "method"), PRINTED)
def test_a_papers_row_has_about_the_parameters_that_are_printed(name, method):
    which = next(v for v in variants_of(TABLES[name], "paper", []) if v.method == method)
    printed, near = PRINTED[name, method]
    assert cost(which.recipe.model, (32, 32)).params / 1e6 == pytest.approx(printed, abs=near)


def test_macs_are_those_of_the_convolutions():
    which = variants_of(TABLES["memnet-table1"], "sample", [])[-1]
    C, M, R, pixels = 16, 3, 2, 24 * 40
    extract, units = 9 * C, 2 * R * 9 * C * C
    gates = [(m + 1 + R) * C * C for m in range(M)]
    each = extract + M * units + sum(gates) + M * 9 * C
    assert cost(which.recipe.model, (24, 40)).macs == each * pixels


# running a table


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    """Of the test sets only Set5, of one small image."""
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8)
    write_image(Path("datasets/Set5/baby.png"), image)
    return Places()


def test_a_table_has_the_degraded_input_after_the_printed_one_and_says_what_lacks(places):
    found = run_table(TABLES["memnet-table4"], places, "identity", None)
    rows = found.grids[0].rows
    assert [row.method for row in rows][:3] == ["Bicubic", "degraded input", "SRCNN"]
    assert [row.source for row in rows][:3] == ["printed", "here", "printed"]
    assert {*rows[1].values} == {f"Set5 sr-x{s} {m}" for s in (2, 3, 4) for m in ("psnr", "ssim")}
    assert rows[0].values["BSD100 sr-x2 psnr"] == "29.56"
    assert "LapSRN" in {row.method for row in rows}
    assert [line.partition(":")[0] for line in found.lacking] == ["Set14", "BSD100", "Urban100"]
    assert found.ran[0].startswith("Set5, sr-x2: 1 images, y-matlab@1")
    assert found.ran[-1].startswith(
        "the row Bicubic recomputed: 0 of 6 figures to the last printed digit; Set5 sr-x2 psnr"
    )


def test_a_table_without_weights_says_how_to_train_them_and_what_they_would_cost(places):
    found = run_table(TABLES["memnet-table1"], places, None, None)
    rows = {row.method: row.values for row in found.grids[0].rows}
    assert rows["MemNet: memnet-sr, not trained"]["parameters"] == "695,497"
    assert rows["MemNet: memnet-sr, not trained"]["GMACs at 256x256"] == "189.5"
    fewer = rows["MemNet_NL: memnet-sr+model.long_term=false, not trained"]["parameters"]
    assert int(fewer.replace(",", "")) < 695_497
    assert (
        "MemNet_NL: weights; memoir train memnet-sr --set model.long_term=false, or --model of a version"
        in found.lacking
    )


def fake_scores(monkeypatch) -> list[tuple[str, str]]:
    """evaluate() answers with the number of its call; returns (model, benchmark) of each."""
    asked: list[tuple[str, str]] = []

    def evaluate(model, run, runs, trust, store):
        asked.append((model, run.benchmark))
        figures = {"psnr": 30.0 + len(asked), "ssim": 0.9}
        return {**figures, "images": 1, "protocol": "p@1", "baseline": {"psnr": 20.0, "ssim": 0.5}}

    monkeypatch.setattr(tables, "evaluate", evaluate)
    return asked


def test_at_sample_size_the_variants_are_trained_and_scored_by_their_recipe(places, monkeypatch):
    asked, trained = fake_scores(monkeypatch), []
    monkeypatch.setattr(
        tables, "trained_variant", lambda which, _, train: trained.append((which.command, train)) or which.name
    )
    found = run_table(TABLES["memnet-table1"], places, None, "sample")
    grid = found.grids[1]
    assert [command for command, _ in trained] == [
        "memoir train memnet-sr-sample --set model.long_term=false",
        "memoir train memnet-sr-sample --set model.short_term=false",
        "memoir train memnet-sr-sample",
    ]
    assert all(train for _, train in trained)
    assert [row.method for row in grid.rows] == ["degraded input", "MemNet_NL", "MemNet_NS", "MemNet"]
    assert grid.rows[0].values["photos-test sr-x2 psnr"] == "20.00"
    assert grid.rows[1].values["photos-test sr-x3 psnr"] == "35.00"  # the fifth call: three are of the input on Set5
    assert asked[3:6] == [("memnet-sr-sample+model.long_term=false", f"sr-x{s}") for s in (2, 3, 4)]


def test_what_is_trained_is_taken_as_it_is(places, monkeypatch):
    which = variants_of(TABLES["memnet-table1"], "sample", [])[0]
    assert trained_variant(which, places, train=False) is None
    folder = places.runs / which.name
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    assert trained_variant(which, places, train=True) == which.name == "memnet-sr-sample+model.long_term=false"


def test_a_column_of_averages_is_their_mean_where_all_sets_are_there():
    one = TABLES["drcnet-table1"]
    values = {
        f"{each} pairs-y psnr": str(30 + i) for i, each in enumerate(("Test100", "Rain100H", "Rain100L", "Test2800"))
    }
    assert tables._averages(one, values) == {}
    assert tables._averages(one, values | {"Test1200 pairs-y psnr": "35"}) == {"Average psnr": "32.20"}


def test_the_state_of_a_suite_says_what_it_lacks(places):
    found = {each.suite: each for each in states(places)}
    assert found["memnet-table1"].state == "runs"
    assert found["memnet-table4"].state == "in part"
    assert found["memnet-table5"].state == "lacks images"
    assert found["timelapse-fig5"].state == "not computable"
    assert any("DND: its targets are secret" in line for line in found["drcnet-table2"].lines)
    assert any("memoir train memnet-sr --set model.long_term=false" in line for line in found["memnet-table1"].lines)
    (places.runs / "memnet-sr").mkdir(parents=True)
    (places.runs / "memnet-sr/checkpoint.json").write_text("{}")
    again = next(each for each in states(places) if each.suite == "memnet-table4")
    assert again.lines[0] == "in part: 1 of 4 image sets here, 1 of 1 models trained"


# results


def test_a_result_is_written_read_and_shown_by_its_paper(places, tmp_path):
    result = run_suite("memnet-table4", places, "identity", None, Path("suites"))
    assert read_results(Path("suites")) == [result]
    text = "\n".join(lines(result))
    assert "degraded input (here)" in text
    assert "lacking: Urban100" in text
    assert max(map(len, text.partition("ran:")[0].splitlines()[1:])) <= 120
    page = write_report([], Path("runs"), Path("report")).read_text()
    assert page.index("MemNet (ICCV 2017)") < page.index('id="memnet-table4"') < page.index("degraded input, here")
    assert "33.66 / 0.9299" in page
    again = run_suite("memnet-table4", places, "identity", None, Path("suites"))
    assert again == result


def test_a_result_whose_file_is_gone_or_damaged_is_one_line(tmp_path):
    folder = tmp_path / "memnet-fig5"
    folder.mkdir()
    said = {"suite": "memnet-fig5", "paper": "memnet", "title": "t", "section": "s", "caption": "c"}
    (folder / "result.json").write_text(Result(**said, files=["a.csv"]).model_dump_json())
    with pytest.raises(UserError, match=r"memnet-fig5/a.csv: not found, .*`memoir suite memnet-fig5`"):
        read_results(tmp_path)
    (folder / "result.json").write_text(json.dumps(said | {"files": ["../../x"]}))
    with pytest.raises(UserError, match=r"result.json: .*files.*`memoir suite memnet-fig5`"):
        read_results(tmp_path)


def test_a_folder_of_other_files_is_left_alone(places):
    Path("suites/memnet-table4").mkdir(parents=True)
    Path("suites/memnet-table4/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"suites/memnet-table4: holds other files"):
        run_suite("memnet-table4", places, "identity", None, Path("suites"))


def test_columns_of_one_set_and_level_are_shown_together():
    found = grouped(["Set5 sr-x2 psnr", "Set5 sr-x2 ssim", "Set5 sr-x3 psnr", "params", "GMACs at 256x256"])
    assert [heading for heading, _ in found] == [
        "Set5 sr-x2 psnr/ssim",
        "Set5 sr-x3 psnr",
        "params",
        "GMACs at 256x256",
    ]
    grid = Grid(
        title="",
        columns=["a b psnr", "a b ssim"],
        rows=[ResultRow(method="M", source="printed", values={"a b psnr": "1"})],
    )
    assert any(
        "1/-" in line for line in lines(Result(suite="s", paper="p", title="t", section="s", caption="c", grids=[grid]))
    )


def test_the_command_knows_its_suites(cli, places):
    code, _, err = cli("suite", "memnet-table55")
    assert code == 1
    assert "no suite 'memnet-table55'; did you mean 'memnet-table5'?" in err
    code, out, _ = cli("suite", "--list", "--json")
    assert code == 0
    assert [each["suite"] for each in json.loads(out)] == [*suites()]
    code, out, _ = cli("suite", "memnet-table1", "--model", "identity", "--json")
    assert json.loads(out)["suite"] == "memnet-table1"

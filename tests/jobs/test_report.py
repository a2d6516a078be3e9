"""The report: its figures, its pictures, its charts, and what it says when a stage has not run."""

import json
import math
import os
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.scores import write_scores
from jobs.report import write_report
from jobs.report.charts import BOTTOM, LEFT, RIGHT, TOP, chart, number
from pipeline.errors import UserError
from pipeline.images import write_image

PROTOCOL = "gray-float@1 (colour=grey border=none rounding=none ssim=wang2004)"
SCORES = {
    "Classic5/jpeg-q10": {
        "psnr": 29.104,
        "ssim": 0.80104,
        "images": 2,
        "protocol": PROTOCOL,
        "baseline": {"psnr": 27.82, "ssim": 0.7595},
        "paper": {"JPEG": {"psnr": 27.82, "ssim": 0.7595}, "MemNet": {"psnr": 29.69, "ssim": 0.8107}},
    },
    "photos-test/jpeg-q20": {
        "psnr": None,
        "ssim": 1.0,
        "images": 1,
        "protocol": PROTOCOL,
        "baseline": {"psnr": 31.0, "ssim": 0.9},
        "paper": {},
    },
}
IMAGES = [
    ("Classic5", "jpeg-q10", "baboon", 24.40, 0.70, 24.33, 0.69),
    ("Classic5", "jpeg-q10", "lena", 33.80, 0.90, 31.31, 0.83),  # has no pictures
    ("photos-test", "jpeg-q20", "cat", math.inf, 1.0, 31.0, 0.9),
]
CURVE = "step\tloss\tpsnr\tval_psnr\tlr\n50\t0.02\t20.5\t\t0.1\n100\t0.004\t27.25\t28.5\t0.1\n"


def write_run(run: Path) -> None:
    """What the stages of a recipe leave in runs/<recipe>."""
    run.mkdir(parents=True)
    data = {"task": "photos-jpeg", "digest": "d" * 64}
    checkpoint = {
        "recipe": run.name,
        "run": f"{run.name}-01",
        "checkpoint": f"runs/{run.name}-01/step-00001200",
        "samples": "s",
        "sha256": "a" * 64,
        "step": 1200,
        "data": data,
    }
    published = {"model": f"models/{run.name}/{'5' * 12}", "version": "5" * 12, "sha256": "a" * 64}
    for name, value in (("checkpoint", checkpoint), ("published", published)):
        (run / f"{name}.json").write_text(json.dumps(value))
    write_scores(run, SCORES)
    (run / "curve.tsv").write_text(CURVE)
    columns = ("dataset", "benchmark", "image", "psnr", "ssim", "baseline_psnr", "baseline_ssim")
    rows = [dict(zip(columns, image, strict=True)) for image in IMAGES]
    pq.write_table(pa.Table.from_pylist(rows), run / "scores.parquet")
    for shade, role in ((60, "input"), (120, "output"), (180, "target")):
        for row in (rows[0], rows[2]):
            file = f"{row['dataset']}-{row['benchmark']}-{row['image']}.png"
            write_image(run / "pictures" / role / file, np.full((12, 16), shade, np.uint8))


def run_of(place: Path) -> Path:
    write_run(place / "runs/one")
    return place / "runs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for recipe in ("one", "two"):
        write_run(tmp_path / "runs" / recipe)
    return tmp_path / "runs"


class Page(HTMLParser):
    """The elements of a page: their attributes, and the text in the cells of its table."""

    EMPTY = frozenset({"meta", "img", "input", "br", "line", "polyline"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def files(self) -> set[str]:
        links = [a["href"] for a in self.all("a")] + [image["src"] for image in self.all("img")]
        return {unquote(link) for link in links if link and not link.startswith("#")}


def report(runs: Path) -> Page:
    return Page(write_report(["one", "two"], runs, runs.parent / "report"))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# what the page says


def test_a_row_has_the_scores_the_baseline_the_gain_the_paper_and_the_protocol(runs):
    rows = report(runs).rows
    assert [row[0] for row in rows if len(row) == 1] == ["one", "two"]
    psnr = ("PSNR (dB)", "27.82", "29.10", "+1.28", "JPEG 27.82 MemNet 29.69")
    assert rows[2] == ["Classic5", "jpeg-q10", *psnr, "2", "gray-float@1"]
    assert rows[3] == ["SSIM", "0.7595", "0.8010", "+0.0415", "JPEG 0.7595 MemNet 0.8107"]


def test_an_infinite_psnr_is_shown_as_one(runs):
    page = report(runs)
    assert page.rows[4][2:7] == ["PSNR (dB)", "31.00", "∞", "+∞", "none"]
    assert "PSNR 31.00 to ∞ dB" in " ".join(page.text.split())


def test_a_mean_has_its_interval_where_there_is_one(runs):
    write_scores(
        runs / "one",
        SCORES | {"Classic5/jpeg-q10": SCORES["Classic5/jpeg-q10"] | {"margin": {"psnr": 1.234, "ssim": None}}},
    )
    rows = report(runs).rows
    assert (rows[2][4], rows[3][2]) == ("29.10 ± 1.23", "0.8010")


def test_a_metric_that_is_better_lower_says_so(runs):
    row = {"psnr": 28.0, "lab_mae_pi_480": 6.5, "images": 1, "protocol": "istd@1 (x)", "paper": {"A": {"psnr": 28.03}}}
    scores = SCORES | {"ISTD/pairs-istd": row | {"baseline": {"psnr": 20.0, "lab_mae_pi_480": 14.25}}}
    write_scores(runs / "one", scores)
    rows = report(runs).rows
    assert ["Lab MAE pi 480 (lower is better)", "14.25", "6.50", "−7.75", "none"] in rows
    assert ["ISTD", "pairs-istd", "PSNR (dB)", "20.00", "28.00", "+8.00", "A 28.03", "1", "istd@1"] in rows


def test_scores_without_a_figure_are_refused(runs):
    row = SCORES["Classic5/jpeg-q10"]
    lacking = {key: value for key, value in row.items() if key not in ("psnr", "ssim")}
    for other, says in (
        ({**lacking, "baseline": {}}, "figures"),
        (row | {"baseline": {"psnr": 27.82}}, "baseline has other metrics"),
        (row | {"baseline": {"psnr": "27.82", "ssim": 0.7595}}, "baseline.psnr"),
        (row | {"blended": {"image": "a", "psnr": "50"}}, "blended.psnr"),
        (row | {"images": "2"}, "images"),
    ):
        write_scores(runs / "one", {"Classic5/jpeg-q10": other})
        with pytest.raises(UserError, match=rf"one/scores.json and protocols.json: .*{says}.*evaluate@one"):
            report(runs)


@pytest.mark.parametrize("name", ["scores.json", "protocols.json"])
@pytest.mark.parametrize("value", [["no rows"], {"Classic5/jpeg-q10": "no row"}])
def test_scores_of_another_form_are_refused(runs, name, value):
    (runs / "one" / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"one/{name}: .*evaluate@one"):
        report(runs)


def test_scores_and_protocols_of_other_benchmarks_are_refused(runs):
    rows = json.loads((runs / "one/protocols.json").read_text())
    del rows["Classic5/jpeg-q10"]
    (runs / "one/protocols.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"one/protocols.json: has other benchmarks than scores.json.*evaluate@one"):
        report(runs)


def test_the_protocol_is_spelt_out_once(runs):
    assert report(runs).text.count(PROTOCOL) == 1


def test_a_section_names_the_version_and_its_weights(runs):
    text = report(runs).text
    for expected in (f"models/one/{'5' * 12}", "a" * 16, "1,200 steps, run", "one-01", "photos-jpeg, digest", "d" * 16):
        assert expected in text


def test_the_figures_of_a_picture_are_its_own(runs):
    text = " ".join(report(runs).text.split())
    assert "Input to output: PSNR 24.33 to 24.40 dB, SSIM 0.6900 to 0.7000 Target, 16×12 pixels" in text
    assert "lena" not in text


def test_images_with_other_metrics_than_their_row_are_an_error(runs):
    table = pq.read_table(runs / "two/scores.parquet")
    pq.write_table(table.drop_columns(["ssim"]), runs / "two/scores.parquet")
    with pytest.raises(UserError, match=r"two/scores.parquet: has other metrics of Classic5/jpeg-q10.*evaluate@two"):
        report(runs)


def test_a_report_of_no_recipes_says_so(tmp_path):
    page = Page(write_report([], tmp_path / "runs", tmp_path / "report"))
    assert "There is nothing yet: params.yaml names no recipes, and no suite has run." in page.text
    assert (page.open, page.rows) == ([], [])
    assert "There is nothing yet" not in Page(write_report(["one"], run_of(tmp_path), tmp_path / "report")).text


# files and bytes


def test_the_page_needs_nothing_beside_its_folder(runs):
    page = report(runs)
    assert page.open == []
    assert page.files() | {"index.html"} == set(tree(runs.parent / "report"))
    assert not any("src" in script for script in page.all("script"))
    assert page.all("link") == []
    text = (runs.parent / "report/index.html").read_text()
    assert "http" not in text
    assert text.endswith("</html>\n")


def test_the_pictures_are_the_ones_that_were_scored(runs):
    report(runs)
    for recipe in ("one", "two"):
        assert tree(runs.parent / "report/pictures" / recipe) == tree(runs / recipe / "pictures")


def test_the_same_files_give_the_same_bytes(runs, tmp_path):
    first, second = (write_report(["one", "two"], runs, tmp_path / name).parent for name in ("a", "b"))
    assert tree(first) == tree(second)
    shutil.copytree(runs, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (1, 1))
    assert tree(write_report(["one", "two"], tmp_path / "elsewhere", tmp_path / "c").parent) == tree(first)


def test_pictures_have_a_text_and_a_size_and_sliders_a_name(runs):
    page = report(runs)
    assert len(page.all("img")) == 2 * 2 * 3
    assert all(image["alt"] and (image["width"], image["height"]) == ("16", "12") for image in page.all("img"))
    ranges = page.all("input")
    assert len(ranges) == 4
    assert all(each["type"] == "range" and each["aria-label"] for each in ranges)


def test_restored_pictures_are_shown_whatever_their_names(runs):
    for name in ("a #1 100%.png", "sub/<b>.png"):
        write_image(runs / "one/restored" / name, np.full((5, 7, 3), 90, np.uint8))
    page = report(runs)
    shown = {"restored/one/a #1 100%.png", "restored/one/sub/<b>.png"}
    assert shown <= page.files() == set(tree(runs.parent / "report")) - {"index.html"}
    addresses = [image["src"] for image in page.all("img")] + [link["href"] for link in page.all("a")]
    assert addresses.count("restored/one/a%20%231%20100%25.png") == 2
    assert "<b>.png, 7×5" in page.text


# what can be wrong


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("checkpoint.json", "train"),
        ("curve.tsv", "train"),
        ("scores.json", "evaluate"),
        ("protocols.json", "evaluate"),
        ("scores.parquet", "evaluate"),
        ("pictures", "evaluate"),
        ("published.json", "publish"),
    ],
)
def test_a_missing_or_damaged_file_names_the_stage_that_makes_it(runs, name, stage):
    path = runs / "two" / name
    if path.is_file():
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(UserError, match=rf"two/{name}: .*{stage}@two"):
            report(runs)
        path.unlink()
    else:
        shutil.rmtree(path)
    with pytest.raises(UserError, match=rf"two/{name}: not found.*{stage}@two"):
        report(runs)


def test_a_picture_without_its_others_is_an_error(runs):
    (runs / "one/pictures/output/Classic5-jpeg-q10-baboon.png").unlink()
    with pytest.raises(UserError, match=r"holds no output/Classic5-jpeg-q10-baboon.png.*evaluate@one"):
        report(runs)


def test_a_damaged_picture_is_an_error(runs):
    (runs / "one/pictures/output/Classic5-jpeg-q10-baboon.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"baboon.png: not a picture"):
        report(runs)


def test_a_published_version_of_other_weights_is_an_error(runs):
    path = runs / "one/published.json"
    path.write_text(path.read_text().replace("a" * 64, "b" * 64))
    with pytest.raises(UserError, match=r"of other weights than checkpoint.json.*publish@one"):
        report(runs)


def test_a_report_that_fails_leaves_the_older_one(runs):
    report(runs)
    before = tree(runs.parent / "report")
    (runs / "two/published.json").unlink()
    with pytest.raises(UserError):
        report(runs)
    assert tree(runs.parent / "report") == before
    assert sorted(path.name for path in runs.parent.iterdir()) == ["report", "runs"]


def test_a_new_report_holds_nothing_of_the_older_one(runs):
    report(runs)
    write_report(["two"], runs, runs.parent / "report")
    assert not (runs.parent / "report/pictures/one").exists()
    assert sorted(path.name for path in runs.parent.iterdir()) == ["report", "runs"]


def test_a_folder_that_is_no_report_is_not_replaced(runs, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<title>mine</title>")
    for folder in (tmp_path / "site", runs):
        with pytest.raises(UserError, match="holds other files than a report"):
            write_report(["one"], runs, folder)
    assert (tmp_path / "site/index.html").read_text() == "<title>mine</title>"


# charts


def test_a_curve_has_its_first_and_last_value_in_words(runs):
    labels = [each["aria-label"] for each in report(runs).all("svg") if "aria-label" in each]
    assert "training batches: from 0.02 at step 50 to 0.004 at step 100." in labels[0]
    assert "validation images: from 28.5 at step 100 to 28.5 at step 100." in labels[1]


@given(
    st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=60),
    st.integers(1, 10**6),
    st.booleans(),
)
def test_a_curve_lies_in_its_plot_and_its_ticks_are_round_and_distinct(values, every, logarithmic):
    points = [(every * i, value) for i, value in enumerate(values, start=1)]
    made = chart("Loss", "", {"training": points}, logarithmic=logarithmic)
    drawn = [tuple(map(float, point.split(","))) for point in made.lines[0].path.split()]
    assert len(drawn) == len(values)
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in drawn)
    order = np.argsort(values, kind="stable")
    assert all(drawn[b][1] <= drawn[a][1] for a, b in pairwise(order))
    for ticks, low, high in ((made.x, LEFT, RIGHT), (made.y, TOP, BOTTOM)):
        assert 2 <= len(ticks) <= 30
        assert all(low - 0.01 <= tick.at <= high + 0.01 for tick in ticks)
        assert len({tick.label for tick in ticks}) == len(ticks)


def test_a_logarithmic_axis_gives_each_decade_the_same_length():
    made = chart("Loss", "", {"training": [(1, 1.0), (2, 0.1), (3, 0.01)]}, logarithmic=True)
    y = [float(point.split(",")[1]) for point in made.lines[0].path.split()]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.02)
    assert [(tick.label, tick.at) for tick in made.y if tick.label in ("1", "0.1", "0.01")] == [
        *zip(("0.01", "0.1", "1"), reversed(y), strict=True)
    ]


def test_values_without_a_place_on_the_axis_are_counted_not_drawn(runs):
    points = [(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.0), (5, 0.25)]
    (line,) = chart("Loss", "", {"training": points}, logarithmic=True).lines
    assert (line.lost, len(line.path.split())) == (3, 2)
    (runs / "one/curve.tsv").write_text(CURVE + "150\tnan\t\t\t0.1\n")
    assert "1 values are not finite" in report(runs).text


def test_a_curve_without_a_value_says_so(runs):
    (runs / "one/curve.tsv").write_text("step\tloss\tpsnr\tval_psnr\tlr\n50\tnan\t\t\t0.1\n")
    assert report(runs).text.count("Nothing was measured.") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(28.2812, "28.28"), (0.001, "0.001"), (1e-5, "1·10⁻⁵"), (9999.9, "1·10⁴"), (-3.5, "−3.5"), (0, "0")],
)
def test_a_number_is_written_shortly(value, text):
    assert number(value) == text


def page_of(runs: Path) -> str:
    return write_report(["one", "two"], runs, runs.parent / "report").read_text()


def test_the_sheets_of_a_memory_are_shown(runs):
    said = "What the memory's items respond to"
    assert said not in page_of(runs)
    write_image(runs / "one/pictures/memory/items.png", np.full((9, 30, 3), 90, np.uint8))
    page = page_of(runs)
    assert page.count(said) == 1
    assert 'src="memory/one/items.png" width="30" height="9"' in page

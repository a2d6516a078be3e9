"""The papers' figures: what the curves and maps are, and that each is drawn from a model in files that open."""

import csv
import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from jobs.evaluation.published import Figure, suites
from jobs.models.memnet import MemNet
from jobs.recipe import build_model, read_recipe
from jobs.restoring.checkpoint import Trained
from jobs.suites.figures import memnet, memories, pictures, sweep
from jobs.suites.figures.draw import draw
from jobs.suites.figures.drawing import Drawing, sheet
from jobs.suites.figures.plot import Series, bars, plot
from jobs.suites.places import Places
from pipeline.errors import UserError
from pipeline.images import write_image

pytestmark = pytest.mark.usefixtures("one_thread")
FIGURES = {name: suite for name, suite in suites().items() if isinstance(suite, Figure)}
MODULES: dict[str, Any] = {"memnet": memnet, "memories": memories, "pictures": pictures, "sweep": sweep}


def test_the_figures_are_those_of_the_papers():
    assert [name for name in FIGURES if name.startswith("memnet")] == [f"memnet-fig{i}" for i in range(4, 10)]
    assert [name for name in FIGURES if name.startswith("memorynet")] == [f"memorynet-fig{i}" for i in range(4, 8)]
    assert [name for name in FIGURES if name.startswith("timelapse")] == [
        f"timelapse-fig{i}" for i in (3, *range(5, 13))
    ]
    assert [name for name in FIGURES if name.startswith("drcnet")] == [f"drcnet-fig{i}" for i in range(2, 6)]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_names_what_draws_it_or_what_it_lacks(name):
    figure = FIGURES[name]
    assert figure.draw or figure.lacking
    for each in figure.draw:
        module, _, function = each.partition(".")
        assert function in MODULES[module].DRAW
    for recipe in (*figure.recipe, *figure.sample):
        read_recipe(recipe)


# spectra


def test_a_wave_has_its_power_at_its_own_frequency():
    x = np.arange(64)
    plane = 40 * np.cos(2 * np.pi * 12 * x / 64)[None].repeat(48, 0)
    found = memnet.density(plane)
    assert len(found) == 25
    assert found.argmax() == 9  # 12 of 64 cycles a pixel are 9 of the shorter side's 48
    assert found.sum() == pytest.approx(found[9])
    assert memnet.density(plane.T).argmax() == 9


def test_the_spectrum_of_a_constant_is_empty():
    assert memnet.density(np.full((20, 30), 7.0)).max() < 1e-20


# gates


def test_the_norms_of_a_gate_are_of_each_map_that_it_sees():
    model = MemNet(memory_blocks=2, recursions=3, channels=4)
    with torch.no_grad():
        weight = model.blocks[1].gate.conv.weight
        weight.zero_()
        weight[:, 5, 0, 0] = torch.tensor([3.0, 0, 4, 0])
    norms = memnet.gate_norms(model)
    assert [len(each) for each in norms] == [16, 20]
    assert norms[1][5] == 5
    assert norms[1].sum() == 5


def test_the_maps_of_a_gate_are_long_term_first_and_the_last_recursion_last():
    assert [memnet._kind(i, 8, 20, 4) for i in (0, 7, 8, 15, 16, 19)] == [
        "long-term",
        "long-term",
        "short-term, first R-1",
        "short-term, first R-1",
        "short-term, last",
        "short-term, last",
    ]


def test_the_time_up_to_a_block_leaves_the_network_as_it_was(monkeypatch):
    model = MemNet(memory_blocks=3, recursions=1, channels=2).eval()
    x = torch.rand(1, 1, 8, 8)
    before = model(x)
    seen = []
    predictions = MemNet.predictions
    monkeypatch.setattr(
        MemNet, "predictions", lambda self, x: seen.append(len(self.blocks)) or predictions(self, x[..., :16, :16])
    )
    assert memnet._seconds(model, 2) > 0
    assert seen == [2] * 4
    assert torch.equal(model(x), before)


# points


def test_t_sne_keeps_those_together_whose_cosine_is_high():
    rng = np.random.default_rng(0)
    directions = np.eye(3)[[0] * 12 + [1] * 12 + [2] * 12]
    points = (directions + 0.02 * rng.normal(size=(36, 3))) * rng.uniform(0.1, 9, (36, 1))  # their lengths say nothing
    flat = memories.embedded(points)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.diag(np.full(36, np.inf))
    assert (distance.argmin(1) // 12 == np.arange(36) // 12).all()
    np.testing.assert_array_equal(memories.embedded(points), flat)


# pictures and plots


def test_pictures_of_several_sizes_stand_in_rows_without_touching():
    cells = [("a", np.zeros((300, 200, 3), np.uint8)), ("b", np.full((50, 50), 0.5)), ("c", np.ones((250, 240, 1)))]
    made = sheet(cells, 2)
    assert made.dtype == np.uint8
    assert made.shape[0] == (300 + 28) + (250 + 28)
    assert (made[100, 4:204] == 0).all()
    assert (made[100, 260] == 128).all()


def test_a_plot_is_a_document_whose_points_lie_in_it():
    made = plot(
        "T & <t>", "x", "y", [Series("a", [(0, 1), (2, float("nan")), (4, 3)]), Series("b", [(1, 2)], False, ["here"])]
    )
    root = ET.fromstring(made)
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.iter(f"{space}polyline")
    points = [tuple(map(float, each.split(","))) for each in line.attrib["points"].split()]
    assert len(points) == 2
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]
    assert "here" in made
    ET.fromstring(bars("t", "y", ["g1", "g2"], {"k": [1.0, float("nan")], "l": [2.0, 0.5]}))


def test_bars_are_as_tall_as_their_values():
    root = ET.fromstring(bars("t", "y", ["g1", "g2"], {"k": [1.0, 2.0]}))
    tall = [
        float(each.attrib["height"])
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
        if each.attrib["width"] not in ("560", "12")
    ]
    assert tall[1] == pytest.approx(2 * tall[0], abs=0.2)


# each figure from a model


def trained(recipe: str, *overrides: str) -> Trained:
    torch.manual_seed(0)
    options = read_recipe(recipe, list(overrides))
    model = build_model(options.model).eval()
    task = {"colour": "y" if recipe.startswith("memnet") else "rgb"}
    return Trained(model, options.model_dump(mode="json"), recipe, f"store/{recipe}", "0" * 64, task)


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (104, 72))
    for folder in (
        "photos/test",
        "rain/test/Rain100L/input",
        "rain/test/Rain100L/target",
        *(f"shadow/test/test_{k}" for k in "ABC"),
    ):
        write_image(Path("datasets", folder, "1-1.png"), image)
    write_image(Path("datasets/Classic5/barbara.png"), image[..., :1])
    return Places()


DRAWN = {
    "memnet-fig4": {"outputs.png", "spectra.csv", "spectra.svg", "differences.svg"},
    "memnet-fig5": {f"memnet-{t}-sample{e}" for t in ("denoise", "sr", "jpeg") for e in (".csv", ".svg", "-means.svg")},
    "memnet-fig9": {"Classic5-barbara-jpeg-q10.png", "scores.csv"},
    "memorynet-fig7": {"features.png", "reads.csv"},
    "timelapse-fig3": {"features.png"},
    "timelapse-fig10": {f"{w}-L_w.{e}" for w in ("with", "without") for e in ("csv", "svg")},
    "timelapse-fig12": {"features.png", "correlation.csv"},
    "drcnet-fig5": {"features.png"},
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_in_files_that_open(name, places, monkeypatch):
    def given(drawing: Drawing, *overrides: str, recipe: int = 0) -> Trained:
        return trained(drawing.figure.sample[recipe], *overrides)

    monkeypatch.setattr(Drawing, "trained", given)
    monkeypatch.setattr(sweep, "trained_variant", lambda *_, **__: None)
    made = draw(name, FIGURES[name], places, None, "sample")
    assert {*made.files} == DRAWN[name]
    for file, data in made.files.items():
        if file.endswith(".png"):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert picture.std() > 5
        elif file.endswith(".csv"):
            head, *rows = csv.reader(io.StringIO(data.decode()))
            assert rows
            assert all(len(row) == len(head) for row in rows)
        else:
            ET.fromstring(data)


def test_a_figure_that_cannot_be_drawn_says_why(places):
    with pytest.raises(UserError, match=r"timelapse-fig5: nothing to compute; it lacks the images"):
        draw("timelapse-fig5", FIGURES["timelapse-fig5"], places, None, None)
    with pytest.raises(UserError, match=r"not trained; `memoir train timelapse-derain`"):
        draw("timelapse-fig12", FIGURES["timelapse-fig12"], places, None, None)
    with pytest.raises(UserError, match=r"no picture of the figure is at hand: SIDD: not in datasets/SIDD"):
        draw("drcnet-fig3", FIGURES["drcnet-fig3"], places, "identity", None)

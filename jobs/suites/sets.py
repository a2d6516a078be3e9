"""The test images of the papers' tables: where they lie below the folder of data sets, and where they come from."""

from pathlib import Path
from typing import NamedTuple

from jobs.evaluation.published import Columns, protocol_of
from jobs.recipe import BenchmarkRun
from pipeline.errors import UserError


class TestSet(NamedTuple):
    """folder: below the folder of data sets. layout, subset, split: as `memoir evaluate` takes them; without a layout, a folder
    of clean images. home: where the images come from, for those without a layout that says so. closed: why nobody can
    score on these images at home.
    """

    folder: str
    layout: str | None = None
    subset: str | None = None
    split: str = "test"
    home: str | None = None
    closed: str | None = None


SELFEX = "https://github.com/jbhuang0604/SelfExSR"
BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
SETS = {
    "Classic5": TestSet("Classic5", home="https://github.com/cszn/DnCNN"),
    "LIVE1": TestSet("LIVE1_gray", home="https://live.ece.utexas.edu/research/quality/subjective.htm"),
    "Set5": TestSet("Set5", home=SELFEX),
    "Set14": TestSet("Set14", home=SELFEX),
    "BSD100": TestSet("BSDS500/data/images/val", home=BERKELEY),
    "BSD200": TestSet("BSDS500/data/images/test", home=BERKELEY),
    "Urban100": TestSet("Urban100", home=SELFEX),
    "S14": TestSet("S14", home="https://github.com/tyshiwo/MemNet, folder data/GaussianDenoising/S14"),
    "Test100": TestSet("Rain13K", "rain13k", "Test100"),
    "Rain100H": TestSet("Rain13K", "rain13k", "Rain100H"),
    "Rain100L": TestSet("Rain13K", "rain13k", "Rain100L"),
    "Test2800": TestSet("Rain13K", "rain13k", "Test2800"),
    "Test1200": TestSet("Rain13K", "rain13k", "Test1200"),
    "SIDD": TestSet("SIDD", "sidd", split="val"),
    "DND": TestSet("DND", "dnd", closed="its targets are secret: the publication's server scores what is sent to it"),
    "GoPro-blur": TestSet("GoPro", "gopro:blur"),
    "HIDE": TestSet("HIDE", "hide"),
    "RealBlur-J": TestSet("RealBlur", "realblur:J"),
    "ISTD-istd": TestSet("ISTD", "istd:istd"),
    "RainDrop-test_a": TestSet("RainDrop", "raindrop:test_a"),
    "RainDrop-test_b": TestSet("RainDrop", "raindrop:test_b"),
    "SPA": TestSet("SPA", "spa"),
    "Rain12000": TestSet("Rain12000", "rain12000"),
    "Rain14000": TestSet("Rain14000", "rain14000"),
    "Highway": TestSet(
        "MS-CSC-highway",
        "pairs",
        home="https://github.com/MinghanLi/MS-CSC-Rain-Streak-Removal, the clip highway as test/lq and test/gt",
    ),
}


def root_of(name: str, data: Path) -> Path:
    """The folder of a test set. data: of all data sets. Raises UserError for a set that is none."""
    if name not in SETS:
        raise UserError(f"no test set {name!r}; known: {', '.join(sorted(SETS))}")
    return data / SETS[name].folder


def lacking(name: str, data: Path) -> str | None:
    """Why a test set cannot be scored on here, and what mends it; None if it is at hand."""
    folder, which = root_of(name, data), SETS[name]
    if which.closed:
        return f"{name}: {which.closed}"
    if folder.is_dir() and any(folder.iterdir()):
        return None
    return f"{name}: not in {folder}; from {home(name)}"


def columns_lack(group: Columns, data: Path) -> str | None:
    """Why columns that are measured on images cannot be measured here; None if they can. `group` has a set."""
    assert group.set is not None
    if line := lacking(group.set, data):
        return line
    if group.benchmark is None or protocol_of(group.benchmark) is None:
        return f"{group.set}: no protocol of memoir measures {', '.join(group.metrics)} as the paper does"
    return None


def home(name: str) -> str:
    """Where the images of a test set come from."""
    from pipeline.layouts import LAYOUTS

    which = SETS[name]
    if which.home is not None:
        return which.home
    assert which.layout is not None
    layout = LAYOUTS[which.layout.partition(":")[0]]
    return layout.home or "its publication, see docs/reference/datasets.md"


def run_of(name: str, benchmark: str, data: Path) -> BenchmarkRun:
    """What scores a benchmark on a test set."""
    which = SETS[name]
    return BenchmarkRun.model_validate(
        {
            "benchmark": benchmark,
            "data": str(root_of(name, data)),
            "layout": which.layout,
            "subset": which.subset,
            "split": which.split,
        }
    )

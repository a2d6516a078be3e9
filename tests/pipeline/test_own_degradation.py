"""A degradation of the user's own: found from the current directory, hashed, and imported by nobody who reads."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Workplace, photograph

from pipeline.degradations.orientation import dihedral, upright
from pipeline.degradations.own import Own
from pipeline.errors import UserError
from pipeline.images import UnusableImageError
from pipeline.loading.loader import Loader, Position
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards import kept
from pipeline.shards.format import read_shards_json, verify
from pipeline.shards.inspect import inspect
from pipeline.shards.shard_set import ShardSet
from pipeline.task import Task, read_task, recorded

ROOT = Path(__file__).parents[2]
OUT = Path("data/tiny")
FOG = """
import numpy as np

from pipeline.depth import levels, unit


class Fog:
    levels = (1, 2)

    def __init__(self, density: float = 0.3, seed: int = 0):
        self.density = density

    def degrade(self, image, level, rng):
        there = np.exp(-self.density * level * rng.uniform(0.9, 1.1, (*image.shape[:2], 1)))
        return levels(unit(image) * there + 0.9 * (1 - there), image.dtype)
"""
MODEL = """
from __future__ import annotations

from pydantic import BaseModel, Field

from .sides import turned


class Mirror(BaseModel, extra="forbid"):
    levels: tuple[int, ...] = (7,)
    side: str = Field("left", pattern="left|up")

    def degrade(self, image, level, rng):
        return turned(image, self.side)
"""
SIDES = """
def turned(image, side):
    return image[:, ::-1] if side == "left" else image[::-1]
"""


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def place(workplace, without_ray, monkeypatch) -> Workplace:
    """Four photographs, and the user's package in the current directory."""
    monkeypatch.syspath_prepend(ROOT)  # what is added to sys.path is gone afterwards
    for module in [name for name in sys.modules if name.partition(".")[0] == "haze"]:  # of another test's directory
        monkeypatch.delitem(sys.modules, module)
    for i in range(4):
        workplace.add(f"{'train' if i else 'val'}/{i}.png", photograph(i, 40, 50 + i))
    workplace.ingest()
    write("haze/fog.py", FOG)
    return workplace


def fog(**options) -> dict:
    return {"kind": "haze.fog:Fog", **options}


def built() -> dict[tuple[str, int], bytes]:
    return {(v.key, v.level): v.planes["lq"].tobytes() for v in ShardSet(OUT, "train").versions()}


# a build


def test_a_class_degrades_each_image_at_its_levels_and_is_recorded_with_its_source(place):
    listing = place.build(degradation=fog(density=0.5), colour="rgb")
    assert listing["degradation"] == {
        "kind": "haze.fog:Fog",
        "options": {"density": 0.5, "seed": 0},
        "made_at": [1, 2],
        "turned": "all",
        "source": hashlib.sha256(FOG.encode()).hexdigest(),
    }
    assert list(verify(OUT)) == []
    for version in ShardSet(OUT, "train").versions():
        gt, lq = (version.planes[name].astype(float) for name in ("gt", "lq"))
        through = np.exp(-0.5 * version.level)
        assert np.abs(lq - (gt * through + 0.9 * 255 * (1 - through))).mean() < 12
    assert sorted({level for _, level in built()}) == [1, 2]


def test_its_bytes_belong_to_image_level_and_seed_whoever_builds(place, monkeypatch):
    digests = set()
    for cpus in (1, 3):
        monkeypatch.setattr(kept, "STORE", Path(f".cache/{cpus}"))
        shutil.rmtree(OUT, ignore_errors=True)  # else its shards are taken
        digests.add(place.build(degradation=fog(), cpus=cpus)["digest"])
    assert len(digests) == 1
    first = built()
    (place.root / "photos/train/1.png").unlink()
    place.ingest()
    place.build(degradation=fog())
    assert built().items() < first.items()
    place.build(degradation=fog(seed=1))
    assert not any(lq == first[name] for name, lq in built().items())


def test_another_source_or_option_is_built_anew_and_the_same_one_is_not(place):
    def encoded(**options) -> bool:
        return place.build(degradation=fog(**options))["encoded"] > 0

    assert encoded()
    assert not encoded()
    assert not encoded(density=0.3)  # the default
    assert encoded(density=0.4)
    write("haze/fog.py", FOG + "\n# another word\n")
    assert encoded()
    write("haze/fog.py", FOG.replace("0.9 * (1", "0.8 * (1"))
    before = built()
    assert encoded()
    assert built() != before
    write("haze/fog.py", FOG)
    assert not encoded()


def found(source: str, **options) -> Own:
    write("haze/fog.py", source)
    return Own.model_validate(fog(**options)).found(Path.cwd())


def test_its_randomness_is_of_image_level_and_seed_and_of_nothing_else(place):
    source = degrade("return rng.integers(0, 256, image.shape, np.uint8)")
    source = source.replace("    def", "    def __init__(self, seed: int = 0): pass\n\n    def", 1)
    image = np.zeros((8, 9, 1), np.uint8)

    def drawn(key: str, level: int, seed: int) -> bytes:
        member, lq, parameters = found(source, seed=seed).made(image, level, key)
        assert (member, parameters) == (f"lq-{level}", {"haze.fog:Fog": level})
        return lq.tobytes()

    one = drawn("a", 1, 0)
    assert drawn("a", 1, 0) == one
    assert len({one, drawn("b", 1, 0), drawn("a", 2, 0), drawn("a", 1, 1)}) == 4


def test_what_it_returns_is_stored_in_the_order_of_rows_and_an_image_that_it_cannot_use_is_left_to_the_build(place):
    image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    _, lq, _ = found(degrade("return image[::-1]")).made(image, 1, "a")
    assert lq.flags.c_contiguous
    assert (lq == image[::-1]).all()
    own = found("from pipeline.images import UnusableImageError\n" + degrade("raise UnusableImageError('too dark')"))
    with pytest.raises(UnusableImageError, match="too dark"):
        own.made(image, 1, "a")
    assert "haze.fog" not in sys.modules  # another source of that name is no part of it


def test_a_pydantic_model_has_its_options_and_imports_its_neighbours(place):
    write("haze/mirror.py", MODEL)
    write("haze/sides.py", SIDES)
    place.build(degradation={"kind": "haze.mirror:Mirror", "side": "up"})
    for version in ShardSet(OUT, "train").versions():
        assert version.level == 7
        assert (version.planes["lq"] == version.planes["gt"][::-1]).all()


def test_one_with_a_direction_says_so_and_is_made_of_each_orientation(place):
    wind = """
import numpy as np


class Wind:
    levels, turns = (3,), "none"

    def degrade(self, image, level, rng):
        return np.roll(image, level, 1)
"""
    write("haze/wind.py", wind)
    place.build(degradation={"kind": "haze.wind:Wind"})
    assert recorded(read_shards_json(OUT)["degradation"]).turns == "none"
    versions = list(ShardSet(OUT, "train").versions())
    loader = Loader(OUT, batch=8, sampling=Grid(16, 8))
    seen = set()
    for i in range(0, len(loader), 3):
        batch = loader.cut(Position(0, i))
        for sample, lq in zip(batch["sample"].tolist(), batch["lq"], strict=True):
            version = int(np.searchsorted(loader.first, sample, side="right")) - 1
            number = np.array([sample - loader.first[version]])
            places = loader.sampling.place(number, loader.sizes[[version]], number, 0, 0)
            top, left, view = (int(each[0]) for each in places)
            whole = np.roll(
                dihedral(versions[version].planes["gt"], view), 3, 1
            )  # what the wind makes of the turned image
            wanted = dihedral(upright(whole, view)[top : top + 16, left : left + 16], view)
            assert (lq[0].numpy() == wanted[..., 0]).all()
            seen.add(view)
    assert seen == set(range(8))
    write("haze/wind.py", wind.replace('"none"', '"rows"'))
    with pytest.raises(
        UserError, match=r"haze/wind\.py: Wind: turns is 'rows', and not one of all, flips, half turn, none"
    ):
        place.build(degradation={"kind": "haze.wind:Wind"})


def test_workers_of_ray_find_it_too(place, monkeypatch, ray_cluster):
    from pipeline.shards import build as stage

    here = place.build(degradation=fog())["digest"]
    monkeypatch.setattr(stage, "FEW", 0)
    monkeypatch.setattr(kept, "STORE", Path(".cache/ray"))
    shutil.rmtree(OUT)
    assert place.build(degradation=fog())["digest"] == here


def test_negatives_are_mixed_of_it(place):
    place.build(degradation=fog(), negatives={"kept": "stored"})
    assert list(verify(OUT)) == []
    assert ShardSet(OUT, "train").negatives is not None


# whoever reads


def test_readers_take_what_was_recorded_and_never_import_it(place, tmp_path, monkeypatch):
    place.build(degradation=fog(), negatives={})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trap = "raise SystemExit('imported')"
    for name in ("haze/fog.py", "elsewhere/haze/fog.py", "elsewhere/haze.py"):
        path = place.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(trap)
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(place.root))
    for module in [name for name in sys.modules if name.partition(".")[0] == "haze"]:
        monkeypatch.delitem(sys.modules, module)
    folder = place.root / OUT
    assert list(verify(folder)) == []
    listing = read_shards_json(folder)
    loader = Loader(folder, batch=4, sampling=RandomCrops(16, 4))
    batch = loader.to_device(loader.cut(Position()), torch.device("cpu"))
    assert batch["lq"].shape == batch["gt"].shape
    assert inspect(folder, elsewhere / "sheet.png")["splits"]["train"]["levels"] == {"1": 3, "2": 3}
    task = {"colour": "y", "splits": listing["splits"], "degradation": listing["degradation"]}
    assert Task.model_validate(json.loads(json.dumps(task))).degradation.levels == (1, 2)
    said = recorded(listing["degradation"]).said()
    assert said == {"class": ["haze.fog:Fog"], "levels": ["1", "2"], "density": ["0.3"]}
    Task.model_validate(task | {"degradation": {"kind": "os:abort"}})  # nor what is written as in a task
    assert "haze.fog" not in sys.modules


def test_a_recorded_class_makes_nothing_before_it_is_found(place):
    listing = place.build(degradation=fog())
    with pytest.raises(AssertionError, match="only a build runs code"):
        recorded(listing["degradation"]).made(np.zeros((4, 4, 1), np.uint8), 1, "a")


# mistakes


def degrade(body: str) -> str:
    return f"import numpy as np\n\n\nclass Fog:\n    levels = (1,)\n\n    def degrade(self, image, level, rng):\n        {body}\n"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "no module haze.fog; put haze/fog.py into "),
        ("class Frog: pass", "haze/fog.py: has no class Fog; did you mean 'Frog'? known: Frog"),
        ("Fog = 3", "haze/fog.py: Fog is no class but int"),
        ("Frog = 3", "haze/fog.py: has no class Fog; nor any other one"),
        ("\ndef (", "the import of haze.fog raises SyntaxError: invalid syntax (HERE:2)"),
        ("\nimport nowhere.at_all", "raises ModuleNotFoundError: No module named 'nowhere' (HERE:2)"),
        ("raise SystemExit(3)", "the import of haze.fog raises SystemExit: 3 (HERE:1)"),
        ("class Fog: pass", "haze/fog.py: Fog has no levels: the numbers of the versions"),
        ("class Fog: levels = (1, 1)", "haze/fog.py: Fog: levels is (1, 1), and not whole numbers from 0 on, each once"),
        ("class Fog: levels = ()", "haze/fog.py: Fog: levels is (), and not whole numbers"),
        ("class Fog: levels = (True,)", "haze/fog.py: Fog: levels is (True,), and not whole numbers"),
        ("class Fog: levels = (-1,)", "haze/fog.py: Fog: levels is (-1,), and not whole numbers"),
        ("class Fog: levels = 3", "haze/fog.py: Fog: levels is 3, and not whole numbers"),
        ("class Fog: levels = (0.5,)", "haze/fog.py: Fog: levels is (0.5,), and not whole numbers"),
        ("class Fog: levels = (1,)", "haze/fog.py: Fog has no degrade(image, level, rng)"),
        (
            "class Fog:\n    levels = (1,)\n    def degrade(self, image): pass",
            "haze/fog.py: Fog: it is called as degrade(image, level, rng), and is degrade(image)",
        ),
        (
            "class Fog:\n    levels = (1,)\n    def __init__(self, density): pass",
            "haze/fog.py: Fog: the option density has no type; write density: float, for example",
        ),
        (
            "class Fog:\n    levels = (1,)\n    def __init__(self, **anything): pass",
            "haze/fog.py: Fog: **anything takes whatever comes; name the options one by one",
        ),
        (
            "class Fog:\n    levels = (1,)\n    def __init__(self):\n        raise OSError('no weights')",
            "haze/fog.py: Fog: with these options it raises OSError: no weights (HERE:4)",
        ),
        (degrade("return image[1:]"), "returns uint8 (39, 51, 1), and the image is uint8 (40, 51, 1)"),
        (degrade("return image / 2"), "returns float64 (40, 51, 1), and the image is uint8 (40, 51, 1); pipeline.depth.levels"),
        (degrade("return image * np.nan"), "returns float64 (40, 51, 1) with NaN, and the image is uint8"),
        (degrade("return (image * np.nan).astype(np.uint8)"), "FloatingPointError: invalid value encountered in cast (HERE:8)"),
        (degrade("return None"), "returns NoneType, and the image is uint8 (40, 51, 1)"),
        (degrade("image += 1"), "ValueError: output array is read-only (HERE:8)"),
        (degrade("return image[level, 1000]"), "IndexError: index 1000 is out of bounds for axis 1 with size 51 (HERE:8)"),
    ],
)  # fmt: skip
def test_a_mistake_in_it_is_one_line_that_names_the_file(place, cli, source, problem):
    path = Path("haze/fog.py")
    path.unlink() if source is None else path.write_text(source)
    code, _, said = cli("build", place.task(degradation=fog()), "--data", "data")
    assert code == 1
    assert said.count("\n") == 1
    assert problem.replace("HERE", str(path.absolute())) in said
    assert "haze/fog.py" in said
    if source is not None and "def degrade(self, image, level, rng)" in source:
        assert re.search(r"haze/fog.py: Fog.degrade of photos-\w+-\d at level 1", said)


@pytest.mark.parametrize(
    ("degradation", "problem"),
    [
        (fog(densty=1), "haze/fog.py: Fog has no option 'densty'; did you mean 'density'?"),
        (fog(density="thick"), "haze/fog.py: Fog: density: Input should be a valid number"),
        (fog(density=float("nan")), "haze/fog.py: Fog: with these options it raises ValueError: Out of range float"),
        (fog(source="x"), "options, made_at, turned and source are what a build records"),
        ({"kind": "haze/fog.py:Fog"}, "String should match pattern"),
        (
            {"kind": "fog"},
            "no degradation is of kind 'fog'; known: chain, jpeg, noise, paired, scale, timelapse, or <module>:<class>",
        ),
    ],
)
def test_a_mistake_in_the_task_is_one_line(place, cli, degradation, problem):
    if "source" in degradation:
        degradation["density"] = 1
    code, _, said = cli("build", place.task(degradation=degradation), "--data", "data")
    assert (code, said.count("\n")) == (1, 1)
    assert problem in said


def test_a_file_that_changes_on_the_way_to_the_workers_is_refused(place):
    task = read_task(place.task(degradation=fog()))
    write("haze/fog.py", FOG + "\n# changed\n")
    with pytest.raises(UserError, match=r"haze/fog\.py: not the file that the build began with"):
        recorded(task.degradation.model_dump(mode="json")).found(Path.cwd())


# the example of CONTRIBUTING.md


def test_the_example_in_the_handbook_builds_and_passes_its_own_test(place):
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## A degradation of your own")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    files = {name: write(name, text) for name, text in blocks}
    assert {path.suffix for path in files.values()} == {".py", ".yaml"}
    test = next(name for name in files if Path(name).name.startswith("test_"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    task = yaml.safe_load(next(path for name, path in files.items() if name.endswith(".yaml")).read_text())
    listing = place.build(**task | {"splits": {"train": ["photos/train"], "val": ["photos/val"]}})
    assert listing["degradation"]["kind"] == task["degradation"]["kind"]

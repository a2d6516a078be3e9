"""What `ingest` makes of datasets that are not as published, of groups with a bad image, and of leaks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Workplace, photograph

from pipeline.errors import UserError
from pipeline.layouts import LAYOUTS
from pipeline.layouts.base import Count, Layout, Row, Split
from pipeline.raw.manifest import Source, ingest, read_manifest

MANIFEST = Path("data/manifest/manifest.json")


class Streaks(Layout):
    """Two rainy images a clean one: {train,test}/rain/<image>_<streaks>.png, {train,test}/clean/<image>.png, and a subset."""

    name, tree = "streaks", "{train,test,test/Heavy}/{rain,clean}/*.png"
    counts = (
        Count("train", "lq", 4, causes={3: "the archive of 2019 lacks one"}),
        Count("test", "lq", 2),
        Count("test", "lq", 1, "Heavy"),
    )

    def scan(self) -> Iterator[Row]:
        rules = {"lq": "{image}_{streaks}", "gt": "{image}"}
        splits: tuple[tuple[Split, str | None], ...] = (("train", None), ("test", None), ("test", "Heavy"))
        for split, subset in splits:
            place = self.root / (subset or split)
            yield from self.matched(split, {"lq": place / "rain", "gt": place / "clean"}, subset, rules)


@pytest.fixture(autouse=True)
def streaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "streaks", Streaks)


def group(workplace: Workplace, folder: str, name: str, rainy: int = 2) -> None:
    """A clean image and its rainy ones."""
    seed = sum(map(ord, folder + name)) * 10
    workplace.add(f"{folder}/clean/{name}.png", photograph(seed, 20, 30))
    for i in range(rainy):
        workplace.add(f"{folder}/rain/{name}_{i}.png", photograph(seed + 1 + i, 20, 30))


@pytest.fixture
def whole(workplace: Workplace) -> Workplace:
    """The training split as published; the test split is not unpacked."""
    group(workplace, "train", "a")
    group(workplace, "train", "b")
    return workplace


def run(allow: bool = False, everywhere: bool = False) -> tuple[str, ...]:
    """The differences of the one data set. allow: in params.yaml; everywhere: by the command's option."""
    sources = {"rain": Source(layout="streaks", root="photos", allow_counts=allow)}
    return ingest(sources, MANIFEST.parent, allow_counts=everywhere).counts[0].differences


def recorded() -> dict:
    return json.loads(MANIFEST.read_text())["datasets"]


def used() -> list[str]:
    return sorted(Path(row["path"]).stem for row in read_manifest(MANIFEST).to_pylist())


def reasons() -> dict[str, str]:
    rejects = pq.read_table(MANIFEST.parent / "rejects.parquet").to_pylist()
    return {row["path"].removeprefix("photos/"): row["reject_reason"] for row in rejects}


# counts


def test_a_whole_dataset_and_an_absent_split_are_no_difference(whole):
    assert run() == ()
    assert recorded() == {
        "rain": {
            "layout": "streaks",
            "root": "photos",
            "variant": None,
            "allow_counts": False,
            "licence": None,
            "differences": [],
        }
    }


def drop(name: str) -> Callable[[Workplace], None]:
    return lambda place: (place.root / "photos" / name).unlink()


DIFFERENCES: dict[str, tuple[Callable[[Workplace], object], str]] = {
    "known": (
        drop("train/rain/b_1.png"),
        "train has 3 lq images, 1 fewer than the 4 published (the archive of 2019 lacks one)",
    ),
    "rejected": (
        lambda place: [place.add(f"train/rain/{name}.png", b"") for name in ("b_0", "b_1")],
        "train has 2 lq images, 2 fewer than the 4 published (2 rejected, the first: photos/train/rain/b_0.png: empty file)",
    ),
    "half of a pair": (
        lambda place: [drop(f"train/rain/{name}.png")(place) for name in ("b_0", "b_1")],
        "train has 2 lq images, 2 fewer than the 4 published (1 rejected, the first: photos/train/clean/b.png: "
        "no rain: train/rain/b_*.png is missing)",
    ),
    "missing": (
        lambda place: [drop(f"train/{name}.png")(place) for name in ("rain/b_0", "rain/b_1", "clean/b")],
        "train has 2 lq images, 2 fewer than the 4 published (files are missing: an unfinished download, or another release)",
    ),
    "more": (
        lambda place: [group(place, "train", "c", 1), place.add("train/rain/odd.png", photograph(0, 20, 20))],
        "train has 5 lq images, 1 more than the 4 published "
        "(files that were not published, such as copies or another split's images)",
    ),
    "a subset": (
        lambda place: group(place, "Heavy", "d"),
        "test/Heavy has 2 lq images, 1 more than the 1 published "
        "(files that were not published, such as copies or another split's images)",
    ),
    "a split of which nothing can be used": (
        lambda place: place.add("test/clean/x.png", photograph(0, 20, 20)),
        "test has 0 lq images, 2 fewer than the 2 published (1 rejected, the first: photos/test/clean/x.png: "
        "no rain: test/rain/x_*.png is missing)",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_counts_that_differ_are_one_line_with_the_difference_and_its_likely_cause(kind, whole):
    change, difference = DIFFERENCES[kind]
    change(whole)
    with pytest.raises(UserError) as error:
        run()
    assert str(error.value) == (
        f"photos: {difference}. Mend the data set, or accept it: `memoir ingest --allow-counts`, "
        "or allow_counts: true beside rain in params.yaml"
    )
    assert not MANIFEST.parent.exists()


@pytest.mark.parametrize("by", ["allow", "everywhere"])
def test_allowed_differences_are_recorded_in_the_manifest(by, whole):
    change, difference = DIFFERENCES["missing"]
    change(whole)
    assert run(**{by: True}) == (difference,)
    assert recorded()["rain"]["differences"] == [difference]
    assert recorded()["rain"]["allow_counts"] is (by == "allow")
    assert used() == ["a", "a_0", "a_1"]


def test_all_differences_are_in_the_one_line(whole):
    for kind in ("known", "a subset"):
        DIFFERENCES[kind][0](whole)
    with pytest.raises(UserError) as error:
        run()
    assert str(error.value).startswith(f"photos: {DIFFERENCES['known'][1]}; {DIFFERENCES['a subset'][1]}. Mend")


# groups and pairs


def test_a_bad_input_of_many_takes_nothing_with_it(whole):
    whole.add("train/rain/a_0.png", b"")
    run(allow=True)
    assert used() == ["a", "a_1", "b", "b_0", "b_1"]
    assert reasons() == {"train/rain/a_0.png": "empty file"}


def test_a_target_goes_with_the_last_of_its_inputs(whole):
    for name in ("a_0", "a_1"):
        whole.add(f"train/rain/{name}.png", b"")
    run(allow=True)
    assert used() == ["b", "b_0", "b_1"]
    assert reasons()["train/clean/a.png"] == "its partner cannot be used (a_0.png: empty file)"


def test_a_bad_target_takes_all_its_inputs_with_it(whole):
    whole.add("train/clean/a.png", b"")
    run(allow=True)
    assert used() == ["b", "b_0", "b_1"]
    partner = "its partner cannot be used (a.png: empty file)"
    assert reasons() == {
        "train/clean/a.png": "empty file",
        "train/rain/a_0.png": partner,
        "train/rain/a_1.png": partner,
    }


def test_an_input_of_another_size_than_its_target_is_rejected_with_both_sizes(whole):
    whole.add("train/rain/a_1.png", photograph(0, 20, 32))
    run(allow=True)
    assert used() == ["a", "a_0", "b", "b_0", "b_1"]
    assert reasons() == {"train/rain/a_1.png": "32x20 pixels, and its gt a.png has 30x20"}


def test_a_pair_of_two_sizes_is_rejected_whole_and_so_is_one_with_a_mask_of_another(workplace):
    for name, sizes in {"1": (20, 20, 20), "2": (20, 24, 20), "3": (20, 20, 24)}.items():
        for letter, side in zip("ACB", sizes, strict=True):
            workplace.add(f"train/train_{letter}/{name}.png", photograph(ord(letter), side, 20))
    source = Source(layout="istd", root="photos", variant="istd", allow_counts=True)
    ingest({"shadow": source}, MANIFEST.parent)
    assert used() == ["1", "1", "1"]
    said = reasons()
    assert said["train/train_A/2.png"] == "20x20 pixels, and its gt 2.png has 20x24"
    assert said["train/train_B/3.png"] == "20x24 pixels, and its gt 3.png has 20x20"
    partner = "its partner cannot be used (3.png: 20x24 pixels, and its gt 3.png has 20x20)"
    assert said["train/train_A/3.png"] == said["train/train_C/3.png"] == partner
    assert len(said) == 6


# the command


def write_params(layout: str, **source: object) -> None:
    datasets = {"rain": {"layout": layout, "root": "photos", "licence": "CC0"} | source}
    params = {"store": "store", "datasets": datasets, "tasks": [], "recipes": {}}
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_the_command_refuses_counts_that_differ_unless_told_to_allow_them(whole, cli):
    write_params("streaks")
    change, difference = DIFFERENCES["missing"]
    change(whole)
    code, out, err = cli("ingest")
    assert (code, out) == (1, "")
    assert err.startswith(
        f"memoir: photos: {difference}. Mend the data set, or accept it: `memoir ingest --allow-counts`"
    )
    assert err.count("\n") == 1
    allowed = 0, "rain: 3 found = 3 used + 0 rejected\n", f"rain: accepted: {difference}\n"
    assert cli("ingest", "--allow-counts") == allowed
    write_params("streaks", allow_counts=True)
    assert cli("ingest") == allowed


def test_the_command_names_leaks_and_fails_on_them_if_told_to(workplace, cli):
    write_params("folder")
    workplace.add("train/1.png", photograph(0, 40, 40))
    workplace.add("train/2.png", photograph(1, 40, 40))
    workplace.add("test/copy.png", photograph(0, 40, 40))
    line = "exact copies in two splits: photos/test/copy.png (rain/test) and photos/train/1.png (rain/train)\n"
    counts = "rain: 3 found = 3 used + 0 rejected\n"
    assert cli("ingest") == (0, counts, line)
    last = "memoir: images in two splits: 1; remove them from one, see data/manifest/leaks.parquet\n"
    assert cli("ingest", "--fail-on-leaks") == (1, counts, line + last)
    assert pq.read_table(MANIFEST.parent / "leaks.parquet").num_rows == 1
    (workplace.root / "photos/test/copy.png").unlink()
    assert cli("ingest", "--fail-on-leaks") == (0, "rain: 2 found = 2 used + 0 rejected\n", "")

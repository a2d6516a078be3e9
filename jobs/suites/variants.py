"""The models that a table is about: a recipe with the values of each of its rows, trained by `memoir train`."""

import shlex
from typing import Literal, NamedTuple

from jobs.evaluation.published import Table
from jobs.recipe import Recipe, read_recipe
from jobs.suites.places import Places
from jobs.variant import overriding, variant, words
from pipeline.config import bare_name
from pipeline.errors import UserError

Scale = Literal["paper", "sample"]


class Variant(NamedTuple):
    """method: the row of the table. given: the recipe's name. name: of the folder in runs/."""

    method: str
    given: str
    overrides: tuple[str, ...]
    recipe: Recipe
    name: str

    @property
    def command(self) -> str:
        """What trains it."""
        return shlex.join(["memoir", "train", self.given, *words([*self.overrides])])


def variants_of(table: Table, scale: Scale, lacking: list[str]) -> list[Variant]:
    """The variants of a table's rows, at the paper's or the samples' size. lacking: what is missing is added to it."""
    found = []
    for method, row in table.rows.items():
        if row.role != "paper":
            continue
        given = [*table.sample] if scale == "sample" else [row.recipe] if row.recipe else [*table.recipe]
        overrides = row.sample_overrides if scale == "sample" and row.sample_overrides is not None else row.overrides
        if row.lacking:
            lacking.append(f"{method}: {row.lacking}")
            continue
        for name in given:
            try:
                found.append(make_variant(method, name, overrides))
            except UserError as error:
                lacking.append(f"{method}: {name} {' '.join(overrides)}: {error}")
    return found


def make_variant(method: str, given: str, overrides: tuple[str, ...]) -> Variant:
    """A recipe with these values. Raises UserError for what the recipe does not take."""
    recipe = read_recipe(given, [*overrides])
    return Variant(method, given, overrides, recipe, variant(bare_name(given), recipe, overriding([*overrides])))


def trained_variant(which: Variant, places: Places, *, train: bool) -> str | None:
    """The variant's name in runs/, trained before or now; None where it is not and `train` is false.

    What is trained already is taken as it is. Raises UserError as training does.
    """
    if (places.runs / which.name / "checkpoint.json").is_file():
        return which.name
    if not train:
        return None
    from jobs.training.train import train as train_recipe
    from pipeline.params import project_store

    store = project_store(places.store)
    train_recipe(which.given, data=str(places.data), store=store, runs=places.runs, overrides=[*which.overrides])
    return which.name

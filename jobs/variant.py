"""Variants: a recipe with other values from the command line (`--set`), which has a name and a folder of its own in runs/."""

import hashlib
import json
import re
from typing import Any, NamedTuple

from jobs.recipe import RECIPES, Recipe
from pipeline.config import bare_name

NUMBERS = ("seed", "portable")  # the keys of `training` that change numbers: the others say how a run is carried out
LONGEST = 60  # characters of the values in a name


class Reference(NamedTuple):
    """What a user names. recipe: for `read_recipe`. name: of the folder in runs/, and of the recipe's versions in a store."""

    recipe: str
    name: str


def reference(given: str) -> Reference:
    """A recipe's name or YAML file, or one of its variants: `memnet-jpeg+lr=0.0005`, `mine.yaml+lr=0.0005`."""
    folder, slash, last = given.rpartition("/")
    recipe, plus, values = last.partition("+")
    if not plus or (RECIPES / f"{bare_name(given)}.yaml").is_file() or given.endswith(".yaml"):
        return Reference(given, bare_name(given))
    recipe = f"{folder}{slash}{recipe}"
    return Reference(recipe, f"{bare_name(recipe)}+{values}")


def overriding(overrides: list[str]) -> list[str]:
    """Those of the `section.key=value` that make another model: the last of each key, in their order."""
    last = {each.partition("=")[0]: each for each in overrides}
    return [each for key, each in last.items() if key.split(".")[0] != "training" or key.split(".")[1:2][0] in NUMBERS]


def words(overrides: list[str]) -> list[str]:
    """`section.key=value` each as words of a command."""
    return [word for each in overrides for word in ("--set", each)]


def variant(name: str, recipe: Recipe, overrides: list[str]) -> str:
    """The name of a recipe with these values, e.g. memnet-jpeg+lr=0.0005; without any, the recipe's own.

    recipe: with the values. overrides: from `overriding`. It is a file's name on every system; one that would be long, or
    whose values have other characters than a name may have, ends in a digest. Equal names are equal values.
    """
    if not overrides:
        return name
    resolved = recipe.model_dump(mode="json")
    values = {key: _value(resolved, key, text) for key, _, text in (each.partition("=") for each in overrides)}
    parts = [f"{re.sub('^(optimisation|training)[.]', '', key)}={value}" for key, value in sorted(values.items())]
    whole = "+".join(parts)
    safe = re.sub(r"[^A-Za-z0-9._=+-]", "_", whole)
    if safe == whole and len(whole) <= LONGEST and all(part.count("=") == 1 and "+" not in part for part in parts):
        return f"{name}+{whole}"
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}+{safe[:LONGEST]}-{digest}"


def _value(resolved: Any, key: str, text: str) -> str:
    """A value as the recipe then has it, so that 5e-4 and 0.0005 are one; as it was given where the recipe does not show it."""
    for part in key.split("."):
        if not isinstance(resolved, dict) or part not in resolved:
            return text
        resolved = resolved[part]
    return resolved if isinstance(resolved, str) else json.dumps(resolved, sort_keys=True)

"""Names of variants."""

import re

import pytest

from jobs.recipe import Optimisation, Training, read_recipe
from jobs.variant import LONGEST, overriding, reference, variant


def named(*overrides: str) -> str:
    changed = overriding(list(overrides))
    return variant("memnet-jpeg", read_recipe("memnet-jpeg", list(overrides)), changed)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "memnet-jpeg"),
        (["optimisation.lr=0.0005"], "memnet-jpeg+lr=0.0005"),
        (["optimisation.lr=5.0e-4"], "memnet-jpeg+lr=0.0005"),
        (["optimisation.lr=0.1", "optimisation.lr=0.0005"], "memnet-jpeg+lr=0.0005"),
        (["training.seed=2", "optimisation.lr=0.0005"], "memnet-jpeg+lr=0.0005+seed=2"),
        (["model.long_term=false"], "memnet-jpeg+model.long_term=false"),
        (["training.workers=4", "training.max_failures=8"], "memnet-jpeg"),  # the same model
    ],
)
def test_a_variant_is_called_by_its_values(overrides, name):
    assert named(*overrides) == name


def test_other_values_have_other_names_that_every_file_system_takes():
    benchmark = "evaluation.benchmarks=[{benchmark: jpeg-q10, data: datasets/x, layout: 'folder%s'}]"
    many = [f"data.{key}=96" for key in ("patch", "batch", "stride")] + ["optimisation.length.epochs=123456789"]
    names = [named(benchmark % end) for end in ("", "2", "+", "/")] + [
        named(*many),
        named(*many, "optimisation.lr=0.5"),
    ]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"memnet-jpeg\+[A-Za-z0-9._=+-]+-[0-9a-f]{8}", name)
        assert len(name) <= len("memnet-jpeg+") + LONGEST + 9


def test_keys_without_their_section_are_those_of_one_section():
    assert not Optimisation.model_fields.keys() & Training.model_fields.keys()


@pytest.mark.parametrize(
    ("given", "recipe", "name"),
    [
        ("memnet-jpeg", "memnet-jpeg", "memnet-jpeg"),
        ("memnet-jpeg+lr=0.0005+seed=2", "memnet-jpeg", "memnet-jpeg+lr=0.0005+seed=2"),
        ("a/mine.yaml", "a/mine.yaml", "mine"),
        ("a/mine.yaml+lr=0.0005", "a/mine.yaml", "mine+lr=0.0005"),
        ("a/mine+x.yaml", "a/mine+x.yaml", "mine+x"),  # a recipe's own name
    ],
)
def test_a_name_says_which_recipe_it_is_of(given, recipe, name):
    assert reference(given) == (recipe, name)

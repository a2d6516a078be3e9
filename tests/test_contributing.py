"""CONTRIBUTING.md: its examples work as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tree

from jobs.evaluation.protocols import score
from pipeline.layouts.base import Layout

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def example(name: str) -> str:
    """The one block of code that is called so."""
    (block,) = re.findall(rf"^```python {name}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return block


def test_the_layout_is_one_file_and_one_test(tmp_path):
    names = {"tree": tree}
    exec(example("layout"), names)
    assert issubclass(names["Snow100K"], Layout)
    exec(example("layout test"), names)
    names["test_a_snowy_image_goes_with_the_clean_one_of_its_name"](tmp_path)


def test_the_protocol_is_an_object_and_a_test():
    names = {"np": np, "pytest": pytest, "score": score}
    exec(example("protocol"), names)
    exec(example("protocol test"), names)
    names["test_snow_is_scored_on_a_luma_that_is_not_rounded"]()


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/training.md",
    "docs/reproduce.md",
    "docs/papers.md",
    "docs/log.md",
    "benchmarks/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:pipeline|jobs|tests|benchmarks|docs|infra)/[\w/.-]*)`", text)
    linked = [(ROOT / page).parent / target for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    assert not [name for name in (*(ROOT / name for name in named), *linked) if not name.exists()]

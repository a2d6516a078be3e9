"""Each value of the recipes says where it comes from: the paper's section, the release's file, or why it is ours."""

import re
from pathlib import Path

import pytest
import torch

from jobs.recipe import build_model, read_recipe

RECIPES = [path for name in ("memnet", "drcnet") for path in sorted(Path("jobs/recipes").glob(f"{name}-*.yaml"))]
VALUE = re.compile(r"^ *(?:# )?([a-z_]+): *([^#\s][^#]*?)? *(?:# (.*))?$")
OTHERS = {"name", "profile"}  # a profile's comment says which others there are


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_value_has_its_source(path):
    body = path.read_text().partition("\nmodel:\n")[2].partition("\nevaluation:")[0]
    lines = [VALUE.match(line) for line in body.splitlines()]
    assert all(lines)
    values = [(found[1], found[3]) for found in lines if found[2] is not None and found[1] not in OTHERS]
    assert len(values) >= 15
    without = [name for name, source in values if not re.match(r"(paper|release|ours)\b", source or "")]
    assert not without


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_stands_in_a_comment_is_what_the_profile_gives(path):
    commented = dict(re.findall(r"^ *# ([a-z_]+): (\S+) *# ", path.read_text(), re.MULTILINE))
    options = read_recipe(str(path)).model
    if options.name == "memnet" and commented:
        with torch.device("meta"):
            model = build_model(options)
        built = {"fe_preact": hasattr(model.feature, "bn"), "loss_scale": model.loss_scale}
        assert {name: str(value).lower() for name, value in built.items()} == {name: commented[name] for name in built}
    elif commented:
        groups = options.dfr.model_dump() | options.contrastive.model_dump()
        assert len(commented) == 9
        for name, value in commented.items():
            assert groups[name] == (value == "true" if value in ("true", "false") else type(groups[name])(value)), name

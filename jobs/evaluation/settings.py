"""Options of a model that belong to evaluation: with others, the weights are the same, and so is the run's name."""

from collections.abc import Sequence
from dataclasses import replace

from jobs.options import evaluation_options
from jobs.recipe import resolved_model
from jobs.restoring.checkpoint import Trained
from pipeline.config import parse_yaml
from pipeline.errors import UserError


def with_settings(trained: Trained, given: Sequence[str]) -> Trained:
    """The model with other values of its options for evaluation, and with its weights; the same model where none are given.

    given: `model.KEY=VALUE`. Which keys there are is said by the model's class in `evaluation_options`. Raises UserError for
    another key, and for a value that the model refuses.
    """
    if not given:
        return trained
    name = trained.recipe["model"]["name"]
    known = evaluation_options(name)
    options = dict(trained.recipe["model"])
    for each in given:
        key, equals, value = each.partition("=")
        if key not in known or not equals:
            there = f"of {name} it takes {', '.join(f'{key}=...' for key in known)}" if known else f"{name} has none"
            raise UserError(
                f"--set {each}: is no option of evaluation; {there} (others belong to `memoir train --set`)"
            )
        options[key.removeprefix("model.")] = parse_yaml(value.encode(), f"--set {key}")
    recipe = {**trained.recipe, "model": options}
    model = resolved_model(recipe, trust=[name])
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, model=model.eval(), recipe=recipe)

"""What of the papers' tables and figures can run here, and what the others lack."""

from typing import NamedTuple

from jobs.evaluation.published import Figure, Table, suites
from jobs.suites.places import Places
from jobs.suites.sets import columns_lack, lacking
from jobs.suites.variants import make_variant, variants_of


class State(NamedTuple):
    """A suite: runs (all images at hand), part (some of them), lacking (none), or not computable."""

    suite: str
    title: str
    caption: str
    state: str
    lines: list[str]


def states(places: Places) -> list[State]:
    """The state of each suite, in the papers' order; nothing is computed."""
    return [_state(name, suite, places) for name, suite in suites().items()]


def _state(name: str, suite: Table | Figure, places: Places) -> State:
    if isinstance(suite, Figure):
        named = [*suite.sets]
        missing = [line for line in (lacking(each, places.datasets) for each in named) if line]
        computable = bool(suite.draw)
    else:
        measured = [group for group in suite.columns if group.set and not group.average_of]
        named = list(dict.fromkeys(str(group.set) for group in measured))
        missing = list(dict.fromkeys(filter(None, (columns_lack(group, places.datasets) for group in measured))))
        computable = bool(named or suite.recipe)
    if suite.lacking:
        missing.insert(0, suite.lacking)
    here = len(named) - len({line.partition(":")[0] for line in missing} & {*named})
    images = f"{here} of {len(named)} image sets here" if named else "needs no images"
    word = (
        "not computable" if not computable else "runs" if here == len(named) else "in part" if here else "lacks images"
    )
    weights: list[str] = []
    if isinstance(suite, Table):
        variants = variants_of(suite, "paper", missing)
    else:
        variants = [make_variant("", recipe, ()) for recipe in suite.recipe if suite.draw]
    if variants:
        trained = [v for v in variants if (places.runs / v.name / "checkpoint.json").is_file()]
        weights = [f"{len(trained)} of {len(variants)} models trained"]
        if len(trained) < len(variants):
            first = next(v for v in variants if v not in trained)
            weights.append(
                f"weights: `{first.command}`" + (" and the other rows'" if len(variants) - len(trained) > 1 else "")
            )
    lines = [f"{word}: {', '.join([images, *weights[:1]])}", *(f"lacks {line}" for line in [*missing, *weights[1:]])]
    lines += ["`--scale sample` runs on the samples"] * bool(suite.sample)
    return State(name, suite.title, suite.caption, word, lines)

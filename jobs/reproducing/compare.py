"""What a reproduction is compared by: rows of a table, each with the value there, the value here, and whether they must be equal.

"The weights are equal, bit for bit, if the training ran its commit without changes, on the same data, recipe and versions of the
libraries, on a fixed number of workers without GPUs, and if it was portable or ran on this very kind of CPU." Elsewhere the
scores must be equal within TOLERANCE.
"""

import re
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.metrics import Metric, measured
from jobs.variant import NUMBERS

# by the digits that tables print: 2 for dB and for distances in Lab, 4 for SSIM
TOLERANCE = {2: 0.1, 4: 0.005}


@dataclass(frozen=True)
class Row:
    """A line of the table. stage, there, here: as shown. equal: None for what was not compared. must: whether it has to be."""

    stage: str
    there: str
    here: str
    equal: bool | None
    must: bool = True

    @property
    def verdict(self) -> str:
        """The last column."""
        if self.equal is None:
            return "not compared"
        return "yes" if self.equal else "NO" if self.must else "no"

    @property
    def holds(self) -> bool:
        """Whether this row lets a reproduction pass."""
        return bool(self.equal) or not self.must


def same(stage: str, there: object, here: object, *, must: bool = True) -> Row:
    """A row of two values."""
    return Row(stage, _shown(there), _shown(here), there == here, must)


def libraries(there: dict[str, str], here: dict[str, str]) -> list[Row]:
    """One row for each version that differs, or one for all; they may differ, and then the weights may."""
    names = [name for name in here if there.get(name) != here[name]]
    if names:
        return [same(f"library {name}", there.get(name), here[name], must=False) for name in names]
    return [Row("libraries", f"{len(here)} versions", "the same", True, must=False)]


def recipes(there: dict[str, Any], here: dict[str, Any]) -> list[Row]:
    """One row for each key that differs, or one for the recipe. Resolved recipes; how a run is carried out is left out."""
    a, b = _flat(_deciding(there)), _flat(_deciding(here))
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    if keys:
        return [same(f"recipe {key}", a.get(key), b.get(key)) for key in keys]
    return [Row("recipe", f"{len(a)} values", "the same", True)]


def machines(there: dict[str, Any] | None, here: dict[str, Any] | None, precisions: tuple[Any, Any]) -> Row:
    """CPU, instructions and precision. there, here: as machine.json has them."""
    a, b = (
        ", ".join(map(_shown, ((machine or {}).get("cpu"), (machine or {}).get("instructions"), precision)))
        for machine, precision in zip((there, here), precisions, strict=True)
    )
    return Row("machine", a, b, a == b and there is not None, must=False)


def bits_must_be_equal(rows: list[Row], original_clean: bool, recipe: dict[str, Any]) -> bool:
    """Whether the weights and scores must be the same bits. rows: of libraries, machine and all before; recipe: resolved."""
    training = recipe["training"]
    alone = isinstance(training["workers"], int) or training["workers"][0] == training["workers"][1]
    decided = [row.equal for row in rows if row.stage != "machine"]
    machine = all(row.equal for row in rows if row.stage == "machine")
    return (
        all(decided) and original_clean and alone and not training.get("gpu") and (training.get("portable") or machine)
    )


def scores(there: dict[str, Any], here: dict[str, Any], *, exact: bool) -> list[Row]:
    """One row for each metric of each benchmark, by <data set>/<benchmark>. exact: they must be equal to the last bit."""
    rows = []
    for name in sorted(there.keys() | here.keys()):
        if name not in there or name not in here:
            rows.append(same(f"score {name}", "there" * (name in there) or None, "there" * (name in here) or None))
            continue
        for metric in measured(there[name]):
            if metric.name in here[name]:
                rows.append(_score(name, metric, there[name][metric.name], here[name][metric.name], exact=exact))
            else:
                rows.append(same(f"score {name} {metric.name}", metric.text(there[name][metric.name]), None))
    return rows


def _score(name: str, metric: Metric, there: float | None, here: float | None, *, exact: bool) -> Row:
    stage = f"score {name} {metric.name}"
    tolerance = TOLERANCE[metric.digits]
    near = there is not None and here is not None and abs(there - here) <= tolerance
    if there == here:
        return Row(stage, metric.text(there), metric.text(here), True)
    if exact or not near:
        return Row(stage, _shown(there), _shown(here), False)
    return Row(f"{stage} (within {tolerance:g})", metric.text(there), metric.text(here), True)


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of text, in columns."""
    cells = [("stage", "there", "here", "equal"), *((row.stage, row.there, row.here, row.verdict) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]) for line in cells
    ]


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe | {"training": {key: recipe["training"].get(key) for key in NUMBERS}}


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    """The leaves of mappings and lists, by their dotted path."""
    if not isinstance(tree, dict | list) or not tree:
        return {above: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{above}.{key}" if above else str(key))
    return flat


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)[:200]
    return f"{text[:16]}..." if re.fullmatch("[0-9a-f]{64}", text) else text

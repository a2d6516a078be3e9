"""A table of a paper beside ours: its printed rows, the degraded input as we score it, and models trained here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import dataset_of, evaluate
from jobs.evaluation.metrics import METRICS
from jobs.evaluation.published import Columns, Table, decimals
from jobs.options import ModelOptions, options_of
from jobs.recipe import BenchmarkRun
from jobs.report.results import Grid, ResultRow
from jobs.restoring.checkpoint import load_model
from jobs.restoring.restore import on_device
from jobs.suites.cost import cost, machine, milliseconds
from jobs.suites.places import Places
from jobs.suites.sets import columns_lack, run_of
from jobs.suites.variants import trained_variant, variants_of
from pipeline.errors import UserError


@dataclass
class Findings:
    """What running a table has found so far, as jobs.report.results.Result names it."""

    grids: list[Grid] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inputs: dict[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # scores of the degraded input, by set and benchmark


def run_table(table: Table, places: Places, model: str | None, scale: str | None) -> Findings:
    """The table with our rows.

    model: a recipe with a checkpoint, a version's URI, or `identity` for the degraded input alone; None for the models that
    the suite names, as far as they are trained. scale: `sample` or `paper` trains what is missing, at that size; None trains
    nothing. Raises UserError for a model that does not fit, and for what training refuses.
    """
    found = Findings()
    if table.lacking:
        found.lacking.append(table.lacking)
    found.notes += [
        note for note in (table.note, *(f"{name}: {row.note}" for name, row in table.rows.items() if row.note)) if note
    ]
    found.notes += [
        f"misprint? {each.row}, {each.column}: printed {each.printed}, {each.expected} by {each.note}"
        for each in table.misprints
    ]
    found.notes += [f"{group.set}: {group.unsure}" for group in table.columns if group.unsure]
    measured = _measurable(table, places, found)
    rows = _printed(table)
    ours: list[ResultRow] = []
    if model not in (None, "identity"):
        ours.append(_of_model(str(model), table, measured, places, found))
    elif model is None and scale != "sample":
        ours += _of_variants(table, measured, places, found, train=scale == "paper")
    baseline = _baseline(table, measured, places, found)
    columns = [name for group in table.columns for name in group.names]
    extra = sorted({name for row in ours for name in row.values} - {*columns}, key=str.lower)
    found.grids.append(Grid(title="", columns=[*columns, *extra], rows=[*_after(rows, baseline, table), *ours]))
    if scale == "sample":
        found.grids.append(_sample(table, places, found))
    return found


def _printed(table: Table) -> list[ResultRow]:
    return [
        ResultRow(method=name, source="printed", values=table.printed(name), note=row.note)
        for name, row in table.rows.items()
    ]


def _after(rows: list[ResultRow], baseline: ResultRow | None, table: Table) -> list[ResultRow]:
    """The rows, with our degraded input after the printed one, or before all others."""
    if baseline is None:
        return rows
    at = next((i + 1 for i, row in enumerate(table.rows.values()) if row.role == "input"), 0)
    return [*rows[:at], baseline, *rows[at:]]


def _measurable(table: Table, places: Places, found: Findings) -> list[Columns]:
    """The groups of columns whose images are at hand; `found` says what the others lack."""
    groups = []
    for group in table.columns:
        if group.set is None or group.average_of:
            continue
        line = columns_lack(group, places.datasets)
        if line is None:
            groups.append(group)
        elif line not in found.lacking:
            found.lacking.append(line)
    return groups


def _score(model: str, group: Columns, places: Places, found: Findings) -> dict[str, Any]:
    assert group.set is not None
    assert group.benchmark is not None
    run = run_of(group.set, group.benchmark, places.datasets)
    row = evaluate(model, run, places.runs, places.trust, places.store)
    _tell(found, group.set, run, row)
    found.inputs[f"{group.set} {group.benchmark}"] = row["baseline"]
    return row


def _tell(found: Findings, name: str, run: BenchmarkRun, row: Mapping[str, Any]) -> None:
    line = f"{name}, {run.benchmark}: {row['images']} images, {row['protocol']}"
    if line not in found.ran:
        found.ran.append(line)


def _figures(group: Columns, row: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a row of scores as text, by the names of the columns."""
    return {
        name: METRICS[metric].text(row[metric])
        for name, metric in zip(group.names, group.metrics, strict=True)
        if metric in row
    }


def _averages(table: Table, values: dict[str, str]) -> dict[str, str]:
    """The columns that are means over sets, where all of those are there."""
    means = {}
    for group in table.columns:
        parts = [each for each in table.columns if each.set in group.average_of]
        for name, metric in zip(group.names, group.metrics, strict=True) if group.average_of else ():
            texts = [values.get(n) for each in parts for n in each.names if n.endswith(f" {metric}")]
            if len(texts) == len(group.average_of) and all(texts):
                means[name] = METRICS[metric].text(sum(float(str(text)) for text in texts) / len(texts))
    return means


def _baseline(table: Table, measured: list[Columns], places: Places, found: Findings) -> ResultRow | None:
    """The degraded input as we score it; `found` says whether it is what the paper prints."""
    if not measured:
        return None
    values: dict[str, str] = {}
    exact: dict[str, float] = {}
    for group in measured:
        key = f"{group.set} {group.benchmark}"
        row = found.inputs.get(key) or _score("identity", group, places, found)["baseline"]
        values |= _figures(group, row)
        exact |= {
            name: row[metric]
            for name, metric in zip(group.names, group.metrics, strict=True)
            if row.get(metric) is not None
        }
    values |= _averages(table, values)
    inputs = [name for name, row in table.rows.items() if row.role == "input"]
    for method in inputs:
        found.ran.append(compare(method, table.printed(method), exact))
    return ResultRow(method="degraded input", source="here", values=values)


def compare(method: str, printed: Mapping[str, str], exact: Mapping[str, float]) -> str:
    """How the degraded input's figures agree with a printed row: to its last digit, or by how much not."""
    both = [name for name in printed if name in exact]
    off = []
    for name in both:
        text = f"{exact[name]:.{decimals(printed[name])}f}"
        if text != printed[name]:
            off.append(f"{name} {text} for {printed[name]}")
    line = f"the row {method} recomputed: {len(both) - len(off)} of {len(both)} figures to the last printed digit"
    return line + (f"; {'; '.join(off)}" if off else "")


def _priced(options: ModelOptions, size: tuple[int, int], values: dict[str, str]) -> None:
    """Add the columns of what a network costs."""
    height, width = size
    found = cost(options, size)
    values["parameters"] = f"{found.params:,}"
    values[f"GMACs at {height}x{width}"] = f"{found.macs / 1e9:.1f}"


def _of_model(model: str, table: Table, measured: list[Columns], places: Places, found: Findings) -> ResultRow:
    """The row of one trained model, on all sets that are at hand."""
    trained = load_model(model, places.runs, places.trust, places.store)
    values: dict[str, str] = {}
    fits = [g for g in measured if benchmark(str(g.benchmark)).channels == trained.model.in_channels]
    if measured and not fits:
        raise UserError(f"{model}: takes images of {trained.model.in_channels} channels, and the table is on others")
    for group in fits:
        values |= _figures(group, _score(model, group, places, found))
    values |= _averages(table, values)
    given = trained.recipe["model"]
    _priced(options_of(given["name"]).model_validate(given), table.size, values)
    if places.timed:
        height, width = table.size
        values[f"ms at {height}x{width}"] = f"{milliseconds(on_device(trained.model), table.size):.0f}"
        found.ran.append(f"milliseconds of {trained.name}: median of 3 on {machine()}")
    found.ran.append(f"{trained.name}: {trained.uri} ({trained.sha256[:16]})")
    return ResultRow(method=trained.name, source="here", values=values)


def _of_variants(
    table: Table, measured: list[Columns], places: Places, found: Findings, *, train: bool
) -> list[ResultRow]:
    """The rows of the models that the suite names, at the paper's size."""
    rows = []
    for variant in variants_of(table, "paper", found.lacking):
        name = trained_variant(variant, places, train=train)
        if name is not None:
            row = _of_model(name, table, measured, places, found)
            rows.append(row.model_copy(update={"method": f"{variant.method}: {name}"}))
            continue
        values: dict[str, str] = {}
        _priced(variant.recipe.model, table.size, values)
        rows.append(ResultRow(method=f"{variant.method}: {variant.name}, not trained", source="here", values=values))
        found.lacking.append(f"{variant.method}: weights; {variant.command}, or --model of a version")
    return rows


def _sample(table: Table, places: Places, found: Findings) -> Grid:
    """The suite's variants at the size of the samples, trained as far as they are not, on the benchmarks of their recipe."""
    variants = variants_of(table, "sample", found.lacking)
    if not variants:
        raise UserError("--scale sample: this table names no recipe at that size")
    rows: list[ResultRow] = []
    columns: list[str] = []
    for variant in variants:
        name = trained_variant(variant, places, train=True)
        assert name is not None
        values: dict[str, str] = {}
        inputs: dict[str, str] = {}
        for run in variant.recipe.evaluation.benchmarks:
            row = evaluate(name, run, places.runs, places.trust, places.store)
            dataset = dataset_of(run)
            _tell(found, f"samples, {dataset}", run, row)
            for metric in benchmark(run.benchmark).protocol.published:
                column = f"{dataset} {run.benchmark} {metric.name}"
                values[column] = metric.text(row[metric.name])
                inputs[column] = metric.text(row["baseline"][metric.name])
        if not rows:
            rows.append(ResultRow(method="degraded input", source="here", values=inputs))
            columns = [*inputs]
        _priced(variant.recipe.model, table.size, values)
        columns += [name for name in values if name not in columns]
        rows.append(ResultRow(method=variant.method, source="here", values=values, note=variant.name))
    title = f"at the size of the samples ({', '.join(table.sample)}): it shows that each variant trains, and does not rank them"
    return Grid(title=title, columns=columns, rows=rows)

"""What the papers print: the tables of jobs/suites as typed data, and of them the rows that stand beside a result."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.evaluation.metrics import METRICS
from jobs.evaluation.protocols import GRAY_FLOAT, PAIRS, Y_MATLAB, Protocol
from pipeline.config import Frozen, read_yaml

FOLDER = Path(__file__).parents[1] / "suites"
PAPERS = ("memnet", "memorynet", "timelapse", "drcnet")  # in the order of lists
NONE = "-"  # what a table prints where a method has no figure

COSTS = ("params", "params_m", "ms", "cpu_s", "gpu_s")  # parameters, also in millions; times as the paper took them
OTHERS = (  # figures of tables that are no metric of a protocol here, or that only the paper gives
    "psnr_reduction",
    "ssim_reduction",
    "psnr_retrained",
    "images",
    "filters",
    "depth",
)


class Misprint(Frozen):
    """A printed figure that contradicts others of the paper, or what a citation's own paper says."""

    row: str = Field(description="the method, or `text` for the paper's prose")
    column: str = Field(description="as `Columns.names` has it; free text for prose")
    printed: str
    expected: str = Field(description="what the other figures make of it")
    note: str


class Columns(Frozen):
    """Columns of a table that were measured on one set of images.

    set: the images, as results name them; without one, the columns are of the method itself, such as its parameters.
    benchmark: what measures them here. metrics: of each column. unsure: why these figures cannot stand beside ours.
    average_of: the columns are means over these sets.
    """

    set: str | None = None
    benchmark: str | None = None
    title: str | None = Field(None, description="the heading as printed, where it is not the set and the level")
    metrics: tuple[str, ...] = Field(min_length=1)
    unsure: str | None = None
    average_of: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> "Columns":
        known = {*METRICS, *COSTS, *OTHERS}
        if unknown := [name for name in self.metrics if name not in known]:
            raise ValueError(f"no metric {unknown[0]!r}; known: {', '.join(sorted(known))}")
        if self.benchmark is not None and self.set is None:
            raise ValueError("a benchmark needs a set")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of each column, e.g. Classic5 jpeg-q10 psnr."""
        where = [part for part in (self.set, self.benchmark) if part]
        return tuple(" ".join([*where, metric]) for metric in self.metrics)


class Row(Frozen):
    """A method. values: as printed, in the order of the columns, `-` where there is none.

    role: `input` for the degraded images themselves, `paper` for the paper's own method and its variants. overrides: what
    makes the variant of the recipe, as `memoir train --set` takes them; sample_overrides: instead, at sample size. lacking: why
    this row cannot be trained here. other_definition: metrics that this row prints by another definition than the benchmark's.
    """

    values: Annotated[str, Field(min_length=1)]
    role: Literal["input", "paper", "other"] = "other"
    recipe: str | None = Field(None, description="of this row, where it is not the table's")
    overrides: tuple[str, ...] = ()
    sample_overrides: tuple[str, ...] | None = None
    lacking: str | None = None
    other_definition: tuple[str, ...] = ()
    note: str | None = None


class Suite(Frozen):
    """What tables and figures have in common.

    recipe: the one at the paper's size, or several, of which each measures its own sets; sample: those for the samples.
    lacking: what this version of memoir does not have for it.
    """

    title: str = Field(description="as the paper calls it, e.g. Table 5")
    section: str
    caption: str
    recipe: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    lacking: str | None = None
    note: str | None = None
    size: tuple[int, int] = Field((256, 256), description="height and width of the image whose cost is given")


class Table(Suite):
    """A table of a paper, methods as rows whatever its own orientation."""

    kind: Literal["table"]
    columns: tuple[Columns, ...] = Field(min_length=1)
    rows: dict[str, Row] = Field(min_length=1)
    misprints: tuple[Misprint, ...] = ()

    @model_validator(mode="after")
    def _filled(self) -> "Table":
        columns = sum(len(group.metrics) for group in self.columns)
        for method, row in self.rows.items():
            values = row.values.split()
            if len(values) != columns:
                raise ValueError(f"rows.{method}: {len(values)} values for {columns} columns")
            for text in values:
                number(text)
        for group in self.columns:
            if missing := set(group.average_of) - {each.set for each in self.columns}:
                raise ValueError(f"columns: average of {sorted(missing)[0]!r}, which is no set of the table")
        return self

    def printed(self, method: str) -> dict[str, str]:
        """The figures of a method as printed, by the names of the columns; without those that it lacks."""
        names = [name for group in self.columns for name in group.names]
        return {n: text for n, text in zip(names, self.rows[method].values.split(), strict=True) if text != NONE}


class Picture(Frozen):
    """An image that a figure shows. key: the start of its file's name; None where the paper does not say which: the first.

    crop: x, y, width and height of the part that is shown large; the papers print no coordinates, so they are ours, read off the
    figure. printed: PSNR/SSIM by method.
    """

    set: str
    benchmark: str
    key: str | None = None
    crop: tuple[int, int, int, int] | None = None
    printed: dict[str, str] = Field(default_factory=dict)


class Figure(Suite):
    """A figure of a paper. draw: what makes it, functions of jobs/suites/figures; none where nothing is to be computed, as `lacking` says."""

    kind: Literal["figure"]
    draw: tuple[str, ...] = ()
    sets: tuple[str, ...] = Field((), description="the images that the figure is of")
    pictures: tuple[Picture, ...] = ()


def number(text: str) -> float | None:
    """A printed figure as a number: 29.69, 84.90%, 665K, 0.37M; None for `-`. Raises ValueError for other text."""
    if text == NONE:
        return None
    value = float(text.rstrip("%KM").replace(",", ""))
    return value / 100 if text[-1] == "%" else value * {"K": 1e3, "M": 1e6}.get(text[-1], 1)


def decimals(text: str) -> int:
    """The digits after the point of a printed figure: 29.69 has 2, 665K none."""
    return len(text.rstrip("%KM").partition(".")[2])


@cache
def suites() -> Mapping[str, Table | Figure]:
    """All tables and figures by name, e.g. memnet-table5, in the papers' order. Raises UserError for a file that is amiss."""
    found: dict[str, Table | Figure] = {}
    for paper in PAPERS:
        files = [(path.stem.rstrip("0123456789"), path) for path in (FOLDER / paper).glob("*.yaml")]
        for kind, path in sorted(files, key=lambda each: (not each[0].startswith("table"), _place(each[1]))):
            name = f"{paper}-{path.stem}"
            found[name] = read_yaml(path, Table) if kind == "table" else read_yaml(path, Figure)
    return found


def _place(path: Path) -> int:
    return int(path.stem.lstrip("abcdefghijklmnopqrstuvwxyz"))


def protocol_of(benchmark: str) -> Protocol | None:
    """The protocol of a column, by its benchmark's name without tiles; None for one that this version does not have."""
    kinds = {"jpeg": GRAY_FLOAT, "noise": GRAY_FLOAT, "sr": Y_MATLAB}
    return PAIRS.get(benchmark, kinds.get(benchmark.partition("-")[0]))


@cache
def beside() -> Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]]:
    """(data set, benchmark) -> method -> what the protocol's `published` names, or the first of it.

    Only figures that were measured as the benchmark measures, of tables that say how they were measured. Rows named JPEG and
    Bicubic are the degraded input itself.
    """
    found: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {}
    for suite in suites().values():
        if not isinstance(suite, Table):
            continue
        for group in suite.columns:
            if group.set is None or group.benchmark is None or group.unsure:
                continue
            protocol = protocol_of(group.benchmark)
            if protocol is None:
                continue
            published = [metric.name for metric in protocol.published]
            for method, row in suite.rows.items():
                if row.overrides:
                    continue  # a variant: its figures stand beside its own suite's only
                printed = suite.printed(method)
                figures: list[float] = []
                for name in published:
                    text = printed.get(f"{group.set} {group.benchmark} {name}")
                    value = None if text is None or name in row.other_definition else number(text)
                    if value is None:
                        break
                    figures.append(value)
                if figures:
                    found.setdefault((group.set, group.benchmark), {}).setdefault(method, tuple(figures))
    return found

"""A suite's result as lines of text: tables in blocks that fit a terminal, then what ran and what lacks."""

from collections.abc import Iterator

from jobs.report.results import Grid, Result, grouped

WIDTH = 120
HEADING = 3  # lines of a heading: images, benchmark, metrics
NONE = "-"


def lines(result: Result) -> Iterator[str]:
    """What `memoir suite` prints."""
    yield f"{result.suite}: {result.title}, section {result.section}. {result.caption}"
    for grid in result.grids:
        yield ""
        if grid.title:
            yield grid.title
        yield from _grid(grid)
    for heading, each in (
        ("ran", result.ran),
        ("lacking", result.lacking),
        ("note", result.notes),
        ("file", result.files),
    ):
        yield from [""] * bool(each)
        yield from (f"{heading}: {line}" for line in each)


def _grid(grid: Grid) -> Iterator[str]:
    groups = grouped(grid.columns)
    names = [f"{row.method} (here)" if row.source == "here" else row.method for row in grid.rows]
    first = max(map(len, names), default=0)
    columns = []
    for heading, of in groups:
        words = [""] * (HEADING - len(heading.split(" ", HEADING - 1))) + heading.split(" ", HEADING - 1)
        cells = [*words, *(_cell(row.values, of) for row in grid.rows)]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) for cell in cells])
    block: list[list[str]] = []
    for column in columns:
        if block and first + sum(len(each[0]) + 2 for each in [*block, column]) > WIDTH:
            yield from _block(first, names, block)
            yield ""
            block = []
        block.append(column)
    yield from _block(first, names, block)


def _block(first: int, names: list[str], columns: list[list[str]]) -> Iterator[str]:
    for name, *cells in zip([""] * HEADING + names, *columns, strict=True):
        yield "  ".join([name.ljust(first), *cells]).rstrip()


def _cell(values: dict[str, str], columns: list[str]) -> str:
    found = [values.get(column, NONE) for column in columns]
    return NONE if set(found) == {NONE} else "/".join(found)

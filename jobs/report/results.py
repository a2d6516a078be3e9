"""result.json of a suite: what `memoir suite` leaves for the page."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.documents import Document, Line, Name, read_document
from pipeline.errors import UserError


class ResultRow(Document):
    """A line of a table. source: printed in the paper, or measured here. values: as text, by the column's name."""

    method: Line
    source: Literal["printed", "here"]
    values: dict[Line, Line]
    note: str | None = None


class Grid(Document):
    """Lines with the same columns."""

    title: str
    columns: list[Line]
    rows: list[ResultRow]


class Result(Document):
    """A table or figure of a paper beside ours.

    ran: what was computed, by which protocol, on which images. lacking: what was not, and what it takes. notes: what to know
    of the paper's figures. files: what lies beside result.json, pictures and their data.
    """

    suite: Name
    paper: Name
    title: str
    section: str
    caption: str
    grids: list[Grid] = Field(default_factory=list)
    ran: list[str] = Field(default_factory=list)
    lacking: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    files: list[Name] = Field(default_factory=list)


def grouped(columns: list[str]) -> list[tuple[str, list[str]]]:
    """Columns that differ only in their metric as one: (Classic5 jpeg-q10 psnr/ssim, its columns)."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        where, _, metric = column.rpartition(" ")
        plain = where and metric.islower() and metric.replace("_", "").isalnum() and not metric[0].isdigit()
        groups.setdefault(where if plain else column, []).append(column)
    return [
        (f"{where} {'/'.join(c.rpartition(' ')[2] for c in each)}" if where != each[0] else where, each)
        for where, each in groups.items()
    ]


def read_results(folder: Path) -> list[Result]:
    """The results in suites/<name>/result.json, by name. Raises UserError for a file that is damaged."""
    found = []
    for path in sorted(folder.glob("*/result.json")):
        again = f"make it again: `memoir suite {path.parent.name}`"
        result = Result.model_validate(read_document(path.read_bytes(), Result, str(path), again))
        if missing := [name for name in result.files if not (path.parent / name).is_file()]:
            raise UserError(f"{path.parent / missing[0]}: not found, and result.json names it; {again}")
        found.append(result)
    return found

"""The scores of a recipe: two files, and the checks that they must pass before they are used; see jobs.documents.

scores.json has one number for each benchmark and metric, and nothing else: DVC shows and compares them. protocols.json has
what they mean: how sure they are, protocol, number of images, the degraded input's figures, the papers', the weights. Both
have the same rows. The margins are not in scores.json, where each would be a column of `dvc exp show` that is no result.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from jobs.documents import Document, Line, check_document, read_document
from jobs.evaluation.metrics import METRICS, measured
from pipeline.errors import UserError
from pipeline.files import write_bytes

Number = Annotated[float, Strict()]  # no text that looks like one: it is printed and published as it stands
Figures = dict[str, Number | None]  # by the metric's name; None: the infinite PSNR of identical images


class Blended(Document):
    """How near blended tiles come to the whole image, for one image: see jobs.evaluation.evaluate.blended_distance."""

    image: Line
    psnr: Number | None


class Scores(Document):
    """A row of both files: a recipe on one benchmark of one data set, the degraded input, the paper's rows by method.

    margin: by metric, half of the 95 % confidence interval of its mean over images, see jobs.evaluation.interval; None where
    there is none. Files of older versions of memoir have no margins.
    """

    figures: Figures = Field(min_length=1)
    margin: Figures | None = None
    images: int = Field(ge=0, strict=True)
    protocol: Line
    baseline: Figures
    paper: dict[Line, Figures]
    blended: Blended | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row  # pydantic says that it is none
        return row | {"figures": {metric.name: row[metric.name] for metric in measured(row)}}

    @model_validator(mode="after")
    def _beside(self) -> "Scores":
        if self.baseline.keys() != self.figures.keys():
            raise ValueError("baseline has other metrics")
        if self.margin is not None and self.margin.keys() != self.figures.keys():
            raise ValueError("margin has other metrics")
        return self


RowName = Annotated[
    str, Field(pattern=r"^[^/\x00-\x1f\x7f]{1,500}/[^/\x00-\x1f\x7f]{1,500}$")
]  # <data set>/<benchmark>
AllScores = dict[RowName, Scores]


class Metrics(Document):
    """metrics.json of a published version."""

    scores: AllScores


def write_scores(run: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Write scores.json and protocols.json into a folder. rows: by <data set>/<benchmark>, as `read_scores` gives them."""
    figures = {name: {key: value for key, value in row.items() if key in METRICS} for name, row in rows.items()}
    rest = {name: {key: value for key, value in row.items() if key not in METRICS} for name, row in rows.items()}
    (run / "protocols.json").unlink(
        missing_ok=True
    )  # written last: a kill in between leaves no protocols of older scores
    for name, value in (("scores.json", figures), ("protocols.json", rest)):
        write_bytes(run / name, (json.dumps(value, indent=1) + "\n").encode())


def read_scores(run: Path, mend: str) -> dict[str, dict[str, Any]]:
    """The rows of scores.json and protocols.json in a folder, checked: see `Scores`; each has its figures by metric.

    mend: what a message ends with. Raises FileNotFoundError, and UserError for files that are damaged or do not go together.
    """
    path, beside = run / "scores.json", run / "protocols.json"
    figures = read_document(path.read_bytes(), dict[RowName, Figures], str(path), mend)
    rest = read_document(beside.read_bytes(), dict[RowName, dict[str, Any]], str(beside), mend)
    if figures.keys() != rest.keys():
        raise UserError(f"{beside}: has other benchmarks than scores.json; {mend}")
    rows = {n: figures[n] | {key: value for key, value in rest[n].items() if key not in METRICS} for n in figures}
    check_document(rows, AllScores, f"{path} and {beside.name}", mend)
    return rows

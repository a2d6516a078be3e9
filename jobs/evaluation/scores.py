"""scores.json, and the checks that it must pass before it is used; see jobs.documents."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from jobs.documents import Document, Line
from jobs.evaluation.metrics import measured

Figures = dict[str, float | None]  # by the metric's name; None: the infinite PSNR of identical images


class Blended(Document):
    """How near blended tiles come to the whole image, for one image: see jobs.evaluation.evaluate.blended_distance."""

    image: Line
    psnr: float | None


class Scores(Document):
    """A row of scores.json: a recipe on one benchmark of one data set, the degraded input, the paper's rows by method."""

    figures: Figures = Field(min_length=1)
    images: int = Field(ge=0)
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
        return self


AllScores = dict[Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f]{1,500}/[^/\x00-\x1f\x7f]{1,500}$")], Scores]


class Metrics(Document):
    """metrics.json of a published version."""

    scores: AllScores

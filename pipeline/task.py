"""A task: one dataset build, as `pipeline/tasks/<name>.yaml` states it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from pipeline.config import Frozen, read_yaml
from pipeline.errors import UserError, nearest

TASKS = Path(__file__).parent / "tasks"


def _distinct(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("a level is given twice")
    return levels


Distinct = AfterValidator(_distinct)


class Jpeg(Frozen):
    """JPEG and back, on the whole image, once for each quality."""

    kind: Literal["jpeg"]
    quality: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Distinct] = Field(
        (10, 20), min_length=1, description="IJG scale"
    )

    @property
    def levels(self) -> tuple[int, ...]:
        return self.quality


class Scale(Frozen):
    """MATLAB's bicubic down by each factor and up again to the target's size."""

    kind: Literal["scale"]
    factor: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Distinct] = Field((2, 3, 4), min_length=1)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.factor


class Noise(Frozen):
    """Additive white Gaussian noise, drawn anew in each epoch by the loader; the shards hold the clean images only."""

    kind: Literal["noise"]
    sigma: Annotated[tuple[Annotated[int, Field(gt=0, le=255)], ...], Distinct] = Field(
        (30, 50, 70), min_length=1, description="of 0..255"
    )

    @property
    def levels(self) -> tuple[int, ...]:
        return self.sigma


class Paired(Frozen):
    """The degraded images that the data set itself pairs with its targets."""

    kind: Literal["paired"]


class TimeLapse(Frozen):
    """The frames of scenes, and which two of them make a sample; there is no clean image."""

    kind: Literal["timelapse"]
    pairs_per_scene: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="of the T (T - 1) / 2 pairs of a scene of T frames: all, or so many drawn by `seed`"
    )
    seed: int = 0


class Task(Frozen):
    """What goes into the shards of one dataset."""

    colour: Literal["y", "gray", "rgb"] = Field(
        description="planes that are stored: y = MATLAB rgb2ycbcr's Y, gray = MATLAB rgb2gray; grey images as they are"
    )
    degradation: Annotated[Jpeg | Scale | Noise | Paired | TimeLapse, Field(discriminator="kind")]
    splits: dict[Literal["train", "val", "test"], Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        description="split of the shards: the manifest's <dataset>/<split> that go into it"
    )
    shard_bytes: int = Field(256 * 2**20, ge=2**16, description="size that shards have on average, in bytes")

    @field_validator("splits")
    @classmethod
    def _sources(cls, splits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if "train" not in splits:
            raise ValueError("no train split")
        named: dict[str, str] = {}
        for split, source in ((split, source) for split, sources in splits.items() for source in sources):
            if source.count("/") != 1:
                raise ValueError(f"{source!r} is not of the form <dataset>/<split>")
            if source in named:
                raise ValueError(f"{source!r} is named twice, in {named[source]} and in {split}")
            named[source] = split
        return splits


def read_task(name: str) -> Task:
    """The task of pipeline/tasks/<name>.yaml, or of a YAML file given by its path."""
    if name.endswith(".yaml"):
        return read_yaml(Path(name), Task)
    path = TASKS / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"unknown task {name!r}; {nearest(name, [p.stem for p in TASKS.glob('*.yaml')])}")
    return read_yaml(path, Task)

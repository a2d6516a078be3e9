"""A task: one dataset build, as `pipeline/tasks/<name>.yaml` states it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config import Frozen, read_yaml
from pipeline.errors import UserError, nearest

TASKS = Path(__file__).parent / "tasks"


class Jpeg(Frozen):
    """JPEG and back, on the whole image, once for each quality."""

    kind: Literal["jpeg"]
    quality: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field((10, 20), min_length=1, description="IJG scale")

    @property
    def levels(self) -> tuple[int, ...]:
        return self.quality


class Scale(Frozen):
    """MATLAB's bicubic down by each factor and up again to the target's size."""

    kind: Literal["scale"]
    factor: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field((2, 3, 4), min_length=1)

    @property
    def levels(self) -> tuple[int, ...]:
        return self.factor


class Noise(Frozen):
    """Additive white Gaussian noise, drawn anew in each epoch by the loader; the shards hold the clean images only."""

    kind: Literal["noise"]
    sigma: tuple[Annotated[int, Field(gt=0, le=255)], ...] = Field((30, 50, 70), min_length=1, description="of 0..255")

    @property
    def levels(self) -> tuple[int, ...]:
        return self.sigma


class Task(Frozen):
    """What goes into the shards of one dataset."""

    colour: Literal["y", "gray", "rgb"] = Field(
        description="planes that are stored: y = MATLAB rgb2ycbcr's Y, gray = MATLAB rgb2gray; grey images as they are"
    )
    degradation: Annotated[Jpeg | Scale | Noise, Field(discriminator="kind")]
    splits: dict[Literal["train", "val", "test"], tuple[str, ...]] = Field(
        description="split of the shards: the manifest's <dataset>/<split> that go into it"
    )
    shard_bytes: int = Field(256 * 2**20, ge=2**16, description="size that shards have on average, in bytes")

    @field_validator("splits")
    @classmethod
    def _sources(cls, splits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if "train" not in splits:
            raise ValueError("no train split")
        for source in (s for sources in splits.values() for s in sources):
            if source.count("/") != 1:
                raise ValueError(f"{source!r} is not of the form <dataset>/<split>")
        return splits


def read_task(name: str) -> Task:
    """The task of pipeline/tasks/<name>.yaml, or of a YAML file given by its path."""
    path = Path(name) if name.endswith(".yaml") else TASKS / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"unknown task {name!r}; {nearest(name, [p.stem for p in TASKS.glob('*.yaml')])}")
    return read_yaml(path, Task)

"""A task: one dataset build, as `pipeline/tasks/<name>.yaml` states it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config import Frozen, read_yaml
from pipeline.depth import Bits
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
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = Field("4:2:0", description="of the chroma; grey planes have none")

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
    """Additive white Gaussian noise: drawn anew in each epoch by the loader, from shards of clean images, or once and stored."""

    kind: Literal["noise"]
    sigma: Annotated[tuple[Annotated[int, Field(gt=0, le=255)], ...], Distinct] = Field(
        (30, 50, 70), min_length=1, description="on the scale 0..255, whatever the task's bits"
    )
    drawn: Literal["online", "stored"] = "online"
    quantised: bool = Field(
        False, description="rounded and clipped to the task's bits, as a noisy file is; stored noise always is"
    )
    seed: int = Field(0, description="of stored noise")

    @property
    def levels(self) -> tuple[int, ...]:
        return self.sigma

    @model_validator(mode="after")
    def _shards_hold_levels(self) -> "Noise":
        if self.drawn == "stored" and not self.quantised:
            raise ValueError("stored noise is rounded and clipped: add quantised: true, or draw it online")
        return self


class Paired(Frozen):
    """The degraded images that the data set itself pairs with its targets."""

    kind: Literal["paired"]


class TimeLapse(Frozen):
    """The frames of scenes, of which two make a sample, without a clean image; or one and the scene's pseudo ground truth."""

    kind: Literal["timelapse"]
    pairs_per_scene: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all",
        description="of the T (T - 1) / 2 pairs of a scene of T frames: all, or so many drawn by `seed`; "
        "which frame of a pair is the first, the loader draws in each epoch",
    )
    seed: int = 0
    target: Literal["mean"] | None = Field(
        None,
        description="mean: each frame is a sample, and the mean of its scene's frames its gt; null: pairs are, without gt",
    )
    size: Annotated[int, Field(ge=16)] | None = Field(
        None, description="side in pixels of the squares that frames are resized to, bilinear; null: as they are"
    )

    @model_validator(mode="after")
    def _pairs_or_targets(self) -> "TimeLapse":
        if self.target and (self.pairs_per_scene, self.seed) != ("all", 0):
            raise ValueError("with a target each frame is a sample: leave out pairs_per_scene and seed")
        return self


class Negatives(Frozen):
    """Of each degraded image, worse ones than the restored should be, for contrastive regularisation (DRCNet, section 3.3).

    intra: N_k = lambda_k I + (1 - lambda_k) J of its own input I and target J; extra: other inputs of its shard.
    """

    kind: Literal["intra", "extra"] = "intra"
    number: int = Field(3, ge=1, description="for each degraded image")
    lambdas: Annotated[tuple[Annotated[float, Field(ge=0, le=1, multiple_of=0.001)], ...], Field(min_length=1)] = Field(
        (1.0, 0.95, 0.90), description="of I; so many as `number` are taken, drawn by `seed` if there are more"
    )
    kept: Literal["planned", "stored"] = Field(
        "planned", description="as rows of negatives.parquet, from which the loader mixes, or mixed, in the shards"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _enough(self) -> "Negatives":
        if self.kind == "intra" and self.number > len(self.lambdas):
            raise ValueError(f"{self.number} negatives need so many lambdas, and there are {len(self.lambdas)}")
        return self


class Task(Frozen):
    """What goes into the shards of one dataset."""

    colour: Literal["y", "gray", "rgb"] = Field(
        description="planes that are stored: y = MATLAB rgb2ycbcr's Y, gray = MATLAB rgb2gray; grey images as they are"
    )
    degradation: Annotated[Jpeg | Scale | Noise | Paired | TimeLapse, Field(discriminator="kind")]
    negatives: Negatives | None = None
    bits: Bits = Field(
        8,
        description="a channel, in shards and batches, and in what a model restores. 8: images of 16 bits are left out; "
        "16: those of 8 bits are taken too, at 257 times their levels, which is the same picture",
    )
    splits: dict[Literal["train", "val", "test"], Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        description="split of the shards: the manifest's <dataset>/<split> that go into it"
    )
    codec: Literal["raw", "png"] = Field(
        "raw",
        description="of the images in the shards: raw pixels, which load many times faster, or PNG, which is smaller",
    )
    shard_bytes: int = Field(
        256 * 2**20, ge=2**16, description="size that shards have on average, in bytes; without stored negatives"
    )

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

    @model_validator(mode="after")
    def _jpeg_holds_8_bits(self) -> "Task":
        if self.bits == 16 and isinstance(self.degradation, Jpeg):
            raise ValueError("bits: JPEG holds 8 bits a channel; leave bits out, or choose another degradation")
        return self

    @model_validator(mode="after")
    def _negatives_of_inputs(self) -> "Task":
        if self.negatives is not None:
            if isinstance(self.degradation, TimeLapse) and not self.degradation.target:
                raise ValueError("negatives are mixed of inputs and targets, and pairs of frames have no targets")
            online = isinstance(self.degradation, Noise) and self.degradation.drawn == "online"
            if online and (self.negatives.kind, self.negatives.kept) != ("intra", "planned"):
                raise ValueError("with noise drawn online, negatives are intra and planned; or draw it stored")
        return self


def read_task(name: str) -> Task:
    """The task of pipeline/tasks/<name>.yaml, or of a YAML file given by its path."""
    if name.endswith(".yaml"):
        return read_yaml(Path(name), Task)
    path = TASKS / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"unknown task {name!r}; {nearest(name, [p.stem for p in TASKS.glob('*.yaml')])}")
    return read_yaml(path, Task)

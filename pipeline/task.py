"""A task: one dataset build, as `pipeline/tasks/<name>.yaml` states it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, field_validator, model_validator

from pipeline.config import Frozen, read_yaml
from pipeline.degradations.base import Degradation
from pipeline.degradations.chain import Chain
from pipeline.degradations.jpeg import Jpeg
from pipeline.degradations.noise import Noise
from pipeline.degradations.own import Own
from pipeline.degradations.paired import Paired
from pipeline.degradations.scale import Scale
from pipeline.degradations.timelapse import TimeLapse
from pipeline.depth import Bits
from pipeline.errors import UserError, nearest

TASKS = Path(__file__).parent / "tasks"


KINDS = ("jpeg", "scale", "noise", "chain", "paired", "timelapse")  # each is a file of pipeline/degradations


def _tag(degradation: Any) -> str | None:
    kind = degradation.get("kind") if isinstance(degradation, dict) else getattr(degradation, "kind", None)
    return None if not isinstance(kind, str) else "own" if ":" in kind else kind


def _known(degradation: Any) -> Any:
    if isinstance(degradation, dict) and _tag(degradation) not in (*KINDS, "own"):
        kind = degradation.get("kind")
        what = f"no degradation is of kind {repr(kind)[:100]}" if "kind" in degradation else "kind is missing"
        raise ValueError(f"{what}; {nearest(str(kind)[:100], list(KINDS))}, or <module>:<class> of your own")
    return degradation


AnyDegradation = Annotated[
    Annotated[
        Annotated[Jpeg, Tag("jpeg")]
        | Annotated[Scale, Tag("scale")]
        | Annotated[Noise, Tag("noise")]
        | Annotated[Chain, Tag("chain")]
        | Annotated[Paired, Tag("paired")]
        | Annotated[TimeLapse, Tag("timelapse")]
        | Annotated[Own, Tag("own")],
        Discriminator(_tag),
    ],
    BeforeValidator(_known),
]
_RECORDED: TypeAdapter[Degradation] = TypeAdapter(AnyDegradation)


def recorded(degradation: dict[str, Any]) -> Degradation:
    """The degradation that shards.json or task.yaml holds as a dictionary, checked before."""
    return _RECORDED.validate_python(degradation)


class Negatives(Frozen):
    """Images worse than the restored one should be, for each degraded one: contrastive regularisation (DRCNet, section 3.3).

    intra: N_k = lambda_k I + (1 - lambda_k) J, where I is its own input and J its target; extra: other inputs of its shard.
    """

    kind: Literal["intra", "extra"] = Field("intra", description="mixed of input and target, or other inputs")
    number: int = Field(3, ge=1, description="for each degraded image")
    lambdas: Annotated[tuple[Annotated[float, Field(ge=0, le=1, multiple_of=0.001)], ...], Field(min_length=1)] = Field(
        (1.0, 0.95, 0.90), description="of I; so many as `number` are taken, drawn by `seed` if there are more"
    )
    kept: Literal["planned", "stored"] = Field(
        "planned",
        description="as rows of a table, from which the loader mixes in float, or mixed, in the shards, rounded to 1/16384",
    )
    seed: int = Field(0, description="of what is drawn: weights, partners")

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
    degradation: AnyDegradation = Field(description="`kind`, and its options")
    negatives: Negatives | None = Field(None, description="images that are worse than the restored one should be")
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
    shard_bytes: int | None = Field(
        None,
        ge=2**16,
        description="size that shards have on average, in bytes, without stored negatives; null: it follows the split, "
        "see pipeline.shards.plan.average_bytes",
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
    def _bits_that_it_holds(self) -> "Task":
        if self.bits > self.degradation.deepest:
            raise ValueError("bits: JPEG holds 8 bits a channel; leave bits out, or choose another degradation")
        return self

    @model_validator(mode="after")
    def _scenes_of_sources(self) -> "Task":
        scenes = getattr(self.degradation, "scenes", None)
        known = [source.partition("/")[0] for sources in self.splits.values() for source in sources]
        for dataset in scenes if isinstance(scenes, dict) else ():
            if dataset not in known:
                raise ValueError(f"degradation.scenes: {dataset!r} is no data set of splits; {nearest(dataset, known)}")
        return self

    @model_validator(mode="after")
    def _negatives_of_inputs(self) -> "Task":
        if self.negatives is not None:
            if self.degradation.of_frames:
                raise ValueError("negatives are mixed of inputs and targets, and pairs of frames have no targets")
            if self.degradation.online and (self.negatives.kind, self.negatives.kept) != ("intra", "planned"):
                raise ValueError(
                    f"with {self.degradation.kind} drawn online, negatives are intra and planned; or draw it stored"
                )
        return self


def read_task(name: str) -> Task:
    """The task of pipeline/tasks/<name>.yaml, or of a YAML file given by its path, ready to build.

    A degradation that the user wrote is imported from the current directory.
    """
    path = Path(name) if name.endswith(".yaml") else TASKS / f"{name}.yaml"
    if not name.endswith(".yaml") and not path.exists():
        raise UserError(f"unknown task {name!r}; {nearest(name, [p.stem for p in TASKS.glob('*.yaml')])}")
    task = read_yaml(path, Task)
    return task.model_copy(update={"degradation": task.degradation.found(Path.cwd())})

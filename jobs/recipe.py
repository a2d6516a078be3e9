"""A recipe: model, data, optimisation, training and evaluation of one system, as `jobs/recipes/<name>.yaml` states it."""

from collections.abc import Collection
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from jobs.options import MODELS, ModelOptions, model_class, options_of
from jobs.source import is_own, receive, send
from pipeline.config import Frozen, parse_yaml, read_limited, read_yaml
from pipeline.errors import UserError, nearest
from pipeline.sampling.patches import Grid, RandomCrops

if TYPE_CHECKING:
    from jobs.models import Network

RECIPES = Path(__file__).parent / "recipes"


class Span(Frozen):
    """A length of training: optimiser steps or epochs, one of the two."""

    steps: int | None = Field(None, gt=0, description="optimiser steps")
    epochs: int | None = Field(None, gt=0, description="passes over all samples; or `steps`")

    @model_validator(mode="after")
    def _one(self) -> "Span":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of the two")
        return self

    def in_steps(self, steps_per_epoch: int) -> int:
        """This span in optimiser steps."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


class Share(Frozen):
    """What a mixture takes of one task. Of weights 3 and 1, three samples of four are of the first."""

    task: str = Field(description="as data.task")
    weight: int = Field(1, gt=0, description="its share of the samples, relative to the others' weights")
    levels: dict[int, int] | None = Field(
        None,
        description="weights of its levels among each other, by level; the others are left out. null: all, as built",
    )

    @model_validator(mode="after")
    def _some_of_each(self) -> "Share":
        if self.levels is not None and (not self.levels or min(self.levels.values()) < 1):
            raise ValueError("levels: one or more, with weights of at least 1")
        return self


def _in_blocks(mix: tuple[Share, ...]) -> tuple[Share, ...]:
    """A mixture whose weights make blocks of samples that are not too long: see pipeline.loading.mixture."""
    tasks = [share.task for share in mix]
    if len(set(tasks)) < len(tasks):
        raise ValueError("each task once; levels of a task have weights of their own")
    if (block := sum(weight for _, _, weight in mixed(mix))) > BLOCK:
        raise ValueError(f"these weights repeat after {block:,} samples, and the most is {BLOCK:,}; give rounder ones")
    return mix


BLOCK = 4096  # samples after which the proportions of a mixture are exact, at most


def mixed(mix: tuple[Share, ...]) -> list[tuple[str, int | None, int]]:
    """What a mixture takes from: tasks, each level or all (None), and the smallest whole weights with these proportions."""
    parts: list[tuple[str, int | None, Fraction]] = []
    for share in mix:
        levels: list[tuple[int | None, int]] = [(None, 1)] if share.levels is None else [*share.levels.items()]
        whole = sum(weight for _, weight in levels)
        parts += [(share.task, level, Fraction(share.weight * weight, whole)) for level, weight in levels]
    whole = lcm(*(part.denominator for _, _, part in parts))
    divisor = gcd(*(int(part * whole) for _, _, part in parts))
    return [(task, level, int(part * whole) // divisor) for task, level, part in parts]


Mix = Annotated[tuple[Share, ...], AfterValidator(lambda mix: _in_blocks(mix) if mix else mix)]


class Stage(Frozen):
    """What changes after so many steps, as in progressive training (Restormer, section 3.3); the rest stays as it was."""

    after: int = Field(gt=0, description="optimiser steps from the beginning of the run")
    patch: int | None = Field(None, ge=8, description="from then on; also below")
    stride: int | None = Field(None, gt=0, description="of the grid of patches")
    crops: int | None = Field(None, gt=0, description="patches at random places of each image and epoch")
    batch: int | None = Field(None, gt=0, description="patches in a global batch")
    mix: Mix | None = Field(
        None, description="another mixture of tasks, whose tasks may be others too; []: data.task alone"
    )
    lr: float | None = Field(None, gt=0, description="in the place of optimisation.lr; the schedule goes on")


class Data(Frozen):
    """Which shards, and how training samples are cut from them."""

    task: str = Field(
        description="pipeline/tasks/<task>.yaml; its shards are in data/<task>. With a mix: the task that is validated on, by "
        "default its first"
    )
    mix: Mix = Field((), description="several tasks in proportions, instead of `task` alone")
    patch: int = Field(ge=8, description="side of the square patches, in pixels")
    stride: int | None = Field(None, gt=0, description="of the grid of patches, in pixels; or `crops`")
    crops: int | None = Field(None, gt=0, description="patches at random places of each image and epoch; or `stride`")
    dihedral: bool = Field(True, description="flips and rotations: all 8 of a grid's patch, one drawn for a random one")
    batch: int = Field(gt=0, description="patches in a global batch, over all workers")
    stages: tuple[Stage, ...] = Field(
        (), description="other patches, batches or learning rates later; each begins an epoch"
    )

    @model_validator(mode="before")
    @classmethod
    def _first_of_mix(cls, given: Any) -> Any:
        mix = given.get("mix") if isinstance(given, dict) else None
        if mix and "task" not in given and isinstance(mix, list | tuple) and isinstance(mix[0], dict):
            return {"task": mix[0].get("task"), **given}
        return given

    @model_validator(mode="after")
    def _of_the_mix(self) -> "Data":
        if self.mix and self.task not in (tasks := [share.task for share in self.mix]):
            raise ValueError(f"task {self.task}: not one of the mix, {', '.join(tasks)}")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> "Data":
        after = [0, *(stage.after for stage in self.stages)]
        if after != sorted(set(after)):
            raise ValueError(f"stages: each begins after the one before it, not at {after[1:]}")
        for stage in self.stages:
            if (stage.crops is not None and self.stride is not None) or (
                stage.stride is not None and self.crops is not None
            ):
                raise ValueError("stages: all have a stride, or all have crops")
        return self

    @property
    def in_stages(self) -> list["Data"]:
        """The first stage and the others, each with all that it has."""
        found = [self.model_copy(update={"stages": ()})]
        for stage in self.stages:
            changes = stage.model_dump(exclude={"after", "lr", "mix"}, exclude_none=True)
            changes |= {} if stage.mix is None else {"mix": stage.mix}
            found.append(found[-1].model_copy(update=changes))
        return found

    @property
    def sources(self) -> list[tuple[str, int | None, int]]:
        """What samples are taken from: tasks, each level or all (None), and their weights."""
        return mixed(self.mix or (Share(task=self.task),))

    @property
    def tasks(self) -> list[str]:
        """All tasks of all stages, `task` first."""
        return list(dict.fromkeys([self.task, *(task for stage in self.in_stages for task, _, _ in stage.sources)]))

    @model_validator(mode="after")
    def _one_way(self) -> "Data":
        if (self.stride is None) == (self.crops is None):
            raise ValueError("give stride (a grid of patches) or crops (random places), one of the two")
        return self

    @property
    def sampling(self) -> Grid | RandomCrops:
        """Which patches of an image are samples."""
        if self.stride is not None:
            return Grid(self.patch, self.stride, self.dihedral)
        return RandomCrops(self.patch, self.crops or 0, self.dihedral)


class Ema(Frozen):
    """An exponential moving average of the weights, which is what is validated, evaluated and published."""

    decay: float = Field(0.999, gt=0, lt=1, description="of the average, at each update")
    every: int = Field(1, gt=0, description="optimiser steps between two updates")
    warmup: bool = Field(True, description="the decay of update n is at most (1 + n) / (10 + n)")


BETAS = {"lion": (0.9, 0.99)}  # of optimisers whose own are others than (momentum, 0.999)


class Optimisation(Frozen):
    """How the weights move."""

    optimiser: Literal["sgd", "adam", "adamw", "schedule-free-adamw", "lion", "muon"] = Field(
        description="muon moves the convolutions between feature maps, and AdamW the rest; schedule-free-adamw and lion need "
        "`pip install 'memoir[optimisers]'`"
    )
    lr: float = Field(gt=0, description="initial learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD and Muon; others have betas (momentum, 0.999)")
    betas: tuple[float, float] | None = Field(
        None, description="of Adam, AdamW and Lion; null: (momentum, 0.999), of Lion (0.9, 0.99)"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="of SGD and Adam: L2, as in Caffe; of the others decoupled from the gradient"
    )
    no_decay: tuple[Literal["bias", "norm", "memory"], ...] = Field(
        (), description="parameters without weight decay: biases, those of normalisations, those of a module `memory`"
    )
    bias_lr: float = Field(1.0, gt=0, description="learning rate of convolution biases, relative to lr")
    lr_of: dict[str, float] = Field(
        {},
        description="learning rates relative to lr, by parameter, or by module for all below it; 0: it does not move",
    )
    clip: float | None = Field(None, gt=0, description="limit of the gradient; null: none")
    clip_by: Literal["norm", "value", "adaptive"] = Field(
        "norm",
        description="the limit is of the global norm; of each value; of each output channel's norm over its weight's",
    )
    clip_over_lr: bool = Field(False, description="the limit is clip / current learning rate ('adjustable clipping')")
    accumulate: int = Field(
        1,
        gt=0,
        description="parts of a worker's batch, one after the other: the same gradient in less memory, but for what is "
        "computed over a batch, such as BatchNorm's statistics, which is over each part",
    )
    ema: Ema | None = Field(None, description="average of the weights; null: none")
    schedule: Literal["step", "cosine", "cosine-restarts", "one-cycle", "linear", "constant"] = Field(
        description="of the learning rate over the length of training; one-cycle rises over `warmup` from a 25th of lr"
    )
    lr_step: Span | None = Field(None, description="schedule step: multiply by gamma after each of these spans")
    gamma: float = Field(0.1, gt=0, lt=1, description="of schedule step")
    period: Span | None = Field(None, description="schedule cosine-restarts: from lr to lr_end, and again from lr")
    period_factor: float = Field(
        1.0, ge=1, description="of schedule cosine-restarts: how much longer each next period is"
    )
    lr_end: float = Field(0.0, ge=0, description="the learning rate at the end, of the schedules that fall smoothly")
    warmup: Span | None = Field(None, description="before the schedule begins: from 0 to lr, linearly")
    length: Span = Field(description="when training ends")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="of convolutions; statistics and losses stay fp32. auto: bf16 where all devices have its arithmetic; tf32: "
        "of GPUs; fp16: with a scaled loss",
    )

    batchnorm: Literal["global", "rank"] = Field(
        "global",
        description="whose samples BatchNorm's statistics are of: the global batch's, or each worker's own, without an exchange "
        "at each layer; the weights then depend on the number of workers",
    )
    gradients: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="in which workers exchange them; bf16: in half of the bytes, rounded to 8 bits before and after the mean over "
        "the workers, so that the weights depend on their number",
    )
    compile: bool = Field(
        False,
        description="the step is compiled by torch.compile, once for each size of patch: the same within rounding, after a "
        "minute or more at the beginning",
    )

    @model_validator(mode="after")
    def _belongs(self) -> "Optimisation":
        if (self.schedule == "step") != (self.lr_step is not None):
            raise ValueError("schedule step needs lr_step, and no other has one")
        if (self.schedule == "cosine-restarts") != (self.period is not None):
            raise ValueError("schedule cosine-restarts needs period, and no other has one")
        if self.schedule == "one-cycle" and self.warmup is None:
            raise ValueError("schedule one-cycle needs warmup, over which it rises")
        if self.lr_end and self.schedule in ("step", "constant"):
            raise ValueError(f"lr_end belongs to schedules that fall smoothly, and {self.schedule} does not")
        if (self.clip_over_lr or self.clip_by != "norm") and self.clip is None:
            raise ValueError(f"{'clip_over_lr' if self.clip_over_lr else 'clip_by'} needs clip")
        if self.clip_over_lr and self.clip_by != "norm":
            raise ValueError("clip_over_lr is for clip_by norm")
        if any(rate < 0 for rate in self.lr_of.values()):
            raise ValueError("lr_of: rates of 0 and above")
        if self.betas is not None and self.optimiser == "sgd":
            raise ValueError("betas: sgd has momentum")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)}: from 0 to below 1")
        if self.optimiser == "muon" and self.precision == "fp16":
            raise ValueError("muon: precision fp32, tf32 or bf16")
        if self.optimiser == "schedule-free-adamw" and (self.schedule != "constant" or self.ema is not None):
            raise ValueError("schedule-free-adamw averages by itself: schedule constant, and no ema")
        return self


class Training(Frozen):
    """How the run is carried out. Only `seed` changes its numbers; `workers` changes their last bits."""

    workers: int | tuple[int, int] = Field(
        2, description="DDP ranks; [min, max]: as many as divide `batch` and the cluster has free, resized meanwhile"
    )
    resize_every_s: float = Field(
        60, gt=0, description="of [min, max] workers: seconds between two looks at the cluster"
    )
    cpus_per_worker: int = Field(
        1, gt=0, description="CPUs that Ray reserves for a worker, and threads that it computes with"
    )
    gpu: bool = Field(False, description="one GPU for each worker")
    portable: bool = Field(
        False,
        description="the same weights on every x86-64 CPU with AVX2, see jobs/arithmetic.py; slower on newer ones",
    )
    spread: bool = Field(False, description="workers on as many nodes as there are, instead of on as few as will do")
    loader_threads: int = Field(1, gt=0, description="threads of a worker that cut batches ahead")
    seed: int = Field(0, ge=0, description="of initial weights, the order of samples, and what is drawn for them")
    track: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (),
        description="trackers that records go to, too; they need `pip install 'memoir[wandb]'` or `'memoir[mlflow]'`",
    )
    log_every: int = Field(50, gt=0, description="steps between two lines of metrics.jsonl")
    validate_every: int = Field(1000, gt=0, description="steps between two validations")
    validation_images: int | None = Field(None, gt=0, description="only the first so many (image, level); null: all")
    checkpoint_every: int = Field(1000, gt=0, description="steps between two checkpoints")
    checkpoint_minutes: float | None = Field(None, gt=0, description="and so often in between; null: not")
    until: int | None = Field(
        None,
        gt=0,
        description="the run pauses at its first checkpoint from this step on, and goes on with the same command and another "
        "value; null: it trains to its end",
    )
    snapshot_every: int | None = Field(
        None,
        gt=0,
        description="steps between two copies of the state in the memory of each node, from which a run goes on that lost a "
        "rank; null: none",
    )
    keep_last: int = Field(2, ge=1, description="checkpoints: so many of the newest are kept")
    keep_best: int = Field(1, ge=0, description="and so many with the best validation")
    cache_bytes: int | None = Field(
        None, gt=0, description="limit of a node's copies of shards in a bucket; null: none"
    )
    strict: bool = Field(
        False, description="images that are smaller than a patch, and masks that are in no batch, are an error"
    )
    quarantine: int = Field(0, ge=0, description="damaged images that a run goes on without; they are logged")
    max_failures: int = Field(3, ge=0, description="lost workers that a run recovers from")
    hang_s: float = Field(900, gt=0, description="a step that takes longer is ended, with the stacks of its threads")

    @model_validator(mode="after")
    def _range(self) -> "Training":
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"workers {self.workers}: give a number, or [min, max], of at least 1")
        if self.portable and (self.gpu or self.fewest < self.most):
            raise ValueError(
                "portable is for a fixed number of workers on CPUs: leave out portable, or gpu and the range"
            )
        return self

    @property
    def fewest(self) -> int:
        """The least number of DDP ranks."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The largest number of DDP ranks."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class BenchmarkRun(Frozen):
    """One evaluation: a benchmark of jobs/evaluation/protocols.py on the images of a folder."""

    benchmark: str = Field(description="its name, e.g. jpeg-q10, sr-x3, noise-50, pairs-y")
    data: str = Field(description="folder of clean images; of pairs-..., of a data set in its published layout")
    layout: str | None = Field(None, description="of a published set: name, or name:variant, of pipeline/layouts")
    split: Literal["val", "test"] = Field("test", description="of a published set")
    subset: str | None = Field(None, description="of a published set: only the test images of this subset")


class Validation(Frozen):
    """What weights are chosen by, and when there are no better ones to come. Without it: PSNR on the val split of the task."""

    benchmark: str | None = Field(None, description="as of evaluation.benchmarks; null: PSNR on the task's val split")
    data: str | None = Field(
        None, description="folder of its images, which must be no test images, as all nodes have it"
    )
    layout: str | None = Field(None, description="of a published set: name, or name:variant, of pipeline/layouts")
    split: Literal["val", "test"] = Field("val", description="of a published set")
    subset: str | None = Field(None, description="of a published set: only the images of this subset")
    metric: str = Field("psnr", description="of the benchmark's protocol, e.g. psnr or ssim")
    stop_after: int | None = Field(
        None,
        gt=0,
        description="validations in a row without a better one, after which training ends; null: at its length",
    )
    final: Literal["last", "best"] = Field(
        "last", description="what is evaluated and published: the last weights, or those with the best validation"
    )

    @model_validator(mode="after")
    def _whole(self) -> "Validation":
        if (self.benchmark is None) != (self.data is None):
            raise ValueError("benchmark and data go together; without both, the val split of the task is validated on")
        if self.benchmark is None and self.metric != "psnr":
            raise ValueError(f"metric {self.metric}: of a benchmark; the val split has psnr")
        return self

    @property
    def run(self) -> BenchmarkRun | None:
        """The benchmark on its images; None: the val split."""
        if self.benchmark is None or self.data is None:
            return None
        return BenchmarkRun(
            benchmark=self.benchmark, data=self.data, layout=self.layout, split=self.split, subset=self.subset
        )


class Evaluation(Frozen):
    """What the finished model is scored on."""

    benchmarks: tuple[BenchmarkRun, ...] = Field(min_length=1, description="one or more, in the order of the report")


class Objective(Frozen):
    """The weights of the objective's terms, at least one: see jobs/models/objective.py.

    It is for a network of one's own that has no `training_loss`.
    """

    charbonnier: float | None = Field(None, gt=0, description="mean of sqrt(d² + 0.001²)")
    l1: float | None = Field(None, gt=0, description="mean of the absolute difference d")
    l2: float | None = Field(None, gt=0, description="mean of d²")
    ssim: float | None = Field(None, gt=0, description="1 - SSIM, windows of 11x11 pixels with sigma 1.5")
    edge: float | None = Field(None, gt=0, description="Charbonnier of the Laplacian's difference")
    frequency: float | None = Field(None, gt=0, description="L1 of the Fourier transform's difference")

    @model_validator(mode="after")
    def _some(self) -> "Objective":
        if not self.terms:
            raise ValueError(f"give the weight of at least one term: {', '.join(type(self).model_fields)}")
        return self

    @property
    def terms(self) -> dict[str, float]:
        """The weight of each term in use."""
        return {name: weight for name, weight in self if weight is not None}


class Recipe(Frozen):
    """One trained system."""

    model: SerializeAsAny[ModelOptions] = Field(
        description="`name`: memnet, memorynet, timelapse, drcnet, or module:Class of your own; and its options"
    )
    objective: Objective | None = Field(None, description="of a network of one's own without a training_loss")
    data: Data = Field(description="shards, and the samples that are cut from them")
    optimisation: Optimisation = Field(description="how the weights move")
    training: Training = Field(description="how the run is carried out")
    validation: Validation | None = Field(None, description="what the weights are chosen by")
    evaluation: Evaluation = Field(description="what the finished model is scored on")

    @model_validator(mode="after")
    def _portable(self) -> "Recipe":
        o = self.optimisation
        if self.training.portable and o.precision not in ("fp32", "auto"):
            raise ValueError(
                f"optimisation.precision: {o.precision} is not portable: say fp32 or auto, or leave out training.portable"
            )
        if self.training.portable and o.compile:
            raise ValueError("optimisation.compile: what a compiler makes is not portable; leave out one of the two")
        if self.training.portable and o.optimiser in ("muon", *BETAS, "schedule-free-adamw"):
            raise ValueError(f"optimisation.optimiser: {o.optimiser} is not portable; sgd, adam and adamw are")
        return self

    @model_validator(mode="after")
    def _best_is_kept(self) -> "Recipe":
        t = self.training
        best = self.validation is not None and self.validation.final == "best"
        if best and (t.validate_every % t.checkpoint_every or t.keep_best == 0):
            raise ValueError(
                f"validation.final best: needs training.keep_best of at least 1, and a checkpoint at each validation: "
                f"validate_every, {t.validate_every}, in steps of checkpoint_every, {t.checkpoint_every}"
            )
        return self

    @model_validator(mode="after")
    def _windows(self) -> "Recipe":
        smallest = min(data.patch for data in self.data.in_stages)
        if self.objective is not None and self.objective.ssim is not None and smallest < 11:
            raise ValueError(f"objective.ssim has windows of 11 pixels, and data.patch is {smallest}")
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialised: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialised(self)
        if self.validation is None:
            fields.pop("validation", None)
        if "objective" in fields:  # the papers' models have none, and their recipes say nothing of it
            terms = {} if self.objective is None else self.objective.terms
            fields = {key: terms if key == "objective" else value for key, value in fields.items()}
            fields = {key: value for key, value in fields.items() if key != "objective" or value}
        return fields

    @model_validator(mode="after")
    def _divisible(self) -> "Recipe":
        for i, data in enumerate(self.data.in_stages):
            B, where = data.batch, f"data.stages.{i - 1}.batch" if i else "data.batch"
            for W in (self.training.fewest, self.training.most):
                if B % W:
                    fitting = ", ".join(str(W) for W in range(1, B + 1) if B % W == 0)
                    raise ValueError(f"training.workers: {W} does not divide {where}, {B}; these do: {fitting}")
                if B // W % self.optimisation.accumulate:
                    raise ValueError(
                        f"optimisation.accumulate: {self.optimisation.accumulate} does not divide a worker's {B // W} samples "
                        f"({where} {B}, {W} workers)"
                    )
        return self

    @model_validator(mode="after")
    def _in_steps(self) -> "Recipe":
        o, stages = self.optimisation, self.data.stages
        spans = {"length": o.length, "lr_step": o.lr_step, "period": o.period, "warmup": o.warmup}
        if stages and (epochs := [name for name, span in spans.items() if span is not None and span.epochs]):
            raise ValueError(f"optimisation.{epochs[0]}: in steps where data has stages, for their epochs differ")
        if stages and o.length.steps is not None and stages[-1].after >= o.length.steps:
            raise ValueError(
                f"data.stages: the last begins after {stages[-1].after} steps, and training ends at {o.length.steps}"
            )
        return self


class ResolvedShare(BaseModel):
    """The keys of a mixture's share that are read."""

    task: str
    weight: int
    levels: dict[str, int] | None = None


class ResolvedData(BaseModel):
    """The keys of a resolved recipe's data that are read."""

    task: str
    mix: list[ResolvedShare] = []
    patch: int
    batch: int


class ResolvedTraining(BaseModel):
    """The keys of a resolved recipe's training that are read."""

    workers: int | tuple[int, int]
    portable: bool = False


class ResolvedRecipe(BaseModel):
    """The keys that are read from the resolved recipe of a checkpoint or a published version.

    Another version of memoir may have written it; `resolved_model` says more of its model.
    """

    model: dict[str, Any]
    data: ResolvedData
    training: ResolvedTraining


def read_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe jobs/recipes/<name>.yaml (or a YAML file by its path) with `section.key=value` overrides.

    Raises UserError for an unknown recipe, and for any mistake in it with file, line and nearest known key.
    """
    path = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"unknown recipe {name!r}; {nearest(name, [p.stem for p in RECIPES.glob('*.yaml')])}")
    recipe = read_yaml(path, _schema(path), overrides)
    _check_objective(recipe, f"{path}: ")
    return recipe


def _schema(path: Path) -> type[Recipe]:
    """Recipe, with the options of the model that the file names."""
    try:
        model = parse_yaml(read_limited(path), str(path))["model"]["name"]
    except (KeyError, TypeError):
        return Recipe  # read_yaml says what is wrong
    try:
        return _recipe_of(model)
    except UserError as error:
        raise UserError(f"{path}: model.name: {error}") from None


def _recipe_of(model: object) -> type[Recipe]:
    """Recipe, with the options of a model of memoir or of one's own. Raises UserError for what is neither."""
    _check_known(model)
    return create_model("Recipe", __base__=Recipe, model=(options_of(str(model)), ...))


def _check_known(model: object) -> None:
    if not is_own(model) and (not isinstance(model, str) or model not in MODELS):
        own = "" if not isinstance(model, str) or ":" not in model else "; a network of your own is module:Class"
        raise UserError(f"unknown model {model!r}; {nearest(str(model), list(MODELS))}{own}")


def _check_objective(recipe: Recipe, where: str = "") -> None:
    """Raise UserError unless the recipe has an objective where its model has none, and only there."""
    own, name = False, recipe.model.name
    if is_own(name):
        from jobs.models.own import has_objective

        own = not has_objective(model_class(name))
    if own and recipe.objective is None:
        terms = ", ".join(Objective.model_fields)
        raise UserError(
            f"{where}objective: missing, and {name} has no training_loss; add e.g. `objective: {{charbonnier: 1.0}}` (terms: {terms})"
        )
    if not own and recipe.objective is not None:
        raise UserError(f"{where}objective: {name} has a training_loss of its own; leave out objective")


def packed(recipe: Recipe) -> dict[str, Any]:
    """A recipe for another process, which may be on another machine: with the source of a network of one's own."""
    return {"recipe": recipe.model_dump(mode="json"), "source": send(recipe.model.name)}


def unpacked(sent: dict[str, Any]) -> Recipe:
    """The recipe that `packed` has sent; from here on this process imports the source that came with it."""
    model = sent["recipe"]["model"]["name"]
    receive(model, sent["source"])
    return _recipe_of(model).model_validate(sent["recipe"])


def trusts(name: str, trust: Collection[str]) -> bool:
    """Whether a network of one's own may be imported. trust: `module:Class`, or modules or packages with all their classes."""
    module = name.partition(":")[0]
    return any(name == each or f"{module}.".startswith(f"{each}.") for each in trust)


def named_here(reference: str, recipe: str) -> set[str]:
    """The networks of one's own that recipe files of this machine name: they are trusted.

    reference: what the user gave; it may be a YAML file. recipe: the name of one in jobs/recipes. Nothing is imported.
    """
    files = {RECIPES / f"{recipe}.yaml", *([Path(reference)] if reference.endswith(".yaml") else [])}
    named: set[str] = set()
    for path in files:
        if path.is_file():
            content = parse_yaml(read_limited(path), str(path))
            model = content.get("model") if isinstance(content, dict) else None
            name = model.get("name") if isinstance(model, dict) else None
            if is_own(name):
                named.add(str(name))
    return named


def resolved_model(recipe: dict[str, Any], trust: Collection[str] = ()) -> "Network":
    """The untrained model of a resolved recipe, as checkpoints and published versions carry it.

    trust: see `trusts`; nothing is imported of a network that it does not name. Raises UserError for a model, or arguments of
    its class, that this version of memoir does not have, and for one that is not trusted.
    """
    given = recipe.get("model") if isinstance(recipe, dict) else None
    name = given.get("name") if isinstance(given, dict) else None
    _check_known(name)
    assert isinstance(given, dict)
    assert isinstance(name, str)
    if is_own(name) and not trusts(name, trust):
        raise UserError(
            f"its network is {name}, code that is not memoir's and that no recipe file here names; to run that code, say "
            f"--trust {name}, or have a recipe that names it in jobs/recipes, or as the YAML file that stands for the model"
        )
    try:
        return build_model(options_of(name).model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"model {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def build_model(options: ModelOptions, objective: Objective | None = None) -> "Network":
    """The model, initialised from torch's global generator. Raises UserError for arguments that it refuses.

    objective: what to train a network of one's own with that has none. The papers' models compute in channels_last; a
    network of one's own is left as it is, for it may rely on the usual order.
    """
    arguments = {name: value for name, value in options if name != "name"}
    if is_own(options.name):
        from jobs.models.own import build

        return build(options.name, arguments, None if objective is None else objective.terms)
    import torch

    try:
        return model_class(options.name)(**arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        # torch's errors for sizes that are negative, or more than the memory
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model {options.name}: {first}") from None

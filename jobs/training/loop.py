"""The training loop, in plain torch: one process, or one rank of a process group that the caller has set up."""

import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.arithmetic import Precision, check_portable, choose_precision
from jobs.documents import SavedRecipe, read_document, read_records
from jobs.documents import State as SavedState
from jobs.evaluation.metrics import METRICS
from jobs.evaluation.protocols import Score
from jobs.evaluation.validating import Validator, means
from jobs.models import Contrasting, Network, collective
from jobs.models.batchnorm import BatchNorm2d
from jobs.models.elementwise import psnr
from jobs.models.fp32 import exact_fp32
from jobs.recipe import Data, Recipe, build_model
from jobs.restoring.tiles import restore_plane
from jobs.source import is_own
from jobs.training.compiler import compiled
from jobs.training.gradients import distributed, exchange_in_bf16
from jobs.training.meter import Meter
from jobs.training.optimiser import Average, Optimiser, learning_rate
from pipeline.depth import Bits
from pipeline.dvc_objects import dataset_storage
from pipeline.errors import UserError, some
from pipeline.keyed import digest64
from pipeline.loading.loader import Loader, Position
from pipeline.loading.mixture import Mixture, Source
from pipeline.shards.cache import ShardCache
from pipeline.shards.shard_set import CACHE, ShardSet, Version, validation_pair
from pipeline.storage import Folder

RAW = "training.safetensors"  # in a checkpoint: the weights in training, where those to evaluate are an average
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PICTURES, CROP = 3, 160  # pictures of a validation, and pixels of their sides
TIMED = 10  # DistributedDataParallel times one step in so many


@dataclass
class State:
    """Where a run stands: optimiser steps done, and the next batch."""

    step: int
    position: Position


class Objective(nn.Module):
    """The model's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model: Network = model

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See jobs.models.Network."""
        return self.model.training_loss(batch)


class Run:
    """A model in training: everything that the next step depends on.

    recipe: what to train. data: what `memoir build` wrote, a folder or a URI; for a mixture, of each of its tasks. Rank and
    world size are those of torch's process group.
    """

    def __init__(self, recipe: Recipe, data: Path | str | Mapping[str, Path | str], device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        exact_fp32()
        if recipe.training.portable:
            check_portable()
        self.precision: Precision = choose_precision(recipe.optimisation.precision, device)
        self.rank, self.world_size = collective.rank(), collective.world_size()
        if device.type == "cpu":
            collective.share_memory(2 * recipe.training.hang_s + 1)
        places = data if isinstance(data, Mapping) else {recipe.data.task: data}
        caches = {task: self._cache(place) for task, place in places.items()}
        shards: dict[str, ShardSet] = {}  # by task
        self.loaders: list[Loader | Mixture] = []  # of each stage
        for each in recipe.data.in_stages:
            loader = self._loader(each, places, caches, shards)
            if self.loaders and (loader.sizes < each.patch).any(1).all():
                height, width = loader.sizes.max(0).tolist()
                raise UserError(
                    f"{_told(places)}: no image holds a patch of {each.patch}x{each.patch}, which a stage has; the largest sides "
                    f"are {height} and {width}"
                )
            self.loaders.append(loader)
        self.state = State(0, Position())
        self.notes = list(
            dict.fromkeys(note for loader in self.loaders for note in loader.notes)
        )  # which the user must know
        if self.notes and recipe.training.strict:
            raise UserError(
                f"{_told(places)}: {self.notes[0]}; mend the data or the recipe, or leave out training.strict"
            )
        chosen = recipe.validation
        self.validator = Validator(chosen) if chosen is not None and chosen.run is not None else None
        self.validation: list[Version] = []
        if self.validator is None:
            self.validation = self._validation_images(places[recipe.data.task], caches[recipe.data.task], shards)
        torch.manual_seed(recipe.training.seed)
        self.model = build_model(recipe.model, recipe.objective).to(device)
        lacking = sorted(set(self.model.inputs) - self.loader.delivers)
        if lacking:
            raise UserError(
                f"model {recipe.model.name} needs {', '.join(lacking)}, which task {recipe.data.task} has not"
            )
        if self.model.in_channels != self.loader.channels:
            raise UserError(
                f"model.in_channels is {self.model.in_channels} and the images of task {recipe.data.task} have {self.loader.channels}"
            )
        if self.validator is not None and self.validator.benchmark.channels != self.model.in_channels:
            raise UserError(
                f"validation.benchmark: {self.validator.benchmark.name} is on images of {self.validator.benchmark.channels} "
                f"channels, and model.in_channels is {self.model.in_channels}"
            )
        self.bits: Bits = max(shard_set.listing.get("bits", 8) for shard_set in shards.values())
        if is_own(recipe.model.name):
            from jobs.models.own import try_out

            another = build_model(recipe.model, recipe.objective).to(device)
            for patch in sorted({each.patch for each in recipe.data.in_stages}):
                try_out(another, recipe.model.name, patch, ranks=self.world_size)
        o = recipe.optimisation
        if isinstance(self.model, Contrasting):
            self.model.load_features(device)  # which may not be there
        self.optimiser = Optimiser(self.model, o)
        self.average = Average(self.model, o.ema) if o.ema is not None else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        if o.accumulate > 1:
            self.notes.append(
                f"{o.accumulate} parts of a worker's batch: what the model computes over a batch, such as BatchNorm's "
                "statistics, is over each part"
            )
        self.of_rank = o.batchnorm == "rank" and self.world_size > 1
        if self.of_rank:
            layers = [module for module in self.model.modules() if isinstance(module, BatchNorm2d)]
            for layer in layers:
                layer.of_rank = True
            if layers:
                self.notes.append(
                    f"BatchNorm's statistics are of each worker's {self.loader.share} samples, the running averages of the first's"
                )
        self.total = recipe.optimisation.length.in_steps(len(self.loader))
        self.meter = Meter()
        self.pictures: dict[str, np.ndarray] = {}  # of this rank's first images of the last validation, see `_picture`
        self.tell: Callable[[str], None] = lambda line: None  # what the user is to see at once
        self.records: list[dict[str, Any]] = []  # lines of metrics.jsonl; a checkpoint carries its run's history
        objective: nn.Module = Objective(self.model)
        if o.compile:
            objective = compiled(objective, device)
        self.objective: nn.Module = objective
        if self.world_size > 1:
            # Buffers of the papers' models need no broadcast: their statistics are global and so the same on every rank.
            self.objective = distributed(objective, forward_sync_buffers=is_own(recipe.model.name))
            self.objective._set_ddp_runtime_logging_sample_rate(TIMED)
            if o.gradients == "bf16":
                exchange_in_bf16(self.objective, device)

    @property
    def stage(self) -> int:
        """The stage of the next step, from 0."""
        return sum(stage.after <= self.state.step for stage in self.recipe.data.stages)

    @property
    def loader(self) -> Loader | Mixture:
        """The loader of the next step."""
        return self.loaders[self.stage]

    @property
    def batches_digest(self) -> str:
        """A digest of what all batches of the run depend on."""
        rest = [
            [stage.after, stage.lr, other.digest]
            for stage, other in zip(self.recipe.data.stages, self.loaders[1:], strict=True)
        ]
        return json.dumps([self.loaders[0].digest, *rest]) if rest else self.loaders[0].digest

    def _cache(self, place: Path | str) -> ShardCache | None:
        """The node's copies of the shards of a dataset that is not on it."""
        remote = not isinstance(dataset_storage(str(place)), Folder)
        return ShardCache(CACHE, limit_bytes=self.recipe.training.cache_bytes) if remote else None

    def _loader(
        self,
        data: Data,
        places: Mapping[str, Path | str],
        caches: Mapping[str, ShardCache | None],
        shards: dict[str, ShardSet],
    ) -> Loader | Mixture:
        """The loader of a stage. shards: of the tasks' split train, as far as they are open; those that it opens are added."""
        training, sources = self.recipe.training, []
        for i, (task, level, weight) in enumerate(data.sources):
            loader = Loader(
                places[task],
                batch=data.batch,
                sampling=data.sampling,
                # the samples of two sources have the same numbers, and what is drawn for them must differ
                seed=digest64("source", training.seed, i) >> 1 if data.mix else training.seed,
                rank=self.rank,
                world_size=self.world_size,
                threads=training.loader_threads,
                cache=caches[task],
                quarantine=training.quarantine,
                shards=shards.get(task),
                level=level,
            )
            shards[task] = loader.shard_set
            name = f"task {task}" + ("" if level is None else f" at level {level}")
            sources.append(Source(name, loader, weight))
        return Mixture(sources, seed=training.seed) if data.mix else sources[0].loader

    def _validation_images(
        self, data: Path | str, cache: ShardCache | None, shards: Mapping[str, ShardSet]
    ) -> list[Version]:
        """What the run validates on. Where there is nothing, only the recipe's benchmarks tell, and a note says so."""
        task = self.recipe.data.task
        if "val" not in shards[task].listing["splits"]:
            self.notes.append(f"no validation, for task {task} has no val split")
            return []
        if "gt" not in self.loader.planes:
            self.notes.append("no validation, for the val split has no clean images to compare with; it is not used")
            return []
        versions = ShardSet(data, "val", cache=cache).versions()
        taken = list(itertools.islice(versions, self.recipe.training.validation_images))
        for version in taken:
            if max(plane.shape[2] for plane in version.planes.values()) > self.loader.channels:
                raise UserError(
                    f"{version.key} of split val is in colour, and all images of split train are grey: leave it out, or "
                    f"make task {task} one of grey images (colour: gray)"
                )
        return taken

    def train(
        self,
        save: Callable[["Run"], None],
        log: Callable[[dict[str, Any]], None],
        beat: Callable[[], None] = lambda: None,
        snap: Callable[["Run", Meter], None] = lambda run, meter: None,
    ) -> None:
        """Train to the end of the recipe from where the state stands.

        save is called on every rank every `checkpoint_every` steps, every `checkpoint_minutes` by this rank's clock, and at
        the end; it comes before the validation of that step, which a run that continues from there makes up for. log is called
        on every rank with each new record of metrics.jsonl: every `log_every` steps (means over steps and ranks), and after
        each validation. beat is called at each sign of life: a step, a validated image. snap is called on every rank after every
        step that is not the last.
        """
        every, meter = self.recipe.training, self.meter
        self._validate_if_due(log, beat)
        if self.ended():
            return
        saved = time.perf_counter()
        if not meter.steps:
            meter.reset()
        stage = self.stage
        batches: Generator[tuple[Position, Any], None, None] = self.loader.batches(self.state.position)
        positions: list[tuple[int, Loader | Mixture, Position]] = []  # of the steps since the last record
        try:
            while not self.ended():
                beat()
                if stage != self.stage:
                    batches.close()
                    stage, batches = self.stage, self.loader.batches(self.state.position)
                meter.start()
                position, cut = next(batches)
                batch = self.loader.to_device(cut, self.device)
                cut.hand_back()
                meter.waited()
                lr = self.lr()
                before = collective.seconds()
                loss, logs, norm = self.step(batch)
                meter.network += collective.seconds() - before
                positions.append((self.state.step + 1, self.loader, position))
                meter.add(self.loader.batch, loss=loss, grad_norm=norm, **logs)
                self.state = State(self.state.step + 1, Position(position.epoch, position.batch + 1))
                if stage != self.stage:  # the next one begins an epoch
                    self.state = State(self.state.step, Position(position.epoch + 1))
                last = self.state.step == self.total
                if last or self.state.step % every.log_every == 0:
                    meter.network += self._ddp_seconds(meter.steps)
                    self._tell_spikes(meter, positions)
                    positions.clear()
                    record = {**meter.record(self.device), "workers": self.world_size}
                    if quarantined := self.loader.quarantined:
                        record["quarantined"] = quarantined
                    self._log(log, {"epoch": position.epoch, "lr": lr, **record})
                aside = time.perf_counter()
                minutes = (time.perf_counter() - saved) / 60
                due = every.checkpoint_minutes is not None and minutes >= every.checkpoint_minutes
                if last or due or self.state.step % every.checkpoint_every == 0:
                    save(self)
                    saved = time.perf_counter()
                self._validate_if_due(log, beat)
                if self.ended() and not last and not self.paused:  # before its length
                    self._tell_stopped()
                    save(self)
                if not self.ended():
                    snap(self, meter)
                meter.began += time.perf_counter() - aside
        finally:
            batches.close()

    def _validate_if_due(self, log: Callable[[dict[str, Any]], None], beat: Callable[[], None]) -> None:
        """Validate and log the score, if the recipe wants one at this step and there is none yet."""
        step, every = self.state.step, self.recipe.training.validate_every
        due = step > 0 and (step % every == 0 or step == self.total)
        if (self.validation or self.validator) and due and step not in self.scores:
            values = {f"val_{name}": value for name, value in self.validate(beat).items()}
            self._log(log, {"epoch": self.state.position.epoch, **values})

    def ended(self) -> bool:
        """Whether training is at its end: its length, or so many validations without a better one as the recipe says; or pauses."""
        if self.state.step >= self.total or self.paused:
            return True
        chosen, scores = self.recipe.validation, self.scores
        if chosen is None or chosen.stop_after is None or self.state.step not in scores:
            return False
        return sum(step > self.best for step in scores) >= chosen.stop_after

    @property
    def paused(self) -> bool:
        """Whether this is the checkpoint at which the recipe has the run pause."""
        until, every, step = self.recipe.training.until, self.recipe.training.checkpoint_every, self.state.step
        return until is not None and until <= step < self.total and step % every == 0

    @property
    def best(self) -> int:
        """The step with the best validation, the later of equal ones; the run has one."""
        scores = self.scores
        return max(scores, key=lambda step: (scores[step], step))

    @property
    def final(self) -> int:
        """The step whose weights the run is for, when it has ended."""
        chosen = self.recipe.validation
        return self.best if chosen is not None and chosen.final == "best" and self.scores else self.state.step

    def _tell_stopped(self) -> None:
        assert self.recipe.validation is not None
        value = next(record for record in self.records if record["step"] == self.best and self._chosen_by in record)
        self.tell(
            f"step {self.state.step}: {self.recipe.validation.stop_after} validations without a better "
            f"{self._chosen_by.removeprefix('val_')} than {value[self._chosen_by]:.4g} at step {self.best}; training ends"
        )

    def _tell_spikes(self, meter: Meter, positions: list[tuple[int, Loader | Mixture, Position]]) -> None:
        """Name the samples of the steps since the last record whose loss stands out."""
        for ago, loss, median in meter.spikes():
            if ago >= len(positions):  # before this process began
                continue
            step, loader, position = positions[-1 - ago]
            names = loader.names(position)
            self.tell(
                f"step {step}: loss {loss:.4g}, {loss / median:.0f} times the median of the steps around it; its {len(names)} "
                f"samples: {some(names)}"
            )

    def _log(self, log: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        self.records.append({"step": self.state.step, **values})
        log(self.records[-1])

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """One optimiser step on this rank's part of a global batch; returns (loss, logs, gradient norm before clipping).

        Raises UserError if the norm is not finite, and names the samples that are the cause.
        """
        o = self.recipe.optimisation
        self.model.train()
        exact_fp32(tf32=self.precision == "tf32")
        progress = torch.tensor(self.state.step / self.total, device=self.device)
        # Whatever a model draws is a function of the step, so that a resumed run draws the same.
        torch.manual_seed(digest64("step", self.recipe.training.seed, self.state.step, self.rank) >> 1)
        self.optimiser.zero_grad()
        totals: dict[str, Tensor] = {}
        for part, last in _parts(batch | {"progress": progress}, o.accumulate):
            objective = self.objective
            with nullcontext() if last or not isinstance(objective, DistributedDataParallel) else objective.no_sync():
                with torch.autocast(self.device.type, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST):
                    loss, logs = self.objective(part)
                self.scaler.scale(loss).backward()
            for name, value in (logs | {"loss": loss.detach()}).items():
                totals[name] = totals[name] + value if name in totals else value
        loss = totals.pop("loss")
        for optimiser in self.optimiser.parts:
            self.scaler.unscale_(optimiser)
        lr = self.lr()
        norm = self.optimiser.clip(lr)
        if not norm.isfinite() and not self._overflowed(loss):
            # on all ranks alike, whichever has the cause; the weights are still good
            raise UserError(self._not_finite(batch, loss, norm))
        self.optimiser.step(lr, self.scaler)
        if self.average is not None:
            self.average.update(self.state.step + 1)
        return loss, totals, norm

    def _overflowed(self, loss: Tensor) -> bool:
        """Whether it is only fp16's scale that was too large: then all ranks leave the step out, and halve it."""
        if self.precision != "fp16" or self.scaler.get_scale() <= 1:
            return False
        return bool(collective.all_reduce(loss.isfinite().float(), dist.ReduceOp.MIN))

    def _not_finite(self, batch: dict[str, Tensor], loss: Tensor, norm: Tensor) -> str:
        """The message for a step without finite gradients; it names the samples of all ranks whose own loss is not finite."""
        guilty: list[str] = []
        count = torch.tensor(1.0, device=self.device)
        batch = batch | {"progress": torch.tensor(self.state.step / self.total, device=self.device)}
        for i in range(len(batch["sample"])):
            one = {name: value[i : i + 1] if value.ndim else value for name, value in batch.items()}
            if not self.model.training_loss(one | {"count": count})[0].isfinite():
                guilty.append(self.loader.name(int(batch["sample"][i])))
        if dist.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(self.world_size)]
            dist.all_gather_object(gathered, guilty)
            guilty = [name for names in gathered for name in names]
        where = f"at step {self.state.step + 1}"
        if guilty and len(guilty) < self.loader.batch:
            return f"loss is not finite {where}: the cause is {', '.join(guilty[:3])}: leave it out, or restore it"
        return f"loss is {loss.item()}, gradient norm {float(norm)} {where}: lower the learning rate, or clip"

    def lr(self) -> float:
        """Learning rate of the next step."""
        lr = learning_rate(self.recipe.optimisation, self.state.step, self.total, len(self.loader))
        own = next(
            (stage.lr for stage in reversed(self.recipe.data.stages[: self.stage]) if stage.lr is not None), None
        )
        return lr if own is None else lr * own / self.recipe.optimisation.lr

    def _ddp_seconds(self, steps: int) -> float:
        """The seconds of `steps` steps spent waiting for other ranks' gradients after computing one's own (sampled)."""
        if not isinstance(self.objective, DistributedDataParallel):
            return 0.0
        times = self.objective._get_ddp_logging_data()
        waited = times.get("avg_backward_comm_time", 0) - times.get("avg_backward_compute_comm_overlap_time", 0)
        return float(waited) / 1e9 * steps

    @property
    def _chosen_by(self) -> str:
        """The key of a record that the weights are chosen by."""
        return f"val_{'psnr' if self.recipe.validation is None else self.recipe.validation.metric}"

    @property
    def scores(self) -> dict[int, float]:
        """What the weights are chosen by at each step that was validated, the higher the better."""
        key = self._chosen_by
        sign = -1 if METRICS[key.removeprefix("val_")].better == "lower" else 1
        return {record["step"]: sign * record[key] for record in self.records if key in record}

    @torch.no_grad()
    def validate(self, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The means that the weights are chosen by, each image scored on one rank, with the weights that are evaluated.

        Of the recipe's validation what its benchmark measures; else PSNR (dB, float, no crop) over the whole images of the
        val split, restored as `restore` does it, in tiles where an image is large.
        """
        exact_fp32()
        self.pictures = {}
        with self._evaluated():
            self.model.eval()
            if self.world_size > 1 and (is_own(self.recipe.model.name) or self.of_rank):
                for buffer in self.model.buffers():  # those of rank 0, which a checkpoint has
                    dist.broadcast(buffer, 0)
            return {"psnr": self._validate(beat)} if self.validator is None else self._by_benchmark(beat)

    def _by_benchmark(self, beat: Callable[[], None]) -> dict[str, float]:
        assert self.validator is not None
        mine, shown = self.validator.scores(self.model, self.bits, self.rank, self.world_size, beat, PICTURES)
        self.pictures = {key: _picture(*planes) for key, planes in shown.items()}
        if self.world_size == 1:
            return means(mine)
        of_ranks: list[list[tuple[int, Score]]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(of_ranks, mine)
        return means([score for scores in of_ranks for score in scores])

    def _validate(self, beat: Callable[[], None]) -> float:
        total = torch.zeros(2, dtype=torch.float64)
        for version in self.validation[self.rank :: self.world_size]:
            beat()
            lq, gt = validation_pair(version, self.model.in_channels)
            output = restore_plane(self.model, lq)
            if len(self.pictures) < PICTURES:
                self.pictures[version.key] = _picture(lq, output, gt)
            mse = (torch.from_numpy(output).double() - torch.from_numpy(gt).double()).square().mean()
            total += torch.stack((psnr(mse), torch.ones_like(mse)))
        dB, images = collective.all_reduce(total.to(self.device))
        return float(dB / images)

    def _averaged(self) -> dict[str, Tensor] | None:
        """The weights to evaluate, by name, where those in training are others."""
        return self.average.weights if self.average is not None else self.optimiser.evaluated(self.model)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """The model with the weights to evaluate; those in training come back to the bit."""
        averaged = self._averaged()
        if averaged is None:
            yield
            return
        state = self.model.state_dict()
        kept = {name: tensor.clone() for name, tensor in state.items()}
        try:
            for name, tensor in state.items():
                tensor.copy_(averaged[name])
            yield
        finally:
            for name, tensor in state.items():
                tensor.copy_(kept[name])

    def save(self) -> dict[str, bytes]:
        """The whole state, the same on every rank, as files by name.

        model.safetensors, with the weights to evaluate; training.safetensors with those in training, where they are others;
        optimiser.pt (tensors and numbers), state.json, the resolved recipe.json, and metrics.jsonl so far.
        """
        averaged = self._averaged()
        state = {**asdict(self.state), "batches": self.batches_digest, "precision": self.precision, "notes": self.notes}
        return {
            "model.safetensors": safetensors.torch.save(weights(self.model) if averaged is None else _on_cpu(averaged)),
            **({} if averaged is None else {RAW: safetensors.torch.save(weights(self.model))}),
            "optimiser.pt": self.optimiser.save(self.scaler),
            "state.json": json.dumps(state, indent=1).encode(),
            "recipe.json": self.recipe.model_dump_json(indent=1).encode(),
            "metrics.jsonl": json_lines(self.records).encode(),
        }

    def load(self, folder: Path) -> None:
        """Continue from the files of `save`. Raises UserError if they belong to another recipe, or to other batches."""
        mend = "train under another name"
        state = read_document((folder / "state.json").read_bytes(), SavedState, f"{folder}/state.json", mend)
        saved = read_document((folder / "recipe.json").read_bytes(), SavedRecipe, f"{folder}/recipe.json", mend)
        own = self.recipe.model_dump(mode="json")
        saved.setdefault("objective", {})
        own.setdefault("objective", {})
        for section in ("model", "objective", "optimisation"):
            for key in sorted(saved[section].keys() | own[section].keys()):
                if saved[section].get(key) != own[section].get(key):
                    raise UserError(
                        f"{folder}: was trained with {section}.{key}={saved[section].get(key)}, and the recipe says "
                        f"{own[section].get(key)}: restore it, or train under another name"
                    )
        if state["batches"] != self.batches_digest:
            raise UserError(
                f"{folder}: was trained on other batches ({state['batches']}) than these ({self.batches_digest}): "
                "restore the data, or train under another name"
            )
        try:
            self._load_weights(folder)
            self.optimiser.load(folder / "optimiser.pt", self.scaler, self.device)
        except UserError:
            raise
        except Exception as error:  # torch may raise anything for a file that it has not written
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder}: weights or optimiser are damaged ({first}); {mend}") from None
        position = state["position"]
        self.state = State(state["step"], Position(position["epoch"], position["batch"]))
        self.precision = state["precision"]  # a run ends in the precision that it began in, whatever these devices have
        self.records = read_records((folder / "metrics.jsonl").read_bytes(), f"{folder}/metrics.jsonl", mend)

    def _load_weights(self, folder: Path) -> None:
        evaluated = safetensors.torch.load_file(folder / "model.safetensors")
        separate = self.average is not None or self.recipe.optimisation.optimiser == "schedule-free-adamw"
        self.model.load_state_dict(safetensors.torch.load_file(folder / RAW) if separate else evaluated)
        if self.average is not None:
            if {name: (t.shape, t.dtype) for name, t in evaluated.items()} != {
                name: (t.shape, t.dtype) for name, t in self.average.weights.items()
            }:
                raise UserError(f"{folder}/model.safetensors: not an average of this model; train under another name")
            self.average.weights = {name: evaluated[name].to(self.device) for name in self.average.weights}


def json_lines(records: list[dict[str, Any]]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record) + "\n" for record in records)


def weights(model: Network) -> dict[str, Tensor]:
    """Parameters and buffers, contiguous, on the CPU: what model.safetensors holds."""
    return _on_cpu(model.state_dict())


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _parts(batch: dict[str, Tensor], k: int) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """The batch in k parts of as many samples, each with whether it is the last; the loss of the whole is the sum of theirs."""
    size = len(batch["weight"]) // k
    for i in range(k):
        part = {n: v[i * size : (i + 1) * size] if v.dim() and k > 1 else v for n, v in batch.items()}
        yield part, i == k - 1


def _picture(lq: np.ndarray, output: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """The middle of an image, side by side: input, output, target. All float (H, W, C) in [0, 1]; returns uint8 (h, 3 w, C)."""
    height, width = (min(CROP, side) for side in gt.shape[:2])
    top, left = (gt.shape[0] - height) // 2, (gt.shape[1] - width) // 2
    parts = [plane[top : top + height, left : left + width] for plane in (lq, output, gt)]
    return np.rint(np.concatenate(parts, 1).clip(0, 1) * 255).astype(np.uint8)


def _told(places: Mapping[str, Path | str]) -> str:
    return ", ".join(str(place) for place in places.values())

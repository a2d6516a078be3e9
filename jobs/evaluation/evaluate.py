"""Scores of a model under the papers' protocols: per image and in the mean, beside the degraded input and the paper's row."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from jobs.evaluation.benchmark import Benchmark, benchmark
from jobs.evaluation.interval import margins
from jobs.evaluation.metrics import psnr
from jobs.evaluation.protocols import mean
from jobs.evaluation.scores import write_scores
from jobs.evaluation.scoring import Each, Restorer, Scored, here, identity, restorer, score_runs
from jobs.evaluation.settings import with_settings
from jobs.evaluation.spread import spread
from jobs.models import Network, Remembering
from jobs.origin import other_run
from jobs.recipe import BenchmarkRun, read_recipe
from jobs.restoring.checkpoint import Checkpoint, Trained, load_model, read_checkpoint
from jobs.restoring.restore import check_channels, on_device
from jobs.restoring.tiles import TILE, WHOLE, is_global, restore_blended, restore_plane
from jobs.variant import reference
from pipeline.console import tell
from pipeline.depth import Bits
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.raw.manifest import write_table

PICTURES = 2  # pictures of each benchmark in the report
ITEMS, SHEET_COLUMNS, SHEET_WIDTH = 32, 6, 150  # a memory's sheet: most items, cells in a row, pixels of a cell


def score_folder(restore: Restorer, which: Benchmark, run: BenchmarkRun, bits: Bits = 8) -> list[Scored]:
    """Restore and score every image of a folder, in the order of their names, and keep all their pixels.

    bits: the bits a channel that images may have, as in the model's task. Raises as `score_runs`.
    """
    return score_runs(here(restore, bits), [(which, run)])[0]


def dataset_name(folder: Path) -> str:
    """What a folder of images is called in tables: its name, with the data set's name if it is one of its splits."""
    parts = [part for part in folder.resolve().parts if part not in ("data", "images", "HR")]
    name = parts[-1] if len(parts) < 2 or parts[-1] not in ("train", "val", "test") else "-".join(parts[-2:])
    return {"LIVE1_gray": "LIVE1", "BSDS500-val": "BSD100", "BSDS500-test": "BSD200"}.get(name, name)


def dataset_of(run: BenchmarkRun) -> str:
    """What the images of a run are called in tables: their subset, or their data set with the variant of its layout."""
    variant = (run.layout or "").partition(":")[2]
    return run.subset or "-".join([dataset_name(Path(run.data)), *([variant] if variant else [])])


def summary(which: Benchmark, dataset: str, scored: list[Scored]) -> dict[str, Any]:
    """The row of a table: means, the protocol, the degraded input's means and the paper's row where there is one.

    margin: of each mean, half of its 95 % confidence interval over images, see jobs.evaluation.interval; None without one.
    """
    return {
        **mean([s.output for s in scored]).json(),
        "margin": margins([s.output for s in scored]),
        "images": len(scored),
        "protocol": str(which.protocol),
        "baseline": mean([s.baseline for s in scored]).json(),
        "paper": which.paper(dataset),
    }


def evaluate(
    model: str,
    run: BenchmarkRun,
    runs: Path,
    trust: Collection[str] = (),
    store: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """One benchmark on one folder. model: `identity`, a recipe with a checkpoint, or the URI of a published model.

    trust, store: see `load_model`. settings: see `with_settings`. A checkpoint that is not what its recipe here would make is
    scored as it is, and a line on stderr says what differs: whoever names the images may well mean an older one.
    """
    chosen = benchmark(run.benchmark)
    (scored,) = score_runs(scorer(model, [chosen], runs, trust, store, settings), [(chosen, run)], pixels=0)
    dataset = dataset_of(run)
    name = "+".join([model, *settings])
    return {"model": name, "benchmark": run.benchmark, "dataset": dataset, **summary(chosen, dataset, scored)}


def scorer(
    model: str,
    benchmarks: list[Benchmark],
    runs: Path,
    trust: Collection[str] = (),
    store: str | None = None,
    settings: Sequence[str] = (),
) -> Each:
    """What scores images with a model. Arguments, errors and the line on stderr are those of `evaluate`."""
    if model == "identity":
        return here(identity, 16)  # whatever is there
    given, name = reference(model)
    if not model.endswith(".json") and (runs / name / "checkpoint.json").is_file():
        _tell_departure(given, read_checkpoint(name, runs, store), runs)
    trained = with_settings(load_model(model, runs, trust, store), settings)
    _check_fits(trained, benchmarks)
    return _each(trained)


def _each(trained: Trained) -> Each:
    """What scores images with a model: the Ray at hand, or this process."""
    return spread(trained) or here(restorer(on_device(trained.model)), trained.bits)


def _tell_departure(given: str, checkpoint: Checkpoint, runs: Path) -> None:
    """Say on stderr if a checkpoint is not what the recipe `given` would make here, or cannot be compared with it."""
    try:
        departs = other_run(read_recipe(given, own_values(checkpoint)), checkpoint.pointer, checkpoint.root)
        line = (
            departs
            and f"of the run {checkpoint.pointer['run']}, which is not that of {checkpoint.name} here: {departs}"
        )
    except UserError as error:
        line = f"cannot be compared with its recipe: {error}"
    if line:
        text = f"warning {runs / checkpoint.name}/checkpoint.json: {line}; scored as it was trained"
        tell(text)


def own_values(checkpoint: Checkpoint) -> list[str] | None:
    """The `section.key=value` that belong to a checkpoint by its name: those of a variant. Others are a departure."""
    return checkpoint.pointer.get("overrides") if "+" in checkpoint.name else None


def _check_fits(trained: Trained, benchmarks: list[Benchmark]) -> None:
    """Raise UserError for a model that does not take what a benchmark gives it."""
    check_channels(trained)
    for each in benchmarks:
        if each.channels != trained.model.in_channels:
            raise UserError(
                f"{each.name}: is on images of {each.channels} channels, and {trained.name} takes "
                f"{trained.model.in_channels}; {'pairs-...' if trained.model.in_channels == 3 else 'jpeg-..., sr-... or noise-...'} "
                "are for such models"
            )


def evaluate_recipe(
    recipe_name: str, runs: Path, trust: Collection[str] = (), store: str | None = None
) -> dict[str, Any]:
    """All benchmarks of a recipe, or of a variant of it, on its checkpoint. trust, store: see `load_model`.

    Raises UserError for a checkpoint that the recipe and the code, as they are here, would not make of the same data.
    Writes runs/<recipe>/scores.json and protocols.json (see jobs.evaluation.scores; `blended` is `blended_distance` of each
    benchmark's first image), scores.parquet (per image) and pictures/{input,output,target}/ of the first images of each
    benchmark. A model with a memory also gets pictures/memory/, which shows what each item responds to in the first image.
    """
    given, name = reference(recipe_name)
    if not (runs / name / "checkpoint.json").is_file():
        read_recipe(given)  # says that there is none of this name
    checkpoint = read_checkpoint(name, runs, store)
    recipe = read_recipe(given, checkpoint.pointer.get("overrides"))
    _refuse_departure(given, recipe_name, checkpoint, runs)
    trained = load_model(recipe_name, runs, trust, store)
    asked = [(benchmark(run.benchmark), run) for run in recipe.evaluation.benchmarks]
    _check_fits(trained, [chosen for chosen, _ in asked])
    on_device(trained.model)
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    pictures = runs / name / "pictures"
    blended: list[tuple[np.ndarray, float | None]] = []  # by the input, which several benchmarks may share
    for (chosen, run), scored in zip(asked, score_runs(_each(trained), asked, PICTURES), strict=True):
        dataset, first = dataset_of(run), scored[0]
        row = {**summary(chosen, dataset, scored), "weights": trained.sha256}
        if not any(np.array_equal(lq, first.pair.lq) for lq, _ in blended):
            whole = first.restored if chosen.tile is None else None
            blended.append((first.pair.lq, blended_distance(trained.model, first.pair.lq, whole)))
        distance = next(known for lq, known in blended if np.array_equal(lq, first.pair.lq))
        if distance is not None:
            row["blended"] = {"image": first.key, "psnr": distance if math.isfinite(distance) else None}
        scores[f"{dataset}/{chosen.name}"] = row
        rows += [_row(dataset, chosen, image) for image in scored]
        _write_pictures(pictures, f"{dataset}-{chosen.name}", scored[:PICTURES])
        if run is recipe.evaluation.benchmarks[0] and isinstance(trained.model, Remembering):
            for bank, sheet in memory_sheets(trained.model, first.pair.lq).items():
                write_image(pictures / "memory" / f"{bank}.png", sheet)
    columns = list(dict.fromkeys(column for row in rows for column in row))  # null for a metric that a row lacks
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    write_table(runs / name / "scores.parquet", table)
    write_scores(runs / name, scores)
    return scores


def _refuse_departure(given: str, recipe_name: str, checkpoint: Checkpoint, runs: Path) -> None:
    """Raise UserError for a checkpoint that is not what the recipe `given` would make here."""
    values = own_values(checkpoint)
    if other := other_run(read_recipe(given, values), checkpoint.pointer, checkpoint.root):
        again = " ".join(["memoir train", given, *(f"--set {each}" for each in values or [])])
        raise UserError(
            f"{runs / checkpoint.name}/checkpoint.json: of the run {checkpoint.pointer['run']}, which is not that of "
            f"{recipe_name} here: {other}; `{again}`"
        )


def _write_pictures(folder: Path, name: str, shown: Sequence[Scored]) -> None:
    """Write input, output and target of images whose pixels were kept."""
    for image in shown:
        for role, plane in (("input", image.pair.lq), ("output", image.restored), ("target", image.pair.gt)):
            write_image(folder / role / f"{name}-{image.key}.png", to_uint8(plane))


def _row(dataset: str, which: Benchmark, image: Scored) -> dict[str, Any]:
    """An image's row of scores.parquet."""
    baseline = {f"baseline_{key}": value for key, value in image.baseline.values.items()}
    return {"dataset": dataset, "benchmark": which.name, "image": image.key} | image.output.values | baseline


def blended_distance(model: Network, lq: np.ndarray, whole: np.ndarray | None = None) -> float | None:
    """How near blended tiles come to the whole image: the PSNR (dB) of one result against the other; infinite for equal ones.

    lq: float32 (H, W, C) in [0, 1]; its upper left corner is taken, with as many pixels as are restored whole. whole: what the
    model makes of lq as one piece, if that is known. Returns None where both are always the same: for a model that says how
    far it sees, and for an image no larger than a tile.
    """
    side = math.isqrt(WHOLE)
    corner = lq[:side, :side]
    if not is_global(model) or max(corner.shape[:2]) <= TILE:
        return None
    if whole is None or corner.shape != lq.shape:
        whole = restore_plane(model, corner, whole=True)
    return psnr(*(255 * each.clip(0, 1).astype(np.float64) for each in (whole, restore_blended(model, corner))))


@torch.inference_mode()
def memory_sheets(model: Remembering, lq: np.ndarray) -> dict[str, np.ndarray]:
    """A sheet for each bank of a memory: the image, then how much its positions read of each item, from the item's least
    (black) to its most (white).

    lq: float32 (H, W, 3) in [0, 1]. Returns uint8 (h, w, 3) by the bank's name; a bank of more than ITEMS items has none.
    """
    x = torch.from_numpy(np.ascontiguousarray(lq.transpose(2, 0, 1)))[None].clamp(0, 1)
    x = x.to(next(model.parameters()).device)
    size = (SHEET_WIDTH, round(SHEET_WIDTH * lq.shape[0] / lq.shape[1]))
    sheets = {}
    for bank, weights in model.read_weights(x).items():
        if weights.shape[1] > ITEMS:
            continue
        cells = [cv2.resize(to_uint8(lq), size, interpolation=cv2.INTER_AREA)]
        for item in weights[0].cpu().numpy():
            level = (item - item.min()) / max(float(item.max() - item.min()), 1e-12)
            cell = cv2.resize(to_uint8(level), size, interpolation=cv2.INTER_NEAREST)
            cells.append(np.repeat(cell[..., None], 3, axis=2))
        blank = np.full_like(cells[0], 255)
        cells += [blank] * (-len(cells) % SHEET_COLUMNS)
        framed = [np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255) for cell in cells]
        rows = [np.concatenate(framed[i : i + SHEET_COLUMNS], 1) for i in range(0, len(framed), SHEET_COLUMNS)]
        sheets[bank] = np.concatenate(rows)
    return sheets


def to_uint8(plane: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded and clipped."""
    return np.clip(np.rint(plane * 255), 0, 255).astype(np.uint8)

"""Scores of a model under the papers' protocols: per image and in the mean, beside the degraded input and the paper's row."""

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import track

from jobs.evaluation.benchmark import Benchmark, Pair, benchmark
from jobs.evaluation.items import items
from jobs.evaluation.metrics import psnr
from jobs.evaluation.protocols import Score, mean
from jobs.evaluation.scores import write_scores
from jobs.evaluation.settings import with_settings
from jobs.models import Network, Remembering
from jobs.recipe import BenchmarkRun, read_recipe
from jobs.restoring.checkpoint import Trained, load_model, read_checkpoint
from jobs.restoring.restore import check_channels, on_device
from jobs.restoring.tiles import TILE, WHOLE, is_global, restore_blended, restore_grid, restore_plane
from jobs.training.origin import other_run
from jobs.variant import reference
from pipeline.depth import Bits
from pipeline.errors import UserError, printable
from pipeline.images import UnusableImageError, write_image
from pipeline.raw.manifest import write_table

# float32 (H, W, C) in [0, 1], and the side of the tiles that a benchmark wants or None -> the same shape
Restorer = Callable[[np.ndarray, int | None], np.ndarray]
PICTURES = 2  # pictures of each benchmark in the report
ITEMS, SHEET_COLUMNS, SHEET_WIDTH = 32, 6, 150  # a memory's sheet: most items, cells in a row, pixels of a cell


@dataclass(frozen=True)
class Scored:
    """One image: its scores, those of its degraded input, and the first pair with what was made of it."""

    key: str
    output: Score
    baseline: Score
    pair: Pair
    restored: np.ndarray


def identity(lq: np.ndarray, tile: int | None) -> np.ndarray:
    """The degraded input itself: its scores are the baseline rows of the papers."""
    return lq


def restorer(model: Network) -> Restorer:
    """A model, in eval mode, as a function on arrays: in the benchmark's tiles, or as the whole image."""

    def restore(lq: np.ndarray, tile: int | None) -> np.ndarray:
        return restore_plane(model, lq, whole=True) if tile is None else restore_grid(model, lq, tile)

    return restore


def score_folder(restore: Restorer, which: Benchmark, run: BenchmarkRun, bits: Bits = 8) -> list[Scored]:
    """Restore and score every image of a folder, in the order of their names.

    bits: the bits a channel that images may have, as in the model's task. Raises UserError for a folder without images, and
    for an image that cannot be used: a mean over fewer images than the published set would not be comparable.
    """
    folder = Path(run.data)
    found, passed_by = items(which, run)
    for line in passed_by:
        sys.stderr.write(f"not scored: {printable(line)}\n")
    scored = []
    console = Console(stderr=True)  # stdout is for the scores
    for item in track(found, f"{dataset_name(folder)} {which.name}", transient=True, console=console):
        try:
            pairs = item.pairs(which, bits)
            outputs = [restore(pair.lq, which.tile) for pair in pairs]
            scores = [which.score(output, pair) for output, pair in zip(outputs, pairs, strict=True)]
            baseline = [which.score(pair.lq, pair) for pair in pairs]
        except (UnusableImageError, UserError) as error:
            raise UserError(f"{item.files[0].path}: {error}") from None
        scored.append(Scored(item.key, mean(scores), mean(baseline), pairs[0], outputs[0]))
    return scored


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
    """The row of a table: means, the protocol, the degraded input's means and the paper's row where there is one."""
    return {
        **mean([s.output for s in scored]).json(),
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

    trust, store: see `load_model`. settings: see `with_settings`.
    """
    chosen = benchmark(run.benchmark)
    restore: Restorer = identity
    bits: Bits = 16  # whatever is there
    if model != "identity":
        trained = with_settings(load_model(model, runs, trust, store), settings)
        _check_fits(trained, [chosen])
        restore, bits = restorer(on_device(trained.model)), trained.bits
    dataset = dataset_of(run)
    row = summary(chosen, dataset, score_folder(restore, chosen, run, bits))
    return {"model": "+".join([model, *settings]), "benchmark": run.benchmark, "dataset": dataset, **row}


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
    benchmark. A model with a
    memory also gets pictures/memory/, which shows what each item responds to in the first image.
    """
    given, name = reference(recipe_name)
    if not (runs / name / "checkpoint.json").is_file():
        read_recipe(given)  # says that there is none of this name
    checkpoint = read_checkpoint(name, runs, store)
    recipe = read_recipe(given, checkpoint.pointer.get("overrides"))
    if other := other_run(recipe, checkpoint.pointer, checkpoint.root):
        again = " ".join(
            ["memoir train", given, *(f"--set {each}" for each in checkpoint.pointer.get("overrides", []))]
        )
        raise UserError(
            f"{runs / name}/checkpoint.json: of the run {checkpoint.pointer['run']}, which is not that of {recipe_name} here: "
            f"{other}; `{again}`"
        )
    trained = load_model(recipe_name, runs, trust, store)
    _check_fits(trained, [benchmark(run.benchmark) for run in recipe.evaluation.benchmarks])
    restore = restorer(on_device(trained.model))
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    pictures = runs / name / "pictures"
    for run in recipe.evaluation.benchmarks:
        chosen = benchmark(run.benchmark)
        dataset = dataset_of(run)
        scored = score_folder(restore, chosen, run, trained.bits)
        row = {**summary(chosen, dataset, scored), "weights": trained.sha256}
        whole = scored[0].restored if chosen.tile is None else None
        distance = blended_distance(trained.model, scored[0].pair.lq, whole)
        if distance is not None:
            row["blended"] = {"image": scored[0].key, "psnr": distance if math.isfinite(distance) else None}
        scores[f"{dataset}/{chosen.name}"] = row
        for image in scored:
            rows.append(
                {"dataset": dataset, "benchmark": chosen.name, "image": image.key}
                | image.output.values
                | {f"baseline_{key}": value for key, value in image.baseline.values.items()}
            )
        for image in scored[:PICTURES]:
            stem = f"{dataset}-{chosen.name}-{image.key}"
            for role, plane in (("input", image.pair.lq), ("output", image.restored), ("target", image.pair.gt)):
                write_image(pictures / role / f"{stem}.png", to_uint8(plane))
        if run is recipe.evaluation.benchmarks[0] and isinstance(trained.model, Remembering):
            for bank, sheet in memory_sheets(trained.model, scored[0].pair.lq).items():
                write_image(pictures / "memory" / f"{bank}.png", sheet)
    columns = list(dict.fromkeys(column for row in rows for column in row))  # null for a metric that a row lacks
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    write_table(runs / name / "scores.parquet", table)
    write_scores(runs / name, scores)
    return scores


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

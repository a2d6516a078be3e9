"""Two models, or two folders of restored images, on the same images: how they differ image by image.

The difference of two means says little where images differ more among themselves than the models do; the mean of the
differences, with its interval, says which is better and how sure that is.
"""

import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.evaluation.benchmark import Benchmark, benchmark
from jobs.evaluation.evaluate import dataset_of, scorer, to_uint8
from jobs.evaluation.interval import margin
from jobs.evaluation.items import Item, items
from jobs.evaluation.metrics import Metric
from jobs.evaluation.protocols import mean
from jobs.evaluation.scoring import Asked, Each, Image, Scored, score_image, score_runs
from jobs.recipe import BenchmarkRun
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y, with_channels
from pipeline.depth import unit
from pipeline.errors import UserError, some
from pipeline.images import SUFFIXES, UnusableImageError, read_image, write_image
from pipeline.layouts.files import files_under, safe_key, unusable

SHOWN = 2  # worst, and best, images of the sheet
CROP, ENLARGED, LINE = 96, 2, 22  # pixels a side of a crop, how many times it is shown, pixels of a line of text


def compare(
    a: str,
    b: str,
    run: BenchmarkRun,
    runs: Path,
    sheet: Path | None = None,
    trust: Collection[str] = (),
    store: str | None = None,
) -> dict[str, Any]:
    """Compare B with A on the images of a benchmark.

    a, b: `identity`, models as `evaluate` takes them, or folders of restored images, see `of_folder`. sheet: a PNG of crops of
    the images where B is worst and best against A, where the two differ most. trust, store: see `load_model`.
    Returns {"a", "b", "benchmark", "dataset", "protocol", "images", "metrics": {name: {"a", "b": the means; "difference": mean
    of B - A over images, "margin": half of its 95 % interval; "better", "worse", "equal": numbers of images in which B is}},
    "each": [{"image", "a", "b", "difference": by metric}], from B's worst to its best by the protocol's first metric}; null
    stands for what is not finite. Raises UserError unless both have the same images, and as `evaluate`.
    """
    which = benchmark(run.benchmark)
    sides = [_side(each, which, run, runs, trust, store) for each in (a, b)]
    scored_a, scored_b = (score_runs(side, [(which, run)], pixels=0)[0] for side in sides)
    metrics = which.protocol.metrics
    pairs = sorted(zip(scored_a, scored_b, strict=True), key=lambda pair: _gain(metrics[0], *pair))
    if sheet is not None:
        found = {item.key: item for item in items(which, run)[0]}
        chosen = [*pairs[:SHOWN], *pairs[SHOWN:][-SHOWN:]]
        shown = [(pair, [_pixels(side, which, found[pair[0].key]) for side in sides]) for pair in chosen]
        write_image(sheet, _sheet(metrics[0], a, b, shown))
    return {
        "a": a,
        "b": b,
        "benchmark": run.benchmark,
        "dataset": dataset_of(run),
        "protocol": str(which.protocol),
        "images": len(pairs),
        "metrics": {metric.name: _differences(metric, scored_a, scored_b) for metric in metrics},
        "each": [_each(metrics, *pair) for pair in pairs],
    }


def is_folder(given: str) -> bool:
    """Whether what stands for a model is a folder with images, which something else restored."""
    return any(path.suffix.lower() in SUFFIXES for path in files_under(Path(given)))


def _side(
    given: str, which: Benchmark, run: BenchmarkRun, runs: Path, trust: Collection[str], store: str | None
) -> Each:
    """What scores images with a model, or from a folder of restored images."""
    if is_folder(given):
        return of_folder(Path(given), which, items(which, run)[0])
    return scorer(given, [which], runs, trust, store)


# folders of restored images


def of_folder(folder: Path, which: Benchmark, found: Sequence[Item]) -> Each:
    """Score the restored images of a folder, which has one for each image of a benchmark and no other.

    An image is found by its key in the benchmark, or by the name of its input's file if no two inputs have the same. It has
    the input's size, or what the benchmark cuts off is cut off here; an RGB image goes to the benchmark's plane.
    Raises UserError for images that are missing, too many, or twice there, and for noise, whose three draws have no one result.
    """
    if which.kind == "noise":
        raise UserError(
            f"{which.name} restores three draws of noise of each image, and {folder} has one result: give models"
        )
    stems: dict[str, list[str]] = {}
    for item in found:
        stems.setdefault(safe_key(item.files[0].path.stem), []).append(item.key)
    keys = {stem: of_stem[0] for stem, of_stem in stems.items() if len(of_stem) == 1}
    keys |= {item.key: item.key for item in found}
    files: dict[str, Path] = {}
    others = []
    for path in files_under(folder):
        if unusable(path):
            continue
        names = (safe_key("-".join(path.relative_to(folder).with_suffix("").parts)), safe_key(path.stem))
        key = next((keys[name] for name in names if name in keys), None)
        if key is None:
            others.append(str(path.relative_to(folder)))
        elif key in files:
            raise UserError(f"{path}: {files[key]} is of the same image, {key}; leave one of the two")
        else:
            files[key] = path
    lacking = [item.key for item in found if item.key not in files]
    if lacking or others:
        faults = [f"{len(lacking)} of {len(found)} missing: {some(lacking)}"] if lacking else []
        faults += [f"{len(others)} that the benchmark has not: {some(others)}"] if others else []
        raise UserError(f"{folder}: not the images of {which.name}: {'; '.join(faults)}")
    return partial(map, partial(_read, which, files))


def _read(which: Benchmark, files: dict[str, Path], image: Image) -> list[Scored]:
    """Score an image with what a folder has as its result."""
    scored = []
    for asked in image:
        path = files[asked.item.key]

        def result(lq: np.ndarray, tile: int | None, path: Path = path) -> np.ndarray:
            try:
                pixels = read_image(path, bits=16)[0]
            except UnusableImageError as error:
                raise UnusableImageError(f"{path}: {error}") from None
            if which.kind == "pairs":
                pixels = with_channels(pixels, 3)
            else:
                pixels = rgb2ycbcr_y(pixels) if which.plane == "rgb2ycbcr" else rgb2gray(pixels)
            H, W = lq.shape[:2]
            over = pixels.shape[0] - H, pixels.shape[1] - W
            if over != (0, 0) and not (min(over) >= 0 and max(over) < _cut(which)):
                raise UnusableImageError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, its input has {W}x{H}")
            return unit(pixels[:H, :W])

        scored += score_image(result, 16, (asked,))
    return scored


def _cut(which: Benchmark) -> int:
    """Of which number a benchmark makes the sides multiples, by cutting at the right and below."""
    return int(which.level) if which.kind == "sr" else 4 if which.protocol.border == "modulo4" else 1


# differences


def _difference(a: float, b: float) -> float:
    return 0.0 if a == b else b - a  # two identical images: both are infinite


def _gain(metric: Metric, a: Scored, b: Scored) -> float:
    """By how much B is better than A on an image."""
    difference = _difference(a.output.values[metric.name], b.output.values[metric.name])
    return difference if metric.better == "higher" else -difference


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _differences(metric: Metric, scored_a: Sequence[Scored], scored_b: Sequence[Scored]) -> dict[str, Any]:
    """What `compare` says of a metric."""
    name = metric.name
    means = [mean([each.output for each in scored]).values[name] for scored in (scored_a, scored_b)]
    weights = [each.output.weights.get(name, 1.0) for each in scored_a]  # of the image's pixels, so the same for both
    each = [
        _difference(one.output.values[name], other.output.values[name])
        for one, other in zip(scored_a, scored_b, strict=True)
    ]
    gains = [_gain(metric, *pair) for pair in zip(scored_a, scored_b, strict=True)]
    finite = all(map(math.isfinite, each))
    return {
        "a": _finite(means[0]),
        "b": _finite(means[1]),
        "difference": math.fsum(w * d for w, d in zip(weights, each, strict=True)) / math.fsum(weights)
        if finite
        else None,
        "margin": margin(each, weights),
        "better": sum(gain > 0 for gain in gains),
        "worse": sum(gain < 0 for gain in gains),
        "equal": sum(gain == 0 for gain in gains),
    }


def _each(metrics: Sequence[Metric], a: Scored, b: Scored) -> dict[str, Any]:
    differences = {m.name: _difference(a.output.values[m.name], b.output.values[m.name]) for m in metrics}
    return {
        "image": a.key,
        "a": a.output.json(),
        "b": b.output.json(),
        "difference": {name: _finite(value) for name, value in differences.items()},
    }


# the sheet


def _pixels(side: Each, which: Benchmark, item: Item) -> Scored:
    """An image with its pixels."""
    return next(iter(side([(Asked(0, 0, which, item, True),)])))[0]


def _sheet(metric: Metric, a: str, b: str, shown: list[tuple[tuple[Scored, Scored], list[Scored]]]) -> np.ndarray:
    """Crops of input, A, B and target, a row for each image: uint8 (H, W, 3)."""
    side, gap = CROP * ENLARGED, 4
    width = 4 * (side + gap) + gap
    heads = ("input", f"A: {a}", f"B: {b}", "target")
    rows = [np.concatenate([_text(head, side + gap) for head in heads] + [_text("", gap)], axis=1)]
    for (scored_a, scored_b), pixels in shown:
        values = [each.output.values[metric.name] for each in (scored_a, scored_b)]
        texts = [metric.text(_finite(value)) for value in values]
        rows.append(_text(f"{scored_a.key}: {metric.title} A {texts[0]}, B {texts[1]}", width))
        cells = crops(pixels[0], pixels[1], _gain(metric, scored_a, scored_b))
        framed = [np.pad(_shown(cell, side), ((0, 0), (gap, 0), (0, 0)), constant_values=255) for cell in cells]
        rows.append(np.pad(np.concatenate(framed, axis=1), ((0, gap), (0, gap), (0, 0)), constant_values=255))
    return np.concatenate(rows)


def crops(a: Scored, b: Scored, gain: float) -> list[np.ndarray]:
    """A square of an image's input, A, B and target: where B's squared error is most below A's, or above it if gain < 0.

    a, b: with pixels. Returns four arrays, float32 (h, w, C), of at most CROP pixels a side.
    """
    gt = a.pair.gt
    errors = [np.square(each.restored.clip(0, 1) - gt).sum(axis=2, dtype=np.float64) for each in (a, b)]
    side = min(CROP, *gt.shape[:2])
    less = (errors[0] - errors[1]) * (-1 if gain < 0 else 1)
    sums = np.pad(less, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(windows.argmax(), windows.shape)
    return [plane[y : y + side, x : x + side] for plane in (a.pair.lq, a.restored, b.restored, gt)]


def _shown(crop: np.ndarray, side: int) -> np.ndarray:
    """A crop at the size of a cell, as RGB."""
    pixels = with_channels(to_uint8(crop), 3)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_NEAREST)


def _text(text: str, width: int) -> np.ndarray:
    """A line of text, cut where it is too long; letters outside ASCII become question marks."""
    line = np.full((LINE, width, 3), 255, np.uint8)
    written = text.encode("ascii", "replace").decode()[: max(0, (width - 8) // 7)]
    cv2.putText(line, written, (4, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30), 1, cv2.LINE_AA)
    return line

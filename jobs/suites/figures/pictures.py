"""The figures of visual comparisons: parts of named images, degraded, restored and as they should be, with their scores."""

from collections.abc import Callable

import numpy as np

from jobs.evaluation.benchmark import Benchmark, benchmark
from jobs.evaluation.items import Item, items
from jobs.evaluation.metrics import METRICS
from jobs.evaluation.protocols import Score
from jobs.evaluation.published import Picture
from jobs.evaluation.scoring import restorer
from jobs.restoring.restore import on_device
from jobs.suites.figures.drawing import Drawing
from jobs.suites.sets import lacking, run_of
from pipeline.errors import UserError

SIDE = 96  # pixels a side of a crop in the middle of an image whose crop is not known
Restore = Callable[[np.ndarray, int | None], np.ndarray]


def compare(drawing: Drawing) -> None:
    """The pictures of the figure that are at hand: whole and large, target, input and, with a model, its output."""
    restore, name = _restorer(drawing)
    rows: list[list[str]] = []
    for picture in drawing.figure.pictures:
        line = lacking(picture.set, drawing.places.datasets)
        if line is not None:
            drawing.lacking.append(line)
            continue
        which = benchmark(picture.benchmark)
        item = _item(picture, which, drawing)
        pair = item.pairs(which, 8)[0]
        x, y, w, h = _crop(picture, pair.gt)
        part = np.s_[y : y + h, x : x + w]
        scores = {"input": which.score(pair.lq, pair)}
        cells = [(f"{picture.set} {item.key}", _framed(pair.gt, (x, y, w, h))), ("ground truth", pair.gt[part])]
        cells.append((f"input  {_text(scores['input'])}", pair.lq[part]))
        if restore is not None:
            output = restore(pair.lq, which.tile)
            scores[name] = which.score(output, pair)
            cells.append((f"{name}  {_text(scores[name])}", output[part]))
        drawing.sheet(f"{picture.set}-{item.key}-{picture.benchmark}.png", cells, len(cells), least=360)
        rows += [
            [picture.set, item.key, method, "printed", *text.split("/")] for method, text in picture.printed.items()
        ]
        rows += [[picture.set, item.key, method, "here", *_text(each).split("/")] for method, each in scores.items()]
        drawing.ran.append(f"{picture.set}, {item.key}, {which.name}: {which.protocol}")
        if picture.printed:
            first = next(iter(picture.printed))
            drawing.ran.append(
                f"{item.key}: the input scores {_text(scores['input'])}, printed {picture.printed[first]} ({first})"
            )
    if not rows:
        raise UserError(f"no picture of the figure is at hand: {'; '.join(drawing.lacking)}")
    drawing.csv("scores.csv", ["set", "image", "method", "source", "PSNR", "SSIM"], rows)


def _restorer(drawing: Drawing) -> tuple[Restore | None, str]:
    """The figure's model as a function on arrays, and its name; None where it is not trained."""
    if drawing.model == "identity":
        return None, ""
    try:
        trained = drawing.trained()
    except UserError as error:
        if drawing.model is not None:
            raise
        drawing.lacking.append(f"weights: {error}")
        return None, ""
    channels = trained.model.in_channels
    if any(benchmark(picture.benchmark).channels != channels for picture in drawing.figure.pictures):
        raise UserError(f"{trained.name}: takes images of {channels} channels, and the figure is of others")
    return restorer(on_device(trained.model)), trained.name


def _item(picture: Picture, which: Benchmark, drawing: Drawing) -> Item:
    found = items(which, run_of(picture.set, picture.benchmark, drawing.places.datasets))[0]
    if picture.key is None:
        return found[0]
    named = [item for item in found if item.key.startswith(picture.key)]
    if not named:
        raise UserError(
            f"{picture.set}: no image {picture.key}; there are {', '.join(item.key for item in found[:5])}, ..."
        )
    return named[0]


def _text(score: Score) -> str:
    """PSNR/SSIM as papers print them."""
    similarity = "ssim" if "ssim" in score.values else "ssim_3d"
    return "/".join(METRICS[name].text(score.values[name]) for name in ("psnr", similarity))


def _crop(picture: Picture, image: np.ndarray) -> tuple[int, int, int, int]:
    """The part that is shown large: the figure's, or the middle where that is not known or not in an image of this size."""
    h, w = image.shape[:2]
    if picture.crop is not None and picture.crop[0] + picture.crop[2] <= w and picture.crop[1] + picture.crop[3] <= h:
        return picture.crop
    side = min(SIDE, h, w)
    return (w - side) // 2, (h - side) // 2, side, side


def _framed(image: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """The image in colour with a red frame around the part."""
    x, y, w, h = crop
    framed = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    for part in (
        np.s_[y : y + h, x : x + 2],
        np.s_[y : y + h, x + w - 2 : x + w],
        np.s_[y : y + 2, x : x + w],
        np.s_[y + h - 2 : y + h, x : x + w],
    ):
        framed[part] = (1, 0, 0)
    return framed


DRAW = {"compare": compare}

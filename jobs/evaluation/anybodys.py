"""Scores of images that anybody restored: a folder of results against a folder of targets, paired by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jobs.evaluation.benchmark import Benchmark, Pair, benchmark
from jobs.evaluation.interval import margins
from jobs.evaluation.perceptual import Perceptual
from jobs.evaluation.protocols import GRAY_FLOAT, PAIRS, Y_MATLAB, Score, mean
from pipeline.degradations.colour import rgb2ycbcr_y
from pipeline.degradations.scale import modcrop
from pipeline.depth import unit
from pipeline.errors import UserError, nearest, some
from pipeline.images import UnusableImageError, read_image
from pipeline.layouts.files import files_under, natural, unusable


def protocols(scale: int | None) -> dict[str, Benchmark]:
    """The benchmarks that score given images, by the name of their protocol. scale: the factor of super-resolution."""
    planes = [
        Benchmark("y-matlab", "sr", scale or 1, Y_MATLAB, "rgb2ycbcr"),
        Benchmark("gray-float", "noise", 0, GRAY_FLOAT, "rgb2gray"),
    ]
    return {each.protocol.name: each for each in [*planes, *map(benchmark, PAIRS)]}


def score_images(
    output: Path,
    target: Path,
    *,
    names: Sequence[str] = (),
    scale: int | None = None,
    mask: Path | None = None,
    perceptual: Sequence[Perceptual] = (),
) -> dict[str, Any]:
    """Score the images of one folder against those of the same names in another.

    A name is the path in the folder without the suffix. names: of protocols; all that fit each image if there are none, see
    `misfit`, but those of one data set that move an image onto its target, or that are of videos. scale: of super-resolution; targets are then cut to its multiples. mask: a folder of masks, for protocols with
    regions. perceptual: metrics of networks, see jobs.evaluation.perceptual.
    Returns {"images": their number, "unpaired": {"output": paths without a target, "target": paths without an output},
    "protocols": {name: the means, `margin`, `protocol`}, "perceptual": {name: mean, margin, lower_better}, "each": by image
    the figures of each protocol}. Raises UserError for names that no protocol has, folders without pairs, images that
    cannot be used, and if no protocol fits all.
    """
    known = protocols(scale)
    for name in names:
        if name not in known:
            raise UserError(f"no protocol {name!r}: {nearest(name, list(known))}")
    outputs, targets = named_images(output), named_images(target)
    masks = named_images(mask) if mask else {}
    paired = sorted(outputs.keys() & targets.keys(), key=natural)
    if not paired:
        raise UserError(
            f"{output} and {target}: no two images have one name; {_first(outputs, output)}, {_first(targets, target)}"
        )
    general = [name for name, which in known.items() if not (which.protocol.aligned or which.protocol.video)]
    fitting = {name: known[name] for name in names or general}
    each: dict[str, dict[str, Score]] = {}
    felt: dict[str, list[float]] = {metric.name: [] for metric in perceptual}
    for key in track(paired, "score", transient=True, console=Console(stderr=True)):
        files = [outputs[key], targets[key], *([masks[key]] if key in masks else [])]
        try:
            images = [read_image(path, bits=16)[0] for path in files]
            unfit = {name: why for name, which in fitting.items() if (why := misfit(which, images, scale))}
            if unfit and (names or len(unfit) == len(fitting)):
                raise UserError("; ".join(dict.fromkeys(unfit.values())))
            fitting = {name: which for name, which in fitting.items() if name not in unfit}
            pairs = {name: _pair(which, images) for name, which in fitting.items()}
            each[key] = {name: fitting[name].score(pair.lq, pair) for name, pair in pairs.items()}
            for metric in perceptual:
                felt[metric.name].append(metric.measure(*images[:2]))
        except (UnusableImageError, UserError) as error:
            raise UserError(f"{files[0]}: {error}") from None
    rows = {}
    for name, which in fitting.items():
        scores = [of_image[name] for of_image in each.values()]
        rows[name] = {**mean(scores).json(), "margin": margins(scores), "protocol": str(which.protocol)}
    return {
        "images": len(paired),
        "unpaired": {
            "output": [str(path) for name, path in outputs.items() if name not in targets],
            "target": [str(path) for name, path in targets.items() if name not in outputs],
        },
        "protocols": rows,
        "perceptual": {metric.name: metric.summary(felt[metric.name]) for metric in perceptual},
        "each": {
            key: {name: score.json() for name, score in scores.items() if name in rows}
            | {name: {name: values[place]} for name, values in felt.items()}
            for place, (key, scores) in enumerate(each.items())
        },
    }


def named_images(folder: Path) -> dict[str, Path]:
    """The images below a folder by their paths in it without suffix, in the order of their names.

    Raises UserError for no folder, for one without images, and for two images of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder of images")
    found: dict[str, Path] = {}
    for path in files_under(folder):
        if unusable(path):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{path}: {found[name].name} has the same name; leave one of the two")
        found[name] = path
    if not found:
        raise UserError(f"{folder}: no images in it")
    return found


def _first(images: dict[str, Path], folder: Path) -> str:
    return f"in {folder.name} e.g. {some(list(images), 1)}"


def misfit(which: Benchmark, images: Sequence[np.ndarray], scale: int | None) -> str | None:
    """Why a protocol is not one for these images (output, target, and the mask if there is one); None if it is."""
    protocol, channels = which.protocol, {image.shape[2] for image in images[:2]}
    if protocol.border == "scale" and scale is None:
        return (
            f"{protocol.name} leaves out as many pixels at the border as the factor of super-resolution: give --scale"
        )
    if protocol.colour == "grey" and channels != {1}:
        return f"{protocol.name} is of grey images: give the plane that was restored"
    if protocol.colour.endswith("RGB") and channels != {3}:
        return f"{protocol.name} is of RGB images, and one of output and target is grey"
    if protocol.regions and len(images) < 3:
        return f"{protocol.name} has regions, and there is no mask of this name: give --mask"
    return None


def _pair(which: Benchmark, images: Sequence[np.ndarray]) -> Pair:
    """What a benchmark scores: the output in the place of the degraded input. Raises UnusableImageError for sizes that differ."""
    if which.kind == "pairs":
        return which.pair(*images[: 3 if which.protocol.regions else 2])
    output, target = images[:2]
    if which.plane == "rgb2ycbcr":
        output, target = (rgb2ycbcr_y(modcrop(image, int(which.level))) for image in (output, target))
    if output.shape != target.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (output, target))
        raise UnusableImageError(f"{sizes} pixels, an output and its target are of one size")
    return Pair(unit(output), unit(target))

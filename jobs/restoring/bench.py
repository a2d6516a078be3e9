"""How quickly a model restores images on this machine: `memoir bench restore`."""

import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from jobs.limit import Convolutions, alone
from jobs.restoring.checkpoint import load_model
from jobs.restoring.restore import Asked, InBf16, check_channels, files_of, on_device, restore_files, restore_image
from pipeline.cpus import available_cpus
from pipeline.depth import unit
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, read_picture, write_image

MOST = 64  # images of a folder

T = TypeVar("T")


class Rate(NamedTuple):
    """images, megapixels: that were restored from file to file; seconds: for all of them.

    Of one of them, in milliseconds: read, network (everything between pixels and pixels, with all threads), write, and
    convolutions, each alone in the quicker layout. restored: its megapixels. off: levels of 8 bits (root of the mean square) that
    it differs from the one in fp32, unless it is that.
    """

    images: int
    megapixels: float
    seconds: float
    restored: float
    read: float
    network: float
    write: float
    convolutions: float
    threads: int
    off: float | None = None


def bench_restore(
    model: str,
    source: Path,
    runs: Path,
    *,
    seconds: float,
    precision: Asked = "fp32",
    trust: Collection[str] = (),
    store: str | None = None,
) -> Rate:
    """Restore the first MOST images of a folder, again and again for about so long; nothing is kept.

    model, trust, store: see `load_model`; precision: `on_device`. Models of super-resolution take the images as they are, as if enlarged already.
    Raises UserError for what `memoir restore` cannot restore.
    """
    if not source.is_dir():
        raise UserError(f"{source}: not a folder; give one with the images to restore")
    trained = load_model(model, runs, trust, store)
    check_channels(trained)
    network = on_device(trained.model, precision)
    with tempfile.TemporaryDirectory() as place:
        pairs, problems = files_of(source, Path(place) / "out")
        if problems:
            raise UserError(f"{problems[0][0]}: {problems[0][1]}; give a folder of images alone")
        pairs = pairs[:MOST]
        try:
            read, pixels = _timed(lambda: read_picture(pairs[0][0])[0].pixels)
        except UnusableImageError as error:
            raise UserError(f"{pairs[0][0]}: {error}") from None
        colour = trained.task["colour"]
        restored = restore_image(network, pixels, colour)  # not timed: the first is slower than the others
        off = None
        if isinstance(network, InBf16):
            exact = unit(restore_image(network.network, pixels, colour))
            off = 255 * float(np.sqrt(np.square(unit(restored) - exact, dtype=np.float64).mean()))
        network_ms = median(_timed(lambda: restore_image(network, pixels, colour))[0] for _ in range(3))
        write, _ = _timed(lambda: write_image(Path(place) / "one.png", restored))
        with Convolutions() as convolutions:
            restore_image(network, pixels, colour)
        shapes = max(len(convolutions.found), 1)
        floor = alone(convolutions.found, seconds / 8 / shapes, next(network.parameters()).device.type)
        passes = max(1, round(seconds / 1e-3 / network_ms / len(pairs)))
        began = time.perf_counter()
        for _ in range(passes):
            for each in restore_files(trained, network, pairs):
                if each.problem is not None:
                    raise UserError(f"{each.source}: {each.problem}")
        took = time.perf_counter() - began
    area = passes * sum(_megapixels(read_picture(path)[0].pixels) for path, _ in pairs)
    one = _megapixels(pixels)
    return Rate(passes * len(pairs), area, took, one, read, network_ms, write, floor, torch.get_num_threads(), off)


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    done = action()
    return 1e3 * (time.perf_counter() - began), done


def _megapixels(pixels: np.ndarray) -> float:
    return pixels.shape[0] * pixels.shape[1] / 1e6


def told(found: Rate) -> list[str]:
    """In words."""
    rate = found.megapixels / found.seconds
    lines = [
        f"{rate:,.3f} megapixels/s from file to file: {found.images} images of {found.megapixels / found.images:.2f} megapixels "
        f"in {found.seconds:,.1f} s, on {available_cpus()} CPUs",
        f"one of {found.restored:.2f} megapixels: read in {found.read:,.0f} ms, restored in {found.network:,.0f} "
        f"({found.threads} threads), written in {found.write:,.0f}",
    ]
    limit = found.restored / (found.convolutions / 1e3)
    lines.append(
        f"its convolutions alone take {found.convolutions:,.0f} ms, which would be {limit:,.3f} megapixels/s: from file to "
        f"file it is {rate / limit:.0%} of that limit"
    )
    if found.off is not None:
        lines.append(
            f"in bf16 it differs from the image in fp32 by {found.off:.2f} of 255 levels (root of the mean square)"
        )
    return lines

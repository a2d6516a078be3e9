"""What the peers share: the pairs that they store, and how a DataLoader's batches are opened."""

import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

PATCH, BATCH = 256, 32
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]

Batches = Generator[tuple[torch.Tensor, torch.Tensor], None, None]  # without end: gt and lq (B, H, W, C), as stored
Open = Callable[[], Batches]


class Pair(NamedTuple):
    """What the peers store. gt, lq: RGB, uint8 or uint16 (side, side, 3). gt_png, lq_png: the same as files."""

    key: str
    gt: np.ndarray
    lq: np.ndarray
    gt_png: bytes
    lq_png: bytes


def crop(gt: Any, lq: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same random square of both."""
    top, left = corner(gt.shape[:2])
    place = slice(top, top + PATCH), slice(left, left + PATCH)
    return gt[place], lq[place]


def corner(size: tuple[int, ...]) -> tuple[int, int]:
    """Top and left of a random square."""
    top, left = (random.randrange(side - PATCH + 1) for side in size)
    return top, left


def endless(loader: Any) -> Open:
    """Epoch after epoch of a loader's batches, collated by torch."""

    def run() -> Batches:
        while True:
            yield from loader

    return run


def shuffled(data: Dataset, cores: int) -> Open:
    """torch's DataLoader of images by their number."""
    sampler = RandomSampler(data, num_samples=epochs(cores) * len(data))  # type: ignore[arg-type]
    return endless(DataLoader(data, BATCH, sampler=sampler, drop_last=True, num_workers=workers(cores)))


def workers(cores: int) -> int:
    """Processes of a DataLoader: for one core none, for they would share it with this one."""
    return cores if cores > 1 else 0


def epochs(cores: int) -> int:
    """How often the pairs come in an epoch, at whose beginning a loader starts its processes."""
    return 100 if workers(cores) else 1


def png(pixels: np.ndarray) -> bytes:
    """RGB as a PNG file."""
    return cv2.imencode(".png", pixels[..., ::-1], PNG)[1].tobytes()


def decoded(data: Any) -> np.ndarray:
    """An image file's bytes as RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
    assert pixels is not None
    return pixels


def write_png(pairs: list[Pair], place: Path) -> list[tuple[str, str]]:
    """A PNG file for each image: the paths of gt and lq."""
    for role in ("gt", "lq"):
        (place / role).mkdir()
        for pair in pairs:
            (place / role / f"{pair.key}.png").write_bytes(getattr(pair, f"{role}_png"))
    return [(str(place / "gt" / f"{pair.key}.png"), str(place / "lq" / f"{pair.key}.png")) for pair in pairs]

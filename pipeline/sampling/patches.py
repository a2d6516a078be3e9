"""The square patches of an image that are samples. Every epoch's number of samples is known and exact."""

from dataclasses import dataclass

import numpy as np

from pipeline.keyed import digest64, hashed

VIEWS = 8  # flips and rotations of a square


@dataclass(frozen=True)
class Grid:
    """The patches at every `stride` pixels, each in its 8 views if dihedral. patch, stride: pixels, above 0."""

    patch: int
    stride: int
    dihedral: bool = True

    def counts(self, sizes: np.ndarray) -> np.ndarray:
        """Samples of images, int64 (n,). sizes: int64 (n, 2), heights and widths.

        A side that is shorter than a patch has one place, at 0: the loader mirrors what the patch lacks.
        """
        cells = np.maximum(0, sizes - self.patch) // self.stride + 1
        return cells[:, 0] * cells[:, 1] * (VIEWS if self.dihedral else 1)

    def place(
        self, number: np.ndarray, sizes: np.ndarray, sample: np.ndarray, seed: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples lie in their images: (top, left, view), int64 (k,) each; the same in every epoch.

        number: int64 (k,), each sample's number within its image, below its count. sizes: int64 (k, 2), the sizes of
        these images. sample, seed, epoch: as in RandomCrops; they have no effect here.
        """
        cell, view = np.divmod(number, VIEWS if self.dihedral else 1)
        columns = np.maximum(0, sizes[:, 1] - self.patch) // self.stride + 1
        row, column = np.divmod(cell, columns)
        return row * self.stride, column * self.stride, view


@dataclass(frozen=True)
class RandomCrops:
    """`crops` patches of each image and epoch, at places drawn anew in each epoch, in a view drawn too if dihedral.

    A draw depends on (seed, epoch, sample) only: not on the rank that makes it, nor on the samples before it.
    """

    patch: int
    crops: int = 1
    dihedral: bool = True

    def counts(self, sizes: np.ndarray) -> np.ndarray:
        """As Grid.counts."""
        return np.full(len(sizes), self.crops, np.int64)

    def place(
        self, number: np.ndarray, sizes: np.ndarray, sample: np.ndarray, seed: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Grid.place. sample: int64 (k,), the number of each in the whole enumeration."""
        place = hashed(digest64("crop", seed, epoch), sample)
        half = np.uint64(32)
        room = np.maximum(1, sizes - self.patch + 1).astype(np.uint64)  # below 2^32: the products fit
        top = ((place >> half) * room[:, 0]) >> half
        left = ((place & np.uint64(2**32 - 1)) * room[:, 1]) >> half
        view = place % np.uint64(VIEWS if self.dihedral else 1)  # the lowest bits, which decide nothing else
        return top.astype(np.int64), left.astype(np.int64), view.astype(np.int64)

"""PNG files, and PNG in lmdb: images by their number, in torch's DataLoader."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from .common import Open, Pair, crop, decoded, shuffled, write_png


def folder_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """Files, as most repositories have them."""
    paths = write_png(pairs, place)

    class Files(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return crop(*(cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in paths[i]))

    return shuffled(Files(), cores)


def lmdb_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """BasicSR's PairedImageDataset with io_backend lmdb, in uint8."""
    import lmdb

    for role in ("gt", "lq"):
        environment = lmdb.open(str(place / f"{role}.lmdb"), map_size=2**34)
        with environment.begin(write=True) as transaction:
            for pair in pairs:
                transaction.put(pair.key.encode(), getattr(pair, f"{role}_png"))
        environment.close()
    keys = [pair.key.encode() for pair in pairs]

    @cache
    def clients() -> list[Any]:  # opened by the process that reads: lmdb's do not survive a fork
        return [
            lmdb.open(str(place / f"{role}.lmdb"), readonly=True, lock=False, readahead=False) for role in ("gt", "lq")
        ]

    class Lmdb(Dataset):
        def __len__(self) -> int:
            return len(keys)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            both = []
            for client in clients():
                with client.begin() as transaction:
                    both.append(decoded(transaction.get(keys[i])))
            return crop(*both)

    return shuffled(Lmdb(), cores)

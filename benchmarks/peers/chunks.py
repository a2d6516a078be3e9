"""litdata: chunks of 64 MB."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .common import BATCH, Open, Pair, crop, decoded, endless, epochs, workers, write_png


def litdata_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """Chunks of the PNG files' bytes."""
    write_chunks(pairs, place, file_bytes)
    return litdata(decoded, cores, str(place), subsample=float(epochs(cores)))


def litdata_of_arrays(pairs: list[Pair], place: Path, cores: int) -> Open:
    """Chunks of raw arrays."""
    write_chunks(pairs, place, file_pixels)
    return litdata(lambda pixels: pixels, cores, str(place), subsample=float(epochs(cores)))


def write_chunks(pairs: list[Pair], place: Path, read: Callable) -> None:
    """read: paths of gt and lq -> what is stored of them."""
    from litdata import optimize  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as files:
        paths = write_png(pairs, Path(files))
        optimize(read, paths, str(place), chunk_bytes="64MB", num_workers=1, verbose=False)


def litdata(decode: Callable, cores: int, source: str, *, drop_last: bool = True, **options: Any) -> Open:
    """A StreamingDataset. options: as it takes them."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Chunks(StreamingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return crop(*map(decode, super().__getitem__(i)))

    # Its default decodes a window of samples anew for each shuffled one: 4 times slower here with raw arrays.
    data = Chunks(source, shuffle=True, drop_last=drop_last, batch_decode=False, **options)
    return endless(StreamingDataLoader(data, batch_size=BATCH, num_workers=workers(cores), drop_last=drop_last))


def file_bytes(paths: tuple[str, str]) -> tuple[bytes, ...]:
    """The bytes of files; at module level, so that litdata's worker can import it."""
    return tuple(Path(path).read_bytes() for path in paths)


def file_pixels(paths: tuple[str, str]) -> tuple[np.ndarray, ...]:
    """The decoded images of files, as file_bytes."""
    return tuple(decoded(data) for data in file_bytes(paths))

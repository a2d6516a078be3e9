"""Grain and SPDL: loaders whose work is done by threads."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .common import BATCH, PATCH, Batches, Open, Pair, corner, crop, decoded, write_png


def grain_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """ArrayRecord of two PNG files each, after the length of the first."""

    def parse(record: bytes) -> tuple[np.ndarray, np.ndarray]:
        both = memoryview(record)[4:]
        end = int.from_bytes(record[:4], "little")
        return crop(decoded(both[:end]), decoded(both[end:]))

    records = [len(pair.gt_png).to_bytes(4, "little") + pair.gt_png + pair.lq_png for pair in pairs]
    return grain(records, place, parse, cores)


def grain_of_arrays(pairs: list[Pair], place: Path, cores: int) -> Open:
    """ArrayRecord of two raw arrays each."""
    shape, dtype = (2, *pairs[0].gt.shape), pairs[0].gt.dtype

    def parse(record: bytes) -> tuple[np.ndarray, np.ndarray]:
        return crop(*np.frombuffer(record, dtype).reshape(shape))

    return grain([pair.gt.tobytes() + pair.lq.tobytes() for pair in pairs], place, parse, cores)


def grain(records: list[bytes], place: Path, parse: Callable, cores: int) -> Open:
    """Grain's Dataset over one ArrayRecord file, shuffled and repeated as its documentation has it."""
    import grain as package  # type: ignore[import-not-found]
    from array_record.python.array_record_module import ArrayRecordWriter  # type: ignore[import-not-found]

    path = str(place / "pairs.array_record")
    # Grain wants groups of one record; the default compression would be for nothing with PNG, and slower with arrays.
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()

    def run() -> Batches:
        source = package.sources.ArrayRecordDataSource([path])
        data = package.MapDataset.source(source).seed(random.getrandbits(31)).shuffle().repeat().map(parse)
        options = package.ReadOptions(num_threads=cores, prefetch_buffer_size=2 * BATCH)
        for gt, lq in data.to_iter_dataset(options).batch(BATCH):
            yield torch.from_numpy(gt), torch.from_numpy(lq)

    return run


def spdl_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """SPDL's pipeline over files, with the decoder that the others have."""

    def load(paths: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        return crop(*(decoded(Path(path).read_bytes()) for path in paths))

    def collate(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.stack(role)) for role in zip(*samples, strict=True))

    return spdl(write_png(pairs, place), load, collate, cores)


def spdl_of_png_by_ffmpeg(pairs: list[Pair], place: Path, cores: int) -> Open:
    """The same with SPDL's own decoder, FFmpeg's, which crops too; the images of a batch are copied into one array."""
    import spdl.io as io  # type: ignore[import-not-found]

    try:
        io.demux_image(pairs[0].gt_png)
    except RuntimeError as error:
        raise ImportError(f"SPDL finds no libraries of FFmpeg: {error}"[:200]) from None
    size = pairs[0].gt.shape[:2]

    def load(paths: tuple[str, str]) -> list[Any]:
        top, left = corner(size)
        cut = f"crop={PATCH}:{PATCH}:{left}:{top}" if size != (PATCH, PATCH) else None
        return [io.decode_packets(io.demux_image(path), filter_desc=cut) for path in paths]

    def collate(samples: list[list[Any]]) -> tuple[torch.Tensor, ...]:
        return tuple(io.to_torch(io.convert_frames(list(role))) for role in zip(*samples, strict=True))

    return spdl(write_png(pairs, place), load, collate, cores)


def spdl(paths: list[tuple[str, str]], load: Callable, collate: Callable, cores: int) -> Open:
    """SPDL's pipeline: as many threads as there are cores load, and one more makes batches."""
    from spdl.pipeline import PipelineBuilder  # type: ignore[import-not-found]

    def source() -> Iterator[tuple[str, str]]:
        while True:
            yield from random.sample(paths, len(paths))

    def run() -> Batches:
        builder = PipelineBuilder().add_source(source()).pipe(load, concurrency=cores)
        pipeline = builder.aggregate(BATCH).pipe(collate).add_sink(2).build(num_threads=cores + 1)
        with pipeline.auto_stop():
            yield from pipeline

    return run

"""How fast a built dataset is loaded on this machine, and whether it keeps a device busy."""

import itertools
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import UserError
from pipeline.loading.loader import TORCH, Loader, Position
from pipeline.loading.pool import Batch
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards.format import read_shards_json

SOURCE = 2**28  # bytes that `memcpy` copies from, more than caches hold

Batches = Generator[tuple[Position, Batch], None, None]


def bench_load(
    folder: Path,
    split: str = "train",
    *,
    sampling: Grid | RandomCrops,
    batch: int = 32,
    threads: int = 1,
    seconds: float = 5,
    step_ms: float = 5,
    strict: bool = False,
) -> dict[str, Any]:
    """Measure the loader on a built dataset: for some seconds as fast as it can, and for as many beside a device.

    folder, split, sampling, batch, threads: as `Loader` takes them. step_ms: the time that the device takes for a batch.
    strict: whether what `Loader.notes` tells is an error.
    Returns "notes", see `Loader.notes`; for the run without a device "batches", "samples" (without padding), "bytes"
    (of their planes), "seconds", "cpu_seconds" of all threads, "samples_per_second" and "bytes_per_second"; for comparison
    "memcpy_bytes_per_second", see `memcpy`, and "share_of_memcpy"; "stall", see `stall`, with its "step_ms". Files that
    are not in the page cache are read within the run; its first batch is not counted.
    Raises UserError for a folder, a split or a patch that `Loader` refuses, and what `strict` does.
    """
    loader = Loader(folder, split, batch=batch, sampling=sampling, threads=threads)
    if strict and loader.notes:
        raise UserError(f"{folder}: {loader.notes[0]}; lower --patch, or leave out --strict")
    shards = [shard["name"] for shard in read_shards_json(folder)["shards"] if shard["split"] == split]
    source = shard_bytes([folder / split / name for name in shards])
    size = batch_bytes(loader.cut(Position()))
    before = memcpy(source, size, seconds / 10)
    with closing(loader.batches()) as batches:
        next(batches)[1].hand_back()
        run = deliver(batches, seconds)
    limit = float(np.median(before + memcpy(source, size, seconds / 10)))
    with closing(loader.batches()) as batches:
        next(batches)[1].hand_back()
        stalled = stall(batches, seconds, step_ms)
    rate = run["bytes"] / run["seconds"]
    return {
        "notes": loader.notes,
        **run,
        "samples_per_second": run["samples"] / run["seconds"],
        "bytes_per_second": rate,
        "memcpy_bytes_per_second": limit,
        "share_of_memcpy": rate / limit,
        "step_ms": step_ms,
        "stall": stalled,
    }


def batch_bytes(batch: dict[str, Tensor]) -> int:
    """Bytes of a batch's planes, padding included."""
    return sum(plane.nbytes for plane in batch.values() if plane.dtype in TORCH.values())


def deliver(batches: Batches, seconds: float) -> dict[str, Any]:
    """Take batches for some seconds, at least one: "batches", "samples", "bytes", "seconds", "cpu_seconds" of `bench_load`."""
    taken = samples = size = 0
    cpu, began = time.process_time(), time.perf_counter()
    while True:
        _, batch = next(batches)
        true = int(batch["weight"].sum())
        taken += 1
        samples += true
        size += batch_bytes(batch) * true // len(batch["weight"])
        batch.hand_back()
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            break
    used = time.process_time() - cpu
    return {"batches": taken, "samples": samples, "bytes": size, "seconds": elapsed, "cpu_seconds": used}


def stall(batches: Batches, seconds: float, step_ms: float) -> float:
    """The share of the time, 0..1, that a device waits for batches. It takes step_ms for each; the CPU is free meanwhile."""
    waited = 0.0
    began = now = time.perf_counter()
    while now - began < seconds or now == began:
        asked = time.perf_counter()
        next(batches)[1].hand_back()
        waited += time.perf_counter() - asked
        if step_ms:
            time.sleep(step_ms / 1000)
        now = time.perf_counter()
    return waited / (now - began)


def shard_bytes(paths: list[Path]) -> np.ndarray:
    """The contents of these files one after another, the first SOURCE bytes: uint8 (n,), in memory."""
    parts: list[np.ndarray] = []
    left = SOURCE
    for path in paths:
        parts.append(np.fromfile(path, np.uint8, count=min(left, path.stat().st_size)))
        left -= parts[-1].size
        if not left:
            break
    return np.concatenate(parts)


def memcpy(source: np.ndarray, size: int, seconds: float) -> list[float]:
    """Bytes per second of `copies` into one buffer, measured for some seconds: no loader can exceed it in one thread."""
    rates: list[float] = []
    with closing(copies(source, size)) as copied:
        next(copied)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not rates:
            began = time.perf_counter()
            next(copied)
            rates.append(size / (time.perf_counter() - began))
    return rates


def copies(source: np.ndarray, size: int, number: int = 1) -> Generator[np.ndarray, None, None]:
    """Yield copies of `size` bytes without end, made in one piece by one thread into `number` buffers in turn.

    source: uint8 (n,). Its bytes are copied in turn, so they come from memory if it is larger than the caches.
    """
    if size > source.size:
        source = np.resize(source, size)
    buffers = itertools.cycle([np.ones(size, np.uint8) for _ in range(number)])  # ones, to have the page faults now
    while True:
        for at in range(0, source.size - size + 1, size):
            buffer = next(buffers)
            buffer[:] = source[at : at + size]
            yield buffer

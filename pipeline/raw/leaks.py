"""Images that stand in more than one split, which would make a test score a memory test."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.degradations.colour import rgb2gray
from pipeline.depth import peak
from pipeline.errors import UserError

# JPEG of quality 50, noise of sigma 10 and half the size alter at most 4 bits in 1,717 of 1,719 copies of photographs.
# Two photographs differ in 14 bits or more (of 164,000 pairs), but two patches of clear sky in as few as 4.
NEAR = 4  # bits of 64 in which the perceptual hashes of two versions of one image differ at the most
BANDS, BAND_BITS = 5, 13  # two hashes that differ in at most NEAR bits agree in at least one of these bands
FLAT = 32.0  # the largest DCT value of a ramp over three grey levels
AT_ONCE = 1 << 22  # comparisons of hashes, which bounds their memory

LEAKS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # exact: the same bytes; near: the same picture, by its perceptual hash
        ("bits", pa.int32()),  # how many bits of the perceptual hashes differ
        *((f"{name}_{side}", pa.string()) for side in "ab" for name in ("dataset", "split", "path", "part")),
    ]
)


def read_leaks(path: Path) -> pa.Table:
    """The table of leaks that `memoir ingest` wrote. Raises UserError if there is none, or another file in its place."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no table of leaks; run `memoir ingest` first") from None
    except PermissionError:
        raise
    except (pa.ArrowException, OSError):
        table = None
    if table is None or not table.schema.equals(LEAKS_SCHEMA):
        raise UserError(f"{path}: not a table of leaks, or a damaged one; run `memoir ingest` again")
    return table


def perceptual_hash(image: np.ndarray) -> int | None:
    """64 bits that JPEG, noise and a change of size hardly alter. image: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB.

    The bits are the signs of the lowest 8x8 frequencies of the 32x32 thumbnail about their median (the constant left out).
    None for an image without structure: all of those would look alike.
    """
    grey = rgb2gray(image)[..., 0].astype(np.float32) / np.float32(
        peak(image.dtype) // 255
    )  # 257 brings 16 bits to the scale of 8
    low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))[:8, :8].ravel()[1:]
    if np.abs(low).max() < FLAT:
        return None
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def leaks(manifest: pa.Table) -> pa.Table:
    """Pairs of the same image in two splits of one dataset or of two: LEAKS_SCHEMA, in the manifest's order.

    A pair or group is compared by its target, a scene by its first frame. An image is reported once for each other split
    that holds an image before it that is the same: with an exact copy if there is one, else with the nearest, the first
    of several.
    """
    columns = ["dataset", "split", "group", "role", "path", "part", "sha256", "phash"]
    rows = list(_compared(manifest.select(columns).to_pylist()))
    splits = sorted({row["split"] for row in rows})
    files, hashes = _firsts(rows, "sha256"), _firsts(rows, "phash")
    alike: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)  # (split, hash) -> (bits, hash there)
    for here, there in permutations(splits, 2):
        one, other = (np.array([h for split, h in hashes if split == each], np.uint64) for each in (here, there))
        for value, close, bits in sorted(set(_near(one, other))):
            alike[there, value].append((bits, close))
    found = []
    for i, row in enumerate(rows):
        for split in splits:
            if split == row["split"]:
                continue
            copies = [("near", bits, hashes[split, value]) for bits, value in alike.get((split, row["phash"]), ())]
            copies.append(("exact", 0, files.get((split, row["sha256"]), i)))
            before = [copy for copy in copies if copy[2] < i]
            if before:
                kind, bits, j = min(before)
                names = {"a": rows[j], "b": row}
                found.append(
                    {"kind": kind, "bits": bits}
                    | {
                        f"{name}_{side}": r[name]
                        for side, r in names.items()
                        for name in ("dataset", "split", "path", "part")
                    }
                )
    return pa.Table.from_pylist(found, LEAKS_SCHEMA)


def _compared(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that stand for their group: its target, else its inputs; for a scene, its first usable frame."""
    paired = {(r["dataset"], r["split"], r["group"]) for r in rows if r["role"] == "gt"}
    scenes = set()
    for row in rows:
        group = (row["dataset"], row["split"], row["group"])
        first = row["role"] == "frame" and group not in scenes
        if first:
            scenes.add(group)
        if first or row["role"] == "gt" or (row["role"] == "lq" and group not in paired):
            yield row


def _firsts(rows: list[dict[str, Any]], column: str) -> dict[tuple[str, Any], int]:
    """(split, value) -> the first image with it."""
    firsts: dict[tuple[str, Any], int] = {}
    for i, row in enumerate(rows):
        if row[column] is not None:
            firsts.setdefault((row["split"], row[column]), i)
    return firsts


def _near(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(hash of one, hash of other, bits in which they differ), some pairs more than once. Both: uint64, no hash twice."""
    for band in range(BANDS):
        a, b = (hashes >> np.uint64(band * BAND_BITS) & np.uint64((1 << BAND_BITS) - 1) for hashes in (one, other))
        order = np.argsort(b, kind="stable")
        first, last = (np.searchsorted(b[order], a, side) for side in ("left", "right"))
        ends = np.cumsum(last - first)
        # take the hashes of one side in runs of about AT_ONCE comparisons
        for run in np.split(np.arange(len(a)), np.flatnonzero(np.diff(ends // AT_ONCE)) + 1):
            number = last[run] - first[run]
            i = np.repeat(run, number)
            j = order[np.arange(len(i)) - np.repeat(np.cumsum(number) - number, number) + np.repeat(first[run], number)]
            bits = np.bitwise_count(one[i] ^ other[j])
            for k in np.flatnonzero(bits <= NEAR):
                yield int(one[i[k]]), int(other[j[k]]), int(bits[k])

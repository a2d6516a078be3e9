"""Caffe's .caffemodel: the weights of each layer, read from the fields of its protobuf messages.

Only the fields below are read (caffe.proto of BVLC/caffe); what a file says of the layers' kinds and connections is passed over.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError

LIMIT = 2**31 - 1  # bytes of a protobuf message, at most
AXES = 32  # of a blob, at most, as in Caffe
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types
LAYER, OLD_LAYER = 100, 2  # of NetParameter: LayerParameter, V1LayerParameter
NAME = {LAYER: 1, OLD_LAYER: 4}
BLOBS = {LAYER: 7, OLD_LAYER: 6}
SHAPE, DATA, DOUBLES = 7, 5, 8  # of BlobProto
OLD_SHAPE = (1, 2, 3, 4)  # of BlobProto: num, channels, height, width

Value = int | memoryview


class _DamagedError(Exception):
    """Bytes that are no such message."""


def read_caffemodel(path: Path, shown: str) -> dict[str, torch.Tensor]:
    """The blobs of each layer that has some, as <layer>.<number>: float32, or float64 where they are stored so.

    A layer that shares its weights with others has a copy of its own, as Caffe writes it. shown: the file's name in messages.
    Raises UserError for a file that is damaged, cut off or no .caffemodel. What is in memory is bounded by the file's size.
    """
    if path.stat().st_size > LIMIT:
        raise UserError(f"{shown}: has more than the {LIMIT:,} bytes of a protobuf message, so it is no .caffemodel")
    weights: dict[str, torch.Tensor] = {}
    try:
        for field, message in _fields(memoryview(path.read_bytes())):
            if field not in (LAYER, OLD_LAYER) or isinstance(message, int):
                continue
            name, blobs = _layer(message, NAME[field], BLOBS[field])
            if blobs and f"{name}.0" in weights:
                raise _DamagedError(f"two layers are called {name}")
            weights |= {f"{name}.{number}": blob for number, blob in enumerate(blobs)}
    except _DamagedError as error:
        raise UserError(f"{shown}: damaged, cut off, or no .caffemodel ({error}); download it again") from None
    if not weights:
        raise UserError(f"{shown}: no layer in it has weights; is it a .caffemodel, and a whole one?")
    return weights


def _layer(message: memoryview, name_field: int, blobs_field: int) -> tuple[str, list[torch.Tensor]]:
    """The name and the blobs of a LayerParameter or V1LayerParameter."""
    name, blobs = "", []
    for field, value in _fields(message):
        if field == name_field and not isinstance(value, int):
            try:
                name = bytes(value).decode()
            except UnicodeDecodeError:
                raise _DamagedError("a layer's name is no text") from None
        elif field == blobs_field and not isinstance(value, int):
            blobs.append(_blob(value))
    return name, blobs


def _blob(message: memoryview) -> torch.Tensor:
    """The numbers of a BlobProto in their shape; one of four axes where the file has the old fields for it."""
    data: dict[int, list[memoryview]] = {DATA: [], DOUBLES: []}
    shape: list[int] | None = None
    old = dict.fromkeys(OLD_SHAPE, 0)
    for field, value in _fields(message):
        if field in data and not isinstance(value, int):
            data[field].append(value)  # packed, or one by one
        elif field == SHAPE and not isinstance(value, int):
            shape = _dimensions(value)
        elif field in OLD_SHAPE and isinstance(value, int):
            old[field] = value
    if shape is None:
        shape = [old[field] for field in OLD_SHAPE]
    kind, pieces = ("<f8", data[DOUBLES]) if data[DOUBLES] else ("<f4", data[DATA])
    numbers = b"".join(pieces)
    width = np.dtype(kind).itemsize
    # Python's numbers do not overflow: a shape of absurd size is seen before it is used
    if not all(side > 0 for side in shape) or math.prod(shape) * width != len(numbers):
        raise _DamagedError(
            f"a blob of shape {'x'.join(str(side) for side in shape)} with {len(numbers) // width} numbers"
        )
    return torch.from_numpy(np.frombuffer(numbers, kind).astype(kind[1:]).reshape(shape))


def _dimensions(message: memoryview) -> list[int]:
    """The sides that a BlobShape lists."""
    sides: list[int] = []
    for field, value in _fields(message):
        if field != 1:
            continue
        if isinstance(value, int):
            sides.append(value)
        else:
            at = 0
            while at < len(value):
                side, at = _varint(value, at)
                sides.append(side)
        if len(sides) > AXES:
            raise _DamagedError(f"a blob of more than {AXES} axes")
    return sides


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """(field number, value) of a protobuf message: numbers of varints, else the bytes. None reaches beyond the message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise _DamagedError("a field without a number")
        if wire == VARINT:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (FOUR, EIGHT):
            length = 4 if wire == FOUR else 8
        else:  # groups, which Caffe has none of
            raise _DamagedError(f"wire type {wire}")
        if length > len(message) - at:
            raise _DamagedError(f"{length:,} bytes announced, and {len(message) - at:,} left")
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it. At most 64 bits; a negative one is a large one, as nothing here is."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _DamagedError("a number is cut off")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _DamagedError("a number of more than 64 bits")

"""A small writer of .caffemodel files: the wire format of the few protobuf messages that have weights."""

import numpy as np

Layers = list[tuple[str, list[np.ndarray]]]  # name and blobs of each layer, in the file's order


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    """A field that has bytes: a text, a message, packed numbers."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(values: np.ndarray, *, old: bool = False, doubles: bool = False, packed: bool = True) -> bytes:
    """A BlobProto. old: with num, channels, height and width instead of a shape. packed: the numbers in one field."""
    kind = "<f8" if doubles else "<f4"
    number, wire = (8, 1) if doubles else (5, 5)
    if packed:
        data = field(number, values.astype(kind).tobytes())
    else:
        data = b"".join(varint(number << 3 | wire) + value.tobytes() for value in values.astype(kind).ravel())
    if old:
        sides = [1] * (4 - values.ndim) + list(values.shape)
        return b"".join(varint(axis << 3) + varint(side) for axis, side in enumerate(sides, 1)) + data
    return data + field(7, field(1, b"".join(varint(side) for side in values.shape)))  # the order of fields is free


def caffemodel(layers: Layers, *, v1: bool = False, **how: bool) -> bytes:
    """A NetParameter with these layers. v1: as V1LayerParameter. how: see `blob`."""
    out = field(1, b"a net")
    for name, blobs in layers:
        if v1:
            message = field(2, b"in") + field(3, b"out") + field(4, name.encode()) + varint(5 << 3) + varint(4)
            out += field(2, message + b"".join(field(6, blob(values, **how)) for values in blobs))
        else:
            message = field(1, name.encode()) + field(2, b"Kind") + field(3, b"in") + varint(10 << 3) + varint(1)
            out += field(100, message + b"".join(field(7, blob(values, **how)) for values in blobs))
    return out

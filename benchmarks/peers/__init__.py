"""The loaders that load.py measures beside memoir's: what they store, and how their batches are opened.

Each function takes the pairs and an empty folder, and returns what opens its batches. It raises ImportError where its
package is not installed.
"""

import random
import sys
import tempfile
import types
from collections.abc import Callable, Generator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

PATCH, BATCH = 256, 32
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]

Batches = Generator[tuple[torch.Tensor, torch.Tensor], None, None]  # without end: gt and lq, uint8 (B, H, W, C)
Open = Callable[[], Batches]


class Pair(NamedTuple):
    """What the peers store. gt, lq: RGB, uint8 (side, side, 3). gt_png, lq_png: the same as files."""

    key: str
    gt: np.ndarray
    lq: np.ndarray
    gt_png: bytes
    lq_png: bytes


def folder_of_png(pairs: list[Pair], place: Path) -> Open:
    """Files, as most repositories have them."""
    paths = write_png(pairs, place)

    class Files(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return crop(*(cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in paths[i]))

    return endless(DataLoader(Files(), BATCH, shuffle=True, drop_last=True))


def lmdb_of_png(pairs: list[Pair], place: Path) -> Open:
    """BasicSR's PairedImageDataset with io_backend lmdb, in uint8."""
    import lmdb

    for role in ("gt", "lq"):
        environment = lmdb.open(str(place / f"{role}.lmdb"), map_size=2**34)
        with environment.begin(write=True) as transaction:
            for pair in pairs:
                transaction.put(pair.key.encode(), getattr(pair, f"{role}_png"))
        environment.close()
    clients = [
        lmdb.open(str(place / f"{role}.lmdb"), readonly=True, lock=False, readahead=False) for role in ("gt", "lq")
    ]
    keys = [pair.key.encode() for pair in pairs]

    class Lmdb(Dataset):
        def __len__(self) -> int:
            return len(keys)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            both = []
            for client in clients:
                with client.begin() as transaction:
                    both.append(decoded(transaction.get(keys[i])))
            return crop(*both)

    return endless(DataLoader(Lmdb(), BATCH, shuffle=True, drop_last=True))


def tars_of_png(pairs: list[Pair], place: Path) -> Open:
    """webdataset as its documentation has it: shards in random order, then a buffer of samples."""
    with webdataset.ShardWriter(str(place / "%06d.tar"), maxcount=50, verbose=0) as writer:
        for pair in pairs:
            writer.write({"__key__": pair.key, "gt.png": pair.gt_png, "lq.png": pair.lq_png})
    data = webdataset.WebDataset(sorted(map(str, place.glob("*.tar"))), shardshuffle=4)
    data = data.shuffle(100).to_tuple("gt.png", "lq.png").map(lambda both: crop(*map(decoded, both)))
    return endless(webdataset.WebLoader(data, batch_size=BATCH, num_workers=0, drop_last=True))


def mosaic_of_png(pairs: list[Pair], place: Path) -> Open:
    """MDS with bytes columns."""
    return mosaic([(pair.gt_png, pair.lq_png) for pair in pairs], place, "bytes", decoded)


def mosaic_of_arrays(pairs: list[Pair], place: Path) -> Open:
    """MDS with raw arrays."""
    shape = ",".join(map(str, pairs[0].gt.shape))
    return mosaic([(pair.gt, pair.lq) for pair in pairs], place, f"ndarray:uint8:{shape}", lambda pixels: pixels)


def mosaic(samples: list[tuple], place: Path, column: str, decode: Callable) -> Open:
    """A StreamingDataset over local MDS shards. samples: gt and lq, of this type of column."""
    # It imports these names for classes that nothing here uses; torchvision cannot be imported beside every torch.
    stub("torchvision.datasets", "VisionDataset")
    stub("torchvision.transforms.functional", "to_tensor")
    stub("transformers.models.auto.tokenization_auto", "AutoTokenizer")
    stub("transformers.feature_extraction_utils", "BatchFeature")
    stub("transformers.tokenization_utils_base", "BatchEncoding")
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    clean_stale_shared_memory()
    with MDSWriter(out=str(place), columns={"gt": column, "lq": column}) as writer:
        for gt, lq in samples:
            writer.write({"gt": gt, "lq": lq})

    class Mds(StreamingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            sample = super().__getitem__(i)
            return crop(decode(sample["gt"]), decode(sample["lq"]))

    data = Mds(local=str(place), shuffle=True, batch_size=BATCH)
    return endless(StreamingDataLoader(data, batch_size=BATCH, num_workers=0, drop_last=True))


def litdata_of_png(pairs: list[Pair], place: Path) -> Open:
    """Chunks of the PNG files' bytes."""
    return litdata(pairs, place, file_bytes, decoded)


def litdata_of_arrays(pairs: list[Pair], place: Path) -> Open:
    """Chunks of raw arrays."""
    return litdata(pairs, place, file_pixels, lambda pixels: pixels)


def litdata(pairs: list[Pair], place: Path, read: Callable, decode: Callable) -> Open:
    """A StreamingDataset over local chunks of 64 MB. read: paths of gt and lq -> what is stored of them."""
    from litdata import StreamingDataLoader, StreamingDataset, optimize  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as files:
        paths = write_png(pairs, Path(files))
        optimize(read, paths, str(place), chunk_bytes="64MB", num_workers=1, verbose=False)

    class Chunks(StreamingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return crop(*map(decode, super().__getitem__(i)))

    # Its default decodes a window of samples anew for each shuffled one: 4 times slower here with raw arrays.
    data = Chunks(str(place), shuffle=True, drop_last=True, batch_decode=False)
    return endless(StreamingDataLoader(data, batch_size=BATCH, num_workers=0, drop_last=True))


PEERS = {
    "folder, PNG": folder_of_png,
    "lmdb, PNG": lmdb_of_png,
    "webdataset, PNG": tars_of_png,
    "mosaic, PNG": mosaic_of_png,
    "mosaic, raw": mosaic_of_arrays,
    "litdata, PNG": litdata_of_png,
    "litdata, raw": litdata_of_arrays,
}


def crop(gt: Any, lq: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same random square of both."""
    top, left = (random.randrange(side - PATCH + 1) for side in gt.shape[:2])
    place = slice(top, top + PATCH), slice(left, left + PATCH)
    return gt[place], lq[place]


def endless(loader: DataLoader) -> Open:
    """Epoch after epoch of a DataLoader's batches, collated by torch."""

    def run() -> Batches:
        while True:
            yield from loader

    return run


def png(pixels: np.ndarray) -> bytes:
    """RGB as a PNG file."""
    return cv2.imencode(".png", pixels[..., ::-1], PNG)[1].tobytes()


def decoded(data: Any) -> np.ndarray:
    """An image file's bytes as RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return pixels


def write_png(pairs: list[Pair], place: Path) -> list[tuple[str, str]]:
    """A PNG file for each image: the paths of gt and lq."""
    for role in ("gt", "lq"):
        (place / role).mkdir()
        for pair in pairs:
            (place / role / f"{pair.key}.png").write_bytes(getattr(pair, f"{role}_png"))
    return [(str(place / "gt" / f"{pair.key}.png"), str(place / "lq" / f"{pair.key}.png")) for pair in pairs]


def file_bytes(paths: tuple[str, str]) -> tuple[bytes, ...]:
    """The bytes of files; at module level, so that litdata's worker can import it."""
    return tuple(Path(path).read_bytes() for path in paths)


def file_pixels(paths: tuple[str, str]) -> tuple[np.ndarray, ...]:
    """The decoded images of files, as file_bytes."""
    return tuple(decoded(data) for data in file_bytes(paths))


def stub(module: str, name: str) -> None:
    """Let `from module import name` pass where the package is not installed."""
    parts = module.split(".")
    for i in range(len(parts)):
        dotted = ".".join(parts[: i + 1])
        if dotted not in sys.modules:
            made = types.ModuleType(dotted)
            made.__spec__ = ModuleSpec(dotted, None, is_package=True)
            made.__path__ = []
            sys.modules[dotted] = made
    setattr(sys.modules[module], name, type(name, (), {}))

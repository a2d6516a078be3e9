"""mosaicml-streaming: MDS shards."""

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from .common import BATCH, Open, Pair, crop, decoded, endless, epochs, workers


def mosaic_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """MDS with bytes columns."""
    write_mds([(pair.gt_png, pair.lq_png) for pair in pairs], place, "bytes")
    return mosaic(decoded, cores, local=str(place), epoch_size=epochs(cores) * len(pairs))


def mosaic_of_arrays(pairs: list[Pair], place: Path, cores: int) -> Open:
    """MDS with raw arrays."""
    write_arrays(pairs, place)
    return mosaic(lambda pixels: pixels, cores, local=str(place), epoch_size=epochs(cores) * len(pairs))


def write_arrays(pairs: list[Pair], place: Path) -> None:
    """MDS shards of raw arrays."""
    first = pairs[0].gt
    shape = ",".join(map(str, first.shape))
    write_mds([(pair.gt, pair.lq) for pair in pairs], place, f"ndarray:{first.dtype}:{shape}")


def write_mds(samples: list[tuple], place: Path, column: str) -> None:
    """MDS shards. samples: gt and lq, of this type of column."""
    with imported().MDSWriter(out=str(place), columns={"gt": column, "lq": column}) as writer:
        for gt, lq in samples:
            writer.write({"gt": gt, "lq": lq})


def mosaic(decode: Callable, cores: int, *, drop_last: bool = True, **options: Any) -> Open:
    """A StreamingDataset. options: as it takes them."""
    streaming = imported()

    class Mds(streaming.StreamingDataset):
        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            sample = super().__getitem__(i)
            return crop(decode(sample["gt"]), decode(sample["lq"]))

    data = Mds(shuffle=True, batch_size=BATCH, **options)
    return endless(
        streaming.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers(cores), drop_last=drop_last)
    )


def imported() -> Any:
    """The package, with nothing left of what an earlier process had in shared memory."""
    # It imports these names for classes that nothing here uses; torchvision cannot be imported beside every torch.
    stub("torchvision.datasets", "VisionDataset")
    stub("torchvision.transforms.functional", "to_tensor")
    stub("transformers.models.auto.tokenization_auto", "AutoTokenizer")
    stub("transformers.feature_extraction_utils", "BatchFeature")
    stub("transformers.tokenization_utils_base", "BatchEncoding")
    import streaming  # type: ignore[import-not-found]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    clean_stale_shared_memory()
    return streaming


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

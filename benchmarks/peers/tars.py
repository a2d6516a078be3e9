"""Tar shards of PNG: webdataset's, and Energon's, which adds an index to them."""

from pathlib import Path
from typing import Any

import torch
import webdataset

from .common import BATCH, Batches, Open, Pair, crop, decoded, workers


def tars_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """webdataset as its documentation has it: shards in random order, then a buffer of samples."""
    data = shuffled_tars(write_tars(pairs, place, cores)).repeat()

    def run() -> Batches:
        yield from webdataset.WebLoader(data, batch_size=BATCH, num_workers=workers(cores), drop_last=True)

    return run


def write_tars(pairs: list[Pair], place: Path, cores: int) -> list[str]:
    """The paths of tar shards, four for each core: a worker reads whole shards."""
    with webdataset.ShardWriter(str(place / "%06d.tar"), maxcount=-(-len(pairs) // (4 * cores)), verbose=0) as writer:
        for pair in pairs:
            writer.write({"__key__": pair.key, "gt.png": pair.gt_png, "lq.png": pair.lq_png})
    return sorted(map(str, place.glob("*.tar")))


def shuffled_tars(urls: list[str], **options: Any) -> Any:
    """One epoch of webdataset's samples. options: as its WebDataset takes them."""
    data = webdataset.WebDataset(urls, shardshuffle=4, **options).shuffle(100)
    return data.to_tuple("gt.png", "lq.png").map(lambda both: crop(*map(decoded, both)))


def energon_of_png(pairs: list[Pair], place: Path, cores: int) -> Open:
    """Energon as its quick start has it, with a cooker, its way for samples that none of its own types fits."""
    from megatron.energon import (  # type: ignore[import-not-found]
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_train_dataset,
        stateless,
    )
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator  # type: ignore[import-not-found]

    tars = [Path(path).name for path in write_tars(pairs, place, cores)]
    WebdatasetPreparator.prepare_dataset(place, tars, split_parts_ratio=[("train", 1.0)], workers=1)
    (place / ".nv-meta/dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")

    @edataclass
    class Both(Sample):
        gt: Any
        lq: Any

    @stateless
    def cook(sample: dict[str, Any]) -> Both:
        gt, lq = crop(decoded(sample["gt.png"]), decoded(sample["lq.png"]))
        return Both(**basic_sample_keys(sample), gt=gt, lq=lq)

    class Encoder(DefaultTaskEncoder):
        decoder = None  # it would decode with Pillow
        cookers = (Cooker(cook),)

        def batch(self, samples: list[Both]) -> tuple[torch.Tensor, torch.Tensor]:
            return tuple(torch.stack([torch.from_numpy(getattr(s, role)) for s in samples]) for role in ("gt", "lq"))

    def run() -> Batches:
        data = get_train_dataset(
            place,
            batch_size=BATCH,
            shuffle_buffer_size=100,
            max_samples_per_sequence=100,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers(cores)),
            task_encoder=Encoder(),
        )
        yield from get_loader(data)

    return run

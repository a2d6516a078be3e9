"""Deterministic training batches from built shards, for any world size and thread count.

"The same global batches if the dataset digest, the sampling, the global batch size and the seed are equal; nothing else
matters: not the number of ranks, not the number of threads, not where the run was resumed."

An epoch is an enumeration of (image, level, patch, dihedral view) or (scene, two frames, patch, view): `len` is exact,
every sample comes once; which of two frames is the first is drawn. Patches are views cut from the mapped shards; a chain of
degradations that is drawn online is applied to them by the threads that cut; floats, noise and mixed negatives are made on
the device.
"""

import json
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.degradations.orientation import dihedral
from pipeline.depth import peak
from pipeline.errors import UserError, some
from pipeline.keyed import digest64, hashed
from pipeline.loading.pool import Batch, Loan, Pool
from pipeline.loading.symmetry import gather, turn
from pipeline.sampling.negatives import mix
from pipeline.sampling.order import Order
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards.cache import ShardCache
from pipeline.shards.shard_set import ShardSet

Where = TypeVar("Where")  # what is cut together, see `ahead`
Cut = TypeVar("Cut")
WINDOW = 16  # shards whose samples are mixed
SMALL = 64  # the largest side of grey patches that are gathered row by row: a call for each patch costs more than its pixels
TOGETHER = 2**20  # bytes of small batches that are cut in one go
TORCH = {"u1": torch.uint8, "u2": torch.uint16, "i2": torch.int16}  # by the dtype of the pixels
PEAK = {dtype: peak(f"<{name}") for name, dtype in TORCH.items()}
# How many positions have their places computed at a time: for a batch of 16 alone that would cost as much as cutting it.
BLOCK = 4096


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch to take. With the loader's digest, all that a resume needs."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Places:
    """Where samples are cut. All (k,): sample, its number in the enumeration; version, its row there; top, left, view; and
    weight, float32, 0 for the padding of the last batch.
    """

    sample: np.ndarray
    version: np.ndarray
    top: np.ndarray
    left: np.ndarray
    view: np.ndarray
    weight: np.ndarray

    def __getitem__(self, part: slice) -> "Places":
        return Places(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


class Loader:
    """Batches of the patches of one split, in the epoch's order.

    place: what `memoir build` wrote, a folder or a URI. batch: the global batch B; rank r of W takes positions
    [r*B/W, (r+1)*B/W) of each. sampling: which patches of an image. threads: how many threads cut ahead. cache,
    quarantine: as ShardSet takes them; a sample of a damaged member has weight 0. shards: of this split, where they are open.
    level: only the inputs of this one; None: of all. Raises UserError for a batch that W does not divide, for views that the
    split was not built for, and for a level that it has not.
    """

    def __init__(
        self,
        place: Path | str,
        split: str = "train",
        *,
        batch: int,
        sampling: Grid | RandomCrops,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        cache: ShardCache | None = None,
        quarantine: int = 0,
        shards: ShardSet | None = None,
        level: int | None = None,
    ) -> None:
        if batch % world_size:
            divisors = ", ".join(str(w) for w in range(1, batch + 1) if batch % w == 0)
            raise UserError(f"{world_size} workers do not divide the global batch of {batch}; these do: {divisors}")
        self.shard_set = shards or ShardSet(place, split, cache=cache, quarantine=quarantine)
        self.split, self.sampling = split, sampling
        self.batch, self.seed, self.threads = batch, seed, threads
        self.rank, self.world_size = rank, world_size
        self.share = batch // world_size
        self._pool = Pool(pinned=torch.cuda.is_available())
        s = self.shard_set
        self.sizes = s.sizes
        counts = sampling.counts(self.sizes)
        self.level = level
        if level is not None:
            if level not in s.level:
                there = ", ".join(str(each) for each in np.unique(s.level))
                raise UserError(f"{place}: no input of level {level} in split {split}; there are {there}")
            counts = np.where(s.level == level, counts, 0)
        self.first = np.concatenate(([0], np.cumsum(counts)))  # the sample number where each version begins
        self.per_shard = np.zeros(len(s.shards), np.int64)
        np.add.at(self.per_shard, s.version_shard, counts)
        self.samples = int(self.first[-1])
        if s.degradation.fixed and not s.fixed[s.planes["lq"]].all():
            raise UserError(
                f"{place}: its inputs are rounded to levels, as no build does it now; run `memoir build` again"
            )
        self.turned = s.turned() if sampling.dihedral else np.zeros(8, np.int64)
        # only what all samples have can be in a batch
        self.planes = {name: int(s.channels[rows].max()) for name, rows in s.planes.items() if (rows >= 0).all()}
        self.pairs = "v" in self.planes  # samples are pairs of frames
        if self.pairs:  # each frame is v of some pairs and w of others
            self.planes = dict.fromkeys(self.planes, max(self.planes.values()))
        self.channels = self.planes["v" if self.pairs else "gt"]
        # keyed by channels and dtype: the planes that are cut together
        self.alike: dict[tuple[int, str], list[str]] = {}
        for name, channels in self.planes.items():
            self.alike.setdefault((channels, s.dtype_of(s.planes[name]).str[1:]), []).append(name)

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank; the last may be padded."""
        return -(-self.samples // self.batch)

    @property
    def quarantined(self) -> list[str]:
        """The damaged members that were met, in words."""
        return sorted(self.shard_set.quarantined.values())

    @property
    def delivers(self) -> set[str]:
        """The images of a batch on the device: gt, lq, mask, "intra negatives" or "extra negatives"; or frames."""
        online = {"lq"} if self.shard_set.degradation.online else set()
        negatives = self.shard_set.listing["negatives"]
        mixed = {f"{negatives['kind']} negatives"} if negatives else set()
        return {"frames"} if self.pairs else set(self.planes) | online | mixed

    def name(self, sample: int) -> str:
        """A sample of the enumeration in words: its image, level and number."""
        version = int(np.searchsorted(self.first, sample, side="right")) - 1
        return f"{self.shard_set.key(version)} at level {int(self.shard_set.level[version])} (sample {sample})"

    def names(self, position: Position) -> list[str]:
        """The true samples of a global batch, of all ranks, in words."""
        first = position.batch * self.batch
        wanted = np.arange(first, min(first + self.batch, self.samples))
        return [self.name(sample) for sample in self.order(position.epoch).samples(wanted).tolist()]

    @property
    def notes(self) -> list[str]:
        """How the batches differ from the split, a phrase each: images that are padded, planes that are left out."""
        s, p = self.shard_set, self.sampling.patch
        phrases = []
        if small := s.smaller_than(p):
            total = len(np.unique(s.sample))
            phrases.append(
                f"{len(small):,} of {total:,} images are smaller than a patch of {p}x{p}, and mirrored at their lower and right "
                f"edges to fill it: {some(small)}"
            )
        for name in s.planes.keys() - self.planes.keys():
            there = s.planes[name] >= 0
            without = [s.key(i) for i in np.flatnonzero(~there).tolist()]
            phrases.append(
                f"no {name} is in the batches, for {len(without):,} of {len(there):,} have none: {some(without)}"
            )
        return phrases

    @property
    def digest(self) -> str:
        """A digest of what the batches depend on beside the position: shards, sampling, global batch and seed."""
        made = [self.shard_set.digest, self.split, self.batch, self.seed, WINDOW, str(self.sampling)]
        return json.dumps(made if self.level is None else [*made, self.level])

    def batches(self, start: Position = Position()) -> Generator[tuple[Position, Batch], None, None]:
        """Batches from `start` on, without end: (position of the batch, batch), as `cut` makes them.

        Whoever is done with a batch calls its `hand_back`, which spares the loader new memory for each one.
        """
        return ahead(self._work(start), lambda where: self._cut(*where), self.threads)

    def _work(self, start: Position) -> Generator[tuple[Position, Places], None, None]:
        """Yield without end what is cut together: its first position, and where the samples of one or several batches lie."""
        epoch, batch = start.epoch, start.batch
        pixel = sum(channels * int(dtype[1]) * len(names) for (channels, dtype), names in self.alike.items())
        size = self.share * pixel * self.sampling.patch**2
        together = max(1, TOGETHER // size)
        while True:
            if batch >= len(self):
                epoch, batch = epoch + 1, 0
            order = self.order(epoch)
            while batch < len(self):
                many = min(max(1, BLOCK // self.share), len(self) - batch)
                self.prefetch(order, batch * self.batch)
                places = self._places(order, batch, many)
                for i in range(0, many, together):
                    part = places[i * self.share : min(i + together, many) * self.share]
                    yield Position(epoch, batch + i), part
                batch += many

    def prefetch(self, order: Order, position: int) -> None:
        """Ask for the shards of the window that this position of the epoch is in, and of the next."""
        if self.shard_set.cache is not None:
            first = int(np.searchsorted(order.position, position, side="right") - 1) // WINDOW * WINDOW
            wanted = [int(shard) for shard in order.shard_order[first : first + 2 * WINDOW]]
            if len(wanted) < 2 * WINDOW:
                following = self.order(order.epoch + 1).shard_order[: 2 * WINDOW - len(wanted)]
                wanted += [int(shard) for shard in following if shard not in wanted]
            self.shard_set.prefetch(wanted)

    def cut(self, position: Position) -> Batch:
        """This rank's part of one global batch.

        In the task's dtype, uint8 or uint16: gt, lq: (B/W, C, H, W) (no lq where it is drawn on the device; int16 where it is
        no levels, see pipeline.depth); mask: (B/W, 1, H, W) where all samples have one; for pairs of frames, instead of these, frames: (B/W, 2, C, H, W), in an
        order that is drawn anew in each epoch. level: int64 (B/W,), for a pair the lower frame's number; weight: float32
        (B/W,), 0 for the padding of the last batch; sample: int64 (B/W,), number in the enumeration; epoch: int64 (); count:
        float32 (), true samples in the global batch / W. For tasks with n negatives, permille: int32 (B/W, n), thousandths
        of the lq in each; and negatives: (B/W, n, C, H, W), unless they are to be mixed from lq and gt; int16 if stored mixed.
        """
        return self._cut(position, self._places(self.order(position.epoch), position.batch, 1))[0][1]

    def order(self, epoch: int) -> Order:
        """The order of an epoch's samples."""
        return Order(self.per_shard, window=WINDOW, seed=self.seed, epoch=epoch)

    def _places(self, order: Order, batch: int, many: int) -> Places:
        """The places of this rank's samples in `many` batches from `batch` on."""
        starts = np.arange(batch, batch + many)[:, None] * self.batch + self.rank * self.share
        return self.places(order, (starts + np.arange(self.share)).ravel())

    def places(self, order: Order, positions: np.ndarray) -> Places:
        """The places of the samples at these positions (k,) of an epoch; those after its end are padding."""
        sample = order.samples(positions % self.samples)
        version = np.searchsorted(self.first, sample, side="right") - 1
        number = sample - self.first[version]
        place = self.sampling.place(number, self.sizes[version], sample, self.seed, order.epoch)
        return Places(sample, version, *place, (positions < self.samples).astype(np.float32))

    def _cut(self, first: Position, places: Places) -> list[tuple[Position, Batch]]:
        """Cut these samples into batches, from the position `first` on."""
        loan = Loan(self._pool, len(places.sample) // self.share)
        columns, epoch = self._columns(places, first.epoch, loan), torch.tensor(first.epoch)
        batches = []
        for i in range(len(places.sample) // self.share):
            position = Position(first.epoch, first.batch + i)
            true = min(self.batch, self.samples - position.batch * self.batch)
            batch = {name: column[i * self.share : (i + 1) * self.share] for name, column in columns.items()}
            batch |= {"epoch": epoch, "count": torch.tensor(true / self.world_size, dtype=torch.float32)}
            batches.append((position, Batch(batch, loan)))
        return batches

    def cut_some(self, places: Places, epoch: int) -> Batch:
        """Cut any number of an epoch's samples: as `cut`, without a count."""
        loan = Loan(self._pool, 1)
        return Batch(self._columns(places, epoch, loan) | {"epoch": torch.tensor(epoch)}, loan)

    def _columns(self, places: Places, epoch: int, loan: Loan) -> dict[str, Tensor]:
        """Cut samples of an epoch: all of a batch that there is one of for each sample."""
        s, p, n = self.shard_set, self.sampling.patch, len(places.sample)
        rows = {name: s.planes[name][places.version] for name in self.planes}
        if self.pairs:
            swapped = hashed(digest64("order of frames", self.seed, epoch), places.sample) % np.uint64(2) == 1
            rows = {a: np.where(swapped, rows[b], rows[a]) for a, b in (("v", "w"), ("w", "v"))}
        if "lq" in rows:
            rows["lq"] = rows["lq"] + self.turned[places.view]
        columns: dict[str, Tensor] = {}
        for (channels, dtype), names in self.alike.items():
            patches = loan.take(len(names), n, p, p, channels, dtype=TORCH[dtype])
            sizes = self.sizes[places.version]
            self._cut_planes(
                np.stack([rows[name] for name in names]), sizes, places.top, places.left, places.view, patches.numpy()
            )
            tensor = patches.permute(0, 1, 4, 2, 3)
            columns |= {"frames": tensor.transpose(0, 1)} if self.pairs else dict(zip(names, tensor, strict=True))
        if s.degradation.drawn_by == "threads":
            gt = columns["gt"].permute(0, 2, 3, 1).numpy()
            inputs = loan.take(*gt.shape, dtype=columns["gt"].dtype)
            s.degradation.patches(gt, s.level[places.version], places.sample, self.seed, epoch, inputs.numpy())
            columns["lq"] = inputs.permute(0, 3, 1, 2)
        if s.permille.shape[1]:
            columns["permille"] = torch.from_numpy(s.permille[places.version])
        if s.negatives is not None:
            row = s.negatives[places.version].T + self.turned[places.view]  # (k, n)
            rows |= {f"negative {k}": each for k, each in enumerate(row)}
            patches = loan.take(*row.shape, p, p, self.channels, dtype=TORCH[s.dtype_of(s.negatives).str[1:]])
            # their size differs from the planes' where they come from another image
            sizes = np.stack((s.height[row], s.width[row]), -1)
            room = np.maximum(1, sizes - p + 1)
            top, left = places.top % room[..., 0], places.left % room[..., 1]
            self._cut_planes(row, sizes, top, left, places.view, patches.numpy())
            columns["negatives"] = patches.permute(1, 0, 4, 2, 3)
        weight = places.weight
        if s.quarantined:
            bad = np.array(list(s.quarantined))
            weight = weight * ~np.logical_or.reduce([np.isin(row, bad) for row in rows.values()])
        return columns | {
            "level": torch.from_numpy(s.level[places.version]),
            "weight": torch.from_numpy(weight),
            "sample": torch.from_numpy(places.sample),
        }

    def _cut_planes(
        self,
        rows: np.ndarray,
        sizes: np.ndarray,
        top: np.ndarray,
        left: np.ndarray,
        view: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Cut a patch of each row of the index, (k, n), into `out`, (k, n, p, p, C).

        sizes: (n, 2) or (k, n, 2), the height and width that count of each image; one that is smaller than a patch is mirrored
        at its lower and right edges, as MPRNet's loader and those derived from it do. top, left, view: (n,) or (k, n).
        """
        s, p = self.shard_set, self.sampling.patch
        patches = out.reshape(-1, *out.shape[2:])
        row, y, x, turned = (np.broadcast_to(each, rows.shape).ravel() for each in (rows, top, left, view))
        size = np.broadcast_to(sizes, (*rows.shape, 2)).reshape(-1, 2)
        alone = s.png | (size < p).any(1)
        if not alone.any():
            self._cut_mapped(row, y, x, turned, patches)
            return
        for i in np.flatnonzero(alone).tolist():
            part = s.pixels(int(row[i]))[: size[i, 0], : size[i, 1]][y[i] : y[i] + p, x[i] : x[i] + p]
            short = ((0, p - part.shape[0]), (0, p - part.shape[1]), (0, 0))
            patches[i] = dihedral(np.pad(part, short, "reflect") if any(map(sum, short)) else part, int(turned[i]))
        if not alone.all():
            found = np.empty((int((~alone).sum()), *patches.shape[1:]), patches.dtype)
            self._cut_mapped(row[~alone], y[~alone], x[~alone], turned[~alone], found)
            patches[~alone] = found

    def _cut_mapped(
        self, rows: np.ndarray, top: np.ndarray, left: np.ndarray, view: np.ndarray, patches: np.ndarray
    ) -> None:
        """Copy patches of raw pixels. rows, top, left, view: (n,). patches: (n, p, p, C), written to."""
        s, p = self.shard_set, self.sampling.patch
        channels, dtype = patches.shape[-1], patches.dtype
        shards = s.shard[rows]
        mapped = {shard: s.mapped(shard) for shard in set(shards.tolist())}
        c = s.channels[rows] * dtype.itemsize  # bytes from here on
        line = c * s.width[rows]
        begin = s.begin[rows] + top * line + left * c
        if channels == 1 and p <= SMALL:
            gather(mapped, shards, begin, line, view, patches[..., 0])
            return
        # A row of a patch is one item, which is copied whole; and cv2 turns a patch twice as fast if its rows are not a power
        # of two apart.
        size = dtype.itemsize
        width = p * channels * size
        item = f"V{width}"
        targets = np.ndarray(patches.shape[:2], item, patches, strides=patches.strides[:2])
        scratch = np.empty((p, p + 5, channels), dtype)
        upright = np.ndarray((p,), item, scratch, strides=scratch.strides[:1])
        flat = patches.reshape(len(patches), -1).view(np.uint8)
        columns = (x.tolist() for x in (shards, begin, line, c, view))
        for i, (shard, offset, stride, depth, turned) in enumerate(zip(*columns, strict=True)):
            pixels = mapped[shard]
            if depth < channels * size:  # grey among colour
                grey = np.ndarray((p, p, depth // size), dtype, pixels, offset, (stride, depth, size))
                patches[i] = dihedral(grey, turned)
                continue
            if turned == 0 and stride == width:  # the image is as wide as the patch: its rows lie in one piece
                flat[i] = pixels[offset : offset + p * stride]
                continue
            rows = np.ndarray((p,), item, pixels, offset, (stride,))
            if turned == 0:
                targets[i] = rows
            else:
                upright[...] = rows
                turn(scratch[:, :p], turned, patches[i])

    def to_device(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The batch as a model takes it: images float32 in [0, 1], online noise added (not clipped unless the task says so).

        No image of the result is a view of the batch, which may be handed back afterwards.
        For tasks with negatives, lambdas: float32 (B/W, n), the share of the lq; negatives: float32 (B/W, n, C, H, W).
        """
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        white = peak(self.shard_set.dtype)
        out = {
            name: value.float() / PEAK[value.dtype] if name in ("gt", "lq", "mask", "frames", "negatives") else value
            for name, value in moved.items()
        }
        degradation = self.shard_set.degradation
        if degradation.drawn_by == "device":
            sample, epoch = batch["sample"].numpy(), int(batch["epoch"])
            out["lq"] = degradation.on_device(out["gt"], out["level"], sample, self.seed, epoch, white)
        if "permille" in moved:
            permille = out.pop("permille").view(*moved["permille"].shape, 1, 1, 1)
            out["lambdas"] = moved["permille"].float() / 1000
            if "negatives" not in out:
                out["negatives"] = mix(out["lq"][:, None], out["gt"][:, None], permille)
        return out


def ahead(work: Iterator[Where], cut: Callable[[Where], list[Cut]], threads: int) -> Generator[Cut, None, None]:
    """What `cut` makes of each piece of work, in its order; so many threads cut ahead.

    work: without an end, and not reentrant: the threads take turns in it.
    """
    turn_to_work = threading.Lock()
    room, ended = threading.Semaphore(2 * threads), threading.Event()
    coming: queue.SimpleQueue[Future[list[Cut]]] = queue.SimpleQueue()

    def cut_ahead() -> None:
        while True:
            room.acquire()
            if ended.is_set():
                return
            future: Future[list[Cut]] = Future()
            try:
                with turn_to_work:
                    coming.put(future)
                    where = next(work)
                future.set_result(cut(where))
            except BaseException as error:  # passed on to the thread that waits for the batch
                future.set_exception(error)
                return

    # The threads take their work themselves: the training loop only takes a batch, and does not wait for the
    # interpreter's lock while the cutting of another one starts.
    cutting = [threading.Thread(target=cut_ahead, name=f"loader-{i}", daemon=True) for i in range(threads)]
    for thread in cutting:
        thread.start()
    try:
        while True:
            yield from coming.get().result()
            room.release()
    finally:
        ended.set()
        room.release(threads)
        for thread in cutting:
            thread.join(1)  # a thread that waits for a server ends by itself

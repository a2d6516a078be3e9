"""Restore pictures of any size with a trained model."""

import copy
import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from jobs.arithmetic import choose_precision
from jobs.models import Network
from jobs.models.fp32 import exact_fp32
from jobs.restoring.checkpoint import Trained, load_model
from jobs.restoring.tiles import Watch, in_blended_tiles, restore_plane
from pipeline.cpus import available_cpus, available_memory
from pipeline.degradations.scale import imresize
from pipeline.depth import levels, unit
from pipeline.errors import UserError
from pipeline.images import LIMIT, Picture, UnusableImageError, check_format, pixel_limit, read_picture, write_image
from pipeline.layouts.files import SIDE_FILES, files_under, unusable
from pipeline.task import recorded

# MATLAB's rgb2ycbcr on [0, 1]: Y = 16/255 + LUMA . RGB. Its inverse adds a change of Y, times 255/219, to R, G and B alike.
LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255
Y_TO_RGB = np.float32(255 / 219)
CHANNELS = {"y": 1, "gray": 1, "rgb": 3}  # by a task's planes
PER_IMAGE = 2**31  # bytes that an image of any size takes while it is restored, not `whole`
READERS = 4  # images in the works beside a GPU, which computes one at a time

Asked = Literal["fp32", "bf16", "auto"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Restored:
    """What became of an input. problem: why it has no output, as a phrase; None if it has one.

    warnings: what the decoder complained of. blended: whether it was restored in blended tiles, see jobs.restoring.tiles.
    """

    source: Path
    problem: str | None
    warnings: tuple[str, ...] = ()
    blended: bool = False


def restore(
    model: str,
    source: Path,
    target: Path,
    runs: Path,
    *,
    scale: int | None = None,
    whole: bool = False,
    quality: int | None = None,
    subsampling: str | None = None,
    precision: Asked = "fp32",
    trust: Collection[str] = (),
    store: str | None = None,
) -> Iterator[Restored]:
    """Restore an image into `target`, or every image below the folder `source` into the same place below `target`.

    model, trust, store: see `load_model`. target: for an image, a PNG or JPEG file or a folder; for a folder, a folder of PNG files.
    scale: enlarge by this factor first; for models of super-resolution, which want their input at the size of the output.
    whole: never use blended tiles, see `restore_plane`. quality (1..100; 95), subsampling ("4:4:4"; or "4:2:2", "4:2:0"): of a
    JPEG that is written. precision: see `on_device`.

    Yields each input when it is done with; one that cannot be restored does not stop the others. Transparency, embedded
    colour profile, EXIF and dpi are passed through, and colours are restored in the file's own space. Hidden files, and text
    files beside the images, are skipped. Raises UserError for what concerns all inputs: no such model, folder, format,
    option or scale.
    """
    if not source.exists():
        raise UserError(f"{source}: not found; give an image or a folder of images")
    pairs, problems = files_of(source, target) if source.is_dir() else ([(source, _file(source, target))], [])
    if subsampling not in (None, "4:4:4", "4:2:2", "4:2:0"):
        raise UserError(f"--subsampling {subsampling}: 4:4:4, 4:2:2 or 4:2:0")
    if (quality or subsampling) and (source.is_dir() or pairs[0][1].suffix.lower() == ".png"):
        raise UserError("--quality and --subsampling are of JPEG, and the output is PNG")
    trained = load_model(model, runs, trust, store)
    check_channels(trained)
    if scale is not None:
        _check_scale(scale, trained)
    network = on_device(trained.model, precision)
    jpeg: dict[str, Any] = {"quality": quality or 95, "subsampling": subsampling or "4:4:4"}
    yield from (Restored(path, problem) for path, problem in problems)
    if source.is_dir():
        yield from _bar(restore_files(trained, network, pairs, scale=scale, whole=whole), len(pairs))
    else:
        watch: Watch = lambda parts: _bar(parts, len(parts))  # noqa: E731 - typed
        yield _file_to_file(trained, network, pairs[0], scale, whole, jpeg, watch)


def restore_files(
    trained: Trained,
    network: Network,
    pairs: Sequence[tuple[Path, Path]],
    *,
    scale: int | None = None,
    whole: bool = False,
) -> Iterator[Restored]:
    """Restore image files into PNG files, several at a time. network: that of `trained`, on its device."""

    def one(network: Network, pair: tuple[Path, Path], watch: Watch) -> Restored:
        return _file_to_file(trained, network, pair, scale, whole, {}, watch)

    yield from in_threads(network, one, pairs, 1 if whole else None)


def _file_to_file(
    trained: Trained,
    network: Network,
    pair: tuple[Path, Path],
    scale: int | None,
    whole: bool,
    jpeg: dict[str, Any],
    watch: Watch,
) -> Restored:
    path, out = pair
    try:
        shown, _ = read_picture(path)
        _check_picture(shown, trained, scale or 1)
        check_format(out, shown.pixels.dtype, alpha=shown.alpha is not None, exif=shown.exif)
        pixels, alpha = shown.pixels, shown.alpha
        if scale is not None and alpha is not None:
            alpha = levels(imresize(unit(alpha)[..., None], scale=scale)[..., 0], alpha.dtype)
        pixels = restore_image(network, pixels, trained.task["colour"], scale or 1, whole=whole, watch=watch)
        write_image(out, pixels, alpha=alpha, icc=shown.icc, exif=shown.exif, dpi=shown.dpi, **jpeg)
    except (UnusableImageError, UserError) as error:
        return Restored(path, str(error))
    return Restored(path, None, shown.warnings, not whole and in_blended_tiles(network, *pixels.shape[:2]))


def in_threads(
    network: Network, one: Callable[[Network, T, Watch], R], items: Sequence[T], most: int | None = None
) -> Iterator[R]:
    """one(network, item, watch) of each item, in their order, several at a time: files are read and written beside computing.

    Each thread has its own CPUs, and its own copy of the network with the same weights, for a network may keep what it computed in
    itself. There are as many as the memory has room for, and `most`. Whoever takes no more results waits for a tile at most: that
    is what `watch` is for.
    """
    cpus = available_cpus()
    if next(network.parameters()).device.type == "cpu":
        threads = min(cpus, available_memory() // PER_IMAGE)
    else:
        threads = min(cpus, READERS)
    threads = max(1, min(threads, len(items), most or cpus))
    weights = {id(each): each for each in itertools.chain(network.parameters(), network.buffers())}
    mine, ended = threading.local(), threading.Event()
    before = torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(max(cpus // threads, 1))
        mine.network = copy.deepcopy(network, dict(weights))

    def watch(parts: Sequence[Any]) -> Iterator[Any]:
        for part in parts:
            if ended.is_set():
                raise CancelledError
            yield part

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(lambda item: one(mine.network, item, watch), item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)


def _bar(items: Iterable[T], count: int) -> Iterable[T]:
    """The items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    hidden = count < 2 or not console.is_terminal
    return track(items, "restore", total=count, transient=True, console=console, disable=hidden)


def restore_image(
    model: Network,
    image: np.ndarray,
    colour: str,
    scale: int = 1,
    *,
    whole: bool = False,
    watch: Watch = iter,
) -> np.ndarray:
    """Restore one image: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB, and the same out, at `scale` times the size.

    colour: the planes that the model was trained on, as in pipeline.task. "y": the Y of an RGB image is restored, as
    float, and Cb and Cr stay. "gray": so are the channels of an RGB image, one by one. "rgb": a grey image is restored as
    three equal channels, and the result is the mean of the three. whole, watch: see `restore_plane`. Raises UserError for a
    result that is not finite.
    """

    def run(plane: np.ndarray) -> np.ndarray:
        return restore_plane(model, plane, whole=whole, watch=watch)

    x = unit(image)  # each copy of a large image counts: work is done in place if it can be
    if scale > 1:
        x = imresize(x, scale=scale).astype(np.float32)  # neither rounded nor clipped, as in training
    grey = x.shape[2] == 1
    if colour == "rgb":
        x = run(np.broadcast_to(x, (*x.shape[:2], 3)) if grey else x)
        x = x.mean(axis=2, keepdims=True) if grey else x
    elif grey or colour == "gray":
        for channel in range(x.shape[2]):
            x[..., channel : channel + 1] = run(x[..., channel : channel + 1])
    elif colour == "y":
        y = x @ LUMA[:, None]  # (H, W, 1)
        y += 16 / 255
        change = run(y)
        change -= y
        change *= Y_TO_RGB
        x += change
    else:
        raise UserError(f"the model works on {colour!r} planes, which this version of memoir does not know; upgrade it")
    if not np.isfinite(x).all():
        raise UserError("the restored image holds NaN or infinity, the model has diverged (take an earlier version)")
    return levels(x, image.dtype)


def on_device(model: Network, precision: Asked = "fp32") -> Network:
    """The model on the GPU, where there is one, where it computes in fp32 and not in TF32.

    precision: of its convolutions; auto: bf16 where the device multiplies such numbers by itself.
    """
    exact_fp32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    narrow = choose_precision(precision, device) == "bf16"
    return InBf16(model.to(device)) if narrow else model.to(device)  # type: ignore[return-value] # restores, and is not trained


class InBf16(nn.Module):
    """A network as `restore_plane` needs it, with its convolutions in bfloat16."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.in_channels = network.in_channels
        self.receptive_field, self.size_multiple = network.receptive_field, network.size_multiple

    def restore(self, lq: Tensor) -> Tensor:
        """See jobs.models.Network."""
        with torch.autocast(lq.device.type, torch.bfloat16):
            return self.network.restore(lq).float()


def check_channels(trained: Trained) -> None:
    """Raise UserError for a model that does not take the planes of its task."""
    colour = trained.task["colour"]
    model, planes = trained.model.in_channels, CHANNELS.get(colour)
    if planes is not None and model != planes:
        raise UserError(
            f"{trained.uri}: the model takes {model} channels, and the {colour} planes of its task have {planes}; "
            "recipe and task do not belong together: train again"
        )


def _check_picture(shown: Picture, trained: Trained, scale: int) -> None:
    """Raise UnusableImageError for a picture that does not suit the model."""
    H, W = (side * scale for side in shown.pixels.shape[:2])
    if shown.pixels.dtype.itemsize * 8 > trained.bits:
        raise UnusableImageError(f"16 bits a channel, and {trained.name} was trained on 8; convert it to 8")
    if pixel_limit() < H * W:
        raise UnusableImageError(
            f"{W}x{H} pixels when enlarged; cut it into tiles, or set {LIMIT} (now {pixel_limit():,})"
        )


def _check_scale(scale: int, trained: Trained) -> None:
    degradation = recorded(trained.task["degradation"])
    if not degradation.factors:
        raise UserError(f"--scale {scale}: {trained.name} is no model of super-resolution but of {degradation.kind}")
    if scale not in degradation.factors:
        known = ", ".join(map(str, degradation.factors))
        raise UserError(f"--scale {scale}: {trained.name} was trained for the factors {known}")


def _file(source: Path, target: Path) -> Path:
    """Where the restored image goes. Raises UserError for a place where it cannot go."""
    out = target / f"{source.stem}.png" if target.is_dir() else target
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{out}: the output is PNG or JPEG; end its name in .png or .jpg, or give a folder that exists")
    if out.exists() and out.samefile(source):
        raise UserError(f"{out}: would overwrite its own input; give another name")
    return out


def files_of(source: Path, target: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """(input, output) files, and (input, reason) for each that cannot be an image. Raises UserError for both as a whole."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; the images of a folder go into a folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies in the folder of the inputs; give a folder outside {source}")
    inputs: dict[Path, Path] = {}
    problems = []
    for path in files_under(source):
        out = target / path.relative_to(source).with_suffix(".png")
        reason = unusable(path)
        if reason and path.suffix.lower() in SIDE_FILES:
            continue
        if reason is None and out in inputs:
            reason = f"its result would overwrite that of {inputs[out]}; rename one"
        if reason is None:
            inputs[out] = path
        else:
            problems.append((path, reason))
    if not inputs and not problems:
        raise UserError(f"{source}: no images in it")
    return [(path, out) for out, path in inputs.items()], problems

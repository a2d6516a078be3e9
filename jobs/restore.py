"""Restore pictures of any size with a trained model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from jobs.checkpoint import Trained, load_model
from pipeline.degradations.scale import imresize
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, read_image, write_image
from pipeline.layouts.base import SIDE_FILES, files_under, unusable

TILE = 256  # pixels a side that go through a network at once: bounds the memory, and is quickest on a CPU's caches
# MATLAB's rgb2ycbcr on [0, 1]: Y = 16/255 + LUMA . RGB. Its inverse adds a change of Y, times 255/219, to R, G and B alike.
LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255
Y_TO_RGB = np.float32(255 / 219)


def restore(model: str, source: Path, target: Path, runs: Path, *, scale: int | None = None) -> list[str]:
    """Restore an image into `target`, or every image below the folder `source` into the same place below `target`.

    model: see `load_model`. target: of one image, a PNG or JPEG file or a folder; of a folder, a folder, for PNG files.
    scale: enlarge by this factor first; for models of super-resolution, which want their input at the size of the output.
    Returns a line for each image that could not be restored; all others are done. Hidden files, and text files beside the
    images, are passed by. Raises UserError for what concerns all of them: no such model, folder, format or scale, and a
    result that is not finite.
    """
    trained = load_model(model, runs)
    task = trained.task
    if scale is not None:
        _check_scale(scale, trained, task["degradation"])
    pairs, problems = _files(source, target)
    network = on_device(trained.model)
    for path, out in track(pairs, "restore", transient=True, disable=len(pairs) < 2):
        try:
            image, _ = read_image(path)
        except UnusableImageError as error:
            problems.append(f"{path}: {error}")
            continue
        try:
            write_image(out, restore_image(network, image, task["colour"], scale or 1))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return problems


def restore_image(model: nn.Module, image: np.ndarray, colour: str, scale: int = 1) -> np.ndarray:
    """Restore one image: uint8 (H, W, 1) grey or (H, W, 3) RGB, and the same out, at `scale` times the size.

    colour: of the planes that the model was trained on, as in pipeline.task. "y": the Y of an RGB image is restored, as
    float, and Cb and Cr stay. "gray": the channels of an RGB image one by one. "rgb": a grey image as three equal
    channels, of whose results the mean is taken. Raises UserError for a result that is not finite.
    """
    x = image.astype(np.float32) / 255
    if scale > 1:
        x = imresize(x, scale=scale).astype(np.float32)  # neither rounded nor clipped, as in training
    grey = x.shape[2] == 1
    if colour == "rgb":
        output = restore_plane(model, np.repeat(x, 3, axis=2) if grey else x)
        output = output.mean(axis=2, keepdims=True) if grey else output
    elif grey or colour == "gray":
        output = np.concatenate([restore_plane(model, x[..., c : c + 1]) for c in range(x.shape[2])], axis=2)
    elif colour == "y":
        y = 16 / 255 + x @ LUMA[:, None]  # (H, W, 1)
        output = x + (restore_plane(model, y) - y) * Y_TO_RGB
    else:
        raise UserError(f"the model works on {colour!r} planes, which this version of memoir does not know; upgrade it")
    if not np.isfinite(output).all():
        raise UserError("the restored image holds NaN or infinity, the model has diverged (take an earlier version)")
    return np.floor(output.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def on_device(model: nn.Module) -> nn.Module:
    """The model on the GPU, where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def restore_plane(model: nn.Module, plane: np.ndarray, tile: int | None = None) -> np.ndarray:
    """float32 (H, W, C) in [0, 1] through the model; the same shape, not clipped.

    tile: None restores the image as one. With a number, each of its overlapping tiles of so many pixels a side is an image
    of its own, and their mean is taken where they overlap: another result of a network whose statistics are those of
    its whole input, which then has the size that it was trained on. As few tiles as cover the image, spread evenly; a side
    shorter than a tile is taken whole. Source: `grids` in the releases of HINet and DRCNet.
    """
    if tile is None:
        lq = torch.from_numpy(np.ascontiguousarray(plane.transpose(2, 0, 1)))[None]  # (1, C, H, W)
        return restore_tiled(model, lq)[0].permute(1, 2, 0).numpy()
    H, W = plane.shape[:2]
    total, count = np.zeros_like(plane), np.zeros((H, W, 1), np.float32)
    for top in _starts(H, tile):
        for left in _starts(W, tile):
            part = np.s_[top : top + tile, left : left + tile]
            total[part] += restore_plane(model, plane[part])
            count[part] += 1
    return total / count


def _starts(side: int, tile: int) -> list[int]:
    """Where tiles begin that cover so many pixels; the last one ends with them."""
    gaps = (side - 1) // tile
    step = math.ceil((side - tile) / gaps) if gaps else 0
    return [min(i * step, side - tile) for i in range(gaps)] + [max(side - tile, 0)]


@torch.inference_mode()
def restore_tiled(model: nn.Module, lq: Tensor, tile: int = TILE) -> Tensor:
    """model.restore(lq) tile by tile: the same values as in one piece, up to rounding in float32.

    lq: float32 (B, C, H, W) in [0, 1], on the CPU, as is the result. Tiles overlap by half the model's receptive field,
    and begin at multiples of its `size_multiple`. A tile has `tile` pixels a side with its overlap; more only for a model
    that sees so far that the overlap would be most of it. A model without a receptive field is not tiled.
    """
    device = next(model.parameters()).device
    run = cast("Callable[[Tensor], Tensor]", model.restore)
    H, W = lq.shape[2:]
    field, multiple = cast("int | None", model.receptive_field), cast(int, model.size_multiple)
    if field is None or max(H, W) <= tile:
        return run(lq.to(device)).cpu()
    halo = -(-(field // 2) // multiple) * multiple
    core = max((tile - 2 * halo) // multiple, 4 * halo // multiple, 1) * multiple
    output = torch.empty_like(lq)
    for top in range(0, H, core):
        for left in range(0, W, core):
            y, x = max(top - halo, 0), max(left - halo, 0)
            piece = run(lq[:, :, y : top + core + halo, x : left + core + halo].to(device)).cpu()
            output[:, :, top : top + core, left : left + core] = piece[
                :, :, top - y : top - y + core, left - x : left - x + core
            ]
    return output


def _check_scale(scale: int, trained: Trained, degradation: dict[str, Any]) -> None:
    if degradation["kind"] != "scale":
        raise UserError(f"--scale {scale}: {trained.name} is no model of super-resolution but of {degradation['kind']}")
    if scale not in degradation["factor"]:
        known = ", ".join(map(str, degradation["factor"]))
        raise UserError(f"--scale {scale}: {trained.name} was trained for the factors {known}")


def _files(source: Path, target: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """(input, output) files, and a line for each input that cannot be an image. Raises UserError for both as a whole."""
    if not source.exists():
        raise UserError(f"{source}: not found; give an image or a folder of images")
    if not source.is_dir():
        out = target / f"{source.stem}.png" if target.is_dir() else target
        if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UserError(
                f"{out}: the output is PNG or JPEG; end its name in .png or .jpg, or give a folder that exists"
            )
        if out.exists() and out.samefile(source):
            raise UserError(f"{out}: would overwrite its own input; give another name")
        return [(source, out)], []
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
            problems.append(f"{path}: {reason}")
    if not inputs and not problems:
        raise UserError(f"{source}: no images in it")
    return [(path, out) for out, path in inputs.items()], problems

"""What a built dataset holds: counts and sizes of each split, and a contact sheet to look at."""

import math
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.depth import levels, unit
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.shards.format import read_shards_json
from pipeline.shards.shard_set import ShardSet, Version, validation_pair
from pipeline.task import recorded

ROWS = 12  # samples of each split on the sheet
CELLS = 5  # versions shown of each sample
CROP, ZOOM = 96, 2  # pixels of the image that a cell shows, and pixels of the sheet for each
CELL, GAP, LINE = CROP * ZOOM, 8, 18
WHITE, BLACK, GREY, RED = (255, 255, 255), (20, 20, 20), (110, 110, 110), (220, 40, 40)


def inspect(folder: Path, contact_sheet: Path, patch: int | None = None) -> dict[str, Any]:
    """Summarise what `memoir build` wrote into `folder`, and draw a contact sheet of it, a PNG.

    Returns {"task", "digest", "colour", "bits", "licences", "orientations", "splits"}; a licence that is not known is None;
    orientations: see Degradation. A split is {"shards", "samples", "bytes", "sizes", "levels"}:
    `bytes` of its shards, `sizes` the [width, height] of its `min`, `median` and `max` image by number of pixels, `levels`
    the number of samples at each level. With `patch`, the side of a recipe's patches, "smaller" too: the images that are
    smaller than a patch, and mirrored to fill it.

    The sheet has up to 12 samples of each split, evenly spread over the index. Its rows: the whole clean image; the part
    in the frame, where the image has most detail, enlarged twice; the same part at each level, with the PSNR of the whole
    image. Inputs that the loader draws are drawn as for validation.
    Raises UserError for a folder without a whole build, and for a contact sheet that is not named as a PNG.
    """
    if contact_sheet.suffix.lower() != ".png":
        raise UserError(f"{contact_sheet}: the contact sheet is a PNG; give it a name that ends in .png")
    listing = read_shards_json(folder)
    splits: dict[str, Any] = {}
    strips: list[Image.Image] = []
    for split in dict.fromkeys(shard["split"] for shard in listing["shards"]):
        shards = [shard for shard in listing["shards"] if shard["split"] == split]
        shard_set = ShardSet(folder, split)
        level = shard_set.degradation.level_text
        versions = list(shard_set.versions())
        samples = [list(each) for _, each in groupby(versions, lambda version: version.key)]
        shapes = sorted((_base(sample[0]).shape for sample in samples), key=lambda shape: (shape[0] * shape[1], shape))
        sizes = {"min": shapes[0], "median": shapes[(len(shapes) - 1) // 2], "max": shapes[-1]}
        splits[split] = {
            "shards": len(shards),
            "samples": len(samples),
            "bytes": sum(shard["bytes"] for shard in shards),
            "sizes": {name: [shape[1], shape[0]] for name, shape in sizes.items()},
            "levels": dict(Counter(level.format(version.level) for version in versions)),
            **({} if patch is None else {"smaller": shard_set.smaller_than(patch)}),
        }
        shown = np.linspace(0, len(samples) - 1, min(ROWS, len(samples))).round().astype(int)
        strips.append(_heading(f"{listing['task']}, {split}", f"{len(shown)} of {len(samples):,} samples"))
        strips += [_row(samples[i], level) for i in shown]
    sheet = Image.new("RGB", (GAP + max(strip.width for strip in strips), sum(strip.height for strip in strips)), WHITE)
    top = 0
    for strip in strips:
        sheet.paste(strip, (GAP, top))
        top += strip.height
    write_image(contact_sheet, np.asarray(sheet))
    told = {name: listing[name] for name in ("task", "digest", "colour", "bits", "licences")}
    return told | {"orientations": recorded(listing["degradation"]).orientations, "splits": splits}


def _heading(title: str, note: str) -> Image.Image:
    """The strip above the samples of a split."""
    strip = Image.new("RGB", (4 * (CELL + GAP), 3 * LINE), WHITE)
    _write(strip, 0, LINE, title, note, size=20)
    return strip


def _row(sample: list[Version], level: str) -> Image.Image:
    """The strip of one sample. sample: its levels, at least one."""
    key, gt = sample[0].key, _base(sample[0])
    height, width = gt.shape[:2]
    top, left = _detail(gt)

    def cut(pixels: np.ndarray) -> Image.Image:
        part = Image.fromarray(_rgb(pixels[top : top + CROP, left : left + CROP]))
        return part.resize((part.width * ZOOM, part.height * ZOOM), Image.Resampling.NEAREST)

    whole = Image.fromarray(_rgb(gt))
    whole.thumbnail((CELL, CELL), Image.Resampling.BOX)
    scale = whole.width / width
    frame = (left, top, min(left + CROP, width), min(top + CROP, height))
    ImageDraw.Draw(whole).rectangle([round(edge * scale) - (i > 1) for i, edge in enumerate(frame)], outline=RED)
    cells = [("whole", f"{width}x{height}", whole)]
    if "v" in sample[0].planes:
        # a level of a pair is its frame v; the last frame occurs only as w
        frames = {version.level: version.planes["v"] for version in sample}
        cells += [(level.format(number), "", cut(frames[number])) for number in sorted(frames)[: CELLS + 1]]
        sample = []
    else:
        cells.append(("gt", "", cut(gt)))
    for version in sample[:CELLS]:
        lq, target = validation_pair(version)
        error = float(np.mean(np.square(lq - target, dtype=np.float64)))
        note = f"{-10 * math.log10(error):.2f} dB" if error else "the same"
        cells.append((level.format(version.level), note, cut(levels(lq, np.uint8))))

    strip = Image.new("RGB", (len(cells) * (CELL + GAP), 2 * LINE + CELL + 2 * GAP), WHITE)
    _write(strip, 0, 0, key, "", size=14)
    for column, (name, note, pixels) in enumerate(cells):
        _write(strip, column * (CELL + GAP), LINE, name, note, size=13)
        strip.paste(pixels, (column * (CELL + GAP), 2 * LINE))
    return strip


def _base(version: Version) -> np.ndarray:
    """The clean image, or the first of two frames."""
    return version.planes["gt" if "gt" in version.planes else "v"]


def _detail(gt: np.ndarray) -> tuple[int, int]:
    """(top, left) of the part to enlarge: where the image, (H, W, C), differs most from its own blurred version."""
    plane = gt.mean(axis=2, dtype=np.float32)
    fine = np.square(plane - cv2.GaussianBlur(plane, (0, 0), 2))
    total = cv2.boxFilter(fine, -1, (CROP, CROP), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = total[: max(1, gt.shape[0] - CROP + 1), : max(1, gt.shape[1] - CROP + 1)]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(top), int(left)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16, (H, W, 1) or (H, W, 3), as uint8 (H, W, 3)."""
    shown = pixels if pixels.dtype == np.uint8 else levels(unit(pixels), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def _write(strip: Image.Image, x: int, y: int, text: str, note: str, *, size: int) -> None:
    """Draw text with its upper left corner at (x, y), and a fainter note after it."""
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size)
    draw.text((x, y), text, BLACK, font)
    draw.text((x + draw.textlength(text, font) + size // 2, y), note, GREY, font)

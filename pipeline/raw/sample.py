"""The sample data sets: photographs from the scikit-image wheel, and small sets rendered from them."""

import hashlib
import importlib.util
import os
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.degradations.rain import rain
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images import picture
from pipeline.keyed import philox

SEED = 20220104


@dataclass(frozen=True)
class Photograph:
    """A file of scikit-image's data folder, the split it belongs to in every set, and what scikit-image says of it."""

    file: str
    split: str
    sha256: str
    note: str


# motorcycle_right.png shows the scene of motorcycle_left.png once more and is left out.
PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        "train",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "Eileen Collins; NASA, public domain",
    ),
    Photograph(
        "brick.png",
        "train",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "brick wall, grey; CC0Textures, CC0",
    ),
    Photograph(
        "grass.png",
        "train",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "grass, grey; DeviantArt (linolafett), CC0",
    ),
    Photograph(
        "gravel.png",
        "train",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "gravel, grey; CC0Textures, CC0",
    ),
    Photograph(
        "hubble_deep_field.jpg",
        "train",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "Hubble eXtreme Deep Field; NASA, public domain",
    ),
    Photograph(
        "ihc.png",
        "train",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "stained tissue; Center for Microscopy and Molecular Imaging, no known copyright restrictions",
    ),
    Photograph(
        "motorcycle_left.png",
        "train",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "motorcycle in a garage; Middlebury 2014 stereo benchmark (Scharstein et al., GCPR 2014), no licence stated",
    ),
    Photograph(
        "coins.png",
        "val",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "Greek coins, grey; Brooklyn Museum, no known copyright restrictions",
    ),
    Photograph(
        "rocket.jpg",
        "val",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "launch of a Falcon 9; SpaceX, public domain",
    ),
    Photograph(
        "camera.png",
        "test",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "photographer in a meadow, grey; Lav Varshney, CC0",
    ),
    Photograph(
        "chelsea.png",
        "test",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "a cat; Stefan van der Walt, CC0",
    ),
    Photograph(
        "coffee.png",
        "test",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "a cup of coffee; Rachel Michetti, CC0",
    ),
)


@dataclass(frozen=True)
class Crop:
    """A window of a photograph: (top, left) in pixels, and the folder or file name that its renderings get."""

    name: str
    file: str
    top: int
    left: int


FRAMES, FRAME_SIZE, PAIR_SIZE = 8, (160, 160), (240, 320)  # sizes: (height, width)

SCENES = (
    Crop("train/astronaut", "astronaut.png", 20, 150),
    Crop("train/bench", "motorcycle_left.png", 60, 40),
    Crop("train/headlight", "motorcycle_left.png", 80, 440),
    Crop("val/launch", "rocket.jpg", 200, 240),
    Crop("test/cup", "coffee.png", 120, 250),
)

RAIN_PAIRS = (
    Crop("train/Rain13K/1", "motorcycle_left.png", 0, 0),
    Crop("train/Rain13K/2", "motorcycle_left.png", 0, 421),
    Crop("train/Rain13K/3", "motorcycle_left.png", 260, 0),
    Crop("train/Rain13K/4", "motorcycle_left.png", 260, 421),
    Crop("train/Rain13K/5", "astronaut.png", 0, 100),
    Crop("train/Rain13K/6", "astronaut.png", 272, 100),
    Crop("test/Rain100H/1", "coffee.png", 0, 0),
    Crop("test/Rain100H/2", "chelsea.png", 0, 100),
    Crop("test/Rain100L/1", "coffee.png", 160, 280),
    Crop("test/Rain100L/2", "chelsea.png", 60, 0),
)

# (least, most) streaks on 100x100 pixels
LIGHT_RAIN, HEAVY_RAIN = (20, 45), (150, 200)

SHADOWS = (
    Crop("train/1-1", "motorcycle_left.png", 260, 0),
    Crop("train/1-2", "motorcycle_left.png", 260, 0),
    Crop("train/2-1", "motorcycle_left.png", 20, 421),
    Crop("train/3-1", "astronaut.png", 240, 60),
    Crop("train/4-1", "brick.png", 100, 100),
    Crop("train/5-1", "gravel.png", 0, 0),
    Crop("test/91-1", "coffee.png", 160, 280),
    Crop("test/91-2", "coffee.png", 160, 280),
    Crop("test/92-1", "chelsea.png", 30, 60),
)


@dataclass(frozen=True)
class SampleSet:
    """One entry of the sample root, as it is now: its files, their bytes, and how many of the files are new."""

    name: str
    files: int
    bytes: int
    added: int


def write_samples(root: Path) -> list[SampleSet]:
    """Write photos/, rain/, shadow/, timelapse/ and README.md below `root`: the same bytes on every machine.

    A missing root appears complete or not at all. In an existing one, files that are as they should be are left alone
    and missing ones are added; nothing is ever overwritten. Returns what `root` holds of the samples; if no entry has
    files added, there was nothing to do. Raises UserError, before anything is written, for a file that differs from the
    sample of its name, and for an installed scikit-image with other photographs.
    """
    photographs = {photograph.file: _photograph_bytes(photograph) for photograph in PHOTOGRAPHS}
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; name a folder for the sample data sets")
    target = root.resolve()  # if it is a link, the staging folder must be on the disk it leads to
    fresh = not target.exists()
    staging = target.parent / f".{target.name}.{os.getpid()}.tmp" if fresh else target / f".sample.{os.getpid()}.tmp"
    try:
        _render(staging, photographs)
        sets = [_compare(entry, target, root) for entry in sorted(staging.iterdir())]
        if fresh:
            staging.rename(target)
        else:
            _add_missing(staging, target)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); mend that, or name another folder") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sets


def _photograph_bytes(photograph: Photograph) -> bytes:
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError("scikit-image is not installed, and its wheel holds the photographs: pip install scikit-image")
    path = Path(package.origin).parent / "data" / photograph.file
    if not path.is_file() or hashlib.sha256(data := path.read_bytes()).hexdigest() != photograph.sha256:
        raise UserError(f"{path}: not the file of scikit-image 0.26; install that: pip install scikit-image==0.26.0")
    return data


def _render(root: Path, photographs: dict[str, bytes]) -> None:
    for photograph in PHOTOGRAPHS:
        write_bytes(root / "photos" / photograph.split / photograph.file, photographs[photograph.file])
    # The pixels are taken as stored, without the colour profile, so that the samples keep their bytes.
    pixels = {file: picture(data).pixels for file, data in photographs.items()}
    for scene in SCENES:
        _render_scene(root / "timelapse" / scene.name, scene, _cut(pixels[scene.file], scene, FRAME_SIZE))
    for pair in RAIN_PAIRS:
        _render_rain(root / "rain" / pair.name, pair, _cut(pixels[pair.file], pair, PAIR_SIZE))
    for triple in SHADOWS:
        _render_shadow(root / "shadow" / triple.name, triple, _cut(pixels[triple.file], triple, PAIR_SIZE))
    write_bytes(root / "README.md", _readme().encode())


def _cut(pixels: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    """The (height, width, 3) RGB pixels at the crop's place, also for a grey photograph."""
    window = pixels[crop.top : crop.top + size[0], crop.left : crop.left + size[1]]
    assert window.shape[:2] == size, f"{crop} reaches over the border"
    return np.broadcast_to(window, (*size, 3))


def _render_scene(folder: Path, scene: Crop, still: np.ndarray) -> None:
    rng = philox(SEED, "timelapse", scene.name)
    drops, slope = int(rng.integers(30, 90)), int(rng.integers(-90, 91))
    for frame in range(FRAMES):
        rainy = rain(still, (SEED, "timelapse", scene.name, frame), drops, slope)
        write_bytes(folder / f"{frame:03d}.png", _png(rainy))


def _render_rain(path: Path, pair: Crop, clean: np.ndarray) -> None:
    rng = philox(SEED, "rain", pair.name)
    drops = int(rng.integers(*(HEAVY_RAIN if "Rain100H" in pair.name else LIGHT_RAIN)))
    if "Rain13K" in pair.name and int(path.name) % 2:
        drops = int(rng.integers(*HEAVY_RAIN))
    rainy = rain(clean, (SEED, "rain", pair.name), drops, slope=int(rng.integers(-90, 91)))
    write_bytes(path.parent / "input" / f"{path.name}.png", _png(rainy))
    write_bytes(path.parent / "target" / f"{path.name}.png", _png(clean))


def _render_shadow(path: Path, triple: Crop, clean: np.ndarray) -> None:
    shade = _shade(philox(SEED, "shadow", triple.name), *PAIR_SIZE)
    # sunlight is gone, the blue light of the sky stays: what is left of R, G, B in 1/256
    left = np.array([92, 100, 118], np.int64)
    dark = clean * (256 * 256 - shade[..., None] * (256 - left)) + 2**15 >> 16
    mask = np.where(shade >= 128, 255, 0).astype(np.uint8)[..., None]
    split = path.parent.name
    for letter, image in (("A", dark.astype(np.uint8)), ("B", mask), ("C", clean)):
        write_bytes(path.parent / f"{split}_{letter}" / f"{path.name}.png", _png(image))


def _shade(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """How deep each pixel lies in a cast shadow: int64, (height, width), 0..256. It is an ellipse or a convex polygon."""
    y = np.arange(height)[:, None] - rng.integers(height // 3, 2 * height // 3)
    x = np.arange(width)[None, :] - rng.integers(width // 3, 2 * width // 3)
    if rng.integers(2):
        a, b = rng.integers(50, 90, 2)
        lean = rng.integers(-160, 161)  # in 1/256: the ellipse sheared by its height
        inside = (256 * x + lean * y) ** 2 * b**2 + (256 * y) ** 2 * a**2 <= (256 * a * b) ** 2
    else:
        normals = ((16, 0), (11, 11), (0, 16), (-11, 11), (-16, 0), (-11, -11), (0, -16), (11, -11))
        inside = np.ones((height, width), bool)
        for (v, u), reach in zip(normals, rng.integers(40, 100, len(normals)), strict=True):
            inside &= v * y + u * x <= 16 * reach
    radius = int(rng.integers(3, 7))
    return _box_mean(_box_mean(inside * np.int64(256), radius).T, radius).T


def _box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean over 2 radius + 1 rows, twice; beyond the border the last row goes on."""
    size = 2 * radius + 1
    for _ in range(2):
        padded = np.pad(values, ((radius + 1, radius), (0, 0)), mode="edge")
        sums = np.cumsum(padded, axis=0)
        values = (sums[size:] - sums[:-size]) // size
    return values


def _png(pixels: np.ndarray) -> bytes:
    """An uncompressed PNG of uint8 (H, W, 1) or (H, W, 3) RGB: compressed bytes would differ from zlib to zlib."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # a row starts with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    data = rows.tobytes()
    stream = b"\x78\x01"
    for start in range(0, len(data), 0xFFFF):
        block = data[start : start + 0xFFFF]
        stream += struct.pack("<BHH", start + 0xFFFF >= len(data), len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack(">I", zlib.adler32(data))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _readme() -> str:
    frame, pair = (f"{width}x{height}" for height, width in (FRAME_SIZE, PAIR_SIZE))
    table = "\n".join(f"| {p.file} | {p.split} | {p.note} |" for p in PHOTOGRAPHS)
    return f"""# Sample data sets

Written by `memoir sample`, to try the pipeline without a download. **No number computed on them supports a claim.**

## photos/ (layout `folder`): real photographs

Copies of files that the wheel of scikit-image 0.26 carries, byte for byte. Source and licence as scikit-image's
documentation of `skimage.data` gives them:

| file | split | what it shows; source, licence |
|---|---|---|
{table}

## rain/, shadow/, timelapse/: rendered, not photographed

Windows of the photographs above, with weather and shadows that are computed. A photograph is in the same split in
every set, so training never sees a test picture.

* `rain/` (layout `rain13k`): pairs of a rainy `input` and its clean `target`, {pair}, with the tree of Rain13K.
* `shadow/` (layout `istd`): triples with shadow (A), shadow mask (B) and without shadow (C), with the tree of ISTD.
* `timelapse/` (layout `scenes`): {FRAMES} frames of a scene, {frame}, in which only the rain moves.
"""


def _compare(entry: Path, target: Path, root: Path) -> SampleSet:
    paths = [entry, *sorted(entry.rglob("*"))]
    files = [path for path in paths if path.is_file()]
    added = 0
    for path in paths:
        name = path.relative_to(entry.parent)
        there = target / name
        if not os.path.lexists(there):
            added += path.is_file()
        elif not (there.is_dir() if path.is_dir() else there.is_file() and there.read_bytes() == path.read_bytes()):
            raise UserError(f"{root / name}: is not the sample of that name; move it away, or name another folder")
    return SampleSet(entry.name, len(files), sum(path.stat().st_size for path in files), added)


def _add_missing(staging: Path, target: Path) -> None:
    for entry in sorted(staging.iterdir()):
        there = target / entry.name
        if not there.exists():
            entry.rename(there)
        elif entry.is_dir():
            _add_missing(entry, there)

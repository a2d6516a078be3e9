"""Memory and seconds of restoring a large photograph with each paper's network at its full width, untrained.

Each network is measured in a process of its own: the picture is read, restored and written as `memoir restore` does it.

    python benchmarks/restore.py --megapixels 24 --tiles 12

--tiles: the network runs on this many tiles, and the others are copied. All tiles are alike, so the memory is the whole run's,
and the seconds follow from those of a tile; 0 runs the network on all of them.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

RECIPES = ("memnet-jpeg", "memorynet-deshadow", "timelapse-derain", "drcnet-derain")


def photograph(path: Path, pixels: float) -> tuple[int, int]:
    """Write a JPEG of 3:2 with so many pixels, smooth shapes and some noise; returns (width, height)."""
    from pipeline.images import write_image

    height = round(math.sqrt(pixels / 1.5))
    width = round(1.5 * height)
    y, x = np.ogrid[:height, :width]
    rng = np.random.default_rng(0)
    image = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        shapes = 120 + 60 * np.sin(x / (170 + 30 * channel)) + 50 * np.cos(y / 140)
        image[..., channel] = (shapes + rng.normal(0, 6, (height, width))).clip(0, 255)
    write_image(path, image, quality=90)
    return width, height


def one(recipe_name: str, source: Path, tiles: int) -> dict[str, Any]:
    """Restore the picture in this process. Returns the peak of its memory, its tiles and the seconds of one."""
    import torch

    from jobs.recipe import build_model, read_recipe
    from jobs.restoring import tiles as module
    from jobs.restoring.restore import restore_image
    from pipeline.images import read_picture, write_image
    from pipeline.task import read_task

    recipe = read_recipe(recipe_name)
    torch.manual_seed(0)
    model = build_model(recipe.model).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    network, seconds, copied = module._piece, [], 0

    def piece(model: Any, plane: np.ndarray) -> np.ndarray:
        nonlocal copied
        if tiles and len(seconds) == tiles:
            copied += 1
            return plane.copy()
        began = time.perf_counter()
        output = network(model, plane)
        seconds.append(time.perf_counter() - began)
        return output

    module._piece = piece
    shown, _ = read_picture(source)
    pixels = restore_image(model, shown.pixels, read_task(recipe.data.task).colour)
    write_image(source.with_name(f"{recipe_name}.png"), pixels, icc=shown.icc, exif=shown.exif, dpi=shown.dpi)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"gib": peak, "tiles": len(seconds) + copied, "run": len(seconds), "seconds": float(np.median(seconds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(one(a.recipes[0], a.child, a.tiles)))
        return
    with TemporaryDirectory() as folder:
        source = Path(folder, "photograph.jpg")
        width, height = photograph(source, a.megapixels * 1e6)
        for recipe in a.recipes:
            command = [sys.executable, __file__, "--child", str(source), "--tiles", str(a.tiles), "--recipes", recipe]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            whole = found["seconds"] * found["tiles"] / 60
            print(
                f"{recipe:20} {width}x{height}: {found['gib']:.2f} GiB at the most; {found['seconds']:.2f} s a tile, of which "
                f"{found['run']} were run; {found['tiles']} of them take {whole:.0f} minutes",
                flush=True,
            )


if __name__ == "__main__":
    main()

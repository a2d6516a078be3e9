from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.layouts.base import Count, Layout, Row
from pipeline.layouts.files import files_under


class DND(Layout):
    """Darmstadt noise data set, sRGB: [{DND,dnd_2017}/]images_srgb/{0001..0050}.mat, info.mat. All test, lq without gt.

    info.mat has 20 boxes for each image, 512x512 and counted from 1; each makes a part of InoisySRGB with the key
    <image>-<box>, e.g. 0001-01 to 0050-20, as submissions to the publication's server count them. The image is the
    scene. InoisySRGB holds floats in [0, 1]. They are rounded to 8 bits, so each value of a noisy patch is off by up to
    half a grey level, while the server scores floats. images_raw is passed by. Source:
    Plötz and Roth, Benchmarking Denoising Algorithms with Real Photographs, CVPR 2017.
    """

    name = "dnd"
    home = "https://noise.visinf.tu-darmstadt.de"
    tree = "images_srgb/{0001..0050}.mat, info.mat"
    counts = (Count("test", "lq", 1000),)

    def scan(self) -> Iterator[Row]:
        folder = self.folder("DND", "dnd_2017", "") / "images_srgb"
        paths = list(files_under(folder))
        boxes = read_boxes(folder.with_name("info.mat")) if paths else {}
        for path in paths:
            image = path.relative_to(folder).as_posix()
            if image not in boxes:
                yield self.reject("test", "lq", path, f"no boxes in info.mat, which has {len(boxes)} images")
            for number, (top, left, bottom, right) in enumerate(boxes.get(image, ()), 1):
                row = self.row("test", "lq", path, f"{path.stem}-{number:02}", path.stem)
                yield replace(row, part=f"InoisySRGB[{top - 1}:{bottom},{left - 1}:{right}]")


def read_boxes(info: Path) -> dict[str, list[list[int]]]:
    """The boxes of each image, `0001.mat` and so on: first row, first column, last row and last column, from 1.

    Raises UserError if the file is missing or is not DND's.
    """
    import h5py

    if not info.is_file():
        raise UserError(f"{info}: missing; it says where the patches lie; unpack it beside images_srgb")
    try:
        with h5py.File(info) as file:
            # a MATLAB struct array: a field is an array of references to the values
            boxes = [np.asarray(file[each]).T.astype(int) for each in np.ravel(file["info"]["boundingboxes"])]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        boxes = []
    if not boxes or any(each.ndim != 2 or each.shape[1] != 4 for each in boxes):
        raise UserError(f"{info}: not the info.mat of DND, or damaged; download it again")
    return {f"{image:04}.mat": each.tolist() for image, each in enumerate(boxes, 1)}

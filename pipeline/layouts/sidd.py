from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from pipeline.layouts.base import Count, Layout, Role, Row, Split
from pipeline.layouts.files import subfolders

BLOCKS = (40, 32)  # images, and blocks of 256x256 in each, in one .mat file


class SIDD(Layout):
    """SIDD-Medium and the sRGB blocks: [SIDD_Medium_Srgb/]Data/<instance>/<n>_{GT,NOISY}_SRGB_{010,011}.PNG; *.mat.

    train: of two names that differ by GT and NOISY, NOISY is lq and GT gt, about 16 megapixels each; the scene instance
    (`0001_001_S6_00100_00060_3200_L`) is the row's scene and starts its key. val: ValidationNoisyBlocksSrgb.mat (lq)
    and ValidationGtBlocksSrgb.mat (gt), each a variable of its name, uint8, 40x32x256x256x3; block [i,j] has the key
    Validation-<i>-<j>, counted from 0. test: BenchmarkNoisyBlocksSrgb.mat, of the same shape, lq without gt, whose
    scores the publication's server gives. The .mat files lie in the root. Source: Abdelhamed et al., A High-Quality
    Denoising Dataset for Smartphone Cameras, CVPR 2018.
    """

    name = "sidd"
    home = "https://abdokamel.github.io/sidd"
    licence = "MIT"
    tree = "Data/<instance>/*_{GT,NOISY}_SRGB_*.PNG, {ValidationNoisy,ValidationGt,BenchmarkNoisy}BlocksSrgb.mat"
    counts = (Count("train", "lq", 320), Count("val", "lq", 1280), Count("test", "lq", 1280))

    def scan(self) -> Iterator[Row]:
        data = self.folder("SIDD_Medium_Srgb", "") / "Data"
        yield from self.loose("train", "lq", data, "not in the folder of a scene instance")
        for folder in subfolders(data):
            rules: dict[Role, str] = {"lq": "{n}_NOISY_SRGB_{shot}", "gt": "{n}_GT_SRGB_{shot}"}
            yield from self.matched("train", {"lq": folder, "gt": folder}, folder.name, rules)
        yield from self.blocks("val", {"lq": "ValidationNoisyBlocksSrgb", "gt": "ValidationGtBlocksSrgb"})
        yield from self.blocks("test", {"lq": "BenchmarkNoisyBlocksSrgb"})

    def blocks(self, split: Split, names: Mapping[Role, str]) -> Iterator[Row]:
        """The blocks of the .mat files of one set, if all of them are there."""
        paths = {role: self.root / f"{name}.mat" for role, name in names.items()}
        missing = [path.name for path in paths.values() if not path.is_file()]
        subset = "Validation" if split == "val" else "Benchmark"
        for role, path in paths.items():
            if missing and path.is_file():
                yield self.reject(split, role, path, f"the other half of the pairs, {missing[0]}, is missing")
        for i, j in product(*map(range, BLOCKS)) if not missing else ():
            for role, path in paths.items():
                row = self.row(split, role, path, f"{subset}-{i}-{j}", subset)
                yield replace(row, part=f"{names[role]}[{i},{j}]")

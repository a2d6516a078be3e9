"""The small sets of super-resolution, denoising and JPEG: one tree, in one of several forms."""

import re
from collections.abc import Iterator
from typing import ClassVar

from pipeline.layouts.base import Count, Layout, Row, Split
from pipeline.layouts.files import SIDE_FILES, files_under, safe_key, unusable

SHARP = ("HR", "GTmod12", "image_SRF_2", "image_SRF_3", "image_SRF_4")


class SharpSet(Layout):
    """Sharp images: [<set>/][{HR,GTmod12,image_SRF_<scale>}/]<name>.{png,bmp,jpg}, role gt, all of one split.

    The first of HR, GTmod12 and image_SRF_<scale> that exists is taken; without any, the images in <set> itself.
    Other folders (LR_bicubic, LRbicx4, results) are passed by, and so are low-resolution images and results named
    `<name>_SRF_<scale>_<what>`. `_SRF_<scale>_HR` and `_GT` at the end of a name do not belong to the key. Images in
    GTmod12 are cropped to a multiple of 12, those in image_SRF_<scale> to one of the scale: scores differ a little.
    """

    tree = "{HR,GTmod12,image_SRF_<scale>}/*.png, or images only"
    split: ClassVar[Split] = "test"
    folders: ClassVar[tuple[str, ...]]  # the names of the set in archives; {variant} stands for the variant

    def scan(self) -> Iterator[Row]:
        root = self.folder(*(name.format(variant=self.variant) for name in self.folders), "")
        folder = next((root / name for name in SHARP if (root / name).is_dir()), root)
        for path in files_under(folder):
            reason = unusable(path)
            if path.parent != folder:
                if folder == root:
                    continue
                reason = "in a subfolder, where the layout has none"
            if path.suffix.lower() in SIDE_FILES or re.search(r"_SRF_\d_(?!HR$)", path.stem):
                continue
            if reason:
                yield self.reject(self.split, "gt", path, reason)
            else:
                yield self.row(self.split, "gt", path, safe_key(re.sub(r"(_SRF_\d_HR|_GT)$", "", path.stem)))


class T91(SharpSet):
    """The 91 training images of Yang et al., Image Super-Resolution via Sparse Representation, TIP 2010.

    Folders named Train_291 hold these and 200 of BSDS500 together, DRRN's eight turned versions of each (`_00` to `_07`):
    neither is this set.
    """

    name = "t91"
    split = "train"
    folders = ("T91", "Train_91", "91")
    counts = (Count("train", "gt", 91, causes={291: "with the 200 of BSDS500: layout bsds500 has those"}),)


class S14(SharpSet):
    """The 14 grey images on which RED and MemNet denoise, 1.bmp to 14.bmp; other images than Set14's and Set12's.

    MemNet's release has them in data/GaussianDenoising/S14, without a licence of the images. Source: Mao et al., Image
    Restoration Using Very Deep Convolutional Encoder-Decoder Networks with Symmetric Skip Connections, NIPS 2016.
    """

    name = "s14"
    home = "https://github.com/tyshiwo/MemNet"
    folders = ("data/GaussianDenoising/S14", "GaussianDenoising/S14", "S14")
    counts = (Count("test", "gt", 14),)


class Set5(SharpSet):
    """Five images. Source: Bevilacqua et al., Low-Complexity Single-Image Super-Resolution, BMVC 2012."""

    name = "set5"
    home = "https://github.com/jbhuang0604/SelfExSR"
    folders = ("Set5", "set5")
    counts = (Count("test", "gt", 5),)


class Set14(SharpSet):
    """Source: Zeyde et al., On Single Image Scale-Up Using Sparse-Representations, Curves and Surfaces 2010."""

    name = "set14"
    home = "https://github.com/jbhuang0604/SelfExSR"
    folders = ("Set14", "set14")
    counts = (Count("test", "gt", 14),)


class BSD100(SharpSet):
    """The 100 validation images of BSDS500 under their numbers. Source: Martin et al., ICCV 2001."""

    name = "bsd100"
    home = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
    licence = "non-commercial research and education (Berkeley)"
    folders = ("BSD100", "BSDS100", "B100")
    counts = (Count("test", "gt", 100),)


class Urban100(SharpSet):
    """img_001 to img_100. The publication has them cut for the scales 2 and 4, in image_SRF_2 and image_SRF_4, and not for 3,
    which needs whole images. Source: Huang et al., Single Image Super-Resolution from Transformed Self-Exemplars, CVPR 2015."""

    name = "urban100"
    home = "https://github.com/jbhuang0604/SelfExSR"
    folders = ("Urban100", "urban100")
    counts = (Count("test", "gt", 100),)


class Classic5(SharpSet):
    """Grey baboon, barbara, boats, lena and peppers, or 1 to 5. Source: Foi et al., Pointwise SA-DCT, TIP 2007."""

    name = "classic5"
    home = "https://github.com/cszn/DnCNN"
    folders = ("Classic5", "classic5")
    counts = (Count("test", "gt", 5),)


class LIVE1(SharpSet):
    """The 29 reference images of LIVE, variant color, or gray: made grey by MATLAB, and OpenCV's pixels differ.

    An archive named LIVE1 is taken as the variant that the user names. Source: Sheikh et al., A Statistical
    Evaluation of Recent Full Reference Image Quality Assessment Algorithms, TIP 2006.
    """

    name = "live1"
    home = "https://live.ece.utexas.edu/research/quality/subjective.htm"
    licence = "any use, with the copyright notice of LIVE, University of Texas at Austin"
    folders = ("LIVE1_{variant}", "LIVE1")
    variants = ("color", "gray")
    counts = (Count("test", "gt", 29),)

"""Metrics that networks and statistics learned: LPIPS, DISTS and NIQE, computed by the package pyiqa from weights on this machine.

pyiqa is an extra (`pip install 'memoir[iqa]'`), and is imported here only: it needs torchvision, which fits one release of torch.
Nothing is downloaded: the files of WEIGHTS lie in one folder, and a further one that pyiqa asks for is an error.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from jobs.evaluation.interval import margin
from pipeline.degradations.colour import with_channels
from pipeline.depth import unit
from pipeline.errors import UserError, nearest


class Files(NamedTuple):
    """What a metric needs. own: its own file, from the release v0.1-weights of IQA-PyTorch. backbone: torchvision's, or None.

    The hexadecimal digits in a name are the beginning of the file's sha256.
    """

    own: str
    backbone: str | None


WEIGHTS = {
    "lpips": Files("LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"),
    "dists": Files("DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"),
    "niqe": Files("niqe_modelparameters.mat", None),
}


class Perceptual:
    """A metric of pyiqa, ready to measure. name: a key of WEIGHTS. lower_better: whether less is nearer to the target."""

    def __init__(self, name: str, measure: Any) -> None:
        self.name = name
        self.lower_better = bool(measure.lower_better)
        self._alone = measure.metric_mode == "NR"  # without a reference
        self._measure = measure

    @torch.inference_mode()
    def measure(self, output: np.ndarray, target: np.ndarray) -> float:
        """The figure of an image: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB; grey is taken as three equal channels.

        Raises UserError for sizes that differ, and for a figure that is not finite.
        """
        if output.shape[:2] != target.shape[:2]:
            raise UserError(f"{self.name}: an output and its target are of one size")
        tensors = [
            torch.from_numpy(np.ascontiguousarray(unit(with_channels(image, 3)).transpose(2, 0, 1)))[None]
            for image in (output, target)
        ]
        value = float(self._measure(tensors[0]) if self._alone else self._measure(*tensors))
        if not math.isfinite(value):
            raise UserError(f"{self.name} gives {value}; the image may be too small for it")
        return value

    def summary(self, values: Sequence[float]) -> dict[str, Any]:
        """The mean over images with its margin. values: at least one."""
        return {
            "mean": math.fsum(values) / len(values),
            "margin": margin(values),
            "lower_better": self.lower_better,
        }


def perceptual(names: Sequence[str], weights: Path | None) -> list[Perceptual]:
    """The metrics of these names. weights: the folder that holds their files.

    Raises UserError, in one line, for another name, without that folder or a file of it, for a file that is not the published
    one, and where pyiqa is missing, cannot be imported, or would download something.
    """
    for name in names:
        if name not in WEIGHTS:
            raise UserError(f"no metric {name!r}; {nearest(name, list(WEIGHTS))}")
    if not names:
        return []
    if weights is None:
        raise UserError(f"{', '.join(names)}: give --weights, a folder that holds {_listed(names)}")
    for name in names:
        for file in WEIGHTS[name]:
            if file is not None:
                _check(weights / file, names)
    with _nothing_downloaded(weights), redirect_stdout(sys.stderr):  # it prints what it loads
        create = _pyiqa()
        return [Perceptual(name, _created(create, name, weights)) for name in names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(file for name in names for file in WEIGHTS[name] if file is not None))


def _check(path: Path, names: Sequence[str]) -> None:
    """Raise UserError unless the file is there and, as far as its name tells, the published one: loading it may run code."""
    if not path.is_file():
        raise UserError(
            f"{path}: not found; {', '.join(names)} take {_listed(names)} from there, and nothing is downloaded"
        )
    begins = re.search(r"-([0-9a-f]{8})[.]pth$", path.name)
    if begins and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(begins[1]):
        raise UserError(f"{path}: its sha256 does not begin with {begins[1]}; bring the published file")


def _pyiqa() -> Any:
    try:
        from pyiqa import create_metric
    except Exception as error:  # of torchvision, which refuses another release of torch by whatever it meets first
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"pyiqa cannot be imported ({first}): pip install 'memoir[iqa]', with the torchvision of torch "
            f"{torch.__version__.partition('+')[0]}"
        ) from None
    return create_metric


def _created(create: Any, name: str, weights: Path) -> Any:
    try:
        return create(name, device=torch.device("cpu"), pretrained_model_path=str(weights / WEIGHTS[name].own))
    except UserError:
        raise
    except Exception as error:  # a file that torch or scipy cannot read, another release of pyiqa
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"pyiqa cannot make {name} from {weights}: {first}") from None


@contextmanager
def _nothing_downloaded(weights: Path) -> Iterator[None]:
    """Have torchvision look for its backbones in `weights`, and nobody open a URL through torch.hub or Hugging Face's hub."""

    def refuse(request: Any, *_: Any, **__: Any) -> NoReturn:
        url = getattr(request, "full_url", request)
        raise UserError(
            f"{str(url).rsplit('/', 1)[-1]}: not in {weights}, and nothing is downloaded; bring it from {url}"
        )

    hub: Any = torch.hub
    folder, opens, offline = hub.get_dir(), hub.urlopen, os.environ.get("HF_HUB_OFFLINE")
    with TemporaryDirectory(prefix="memoir-hub-") as place:
        Path(place, "checkpoints").symlink_to(weights.resolve())
        try:
            hub.set_dir(place)
            hub.urlopen = refuse  # what its downloads, and those of pyiqa, begin with
            os.environ["HF_HUB_OFFLINE"] = "1"
            yield
        finally:
            hub.set_dir(folder)
            hub.urlopen = opens
            os.environ.pop("HF_HUB_OFFLINE")
            os.environ.update({"HF_HUB_OFFLINE": offline} if offline is not None else {})

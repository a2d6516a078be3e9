"""Files for the server of DND, which alone has the targets."""

import io
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from jobs.evaluation.scoring import Restorer, identity, restorer
from jobs.restoring.checkpoint import load_model
from jobs.restoring.restore import check_channels, on_device
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images import UnusableImageError, matlab_image
from pipeline.layouts.base import Row
from pipeline.layouts.dnd import DND

HOME = DND.home


def submit_dnd(
    model: str, data: Path, out: Path, runs: Path, trust: Collection[str] = (), store: str | None = None
) -> list[Path]:
    """Restore DND's 1,000 patches and write <out>/0001.mat to 0050.mat. model: as `evaluate` takes it.

    Unlike in the shards of a task, the patches are not rounded to 8 bits, neither before the model nor after it. A file that
    is there is written again. Returns the files. trust, store: see `load_model`. Raises UserError for a model of grey images,
    for data that is not whole, which the server would refuse, and for an output that is not finite.
    """
    restore: Restorer = identity
    if model != "identity":
        trained = load_model(model, runs, trust, store)
        check_channels(trained)
        if trained.model.in_channels != 3:
            raise UserError(f"{trained.name}: takes {trained.model.in_channels} channel, and DND's patches are of 3")
        restore = restorer(on_device(trained.model))
    images = _patches(data)
    files = []
    console = Console(stderr=True)
    for path, rows in track(images.items(), f"{data.name} dnd", transient=True, console=console):
        restored = np.empty((1, len(rows)), object)  # a cell array
        for n, row in enumerate(rows):
            try:
                noisy = matlab_image(path, row.part or "").astype(np.float32)
            except UnusableImageError as error:
                raise UserError(f"{path}: {error}") from None
            output = restore(noisy, None)
            if not np.isfinite(output).all():
                raise UserError(
                    f"{path}: restored to NaN or infinity, the model has diverged (submit an earlier checkpoint)"
                )
            restored[0, n] = output.clip(0, 1).astype(np.float32)
        files.append(out / path.name)
        write_bytes(files[-1], _bundle(restored))
    return files


def _patches(data: Path) -> dict[Path, list[Row]]:
    """The rows of each image, in the order of its boxes. Raises UserError if they are not all there."""
    dnd = DND("DND", data)
    images = defaultdict(list)
    for row in dnd.rows():
        if row.reject_reason:
            raise UserError(f"{row.path}: {row.reject_reason}")
        images[row.path].append(row)
    found, wanted = sum(map(len, images.values())), dnd.published()[0].number
    if found != wanted:
        raise UserError(f"{data}: {found:,} patches, and the server wants {wanted:,}; unpack the data set again")
    return images


def _bundle(restored: np.ndarray) -> bytes:
    """The file of one image, as the publishers' bundle_submission_srgb.m writes it, but of MATLAB's version 5, compressed."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"Idenoised": restored, "israw": False, "eval_version": "1.0"}, do_compression=True)
    return file.getvalue()

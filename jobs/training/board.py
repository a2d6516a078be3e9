"""The curves of a run for TensorBoard."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage import Folder, Storage


class Board:
    """TensorBoard's event file of this process: in the run's folder at once, in a bucket with each checkpoint."""

    def __init__(self, place: Storage, step: int) -> None:
        """step: records of an earlier process beyond it are struck out, as they come again."""
        from tensorboardX import SummaryWriter

        self._copy = None if isinstance(place, Folder) else tempfile.TemporaryDirectory(prefix="memoir-board-")
        self.folder = Path(self._copy.name if self._copy else place.root, "tensorboard")  # type: ignore[attr-defined]
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def add(self, record: dict[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
        """Every number of a record, as a curve; with a validation its pictures, uint8 (H, W, C) by name, C 1 or 3."""
        for name, pixels in pictures.items() if any(key.startswith("val_") for key in record) else ():
            self._writer.add_image(name, pixels, record["step"], dataformats="HWC")
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def files(self) -> dict[str, bytes]:
        """What is not in the run's folder yet: contents by name."""
        return {f"tensorboard/{path.name}": path.read_bytes() for path in self.folder.iterdir()} if self._copy else {}

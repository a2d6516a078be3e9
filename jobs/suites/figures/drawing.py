"""What the figures share: what is drawn, from which models, and pictures side by side with their names."""

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluation.evaluate import to_uint8
from jobs.evaluation.published import Figure
from jobs.restoring.checkpoint import Trained, load_model
from jobs.suites.places import Places
from jobs.suites.variants import Scale, Variant, make_variant, trained_variant
from pipeline.errors import UserError
from pipeline.images import SUFFIXES, read_image

CELL = 220  # pixels of the longer side of a picture in a sheet, at least
BAND = 22  # pixels of the line with its name


@dataclass
class Drawing:
    """A figure in the making. model: what the user named, else the suite's. scale: see jobs.suites.tables.run_table."""

    figure: Figure
    places: Places
    model: str | None
    scale: Scale | None
    files: dict[str, bytes] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def trained(self, *overrides: str, recipe: int = 0) -> Trained:
        """A model of the figure, with these values of its recipe; trained first if `scale` says so.

        recipe: which of the figure's. A model that the user named stands for that without values. Raises UserError for one that
        is not trained, with the command that does it.
        """
        if self.model is not None and not overrides:
            found = load_model(self.model, self.places.runs, self.places.trust, self.places.store)
        else:
            which = self.variant(overrides, recipe)
            name = trained_variant(which, self.places, train=self.scale is not None)
            if name is None:
                raise UserError(
                    f"{which.name}: not trained; `{which.command}`, --model of a version, or --scale sample"
                )
            found = load_model(name, self.places.runs, self.places.trust, self.places.store)
        line = f"{found.name}: {found.uri} ({found.sha256[:16]})"
        if line not in self.ran:
            self.ran.append(line)
        return found

    def variant(self, overrides: Sequence[str], recipe: int = 0) -> Variant:
        """The variant that `trained` takes."""
        given = self.figure.sample[recipe] if self.scale == "sample" else self.figure.recipe[recipe]
        return make_variant("", given, tuple(overrides))

    def image(self) -> tuple[str, np.ndarray]:
        """The image of the suite's first set that is at hand, or of the sample photographs: its name, uint8 (H, W, C)."""
        from jobs.suites.sets import root_of

        folders = [root_of(name, self.places.datasets) for name in self.figure.sets]
        for folder in [
            *folders,
            self.places.datasets / "photos/test",
            self.places.datasets / "rain/test/Rain100L/input",
        ]:
            found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
            if found:
                return f"{folder.name}/{found[0].name}", read_image(found[0], bits=8)[0]
        raise UserError(f"no image in {', '.join(map(str, folders))}; `memoir sample` writes some")

    def csv(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Numbers as a table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])
        self.files[name] = text.getvalue().encode()

    def svg(self, name: str, text: str) -> None:
        """A plot."""
        self.files[name] = text.encode()

    def sheet(self, name: str, cells: Sequence[tuple[str, np.ndarray]], columns: int) -> None:
        """Pictures in rows of `columns`, each under its name. cells: (name, uint8 or float [0, 1], (H, W, 1 or 3) or (H, W))."""
        encoded = cv2.imencode(".png", cv2.cvtColor(sheet(cells, columns), cv2.COLOR_RGB2BGR))[1]
        self.files[name] = encoded.tobytes()


def sheet(cells: Sequence[tuple[str, np.ndarray]], columns: int) -> np.ndarray:
    """See Drawing.sheet; uint8 (H, W, 3)."""
    framed = [_cell(name, picture) for name, picture in cells]
    high, wide = (max(each.shape[i] for each in framed) for i in (0, 1))
    padded = [np.pad(c, ((0, high - c.shape[0]), (0, wide - c.shape[1]), (0, 0)), constant_values=255) for c in framed]
    padded += [np.full_like(padded[0], 255)] * (-len(padded) % columns)
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)


def _cell(name: str, picture: np.ndarray) -> np.ndarray:
    picture = picture if picture.dtype == np.uint8 else to_uint8(picture)
    picture = picture.reshape(*picture.shape[:2], -1)
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    factor = CELL / max(picture.shape[:2])
    if factor > 1:
        size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
    width = max(picture.shape[1], 6 * len(name) + 8)
    picture = np.pad(picture, ((BAND, 6), (4, 4 + width - picture.shape[1]), (0, 0)), constant_values=255)
    return cv2.putText(
        np.ascontiguousarray(picture), name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (30, 30, 30), 1, cv2.LINE_AA
    )


def energy(features: Tensor) -> np.ndarray:
    """A feature map (1, C, H, W) as one picture (H, W): the mean magnitude of its channels, from its 1st to its 99th percentile."""
    return stretched(features[0].detach().abs().float().mean(0).cpu().numpy())


def stretched(plane: np.ndarray) -> np.ndarray:
    """A plane (H, W) on [0, 1] between its 1st and 99th percentile; a constant one is 0."""
    low, high = np.percentile(plane, (1, 99))
    return np.asarray((plane - low) / max(high - low, 1e-12)).clip(0, 1)


def tensor(image: np.ndarray, model: nn.Module, multiple: int = 1, most: int = 512) -> Tensor:
    """The middle of an image as a model takes it: uint8 (H, W, C) -> (1, C, h, w) in [0, 1], sides whole multiples, at most `most`."""
    h, w = (min(side, most) // multiple * multiple for side in image.shape[:2])
    y, x = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    cut = image[y : y + h, x : x + w].astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))[None].to(next(model.parameters()).device)


class Watch(AbstractContextManager["Watch"]):
    """What modules give out while a network runs: seen[name] is a list of the outputs of each call."""

    def __init__(self, **modules: nn.Module) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in modules}
        self._hooks = [module.register_forward_hook(self._keep(name)) for name, module in modules.items()]

    def _keep(self, name: str) -> Callable[..., None]:
        return lambda module, inputs, output: self.seen[name].append(output.detach())

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

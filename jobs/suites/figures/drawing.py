"""What the figures share: what is drawn, from which models, and pictures side by side with their names."""

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import to_uint8
from jobs.evaluation.items import items
from jobs.evaluation.published import Figure
from jobs.restoring.checkpoint import Trained, load_model
from jobs.suites.places import Places
from jobs.suites.sets import SETS, run_of
from jobs.suites.variants import Scale, Variant, make_variant, trained_variant
from pipeline.errors import UserError
from pipeline.images import source_image

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
        """The first degraded image of the suite's sets that are at hand, or of the samples: its name, uint8 (H, W, C).

        Raises UserError if there is none.
        """
        runs = [run_of(name, _benchmark(name), self.places.datasets) for name in self.figure.sets]
        runs += [make_variant("", name, ()).recipe.evaluation.benchmarks[0] for name in self.figure.sample]
        for run in runs:
            if Path(run.data).is_dir():
                file = items(benchmark(run.benchmark), run)[0][0].files[0]
                return f"{file.path.parent.name}/{file.path.name}", source_image(file.path, file.part, bits=8)[0]
        raise UserError(
            f"no image in {', '.join(dict.fromkeys(run.data for run in runs))}; `memoir sample` writes some"
        )

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

    def sheet(self, name: str, cells: Sequence[tuple[str, np.ndarray]], columns: int, least: int = CELL) -> None:
        """Pictures in rows of `columns`, each under its name. cells: (name, uint8 or float [0, 1], (H, W, 1 or 3) or (H, W))."""
        encoded = cv2.imencode(".png", cv2.cvtColor(sheet(cells, columns, least), cv2.COLOR_RGB2BGR))[1]
        self.files[name] = encoded.tobytes()


def _benchmark(name: str) -> str:
    """One that finds the images of a test set: pairs by their layout, clean images by any degradation."""
    return "jpeg-q10" if SETS[name].layout is None else "pairs-rgb"


def sheet(cells: Sequence[tuple[str, np.ndarray]], columns: int, least: int = CELL) -> np.ndarray:
    """See Drawing.sheet; uint8 (H, W, 3). least: smaller pictures are enlarged to this longer side."""
    framed = [_cell(name, picture, least) for name, picture in cells]
    rows = [framed[i : i + columns] for i in range(0, len(framed), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(framed)))]
    strips = []
    for row in rows:
        high = max(each.shape[0] for each in row)
        blank = np.full((high, 0, 3), 255, np.uint8)
        padded = [
            np.pad(each, ((0, high - each.shape[0]), (0, width - each.shape[1]), (0, 0)), constant_values=255)
            for each, width in zip([*row, *[blank] * (len(widths) - len(row))], widths, strict=True)
        ]
        strips.append(np.concatenate(padded, 1))
    return np.concatenate(strips)


def _cell(name: str, picture: np.ndarray, least: int) -> np.ndarray:
    picture = picture if picture.dtype == np.uint8 else to_uint8(picture)
    picture = picture.reshape(*picture.shape[:2], -1)
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    factor = least / max(picture.shape[:2])
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

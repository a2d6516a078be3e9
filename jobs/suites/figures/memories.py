"""What memories hold and what features they make: MemoryNet's figure 7, the time-lapse paper's 3 and 10 to 12, DRCNet's 5 (a)."""

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from jobs.models.drcnet import DFR, DRCNet, energy_attention
from jobs.models.memorynet import MemoryNet
from jobs.models.timelapse import Memory, TimeLapseNet
from jobs.restoring.checkpoint import Trained
from jobs.suites.figures.drawing import Drawing, Watch, energy, stretched, tensor
from jobs.suites.figures.plot import COLOURS, Series, plot
from pipeline.errors import UserError

NO_WHITENING = "model.loss.w=0"
Kind = TypeVar("Kind", bound=torch.nn.Module)
SLOPE = 0.2  # of DRCNet's leaky ReLU
QUERIES = 600  # of the image, at most, as points of figure 10


def _picture(x: torch.Tensor) -> np.ndarray:
    return np.asarray(x[0].detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy())


def _network(trained: Trained, kind: type[Kind]) -> Kind:
    """The model of a figure that is of one kind of network. Raises UserError for another."""
    model: object = trained.model
    if not isinstance(model, kind):
        raise UserError(f"{trained.name}: not a {kind.__name__}, and the figure is of one")
    return model


@torch.inference_mode()
def memorynet(drawing: Drawing) -> None:
    """MemoryNet's Fig. 7: the first layer's features of an image as it is, and after the memory."""
    trained = drawing.trained()
    model = _network(trained, MemoryNet)
    if model.memory is None:
        raise UserError(f"{trained.name}: without a memory")
    name, image = drawing.image()
    x = tensor(_colour(image), model, model.size_multiple)
    with Watch(memory=model.memory) as watch:
        model.restore(x)
    first = model.shallow[0].conv
    assert isinstance(first, torch.nn.Conv2d)
    before = first(x)
    cells = [("input", _picture(x)), ("first layer, without memory", energy(before))]
    rows = []
    for level, read in enumerate(watch.seen["memory"], 1):
        whole = (
            read.shape[1] == x.shape[1]
        )  # an image again: it goes through the first layer; otherwise features that were read
        after = first(read.to(x.dtype)) if whole else read
        if whole:
            cells.append((f"what level {level} reads", _picture(read)))
        cells.append((f"first layer after level {level}" if whole else f"read {level} of the features", energy(after)))
        varies = read.float().std((2, 3)).mean()
        rows.append(
            [
                level,
                "image" if whole else "features",
                float(varies),
                float(varies / (x if whole else before).std((2, 3)).mean()),
            ]
        )
    drawing.sheet("features.png", cells, 2 if len(cells) % 2 == 0 else 3)
    drawing.csv("reads.csv", ["read", "of", "deviation over pixels", "of that of the query"], rows)
    drawing.ran.append(f"{name}: mean magnitude over the channels, 1st to 99th percentile")


def _colour(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _with_and_without(drawing: Drawing) -> list[tuple[str, TimeLapseNet, Memory]]:
    """The network, and its memory, trained without the whitening loss, where it is there, and with it."""
    found = []
    for label, overrides in (("without L_w", (NO_WHITENING,)), ("with L_w", ())):
        try:
            trained = drawing.trained(*overrides)
        except UserError as error:
            if not overrides:
                raise
            drawing.lacking.append(f"{label}: {error}")
            continue
        model = _network(trained, TimeLapseNet)
        if model.memory is None:
            raise UserError(f"{trained.name}: without a memory")
        found.append((label, model, model.memory))
    return found


@torch.inference_mode()
def reads(drawing: Drawing) -> None:
    """The time-lapse paper's Figs. 3 and 11: an image, its de-rained one, and the decoder's features without and with L_w."""
    name, image = drawing.image()
    cells: list[tuple[str, np.ndarray]] = []
    for label, model, _ in _with_and_without(drawing):
        x = tensor(_colour(image), model, 8)
        with Watch(decoder=model.d1, memory=model.d4) as watch:
            restored = model.restore(x)
        cells += [] if cells else [("input", _picture(x))]
        cells += [
            (f"{label}: de-rained", _picture(restored)),
            (f"{label}: from the memory (D4)", energy(watch.seen["memory"][0])),
        ]
        cells.append((f"{label}: decoder (D1)", energy(watch.seen["decoder"][0])))
        rain = (x - restored)[0].abs().mean(0).cpu().numpy()
        cells.append((f"{label}: rain", stretched(rain)))
    drawing.sheet("features.png", [cells[0], *cells[1:]], 5)
    drawing.ran.append(f"{name}: mean magnitude over the channels, 1st to 99th percentile")


def embedded(points: np.ndarray) -> np.ndarray:
    """Points (N, C) by t-SNE on their cosine distances, (N, 2): the same for the same points, on one machine."""
    from sklearn.manifold import TSNE  # takes a second

    tsne = TSNE(metric="cosine", perplexity=min(30, (len(points) - 1) / 3), init="pca", method="exact", random_state=0)
    return np.asarray(tsne.fit_transform(points))


@torch.inference_mode()
def items(drawing: Drawing) -> None:
    """The time-lapse paper's Fig. 10: queries of an image and the memory's items by t-SNE, coloured by the nearest item."""
    name, image = drawing.image()
    for label, model, memory in _with_and_without(drawing):
        x = tensor(_colour(image), model, 8)
        q = model.query(model.encode(2 * x - 1)[1])[1][0].cpu().numpy()
        p = memory.items.cpu().numpy()
        q = q[np.linspace(0, len(q) - 1, min(QUERIES, len(q))).astype(int)]
        nearest = (q @ p.T).argmax(1)
        flat = embedded(np.concatenate([q, p]))
        stem = label.replace(" ", "-")
        rows = [["query", int(n), float(a), float(b)] for n, (a, b) in zip(nearest, flat, strict=False)]
        rows += [["item", i, float(a), float(b)] for i, (a, b) in enumerate(flat[len(q) :])]
        drawing.csv(f"{stem}.csv", ["kind", "item", "x", "y"], rows)
        series = [
            Series(
                f"item {i}",
                [(float(a), float(b)) for a, b in flat[: len(q)][nearest == i]],
                False,
                (),
                COLOURS[j % len(COLOURS)],
            )
            for j, i in enumerate(np.unique(nearest)[:14])
        ]
        at = [(float(a), float(b)) for a, b in flat[len(q) :]]
        series.append(Series("items", at, False, [str(i) for i in range(len(p))], "#000000"))
        drawing.svg(
            f"{stem}.svg",
            plot(f"Queries and items, {label}", "t-SNE of cosine distances", "", series),
        )
        used = len(np.unique(nearest))
        cosine = float((q @ p.T).max(1).mean())
        drawing.ran.append(
            f"{name}, {label}: {len(q)} queries, nearest to {used} of {len(p)} items, mean cosine {cosine:.3f}"
        )


@torch.inference_mode()
def layers(drawing: Drawing) -> None:
    """The time-lapse paper's Fig. 12: four feature maps of the encoder's first convolution and four of the decoder's last."""
    trained = drawing.trained()
    model = _network(trained, TimeLapseNet)
    name, image = drawing.image()
    x = tensor(_colour(image), model, 8)
    with Watch(first=next(m for m in model.e1.modules() if isinstance(m, torch.nn.Conv2d)), last=model.d1) as watch:
        restored = model.restore(x)
    cells = [("input", _picture(x)), ("de-rained", _picture(restored))]
    rows = []
    rain = (x - restored)[0].mean(0).flatten()
    chosen = {}
    for place, title in (("first", "first convolution"), ("last", "decoder's last")):
        maps = watch.seen[place][0][0].float()
        strongest = maps.flatten(1).std(1).argsort(descending=True)[:4].tolist()
        chosen[place] = [(f"{title}, map {i}", stretched(maps[i].cpu().numpy())) for i in strongest]
        for i in strongest:
            both = torch.stack((maps[i].flatten(), rain))
            rows.append([title, i, float(torch.corrcoef(both)[0, 1])])
    drawing.sheet("features.png", [*cells, *chosen["first"][:2], *chosen["first"][2:], *chosen["last"]], 5)
    drawing.csv("correlation.csv", ["layer", "map", "correlation with the rain that is removed"], rows)
    drawing.ran.append(f"{name}: of each layer the four maps that vary most")


@torch.inference_mode()
def branches(drawing: Drawing) -> None:
    """DRCNet's Fig. 5 (a): the first DFR module's features by its spatial filter, its energy-based attention, and both."""
    trained = drawing.trained()
    model = _network(trained, DRCNet)
    name, image = drawing.image()
    x = tensor(_colour(image), model, model.size_multiple)
    dfr = next((m for m in model.modules() if isinstance(m, DFR) and m.has_sf and m.has_ea), None)
    if dfr is None:
        raise UserError(f"{trained.name}: no module with both branches; dfr.branches is not full")
    norm = {} if dfr.norm is None else {"norm": dfr.norm}
    with Watch(conv=dfr.conv, out=dfr, **norm) as watch:
        restored = model.restore(x)
    u, v = watch.seen["conv"][0].chunk(2, 1)
    if dfr.norm is not None:
        u = torch.cat([watch.seen["norm"][0], u.chunk(2, 1)[1]], 1)
    attention = F.leaky_relu(energy_attention(v, dfr.delta, unbiased=dfr.unbiased), SLOPE)
    spatial = F.leaky_relu(u, SLOPE)
    cells = [("input", _picture(x)), ("output", _picture(restored)), ("spatial filter", energy(spatial))]
    cells += [("energy-based attention", energy(attention)), ("DFR", energy(watch.seen["out"][0]))]
    drawing.sheet("features.png", cells, 3)
    drawing.ran.append(f"{name}: mean magnitude over the channels, 1st to 99th percentile")


DRAW = {"memorynet": memorynet, "reads": reads, "items": items, "layers": layers, "branches": branches}

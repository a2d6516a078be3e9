"""MemNet's figures 4, 5 and 6: spectra of predictions, norms of the gates' weights, PSNR against time."""

import json
import time
from typing import Any

import numpy as np
import torch

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.items import items
from jobs.evaluation.protocols import mean
from jobs.models.memnet import MemNet, MemoryBlock
from jobs.restoring.checkpoint import Trained
from jobs.suites.cost import machine
from jobs.suites.figures.drawing import Drawing
from jobs.suites.figures.plot import Series, bars, plot
from jobs.suites.sets import lacking, run_of
from pipeline.errors import UserError

NO_LONG_TERM = "model.long_term=false"


def _memnet(trained: Trained) -> MemNet:
    if not isinstance(trained.model, MemNet):
        raise UserError(f"{trained.name}: not a MemNet, and the figure is of one")
    return trained.model


def _blocks(model: MemNet) -> list[MemoryBlock]:
    return [block for block in model.blocks if isinstance(block, MemoryBlock)]


def density(plane: np.ndarray) -> np.ndarray:
    """The spectral density of a plane (H, W) by radius: the mean power in rings of one cycle per image, from 0 to min(H, W) / 2.

    Source: MemNet, Fig. 4: the centred power spectrum, integrated along concentric circles.
    """
    power = np.abs(np.fft.fftshift(np.fft.fft2(plane - plane.mean()))) ** 2 / plane.size
    h, w = plane.shape
    y, x = np.mgrid[:h, :w]
    # cycles of the shorter side, so that both axes have the same unit: cycles a pixel
    radius = np.rint(min(h, w) * np.hypot((y - h // 2) / h, (x - w // 2) / w)).astype(int)
    total, count = np.bincount(radius.ravel(), power.ravel()), np.bincount(radius.ravel())
    return (total / count)[: min(h, w) // 2 + 1]


@torch.inference_mode()
def spectra(drawing: Drawing) -> None:
    """Fig. 4: the predictions of two blocks with and without long-term connections, their spectra, and the spectra's differences."""
    name, image = drawing.image()
    which = benchmark("sr-x4")
    pair = which.prepare(image)[0]
    curves: dict[str, np.ndarray] = {}
    cells = [("bicubic x4", pair.lq), ("ground truth", pair.gt)]
    for label, trained in (("MemNet_NL", drawing.trained(NO_LONG_TERM)), ("MemNet", drawing.trained())):
        model = _memnet(trained)
        y = model.predictions(_lq(pair.lq))
        if len(y) < 2:
            raise UserError(f"{trained.name}: one prediction, and the figure compares those of two blocks")
        for m in (max(1, 2 * len(y) // 3), len(y)):
            plane = y[m - 1][0, 0].numpy()
            score = which.score(plane[..., None], pair).values
            curves[f"{label}_{m}"] = density(255 * plane)
            cells.append((f"{label}_{m}  {score['psnr']:.2f}/{score['ssim']:.4f}", plane))
    drawing.sheet("outputs.png", cells, 2)
    logs = {label: np.log10(curve + 1e-12) for label, curve in curves.items()}
    frequency = np.arange(len(next(iter(curves.values())))) / (2 * (len(next(iter(curves.values()))) - 1))
    drawing.csv(
        "spectra.csv",
        ["cycles per pixel", *curves],
        [[f, *(float(c[i]) for c in curves.values())] for i, f in enumerate(frequency.tolist())],
    )
    drawing.svg(
        "spectra.svg",
        plot(
            f"Spectral densities, {name}",
            "cycles per pixel",
            "log10 of power",
            [Series(n, list(zip(frequency, v, strict=True))) for n, v in logs.items()],
        ),
    )
    nl_early, nl_late, early, late = logs
    pairs = ((nl_early, nl_late), (early, late), (early, nl_early), (late, nl_late))
    differences = [Series(f"{a} - {b}", list(zip(frequency, logs[a] - logs[b], strict=True))) for a, b in pairs]
    drawing.svg(
        "differences.svg", plot("Differences of the densities", "cycles per pixel", "log10 of the ratio", differences)
    )
    drawing.ran.append(f"{name}, enlarged 4 times; predictions of the blocks {', '.join(curves)}")


def gate_norms(model: MemNet) -> list[np.ndarray]:
    """v_m^l for each gate m: the norm of the weights of each feature map that it sees, the long-term memories first.

    Source: MemNet, section 5.3.
    """
    return [
        block.gate.conv.weight.detach()[:, :, 0, 0].square().sum(0).sqrt().cpu().numpy() for block in _blocks(model)
    ]


def gates(drawing: Drawing) -> None:
    """Fig. 5: norms of the gates' weights by feature map, normalised to [0, 1], and their means by the kind of memory."""
    for task in range(1 if drawing.model else len(drawing.figure.recipe)):
        trained = drawing.trained(recipe=task)
        model = _memnet(trained)
        norms = gate_norms(model)
        high = max(float(v.max()) for v in norms)
        low = min(float(v.min()) for v in norms)
        scaled = [(v - low) / max(high - low, 1e-12) for v in norms]
        channels = _blocks(model)[0].conv_a.in_channels
        rows: list[list[Any]] = []
        means: dict[str, list[float]] = {"long-term": [], "short-term, first R-1": [], "short-term, last": []}
        for m, (v, block) in enumerate(zip(scaled, _blocks(model), strict=True), 1):
            long = m * channels if block.long_term else 0
            parts = (v[:long], v[long:-channels], v[-channels:])
            for values, part in zip(means.values(), parts, strict=True):
                values.append(float(part.mean()) if part.size else float("nan"))
            rows += [[m, index, _kind(index, long, len(v), channels), float(value)] for index, value in enumerate(v)]
        drawing.csv(f"{trained.name}.csv", ["block", "feature map", "memory", "norm"], rows)
        curves = [
            Series(f"block {m}", [(float(i), float(x)) for i, x in enumerate(v)]) for m, v in enumerate(scaled, 1)
        ]
        drawing.svg(
            f"{trained.name}.svg",
            plot(f"Norm of the gates' weights, {trained.name}", "feature map", "norm, scaled", curves, zero=True),
        )
        drawing.svg(
            f"{trained.name}-means.svg",
            bars(
                f"Mean norms, {trained.name}", "norm, scaled", [f"block {m}" for m in range(1, len(norms) + 1)], means
            ),
        )


def _kind(index: int, long: int, total: int, channels: int) -> str:
    return "long-term" if index < long else "short-term, last" if index >= total - channels else "short-term, first R-1"


@torch.inference_mode()
def speed(drawing: Drawing) -> None:
    """Fig. 6: PSNR of each prediction on Set5, x3, against the time of an image of 288x288 up to it, and the parameters."""
    trained = drawing.trained()
    model = _memnet(trained)
    line = lacking("Set5", drawing.places.datasets)
    if line is not None:
        raise UserError(line)
    which = benchmark("sr-x3")
    found = items(which, run_of("Set5", "sr-x3", drawing.places.datasets))[0]
    pairs = [pair for item in found for pair in item.pairs(which, trained.bits)]
    outputs = [[y[0].numpy().transpose(1, 2, 0) for y in model.predictions(_lq(pair.lq))] for pair in pairs]
    rows: list[tuple[str, float, float, int]] = []
    for m in range(1, len(outputs[0]) + 1):
        psnr = mean([which.score(output[m - 1], pair) for output, pair in zip(outputs, pairs, strict=True)]).values[
            "psnr"
        ]
        at = _up_to(model, m)
        params = sum(p.numel() for module in at for p in module.parameters())
        rows.append((f"MemNet_M{m}", psnr, _seconds(model, m), params))
    drawing.csv("speed.csv", ["prediction", "PSNR on Set5 x3", "seconds for 288x288", "parameters"], rows)
    drawing.files["machine.json"] = (json.dumps({"machine": machine(), "model": trained.uri}, indent=1) + "\n").encode()
    ours = Series("here", [(row[2], row[1]) for row in rows], joined=False, labels=[row[0] for row in rows])
    drawing.svg(
        "speed.svg",
        plot(f"PSNR on Set5 x3 against time, {trained.name}", f"seconds for 288x288, {machine()}", "PSNR (dB)", [ours]),
    )
    drawing.ran.append(f"Set5, sr-x3: {len(pairs)} images, {which.protocol}; median of 3 times on {machine()}")


def _lq(plane: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(plane.transpose(2, 0, 1)))[None]


def _up_to(model: MemNet, m: int) -> list[torch.nn.Module]:
    """What the prediction of block m needs."""
    return [model.feature, *model.blocks[:m], model.recon_bn[min(m, len(model.recon_bn)) - 1], model.recon]


def _seconds(model: MemNet, m: int) -> float:
    """The median time of an image of 288x288 through the first m blocks and the reconstruction."""
    blocks, norms, supervised = model.blocks, model.recon_bn, model.multi_supervision
    x, taken = torch.rand(1, model.in_channels, 288, 288), []
    try:
        model.blocks = blocks[:m]
        model.recon_bn = norms[m - 1 : m]
        model.multi_supervision = False
        for _ in range(4):
            began = time.perf_counter()
            model.predictions(x)
            taken.append(time.perf_counter() - began)
    finally:
        model.blocks, model.recon_bn, model.multi_supervision = blocks, norms, supervised
    return float(np.median(taken[1:]))


DRAW = {"spectra": spectra, "gates": gates, "speed": speed}

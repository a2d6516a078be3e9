"""The time that steps take and the values that they give, as means over steps and ranks."""

import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor

from jobs.models import collective

SPIKE = 5  # times the median loss of its interval: such a step is told, with its samples
LEAST = 10  # steps of an interval whose median says something


class Meter:
    """Means of what the steps report, and where the seconds go, between two records."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin the next interval."""
        self.sums: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.steps, self.images, self.wait, self.network, self.began = 0, 0, 0.0, 0.0, time.perf_counter()

    def state(self) -> dict[str, Any]:
        """The interval so far, of this rank, as JSON."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "losses": [float(loss) for loss in self.losses],
            "steps": self.steps,
            "images": self.images,
            "seconds": [self.wait, self.network, time.perf_counter() - self.began],
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with an interval as `state` had it."""
        self.sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}
        self.losses = [torch.tensor(value, device=device) for value in state["losses"]]
        self.steps, self.images = state["steps"], state["images"]
        self.wait, self.network, seconds = state["seconds"]
        self.began = time.perf_counter() - seconds

    def start(self) -> None:
        """The loop asks for a batch."""
        self.asked = time.perf_counter()

    def waited(self) -> None:
        """The batch is there."""
        self.wait += time.perf_counter() - self.asked

    def add(self, images: int, **values: Tensor) -> None:
        """One step, with its scalars; nothing is read from the device yet."""
        self.steps += 1
        self.images += images
        self.losses.append(values["loss"].detach())
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def spikes(self) -> list[tuple[int, float, float]]:
        """The steps of the interval whose loss stands out: how many steps ago each was, its loss over all ranks, the median's."""
        if self.steps < LEAST:
            return []
        losses = collective.all_reduce(torch.stack(self.losses).double()).cpu() / collective.world_size()
        median = float(losses.median())
        return [
            (self.steps - 1 - i, float(loss), median)
            for i, loss in enumerate(losses.tolist())
            if median > 0 and loss > SPIKE * median
        ]

    def record(self, device: torch.device) -> dict[str, Any]:
        """Means over the interval's steps and all ranks, with images/s (global), peak memory, and the seconds of waiting
        for data and for the network, that is, for the other ranks.
        """
        names = sorted(self.sums)
        sums = torch.stack([self.sums[name].double().cpu() for name in names]).to(device)
        means = collective.all_reduce(sums) / (self.steps * collective.world_size())
        seconds = time.perf_counter() - self.began
        record = dict(zip(names, means.tolist(), strict=True))
        record |= {"images_per_s": self.images / seconds, "seconds": seconds}
        record |= {"wait_s": self.wait, "network_s": self.network}
        unit = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
        record["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
        if device.type == "cuda":
            record["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        self.reset()
        return record

"""What a network costs: parameters, multiply-accumulates, and milliseconds on this machine."""

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from jobs.options import ModelOptions, model_class
from pipeline.cpus import cpu_name

if TYPE_CHECKING:
    from jobs.models import Network


class Cost(NamedTuple):
    """params: trained numbers. macs: multiply-accumulates of one image of `size` (height, width)."""

    params: int
    macs: int
    size: tuple[int, int]


def cost(options: ModelOptions, size: tuple[int, int]) -> Cost:
    """What one image of `size` costs, of convolutions and matrix products: half of torch's count of operations.

    Nothing is computed: the tensors have shapes and no contents. What is elementwise is not counted.
    """
    with FakeTensorMode(), torch.no_grad():
        model: Any = model_class(options.name)(**{name: value for name, value in options if name != "name"}).eval()
        with FlopCounterMode(display=False) as counter:
            model.restore(torch.zeros(1, model.in_channels, *size))
        params = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Cost(params, counter.get_total_flops() // 2, size)


def milliseconds(model: "Network", size: tuple[int, int], repeats: int = 3) -> float:
    """The median time of one image after one that does not count, with this process's threads or its GPU."""
    device = next(model.parameters()).device
    x = torch.rand(1, model.in_channels, *size, device=device)
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            model.restore(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


def machine() -> str:
    """What times were taken on: the GPU, or the CPU and the threads of this process."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"

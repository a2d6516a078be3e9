"""The time that convolutions take by themselves: what no step and no restoration can be quicker than without other convolutions."""

import time
from collections import Counter
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
LAYOUTS = (torch.channels_last, torch.contiguous_format)


class Convolutions(TorchDispatchMode):
    """Counts the convolutions, forward and backward, by all that their time depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.convolution.default:
            x, weight, bias = args[:3]
            self.found["forward", shape(x), shape(weight), bias is not None, x.dtype, *map(_hashable, args[3:9])] += 1
        elif func is aten.convolution_backward.default:
            grad, x, weight = args[:3]
            key = (shape(x), shape(weight), shape(grad), x.dtype, *map(_hashable, args[4:11]))
            self.found["backward", *key] += 1
        elif torch.is_inference_mode_enabled():  # where convolutions are not yet taken apart to the one above
            with self:
                if (done := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return done
        return func(*args, **(kwargs or {}))


def shape(x: Tensor) -> tuple[int, ...]:
    """Of a tensor."""
    return tuple(x.shape)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def alone(counts: Counter[tuple[Any, ...]], seconds: float, device: str = "cpu") -> float:
    """The milliseconds of all of these convolutions, each in the quicker layout. seconds: for each shape."""
    return sum(number * min(_one(key, layout, seconds, device) for layout in LAYOUTS) for key, number in counts.items())


def now(device: str) -> float:
    """The time in seconds, when all that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _one(key: tuple[Any, ...], layout: torch.memory_format, seconds: float, device: str) -> float:
    def made(sides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.rand(sides, device=device).to(dtype).contiguous(memory_format=layout)

    if key[0] == "forward":
        _, x, weight, bias, dtype, *rest = key
        given = (made(x, dtype), made(weight, dtype), torch.rand(weight[0], device=device).to(dtype) if bias else None)
        transposed = rest[3]
        if transposed and bias:
            given = (*given[:2], torch.rand(weight[1] * rest[5], device=device).to(dtype))
        rest = [list(value) if isinstance(value, tuple) else value for value in rest]

        def run() -> Any:
            return aten.convolution.default(*given, *rest)
    else:
        _, x, weight, grad, dtype, *rest = key
        tensors = (made(grad, dtype), made(x, dtype), made(weight, dtype))
        bias_sizes = [weight[0] if not rest[3] else weight[1] * rest[5]]
        rest = [list(value) if isinstance(value, tuple) else value for value in rest]

        def run() -> Any:
            return aten.convolution_backward.default(*tensors, bias_sizes, *rest)

    run()
    found: list[float] = []
    end = now(device) + seconds
    while len(found) < 3 or time.perf_counter() < end:
        began = now(device)
        run()
        found.append(1e3 * (now(device) - began))
    return median(found)

"""fp32 that is fp32 on a GPU too, and in the midst of bf16."""

import torch
from torch import Tensor


def exact_fp32(*, tf32: bool = False) -> None:
    """Have this process compute in fp32 where tensors are fp32; or with `tf32` in that on a GPU, as a recipe may ask of training.

    TF32 has 10 bits of mantissa, and torch lets convolutions have it unless told otherwise: whoever moves a model to a device
    calls this first, for training, evaluation and restoration alike.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def exact(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

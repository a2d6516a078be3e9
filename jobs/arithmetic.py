"""Which arithmetic a model is computed in: the precision of its convolutions, and the instructions of the CPU.

"A run with `training.portable` has the same weights, bit for bit, on every x86-64 CPU that has AVX2, if its shards, recipe,
code, number of workers and versions of torch and NumPy are equal. The make of the CPU, its other instructions, its caches
and the number of its cores do not matter." All that the libraries must be told for that is in `PORTABLE`.
"""

import os
import sys
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch  # it reads the variables when it is imported

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

# Each library chooses its kernels, and with them the order of its sums, by what the CPU offers when it is loaded.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products: the only branch that MKL has for every maker of CPUs
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's matrix products, which the scores need
    "OPENBLAS_NUM_THREADS": "1",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # NumPy's functions beyond AVX2
}
# Outside training: torch splits its sums among its threads, so their number is fixed whatever the CPU has. The workers of
# a training set theirs by `cpus_per_worker`, which is in the recipe.
THREADS = {"OMP_NUM_THREADS": "2"}
BELOW_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")  # oneDNN's names
COST = "bf16 on a CPU without bf16 arithmetic takes 5 to 8 times as long as fp32; precision: auto takes what is quicker"


def go_on_portably() -> None:
    """Run this process's command anew as `PORTABLE` and `THREADS` say, unless it was started so.

    The libraries that are loaded have made their choice, so that setting the variables is not enough.
    """
    if _is_set(PORTABLE | THREADS):
        return
    os.environ.update(PORTABLE | THREADS)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_set(variables: dict[str, str]) -> bool:
    return all(os.environ.get(name) == value for name, value in variables.items())


def check_portable() -> None:
    """Raise UserError unless this process computes as `PORTABLE` says, on a CPU that can."""
    import torch

    if not torch.cpu._is_avx2_supported():
        raise UserError("training.portable needs an x86-64 CPU with AVX2: train with --set training.portable=false")
    if not _is_set(PORTABLE):
        wanted = " ".join(f"{name}='{value}'" for name, value in PORTABLE.items())
        raise UserError(f"training.portable is for processes that were started with {wanted}")


def native_bf16(device: "torch.device") -> bool:
    """Whether the device multiplies bf16 numbers by itself: AVX512-BF16 or AMX, or a GPU that has it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    return torch.cpu._is_avx512_bf16_supported() and allowed not in BELOW_BF16


def choose_precision(asked: Literal["auto", "fp32", "tf32", "bf16", "fp16"], device: "torch.device") -> Precision:
    """The precision of a run's convolutions: bf16 for `auto` where the devices of all ranks have it, else fp32; so, too, for
    `tf32` on a CPU, which has none.
    """
    import torch

    from jobs.models import collective

    if asked == "tf32" and device.type != "cuda":
        return "fp32"
    if asked != "auto":
        return asked
    native = torch.tensor(int(native_bf16(device)), device=device)
    return "bf16" if int(collective.all_reduce(native, torch.distributed.ReduceOp.MIN)) else "fp32"

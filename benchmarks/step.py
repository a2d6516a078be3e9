"""A training step, and a restored image, of each network beside its release's way of computing the same.

    python benchmarks/step.py [--models memnet drcnet] [--what train restore] [--rounds 5] [--threads 2] [--precision fp32 bf16]
        [--sizes 1x64 1x128] [--set model.channels=32]

The reference is `benchmarks/reference`: the same parameters and numbers (`tests/test_reference.py`), computed as the releases do,
in torch's usual layout. A step is forward, loss, backward, clipping and the optimiser of the paper's recipe, for both the same
optimiser; no loader. The sizes are the papers' patches in batches that two cores bear. Both take their turns in this process, after
two steps each that are not counted; a figure is the median over the rounds, a ratio that of the rounds' own. bf16 is ours under
autocast beside the reference in fp32: what a recipe with `precision: bf16` has of it.

- ms: wall time; cpu: CPU milliseconds of all threads.
- GFLOP: of the reference's convolutions and matrix products, by torch.utils.flop_counter.
- convolutions alone: the time that our step's convolutions take one by one, each in the quicker of both layouts, of the same
  shapes and dtype: no step can take less without other convolutions. Of our step, this share.
- peak: MiB of a process that does this way alone (what is resident; on a GPU, of its allocator), over what it had with the model
  and the batch in memory.

First the machine's limits: a square matrix product and a copy, as large as is quickest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python benchmarks/step.py` has benchmarks/ alone

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import REFERENCES
from jobs.arithmetic import native_bf16
from jobs.limit import Convolutions, alone, now
from jobs.models import Network
from jobs.recipe import build_model, read_recipe
from jobs.training.optimiser import Optimiser

STAND_IN = "model.contrastive.vgg={path: stand-in, sha256: null}"  # VGG19's shapes, without its weights


class Case(NamedTuple):
    """What is measured of a network. train: batches and sides of patches; restore: sides of images. overrides: of its recipe."""

    recipe: str
    train: list[tuple[int, int]]
    restore: list[int]
    overrides: tuple[str, ...] = ()


CASES = {
    "memnet": Case("memnet-jpeg", [(4, 31), (4, 48)], [128]),
    "memorynet": Case("memorynet-deshadow", [(1, 96)], [128], (STAND_IN,)),
    "timelapse": Case("timelapse-derain", [(2, 128)], [256]),
    "drcnet": Case("drcnet-derain", [(1, 128)], [256], (STAND_IN,)),
}
SMALL = {  # as large as a test can bear
    "memnet": ["model.memory_blocks=2", "model.recursions=2", "model.channels=8"],
    "memorynet": ["model.n=8", "model.u=4", "model.o=4", "model.cabs=1"],
    "timelapse": ["model.channels=8"],
    "drcnet": ["model.width=8", "model.levels=3"],
}


class Way(NamedTuple):
    """One way to compute: a step, or an image."""

    name: str
    model: Network
    run: Callable[[], None]


def batch_of(model: Network, size: int, side: int, layout: torch.memory_format) -> dict[str, Tensor]:
    """A batch of noise, with all that the networks take."""
    draw = torch.Generator().manual_seed(0)
    shape = (size, model.in_channels, side, side)
    gt, other = (torch.rand(shape, generator=draw).contiguous(memory_format=layout) for _ in range(2))
    lq = (0.8 * gt + 0.2 * other).contiguous(memory_format=layout)
    lambdas = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8][: 3 if side < 48 else 5]).repeat(size, 1)
    shares = lambdas.view(size, -1, 1, 1, 1)
    return {
        "gt": gt,
        "lq": lq,
        "frames": torch.stack((lq, 0.8 * gt + 0.2 * other.flip(3)), 1),
        "negatives": shares * lq[:, None] + (1 - shares) * gt[:, None],
        "lambdas": lambdas,
        "weight": torch.ones(size),
        "count": torch.tensor(float(size)),
        "progress": torch.tensor(1.0),
    }


def ways(name: str, what: str, size: int, side: int, precision: str, extra: list[str], device: str) -> list[Way]:
    """Ours and the reference."""
    case = CASES[name]
    recipe = read_recipe(case.recipe, [*case.overrides, *extra])
    found = []
    for who in ("ours", "reference"):
        torch.manual_seed(0)
        model = build_model(recipe.model)
        layout = torch.channels_last if who == "ours" else torch.contiguous_format
        model.to(device, memory_format=layout)  # type: ignore[call-overload]
        batch = {key: value.to(device) for key, value in batch_of(model, size, side, layout).items()}
        narrow = who == "ours" and precision == "bf16"
        reference = REFERENCES[name] if who == "reference" else None

        def autocast(narrow: bool = narrow) -> Any:
            return torch.autocast(device, torch.bfloat16) if narrow else nullcontext()

        if what == "train":
            model.train()
            optimiser, off = Optimiser(model, recipe.optimisation), torch.amp.GradScaler(device, enabled=False)

            def run(model=model, batch=batch, optimiser=optimiser, reference=reference, autocast=autocast, off=off) -> None:  # type: ignore[no-untyped-def]  # fmt: skip
                optimiser.zero_grad()
                with autocast():
                    loss = model.training_loss(batch)[0] if reference is None else reference.loss(model, batch)
                loss.backward()
                optimiser.clip(recipe.optimisation.lr)
                optimiser.step(recipe.optimisation.lr, off)
        else:
            model.eval()

            def run(model=model, batch=batch, reference=reference, autocast=autocast) -> None:  # type: ignore[no-untyped-def]
                with torch.no_grad(), autocast():
                    (model.restore(batch["lq"]) if reference is None else reference.restore(model, batch["lq"]))

        found.append(Way(who, model, run))
    return found


def measured(of: list[Way], rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU milliseconds of each way, in turn."""
    rows: dict[str, list[tuple[float, float]]] = {way.name: [] for way in of}
    for number in range(-2, rounds):
        for way in of:
            wall, cpu = now(device), time.process_time()
            way.run()
            if number >= 0:
                rows[way.name].append((1e3 * (now(device) - wall), 1e3 * (time.process_time() - cpu)))
    return rows


# limits and memory


def limits(device: str) -> str:
    """The machine's matrix product and copy."""
    side = 2048 if device == "cpu" else 8192
    a = torch.rand(side, side, device=device)
    source, target = (torch.rand(2**26, device=device) for _ in range(2))
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(5))
    rates = [2 * side**3 / min(_seconds(lambda: a @ a, device) for _ in range(5)) / 1e9]
    if native_bf16(torch.device(device)):  # else it takes minutes
        a = a.to(torch.bfloat16)
        rates.append(2 * side**3 / min(_seconds(lambda: a @ a, device) for _ in range(5)) / 1e9)
    products = f"matrix product {rates[0]:,.0f} GFLOP/s" + "".join(f", in bf16 {rate:,.0f}" for rate in rates[1:])
    return f"{products}; copy {2 * 4 * 2**26 / copy / 1e9:,.1f} GB/s"


def _seconds(action: Callable[[], Any], device: str) -> float:
    began = now(device)
    action()
    return now(device) - began


def peak_here(
    name: str, what: str, size: int, side: int, precision: str, extra: list[str], device: str, who: str
) -> float:
    """MiB that three runs of one way take in this process, over what it had before."""
    (way,) = (each for each in ways(name, what, size, side, precision, extra, device) if each.name == who)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        there = torch.cuda.memory_allocated()
        for _ in range(3):
            way.run()
        return (torch.cuda.max_memory_allocated() - there) / 2**20
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak begins anew; ru_maxrss begins with what the parent process had
    before = _resident("VmRSS")
    for _ in range(3):
        way.run()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    """MiB of this process, by the name of the line in Linux' table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def peak(who: str, arguments: list[Any], threads: int) -> float:
    """`peak_here` in a process of its own."""
    call = json.dumps([*arguments, who])
    command = [sys.executable, __file__, "--peak", call, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# the table


def row(name: str, what: str, size: int, side: int, precision: str, options: argparse.Namespace) -> str:
    """A line of the table."""
    extra = [*(SMALL[name] if options.small else []), *options.set]
    of = ways(name, what, size, side, precision, extra, options.device)
    rows = measured(of, options.rounds, options.device)
    ours, theirs = rows["ours"], rows["reference"]
    ratio = median(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True))
    with FlopCounterMode(display=False) as flops:
        of[1].run()
    with Convolutions() as convolutions:
        of[0].run()
    floor = alone(convolutions.found, options.seconds, options.device)
    wall, other = (median(each for each, _ in found) for found in (ours, theirs))
    cpu, other_cpu = (median(each for _, each in found) for found in (ours, theirs))
    call = [name, what, size, side, precision, extra, options.device]
    memory = [peak(who, call, options.threads) for who in ("ours", "reference")]
    gflop = flops.get_total_flops() / 1e9
    cells = [
        ", ".join([name, what, f"{size}x{side}", precision, *options.set]),
        f"{wall:,.0f}",
        f"{other:,.0f}",
        f"{ratio:.2f}",
        f"{cpu / other_cpu:.2f}",
        f"{gflop:.1f}",
        f"{gflop / wall * 1e3:.0f}",
        f"{floor:,.0f} ({floor / wall:.0%})",
        f"{memory[0]:,.0f}",
        f"{memory[1]:,.0f}",
        f"{memory[0] / max(memory[1], 1e-9):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _size(text: str) -> tuple[int, int]:
    batch, side = map(int, text.split("x"))
    return batch, side


HEAD = (
    "|  | ours, ms | reference, ms | ours / reference | in CPU time | GFLOP | our GFLOP/s | convolutions alone, ms | our peak, MiB | "
    "its peak | peak / peak |"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--what", nargs="+", choices=["train", "restore"], default=["train", "restore"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--sizes", nargs="+", type=_size, help="in place of the papers': BATCHxSIDE")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipes, e.g. model.channels=32"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each convolution's shape and layout")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny networks: to see that it runs")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_here(*json.loads(options.peak)))
        return
    here = torch.cuda.get_device_name() if options.device != "cpu" else torch.backends.cpu.get_cpu_capability()
    print(f"{options.threads} threads, {here}; {limits(options.device)}\n")
    print(HEAD)
    print("|---" * 11 + "|")
    for name in options.models:
        for precision in options.precision:
            for what in options.what:
                known = CASES[name].train if what == "train" else [(1, side) for side in CASES[name].restore]
                for size, side in options.sizes or known:
                    print(row(name, what, size, side, precision, options), flush=True)


if __name__ == "__main__":
    main()

"""Do portable recipes give the same weights on every CPU, and what does it cost?

Each sample recipe is trained for a few steps in one process: on this CPU, on it with some of its cores, and on CPUs that
qemu emulates (Debian's qemu-user). Then each runs on this CPU for some seconds, portably and not, in turns.

    python benchmarks/portable.py --data data --steps 2 --emulate Haswell EPYC --rounds 3
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from jobs.arithmetic import PORTABLE

RECIPES = ("memnet-jpeg", "memnet-denoise", "memnet-sr", "memorynet-deshadow", "timelapse-derain", "drcnet-derain")


def steps(recipe_name: str, data: str, number: int, overrides: list[str]) -> dict[str, Any]:
    """Train so many steps in this process. Returns the digests of the weights and of what they restore, and seconds a step."""
    import torch

    from jobs.recipe import read_recipe
    from jobs.training.loop import Run, State, weights

    torch.set_num_threads(1)
    recipe = read_recipe(recipe_name, overrides)
    run = Run(recipe, f"{data}/{recipe.data.task}", torch.device("cpu"))
    batches, seconds = run.loader.batches(), []
    for step in range(number):
        position, cut = next(batches)
        batch = run.loader.to_device(cut, run.device)
        cut.hand_back()
        began = time.perf_counter()
        run.step(batch)
        seconds.append(time.perf_counter() - began)
        run.state = State(step + 1, position)
    batches.close()
    run.model.eval()
    C = run.model.in_channels
    with torch.inference_mode():
        restored = run.model.restore(torch.linspace(0, 50, C * 48 * 40).view(1, C, 48, 40).sin().square())
    held = hashlib.sha256()
    for _, tensor in sorted(weights(run.model).items()):
        held.update(tensor.numpy().tobytes())
    return {
        "weights": held.hexdigest(),
        "restored": hashlib.sha256(restored.contiguous().numpy().tobytes()).hexdigest(),
        "seconds": median(seconds[1:] or seconds),
    }


def elsewhere(prefix: list[str], environment: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """`steps` in a process of its own. prefix: the start of its command line, such as an emulator."""
    command = [*prefix, sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="where the sample tasks are built")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--emulate", nargs="*", default=[], help="CPUs of `qemu-x86_64 -cpu help`")
    parser.add_argument("--rounds", type=int, default=0, help="of the timing; 10 steps each")
    parser.add_argument("--recipes", nargs="*", default=[f"{name}-sample" for name in RECIPES])
    parser.add_argument("--set", nargs="*", default=[], help="of the recipe: section.key=value")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(steps(a.recipes[0], a.data, a.steps, a.set)))
        return
    places = {"this CPU": [], "one core of it": ["taskset", "-c", str(min(os.sched_getaffinity(0)))]}
    places |= {f"emulated {cpu}": ["qemu-x86_64", "-cpu", cpu] for cpu in a.emulate}
    failed = False
    for recipe in a.recipes:
        common = ["--data", a.data, "--recipes", recipe]
        few = [*common, "--steps", str(a.steps), "--set", *a.set]
        found = {where: elsewhere(prefix, PORTABLE, few) for where, prefix in places.items()}
        for where, done in found.items():
            print(f"{recipe:28} {where:20} weights {done['weights'][:16]} restored {done['restored'][:16]}", flush=True)
        failed |= len({(done["weights"], done["restored"]) for done in found.values()}) > 1
        timed: dict[str, list[float]] = {"portable": [], "otherwise": []}
        for _ in range(a.rounds):
            for kind, environment in (("portable", PORTABLE), ("otherwise", {})):
                setting = f"training.portable={str(kind == 'portable').lower()}"
                done = elsewhere([], environment, [*common, "--steps", "10", "--set", setting, *a.set])
                timed[kind].append(done["seconds"])
        if a.rounds:
            portable, otherwise = (median(timed[kind]) * 1000 for kind in ("portable", "otherwise"))
            print(
                f"{recipe:28} {portable:.0f} ms a step, {otherwise:.0f} ms otherwise: {portable / otherwise:.2f}",
                flush=True,
            )
    sys.exit("the weights are not the same everywhere" if failed else 0)


if __name__ == "__main__":
    main()

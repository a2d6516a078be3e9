"""torch's compiler: not imported by a step that is not compiled, and there for whoever asks for it."""

import subprocess
import sys

STEPS = """
import sys, torch
from pathlib import Path
from jobs.models.memnet import MemNet
from jobs.recipe import Optimisation
from jobs.training.gradients import distributed
from jobs.training.optimiser import Optimiser
folder = Path({folder!r})
torch.distributed.init_process_group("gloo", init_method=f"file://{{folder}}/rendezvous", rank=0, world_size=1)
model = MemNet(channels=4, memory_blocks=1, recursions=1)
objective = distributed(model, forward_sync_buffers=False)
objective._set_ddp_runtime_logging_sample_rate(1)
scaler = torch.amp.GradScaler("cpu", enabled=False)
for kind in {kinds}:
    optimiser = Optimiser(model, Optimisation(optimiser=kind, lr=1e-3, schedule="constant", length={{"steps": 2}}))
    optimiser.zero_grad()
    objective(torch.rand(1, 1, 8, 8)).sum().backward()
    before = [p.clone() for p in model.parameters()]
    optimiser.clip(1e-3)
    optimiser.step(1e-3, scaler)
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before))
    (folder / "state").write_bytes(optimiser.save(scaler))
    optimiser.load(folder / "state", scaler, torch.device("cpu"))
    print(kind, "torch._dynamo" in sys.modules)
"""


def output(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_ranks_are_joined_and_weights_moved_without_it(tmp_path):
    """Its import takes more than a second on each rank, whenever a run begins or begins again."""
    kinds = ["sgd", "adam", "adamw", "muon", "lion", "schedule-free-adamw"]
    assert output(STEPS.format(folder=str(tmp_path), kinds=kinds)) == [f"{kind} False" for kind in kinds]


def test_whoever_asks_for_it_gets_it():
    code = """
import sys, torch
from jobs.training.compiler import spared
with spared():
    asked = {asks}
    import torch._dynamo.utils
    print(torch._dynamo.__spec__ is not None, sys.modules["torch._dynamo"] is torch._dynamo)
print(torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.ones(1, 1)).shape)
with spared():
    print(torch._dynamo.__spec__ is not None)
"""
    for asks in ("None", "torch._dynamo.config"):
        assert output(code.format(asks=asks)) == ["True True", "torch.Size([1, 1])", "True"]


def test_outside_it_is_as_before():
    code = """
import sys, torch
from jobs.training.compiler import spared
with spared():
    with spared():
        pass
    assert not hasattr(sys.modules["torch._dynamo"], "__file__")  # as inspect asks of all modules
print("torch._dynamo" in sys.modules, "_dynamo" in vars(torch))
"""
    assert output(code) == ["False False"]

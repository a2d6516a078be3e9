import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs import arithmetic
from jobs.arithmetic import PORTABLE, THREADS, check_portable, choose_precision, native_bf16
from jobs.models.elementwise import psnr, root
from jobs.recipe import read_recipe
from pipeline.errors import UserError

CPU = torch.device("cpu")
STAND_IN = {"vgg": {"path": "stand-in"}}
SETTINGS = {
    "memnet": {"memory_blocks": 2, "recursions": 2, "channels": 12},
    "memorynet": {"n": 8, "u": 4, "o": 4, "cabs": 1, "contrastive": STAND_IN},
    "timelapse": {"channels": 12, "memory": {"items": 6}},
    "drcnet": {"width": 12, "levels": 2, "contrastive": STAND_IN},
}
# Trains a small model of each paper for two steps on numbers that are made by integer arithmetic.
CHILD = """
import hashlib, json, sys
import torch
from jobs.arithmetic import check_portable
from jobs.training.optimiser import Optimiser
from jobs.recipe import Optimisation, Span, resolved_model
check_portable()
torch.set_num_threads(1)
digests = {"capability": torch.backends.cpu.get_cpu_capability()}
def numbers(*shape):
    n = torch.Size(shape).numel()
    return (torch.arange(n) * 7919 % 1009 * 31 % 256).view(shape).float() / 255
for name, options in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    model = resolved_model({"model": {"name": name, **options}}).to(memory_format=torch.channels_last)
    C = model.in_channels
    gt = numbers(4, C, 32, 32)
    lq = (0.8 * gt + 0.2 * numbers(4, C, 32, 32).flip(3))
    batch = {"gt": gt, "lq": lq, "frames": torch.stack((gt, lq), 1), "weight": torch.ones(4), "count": torch.tensor(4.0),
             "mask": (gt[:, :1] > 0.5).float(), "negatives": lq[:, None].repeat(1, 3, 1, 1, 1),
             "lambdas": torch.tensor([1, .95, .9]).repeat(4, 1), "progress": torch.tensor(0.5), "level": torch.zeros(4).long()}
    o = Optimisation(optimiser="adam", lr=1e-3, weight_decay=1e-4, schedule="cosine", length=Span(steps=2))
    optimiser = Optimiser(model, o)
    for _ in range(2):
        loss, _ = model.training_loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(o.lr, torch.amp.GradScaler("cpu", enabled=False))
    held = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        held.update(tensor.contiguous().numpy().tobytes())
    digests[name] = held.hexdigest()[:16]
print(json.dumps(digests))
"""
# Of torch 2.13.0 under Linux. That of memorynet was seen on Intel CPUs with AVX-512 and AMX, on AMD ones with AVX2 and with AVX-512,
# and on an emulated Haswell and EPYC; the others on the AMD one with AVX-512.
WEIGHTS = {
    "memnet": "3ca5ece46bd94846",
    "memorynet": "b009db084c01175a",
    "timelapse": "59cb1ca9017a9a54",
    "drcnet": "be068fb40726b702",
}


def portable_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | PORTABLE | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(
    (torch.__version__.split("+")[0], sys.platform, platform.machine()) != ("2.13.0", "linux", "x86_64"),
    reason="the digests are of torch 2.13.0 on x86-64",
)
def test_portable_weights_are_the_same_bits_on_this_cpu_as_on_others():
    done = portable_python("-c", CHILD, json.dumps(SETTINGS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"capability": "AVX2", **WEIGHTS}


def test_who_is_not_told_to_compute_portably_is_told_how(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    with pytest.raises(UserError, match="ATEN_CPU_CAPABILITY='avx2'"):
        check_portable()
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    check_portable()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a worker of a training sets torch's threads itself
    check_portable()
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    with pytest.raises(UserError, match=r"AVX2: train with --set training\.portable=false"):
        check_portable()


@pytest.mark.parametrize(
    ("has", "allowed", "native"),
    [
        (True, None, True),
        (True, "ALL", True),
        (True, "AVX512_CORE_BF16", True),
        (True, "avx2", False),
        (False, None, False),
    ],
)
def test_bf16_is_native_where_the_cpu_has_it_and_onednn_may_use_it(monkeypatch, has, allowed, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert native_bf16(CPU) is native


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_what_the_device_computes_quickest_and_the_rest_is_as_asked(monkeypatch, native):
    monkeypatch.setattr(arithmetic, "native_bf16", lambda device: native)
    assert choose_precision("auto", CPU) == ("bf16" if native else "fp32")
    assert (choose_precision("fp32", CPU), choose_precision("bf16", CPU)) == ("fp32", "bf16")
    assert choose_precision("tf32", CPU) == "fp32"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimisation.precision=bf16", "bf16 is not portable"),
        ("training.gpu=true", "portable is for a fixed number of workers on CPUs"),
        ("training.workers=[1, 2]", "portable is for a fixed number of workers on CPUs"),
    ],
)
def test_what_is_not_portable_is_refused_beside_it(override, said):
    with pytest.raises(UserError, match=said):
        read_recipe("memnet-jpeg-sample", [override])


def test_the_sample_recipes_are_portable_and_all_cpu_recipes_choose_their_precision():
    for path in Path("jobs/recipes").glob("*.yaml"):
        recipe = read_recipe(str(path))
        if path.stem.endswith("-sample"):
            assert recipe.training.portable
        if path.stem.endswith(("-sample", "-cpu")):
            assert recipe.optimisation.precision == "auto"


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        ({"OMP_NUM_THREADS": "1"}, 2),
        (PORTABLE, 2),
        (PORTABLE | {"OMP_NUM_THREADS": "1"}, 2),
        (THREADS, 2),
        (PORTABLE | THREADS, 1),
    ],
    ids=["other-threads", "no-threads", "portable-other-threads", "threads-only", "both"],
)
def test_a_command_starts_again_as_it_was_given_unless_its_instructions_and_threads_are_the_portable_ones(
    given, starts, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from jobs.arithmetic import go_on_portably\n"
        "print(os.getpid(), sys.argv[1:])\n"
        "go_on_portably()\n"
        "import torch\nprint(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE | THREADS}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **given}
    done = subprocess.run([sys.executable, script, "a b", "--c"], env=environment, capture_output=True, text=True)
    *began, last = done.stdout.splitlines()
    assert len(began) == starts, done.stderr
    assert len(set(began)) == 1  # the same process
    assert began[0].endswith(" ['a b', '--c']")
    assert last == "AVX2 2"


def test_root_and_psnr_are_those_of_torch():
    x = torch.tensor([0.0, 1e-30, 1e-6, 0.25, 2.0, 1e30], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(root(x), x.sqrt())
    (expected,) = torch.autograd.grad(x[1:].sqrt().sum(), x)
    (found,) = torch.autograd.grad(root(x[1:]).sum(), x)
    torch.testing.assert_close(found, expected)
    mse = torch.tensor([0.0, 1e-12, 1e-3, 0.7])
    torch.testing.assert_close(psnr(mse), torch.tensor([100.0, 100.0, 30.0, -10 * torch.log10(torch.tensor(0.7))]))

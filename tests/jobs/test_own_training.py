"""A network of one's own from YAML to a published model: two workers, killed and resumed, on this machine and in a job."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import TINY_PARAMS, tiny_photographs
from test_train import TASK, finish, train, until_step

pytestmark = pytest.mark.slow

# NAFNet (Chen et al., ECCV 2022) in the form of its release, small
NAFNET = """\
import torch
from torch import nn

from .layers import LayerNorm2d


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv3, self.conv4, self.conv5 = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.beta = nn.Parameter(torch.zeros((1, c, 1, 1)))
        self.gamma = nn.Parameter(torch.zeros((1, c, 1, 1)))

    def forward(self, inp):
        a, b = self.conv2(self.conv1(self.norm1(inp))).chunk(2, dim=1)
        x = a * b
        y = inp + self.conv3(x * self.sca(x)) * self.beta
        a, b = self.conv4(self.norm2(y)).chunk(2, dim=1)
        return y + self.conv5(a * b) * self.gamma


class NAFNet(nn.Module):
    def __init__(self, *, img_channel: int = 3, width: int = 16, enc_blk_nums: list[int] = [], dec_blk_nums=()):
        super().__init__()
        self.size_multiple = 2 ** len(enc_blk_nums)
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders, self.decoders, self.ups, self.downs = (nn.ModuleList() for _ in range(4))
        for number in enc_blk_nums:
            self.encoders.append(nn.Sequential(*[Block(width) for _ in range(number)]))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, 2))
            width *= 2
        self.middle = Block(width)
        for number in dec_blk_nums:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoders.append(nn.Sequential(*[Block(width) for _ in range(number)]))

    def forward(self, inp):
        x, kept = self.intro(inp), []
        for encoder, down in zip(self.encoders, self.downs):
            kept.append(encoder(x))
            x = down(kept[-1])
        x = self.middle(x)
        for decoder, up, skip in zip(self.decoders, self.ups, kept[::-1]):
            x = decoder(up(x) + skip)
        return self.ending(x) + inp
"""
LAYERS = """\
import torch
from torch import nn


class LayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        d = x - x.mean(1, keepdim=True)
        y = d / (d.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)
"""
RECIPE = {
    "model": {
        "name": "restorers.nafnet:NAFNet",
        "img_channel": 1,
        "width": 4,
        "enc_blk_nums": [1, 1],
        "dec_blk_nums": [1, 1],
    },
    "objective": {"charbonnier": 1.0, "frequency": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 8},
    "optimisation": {"optimiser": "adam", "lr": 0.002, "schedule": "cosine", "length": {"steps": 80}},
    "training": {"workers": 2, "log_every": 10, "validate_every": 40, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}


def memoir(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The console's `memoir`, which does not look into the current directory by itself."""
    program = "import sys; sys.path.remove(''); import memoir; memoir.main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a built dataset, a package of one's own, and its recipe tiny.yaml."""
    root = tmp_path_factory.mktemp("own")
    tiny_photographs(root)
    files = {
        "params.yaml": yaml.safe_dump(TINY_PARAMS),
        "tiny-task/tiny.yaml": yaml.safe_dump(TASK),
        "tiny.yaml": yaml.safe_dump(RECIPE),
        "restorers/__init__.py": "",
        "restorers/nafnet.py": NAFNET,
        "restorers/layers.py": LAYERS,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for arguments in (["ingest"], ["build", "tiny-task/tiny.yaml", "--cpus", "1"]):
        done = memoir(*arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


def test_a_network_of_ones_own_is_trained_killed_resumed_evaluated_published_and_restored_with(workplace):
    undisturbed = finish(workplace, "undisturbed", train(workplace, "undisturbed"))
    process = train(workplace, "killed")
    until_step(workplace, "killed", 30, process)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.wait()
    assert finish(workplace, "killed", train(workplace, "killed"))["sha256"] == undisturbed["sha256"]
    assert "2 workers, from step-" in (workplace / "killed.log").read_text()

    runs = ("--runs", "runs-killed")
    for arguments in (
        ["evaluate", "--model", "tiny.yaml", "--store", "killed"],
        ["publish", "tiny.yaml", "--to", "team", "--store", "killed"],
    ):
        done = memoir(*arguments, *runs, cwd=workplace)
        assert done.returncode == 0, done.stderr
    published = json.loads((workplace / "runs-killed/tiny/published.json").read_text())
    assert published["sha256"] == undisturbed["sha256"]
    image = ("photos/val/0.png", "restored.png")
    done = memoir("restore", *image, "--model", f"team/{published['model']}", *runs, cwd=workplace)
    assert done.returncode == 1
    assert "--trust restorers.nafnet:NAFNet" in done.stderr
    done = memoir(
        "restore", *image, "--model", f"team/{published['model']}", *runs, "--trust", "restorers", cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    assert (workplace / "restored.png").is_file()
    provenance = json.loads((workplace / f"team/{published['model']}" / "provenance.json").read_text())
    assert provenance["network"]["source"] == undisturbed["source"]

    layers = workplace / "restorers/layers.py"
    layers.write_text(LAYERS + "# edited\n")
    try:
        again = finish(workplace, "killed", train(workplace, "killed", "optimisation.length.steps=10"))
    finally:
        layers.write_text(LAYERS)
    assert again["run"] != undisturbed["run"]
    assert "code: restorers/layers.py" in (workplace / "killed.log").read_text()

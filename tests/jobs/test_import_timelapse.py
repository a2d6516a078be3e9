"""The time-lapse release's tensors in our network, against what the release computes: its steps, of its own tensors."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_timelapse import padded_ssim, released_whitening
from torch import Tensor

from jobs.importing.read import read_tensors
from jobs.importing.timelapse import ITEMS, LAYERS, fits, translate
from jobs.models.kmeans import kmeans
from jobs.models.timelapse import TimeLapseNet
from jobs.models.timelapse_profiles import MemoryOptions
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

# Sequentials of the release: name, channels in, then for each layer by its number: c(onvolution), n(orm), u(psampling).
SEQUENCES = [
    ("encoder.moduleConv1", 3, "cn_cn"),
    ("encoder.moduleConv2", 64, "cn_cn"),
    ("encoder.moduleConv3", 64, "cn_cn"),
    ("encoder.moduleConv4", 64, "cn_c"),
    ("decoder.moduleConv", 128, "cn_cn"),
    ("decoder.moduleUpsample4", 64, "un"),
    ("decoder.moduleDeconv3", 128, "cn_cn"),
    ("decoder.moduleUpsample3", 64, "un"),
    ("decoder.moduleDeconv2", 128, "cn_cn"),
    ("decoder.moduleUpsample2", 64, "un"),
    ("decoder.moduleDeconv1", 128, "cn_cn_c"),
]


def checkpoint(items: int = 20) -> dict[str, Tensor]:
    """The release's tensors by name, random, in float64."""
    torch.manual_seed(0)
    out: dict[str, Tensor] = {}

    def norm(name: str) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = torch.rand(64) + 0.5, 0.2 * torch.randn(64)
        out[f"{name}.running_mean"], out[f"{name}.running_var"] = 0.2 * torch.randn(64), torch.rand(64) + 0.5
        out[f"{name}.num_batches_tracked"] = torch.tensor(10_000)  # of a long training

    for name, channels, layers in SEQUENCES:
        for number, kind in enumerate(layers):
            if kind == "n":
                norm(f"{name}.{number}")
            elif kind in "cu":
                width = 3 if number == 6 else 64
                shape = (64, 64, 3, 3) if kind == "u" else (width, channels, 3, 3)
                out[f"{name}.{number}.weight"] = torch.randn(shape) * (2 / (9 * channels)) ** 0.5
                out[f"{name}.{number}.bias"] = 0.1 * torch.randn(width)
                channels = 64
    norm("encoder.moduleBatchNorm")
    # of unit length to the last digit: the release makes unit length anew of items that no query is nearest to, we do not
    out[ITEMS] = F.normalize(torch.rand(items, 64).double(), dim=1)
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in out.items()}


def sequence(weights: dict[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    """A Sequential of the release; its norms are each followed by a ReLU. In training the running averages move."""
    layers = next(layers for each, _, layers in SEQUENCES if each == name)
    for number, kind in enumerate(layers):
        at = f"{name}.{number}"
        if kind == "c":
            x = F.conv2d(x, weights[f"{at}.weight"], weights[f"{at}.bias"], padding=1)
        elif kind == "u":
            weight, bias = weights[f"{at}.weight"], weights[f"{at}.bias"]
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        elif kind == "n":
            running = weights[f"{at}.running_mean"], weights[f"{at}.running_var"]
            x = F.batch_norm(x, *running, weights[f"{at}.weight"], weights[f"{at}.bias"], training).relu()
    return x


def encode(weights: dict[str, Tensor], x: Tensor, training: bool) -> list[Tensor]:
    maps = [sequence(weights, "encoder.moduleConv1", x, training)]
    for number in (2, 3, 4):
        maps.append(sequence(weights, f"encoder.moduleConv{number}", F.max_pool2d(maps[-1], 2), training))
    return [*maps[:3], F.instance_norm(maps[3])]


def remember(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 64, h, w) -> what D4 takes, the keys after the update, the mean distance to the nearest key."""
    B, C, h, w = query.shape
    rows = F.normalize(query, dim=1).permute(0, 2, 3, 1).reshape(-1, C)
    score = rows @ keys.T
    over_queries, over_keys = score.softmax(0), score.softmax(1)
    nearest = over_keys.argmax(1)
    update = torch.zeros_like(keys)
    for key in range(len(keys)):
        mine = nearest == key
        share = over_queries[mine, key] / over_queries[:, key].max()
        update[key] = (share[:, None] * rows[mine]).sum(0)
    both = torch.cat((rows, over_keys.detach() @ keys), 1).view(B, h, w, 2 * C).permute(0, 3, 1, 2)
    return both, F.normalize(update + keys, dim=1).detach(), F.mse_loss(rows, keys[nearest])


def decode(weights: dict[str, Tensor], maps: list[Tensor], both: Tensor, training: bool) -> Tensor:
    """The streaks, whose two tanh are the decoder's and the network's."""
    x = sequence(weights, "decoder.moduleConv", both, training)
    for number in (3, 2, 1):
        x = sequence(weights, f"decoder.moduleUpsample{number + 1}", x, training)
        x = sequence(weights, f"decoder.moduleDeconv{number}", torch.cat((maps[number - 1], x), 1), training)
    return x.tanh().tanh()


def of_opencv(images: Tensor) -> Tensor:
    """RGB in [0, 1] -> BGR in [-1, 1]."""
    return 2 * images.flip(-3) - 1


def exact(values: np.ndarray, clusters: int, lowest: int) -> np.ndarray:
    """Which values are in the lowest clusters: for thousands of them, as tests/jobs/test_kmeans.py proves it."""
    return (kmeans(torch.from_numpy(values)[None], clusters)[0] < lowest).numpy()


def released(items: int = 20, **options: object) -> TimeLapseNet:
    return TimeLapseNet(profile="released", memory=MemoryOptions(items=items), **options).double()


def test_its_file_is_read_as_the_release_writes_it(tmp_path):
    weights = checkpoint()
    held = {"model": weights, "memory_items": weights.pop(ITEMS), "args": argparse.Namespace(lr=1e-4)}
    path = tmp_path / "model.pth"
    torch.save(held | {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}}, path)
    assert read_tensors(path, "model.pth").keys() == {*weights, ITEMS}


def test_the_names_are_the_releases():
    weights = checkpoint()
    assert fits(weights)
    assert fits([name for name in weights if name != ITEMS])
    assert not fits(released().state_dict())
    counted = [t for name, t in weights.items() if name.endswith(("weight", "bias"))]
    assert sum(t.numel() for t in counted) == 818_115
    assert sum(p.numel() for p in released().parameters()) == 817_987
    assert len(set(LAYERS.values())) == len(LAYERS)


@pytest.mark.parametrize("items", [20, 30])
@torch.no_grad()
def test_it_derains_as_the_release(items):
    weights, network = checkpoint(items), released(items)
    network.load_state_dict(translate(weights, network))
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    x = of_opencv(images)
    maps = encode(weights, x, False)
    expected = x - decode(weights, maps, remember(maps[3], weights[ITEMS])[0], False)
    found = of_opencv(network.eval().restore(images))
    assert float((x - expected).abs().mean()) > 0.1
    difference = float((found - expected).abs().max())
    print(f"largest difference in float64: {difference:.1e}")
    assert difference < 1e-12


def test_it_learns_as_the_release():
    """Loss, gradients, running averages and items after one step of training on two pairs of frames."""
    weights, network = checkpoint(), released()
    network.load_state_dict(translate(weights, network))
    frames = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    names = [name for name in weights if name.endswith(("weight", "bias"))]
    for name in names:
        weights[name].requires_grad_()

    x1, x2 = of_opencv(frames).unbind(1)
    maps1, maps2 = (encode(weights, x, True) for x in (x1, x2))
    both1, keys, _ = remember(maps1[3], weights[ITEMS])
    both2, keys, compact = remember(maps2[3], keys)
    streak1, streak2 = (decode(weights, maps, both, True) for maps, both in ((maps1, both1), (maps2, both2)))
    clean1, clean2 = x1 - streak1, x2 - streak2
    expected = F.l1_loss(clean1, clean2) + F.l1_loss(clean1, x2) + F.l1_loss(x1, clean2)
    expected = expected + F.l1_loss(clean2 + streak1, x1) + F.l1_loss(clean1 + streak2, x2)
    expected = expected + 0.01 * compact + 0.01 * released_whitening(maps1[3], maps2[3], exact)
    expected = expected - 0.5 * padded_ssim(clean1, clean2)
    expected.backward()

    batch = {"frames": frames, "weight": torch.ones(2, dtype=torch.float64), "count": torch.tensor(2.0)}
    loss, _ = network.training_loss(batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-11)
    # The gradients go through the same translation as what they are of.
    grads = {name: w.grad if w.grad is not None else torch.zeros_like(w) for name, w in weights.items()}
    assert not grads["encoder.moduleBatchNorm.weight"].any()
    moved = translate({**weights, ITEMS: keys}, network)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, translate(grads, network)[name], rtol=1e-8, atol=1e-9, msg=name)
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(buffer, moved[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({ITEMS: None}, {}, r"lacks memory_items, which lie beside `model`"),
        ({"encoder.moduleConv2.3.bias": None}, {}, "lacks encoder.moduleConv2.3.bias"),
        ({"encoder.moduleConv2.0.weight": torch.zeros(64, 64, 1, 1)}, {}, r"moduleConv2.0.weight is \(64, 64, 1, 1\)"),
        ({"decoder.moduleConv9.0.weight": torch.zeros(1)}, {}, "has decoder.moduleConv9.0.weight, which"),
        ({}, {"tanh": 1}, r"\(tanh 1\); say --set model.tanh=2"),
        ({}, {"norm": "none", "bias": False}, r"say --set model.norm=bn --set model.bias=true"),
        ({}, {"channels": 32}, r"say --set model.channels=64"),
        ({}, {"items": 8}, r"say --set model.memory.items=20"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(change, options, words):
    weights = {name: tensor for name, tensor in (checkpoint() | change).items() if tensor is not None}
    with pytest.raises(UserError, match=words) as refusal:
        translate(weights, released(**options))
    assert "\n" not in str(refusal.value)

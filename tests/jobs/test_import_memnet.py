"""MemNet's Caffe models: our network with a release's weights computes what the release's layers compute, one after another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_files import Layers, caffemodel
from torch import Tensor

from jobs.importing import memnet
from jobs.importing.read import read_tensors
from jobs.importing.releases import translated
from jobs.models.memnet import MemNet
from pipeline.errors import UserError


def release(M: int, R: int, C: int = 64, seed: int = 0) -> Layers:
    """The layers of the release's prototxt with random weights, in its order; the recursions share theirs."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:] or (1,))), shape).astype(np.float32)

    def norm(layer: str, channels: int) -> Layers:
        factor = np.float32(rng.uniform(300, 1000))  # as of a run that is not long
        mean, var = rng.normal(0, 0.3, channels), rng.uniform(0.5, 2, channels)
        blobs = [(mean * factor).astype(np.float32), (var * factor).astype(np.float32), np.array([factor], np.float32)]
        scale = [rng.uniform(0.5, 1.5, channels).astype(np.float32), rng.normal(0, 0.2, channels).astype(np.float32)]
        return [(f"bn_{layer}", blobs), (f"scale_{layer}", scale)]

    layers = [*norm("conv1", 1), ("conv1", [drawn(C, 1, 3, 3), drawn(C) / 10])]
    for m in range(1, M + 1):
        shared = {unit: [drawn(C, C, 3, 3) * size, drawn(C) / 10] for unit, size in (("a", 1), ("b", 0.3))}
        for r in range(1, R + 1):
            for unit in "ab":
                layers += [*norm(f"conv{m:02}_{r:02}_{unit}", C), (f"conv{m:02}_{r:02}_{unit}", shared[unit])]
        layers += norm(f"conv_transition_{m:02}", C * (m + R))
        layers += [(f"conv_transition_{m:02}", [drawn(C, C * (m + R), 1, 1), drawn(C) / 10])]
    recon = [drawn(1, C, 3, 3), drawn(1) / 10]
    for m in range(1, M + 1):
        layers += [*norm(f"conv_end_{m:02}", C), (f"conv_end_{m:02}", recon)]
        layers += [(f"weight_output_end_{m:02}", [rng.uniform(0.1, 0.4, 1).astype(np.float32)])]
    return layers


def caffe(layers: Layers, M: int, R: int, x: Tensor) -> Tensor:
    """The release's layers on x (B, 1, H, W) in float64, in the order of its prototxt, with Caffe's rules."""
    blobs = {name: [torch.from_numpy(b).double() for b in given] for name, given in layers}

    def unit(layer: str, bottom: Tensor, pad: int = 1) -> Tensor:
        """BatchNorm with global statistics, Scale, ReLU, Convolution."""
        mean, var, factor = blobs[f"bn_{layer}"]
        gamma, beta = blobs[f"scale_{layer}"]
        column = (1, -1, 1, 1)
        normal = (bottom - (mean / factor).view(column)) / ((var / factor).view(column) + 1e-5).sqrt()
        weight, bias = blobs[layer]
        return F.conv2d((normal * gamma.view(column) + beta.view(column)).clamp(min=0), weight, bias, padding=pad)

    bottoms = [unit("conv1", x)]
    for m in range(1, M + 1):
        eltwise, short = bottoms[-1], []
        for r in range(1, R + 1):
            eltwise = eltwise + unit(f"conv{m:02}_{r:02}_b", unit(f"conv{m:02}_{r:02}_a", eltwise))
            short.append(eltwise)
        bottoms.append(unit(f"conv_transition_{m:02}", torch.cat([*bottoms, *short], 1), pad=0))
    recovered = [x + unit(f"conv_end_{m:02}", bottoms[m]) for m in range(1, M + 1)]
    return sum(blobs[f"weight_output_end_{m:02}"][0] * y for m, y in enumerate(recovered, 1))


def network(M: int, R: int, C: int = 64, **options) -> MemNet:
    return MemNet(memory_blocks=M, recursions=R, channels=C, **options).double().eval()


def read(tmp_path, layers: Layers, **how: bool) -> dict[str, Tensor]:
    path = tmp_path / "some.caffemodel"
    path.write_bytes(caffemodel(layers, **how))
    return read_tensors(path, str(path))


@pytest.mark.parametrize(
    ("M", "R", "C", "how"),
    [
        (6, 6, 64, {}),  # MemNet_M6R6_80C64
        (10, 10, 64, {}),  # MemNet_M10R10_212C64
        (2, 3, 8, {"old": True, "v1": True}),
        (3, 2, 8, {"packed": False}),
        (1, 1, 8, {"doubles": True}),
    ],
)
def test_a_release_computes_here_what_its_layers_compute(M, R, C, how, tmp_path, one_thread):
    layers = release(M, R, C)
    net = network(M, R, C)
    name, weights = translated(read(tmp_path, layers, **how), net, "memnet", "file")
    assert name == "memnet"
    net.load_state_dict(weights)
    x = torch.rand(2, 1, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = caffe(layers, M, R, x)
    difference = (net.restore(x) - expected).abs().max().item()
    print(f"M{M}R{R}: {difference:.2g} of {expected.abs().max():.3g}")
    assert difference < 1e-12 * max(1, expected.abs().max())
    assert (expected - x).abs().mean() > 0.1  # it does something


def test_the_parameters_are_those_of_the_paper(tmp_path):
    layers = release(6, 6)
    weights = memnet.translate(read(tmp_path, layers), network(6, 6))
    convolutions = [t for name, t in weights.items() if t.ndim == 4]
    assert sum(t.numel() for t in convolutions) == 676_992  # 677K
    assert all(t.dtype == torch.float64 for t in convolutions)  # the network's
    single = memnet.translate(read(tmp_path, layers), network(6, 6).float())
    assert torch.equal(single["feature.bn.running_mean"], weights["feature.bn.running_mean"].float())


def test_running_averages_that_saw_nothing_are_zero_as_in_caffe(tmp_path):
    layers = release(1, 1, 4)
    blobs = dict(layers)["bn_conv1"]
    blobs[2][:] = 0
    found = memnet.translate(read(tmp_path, layers), network(1, 1, 4))
    assert found["feature.bn.running_mean"].item() == found["feature.bn.running_var"].item() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_blocks": 2}, "--set model.memory_blocks=3"),
        ({"recursions": 3, "channels": 8}, "--set model.recursions=2 --set model.channels=4"),
        ({"in_channels": 3}, "--set model.in_channels=1"),
        ({"long_term": False}, "--set model.long_term=true"),
        ({"short_term": False}, "--set model.short_term=true"),
        ({"multi_supervision": False}, "--set model.multi_supervision=true"),
        ({"fe_preact": False}, "--set model.fe_preact=true"),
        ({"share_bn": True}, "--set model.share_bn=false"),
    ],
)
def test_a_network_of_other_options_is_told_those_that_fit(options, said, tmp_path):
    net = MemNet(**({"memory_blocks": 3, "recursions": 2, "channels": 4} | options))
    with pytest.raises(UserError, match=f"say {said}$"):
        memnet.translate(read(tmp_path, release(3, 2, 4)), net)


def test_what_is_no_whole_release_is_refused(tmp_path):
    net = network(2, 2, 4)
    whole = read(tmp_path, release(2, 2, 4))

    def said(weights: dict[str, Tensor]) -> str:
        with pytest.raises(UserError) as error:
            memnet.translate(weights, net)
        return str(error.value)

    lacking = {name: blob for name, blob in whole.items() if name != "scale_conv02_01_b.1"}
    assert "lacks scale_conv02_01_b.1" in said(lacking)
    assert "has conv01_03_a.1" in said(whole | {"conv01_03_a.1": torch.zeros(4), "conv02_02_a.2": torch.zeros(1)})
    assert "conv01_02_a.0 differs from conv01_01_a.0" in said(whole | {"conv01_02_a.0": whole["conv01_01_b.0"]})
    assert "conv_end_02.1 differs" in said(whole | {"conv_end_02.1": whole["conv_end_01.1"] + 1})
    assert "blocks.1.conv_b.bias would be (3,)" in said(whole | {f"conv02_{r:02}_b.1": torch.zeros(3) for r in (1, 2)})
    assert "bn_conv1.2 is (2,)" in said(whole | {"bn_conv1.2": torch.ones(2)})
    assert not memnet.fits([*whole, "fc6.0"])
    assert not memnet.fits(["conv1.0", "conv2.0"])
    assert memnet.fits(whole.keys())

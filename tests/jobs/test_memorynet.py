import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import check_finite_in_bf16
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.models import memorynet
from jobs.models.memorynet import (
    ContrastiveOptions,
    HierarchicalMemory,
    LossOptions,
    MemoryNet,
    MemoryOptions,
    charbonnier,
    contrast,
    laplacian,
    reconstruction,
)
from jobs.models.vgg import VGG19Features, VGGOptions
from jobs.training.loop import Objective

pytestmark = pytest.mark.usefixtures("one_thread")

Options = dict[str, object]


def reading(**options: object) -> Options:
    """Arguments of a network whose memory has these options."""
    return {"memory": MemoryOptions(**options)}


def beside(**options: object) -> Options:
    """And whose outputs are residuals to the input."""
    return reading(base="input", **options) | {"loss": LossOptions(recon=None)}


def by_features(**options: object) -> Options:
    """And whose memory is read with each stage's features, as they are, beside which the features pass."""
    return beside(space="feature", **{"normalise": False, "similarity": "cos"} | options)


def released(**options: object) -> Options:
    """And whose memory is read with the pixels, as released."""
    return reading(profile="released", **options)


PAPER, INPUT, FEATURE, RELEASED = reading(profile="paper"), beside(), by_features(), released()
PRETRAIN: Options = {"loss": LossOptions(recon="pretrain")}
VARIANTS = (
    {"memory": None},
    {},
    PAPER,
    INPUT,
    reading(shrink=0.009),
    reading(levels=1),
    reading(levels=2),
    beside(similarity="cos", levels=2),
    by_features(normalise=True),
    FEATURE,
    by_features(residual=True),
    by_features(similarity="dot"),
    by_features(shrink=0.009),
    by_features(levels=1),
    by_features(levels=2),
    RELEASED,
    released(levels=2),
    released(shrink=0.0),
)


class Features:
    """Five maps of a fixed random network, in place of VGG19's: fast, and in any precision."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(5, c, 3, 3, generator=generator, dtype=torch.float64) / 3 for c in (3, 5, 5, 5, 5)]
        self.seen: list[tuple[tuple[int, ...], bool]] = []  # shape of each input, and whether a gradient was wanted

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.seen.append((tuple(x.shape), torch.is_grad_enabled()))
        maps = []
        for k, weight in enumerate(self.weights):
            x = F.conv2d(x, weight.to(x.dtype), stride=1 + k % 2, padding=1).tanh()
            maps.append(x)
        return maps


def tiny(seed: int = 0, **options: object) -> MemoryNet:
    torch.manual_seed(seed)
    model = MemoryNet(**{"n": 8, "u": 4, "o": 4, "cabs": 1} | options)
    model._features = Features()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, memorynet.CAB) and len(module.squeeze.weight) > 1:
                module.squeeze.weight[1] = -module.squeeze.weight[0]  # one of the two passes its ReLU
        if model.memory is not None:
            model.memory.part *= 5  # so that reads weigh: fresh prototypes are small and alike
    return model


def make_batch(n: int = 2, height: int = 16, width: int = 24, dtype=torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    gt = torch.rand(n, 3, height, width, generator=generator)
    lq = gt + 0.2 * torch.randn(gt.shape, generator=generator)
    return {
        "gt": gt.to(dtype),
        "lq": lq.to(dtype),
        "weight": torch.ones(n, dtype=dtype),
        "count": torch.tensor(float(n)),
        "progress": torch.tensor(0.5),
    }


# what is counted


@pytest.mark.parametrize(
    ("sizes", "backbone", "image", "feature"),
    [
        ((40, 20, 16), 3_637_249, 3_637_585, 3_641_285),
        ((80, 48, 32), 15_741_025, 15_741_361, 15_749_061),
        ((96, 48, 32), 20_127_073, 20_127_409, 20_136_709),
    ],
)
def test_the_parameters_are_those_of_mprnet_and_the_memory(sizes, backbone, image, feature):
    size = dict(zip("nuo", sizes, strict=True))
    with torch.device("meta"):
        counts = [sum(p.numel() for p in MemoryNet(**size, **v).parameters()) for v in ({"memory": None}, {}, FEATURE)]
    assert counts == [backbone, image, feature]


def test_only_the_gates_that_are_read_are_built():
    gates = [
        sum(
            p.numel() for name, p in MemoryNet(n=4, u=0, o=0, **reading(levels=k)).named_parameters() if ".gate" in name
        )
        for k in (1, 2, 3)
    ]
    assert gates == [0, 30, 36]


def test_the_state_is_the_parameters_each_once():
    model = MemoryNet(n=8, u=4, o=4, cabs=1, contrastive=ContrastiveOptions(vgg=VGGOptions(path="stand-in")))
    names = [name for name, _ in model.named_parameters()]
    model.training_loss(make_batch(1, 16, 16))
    assert isinstance(model._features, VGG19Features)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == names
    assert not list(model.buffers())
    assert {p.data_ptr() for p in model.parameters()} == {t.data_ptr() for t in model.state_dict().values()}


def test_weight_decay_spares_the_prototypes_and_whatever_has_one_dimension():
    expected = {"slope", "memory.part", "memory.gate_part.bias", "memory.gate_instance.bias"}
    assert MemoryNet(n=4, u=0, o=0).no_decay() == expected
    assert MemoryNet(n=4, u=0, o=0, memory=None).no_decay() == {"slope"}
    assert MemoryNet(n=4, u=0, o=0, decay_all=True).no_decay() == set()


@pytest.mark.parametrize(
    "options",
    [
        {"n": 3},
        {"u": -1},
        {"o": -1},
        {"cabs": 0},
    ],
)
def test_sizes_that_make_no_network_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        MemoryNet(**options)
    assert "\n" not in str(caught.value)


def test_a_reconstruction_that_needs_no_memory_is_refused():
    with pytest.raises(ValueError, match=r"loss\.recon with memory\.base input"):
        MemoryNet(memory=MemoryOptions(base="input"))
    assert MemoryNet(n=4, u=0, o=0, memory=None).recon is None


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (MemoryOptions, {"parts": 0}),
        (MemoryOptions, {"instances": 0}),
        (MemoryOptions, {"classes": 0}),
        (MemoryOptions, {"levels": 0}),
        (MemoryOptions, {"levels": 4}),
        (MemoryOptions, {"space": "both"}),
        (MemoryOptions, {"similarity": "cosine"}),
        (MemoryOptions, {"similarity": "cos", "normalise": False}),
        (MemoryOptions, {"similarity": "cos", "profile": "released"}),
        (MemoryOptions, {"normalise": False, "profile": "paper"}),
        (MemoryOptions, {"profile": "ours, too"}),
        (MemoryOptions, {"classes": 1}),
        (MemoryOptions, {"space": "feature"}),
        (MemoryOptions, {"residual": True, "space": "image"}),
        (MemoryOptions, {"shrink": -0.1}),
        (MemoryOptions, {"shrink": 0.01}),
        (MemoryOptions, {"shrink": 0.25, "parts": 1, "instances": 2, "classes": 2}),
        (ContrastiveOptions, {"ratio": "mean"}),
        (LossOptions, {"recon": "on"}),
        (LossOptions, {"pretrain_share": 0.0}),
        (LossOptions, {"pretrain_share": 1.0}),
        (LossOptions, {"lambda_edge": -1.0}),
        (ContrastiveOptions, {"lambda_cr": 0.0}),
        (ContrastiveOptions, {"ramp": -0.1}),
        (ContrastiveOptions, {"ramp": 1.0}),
    ],
)
def test_options_that_make_no_network_or_none_that_learns_are_refused(group, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        group(**options)


def test_the_largest_threshold_leaves_one_of_equal_prototypes():
    assert MemoryOptions(shrink=0.0099).shrink == 0.0099
    assert MemoryOptions(shrink=0.24, parts=1, instances=2, classes=2).shrink == 0.24


# the memory


RAW: Options = {"space": "feature", "normalise": False, "similarity": "cos", "base": "input"}


def make_memory(channels: int = 6, seed: int = 0, **options: object) -> HierarchicalMemory:
    torch.manual_seed(seed)
    return HierarchicalMemory(channels, MemoryOptions(**RAW | options)).double()


def queries(channels: int = 6) -> Tensor:
    return torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("similarity", ["cos", "dot"])
@pytest.mark.parametrize("shrink", [0.0, 0.009])
def test_a_read_is_a_convex_combination_of_the_prototypes(similarity, shrink):
    memory, f = make_memory(similarity=similarity, shrink=shrink), queries()
    banks = memory.banks()
    assert [len(bank) for bank in banks] == [100, 20, 10]
    for k in (1, 2, 3):
        w, y = memory.weights(f, banks[:k]), memory(f, banks[:k])
        bank = banks[k - 1]
        assert w.shape == (2, len(bank), 5, 7)
        assert (w >= 0).all()
        torch.testing.assert_close(w.sum(1), torch.ones_like(w[:, 0]))
        torch.testing.assert_close(y, torch.einsum("bkhw,kc->bchw", w, bank))
        low, high = bank.min(0).values.view(-1, 1, 1), bank.max(0).values.view(-1, 1, 1)
        assert ((y >= low - 1e-12) & (y <= high + 1e-12)).all()
        assert y.abs().max() <= bank.abs().max()
        if shrink and k == 1:
            assert 0 < int((w == 0).sum()) < w.numel()
            assert w[w > 0].min() > shrink


@pytest.mark.parametrize(("similarity", "invariant"), [("cos", True), ("dot", False)])
@pytest.mark.parametrize("c", [1e-3, 7.0])
def test_only_cosine_reads_ignore_the_scale_of_the_query(similarity, invariant, c):
    memory, f = make_memory(similarity=similarity), queries()
    banks = memory.banks()
    difference = float((memory(c * f, banks[:1]) - memory(f, banks[:1])).detach().abs().max())
    assert (difference < 1e-12) == invariant


def test_each_read_is_the_query_of_the_next():
    memory, f = make_memory(), queries()
    part, ins, sem = memory.banks()
    y_ins = memory(memory(f, [part]), [ins])
    torch.testing.assert_close(memory(f, [part, ins, sem]), memory(y_ins, [sem]))
    assert not torch.allclose(memory(f, [part, ins, sem]), memory(f, [sem]))


@torch.no_grad()
def test_with_neutral_gates_a_summary_is_a_scaled_mean():
    memory = make_memory()
    for gate in (memory.gate_part, memory.gate_instance):
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
    part, ins, sem = (bank.clone() for bank in memory.banks())
    by_part = part.view(10, 2, 5, 6)  # class, instance, part
    torch.testing.assert_close(ins.view(10, 2, 6), by_part.mean(2) / 2)
    torch.testing.assert_close(sem, by_part.mean((1, 2)) / 4)
    f = queries()
    before = memory.weights(f, [ins]), memory.weights(f, [sem])
    shuffled = by_part[:, :, torch.randperm(5)]
    memory.part.copy_(shuffled.reshape(100, 6))
    assert not torch.equal(memory.part, part)
    torch.testing.assert_close(memory.banks()[1:], [ins, sem], rtol=0, atol=1e-15)
    classes = torch.randperm(10)
    memory.part.copy_(by_part[classes].reshape(100, 6))
    _, ins, sem = memory.banks()
    torch.testing.assert_close(memory.weights(f, [ins]), before[0].view(2, 10, 2, 5, 7)[:, classes].flatten(1, 2))
    torch.testing.assert_close(memory.weights(f, [sem]), before[1][:, classes])


@torch.no_grad()
def test_the_gates_mix_parts_channel_by_channel():
    """Equation 3 in loops."""
    memory = make_memory()
    part, ins, sem = memory.banks()
    for bank, summary, gate, group in (
        (part, ins, memory.gate_part, 5),
        (ins, sem, memory.gate_instance, 2),
    ):
        for i in (0, 3, 9):
            for c in (0, 5):
                rows = [bank[group * i + p, c] for p in range(group)]
                logits = [sum(gate.weight[p, q] * rows[q] for q in range(group)) + gate.bias[p] for p in range(group)]
                expected = sum(r / (1 + math.exp(-a)) for r, a in zip(rows, logits, strict=True)) / group
                assert float(summary[i, c]) == pytest.approx(float(expected), rel=1e-12)


def test_the_prototypes_start_within_their_bound():
    part = make_memory(channels=25).part
    assert 0.19 < float(part.detach().abs().max()) <= 0.2
    assert abs(float(part.detach().mean())) < 0.01


@pytest.mark.parametrize("options", [{}, {"similarity": "dot"}, {"shrink": 0.009}])
def test_the_fused_read_has_the_gradients_of_the_plain_one(options):
    memory, f = make_memory(**options), queries().requires_grad_()
    leaves = [f, *memory.parameters()]

    def plain() -> Tensor:
        y = f.movedim(1, -1)
        for bank in memory.banks():
            w = attention(y, bank, memory)
            y = w @ bank
        return y.movedim(-1, 1)

    target = torch.randn(f.shape, dtype=f.dtype)
    y = memory(f, memory.banks())
    torch.testing.assert_close(y, plain())
    actual = torch.autograd.grad((y * target).sum(), leaves)
    for a, e in zip(actual, torch.autograd.grad((plain() * target).sum(), leaves), strict=True):
        torch.testing.assert_close(a, e)


def test_the_gradient_at_a_zero_query_is_bounded():
    """Of the shallow features of a black area every one is 0."""
    memory = make_memory()
    f = torch.zeros(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    y = memory(f, memory.banks())
    torch.testing.assert_close(memory(f, memory.banks()[:1])[0, :, 0, 0], memory.part.mean(0))  # all weigh the same
    (gradient,) = torch.autograd.grad(y.sum(), f)
    assert gradient.abs().max() < 1e6


# the network


def attention(q: Tensor, bank: Tensor, memory: HierarchicalMemory) -> Tensor:
    """Equation 1, as it stands, with a constant coordinate for pixels: q (..., C), bank (K, C) -> (..., K)."""
    if memory.similarity == "cos" and memory.by_pixels:
        q, bank = (torch.cat((v, torch.ones_like(v[..., :1])), -1) for v in (q, bank))
    d = torch.einsum("...c,kc->...k", q, bank)
    if memory.similarity == "cos":
        d = d / q.norm(dim=-1, keepdim=True) / bank.norm(dim=-1)
    w = d.exp() / d.exp().sum(-1, keepdim=True)
    if memory.shrink:
        w = torch.where(w > memory.shrink, w, torch.zeros_like(w))
        w = w / w.sum(-1, keepdim=True)
    return w


def plain(model: MemoryNet, x: Tensor) -> list[Tensor]:
    """MPRNet as its paper draws it, region by region, on the model's parameters: the images of stages 3, 2, 1."""

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2)

    def cab(block: memorynet.CAB, x: Tensor) -> Tensor:
        y = conv(block.conv1, x)
        y = conv(block.conv2, torch.where(y > 0, y, model.slope * y))
        pooled = F.adaptive_avg_pool2d(y, 1)
        return x + y * torch.sigmoid(conv(block.excite, F.relu(conv(block.squeeze, pooled))))

    def cabs(blocks: memorynet.CABs, x: Tensor) -> Tensor:
        for block in blocks:
            x = cab(block, x)
        return x

    def scaled(x: Tensor, factor: float) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def encode(encoder, x, enc=None, dec=None):
        maps = []
        for k in range(3):
            x = cabs(encoder.levels[k], x)
            if enc is not None:
                x = x + conv(encoder.from_encoder[k], enc[k]) + conv(encoder.from_decoder[k], dec[k])
            maps.append(x)
            if k < 2:
                x = conv(encoder.down[k], scaled(x, 0.5))
        return maps

    def decode(decoder, enc):
        three = cabs(decoder.levels[2], enc[2])
        two = cabs(decoder.levels[1], conv(decoder.up[1], scaled(three, 2)) + cab(decoder.skip[1], enc[1]))
        one = cabs(decoder.levels[0], conv(decoder.up[0], scaled(two, 2)) + cab(decoder.skip[0], enc[0]))
        return [one, two, three]

    def supervise(sam, f, base):
        image = conv(sam.image, f) + base
        return conv(sam.conv, f) * torch.sigmoid(conv(sam.attention, image)) + f, image

    memory = model.memory
    banks = memory.banks() if memory is not None else []

    def read(f, levels):
        y = f.movedim(1, -1)
        if memory.by_pixels:
            y = (y - 0.5) * math.sqrt(12)
        for bank in banks[:levels]:
            y = attention(y, bank, memory) @ bank
        if memory.by_pixels:
            y = 0.5 + y / math.sqrt(12)
        return y.movedim(-1, 1)

    def shallow(s, image):
        if memory is not None and memory.by_pixels and s <= len(banks):
            image = image - 0.5
        f = conv(model.shallow[s - 1].conv, image)
        f = cab(model.shallow[s - 1].cab, f)
        if memory is None or memory.space == "image" or s > len(banks):
            return f
        y = read(f, s)
        return y if s == 1 and not memory.residual else f + y

    pixels = memory is not None and memory.space == "image"
    by_stage = [read(x, s) if pixels and s <= len(banks) else x for s in (1, 2, 3)]
    bases = by_stage if pixels and memory.base == "read" else [x] * 3
    H, W = x.shape[2] // 2, x.shape[3] // 2
    rows = slice(0, H), slice(H, 2 * H)
    columns = slice(0, W), slice(W, 2 * W)
    enc1, dec1, sams, images1 = [], [], [], []
    for r in rows:
        left, right = (encode(model.encoder1, shallow(1, by_stage[0][:, :, r, c])) for c in columns)
        enc1.append([torch.cat(pair, 3) for pair in zip(left, right, strict=True)])
        dec1.append(decode(model.decoder1, enc1[-1]))
        f, image = supervise(model.sam1, dec1[-1][0], bases[1][:, :, r])
        sams.append(f)
        images1.append(image)
    halves = []
    for k, r in enumerate(rows):
        f = torch.cat((shallow(2, by_stage[1][:, :, r]), sams[k]), 1)
        halves.append(encode(model.encoder2, conv(model.fusion2, f), enc1[k], dec1[k]))
    enc2 = [torch.cat(pair, 2) for pair in zip(*halves, strict=True)]
    dec2 = decode(model.decoder2, enc2)
    f, image2 = supervise(model.sam2, dec2[0], bases[2])
    f = conv(model.fusion3, torch.cat((shallow(3, by_stage[2]), f), 1))
    for k, orb in enumerate(model.orsnet.orbs):
        f = f + conv(orb.conv, cabs(orb.cabs, f))
        for maps, layers in ((enc2, model.orsnet.from_encoder[k]), (dec2, model.orsnet.from_decoder[k])):
            taken = maps[k]
            for layer in layers[:-1]:
                taken = conv(layer, scaled(taken, 2))
            f = f + conv(layers[-1], taken)
    return [bases[2] + conv(model.tail, f), image2, torch.cat(images1, 2)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_stages_are_those_of_mprnet_with_a_memory(options):
    """Values and gradients, the fused and batched network against one that is written region by region."""
    model = tiny(**options).double()
    x = make_batch(dtype=torch.float64)["lq"].requires_grad_()
    weights = torch.randn(3, *x.shape, dtype=torch.float64)
    results = []
    for images in (model.stages(x), plain(model, x)):
        loss = (torch.stack(list(images)) * weights).sum()
        results.append([*images, *torch.autograd.grad(loss, [x, *model.parameters()])])
    assert all(float(value.detach().abs().max()) > 0 for value in results[0])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_without_memory_it_is_the_backbone_of_any_memorynet():
    """The same weights in a network with a memory, whose memory adds nothing, give the baseline's images."""
    baseline, model = tiny(memory=None), tiny(seed=1, **by_features(residual=True))
    missing = model.load_state_dict(baseline.state_dict(), strict=False).missing_keys
    assert all(name.startswith("memory.") for name in missing)
    x = make_batch()["lq"]
    assert not torch.allclose(model.stages(x)[0], baseline.stages(x)[0], atol=1e-3)
    model.memory.part.zero_()
    torch.testing.assert_close(model.stages(x), baseline.stages(x))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_with_zero_image_convolutions_every_stage_returns_its_base(options):
    model = tiny(**options)
    for layer in (model.tail, model.sam1.image, model.sam2.image):
        nn.init.zeros_(layer.weight)
    x = make_batch()["lq"]
    y = [x, x, x]  # of stages 1, 2, 3
    if model.memory is not None and model.memory.base == "read":
        banks = model.memory.banks()
        y = [model.memory(x, banks[:s]) if s <= len(banks) else x for s in (1, 2, 3)]
    for image, base in zip(model.stages(x), (y[2], y[2], y[1]), strict=True):
        torch.testing.assert_close(image, base, rtol=0, atol=0 if base is x else 1e-6)


@pytest.mark.parametrize("options", [FEATURE, {}, INPUT, RELEASED], ids=str)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_gradient_reaches_the_parts_through_each_level(options, level, monkeypatch):
    """One stage's loss, and of the banks only one level attached: stage 1 reads parts, 2 instances, 3 semantics."""
    model = tiny(**options)
    banks = model.memory.banks
    monkeypatch.setattr(
        model.memory, "banks", lambda: [bank if k == level else bank.detach() for k, bank in enumerate(banks())]
    )
    x = make_batch()["lq"]
    images = model.stages(x)[::-1]
    leaves = [model.memory.part, model.memory.gate_part.weight, model.memory.gate_instance.weight]
    gradients = torch.autograd.grad(images[level].square().sum(), leaves, allow_unused=True, retain_graph=True)
    assert [g is not None and bool(g.any()) for g in gradients] == [True, level >= 1, level >= 2]
    # Stage 1 ends before any semantic read, and its image is a residual to the instances' or sees the parts alone.
    if level > (1 if model.memory.base == "read" else 0):
        (gradient,) = torch.autograd.grad(images[0].sum(), leaves[:1], allow_unused=True)
        assert gradient is None


def test_a_network_takes_colour_of_sides_that_are_multiples_of_8():
    model = tiny()
    for shape in ((1, 1, 16, 16), (1, 3, 20, 16), (1, 3, 16, 12), (3, 16, 16)):
        with pytest.raises(ValueError, match="MemoryNet takes"):
            model(torch.rand(shape))
    with pytest.raises(ValueError, match="MemoryNet takes"):
        model.eval().restore(torch.rand(1, 1, 16, 16))


# restoring


@pytest.mark.parametrize("options", [{}, FEATURE, RELEASED], ids=str)
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (31, 16), (40, 25)])
def test_any_size_is_restored_at_its_size(options, size):
    model = tiny(**options).eval()
    x = torch.rand(2, 3, *size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    y = model.restore(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert not y.requires_grad
    pad = nn.ReflectionPad2d((0, -size[1] % 8, 0, -size[0] % 8))
    expected = plain(model, pad(x))[0][..., : size[0], : size[1]]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_restoring_in_training_mode_is_a_defect():
    with pytest.raises(AssertionError, match="eval"):
        tiny().restore(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("options", [{}, PAPER, reading(levels=2), FEATURE, by_features(residual=True), RELEASED])
@torch.no_grad()
def test_the_read_weights_are_those_that_the_stages_use(options):
    model, x = tiny(**options), torch.rand(2, 3, 24, 16)
    reads: list[Tensor] = []
    model.memory.register_forward_hook(lambda module, args, out: reads.append(out))
    model.stages(x)
    weights = model.read_weights(x)
    assert list(weights) == ["part", "instance", "semantic"][: model.memory.levels]
    cuts = (4, 2, 1) if model.memory.space == "feature" else (1, 1, 1)  # quarters, halves, the whole
    for w, bank, read, parts in zip(weights.values(), model.memory.banks(), reads, cuts, strict=False):
        assert w.shape == (2, len(bank), 24, 16)
        torch.testing.assert_close(w.sum(1), torch.ones(2, 24, 16))
        whole = torch.cat(read.chunk(2), 3) if parts == 4 else read
        whole = torch.cat(whole.chunk(2), 2) if parts > 1 else whole
        y = torch.einsum("bkhw,kc->bchw", w, bank)
        if model.memory.by_pixels:
            y = 0.5 + y / math.sqrt(12)
        torch.testing.assert_close(y, whole, rtol=1e-4, atol=1e-6)


def test_read_weights_come_in_the_size_of_the_image():
    assert {w.shape[2:] for w in tiny().read_weights(torch.rand(1, 3, 19, 21)).values()} == {(19, 21)}
    assert tiny(memory=None).read_weights(torch.rand(1, 3, 16, 16)) == {}


# the objective


def test_the_charbonnier_loss_of_equals_is_epsilon():
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    assert charbonnier(x - x).tolist() == pytest.approx([1e-3] * 2, rel=1e-9)
    assert charbonnier(torch.full_like(x, 0.75)).tolist() == pytest.approx([math.hypot(0.75, 1e-3)] * 2)


def test_the_laplacian_removes_constants_inside():
    shift = torch.full((1, 3, 24, 32), 0.3, dtype=torch.float64)
    inside = laplacian(shift)[..., 4:-4, 4:-4]
    assert inside.abs().max() < 1e-12
    assert charbonnier(inside).tolist() == pytest.approx([1e-3], rel=1e-9)


def test_the_laplacian_is_the_released_one():
    """The 5x5 kernel as an outer product, in loops over channels."""
    k = torch.tensor([[0.05, 0.25, 0.4, 0.25, 0.05]], dtype=torch.float64)
    kernel = (k.T @ k)[None, None]

    def gauss(x: Tensor) -> Tensor:
        padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
        return torch.cat([F.conv2d(padded[:, c : c + 1], kernel) for c in range(x.shape[1])], 1)

    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    filtered = gauss(x)
    mask = torch.zeros_like(x)
    mask[:, :, ::2, ::2] = 1
    torch.testing.assert_close(laplacian(x), x - gauss(4 * mask * filtered))


def test_the_reconstruction_loss_is_a_root_mean_square_by_sample():
    x = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    x[0] = 0.5
    assert reconstruction(x).tolist() == pytest.approx([0.5, 1e-6])


def test_the_contrastive_loss_weighs_deep_maps_most():
    maps = [torch.zeros(2, 3, 4, 4) for _ in range(5)]
    for k, omega in enumerate((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)):
        anchor = [m.clone() for m in maps]
        anchor[k][0] += 0.3
        positive = [m - 0.1 for m in maps]
        negative = [m - 0.2 for m in maps]
        other = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]
        other.remove(omega)
        expected = [sum(other) / 2 + omega * 0.4 / 0.5, 47 / 32 / 2]
        assert contrast(anchor, positive, negative, torch.ones(2), "sample").tolist() == pytest.approx(
            expected, rel=1e-5
        )
        over_both = sum(other) / 2 + omega * (0.4 + 0.1) / (0.5 + 0.2)
        assert contrast(anchor, positive, negative, torch.ones(2), "batch").tolist() == pytest.approx([over_both] * 2)
    assert contrast(maps, maps, maps, torch.ones(2), "batch").tolist() == [0, 0]  # 0 / 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": LossOptions(recon=None, lambda_edge=0.2)},
        {"contrastive": None},
        {"contrastive": ContrastiveOptions(ratio="sample")},
        {"memory": None},
        INPUT,
        FEATURE,
        RELEASED,
    ],
    ids=str,
)
@torch.no_grad()
def test_the_objective_is_the_sum_of_its_terms(options):
    model = tiny(**options).double()
    batch = make_batch(3, dtype=torch.float64)
    J, Y = batch["lq"], batch["gt"]
    images = plain(model, J)
    clean = plain(model, Y)[0]
    G = Features()
    char = edge = recon = cr = 0.0
    distances = []  # of each sample, by layer: to the positive and to the negative
    for i in range(3):
        for X in images:
            char += float(((X[i] - Y[i]) ** 2 + 1e-6).sqrt().mean())
            lap = laplacian(X[i : i + 1]) - laplacian(Y[i : i + 1])
            edge += float((lap**2 + 1e-6).sqrt().mean())
        recon += float((clean[i] - Y[i]).square().mean().sqrt())
        maps = zip(*(G(z[i : i + 1]) for z in (images[0], Y, J)), strict=True)
        distances.append([(float((x - y).abs().mean()), float((x - j).abs().mean())) for x, y, j in maps])
    by_sample = model.contrastive is not None and model.contrastive.ratio == "sample"
    for k, omega in enumerate((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)):
        pairs = [sample[k] for sample in distances]
        if by_sample:
            cr += omega * sum(p / (n + 1e-7) for p, n in pairs)
        else:
            cr += omega * 3 * sum(p for p, _ in pairs) / (sum(n for _, n in pairs) + 3e-7)
    loss, logs = model.training_loss(batch)
    terms = {"char": char / 3, "edge": edge / 3, "recon": recon / 3, "cr": cr / 3}
    if model.loss.recon is None or model.memory is None:
        del terms["recon"]
    if model.contrastive is None:
        del terms["cr"]
    lambda_edge = 0.2 if options.get("loss") == LossOptions(recon=None, lambda_edge=0.2) else 0.05
    expected = terms["char"] + lambda_edge * terms["edge"]
    expected += terms.get("recon", 0) + 0.1 * terms.get("cr", 0)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert set(logs) == {*terms, "psnr"}
    for name, value in terms.items():
        assert float(logs[name]) == pytest.approx(value, rel=1e-6), name
    assert float(logs["psnr"]) == pytest.approx(-10 * math.log10(float((images[0] - Y).square().mean())), rel=1e-6)


@torch.no_grad()
def test_the_contrastive_loss_grows_in_over_its_ramp():
    model, plainly = tiny(), tiny(contrastive=None)
    base = float(plainly.training_loss(make_batch())[0])

    def share(model: MemoryNet, progress: float) -> float:
        loss, logs = model.training_loss(make_batch() | {"progress": torch.tensor(progress)})
        return (float(loss) - base) / float(logs["cr"])

    for progress, expected in ((0.0, 0.0), (0.025, 0.05), (0.05, 0.1), (0.9, 0.1)):
        assert share(model, progress) == pytest.approx(expected, abs=1e-5)
    assert share(tiny(contrastive=ContrastiveOptions(ramp=0.0)), 0.0) == pytest.approx(0.1, abs=1e-5)
    later = tiny(
        loss=LossOptions(recon="pretrain", pretrain_share=0.2)
    )  # nothing to ramp before the degraded images come
    for progress, expected in ((0.2, 0.0), (0.225, 0.05), (0.25, 0.1)):
        assert share(later, progress) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("options", [{}, PAPER, RELEASED], ids=str)
def test_a_clean_image_is_reconstructed_from_what_the_memory_reads_alone(options):
    """Without the convolutions of the images: L_recon is the distance of the last read, which no residual makes 0."""
    model = tiny(contrastive=None, **options)
    for layer in (model.tail, model.sam1.image, model.sam2.image):
        nn.init.zeros_(layer.weight)
    batch = make_batch()
    Y = batch["gt"]
    logs = model.training_loss(batch)[1]
    expected = (model.memory(Y, model.memory.banks()) - Y).square().mean((1, 2, 3)).sqrt().mean()
    assert float(logs["recon"]) == pytest.approx(expected.item(), rel=1e-5)
    assert float(logs["recon"]) > 0.05
    grey = torch.full_like(Y, 0.5)
    model.memory.forward = lambda f, banks: grey[:1].expand_as(f)  # a memory that knows nothing
    forgotten = model.training_loss(batch)[1]["recon"]
    assert float(forgotten) == pytest.approx(float((grey - Y).square().mean((1, 2, 3)).sqrt().mean()), rel=1e-5)


def test_the_reconstruction_teaches_every_level_of_the_memory():
    model = tiny(contrastive=None)
    X = model.stages(make_batch()["gt"])[0]
    names = ["part", "gate_part.weight", "gate_instance.weight"]
    parameters = dict(model.memory.named_parameters())
    for gradient in torch.autograd.grad(X.square().sum(), [parameters[name] for name in names]):
        assert gradient.any()


@torch.no_grad()
def test_pretraining_sees_clean_images_only_and_joint_training_both():
    model = tiny(loss=LossOptions(recon="pretrain", pretrain_share=0.25))
    batch = make_batch()
    other = batch | {"lq": torch.rand_like(batch["lq"])}
    for progress, clean in ((0.0, True), (0.249, True), (0.25, False), (0.9, False)):
        now = {"progress": torch.tensor(progress)}
        loss, logs = model.training_loss(batch | now)
        assert (float(model.training_loss(other | now)[0]) == float(loss)) == clean
        assert set(logs) == {"char", "edge", "recon", "cr", "psnr"}
        if clean:
            X = model.stages(batch["gt"])[0]
            assert float(loss) == pytest.approx(float(reconstruction(X - batch["gt"]).mean()), rel=1e-5)
            assert [float(logs[name]) for name in ("char", "edge", "cr")] == [0, 0, 0]
            mse = float((X - batch["gt"]).detach().square().mean())
            assert float(logs["psnr"]) == pytest.approx(-10 * math.log10(mse), rel=1e-5)
        else:
            # At its start the contrastive loss weighs nothing.
            joint = tiny(contrastive=ContrastiveOptions() if progress > 0.25 else None)
            assert float(loss) == pytest.approx(float(joint.training_loss(batch | now)[0]), rel=1e-6)
            assert float(logs["cr"]) > 0


@pytest.mark.parametrize(("options", "progress"), [*((options, 0.5) for options in VARIANTS), (PRETRAIN, 0.0)], ids=str)
def test_the_objective_reaches_every_parameter(options, progress):
    model = tiny(**options)
    model.training_loss(make_batch() | {"progress": torch.tensor(progress)})[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@pytest.mark.parametrize(("recon", "samples"), [(None, 2), ("net", 4)])
@torch.no_grad()
def test_degraded_and_clean_images_share_one_pass(recon, samples):
    model = tiny(loss=LossOptions(recon=recon))
    shapes = []
    model.shallow[2].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[0]))
    model.training_loss(make_batch())
    assert shapes == [samples]


def test_no_gradient_passes_through_the_positive_and_the_negative():
    model = tiny(loss=LossOptions(recon=None))
    model.training_loss(make_batch())
    assert model._features.seen == [((4, 3, 16, 24), False), ((2, 3, 16, 24), True)]


def padded(batch: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    """The batch with two samples of weight 0 more."""
    more = {name: torch.full((2, 3, *batch["gt"].shape[2:]), v) for name, v in (("gt", value), ("lq", 1 - value))}
    more["weight"] = torch.zeros(2)
    return {name: torch.cat([v, more[name].to(v.dtype)]) if name in more else v for name, v in batch.items()}


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_padding_adds_nothing_to_the_objective(value):
    model, batch = tiny().double(), make_batch(dtype=torch.float64)
    loss, logs = model.training_loss(batch)
    padded_loss, padded_logs = model.training_loss(padded(batch, value))
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_logs, logs)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(torch.autograd.grad(padded_loss, list(model.parameters())), expected)


@torch.no_grad()
def test_the_mean_over_ranks_is_that_of_the_samples():
    """Of a ratio over samples; that over the batch takes collectives, below."""
    model, whole = tiny(contrastive=ContrastiveOptions(ratio="sample")), make_batch(3)
    expected, expected_logs = model.training_loss(whole)

    def values(part: slice, count: float) -> tuple[Tensor, dict[str, Tensor]]:
        batch = {name: v[part] if v.dim() else v for name, v in padded(whole, 0.25).items()}
        return model.training_loss(batch | {"count": torch.tensor(count)})

    uneven = values(slice(0, 2), 1.5), values(slice(2, 4), 1.5)
    with_an_idle_rank = values(slice(0, 3), 1.5), values(slice(3, 5), 1.5)
    for (a, a_logs), (b, b_logs) in (uneven, with_an_idle_rank):
        torch.testing.assert_close((a + b) / 2, expected)
        for name in set(expected_logs) - {"psnr"}:
            torch.testing.assert_close((a_logs[name] + b_logs[name]) / 2, expected_logs[name])
    (_, a_logs), (_, b_logs) = with_an_idle_rank
    torch.testing.assert_close((a_logs["psnr"] + b_logs["psnr"]) / 2, expected_logs["psnr"])


def small(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("term", ["char", "edge", "recon", "cr"])
def test_the_gradients_of_each_loss_are_exact(term):
    G, Y, J = Features(), small("positive"), small("neg")

    def loss(X: Tensor) -> Tensor:
        if term == "char":
            return charbonnier(X - Y)
        if term == "edge":
            return charbonnier(laplacian(X - Y))
        return reconstruction(X - Y) if term == "recon" else contrast(G(X), G(Y), G(J), torch.ones(2), "sample")

    assert torch.autograd.gradcheck(loss, (small("anchor").requires_grad_(),), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("options", [{}, INPUT, FEATURE, RELEASED], ids=str)
def test_the_gradients_of_the_objective_are_exact(options):
    model = tiny(n=4, u=1, o=1, **options).double()
    batch = make_batch(1, 8, 8, torch.float64)
    shapes = {f"model.{name}": p.shape for name, p in model.named_parameters()}
    objective = Objective(model)

    def loss(theta: Tensor) -> Tensor:
        values = theta.split([shape.numel() for shape in shapes.values()])
        state = {name: v.view(shape) for (name, shape), v in zip(shapes.items(), values, strict=True)}
        return torch.func.functional_call(objective, state, (batch,))[0]

    theta = nn.utils.parameters_to_vector(model.parameters()).detach().requires_grad_()
    for _ in range(3):  # along random directions
        assert torch.autograd.gradcheck(loss, (theta,), eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=True)


# two ranks

RANKED = (  # options, progress
    ({}, 0.5),
    (released(levels=2), 0.04),
    ({"contrastive": ContrastiveOptions(ratio="sample")}, 0.5),
    (reading(levels=1), 0.5),
    (PRETRAIN, 0.04),
)


def rank(index: int, folder: Path) -> None:
    """One of two gloo ranks: 2 and 1 of the 3 samples, the latter with padding; gradients in folder/<index>.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    results = []
    for options, progress in RANKED:
        whole = padded(make_batch(3, 16, 16) | {"progress": torch.tensor(progress), "count": torch.tensor(1.5)}, 0.25)
        batch = {name: v[2 * index : 2 * index + 2] if v.dim() else v for name, v in whole.items()}
        objective = DistributedDataParallel(Objective(tiny(**options)))
        loss, logs = objective(batch)
        loss.backward()
        gradients = {name: p.grad for name, p in objective.module.model.named_parameters()}
        results.append((loss.detach(), logs, gradients))
    torch.save(results, folder / f"{index}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_gradients_of_one_process(tmp_path):
    torch.multiprocessing.spawn(rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    for (options, progress), a, b in zip(RANKED, *ranks, strict=True):
        model = tiny(**options)
        loss, logs = model.training_loss(make_batch(3, 16, 16) | {"progress": torch.tensor(progress)})
        loss.backward()
        torch.testing.assert_close((a[0] + b[0]) / 2, loss.detach())
        for name, value in logs.items():
            tolerance = 0.05 if name == "psnr" else 1e-5  # the mean of two ranks' dB
            assert float(a[1][name] + b[1][name]) / 2 == pytest.approx(float(value), rel=tolerance), name
        for name, p in model.named_parameters():
            assert torch.equal(a[2][name], b[2][name]), name
            difference = float((a[2][name] - p.grad).abs().max() / p.grad.abs().max())
            assert difference < 1e-5, (options, progress, name, difference)


# precision

IMAGES = {
    "black": torch.zeros(1, 3, 16, 16),
    "white": torch.ones(1, 3, 16, 16),
    "grey": torch.full((1, 3, 16, 16), 0.3),
    "checkers": (torch.arange(768).view(1, 3, 16, 16) % 2).float(),
    "one white pixel": F.pad(torch.ones(1, 3, 1, 1), (8, 7, 8, 7)),
    "huge": torch.linspace(-1e4, 1e4, 768).view(1, 3, 16, 16),
}


@pytest.mark.parametrize("options", [{}, INPUT, PAPER, FEATURE, RELEASED], ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_bf16_stays_finite_on_any_input(name, options):
    model, image = tiny(**options), IMAGES[name]
    lq, gt = image.expand(2, -1, -1, -1), torch.cat((image, image.flip(-1)))  # the first target is the input
    batch = {"lq": lq, "gt": gt, "weight": torch.ones(2), "count": torch.tensor(2.0), "progress": torch.tensor(0.5)}
    check_finite_in_bf16(model, batch)


@torch.no_grad()
def test_an_output_that_is_the_input_leaves_the_objective_finite():
    """X = J = Y: every distance of the contrastive loss is 0."""
    model = tiny(**INPUT)
    for layer in (model.tail, model.sam1.image, model.sam2.image):
        nn.init.zeros_(layer.weight)
    batch = make_batch()
    batch["gt"] = batch["lq"]
    with torch.autocast("cpu", torch.bfloat16):
        loss, logs = model.training_loss(batch)
    assert float(logs["cr"]) == 0
    assert float(loss) == pytest.approx(3 * 1.05e-3, rel=1e-3)


@pytest.mark.parametrize("options", [{}, FEATURE, RELEASED], ids=str)
@torch.no_grad()
def test_under_autocast_the_memory_computes_in_float32(options):
    model = tiny(**options)
    reads: list[tuple[tuple[Tensor, list[Tensor]], Tensor]] = []
    handle = model.memory.register_forward_hook(lambda module, args, out: reads.append((args, out)))
    features: list[Tensor] = []
    model.encoder1.register_forward_hook(lambda module, args, out: features.extend([args[0], *out]))
    with torch.autocast("cpu", torch.bfloat16):
        images = model.stages(make_batch()["lq"])
    assert {image.dtype for image in images} == {torch.float32}
    assert {f.dtype for f in features} == {torch.bfloat16}  # the backbone's precision
    handle.remove()
    assert len(reads) == 3
    for (f, banks), out in reads:
        assert out.dtype == torch.float32
        assert torch.equal(out, model.memory(f.float(), banks))
    with torch.autocast("cpu", torch.bfloat16):
        banks = model.memory.banks()
    for bank, exact in zip(banks, model.memory.banks(), strict=True):
        assert torch.equal(bank, exact)


@torch.no_grad()
def test_under_autocast_the_losses_are_computed_in_float32():
    model, batch = tiny(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        images = model.stages(torch.cat((batch["lq"], batch["gt"])))
        _, logs = model.training_loss(batch)
    errors = [image[:2] - batch["gt"] for image in images]
    for name, loss in (("char", charbonnier), ("edge", lambda e: charbonnier(laplacian(e)))):
        torch.testing.assert_close(logs[name], sum(loss(e) for e in errors).mean())


# what a level is worth


@torch.no_grad()
def test_a_fresh_memory_keeps_the_contrast_of_an_image():
    """Which three reads of raw prototypes shrink to nothing, below what bf16 tells apart."""
    x = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))

    def contrasts(**options: object) -> list[float]:
        torch.manual_seed(0)
        memory = HierarchicalMemory(3, MemoryOptions(**options))
        banks = memory.banks()
        return [float(memory(x, banks[:k]).std((0, 2, 3)).mean()) for k in (1, 2, 3)]

    kept, cosine, lost = contrasts(), contrasts(profile="paper"), contrasts(profile="released", shrink=0.0)
    print(f"standard deviations of part, instance and semantic reads: {kept}, cosine {cosine}, raw {lost}")
    assert min(kept) > 0.5 * float(x.std())
    assert min(cosine) > 5e-3
    assert lost[2] < 1e-6


@torch.no_grad()
def test_a_cosine_of_normalised_pixels_tells_a_pixel_from_its_double():
    memory = HierarchicalMemory(3, MemoryOptions(profile="paper"))
    x = torch.linspace(0.05, 0.24, 8).expand(1, 3, 1, 8)  # greys darker than the mean, as are their doubles
    for k in (1, 2, 3):
        y = memory(x, memory.banks()[:k])
        assert (y - memory(2 * x, memory.banks()[:k])).abs().max() > 1e-3


@pytest.fixture(scope="module")
def trained() -> tuple[MemoryNet, Tensor, Tensor]:
    """A small network of default options after 40 steps of denoising in bf16, and images to try it on: lq, gt."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MemoryNet(n=8, u=4, o=4, cabs=1, contrastive=None)
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    batch = {"weight": torch.ones(4), "count": torch.tensor(4.0), "progress": torch.tensor(0.5)}
    for _ in range(40):
        gt = scenes(4, 24, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.training_loss(batch | {"gt": gt, "lq": noisy(gt, rng)})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    gt = scenes(8, 24, rng)
    return model.eval(), noisy(gt, rng), gt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("level", [0, 1, 2])
@torch.no_grad()
def test_the_output_needs_the_read_of_each_level(trained, level, precision, monkeypatch):
    """Without what this level alone reads, grey in its place, the output changes by more than rounding, and for the worse."""
    model, lq, gt = trained

    def restored(bf16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(lq)

    def rms(difference: Tensor) -> float:
        return float(difference.square().mean().sqrt())

    bf16 = precision == "bf16"
    whole = restored(bf16)
    rounding = rms(restored(True) - restored(False)) if bf16 else 1e-6
    reads = model._images
    monkeypatch.setattr(
        model,
        "_images",
        lambda x, banks: [torch.full_like(y, 0.5) if s == level else y for s, y in enumerate(reads(x, banks))],
    )
    without = restored(bf16)
    lost = 20 * math.log10(rms(without - gt) / rms(whole - gt))
    print(
        f"level {level + 1}, {precision}: change {rms(without - whole):.1e}, rounding {rounding:.1e}, {lost:.2f} dB lost"
    )
    assert rms(without - whole) > 5 * rounding
    assert lost > 0.1


# it learns


def scenes(n: int, side: int, rng: np.random.Generator) -> Tensor:
    """Grey images, in three channels, of a ramp and four rectangles: (n, 3, side, side) in [0, 1]."""
    images = np.empty((n, 1, side, side), np.float32)
    y, x = np.mgrid[:side, :side] / (side - 1)
    for image in images:
        image[0] = 0.5 + 0.4 * (rng.uniform(-1, 1) * (y - 0.5) + rng.uniform(-1, 1) * (x - 0.5))
        for _ in range(4):
            top, left = rng.integers(0, side * 3 // 4, 2)
            height, width = rng.integers(side // 6, side * 7 // 12, 2)
            image[0, top : top + height, left : left + width] = rng.uniform(0, 1)
    return torch.from_numpy(images).repeat(1, 3, 1, 1)


def noisy(gt: Tensor, rng: np.random.Generator) -> Tensor:
    return gt + 25 / 255 * torch.from_numpy(rng.standard_normal((len(gt), 1, *gt.shape[2:]), np.float32))


def learn(model: MemoryNet, side: int, steps: int, lr: float) -> tuple[float, list[float], float, list[float]]:
    """Denoising: PSNR of the input, PSNRs of stages 3, 2, 1, how far the part bank moved, relative, and what each stage
    owes to it: the RMS of its change without the bank.
    """
    rng = np.random.default_rng(0)
    before = model.memory.part.detach().clone()
    optimiser = torch.optim.Adam(model.parameters(), lr)
    batch = {"weight": torch.ones(4), "count": torch.tensor(4.0), "progress": torch.tensor(0.0)}
    for _ in range(steps):
        gt = scenes(4, side, rng)
        loss, _ = model.training_loss(batch | {"gt": gt, "lq": noisy(gt, rng)})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gt = scenes(16, side, rng)
    lq = noisy(gt, rng)
    with torch.no_grad():
        stages = model.eval().stages(lq)
        psnr = [float(-10 * torch.log10((y - gt).square().mean())) for y in (lq, *stages)]
        moved = float((model.memory.part - before).norm() / before.norm())
        model.memory.part.zero_()
        used = [float((a - b).square().mean().sqrt()) for a, b in zip(stages, model.stages(lq), strict=True)]
    print(
        f"input {psnr[0]:.2f} dB, stages 3, 2, 1 {[round(p, 2) for p in psnr[1:]]}, bank moved {moved:.3f}, used {used}"
    )
    return psnr[0], psnr[1:], moved, used


def blind(**options: object) -> MemoryNet:
    """The negative control, which no constructor makes: pixels as queries, compared by their cosine."""
    torch.manual_seed(0)
    model = MemoryNet(**options, **RELEASED)
    model.memory.similarity = "cos"
    return model


def test_it_learns_to_denoise_and_cannot_from_the_cosine_of_pixels():
    size = {"n": 8, "u": 4, "o": 4, "cabs": 1, "loss": LossOptions(recon=None), "contrastive": None}
    torch.manual_seed(0)
    before, stages, moved, used = learn(MemoryNet(**size), 24, 40, 4e-3)
    assert min(stages) >= before + 3
    assert moved > 0.01
    assert min(used) > 1e-3
    before, stages, *_ = learn(blind(**size), 24, 40, 4e-3)
    assert max(stages) < before + 2


@pytest.mark.slow
def test_it_learns_to_denoise_by_6_db_on_its_best_and_last_stage():
    size = {"n": 16, "u": 8, "o": 8, "cabs": 2, "loss": LossOptions(recon=None), "contrastive": None}
    torch.manual_seed(0)
    before, stages, moved, used = learn(MemoryNet(**size), 48, 200, 1e-3)
    assert stages[0] >= before + 6
    assert max(stages) >= before + 6
    assert moved > 0.01
    assert min(used) > 1e-3
    before, stages, *_ = learn(blind(**size), 48, 200, 1e-3)
    assert max(stages) < before + 2

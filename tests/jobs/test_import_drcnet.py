"""DRCNet's release: our network with its weights computes what its layers compute, one after another."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.importing import drcnet
from jobs.importing.releases import translated
from jobs.models.drcnet import DFROptions, DRCNet
from jobs.recipe import build_model, read_recipe
from pipeline.errors import UserError

State = dict[str, Tensor]
RELEASED = DFROptions(profile="released")

pytestmark = pytest.mark.usefixtures("one_thread")


def release(width: int = 8, depth: int = 4, seed: int = 0) -> State:
    """The names and shapes of the release's tensors, with random weights that put pixels on both sides of the threshold."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def conv(name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        deviation = gain / math.sqrt(math.prod(shape[1:]))
        state[f"{name}.weight"] = deviation * torch.randn(shape, generator=generator)
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    for stage in (1, 2):
        conv(f"conv_0{stage}", width, 3, 3, 3)
        before = width
        for i in range(depth):
            c, at = width * 2**i, f"down_path_{stage}.{i}"
            conv(f"{at}.identity", c, before, 1, 1)
            conv(f"{at}.conv_1", c, before, 3, 3)
            conv(f"{at}.conv_2", c, before, 3, 3)
            conv(f"{at}.norm.sa.conv1", 1, 2, 7, 7, bias=False, gain=10)
            conv(f"{at}.norm.sa.gamma_conv", 1, 1, 7, 7)
            conv(f"{at}.norm.sa.beta_conv", 1, 1, 7, 7)
            state[f"{at}.norm.rn.bn_norm.weight"] = 0.5 + torch.rand(c // 2, generator=generator)
            state[f"{at}.norm.rn.bn_norm.bias"] = 0.3 * torch.randn(c // 2, generator=generator)
            if i < depth - 1:
                conv(f"{at}.downsample", c, c, 4, 4, bias=False)
                if stage == 2:
                    conv(f"{at}.csff_enc", c, c, 3, 3)
                    conv(f"{at}.csff_dec", c, c, 3, 3)
            before = c
        for j in range(depth - 1):
            c, at = width * 2 ** (depth - 2 - j), f"up_path_{stage}.{j}"
            deviation = 1 / math.sqrt(2 * c)
            state[f"{at}.up.weight"] = deviation * torch.randn(2 * c, c, 2, 2, generator=generator)
            state[f"{at}.up.bias"] = 0.1 * torch.randn(c, generator=generator)
            conv(f"{at}.conv_block.identity", c, 2 * c, 1, 1)
            conv(f"{at}.conv_block.conv_1", c, 2 * c, 3, 3)
            conv(f"{at}.conv_block.conv_2", c, c, 3, 3)
            conv(f"skip_conv_{stage}.{j}", c, c, 3, 3)
    conv("sam12.conv1", width, width, 3, 3)
    conv("sam12.conv2", 3, width, 3, 3)
    conv("sam12.conv3", width, 3, 3, 3)
    conv("cat12", width, 2 * width, 1, 1)
    conv("last", 3, width, 3, 3)
    return state


class Layers:
    """The release's layers in its order, in float64. levels: those with a normalisation."""

    def __init__(self, state: State, levels: range) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.levels = levels
        self.depth = sum(name.startswith("down_path_1.") and name.endswith("identity.weight") for name in state)
        self.masked: list[float] = []  # the share of each normalisation's pixels

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        pad = 1 if stride == 2 else weight.shape[-1] // 2
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, pad)

    def norm(self, name: str, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
        response = self.conv(f"{name}.sa.conv1", pooled).sigmoid()
        gamma, beta = (self.conv(f"{name}.sa.{which}_conv", response) for which in ("gamma", "beta"))
        mask = (response >= 0.8).double().expand_as(x)
        self.masked.append(float(mask.mean()))
        out = torch.zeros_like(x)
        for m in (mask, 1 - mask):  # sums over the whole batch
            pixels = m.sum((0, 2, 3)).clamp_min(1)
            mean = ((x * m).sum((0, 2, 3)) / pixels)[:, None, None]
            affine = (self.state[f"{name}.rn.bn_norm.{part}"] for part in ("weight", "bias"))
            normal = F.instance_norm(x * m + (1 - m) * mean, None, None, *affine, eps=1e-5)
            out = out + normal * (pixels / (m.numel() / m.shape[1])).sqrt()[:, None, None]
        return out * (1 + gamma) + beta

    def down(self, name: str, x: Tensor, level: int) -> Tensor:
        sf = self.conv(f"{name}.conv_1", x)
        if level in self.levels:
            first, second = sf.chunk(2, 1)
            sf = torch.cat((self.norm(f"{name}.norm", first), second), 1)
        ea = self.conv(f"{name}.conv_2", x)
        square = (ea - ea.mean((2, 3), keepdim=True)) ** 2
        ea = ea * (square / (4 * (square.sum((2, 3), keepdim=True) / (ea[0, 0].numel() - 1) + 1e-4)) + 0.5).sigmoid()
        return F.leaky_relu(sf, 0.2) * F.leaky_relu(ea, 0.2) + self.conv(f"{name}.identity", x)

    def up(self, stage: int, x: Tensor, encoded: list[Tensor]) -> list[Tensor]:
        decoded = []
        for j in range(self.depth - 1):
            at = f"up_path_{stage}.{j}"
            up = F.conv_transpose2d(x, self.state[f"{at}.up.weight"], self.state[f"{at}.up.bias"], 2)
            both = torch.cat((up, self.conv(f"skip_conv_{stage}.{j}", encoded[-j - 1])), 1)
            inner = F.leaky_relu(self.conv(f"{at}.conv_block.conv_1", both), 0.2)
            x = F.leaky_relu(self.conv(f"{at}.conv_block.conv_2", inner), 0.2) + self.conv(
                f"{at}.conv_block.identity", both
            )
            decoded.append(x)
        return decoded

    def __call__(self, image: Tensor) -> list[Tensor]:
        first: list[Tensor] = []
        x = self.conv("conv_01", image)
        for i in range(self.depth):
            x = self.down(f"down_path_1.{i}", x, i)
            if i < self.depth - 1:
                first.append(x)
                x = self.conv(f"down_path_1.{i}.downsample", x, stride=2)
        decoded = self.up(1, x, first)
        out_1 = self.conv("sam12.conv2", decoded[-1]) + image
        sam = self.conv("sam12.conv1", decoded[-1]) * self.conv("sam12.conv3", out_1).sigmoid() + decoded[-1]
        x = self.conv("cat12", torch.cat((self.conv("conv_02", image), sam), 1))
        second: list[Tensor] = []
        for i in range(self.depth):
            at = f"down_path_2.{i}"
            x = self.down(at, x, i)
            if i < self.depth - 1:
                x = x + self.conv(f"{at}.csff_enc", first[i]) + self.conv(f"{at}.csff_dec", decoded[-i - 1])
                second.append(x)
                x = self.conv(f"{at}.downsample", x, stride=2)
        return [out_1, self.conv("last", self.up(2, x, second)[-1]) + image]


@torch.no_grad()
@pytest.mark.parametrize(("depth", "sf_levels"), [(4, None), (4, (2, 3)), (3, (0,))])
def test_our_network_with_its_weights_is_the_release(depth, sf_levels):
    weights = release(depth=depth)
    network = DRCNet(width=8, levels=depth, dfr=DFROptions(profile="released", sf_levels=sf_levels), contrastive=None)
    name, found = translated(weights, network, "drcnet", "a.pth")
    assert name == "drcnet"
    network.load_state_dict(found)
    network.double()
    differences = []
    for seed in range(3):
        image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        layers = Layers(weights, range(depth) if sf_levels is None else range(sf_levels[0], sf_levels[-1] + 1))
        for ours, theirs in zip(network.outputs(image), layers(image), strict=True):
            differences.append(float((ours - theirs).abs().max() / theirs.abs().max()))
        assert sum(0.02 < share < 0.98 for share in layers.masked) >= len(layers.masked) / 2, layers.masked
    print(f"largest relative difference {max(differences):.1e}")
    assert max(differences) < 1e-12


def test_a_file_of_the_papers_size_fits_the_recipe_with_the_profile():
    def shapes(state: State) -> State:
        return {name: torch.empty(tensor.shape, device="meta") for name, tensor in state.items()}

    weights = shapes(release(width=64))
    assert sum(tensor.numel() for tensor in weights.values()) == 18_975_798
    recipe = read_recipe("drcnet-derain", ["model.dfr.profile=released"])
    with torch.device("meta"):
        network = build_model(recipe.model)
        found = drcnet.translate(weights, network)
    own = network.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: own[name].shape for name in own}


def test_it_is_told_from_others_by_its_names():
    names = release(width=2).keys()
    assert drcnet.fits(names)
    assert not drcnet.fits(name.replace(".norm.sa.", ".norm.") for name in names)  # as HINet's are
    assert not drcnet.fits(["conv1.0"])


def test_a_network_of_other_options_is_refused_with_those_that_fit():
    weights = release(width=4)
    with pytest.raises(UserError) as error:
        drcnet.translate(weights, DRCNet(width=8, levels=3, contrastive=None))
    said = str(error.value)
    assert "\n" not in said
    for setting in ("width=4", "levels=4", "dfr.affine=true", "dfr.unbiased=true", "dfr.t=0.8", "dfr.delta=0.0001"):
        assert f"--set model.{setting}" in said
    settings = [part.split()[0] for part in said.split("--set ")[1:]]
    network = build_model(read_recipe("drcnet-derain", settings).model)  # and with these it fits
    assert drcnet.translate(weights, network).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("cat12.bias"), r"lacks cat12\.bias"),
        (lambda w: w.pop("down_path_2.1.norm.rn.bn_norm.bias"), r"lacks down_path_2\.1\.norm\.rn\.bn_norm\.bias"),
        (lambda w: w.update({"attention.weight": torch.ones(1)}), r"has attention\.weight"),
        (lambda w: w.update({"last.bias": torch.ones(4)}), r"last\.bias would be \(4,\), and tail\.bias is \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said):
    weights = release(width=4)
    network = DRCNet(width=4, dfr=RELEASED, contrastive=None)
    change(weights)
    with pytest.raises(UserError, match=said):
        drcnet.translate(weights, network)

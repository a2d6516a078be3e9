"""DRCNet: dynamic image restoration contrastive network (Li, Shen, Mi, Li; ECCV 2022).

The network and its objective. The release settles what the paper's text leaves open, and where its formulas cannot be
meant as printed: `DRCNet` says where. Equation 1 describes the product of two branches; no dynamic filter is ever formed.
"""
# ruff: noqa: E741 - I is the paper's name of the degraded image, J of the clean one, X of the restored one

from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from jobs.models.collective import all_gather, rank
from jobs.models.contrastive import Over, ratio
from jobs.models.convolution import Conv2d
from jobs.models.dynamic import SLOPE, energy, gated, region_affine
from jobs.models.elementwise import psnr, root
from jobs.models.fp32 import exact
from jobs.models.padding import mirrored
from jobs.models.vgg import VGG19Features, VGGOptions, distance
from pipeline.config import Frozen

Batch = dict[str, Tensor]

SMALLEST = 16  # pixels a side, which five levels halve to one
EPS = 1e-5  # of the region normalisation, as of InstanceNorm
# Layers of VGG19 (relu1_1, relu2_1, ...) and their weights omega: the release's, and AECR-Net's own for `own`.
CR_LAYERS: dict[str, dict[int, float]] = {
    "intra": {1: 1 / 16, 6: 1 / 8, 11: 1 / 4},
    "extra": {1: 1 / 16, 6: 1 / 8, 11: 1 / 4},
    "own": {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0},
}


# What a profile says of the options that are not given. The defaults are `ours`.
Profile = Literal["ours", "paper", "released"]
DFR_PROFILES: dict[str, dict[str, Any]] = {
    "released": {"delta": 1e-4, "t": 0.8, "response_kernel": 7, "affine": True, "unbiased": True},
}
CR_PROFILES: dict[str, dict[str, Any]] = {
    "paper": {"ramp": 0.0},
    "released": {"ramp": 0.0, "alpha": 0.05, "outputs": "all", "ratio": "batch"},
}


def _completed(given: Any, profiles: dict[str, dict[str, Any]]) -> Any:
    """The given options, with the values of their profile for the others."""
    profile = given.get("profile") if isinstance(given, dict) else None
    return profiles[profile] | given if isinstance(profile, str) and profile in profiles else given


class DFROptions(Frozen):
    """The dynamic filter restoration module."""

    profile: Profile = Field(
        "ours",
        description="what is not given is as: released: delta 1e-4, t 0.8, response_kernel 7, affine, unbiased; ours, paper: the "
        "defaults here, which are the paper's where it says anything",
    )
    branches: Literal["base", "sf", "ea", "sf_id", "sf_ea", "full"] = Field(
        "full",
        description="Table 4's rows. full: SF * EA + identity; sf_ea, sf_id, sf: without the identity, EA, both; base: one "
        "convolution in the place of the module, and max-pooling; ea: base with the attention and the identity branch. The "
        "paper does not describe the last two; they are read so that they have its numbers of parameters",
    )
    delta: float = Field(1e-6, gt=0, description="the constant of eq. 8; 1e-4 in the release")
    unbiased: bool = Field(False, description="the variance of eq. 8 is over N - 1, as released; over N, as printed")
    t: float = Field(0.75, gt=0, lt=1, description="the threshold of the mask (eq. 4); 0.8 in the release")
    response_kernel: Literal[3, 7] = Field(
        3,
        description="side of the convolutions of the response map, gamma and beta: 3 in the paper's figure, 7 released",
    )
    region_norm: Literal["two_region", "literal"] = Field(
        "two_region", description="two_region: as released; literal: eqs. 5-7; see region_normalise"
    )
    affine: bool = Field(
        False,
        description="a weight and a bias for each channel that is normalised, the bias once for each region, as released",
    )
    sf_levels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="levels whose SF branch has its normalisation, from 0 on; null: all, as released for rain and noise. For "
        "blur the release trains with 2, 3 and tests with 3",
    )

    @property
    def has_sf(self) -> bool:
        """Whether there is a spatial filter branch."""
        return self.branches not in ("base", "ea")

    @property
    def has_ea(self) -> bool:
        """Whether there is an energy attention branch."""
        return self.branches in ("ea", "sf_ea", "full")

    @property
    def has_identity(self) -> bool:
        """Whether there is an identity branch."""
        return self.branches in ("ea", "sf_id", "full")

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, given: Any) -> Any:
        return _completed(given, DFR_PROFILES)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.sf_levels is not None and not self.has_sf:
            raise ValueError(f"sf_levels {self.sf_levels}: need branches with sf, and these are {self.branches}")
        if self.affine and self.region_norm == "literal":
            raise ValueError("affine is of region_norm two_region: eqs. 5-7 have no such parameters")
        return self


class ContrastiveOptions(Frozen):
    """The contrastive regularisation."""

    profile: Profile = Field(
        "ours",
        description="what is not given is as: paper: ramp 0; released: ramp 0, alpha 0.05, outputs all, ratio batch; ours: the "
        "defaults here, which are the paper's but for ramp",
    )
    negatives: Literal["intra", "extra", "own"] = Field(
        "intra",
        description="intra: mixtures of input and target; extra: other inputs of the batch; own: the input itself, with "
        "AECR-Net's five layers",
    )
    lambdas: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0, 0.95, 0.90),
        min_length=1,
        description="mixing weights, which also weigh the negatives in the ratio; their number is n for extra too",
    )
    mix_role: Literal["degraded", "clean"] = Field(
        "degraded",
        description="which image lambda weighs. degraded: as released; clean: eq. 11 as printed, a negative control, always "
        "mixed here from input and target",
    )
    alpha: float = Field(0.04, ge=0, description="weight of the term; 0.05 in the release")
    start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="the share of the run after which alpha begins to rise: near the output X = I, where training begins, "
        "negatives are as near as X, and the ratio would outweigh L1",
    )
    ramp: float = Field(
        0.05,
        ge=0,
        le=1,
        description="the share of the run in which alpha rises linearly; neither paper nor release has a ramp",
    )
    ratio: Over = Field(
        "sample",
        description="sample: eq. 13 for each sample; batch: of the distances' means over the global batch, as released (there "
        "of each GPU's), so that no sample near its negatives has most of the gradient",
    )
    outputs: Literal["last", "all"] = Field(
        "last", description="last: the term of the result; all: of both stages' outputs, as released"
    )
    layers: tuple[int, ...] | None = Field(
        None, description="of VGG19, indices as torchvision's; null: relu1_1, relu2_1, relu3_1, or those of own"
    )
    weights: tuple[float, ...] | None = Field(
        None, description="omega, of each of the layers; null: those of negatives"
    )
    vgg: VGGOptions = Field(VGGOptions(), description="the features; read at the first training step")
    vgg_norm: bool = Field(
        False, description="normalise VGG19's input with ImageNet's mean and deviation; the release does not"
    )

    @property
    def maps(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The layers of VGG19, and omega of each."""
        default = CR_LAYERS[self.negatives]
        return (
            tuple(default) if self.layers is None else self.layers,
            tuple(default.values()) if self.weights is None else self.weights,
        )

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, given: Any) -> Any:
        return _completed(given, CR_PROFILES)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        layers, omega = self.maps
        if len(layers) != len(omega):
            raise ValueError(f"layers {layers} and weights {omega}: equally many")
        return self


def inverse_energy(v: Tensor, delta: float, *, unbiased: bool = False) -> Tensor:
    """1/e* of every element of v (B, C, H, W), with mean and variance of its channel over H x W (eq. 8); at least 0.5.

    unbiased: the variance is over one pixel less than there are (release).
    """
    _, square, k = energy(v, delta, unbiased=unbiased)
    return square * k + 0.5


def energy_attention(v: Tensor, delta: float, *, unbiased: bool = False) -> Tensor:
    """v * sigmoid(1/E(v)) (eq. 9), in v's precision; the factor, in [0.6225, 1), is computed in float32."""
    with torch.autocast(v.device.type, enabled=False):
        return v * torch.sigmoid(inverse_energy(exact(v), delta, unbiased=unbiased)).to(v.dtype)


def region_normalise(
    z: Tensor, mask: Tensor, region_norm: Literal["two_region", "literal"] = "two_region", eps: float = EPS
) -> Tensor:
    """Normalise z (B, C, H, W) with the statistics of regions of its own sample. mask: (B, 1, H, W), bool.

    two_region: the masked and the unmasked pixels each with the mean and deviation of their region, as in region
        normalisation (Yu et al., AAAI 2020): fill the other region with this one's mean, InstanceNorm, times
        sqrt(fraction of this region). With a mask of one value it is InstanceNorm. The release's regions are of the whole
        batch, so that an image's result depends on its neighbours; one image at a time, it computes the same.
    literal: all pixels with the statistics of the masked ones (eqs. 5-7, with the square that eq. 6 lacks); where no pixel
        is masked, with those of all pixels.
    """
    if region_norm == "two_region":
        one = torch.ones_like(mask, dtype=z.dtype)
        return region_affine(z, mask, one, torch.zeros_like(one), eps, None, None)
    m = (mask | ~mask.any(-1, keepdim=True).any(-2, keepdim=True)).to(z.dtype)
    n = m.sum((2, 3), keepdim=True).clamp_min(1)  # (B, 1, 1, 1)
    z = z - (m * z).sum((2, 3), keepdim=True) / n  # eq. 5
    return z * ((m * z.square()).sum((2, 3), keepdim=True) / n + eps).rsqrt()  # eqs. 6, 7


class RegionNorm(nn.Module):
    """The adaptive feature normalisation of the spatial filter branch (eqs. 2-7): (B, C, H, W) -> the same shape."""

    def __init__(self, options: DFROptions, channels: int) -> None:
        super().__init__()
        self.t, self.region_norm, kernel = options.t, options.region_norm, options.response_kernel
        self.weight = nn.Parameter(torch.ones(channels, 1, 1)) if options.affine else None
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if options.affine else None
        self.conv = Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.gamma = Conv2d(1, 1, kernel, padding=kernel // 2)
        self.beta = Conv2d(1, 1, kernel, padding=kernel // 2)

    def response(self, z: Tensor) -> Tensor:
        """The spatial response map M_sr (B, 1, H, W), in (0, 1) (eqs. 2, 3; mean and maximum of the convolved features)."""
        return torch.sigmoid(self.conv(torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], 1)))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):  # the threshold and the statistics in float32
            m = self.response(exact(z))
            mask = m > self.t
            # eq. 7; 1 + gamma as in region normalisation. This path alone trains the response.
            scale, offset = 1 + self.gamma(m), self.beta(m)
            if self.region_norm == "literal":
                return (scale * region_normalise(exact(z), mask, "literal") + offset).to(z.dtype)
            bias = None
            if self.bias is not None:
                # The release's InstanceNorm of each filled region, bias and all, is scaled by sqrt(fraction), and both are added.
                pixels = mask[0].numel()
                masked = mask.sum((2, 3), keepdim=True).to(m.dtype)  # (B, 1, 1, 1)
                bias = self.bias * sum(root(region.clamp_min(1) / pixels) for region in (masked, pixels - masked))
            return region_affine(z, mask, scale, offset, EPS, self.weight, bias)


class DFR(nn.Module):
    """The dynamic filter restoration module: (B, c_in, H, W) -> (B, c_out, H, W), SF * EA + identity."""

    def __init__(self, c_in: int, c_out: int, options: DFROptions, *, normalise: bool) -> None:
        super().__init__()
        self.has_sf, self.has_ea = options.has_sf, options.has_ea
        self.delta, self.unbiased = options.delta, options.unbiased
        self.norm = RegionNorm(options, c_out // 2) if normalise else None
        # The branches have a 3x3 convolution each; on the same input they are one.
        self.conv = Conv2d(c_in, c_out * (2 if self.has_sf and self.has_ea else 1), 3, padding=1)
        self.identity = Conv2d(c_in, c_out, 1) if options.has_identity else None

    def forward(self, x: Tensor) -> Tensor:
        u = v = self.conv(x)
        if self.has_sf and self.has_ea:
            u, v = v.chunk(2, 1)
        if self.norm is not None:  # normalises the first half of the channels (release; the text splits at random)
            first, second = u.chunk(2, 1)
            u = torch.cat([self.norm(first), second], 1)
        if self.has_sf and self.has_ea:
            out = gated(u, v, self.delta, unbiased=self.unbiased)
        elif self.has_ea:
            out = F.leaky_relu(energy_attention(v, self.delta, unbiased=self.unbiased), SLOPE)
        else:
            out = F.leaky_relu(u, SLOPE)
        return out if self.identity is None else out + self.identity(x)


class ResBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 convolution: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = _conv3(c_in, c_out), _conv3(c_out, c_out)
        self.shortcut = Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.leaky_relu(self.conv_a(x), SLOPE, inplace=True)
        return F.leaky_relu(self.conv_b(inner), SLOPE, inplace=True) + self.shortcut(x)


class Features(NamedTuple):
    """What a U-Net leaves behind, level 0 first: encoder features e_i before down-sampling, decoder features d_i."""

    e: list[Tensor]
    d: list[Tensor]


class UNet(nn.Module):
    """One stage: an encoder of DFR blocks and a decoder of ResBlocks, widths doubling at each level.

    fuse: the second stage adds the first one's features to its encoder's (CSFF: cross-stage feature fusion, MPRNet).
    """

    def __init__(self, blocks: list[DFR], width: int, *, pool: bool, fuse: bool) -> None:
        super().__init__()
        c = [width * 2**i for i in range(len(blocks))]
        upper = c[:-1]  # the levels that have a smaller one below
        self.stem = _conv3(3, width)
        self.encoder = nn.ModuleList(blocks)
        self.down = nn.ModuleList(nn.MaxPool2d(2) if pool else Conv2d(n, n, 4, 2, 1, bias=False) for n in upper)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in upper)
        self.skip = nn.ModuleList(_conv3(n, n) for n in upper)
        self.decoder = nn.ModuleList(ResBlock(2 * n, n) for n in upper)
        self.csff_e = nn.ModuleList(_conv3(n, n) for n in upper if fuse)
        self.csff_d = nn.ModuleList(_conv3(n, n) for n in upper if fuse)

    def forward(self, x: Tensor, before: Features | None = None) -> Features:
        """x: (B, width, H, W), the stem's features. before: the first stage's features, for the second."""
        e: list[Tensor] = []
        for i, down in enumerate(self.down):
            x = self.encoder[i](x)  # (B, c_i, H / 2^i, W / 2^i)
            if before is not None:
                x = x + self.csff_e[i](before.e[i]) + self.csff_d[i](before.d[i])
            e.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        d: list[Tensor] = []
        for i in reversed(range(len(e))):
            x = self.decoder[i](torch.cat([self.up[i](x), self.skip[i](e[i])], 1))
            d.insert(0, x)
        return Features(e, d)


class SAM(nn.Module):
    """The supervised attention module of MPRNet between the stages; 3x3 convolutions, as released."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features, self.image, self.attention = _conv3(width, width), _conv3(width, 3), _conv3(3, width)

    def forward(self, d_0: Tensor, I: Tensor) -> tuple[Tensor, Tensor]:
        """(d_0 (B, width, H, W), I (B, 3, H, W)) -> features for the second stage, and the first stage's image out_1."""
        out_1 = self.image(d_0) + I
        return d_0 + self.features(d_0) * torch.sigmoid(self.attention(out_1)), out_1


def mixup(I: Tensor, J: Tensor, lambdas: Tensor, mix_role: Literal["degraded", "clean"]) -> Tensor:
    """The negatives N_k of Intra-CR: I, J (B, C, H, W) and lambdas (B, n) -> (n, B, C, H, W).

    degraded: lambda I + (1 - lambda) J, as released. clean: eq. 11 as printed, lambda J + (1 - lambda) I; its negatives
    are almost the target: minimising the ratio then drives the output away from J.
    """
    weight = lambdas.t()[..., None, None, None].to(I.dtype)  # (n, B, 1, 1, 1)
    a, b = (I, J) if mix_role == "degraded" else (J, I)
    return weight * a + (1 - weight) * b


def other_images(images: Tensor, true: Tensor, start: int, size: int, n: int) -> tuple[Tensor, Tensor]:
    """The negatives of Extra-CR for the `size` samples from `start` on: the true samples rolled by 1..n.

    images: (P, C, H, W). true: (P,) bool; padding is nobody's negative. Returns (n, size, C, H, W), and (size,) bool:
    whether the sample has any. No sample is its own negative; fewer than n others are repeated.
    """
    count = true.sum()
    order = (~true).int().argsort(stable=True)  # the true samples first
    place = true.cumsum(0)[start : start + size] - 1  # of each sample among the true ones
    roll = 1 + torch.arange(n, device=images.device)[:, None] % (count - 1).clamp_min(1)  # (n, 1)
    return images[order[(place + roll) % count.clamp_min(1)]], true[start : start + size] & (count > 1)


def distances(
    G_X: list[Tensor], G_J: list[Tensor], G_N: list[list[Tensor]], c: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Numerators and denominators of the ratio in eq. 13, of each layer: (B,) each, float32.

    G_X, G_J: maps (B, C, H, W) of each layer; G_N: for each layer, the maps of each of n negatives. c: (n, B), the negatives'
    weights. The mean over a sample's elements.
    """
    away = [torch.stack([distance(X, N) for N in negatives]) for X, negatives in zip(G_X, G_N, strict=True)]
    return [distance(X, J) for X, J in zip(G_X, G_J, strict=True)], [(c * each).sum(0) for each in away]


class DRCNet(nn.Module):
    """DRCNet; the defaults are the paper's main model with Intra-CR.

    width, levels: the size of the two U-Nets. The paper's "four down-samplings" are four levels, three down-samplings (18.9M).
    dfr: the module of their encoders.
    contrastive: None leaves that term out.

    Statistics are those of each image: nothing is averaged over batches, and evaluation computes what training does.
    Every block multiplies two maps: inputs hundreds of times out of range overflow.
    Raises ValueError for sizes that make no network.
    """

    in_channels = 3
    receptive_field = None

    def __init__(
        self,
        *,
        width: int = 64,
        levels: int = 4,
        dfr: DFROptions = DFROptions(),
        contrastive: ContrastiveOptions | None = ContrastiveOptions(),
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width {width}: even, at least 2, as half of the channels are normalised")
        if not 2 <= levels <= 5:
            raise ValueError(f"levels {levels}: 2 to 5, so that an image of {SMALLEST} pixels a side is large enough")
        if dfr.sf_levels is not None and max(dfr.sf_levels, default=0) >= levels:
            raise ValueError(f"dfr.sf_levels {dfr.sf_levels}: the levels are 0 to {levels - 1}")
        self.dfr, self.contrastive = dfr, contrastive
        intra = contrastive is not None and contrastive.negatives == "intra"
        self.inputs = ("lq", "gt", "intra negatives") if intra else ("lq", "gt")
        self.size_multiple = 2 ** (levels - 1)
        self._features: VGG19Features | None = None  # no module: neither trained nor in a checkpoint

        def blocks() -> list[DFR]:
            c = [width, *(width * 2**i for i in range(levels))]
            normalised = () if not dfr.has_sf else range(levels) if dfr.sf_levels is None else dfr.sf_levels
            return [DFR(c[i], c[i + 1], dfr, normalise=i in normalised) for i in range(levels)]

        self.stage_1 = UNet(blocks(), width, pool=not dfr.has_sf, fuse=False)
        self.sam = SAM(width)
        self.merge = Conv2d(2 * width, width, 1)
        self.stage_2 = UNet(blocks(), width, pool=not dfr.has_sf, fuse=True)
        self.tail = _conv3(width, 3)

    def outputs(self, I: Tensor) -> list[Tensor]:
        """[out_1, out_2], the images of both stages, each of I's shape and dtype: (B, 3, H, W) in [0, 1], not clipped."""
        multiple = self.size_multiple
        if I.dim() != 4 or I.shape[1] != 3 or I.shape[2] % multiple or I.shape[3] % multiple:
            raise ValueError(f"DRCNet takes (B, 3, H, W), H and W multiples of {multiple}, not {tuple(I.shape)}")
        before = self.stage_1(self.stage_1.stem(I))
        f, out_1 = self.sam(before.d[0], I)
        x = self.merge(torch.cat([self.stage_2.stem(I), f], 1))
        out_2 = self.tail(self.stage_2(x, before).d[0]) + I
        return [out_1, out_2]

    def forward(self, I: Tensor) -> Tensor:
        """Restore I (B, 3, H, W) in [0, 1], H and W multiples of `size_multiple`: out_2, not clipped."""
        return self.outputs(I)[-1]

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective (eq. 13): L1 of both outputs, and alpha times the contrastive term.

        batch, beside what jobs.models says: `progress`, without which alpha has its final value. With intra negatives also
        `lambdas` (B, n), mixing weights of each sample, in place of the options', and `negatives` (B, n, 3, H, W), the
        mixtures themselves.
        Extra-CR takes its negatives from the samples of this rank, so it depends on how a global batch is divided: W ranks
        equal one process only if each has one sample, when the ranks' samples are gathered.
        Logs `psnr` (dB, of out_2), `l1`, `cr` (before alpha) and `cr_grad_share`: the share of the gradient's norm at the
        output images that comes from alpha times the contrastive term. Raises ValueError for shapes that do not fit.
        """
        I, J, weight = batch["lq"], batch["gt"], batch["weight"]

        def mean(values: Tensor) -> Tensor:
            return (values * weight).sum() / batch["count"]

        outputs = self.outputs(I)
        l1 = torch.stack([distance(out, J) for out in outputs]).sum(0)  # (B,); SAM needs the first (release)
        loss = mean(l1)
        logs = {"l1": loss.detach()}
        if self.contrastive is not None:
            X = outputs if self.contrastive.outputs == "all" else outputs[-1:]
            cr, gradients = self._regularisation(self.contrastive, X, batch)
            alpha = _alpha(self.contrastive, batch)
            loss = loss + alpha * mean(cr)
            from_cr = alpha * _norms(gradients)
            from_l1 = _norms([(out.detach() - J).sign() / J[0].numel() for out in X])
            share = from_cr / (from_cr + from_l1).clamp_min(torch.finfo(from_cr.dtype).tiny)
            logs |= {"cr": mean(cr).detach(), "cr_grad_share": mean(share)}
        true = weight.sum()
        mse = ((outputs[-1].detach() - J).square().mean((1, 2, 3)) * weight).sum() / true.clamp_min(1)
        logs["psnr"] = psnr(mse) * (true / batch["count"])
        return loss, logs

    def load_features(self, device: torch.device) -> None:
        """See jobs.models.Contrasting."""
        if (options := self.contrastive) is not None:
            features = VGG19Features(options.maps[0], options.vgg, normalise=options.vgg_norm)
            self._features = features.to(device, torch.float32)

    def _regularisation(
        self, options: ContrastiveOptions, outputs: list[Tensor], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        """The contrastive term of each sample, summed over outputs (B,), and its gradient at each output.

        The gradient is taken here, which frees VGG19's maps before the network's own backward pass.
        """
        _, omega = options.maps
        if self._features is None:
            self.load_features(batch["gt"].device)
        G = self._features
        assert G is not None
        J = batch["gt"]
        with torch.no_grad():
            negatives, c = _negatives(options, batch)
            maps = [layer.split(len(J)) for layer in G(torch.cat([J, *negatives]))]
        G_J, G_N = [layer[0] for layer in maps], [list(layer[1:]) for layer in maps]
        # A sample without negatives has no term, and padding no part in the means over the batch.
        taken = (c.any(0) & (batch["weight"] > 0)).to(c.dtype)
        value, gradients = torch.zeros_like(c[0]), []
        for out in outputs:
            with torch.enable_grad():
                X = out.detach().requires_grad_()
                cr = ratio(*distances(G(X), G_J, G_N, c), omega, taken, options.ratio)
                (gradient,) = torch.autograd.grad(cr.sum(), X)
            # These gradients are each sample's own, see `ratio`. The sum is 0, with the gradient of cr.
            value = value + cr.detach() + (gradient * (out - out.detach())).sum((1, 2, 3))
            gradients.append(gradient)
        return value, gradients

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """Restore lq (B, 3, H, W), float32 in [0, 1], of any size, as one piece; same shape, not clipped.

        Sides are mirrored up to multiples of `size_multiple`, and to SMALLEST.
        """
        assert not self.training, "call eval() first"
        padded = mirrored(lq, self.size_multiple, SMALLEST)
        return self(padded)[..., : lq.shape[2], : lq.shape[3]]


def _alpha(options: ContrastiveOptions, batch: Batch) -> Tensor | float:
    """alpha at this point of the run."""
    progress = batch.get("progress")
    if progress is None:
        return options.alpha
    since = progress - options.start
    return options.alpha * ((since / options.ramp).clamp(0, 1) if options.ramp else (since >= 0).to(since.dtype))


def _negatives(options: ContrastiveOptions, batch: Batch) -> tuple[Tensor, Tensor]:
    """The negatives (n, B, 3, H, W) and their weights in the denominator (n, B)."""
    I, J, weight = batch["lq"], batch["gt"], batch["weight"]
    B, n = len(I), len(options.lambdas)
    dtype = torch.promote_types(I.dtype, torch.float32)
    if options.negatives == "own":
        return I[None], I.new_ones(1, B, dtype=dtype)
    if options.negatives == "extra":
        images, true, start = I, weight > 0, 0
        if B == 1:
            images, true, start = all_gather(images).flatten(0, 1), all_gather(true).flatten(0, 1), rank()
            if len(images) == 1:
                raise ValueError("extra negatives are other images of the batch: use a batch of 2 or more")
        others, has = other_images(images, true, start, B, n)
        return others, has.to(dtype).expand(n, B)
    lambdas = batch.get("lambdas")
    if lambdas is None:
        lambdas = torch.tensor(options.lambdas, dtype=dtype, device=I.device).expand(B, n)
    if lambdas.dim() != 2 or len(lambdas) != B:
        raise ValueError(f"lambdas of shape {tuple(lambdas.shape)}: expected (B, n) with B = {B}")
    stored = batch.get("negatives")
    if stored is not None and options.mix_role == "degraded":
        if stored.shape != (*lambdas.shape, *I.shape[1:]):
            raise ValueError(
                f"negatives of shape {tuple(stored.shape)}: expected (B, n, 3, H, W) of inputs {tuple(I.shape)} "
                f"and lambdas {tuple(lambdas.shape)}"
            )
        return stored.transpose(0, 1), lambdas.t()
    return mixup(I, J, lambdas, options.mix_role), lambdas.t()  # c_k = lambda_k (release)


def _conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return Conv2d(c_in, c_out, 3, padding=1)


def _norms(maps: list[Tensor]) -> Tensor:
    """The norm of each sample over all these maps (B, C, H, W): (B,)."""
    return torch.stack([x.flatten(1).norm(dim=1) for x in maps]).norm(dim=0)

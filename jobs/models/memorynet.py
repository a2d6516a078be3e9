"""MemoryNet: Memory augment is All You Need for image restoration (Zhang, Gu, Zhu; arXiv:2309.01377).

The network, MPRNet (Zamir et al., CVPR 2021) with a memory of three granularities, and its objective. The paper leaves much
open and its release is unfinished (no L_recon, no contrastive loss): where the two differ or both are silent, a comment
there says what is taken.

The memory is one chain from the image, whose reads the stages convolve, as in Fig. 2, section IV-B and the release. It departs from
them in this: the banks are standardised and the pixels centred, as three reads of a fresh memory shrink a contrast of 0.288 to
0.035, 2.6e-4 and 2.6e-7; the cosine of eq. 1 has a constant coordinate more, without which a pixel and its double read the same;
and the similarity is the release's dot product, as cosines weigh all prototypes nearly alike. The sum over pixels in eq. 2, the
modalities and S are left out. `memory.profile: paper` has the cosine, `released` the release's memory without departures.
"""

import itertools
import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from jobs.models.contrastive import Over, ratio
from jobs.models.convolution import Conv2d, convolution_backward
from jobs.models.elementwise import psnr, root
from jobs.models.fp32 import exact
from jobs.models.padding import mirrored
from jobs.models.vgg import VGG19Features, VGGOptions, distance
from pipeline.config import Frozen

Batch = dict[str, Tensor]
LEVELS = ("part", "instance", "semantic")
EPS = 1e-3  # of eqs. 8, 9; the paper prints "10_3^()", the release has 1e-3
VGG_LAYERS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
SPREAD = 1 / math.sqrt(12)  # the standard deviation of a uniform pixel
OMEGA = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)


def split(x: Tensor, dim: int) -> Tensor:
    """(B, ...) -> (2B, ...): the first halves of all samples along `dim`, then the second halves."""
    return torch.cat(x.chunk(2, dim))


def join(x: Tensor, dim: int) -> Tensor:
    """(2B, ...) -> (B, ...): the inverse of `split`."""
    return torch.cat(x.chunk(2), dim)


# options


# What the memory's options are where they are not given.
PROFILES: dict[str, dict[str, Any]] = {
    "ours": {},  # the defaults below
    "paper": {"similarity": "cos"},  # eq. 1; normalised, as else it learns nothing
    "released": {"normalise": False, "order": "released", "shrink": 0.0025},
}


class MemoryOptions(Frozen):
    """The memory. The paper gives no numbers of prototypes: these are the release's."""

    profile: Literal["ours", "paper", "released"] = Field(
        "ours", description="all options that are not given, see PROFILES"
    )
    parts: int = Field(5, ge=1, description="P, parts of an instance; the bank has N_c I P prototypes")
    instances: int = Field(2, ge=1, description="I, instances of a class")
    classes: int = Field(10, ge=1, description="N_c")
    levels: Literal[1, 2, 3] = Field(
        3, description="stages with a memory, from the first: parts in stage 1, instances in 2, semantics in 3"
    )
    space: Literal["image", "feature"] = Field(
        "image",
        description="image: one chain from the pixels, and the stages convolve what it reads (Fig. 2, section IV-B, eq. 4; the "
        "release). feature: each stage reads with its own convolved features; stage 1 encodes what it reads, stages 2 and 3 "
        "add it (eq. 5; stage 3 before the fusion, whose output is wider)",
    )
    similarity: Literal["cos", "dot"] = Field(
        "dot", description="dot: the release; cos: eq. 1, whose weights are almost the same for all prototypes"
    )
    normalise: bool = Field(
        True,
        description="ours: each bank is standardised over its prototypes, and pixels by the spread of uniform ones, so that no "
        "read loses contrast to the next; cosines are those of (f, 1) and (m, 1), which tell a pixel from its double",
    )
    base: Literal["read", "input"] = Field(
        "read",
        description="what the stages' images are residuals to. read: what the next stage (the last: its own) reads, as "
        "released, so that all of an image passes the memory; input: as in MPRNet, with L_recon off",
    )
    order: Literal["class", "released"] = Field(
        "class",
        description="rows of the part bank: class, instance, part; released: its reshape, which takes the C P numbers of an "
        "instance as C rows of P and so mixes parts with channels",
    )
    shrink: float = Field(
        0.0,
        ge=0,
        description="hard-shrink threshold of read weights, which are then divided by their sum; 0: none; release: 0.0025",
    )
    residual: bool = Field(
        False,
        description="stage 1 encodes its features plus what it reads, not the latter alone; in space feature only",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, given: Any) -> Any:
        return PROFILES.get(str(given.get("profile")), {}) | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.space == "image" and self.similarity == "cos" and not self.normalise:
            raise ValueError(
                "similarity cos with space image: a pixel and its double would read the same; set normalise: true, or "
                "similarity: dot"
            )
        if self.normalise and self.classes == 1:
            raise ValueError("classes 1 with normalise: one prototype has no spread; at least 2, or normalise: false")
        if self.base == "read" and self.space == "feature":
            raise ValueError("space feature with base read: features are read there, not an image; set base: input")
        if self.space == "image" and self.residual:
            raise ValueError("residual with space image: what is read replaces the image there; drop one of the two")
        items = self.classes * self.instances * self.parts
        if self.shrink >= 1 / items:
            raise ValueError(
                f"shrink {self.shrink}: from 0 to below 1/{items}, or it can drop all of {items} prototypes"
            )
        return self


class LossOptions(Frozen):
    """The terms of eq. 7 beside L_char."""

    lambda_edge: float = Field(0.05, ge=0, description="lambda, the weight of L_edge: MPRNet's and the release's value")
    recon: Literal["net", "pretrain"] | None = Field(
        "net",
        description="L_recon (eq. 6), the same network on clean images; with space image it needs memory.base read, as a residual "
        "to the input makes it 0 without a memory, and with space feature it does just that. net: in every step; pretrain: alone for the first pretrain_share of the run (the two "
        "phases of section III.A), then in every step; null, and without a memory: never, as released",
    )
    pretrain_share: float = Field(0.1, gt=0, lt=1, description="of the run's steps")


class ContrastiveOptions(Frozen):
    """The contrastive loss, which eq. 7 omits."""

    lambda_cr: float = Field(0.1, gt=0, description="its weight")
    ramp: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="the share of the run over which the weight grows from 0: output and negative are close at first, and "
        "their distance is the loss's denominator",
    )
    ratio: Over = Field(
        "batch",
        description="batch: of the means of all samples' distances, as in the losses of AECR-Net; sample: the mean of each "
        "sample's ratio, most of whose gradient goes to samples with little degradation",
    )
    vgg: VGGOptions = Field(VGGOptions(), description="the features; read at the first training step")


# the memory


class HierarchicalMemory(nn.Module):
    """The prototypes of three granularities and their reads (eqs. 1 to 4), in float32 whatever autocast does.

    The part bank (N_c I P, C) is learned; an instance summarises its P parts and a class its I instances (eq. 3), with weights
    alpha = sigmoid of a linear layer over the parts, as released. The paper's factor 2 (two modalities) and S are 1.

    Normalised, each bank has mean 0 and variance 1 over its prototypes, and pixels are read as (x - 1/2) / SPREAD, so that a
    query and the prototypes have about the same spread at each level. What pixels read is an image again: 1/2 + SPREAD y.

    Gates that no read needs are not built.
    """

    def __init__(self, channels: int, options: MemoryOptions) -> None:
        super().__init__()
        P, I, N_c = options.parts, options.instances, options.classes  # noqa: E741
        self.parts, self.instances, self.levels = P, I, options.levels
        self.space, self.residual = options.space, options.residual
        self.similarity, self.shrink = options.similarity, options.shrink
        self.normalise, self.base, self.order = options.normalise, options.base, options.order
        bound = 1 / math.sqrt(channels)
        self.part = nn.Parameter(torch.empty(N_c * I * P, channels).uniform_(-bound, bound))
        if self.levels >= 2:
            self.gate_part = nn.Linear(P, P)  # A_P
        if self.levels >= 3:
            self.gate_instance = nn.Linear(I, I)  # A_I

    def banks(self) -> list[Tensor]:
        """The banks of the built levels, as they are read: (N_c I P, C), (N_c I, C), (N_c, C)."""
        banks = [exact(self.part)]
        with torch.autocast(self.part.device.type, enabled=False):
            if self.levels >= 2:
                rows = banks[0].unflatten(0, (-1, self.parts))  # (N_c I, P, C)
                if self.order == "released":
                    rows = rows.reshape(len(rows), -1, self.parts).mT
                banks.append(_summary(rows, self.gate_part))
            if self.levels >= 3:
                banks.append(_summary(banks[1].unflatten(0, (-1, self.instances)), self.gate_instance))
        return [_standard(bank) for bank in banks] if self.normalise else banks

    def forward(self, f: Tensor, banks: list[Tensor]) -> Tensor:
        """Read f (B, C, H, W) through these banks in turn; each read is the query of the next (eq. 4); float32, f's shape.

        f is an image of pixels in [0, 1] with space image, and so is what is read, if normalised.
        """
        with torch.autocast(f.device.type, enabled=False):
            q = self._query(f)
            for bank in banks:
                q = self._read(q, bank)
            return (0.5 + q * SPREAD if self.by_pixels else q).permute(0, 3, 1, 2)

    def weights(self, f: Tensor, banks: list[Tensor]) -> Tensor:
        """The weights (B, K, H, W) of the last read of forward(f, banks), over the K prototypes of its bank."""
        with torch.autocast(f.device.type, enabled=False):
            q = self._query(f)
            for bank in banks[:-1]:
                q = self._read(q, bank)
            return self._weights(q, banks[-1]).permute(0, 3, 1, 2)

    @property
    def by_pixels(self) -> bool:
        """Whether queries are pixels that are standardised."""
        return self.space == "image" and self.normalise

    def _query(self, f: Tensor) -> Tensor:
        """f (B, C, H, W) -> (B, H, W, C), without a copy for channels_last tensors; pixels standardised if banks are."""
        q = exact(f).permute(0, 2, 3, 1)
        return (q - 0.5) / SPREAD if self.by_pixels else q

    def _read(self, q: Tensor, bank: Tensor) -> Tensor:
        """y = sum_j w_j m_j for each pixel (eq. 2; its sum over pixels is dropped: it would leave one vector an image)."""
        if self.shrink:
            return checkpoint(  # the weights, (B, H, W, K), are not kept
                lambda q, bank: self._weights(q, bank) @ bank, q, bank, use_reentrant=False, preserve_rng_state=False
            )
        query, key = self._compared(q, bank)
        # Fused kernels take values of the keys' width: where keys have a coordinate more, so have values, of zeros.
        bank = F.pad(bank, (0, key.shape[1] - bank.shape[1]))
        # A row of pixels is one head: enough of them to fill a GPU, in the layout that q has.
        key, value = (rows.expand(*q.shape[:2], *rows.shape) for rows in (key, bank))
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., : q.shape[-1]]

    def _weights(self, q: Tensor, bank: Tensor) -> Tensor:
        query, key = self._compared(q, bank)
        w = (query @ key.T).softmax(-1)  # eq. 1
        if self.shrink:
            w = F.hardshrink(w, self.shrink)
            w = w / w.sum(-1, keepdim=True)
        return w

    def _compared(self, q: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose dot product is d(f, m) of eq. 1."""
        if self.similarity == "dot":
            return q, bank
        if self.by_pixels:
            q, bank = (F.pad(v, (0, 1), value=1.0) for v in (q, bank))
        # eps bounds the gradient at 0: a black area has features of 0, as no convolution has a bias.
        return F.normalize(q, dim=-1, eps=1e-6), F.normalize(bank, dim=-1, eps=1e-6)


def _summary(rows: Tensor, gate: nn.Linear) -> Tensor:
    """Mean (K, C) of groups of rows (K, G, C), weighted by alpha = sigmoid(A rows), for each channel (eq. 3)."""
    alpha = torch.sigmoid(F.linear(rows.mT, exact(gate.weight), exact(gate.bias)).mT)
    return (alpha * rows).mean(1)


def _standard(bank: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the prototypes, for each channel."""
    centred = bank - bank.mean(0)
    return centred * torch.rsqrt(centred.square().mean(0) + 1e-12)


# the backbone: MPRNet; convolutions have no bias, and all share one PReLU, whose slope `a` is passed along


def conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    """Stride 1, same size, no bias."""
    return Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)


def up(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def rectified(x: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution of PReLU of x, which the backward pass computes again instead of keeping it. a: (1,), the slope."""
    return _Rectified.apply(x, a, weight)


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, a, weight)
        return F.conv2d(F.prelu(x, a.to(x.dtype)), weight, None, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, a, weight = ctx.saved_tensors
        narrow = a.to(x.dtype)
        active = F.prelu(x, narrow).to(grad.dtype)
        wanted = (True, ctx.needs_input_grad[2], False)
        d_active, d_weight, _ = convolution_backward(grad, active, weight.to(grad.dtype), None, 1, 1, wanted)
        assert d_active is not None
        d_x, d_a = torch.ops.aten._prelu_kernel_backward(d_active.to(x.dtype), x, narrow.view(1, 1, 1, 1))
        return d_x, d_a.sum().view(1).to(a.dtype), None if d_weight is None else d_weight.to(weight.dtype)


class CAB(nn.Module):
    """Channel attention block: two 3x3 convolutions, scaled by channel from their global mean, on a residual."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(c, c), conv(c, c)
        self.squeeze, self.excite = conv(c, c // 4, 1), conv(c // 4, c, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        r = rectified(self.conv1(x), a, self.conv2.weight)
        attention = torch.sigmoid(self.excite(F.relu(self.squeeze(r.mean((2, 3), keepdim=True)))))
        return torch.addcmul(x, r, attention)


class CABs(nn.ModuleList):
    """CABs in a row."""

    def __init__(self, c: int, number: int) -> None:
        super().__init__(CAB(c) for _ in range(number))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        for cab in self:
            x = cab(x, a)
        return x


class Shallow(nn.Module):
    """Image (B, 3, H, W) -> shallow features (B, n, H, W)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv, self.cab = conv(3, n), CAB(n)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.cab(self.conv(x), a)


class Encoder(nn.Module):
    """(B, c_0, H, W) -> maps of three levels: widths c_k, sides H / 2^k. cross: it takes in the maps of the stage before."""

    def __init__(self, widths: tuple[int, int, int], *, cross: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(CABs(c, 2) for c in widths)
        self.down = nn.ModuleList(conv(c_in, c_out, 1) for c_in, c_out in itertools.pairwise(widths))
        if cross:
            self.from_encoder = nn.ModuleList(conv(c, c, 1) for c in widths)
            self.from_decoder = nn.ModuleList(conv(c, c, 1) for c in widths)

    def forward(
        self, x: Tensor, a: Tensor, enc: list[Tensor] | None = None, dec: list[Tensor] | None = None
    ) -> list[Tensor]:
        maps: list[Tensor] = []
        for k, level in enumerate(self.levels):
            if k > 0:
                x = self.down[k - 1](F.avg_pool2d(maps[-1], 2))  # for even sides, the bilinear x0.5
            x = level(x, a)
            if enc is not None and dec is not None:
                x = x + self.from_encoder[k](enc[k]) + self.from_decoder[k](dec[k])
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """The encoder's maps -> maps of the same sizes, finest first."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(CABs(c, 2) for c in widths)
        self.skip = nn.ModuleList(CAB(c) for c in widths[:2])
        self.up = nn.ModuleList(conv(c_in, c_out, 1) for c_out, c_in in itertools.pairwise(widths))

    def forward(self, enc: list[Tensor], a: Tensor) -> list[Tensor]:
        maps = [self.levels[2](enc[2], a)]
        for k in (1, 0):
            # 1x1 convolutions and bilinear upsampling commute: here and in ORSNet convolutions come first, on fewer pixels.
            x = up(self.up[k](maps[0])) + self.skip[k](enc[k], a)
            maps.insert(0, self.levels[k](x, a))
        return maps


class SAM(nn.Module):
    """Supervised attention: features (B, n, H, W) and a base image -> the next stage's features, the stage's image."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv, self.image, self.attention = conv(n, n, 1), conv(n, 3, 1), conv(3, n, 1)

    def forward(self, f: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        image = base + self.image(f)
        return torch.addcmul(f, self.conv(f), torch.sigmoid(self.attention(image))), image


class ORB(nn.Module):
    """Original-resolution block: CABs and a 3x3 convolution, on a residual."""

    def __init__(self, c: int, cabs: int) -> None:
        super().__init__()
        self.cabs, self.conv = CABs(c, cabs), conv(c, c)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return x + self.conv(self.cabs(x, a))


def _narrowing(widths: tuple[int, ...], c: int) -> nn.Sequential:
    """1x1 convolutions from the last of the widths down to the first, then to c."""
    steps = [*reversed(widths), c]
    return nn.Sequential(*(conv(c_in, c_out, 1) for c_in, c_out in itertools.pairwise(steps)))


class ORSNet(nn.Module):
    """Stage 3, at full resolution: three ORBs, each followed by one level of stage 2."""

    def __init__(self, widths: tuple[int, int, int], c: int, cabs: int) -> None:
        super().__init__()
        self.orbs = nn.ModuleList(ORB(c, cabs) for _ in range(3))
        self.from_encoder = nn.ModuleList(_narrowing(widths[: k + 1], c) for k in range(3))
        self.from_decoder = nn.ModuleList(_narrowing(widths[: k + 1], c) for k in range(3))

    def forward(self, x: Tensor, a: Tensor, enc: list[Tensor], dec: list[Tensor]) -> Tensor:
        for k, (orb, from_enc, from_dec) in enumerate(
            zip(self.orbs, self.from_encoder, self.from_decoder, strict=True)
        ):
            taken = from_enc(enc[k]) + from_dec(dec[k])
            for _ in range(k):
                taken = up(taken)
            x = orb(x, a) + taken
        return x


# the objective, for each sample


def charbonnier(difference: Tensor) -> Tensor:
    """Mean of sqrt(difference^2 + eps^2) (eq. 8, by element, as released): (B, C, H, W) -> (B,)."""
    return root(difference.square() + EPS**2).mean((1, 2, 3))


def laplacian(x: Tensor) -> Tensor:
    """x - G(U(D(G(x)))), shape kept: D keeps every second pixel, U puts zeros between them and multiplies by 4 (eq. 9)."""
    low = _gauss(x)[..., ::2, ::2]
    spread = torch.zeros_like(x)
    spread[..., ::2, ::2] = 4 * low
    return x - _gauss(spread)


def _gauss(x: Tensor) -> Tensor:
    taps = x.new_tensor([0.05, 0.25, 0.4, 0.25, 0.05]).expand(x.shape[1], 1, 1, 5)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), taps, groups=x.shape[1])
    return F.conv2d(x, taps.mT, groups=x.shape[1])


def reconstruction(difference: Tensor) -> Tensor:
    """Root of the mean square (eq. 6, by element so that it has the scale of the other terms): (B, C, H, W) -> (B,)."""
    return root(difference.square().mean((1, 2, 3)) + 1e-12)


def contrast(
    anchor: list[Tensor], positive: list[Tensor], negative: list[Tensor], weight: Tensor, over: Over
) -> Tensor:
    """sum_l omega_l |anchor_l - positive_l| / |anchor_l - negative_l|, of feature maps (B, C_l, H_l, W_l): (B,).

    The paper names a contrastive loss and gives no formula; this is AECR-Net's (Wu et al., CVPR 2021), which it cites.
    weight, over: of `contrastive.ratio`.
    """
    to_positive, to_negative = (
        [distance(x, y) for x, y in zip(anchor, other, strict=True)] for other in (positive, negative)
    )
    return ratio(to_positive, to_negative, OMEGA, weight, over)


class MemoryNet(nn.Module):
    """MemoryNet; the defaults are the paper's CR-MemoryNet on MPRNet's deraining size.

    n, u, o: width of the backbone, its growth from level to level of the encoders, and the extra width of stage 3. MPRNet
        has 40, 20, 16 for deraining, 80, 48, 32 for denoising and 96, 48, 32 for deblurring.
    cabs: channel attention blocks in each of stage 3's three ORBs.
    memory: None is the paper's baseline, MPRNet itself.
    loss: the objective, without the contrastive loss.
    contrastive: None leaves that loss out.
    decay_all: weight decay on prototypes and 1-D parameters too; off: `no_decay` names them.
    Raises ValueError for sizes that make no network.
    """

    inputs = ("lq", "gt")
    in_channels = 3
    size_multiple = 8
    receptive_field = None  # channel attention takes global means

    def __init__(
        self,
        *,
        n: int = 40,
        u: int = 20,
        o: int = 16,
        cabs: int = 8,
        memory: MemoryOptions | None = MemoryOptions(),
        loss: LossOptions = LossOptions(),
        contrastive: ContrastiveOptions | None = ContrastiveOptions(),
        decay_all: bool = False,
    ) -> None:
        super().__init__()
        if n < 4 or min(u, o) < 0 or cabs < 1:
            raise ValueError(f"n {n}, u {u}, o {o}, cabs {cabs}: at least 4, 0, 0 and 1")
        if memory is not None and (memory.space, memory.base) == ("image", "input") and loss.recon is not None:
            raise ValueError(
                "loss.recon with memory.base input: a clean image is its own residual's base, whatever the memory holds; set "
                "memory.base: read, or loss.recon: null"
            )
        self.loss, self.contrastive, self.decay_all = loss, contrastive, decay_all
        self._features: VGG19Features | None = None  # no module: neither trained nor in a checkpoint

        widths = (n, n + u, n + 2 * u)
        self.slope = nn.Parameter(torch.tensor([0.25]))  # of the PReLU
        self.shallow = nn.ModuleList(Shallow(n) for _ in range(3))
        self.encoder1, self.decoder1 = Encoder(widths, cross=False), Decoder(widths)
        self.encoder2, self.decoder2 = Encoder(widths, cross=True), Decoder(widths)
        self.orsnet = ORSNet(widths, n + o, cabs)
        self.sam1, self.sam2 = SAM(n), SAM(n)
        self.fusion2, self.fusion3 = conv(2 * n, n), conv(2 * n, n + o)
        self.tail = conv(n + o, 3)
        self.memory = None if memory is None else HierarchicalMemory(n if memory.space == "feature" else 3, memory)

    @property
    def recon(self) -> Literal["net", "pretrain"] | None:
        """When L_recon is taken; never without a memory, which it is to teach."""
        return None if self.memory is None else self.loss.recon

    def no_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the prototypes and all 1-D ones; none with decay_all.

        Reads do not depend on a prototype's scale as a key, but on its scale as a value.
        """
        if self.decay_all:
            return set()
        return {name for name, p in self.named_parameters() if p.dim() == 1 or name == "memory.part"}

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images of stages 3, 2 and 1 for x (B, 3, H, W) in [0, 1]; not clipped.

        Stage 1 sees four quarters of the image and stage 2 two halves, each as a larger batch.
        Raises ValueError unless x has 3 channels, and H and W are multiples of 8.
        """
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"MemoryNet takes (B, 3, H, W) with H and W multiples of 8, not {tuple(x.shape)}")
        a = self.slope
        banks = self.memory.banks() if self.memory is not None else []
        images = self._images(x, banks)
        bases = images if self.memory is not None and self.memory.base == "read" else [x] * 3
        f = self._remember(0, self.shallow[0](split(split(self._seen(0, images, banks), 2), 3), a), banks)  # quarters
        enc = [join(m, 3) for m in self.encoder1(f, a)]
        dec = self.decoder1(enc, a)  # halves, as is the rest of stage 1
        sam, image1 = self.sam1(dec[0], split(bases[1], 2))

        f = self._remember(1, self.shallow[1](split(self._seen(1, images, banks), 2), a), banks)
        f = self.fusion2(torch.cat((f, sam), 1))
        enc = [join(m, 2) for m in self.encoder2(f, a, enc, dec)]
        dec = self.decoder2(enc, a)  # the whole
        sam, image2 = self.sam2(dec[0], bases[2])

        f = self._remember(2, self.shallow[2](self._seen(2, images, banks), a), banks)
        f = self.fusion3(torch.cat((f, sam), 1))
        image3 = bases[2] + self.tail(self.orsnet(f, a, enc, dec))
        return image3, image2, join(image1, 2)

    def _seen(self, s: int, images: list[Tensor], banks: list[Tensor]) -> Tensor:
        """What stage s + 1 convolves of its image: a normalised read around 0, where bf16 is fine."""
        centred = self.memory is not None and self.memory.by_pixels and s < len(banks)
        return images[s] - 0.5 if centred else images[s]

    def _images(self, x: Tensor, banks: list[Tensor]) -> list[Tensor]:
        """The images of stages 1, 2, 3: x, or with space image what the memory reads for it."""
        images = [x] * 3
        if self.memory is not None and self.memory.space == "image":
            y = x
            for s, bank in enumerate(banks):
                images[s] = y = self.memory(y, [bank])
        return images

    def _remember(self, s: int, f: Tensor, banks: list[Tensor]) -> Tensor:
        """Shallow features of stage s + 1 -> the same with what they read from levels 1..s + 1 (eqs. 4, 5)."""
        if self.memory is None or self.memory.space == "image" or s >= len(banks):
            return f
        y = self.memory(f, banks[: s + 1])
        return (y if s == 0 and not self.memory.residual else exact(f) + y).to(f.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Restore x (B, 3, H, W) in [0, 1], H and W multiples of 8; not clipped."""
        return self.stages(x)[0]

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective (eq. 7, with the contrastive loss that it omits), averaged over the batch.

        Logs the terms in use, unweighted: `char` and `edge` (sums over the stages), `recon` and `cr`; and `psnr` (dB) of stage
        3. In the pretraining phase `psnr` is that of the clean images' reconstructions, and only the term `recon` is not 0.
        All are times this rank's share of the true samples, so that the mean over the ranks is the mean over the samples.
        """
        J, Y = batch["lq"], batch["gt"]
        terms: dict[str, Tensor] = {}  # each (B,)
        recon = self.recon
        if recon == "pretrain" and float(batch["progress"]) < self.loss.pretrain_share:
            X = self.stages(Y)[0]
            terms["recon"] = objective = reconstruction(X - Y)
            others = ("char", "edge") if self.contrastive is None else ("char", "edge", "cr")
            terms |= {name: torch.zeros_like(objective) for name in others}
        else:
            images = self.stages(J if recon is None else torch.cat((J, Y)))  # clean ones in the same pass
            X = images[0][: len(J)]
            with torch.autocast(J.device.type, enabled=False):
                errors = torch.cat([image[: len(J)] - Y for image in images])  # (3B, 3, H, W)
                terms["char"] = charbonnier(errors).view(3, -1).sum(0)
                terms["edge"] = charbonnier(laplacian(errors)).view(3, -1).sum(0)  # the Laplacian is linear
                objective = terms["char"] + self.loss.lambda_edge * terms["edge"]
                if recon is not None:
                    terms["recon"] = reconstruction(images[0][len(J) :] - Y)
                    objective = objective + terms["recon"]
            if self.contrastive is not None:
                terms["cr"] = self._contrast(self.contrastive, X, Y, J, batch["weight"])
                objective = objective + self._lambda_cr(self.contrastive, batch) * terms["cr"]
        weight, count = batch["weight"], batch["count"]
        with torch.no_grad():
            logs = {name: (term * weight).sum() / count for name, term in terms.items()}
            true = weight.sum()
            mse = ((X - Y).square().mean((1, 2, 3)) * weight).sum() / true.clamp_min(1)
            logs["psnr"] = psnr(mse) * (true / count)
        return (objective * weight).sum() / count, logs

    def _contrast(self, options: ContrastiveOptions, X: Tensor, Y: Tensor, J: Tensor, weight: Tensor) -> Tensor:
        """The contrastive loss (B,): output X near the clean Y (positive), away from the degraded input J (negative)."""
        if self._features is None:
            self.load_features(X.device)
        G = self._features
        assert G is not None
        with torch.no_grad():
            pairs = [maps.chunk(2) for maps in G(torch.cat((Y, J)))]
        positive, negative = ([pair[k] for pair in pairs] for k in (0, 1))
        return contrast(G(X), positive, negative, weight, options.ratio)

    def load_features(self, device: torch.device) -> None:
        """See jobs.models.Contrasting."""
        if self.contrastive is not None:
            self._features = VGG19Features(VGG_LAYERS, self.contrastive.vgg).to(device, torch.float32)

    def _lambda_cr(self, options: ContrastiveOptions, batch: Batch) -> Tensor | float:
        """The contrastive loss's weight at this point of the run."""
        if not options.ramp:
            return options.lambda_cr
        start = self.loss.pretrain_share if self.recon == "pretrain" else 0.0
        return options.lambda_cr * ((batch["progress"] - start) / options.ramp).clamp(0, 1)

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """Restore lq (B, 3, H, W), float32 in [0, 1], of any size; same shape, not clipped.

        Sides are mirrored up to multiples of 8. Raises ValueError for other shapes.
        """
        assert not self.training, "call eval() first"
        return self(_padded(lq))[..., : lq.shape[2], : lq.shape[3]]

    @torch.no_grad()
    def read_weights(self, x: Tensor) -> dict[str, Tensor]:
        """How each prototype responds to each pixel of x (B, 3, H, W): its level's name -> weights (B, K, H, W).

        Each level is read as in its stage: `part` in stage 1, `instance` in 2, `semantic` in 3, as far as they are built.
        The weights sum to 1 over the K prototypes. Raises ValueError for the shapes that `restore` refuses.
        """
        if self.memory is None:
            return {}
        padded, banks = _padded(x), self.memory.banks()
        weights = {}
        for s, name in enumerate(LEVELS[: len(banks)]):
            split_dims = ((2, 3), (2,), ())[s]
            f = padded
            if self.memory.space == "feature":
                for dim in split_dims:
                    f = split(f, dim)
                f = self.shallow[s](f, self.slope)
                for dim in reversed(split_dims):
                    f = join(f, dim)
            weights[name] = self.memory.weights(f, banks[: s + 1])[..., : x.shape[2], : x.shape[3]]
        return weights


def _padded(x: Tensor) -> Tensor:
    """x, mirrored at its right and lower border to the next multiples of 8."""
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"MemoryNet takes (B, 3, H, W), not {tuple(x.shape)}")
    return mirrored(x, 8)

"""Memory-guided image de-raining using time-lapse data (Cho, Kim, Sohn; IEEE TIP 2022).

The network, its memory of rain streaks and its objective. Two frames of one scene share the background and not the
rain: no clean image is needed. The paper's symbols: I = B + R, all in [-1, 1] here; q queries, p items, M their number.

Where the paper and the authors' release (jhcho90/MGID, commit 870ad79) differ, `profile` says which is followed:

| option | `ours` | `paper` | `released` |
|---|---|---|---|
| `norm` | BatchNorm after all convolutions but E4b, Output | none is named | as ours |
| `zero_init` of Output | yes | no | no |
| `tanh` | one | one | two, which leave rain above 0.762 in the image |
| `memory.start` | anywhere on the sphere | "randomly" | the orthant of positive numbers |
| `memory.update` | a query moves its nearest item | `literal`: every item (eq. 6) | as ours |
| `memory.read_grad` | no | yes (eqs. 2 to 4) | no |
| `loss.b` | 1 | 1 (III-E) | 1 |
| `loss.s` | 0.1 | 0.1 (III-E) | 1 |
| `loss.self_consistency` | `cross` | `literal` (eq. 9) | `cross` |
| `loss.c` | 1 | 0.001 (III-E) | 1 |
| `loss.w` | 0.01 | not printed; 0.01 | 0.01 |
| `loss.whitening`: h, l | 4, 2 | 4, 2 (III-E) | 50, 1 |
| `loss.whitening`: over, diagonal | `sample`, no | `sample`, yes (eqs. 11 to 13) | `batch`, yes |
| `loss.compact` | 0 | 0 | 0.01, of the second frame |
| `loss.ssim` | 0 | 0 | 0.5 |
| `loss.similarity` | `wang2004` | `wang2004` | `padded` |

What one should know of them:
- the paper's eq. 6 as written collapses to one item, and with its lambda_c nothing holds the brightness of B;
- L_s of eq. 9 is zero whatever the network, because B = I - R. Crossed it is 2 L_b, so that lambda_b is 1.2 in ours, and 3
  as released;
- all terms are means over elements, as released; the paper prints sums;
- C = 64 (Table I, and the 0.81M parameters); the C = 32 of the paper's text is a misprint;
- InstanceNorm on the query, and the order (read a frame, write it, read the next one) are the release's; the paper names
  neither. The items are frozen at test time, as the paper says; the release's evaluation keeps writing to them;
- the release's SSIM is a file that it does not hold; it has the name and the interface of PReNet's, which is taken for it.
"""

from typing import Literal, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.models.batchnorm import BatchNorm2d
from jobs.models.collective import all_reduce, world_size
from jobs.models.convolution import Conv2d, conv2d
from jobs.models.elementwise import psnr
from jobs.models.fp32 import exact
from jobs.models.padding import mirrored
from jobs.models.preactivation import preactivated
from jobs.models.timelapse_profiles import LossOptions, MemoryOptions, chosen
from jobs.models.whitening import batch_whitening, selective_whitening

Batch = dict[str, Tensor]

SMALLEST = 16  # pixels a side: 2x2 queries, the fewest that have a covariance
CHECK_EVERY = 1000  # updates between two looks at whether the ranks still hold the same items


def layer(conv: nn.Conv2d | nn.ConvTranspose2d, norm: str) -> nn.Sequential:
    """The convolution, BatchNorm unless norm is "none", ReLU."""
    return nn.Sequential(conv, *activation(conv.out_channels, norm))


def activation(channels: int, norm: str) -> nn.Sequential:
    """BatchNorm unless norm is "none", ReLU."""
    return nn.Sequential(*([BatchNorm2d(channels)] if norm == "bn" else []), nn.ReLU(inplace=True))


def activated(activation: nn.Sequential, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of an `activation` of x."""
    norm = activation[0]
    if isinstance(norm, BatchNorm2d):
        return preactivated(norm, x, weight, bias)
    return conv2d(F.relu(x, inplace=True), weight, bias, padding=1)


def doubled(activation: nn.Sequential, x: Tensor, then: nn.Module) -> Tensor:
    """What `then`, a convolution or a `layer`, makes of an `activation` of x."""
    conv, *rest = then if isinstance(then, nn.Sequential) else [then]
    assert isinstance(conv, nn.Conv2d)
    x = activated(activation, x, conv.weight, conv.bias)
    for module in rest:
        x = module(x)
    return x


def encoded(level: nn.Sequential, x: Tensor) -> Tensor:
    """The two convolutions of an encoder's level, with all that belongs to them."""
    first, then = level
    assert isinstance(first, nn.Sequential)
    conv, activation = first[0], first[1:]
    return doubled(cast(nn.Sequential, activation), conv(x), then)


class DecoderLevel(nn.Module):
    """D_a over {x, skip}, then D_b: (B, C, H, W) each -> (B, C, H, W).

    The convolution of a concatenation is the sum of the convolutions of its parts: the concatenation is never built.
    """

    def __init__(self, channels: int, parts: int, norm: str, bias: bool) -> None:
        super().__init__()
        self.conv_a = Conv2d(parts * channels, channels, 3, padding=1, bias=bias)
        self.activation_a = activation(channels, norm)
        self.b = layer(Conv2d(channels, channels, 3, padding=1, bias=bias), norm)

    def forward(self, x: Tensor, skip: Tensor | None = None, before: nn.Sequential | None = None) -> Tensor:
        """before: the activation of x, which is still to come."""
        weight, bias = self.conv_a.weight[:, : x.shape[1]], self.conv_a.bias
        y = conv2d(x, weight, bias, padding=1) if before is None else activated(before, x, weight, bias)
        if skip is not None:
            y = y + conv2d(skip, self.conv_a.weight[:, x.shape[1] :], padding=1)
        return doubled(self.activation_a, y, self.b)


class Memory(nn.Module):
    """M items of C numbers and unit length; the network reads them, and only its queries move them.

    They are a buffer: no gradient reaches them, a checkpoint holds them. They start as directions drawn from torch's
    generator, hence by the run's seed. Queries are (B, K, C), unit length.
    """

    items: Tensor  # (M, C)

    def __init__(self, items: int, channels: int, update: str, read_grad: bool, start: str = "sphere") -> None:
        super().__init__()
        self.update, self.read_grad, self.updates = update, read_grad, 0
        draw = torch.rand if start == "orthant" else torch.randn
        self.register_buffer("items", F.normalize(draw(items, channels), dim=1))

    def read(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """p_hat (B, K, C) (eq. 4) and alpha (B, K, M) (eq. 2) for queries q and items p (M, C).

        Both are constants for autograd, as released, unless read_grad.
        """
        alpha = F.softmax((q if self.read_grad else q.detach()) @ p.T, dim=-1)
        return alpha @ p, alpha

    @torch.no_grad()
    def moved(self, q: Tensor, p: Tensor, true: Tensor) -> Tensor:
        """The items (M, C) after an update of p by the queries of all ranks; p itself stays as it is.

        true: bool (B,), False for padding, which moves nothing. Every rank gets the same items, bit for bit: they are a
        function of two reductions over ranks.
        """
        if self.update == "none":
            return p
        d = q @ p.T  # (B, K, M), eq. 3
        mask = true.view(-1, 1, 1)
        if self.update == "assigned":
            # beta / max beta = exp(d - max d): the softmax's denominator cancels. -1 is the least cosine.
            most = all_reduce(d.masked_fill(~mask, -1).amax((0, 1)), dist.ReduceOp.MAX)  # (M,)
            nearest = F.one_hot(d.argmax(-1), d.shape[-1]) * mask
            beta = nearest * torch.exp(d - most)
            amount = nearest.sum((0, 1))  # queries of each item
        else:
            beta = mask * torch.exp(d)  # eq. 5 without its denominator
            amount = beta.sum((0, 1))
        # One matmul: index_add_ over the nearest items would differ from run to run on a GPU.
        sums = torch.cat((beta.flatten(0, 1).T @ q.flatten(0, 1), amount[:, None].to(q.dtype)), 1)
        total, amount = all_reduce(sums).split((q.shape[-1], 1), 1)  # (M, C), (M, 1)
        if self.update == "literal":
            total = total / amount.clamp_min(1e-30)
        return torch.where(amount > 0, F.normalize(p + total, dim=1), p)  # eq. 6

    @torch.no_grad()
    def commit(self, p: Tensor) -> None:
        """Make p the items. They must be the same on all ranks: checked at the first update and every CHECK_EVERY."""
        if world_size() > 1:
            self._check(p)
        self.items.copy_(p)

    @torch.compiler.disable  # a number that grows would be compiled anew at each step
    def _check(self, p: Tensor) -> None:
        if self.updates % CHECK_EVERY == 0:
            spread = all_reduce(torch.stack((p, -p)), dist.ReduceOp.MAX).sum(0)  # largest - smallest over ranks
            assert not spread.any(), "the ranks hold different memory items"
        self.updates += 1


class Separation(NamedTuple):
    """What the network makes of a frame."""

    I: Tensor  # noqa: E741  the frame, (B, 3, H, W) in [-1, 1]
    B: Tensor  # background, I - R
    R: Tensor  # rain, in (-1, 1)
    q_c: Tensor  # (B, C, H/8, W/8), the query before it gets unit length
    variance: Tensor  # (B,), of E4b over positions, mean over channels
    compact: Tensor | None  # (B,), mean squared distance of queries to nearest items, where the objective has it


class TimeLapseNet(nn.Module):
    """The Siamese de-raining network with a memory; the defaults are B_d of the paper's Table IV with L_w.

    profile: all that the paper and its release do differently; what is given beside it is taken in its place.
    channels: C, the width of every feature map.
    siamese: learn from pairs of frames without a clean image. Off (B_a, B_b): each frame is taken alone and supervised,
        L1 to the mean of its scene's frames (a task with `target: mean`); `loss` is then refused.
    norm: BatchNorm as released, or "none", as the paper's text. Without it nothing else keeps the scale of the maps:
        the convolutions start He normal, not as torch's default (release), with which it does not learn; and
        InstanceNorm has an eps of 1e-8, not 1e-5, or L_w could vanish by shrinking the queries. null: the profile's.
    bias: biases of the convolutions.
    zero_init: start Output at zero, so that the untrained network is the identity, B = I. null: the profile's.
    tanh: how many bound R, one after the other. null: the profile's.
    memory: read and write the memory; None (B_a, B_c): D4a takes the query alone.
    loss: the objective of a pair of frames.
    Raises ValueError for arguments that make no network or do not go together.
    """

    in_channels = 3
    receptive_field = None  # InstanceNorm on the query: the whole image
    size_multiple = 8

    def __init__(
        self,
        *,
        profile: Literal["ours", "paper", "released"] = "ours",
        channels: int = 64,
        siamese: bool = True,
        norm: Literal["bn", "none"] | None = None,
        bias: bool = True,
        zero_init: bool | None = None,
        tanh: Literal[1, 2] | None = None,
        memory: MemoryOptions | None = MemoryOptions(),
        loss: LossOptions = LossOptions(),
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"channels {channels}: at least 2")
        if norm not in ("bn", "none", None):
            raise ValueError(f"norm {norm!r}: bn or none")
        if not siamese and loss != LossOptions():
            raise ValueError("siamese false is supervised by gt alone: leave out loss")
        self.settings = settings = chosen(profile, memory, loss, norm=norm, zero_init=zero_init, tanh=tanh)
        if siamese and memory is None and settings.compact:
            raise ValueError("without memory no item is near: set loss.compact 0")
        self.siamese, self.weights = siamese, settings.weights
        self.inputs = ("frames",) if siamese else ("lq", "gt")
        self.query_eps = 1e-5 if settings.norm == "bn" else 1e-8

        def conv(c_in: int, c_out: int) -> nn.Conv2d:
            return Conv2d(c_in, c_out, 3, padding=1, bias=bias)

        def up() -> nn.Sequential:
            deconv = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1, bias=bias)
            return layer(deconv, settings.norm)

        C = channels
        self.e1 = nn.Sequential(layer(conv(self.in_channels, C), settings.norm), layer(conv(C, C), settings.norm))
        self.e2 = nn.Sequential(layer(conv(C, C), settings.norm), layer(conv(C, C), settings.norm))
        self.e3 = nn.Sequential(layer(conv(C, C), settings.norm), layer(conv(C, C), settings.norm))
        self.e4 = nn.Sequential(layer(conv(C, C), settings.norm), conv(C, C))  # E4b is bare
        self.d4, self.u3 = DecoderLevel(C, 1 if memory is None else 2, settings.norm, bias), up()
        self.d3, self.u2 = DecoderLevel(C, 2, settings.norm, bias), up()
        self.d2, self.u1 = DecoderLevel(C, 2, settings.norm, bias), up()
        self.d1 = DecoderLevel(C, 2, settings.norm, bias)
        self.output = conv(C, self.in_channels)
        if settings.norm == "none":
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        if settings.zero_init:
            for p in self.output.parameters():
                nn.init.zeros_(p)
        self.memory = None
        if memory is not None:
            self.memory = Memory(memory.items, C, settings.update, settings.read_grad, settings.start)

    def encode(self, frame: Tensor) -> tuple[list[Tensor], Tensor]:
        """A frame (B, 3, H, W) in [-1, 1] -> skips [E1b, E2b, E3b] and E4b (B, C, H/8, W/8), in float32 at least."""
        skips = [encoded(self.e1, frame)]
        for level in (self.e2, self.e3):
            skips.append(encoded(level, F.max_pool2d(skips[-1], 2)))
        E4b = encoded(self.e4, F.max_pool2d(skips[-1], 2))
        return skips, exact(E4b)

    def query(self, E4b: Tensor) -> tuple[Tensor, Tensor]:
        """E4b (B, C, h, w) -> its InstanceNorm q_c (B, C, h, w), and the queries (B, K, C) of unit length, K = h w."""
        q_c = F.instance_norm(E4b, eps=self.query_eps)
        # A query shorter than eps has no direction; with torch's 1e-12 its gradient would overflow.
        return q_c, F.normalize(q_c.flatten(2).transpose(1, 2), dim=2, eps=1e-4)

    def rain(self, skips: list[Tensor], q: Tensor, p_hat: Tensor | None) -> Tensor:
        """The decoder: skips and (B, K, C) queries and retrieved items -> R (B, 3, H, W), in float32 at least."""
        E1b, E2b, E3b = skips
        h, w = E3b.shape[2] // 2, E3b.shape[3] // 2
        maps = [x.transpose(1, 2).unflatten(2, (h, w)) for x in (q, p_hat) if x is not None]
        x = self.d4(*maps)
        for up, level, skip in ((self.u3, self.d3, E3b), (self.u2, self.d2, E2b), (self.u1, self.d1, E1b)):
            x = level(up[0](x), skip, up[1:])
        out = self.output(x)
        R = torch.tanh(exact(out))
        return torch.tanh(R) if self.settings.tanh == 2 else R

    def separate(self, frames: list[Tensor], true: Tensor) -> list[Separation]:
        """Each frame (B, 3, H, W) in [-1, 1] into background and rain; in training the items move after each read.

        true: bool (B,), False for samples that must not move the items. A frame is read with the items that the frames
        before it moved, and the whole batch moves them at once (release).
        """
        memory = self.memory
        p = memory.items.clone() if memory is not None else None  # a copy, as backward needs what commit overwrites
        separations = []
        for frame in frames:
            skips, E4b = self.encode(frame)
            p_hat, compact = None, None
            with torch.autocast(frame.device.type, enabled=False):
                q_c, q = self.query(E4b)
                if memory is not None and p is not None:
                    p_hat, alpha = memory.read(q, p)
                    if self.weights["compact"]:
                        compact = (q - p[alpha.argmax(-1)]).square().mean((1, 2))
                    if self.training:
                        p = memory.moved(q, p, true)
                variance = E4b.detach().var((2, 3), unbiased=False).mean(1)
            R = self.rain(skips, q, p_hat)
            separations.append(Separation(frame, frame - R, R, q_c, variance, compact))
        if memory is not None and p is not None and self.training:
            memory.commit(p)
        return separations

    def forward(self, x: Tensor) -> Tensor:
        """De-rain x (B, 3, H, W) in [0, 1], sides multiples of 8, at least 16; not clipped. The items stay."""
        self._check(x, 8)
        skips, E4b = self.encode(2 * x - 1)
        with torch.autocast(x.device.type, enabled=False):
            q = self.query(E4b)[1]
            p_hat = self.memory.read(q, self.memory.items)[0] if self.memory is not None else None
        return x - self.rain(skips, q, p_hat) / 2  # B = I - R, from [-1, 1] to [0, 1]

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective (eq. 14), and one update of the items for each frame.

        batch: `frames` (B, 2, 3, H, W), in [0, 1]. With siamese off instead `lq` (B, 3, H, W), a frame, and `gt`, the mean
        of its scene's frames. Sides: multiples of 8.
        Logs each term l_* of weight above 0, l_s_literal (eq. 9, zero but for rounding), query_variance (E4b's variance:
        where it goes to 0, L_w has won by shrinking the queries) and, with a target, psnr (dB). Padding moves no item
        and has no loss; BatchNorm's statistics see it.
        Raises ValueError for a batch without what the objective needs, or of other sizes.
        """
        lacking = [name for name in self.inputs if name not in batch]
        if lacking:
            needs = "two frames of a scene" if self.siamese else "a frame, lq, and the mean of its scene's frames, gt"
            raise ValueError(f"the batch has no {lacking[0]}: siamese {str(self.siamese).lower()} learns from {needs}")
        images = batch["frames"].unbind(1) if self.siamese else (batch["lq"],)
        self._check(images[0], 8)
        weight, count = batch["weight"], batch["count"]
        separations = self.separate([2 * image - 1 for image in images], weight > 0)
        if self.siamese:
            v, w = separations
            terms = self._siamese_terms(v, w, weight > 0)
            lambdas = self.weights
        else:
            terms = {"1": mean_l1(separations[0].B, 2 * batch["gt"] - 1)}
            lambdas = {"1": 1.0}

        def share(values: Tensor) -> Tensor:
            return (values * weight).sum() / count

        loss = torch.stack([lambdas[name] * share(values) for name, values in terms.items()]).sum()
        logs = {f"l_{name}": share(values.detach()) for name, values in terms.items()}
        with torch.no_grad():
            logs["query_variance"] = share(torch.stack([s.variance for s in separations]).mean(0))
            logs["l_s_literal"] = share(torch.stack([mean_l1(s.I, s.B + s.R) for s in separations]).sum(0))
            if not self.siamese:
                errors = ((separations[0].B + 1) / 2 - batch["gt"]).square().mean((1, 2, 3))
                true = weight.sum()
                mse = (errors * weight).sum() / true.clamp_min(1)
                logs["psnr"] = psnr(mse) * (true / count)
        return loss, logs

    def _siamese_terms(self, v: Separation, w: Separation, true: Tensor) -> dict[str, Tensor]:
        """Each term of weight above 0 of a pair of frames, per sample: (B,). true: bool (B,), False for padding."""
        terms, settings = {}, self.settings
        if self.weights["b"]:
            terms["b"] = mean_l1(w.B, v.B)  # eq. 7
        if self.weights["s"]:
            B_w, B_v = (v.B, w.B) if settings.self_consistency == "cross" else (w.B, v.B)
            terms["s"] = mean_l1(w.I, B_w + w.R) + mean_l1(v.I, B_v + v.R)  # eq. 9
        if self.weights["c"]:
            terms["c"] = mean_l1(w.I, v.B) + mean_l1(v.I, w.B)  # eq. 8
        with torch.autocast(v.B.device.type, enabled=False):
            if self.weights["w"]:
                clusters, diagonal = (settings.h, settings.l), settings.diagonal
                if settings.over == "sample":
                    terms["w"] = selective_whitening(v.q_c, w.q_c, *clusters, diagonal=diagonal)
                else:
                    terms["w"] = batch_whitening(v.q_c, w.q_c, true, *clusters, diagonal=diagonal)
            if w.compact is not None:
                terms["compact"] = w.compact
            if self.weights["ssim"]:
                padded = settings.similarity == "padded"
                terms["ssim"] = -(ssim(v.B, w.B, 5) if padded else ssim((v.B + 1) / 2, (w.B + 1) / 2))
        return terms

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """De-rain lq (B, 3, H, W), float32 in [0, 1], of any size; same shape, not clipped; nothing learns.

        Sides are mirrored up to multiples of 8, and to 16.
        """
        assert not self.training, "call eval() first"
        return self(self._padded(lq))[..., : lq.shape[2], : lq.shape[3]]

    @torch.no_grad()
    def read_weights(self, x: Tensor) -> dict[str, Tensor]:
        """alpha (eq. 2), how much position k reads of item m: x (B, 3, H, W) in [0, 1] -> `items` (B, M, h, w), float32.

        h and w: H and W divided by 8, rounded up, and at least 2. The M weights of a position add up to 1.
        Empty without a memory.
        """
        assert not self.training, "call eval() first"
        if self.memory is None:
            return {}
        E4b = self.encode(2 * self._padded(x) - 1)[1]
        with torch.autocast(x.device.type, enabled=False):
            alpha = self.memory.read(self.query(E4b)[1], self.memory.items)[1]
        return {"items": alpha.transpose(1, 2).unflatten(2, E4b.shape[2:])}

    def _padded(self, x: Tensor) -> Tensor:
        padded = mirrored(x, 8, SMALLEST)
        self._check(padded, 8)
        return padded

    def _check(self, x: Tensor, multiple: int) -> None:
        c, H, W = x.shape[-3:]
        if c != self.in_channels or min(H, W) < SMALLEST or H % multiple or W % multiple:
            sides = f"sides of at least {SMALLEST}" + (f", multiples of {multiple}" if multiple > 1 else "")
            raise ValueError(f"TimeLapseNet takes images of 3 channels, {sides}: these are {c} x {H} x {W}")


def mean_l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each sample: (B, ...) -> (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def ssim(x: Tensor, y: Tensor, padding: int = 0) -> Tensor:
    """Structural similarity of images (B, C, H, W) in [0, 1], each side at least 11: (B,), 1 for equal images.

    Gaussian windows of 11 pixels, sigma 1.5, inside the image only (Wang et al. 2004), after `padding` zeros all around.
    """
    C = x.shape[1]
    g = torch.exp(-(torch.arange(-5, 6, device=x.device, dtype=x.dtype).square()) / (2 * 1.5**2))
    window = (g / g.sum()).expand(C, 1, 1, 11)
    x, y = F.pad(x, [padding] * 4), F.pad(y, [padding] * 4)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, window, groups=C), window.transpose(2, 3), groups=C)

    mu_x, mu_y = mean(x), mean(y)
    # Rounding can make a variance of bright images negative.
    var_x = (mean(x * x) - mu_x.square()).clamp_min(0)
    var_y = (mean(y * y) - mu_y.square()).clamp_min(0)
    covariance = mean(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_x * mu_y + c1) * (2 * covariance + c2)
    return (similarity / ((mu_x.square() + mu_y.square() + c1) * (var_x + var_y + c2))).flatten(1).mean(1)

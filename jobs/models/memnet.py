"""MemNet: a persistent memory network for image restoration (Tai, Yang, Liu, Xu; ICCV 2017).

The network and its objective. Where the authors' release differs from the paper's text, the release is followed and the
place says so; the paper's 677K parameters are the convolution weights of M6R6 (the 667K of its text is a misprint).
"""

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from jobs.models.batchnorm import BatchNorm2d, Statistics, batch_statistics
from jobs.models.convolution import Conv2d
from jobs.models.elementwise import psnr
from jobs.models.preactivation import preactivated

Batch = dict[str, Tensor]

# What a profile says of the options that are null.
PROFILES: dict[str, dict[str, Any]] = {
    "ours": {"fe_preact": True, "ensemble_init": "mean", "loss_scale": "mean"},
    "paper": {"fe_preact": False, "ensemble_init": "mean", "loss_scale": "mean"},
    "released": {"fe_preact": True, "ensemble_init": "unit", "loss_scale": "sum"},
}


class PreActConv(nn.Module):
    """BatchNorm -> ReLU -> convolution, the paper's unit. (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, momentum: float) -> None:
        super().__init__()
        self.bn = BatchNorm2d(c_in, momentum=momentum)
        self.conv = Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return preactivated(self.bn, x, self.conv.weight, self.conv.bias)


class Memory(NamedTuple):
    """A feature map (B, C, H, W) that several layers normalise, with its statistics in training."""

    x: Tensor
    statistics: Statistics | None


class Gate(PreActConv):
    """The gate unit: pre-activated 1x1 convolution over the concatenated memories (eqs. 8, 9)."""

    def __init__(self, memories: int, channels: int, momentum: float) -> None:
        super().__init__(memories * channels, channels, 1, momentum)

    def gather(self, memories: list[Memory]) -> Tensor:
        """The sum over memories of conv(relu(bn(memory))): equal to the concatenation's, which is never built."""
        out: Tensor | None = None
        start = 0
        for memory in memories:
            stop = start + memory.x.shape[1]
            layer = self.conv.weight[:, start:stop], self.conv.bias if start == 0 else None
            term = preactivated(self.bn, memory.x, *layer, memory.statistics, start).to(memory.x.dtype)
            out = term if out is None else out + term
            start = stop
        assert out is not None
        return out


class MemoryBlock(nn.Module):
    """R recursions of one residual unit with shared convolutions, then the gate (section 3.2).

    conv_a and conv_b are shared by the recursions of the block; the BatchNorm layers are not (release).
    """

    def __init__(
        self,
        m: int,
        recursions: int,
        channels: int,
        *,
        long_term: bool,
        short_term: bool,
        share_bn: bool,
        momentum: float,
    ) -> None:
        super().__init__()
        self.recursions, self.long_term, self.short_term = recursions, long_term, short_term
        self.conv_a = Conv2d(channels, channels, 3, padding=1)
        self.conv_b = Conv2d(channels, channels, 3, padding=1)
        layers = 1 if share_bn else recursions
        self.bn_a = nn.ModuleList(BatchNorm2d(channels, momentum=momentum) for _ in range(layers))
        self.bn_b = nn.ModuleList(BatchNorm2d(channels, momentum=momentum) for _ in range(layers))
        self.gate = Gate(m * long_term + (recursions if short_term else 1), channels, momentum)

    def remember(self, x: Tensor) -> Memory:
        """x with its batch statistics, which all layers that normalise it share."""
        return Memory(x, batch_statistics(x, of_rank=self.gate.bn.of_rank) if self.training else None)

    def forward(self, long_term: list[Memory]) -> Memory:
        """[B_0, ..., B_{m-1}], each (B, C, H, W) -> B_m (eq. 10; the long-term memories first, as released)."""
        h = long_term[-1]
        short_term: list[Memory] = []
        for r in range(self.recursions):
            bn_a, bn_b = (cast(BatchNorm2d, layers[r % len(layers)]) for layers in (self.bn_a, self.bn_b))
            inner = preactivated(bn_a, h.x, self.conv_a.weight, self.conv_a.bias, h.statistics)
            h = self.remember(h.x + preactivated(bn_b, inner, self.conv_b.weight, self.conv_b.bias))  # eqs. 5, 6
            short_term.append(h)
        memories = long_term if self.long_term else []
        return self.remember(self.gate.gather(memories + (short_term if self.short_term else short_term[-1:])))


class MemNet(nn.Module):
    """MemNet_M{memory_blocks}R{recursions}; the defaults are the paper's multi-supervised M6R6.

    in_channels: 1 for grey images, 3 for colour.
    memory_blocks, recursions, channels: M, R and the width of every feature map.
    long_term, short_term: what the gates see; both off-switches are the paper's ablations MemNet_NL (H_1..H_R only) and
        MemNet_NS (B_0..B_{m-1} and H_R).
    multi_supervision: predict from every block and learn their ensemble; off: the basic MemNet, y = x + recon(B_M).
    predict_at: restore with the intermediate prediction y_m instead of the ensemble (Fig. 6), 1..M.
    profile: what the next three options are where they are null. "paper": false, mean, mean; "released": true, unit, sum;
        "ours": true, mean, mean. All else that paper or release state is the default here.
    fe_preact: BatchNorm and ReLU before the first convolution too, as released; off: a plain convolution, as eq. 1.
    ensemble_init: "mean" starts the ensemble weights at 1/M, so that the untrained ensemble of identities is the identity (the
        paper has a weighted average, and no initial weights); "unit" at 1, as Caffe's default in the release.
    loss_scale: "mean" weighs the M + 1 terms of the objective 1 / (M + 1) each, as eq. 12 with the paper's alpha; "sum" 1 each,
        as released, which matters where the clipping does not decide the length of a step.
    recon_init: "he" starts the reconstruction like every other convolution, as released; the untrained output is then noise
        of the image's own range. "zero" starts from the identity, which short runs need.
    share_bn: one BatchNorm pair for all recursions of a block; a negative control. In the release each recursion has its own;
        the paper says that recursions share their weights, and counts no BatchNorm among them.
    bn_momentum: share of the new batch in the running statistics; 0.001 as released (Caffe's default; the paper has none). They
        are bias-corrected, as Caffe's; up to 0.1 where the weights change fast until the end.
    """

    inputs = ("lq", "gt")
    size_multiple = 1
    evaluation_options = ("predict_at",)  # see jobs.evaluation.settings

    def __init__(
        self,
        *,
        in_channels: int = 1,
        memory_blocks: int = 6,
        recursions: int = 6,
        channels: int = 64,
        long_term: bool = True,
        short_term: bool = True,
        multi_supervision: bool = True,
        predict_at: int | None = None,
        profile: Literal["ours", "paper", "released"] = "ours",
        fe_preact: bool | None = None,
        ensemble_init: Literal["mean", "unit"] | None = None,
        loss_scale: Literal["mean", "sum"] | None = None,
        recon_init: Literal["he", "zero"] = "he",
        share_bn: bool = False,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        M, R = memory_blocks, recursions
        if min(M, R, channels, in_channels) < 1:
            raise ValueError(
                f"memory_blocks {M}, recursions {R}, channels {channels} and in_channels {in_channels} must be at least 1"
            )
        if not 0 < bn_momentum <= 1:
            raise ValueError(f"bn_momentum {bn_momentum}: above 0, at most 1")
        if predict_at is not None and not (multi_supervision and 1 <= predict_at <= M):
            raise ValueError(f"predict_at {predict_at}: needs multi_supervision and a block from 1 to {M}")
        if recon_init not in ("he", "zero"):
            raise ValueError(f"recon_init {recon_init!r}: he or zero")
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r}: {', '.join(PROFILES)}")
        given = {"fe_preact": fe_preact, "ensemble_init": ensemble_init, "loss_scale": loss_scale}
        chosen = PROFILES[profile] | {name: value for name, value in given.items() if value is not None}
        if chosen["ensemble_init"] not in ("mean", "unit"):
            raise ValueError(f"ensemble_init {ensemble_init!r}: mean or unit")
        if chosen["loss_scale"] not in ("mean", "sum"):
            raise ValueError(f"loss_scale {loss_scale!r}: mean or sum")
        self.in_channels, self.multi_supervision, self.predict_at = in_channels, multi_supervision, predict_at
        self.loss_scale = chosen["loss_scale"]
        self.depth = M * (2 * R + 1) + 2
        # 3x3 convolutions in a row: 2R a block, the feature extraction and the reconstruction; gates are 1x1.
        self.receptive_field = 1 + 2 * (2 * R * (predict_at or M) + 2)
        self.feature = (
            PreActConv(in_channels, channels, 3, bn_momentum)
            if chosen["fe_preact"]
            else Conv2d(in_channels, channels, 3, padding=1)
        )
        self.blocks = nn.ModuleList(
            MemoryBlock(
                m, R, channels, long_term=long_term, short_term=short_term, share_bn=share_bn, momentum=bn_momentum
            )
            for m in range(1, M + 1)
        )
        # The reconstruction convolution is shared by the M predictions, each with its own BatchNorm (release).
        self.recon_bn = nn.ModuleList(
            BatchNorm2d(channels, momentum=bn_momentum) for _ in range(M if multi_supervision else 1)
        )
        self.recon = Conv2d(channels, in_channels, 3, padding=1)
        if multi_supervision:
            self.ensemble = nn.Parameter(torch.full((M,), 1 / M if chosen["ensemble_init"] == "mean" else 1.0))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # He normal, fan_in: Caffe's msra
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if recon_init == "zero":
            nn.init.zeros_(self.recon.weight)

    def predictions(self, x: Tensor) -> list[Tensor]:
        """[y_1, ..., y_M] (eq. 11; basic: [y_M], eq. 3), each of x's shape and dtype: (B, in_channels, H, W) in [0, 1]."""
        B_0 = self.feature(x).to(x.dtype)  # feature maps keep the precision of x under autocast
        memories = [self.blocks[0].remember(B_0)]  # type: ignore[operator]
        for block in self.blocks:
            memories.append(block(memories))
        sources = memories[1:] if self.multi_supervision else memories[-1:]
        return [
            x + preactivated(cast(BatchNorm2d, bn), B_m.x, self.recon.weight, self.recon.bias, B_m.statistics)
            for bn, B_m in zip(self.recon_bn, sources, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Restore x (B, in_channels, H, W) in [0, 1]: the ensemble, or y_m where `predict_at` says so; not clipped."""
        y = self.predictions(x)
        return y[self.predict_at - 1] if self.predict_at is not None else self._output(y)

    def _output(self, y: list[Tensor]) -> Tensor:
        """The weighted sum of the predictions (section 3.3); the basic MemNet has only one."""
        if not self.multi_supervision:
            return y[0]
        return (self.ensemble.view(-1, 1, 1, 1, 1) * torch.stack(y)).sum(0)

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective (eqs. 4, 12): squared error summed over pixels, halved, averaged over the batch.

        With alpha = 1/(M+1) the M predictions and the ensemble all weigh the same; see `loss_scale`. Logs `psnr` (dB) of the output, times
        this rank's share of the true samples, so that the mean over the ranks is the mean over the samples.
        """
        y = self.predictions(batch["lq"])
        output = self._output(y)
        terms = [*y, output] if self.multi_supervision else [output]
        errors = torch.stack([(batch["gt"] - term).square().sum((1, 2, 3)) for term in terms])  # (M + 1, B)
        each = errors.mean(0) if self.loss_scale == "mean" else errors.sum(0)
        loss = (each * batch["weight"]).sum() / (2 * batch["count"])
        true = batch["weight"].sum()
        mse = (errors[-1].detach() * batch["weight"]).sum() / true.clamp_min(1) / batch["gt"][0].numel()
        return loss, {"psnr": psnr(mse) * (true / batch["count"])}

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """Restore lq (B, in_channels, H, W), float32 in [0, 1], with the running statistics; same shape, not clipped."""
        assert not self.training, "call eval() first"
        return self(lq)

"""MemNet's Caffe models (repository tyshiwo/MemNet: MemNet_M6R6_80C64*.caffemodel, MemNet_M10R10_212C64.caffemodel).

The repository states no licence. Layers, with block m and recursion r in two digits (deploy and train prototxts):

    bn_conv1, scale_conv1, conv1                                the feature extraction
    bn_conv<m>_<r>_a, scale_conv<m>_<r>_a, conv<m>_<r>_a, _b    the recursions
    bn_conv_transition_<m>, scale_..., conv_transition_<m>      the gates
    bn_conv_end_<m>, scale_conv_end_<m>, conv_end_<m>           the predictions
    weight_output_end_<m>                                       the ensemble's weights, Scale layers without a bias

A BatchNorm has three blobs, sums of the mean and of the variance and the factor to divide both by; the Scale behind it has gamma
and beta. Training shares the convolutions of a block's recursions (conv<m>_wa, _ba, _wb, _bb) and that of the predictions
(Recon_w, Recon_b) by name, and the file has a copy for each layer: they must be equal. Nothing else departs: the pre-activated
first convolution, the BatchNorm layers of each recursion and their eps of 1e-5 are those of our `MemNet`.
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, some

NETWORK = "memnet"
LAYER = re.compile(r"(bn_|scale_|)conv(1|\d\d_\d\d_[ab]|_transition_\d\d|_end_\d\d)\.[012]|weight_output_end_\d\d\.0")
TRAINED = 10**6  # batches behind the running averages: so many that nothing is left of how they began


def fits(names: Collection[str]) -> bool:
    """Whether these are the blobs of a MemNet of the release, of any number of blocks and recursions."""
    return "conv_transition_01.0" in names and "conv1.0" in names and all(LAYER.fullmatch(name) for name in names)


def translate(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of our MemNet. weights: the blobs, <layer>.<number>. network: a `jobs.models.memnet.MemNet`.

    Raises UserError for blobs that are missing, left over, of another shape or not shared as in the release, and for a network
    of other options, which it names.
    """
    _check_options(weights, network)
    blocks: Any = network.blocks
    M, R = len(blocks), blocks[0].recursions
    left = dict(weights)
    own = network.state_dict()
    found: dict[str, Tensor] = {}

    def put(name: str, blob: Tensor) -> None:
        target = own[name]
        if _sides(blob) != _sides(target):
            raise UserError(f"{name} would be {tuple(blob.shape)}, and the network's is {tuple(target.shape)}")
        found[name] = blob.reshape(target.shape).to(target.dtype).contiguous()

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"lacks {name}, which a MemNet of {M} blocks and {R} recursions has; download it again")
        return left.pop(name).double()

    def norm(name: str, layer: str) -> None:
        """A BatchNorm and the Scale behind it."""
        mean, var, factor = (take(f"bn_{layer}.{number}") for number in range(3))
        if factor.numel() != 1:
            raise UserError(f"bn_{layer}.2 is {tuple(factor.shape)}, and not one factor")
        scale = 1 / factor.item() if factor.item() else 0.0  # Caffe's rule for one that has seen nothing
        put(f"{name}.running_mean", mean * scale)
        put(f"{name}.running_var", var * scale)
        put(f"{name}.weight", take(f"scale_{layer}.0"))
        put(f"{name}.bias", take(f"scale_{layer}.1"))
        found[f"{name}.num_batches_tracked"] = torch.full_like(own[f"{name}.num_batches_tracked"], TRAINED)

    def conv(name: str, layers: list[str]) -> None:
        """A convolution that these layers share."""
        for number, part in enumerate(("weight", "bias")):
            copies = [take(f"{layer}.{number}") for layer in layers]
            bits = copies[0].view(torch.int64)  # equal to the bit, what is not a number too
            if other := [
                layer
                for layer, copy in zip(layers, copies, strict=True)
                if not torch.equal(copy.view(torch.int64), bits)
            ]:
                raise UserError(
                    f"{other[0]}.{number} differs from {layers[0]}.{number}, and MemNet's recursions share them"
                )
            put(f"{name}.{part}", copies[0])

    norm("feature.bn", "conv1")
    conv("feature.conv", ["conv1"])
    for m in range(M):
        block, at = f"conv{m + 1:02}", f"blocks.{m}"
        for unit in "ab":
            conv(f"{at}.conv_{unit}", [f"{block}_{r:02}_{unit}" for r in range(1, R + 1)])
            for r in range(R):
                norm(f"{at}.bn_{unit}.{r}", f"{block}_{r + 1:02}_{unit}")
        norm(f"{at}.gate.bn", f"conv_transition_{m + 1:02}")
        conv(f"{at}.gate.conv", [f"conv_transition_{m + 1:02}"])
        norm(f"recon_bn.{m}", f"conv_end_{m + 1:02}")
    conv("recon", [f"conv_end_{m:02}" for m in range(1, M + 1)])
    put("ensemble", torch.cat([take(f"weight_output_end_{m:02}.0").reshape(-1) for m in range(1, M + 1)]))
    if left:
        raise UserError(f"has {some(sorted(left))}, which a MemNet of {M} blocks and {R} recursions has not")
    return found


def _check_options(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Raise UserError, with the `--set` that mend it, for a network of other options than the file's."""
    net: Any = network
    block = net.blocks[0]
    first = weights["conv1.0"]
    theirs = {
        "memory_blocks": max(_numbers(weights, r"conv_transition_(\d\d)\.0")),
        "recursions": max(_numbers(weights, r"conv01_(\d\d)_a\.0"), default=0),
        "channels": first.shape[0],
        "in_channels": first.shape[1] if first.ndim == 4 else 0,
    }
    ours = {
        "memory_blocks": len(net.blocks),
        "recursions": block.recursions,
        "channels": block.conv_a.in_channels,
        "in_channels": net.in_channels,
    }
    # what no released model is without
    theirs |= {"long_term": True, "short_term": True, "multi_supervision": True, "fe_preact": True, "share_bn": False}
    ours |= {
        "long_term": block.long_term,
        "short_term": block.gate.conv.in_channels == (block.long_term + block.recursions) * block.conv_a.in_channels,
        "multi_supervision": net.multi_supervision,
        "fe_preact": hasattr(net.feature, "bn"),
        "share_bn": len(block.bn_a) < block.recursions,
    }
    if other := [name for name in theirs if theirs[name] != ours[name]]:
        settings = " ".join(f"--set model.{name}={str(theirs[name]).lower()}" for name in other)
        have = ", ".join(f"{name} {str(ours[name]).lower()}" for name in other)
        raise UserError(f"a MemNet with other options than the recipe's ({have}); say {settings}")


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    return [int(found[1]) for name in names if (found := re.fullmatch(pattern, name))]


def _sides(tensor: Tensor) -> tuple[int, ...]:
    """The shape without leading ones: older versions of Caffe write four axes whatever a blob has."""
    sides = tuple(tensor.shape)
    while sides and sides[0] == 1:
        sides = sides[1:]
    return sides

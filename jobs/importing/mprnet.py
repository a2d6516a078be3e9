"""MPRNet's weights (repository swz30/MPRNet: model_deraining.pth, model_denoising.pth, model_deblurring.pth), as our MemoryNet
without its memory.

The repository's licence is its own Academic Public License: noncommercial use only. The three files are of one network whose
widths n, u, o are 40, 20, 16 (deraining), 80, 48, 32 (denoising) and 96, 48, 32 (deblurring). Its names, with s for a stage, k for
a level and i for a block:

    shallow_feat<s>.0, .1                                       a convolution and a CAB
    stage<s>_encoder.encoder_level<k>.<i>, .down<k><k+1>.down.1, .csff_enc<k>, .csff_dec<k>
    stage<s>_decoder.decoder_level<k>.<i>, .skip_attn<k>, .up<k+1><k>.up.1
    stage3_orsnet.orb<k>.body.<i>, .up_enc<k>, .up_dec<k>, .conv_enc<k>, .conv_dec<k>
    sam12, sam23 (.conv1, .conv2, .conv3), concat12, concat23, tail

A CAB has body.0, body.2 (its convolutions), CA.conv_du.0, .2 (its attention), and body.1, the slope of the one PReLU that all CABs
share: the file has a copy for each, which must be equal. Only the order of a 1x1 convolution and the bilinear upsampling before it
departs: they commute.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from pipeline.errors import UserError, some

NETWORK = "memorynet"
CAB = {"conv1": "body.0", "conv2": "body.2", "squeeze": "CA.conv_du.0", "excite": "CA.conv_du.2"}


def fits(names: Collection[str]) -> bool:
    """Whether these are the tensors of an MPRNet, of any width, without a memory."""
    return is_backbone(names) and not any(name.startswith("memory.") for name in names)


def translate(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of our MemoryNet with memory null. network: a `jobs.models.memorynet.MemoryNet`.

    Raises UserError for tensors that are missing, left over, of another shape or not shared as in the release, and for a network
    of other options, which it names.
    """
    check_options(weights, network, {"memory": (None, getattr(network, "memory", None) and "a memory")})
    return renamed(weights, network, dict(backbone(network)))


def is_backbone(names: Collection[str]) -> bool:
    """Whether these are the names of an MPRNet, with or without others."""
    return {"shallow_feat1.0.weight", "stage3_orsnet.conv_enc1.weight", "concat23.weight", "tail.weight"} <= set(names)


def backbone(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Of each tensor of our backbone but the slope: our name and the release's."""
    for name in network.state_dict():
        if name.startswith("memory.") or name == "slope":
            continue
        layer = name.removesuffix(".weight")
        for ours, theirs in RENAMED:
            if found := re.fullmatch(ours, layer):
                layer = theirs(found, network)
                break
        yield name, f"{layer}.weight"


def _cab(rest: str | None) -> str:
    """.conv1 and so on, of a CAB."""
    return f".{CAB[rest]}" if rest else ""


def _up(branch: str, k: int, i: int) -> str:
    """ORSNet takes in level k (from 0) of stage 2 through k upsamplings and a last convolution."""
    if i == k:
        return f"stage3_orsnet.conv_{branch}{k + 1}"
    return f"stage3_orsnet.up_{branch}{k}.{f'{i}.' if k > 1 else ''}up.1"


SHORT = {"encoder": "enc", "decoder": "dec"}
RENAMED: tuple[tuple[str, Any], ...] = (  # our layers -> the release's
    (r"shallow\.(\d)\.conv", lambda m, _: f"shallow_feat{int(m[1]) + 1}.0"),
    (r"shallow\.(\d)\.cab\.(\w+)", lambda m, _: f"shallow_feat{int(m[1]) + 1}.1{_cab(m[2])}"),
    (
        r"(en|de)coder(\d)\.levels\.(\d)\.(\d+)\.(\w+)",
        lambda m, _: f"stage{m[2]}_{m[1]}coder.{m[1]}coder_level{int(m[3]) + 1}.{m[4]}{_cab(m[5])}",
    ),
    (r"encoder(\d)\.down\.(\d)", lambda m, _: f"stage{m[1]}_encoder.down{int(m[2]) + 1}{int(m[2]) + 2}.down.1"),
    (
        r"encoder(\d)\.from_(\w+)\.(\d)",
        lambda m, _: f"stage{m[1]}_encoder.csff_{SHORT[m[2]]}{int(m[3]) + 1}",
    ),
    (r"decoder(\d)\.skip\.(\d)\.(\w+)", lambda m, _: f"stage{m[1]}_decoder.skip_attn{int(m[2]) + 1}{_cab(m[3])}"),
    (r"decoder(\d)\.up\.(\d)", lambda m, _: f"stage{m[1]}_decoder.up{int(m[2]) + 2}{int(m[2]) + 1}.up.1"),
    (
        r"orsnet\.orbs\.(\d)\.cabs\.(\d+)\.(\w+)",
        lambda m, _: f"stage3_orsnet.orb{int(m[1]) + 1}.body.{m[2]}{_cab(m[3])}",
    ),
    (
        r"orsnet\.orbs\.(\d)\.conv",
        lambda m, net: f"stage3_orsnet.orb{int(m[1]) + 1}.body.{len(net.orsnet.orbs[0].cabs)}",
    ),
    (r"orsnet\.from_(\w+)\.(\d)\.(\d)", lambda m, _: _up(SHORT[m[1]], int(m[2]), int(m[3]))),
    (
        r"sam(\d)\.(conv|image|attention)",
        lambda m, _: f"sam{m[1]}{int(m[1]) + 1}.conv{('conv', 'image', 'attention').index(m[2]) + 1}",
    ),
    (r"fusion(\d)", lambda m, _: f"concat{int(m[1]) - 1}{m[1]}"),
)


def renamed(weights: dict[str, Tensor], network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The state_dict of `network` of the release's tensors; names: our name -> theirs, of all tensors but the slope.

    Raises UserError for tensors that are missing, left over, of another shape or number of elements, and unequal slopes.
    """
    slopes = sorted(name for name in weights if name.endswith(".body.1.weight") and weights[name].numel() == 1)
    if other := [name for name in slopes if weights[name].item() != weights[slopes[0]].item()]:
        raise UserError(f"{other[0]} differs from {slopes[0]}, and the CABs of an MPRNet share one PReLU")
    own = network.state_dict()
    first = ".body.0.weight"  # of a CAB's convolutions
    expected = {theirs.replace(first, ".body.1.weight") for theirs in names.values() if theirs.endswith(first)}
    missing = sorted((set(names.values()) | expected) - weights.keys())
    if missing:
        raise UserError(f"lacks {some(missing)}, which its network has; download it again")
    if left := sorted(weights.keys() - set(names.values()) - expected):
        raise UserError(f"has {some(left)}, which the recipe's network has not")
    found = {}
    for name, tensor in own.items():
        theirs = names.get(name, slopes[0])
        given = weights[theirs]
        # A Conv1d of kernel 1 is a linear layer, and its weight has an axis more.
        if tuple(given.shape) not in (tuple(tensor.shape), (*tensor.shape, 1)):
            raise UserError(f"{theirs} is {tuple(given.shape)}, and the recipe's network has {tuple(tensor.shape)}")
        found[name] = given.reshape(tensor.shape).to(tensor.dtype).contiguous()
    return found


def check_options(weights: dict[str, Tensor], network: nn.Module, more: dict[str, tuple[Any, Any]]) -> None:
    """Raise UserError, with the `--set` that mend it, for a network of other options than the file's.

    more: option -> the release's value and the network's, beside the widths.
    """
    net: Any = network
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    try:
        n = shapes["shallow_feat1.0.weight"][0]
        u = shapes["stage1_encoder.down12.down.1.weight"][0] - n
        o = shapes["tail.weight"][1] - n
    except (KeyError, IndexError) as error:
        raise UserError(f"lacks the width of its network ({error}); download it again") from None
    cabs = len({name for name in shapes if re.fullmatch(r"stage3_orsnet\.orb1\.body\.\d+\.body\.0\.weight", name)})
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    width = own["shallow.0.conv.weight"][0]
    options = {
        "n": (n, width),
        "u": (u, own["encoder1.down.0.weight"][0] - width),
        "o": (o, own["tail.weight"][1] - width),
        "cabs": (cabs, len(net.orsnet.orbs[0].cabs)),
    } | more
    if other := [name for name, (theirs, ours) in options.items() if theirs != ours]:
        settings = " ".join(f"--set model.{name}={_yaml(options[name][0])}" for name in other)
        have = ", ".join(f"{name} {_yaml(options[name][1])}" for name in other)
        raise UserError(f"an MPRNet with other options than the recipe's ({have}); say {settings}")


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

"""DRCNet's release (repository leefly072/DRCNet, basicsr/models/archs/drcnet_arch.py; MIT licence, BasicSR's Apache 2.0).

BasicSR saves the tensors under `params`. Level i counts from the full size down, j the other way:

    conv_01, conv_02                                  the stems of both stages
    down_path_<stage>.<i>.conv_1, conv_2, identity    the branches SF, EA and identity
    down_path_<stage>.<i>.norm.sa.conv1, gamma_conv, beta_conv, norm.rn.bn_norm    the region normalisation, affine
    down_path_<stage>.<i>.downsample                  4x4, of all levels but the lowest; so csff_enc, csff_dec of stage 2
    up_path_<stage>.<j>.up, conv_block.conv_1, conv_2, identity;  skip_conv_<stage>.<j>
    sam12.conv1, conv2, conv3, cat12, last            features, image and attention of the SAM; the merge; the tail

All levels have a normalisation in the file, used or not: `hin_position_left` and `_right` are options of the release, and
`dfr.sf_levels` ours (null for rain and noise; [2, 3] to train on GoPro, [3] to test there). What departs: the release takes the
regions' means over all images, or tiles, that pass together, and ours over each alone; its mask has the responses equal to t.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from jobs.models.drcnet import DFROptions
from pipeline.errors import UserError, some

NETWORK = "drcnet"


def fits(names: Collection[str]) -> bool:
    """Whether these are the tensors of a DRCNet of the release (HINet's are the same but for the normalisation)."""
    return {"conv_01.weight", "sam12.conv1.weight", "down_path_1.0.norm.sa.conv1.weight"} <= set(names)


def translate(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of our DRCNet. network: a `jobs.models.drcnet.DRCNet`.

    Raises UserError for tensors that are missing, left over or of another shape, and for a network of other options, which it
    names.
    """
    _check_options(weights, network)
    net: Any = network
    levels = len(net.stage_1.encoder)
    pairs = _pairs(levels, [block.norm is not None for block in net.stage_1.encoder])
    unused = {
        name for name in weights for i in range(levels) if f".{i}.norm." in name and name.startswith("down_path_")
    }
    theirs = {name for names in pairs.values() for name in names}
    if missing := sorted(theirs - weights.keys()):
        raise UserError(f"lacks {some(missing)}, which a DRCNet of {levels} levels has; download it again")
    if left := sorted(weights.keys() - theirs - unused):
        raise UserError(f"has {some(left)}, which a DRCNet of {levels} levels has not")
    found = {}
    for name, own in network.state_dict().items():
        tensor = torch.cat([weights[each] for each in pairs[name]])
        if name.endswith(("norm.weight", "norm.bias")):
            tensor = tensor[:, None, None]
        if tensor.shape != own.shape:
            raise UserError(
                f"{' and '.join(pairs[name])} would be {tuple(tensor.shape)}, and {name} is {tuple(own.shape)}"
            )
        found[name] = tensor.to(own.dtype).contiguous()
    return found


def _pairs(levels: int, normalised: list[bool]) -> dict[str, tuple[str, ...]]:
    """Our names, and for each the release's: two where our one convolution has the channels of both."""
    modules: dict[str, tuple[str, ...]] = {"sam.features": ("sam12.conv1",), "sam.image": ("sam12.conv2",)}
    modules |= {"sam.attention": ("sam12.conv3",), "merge": ("cat12",), "tail": ("last",)}
    for stage in (1, 2):
        modules[f"stage_{stage}.stem"] = (f"conv_0{stage}",)
        for i in range(levels):
            ours, theirs = f"stage_{stage}.encoder.{i}", f"down_path_{stage}.{i}"
            modules[f"{ours}.conv"] = (f"{theirs}.conv_1", f"{theirs}.conv_2")
            modules[f"{ours}.identity"] = (f"{theirs}.identity",)
            if normalised[i]:
                modules[f"{ours}.norm"] = (f"{theirs}.norm.rn.bn_norm",)
                for own, other in (("conv", "conv1"), ("gamma", "gamma_conv"), ("beta", "beta_conv")):
                    modules[f"{ours}.norm.{own}"] = (f"{theirs}.norm.sa.{other}",)
        for i in range(levels - 1):
            ours, j = f"stage_{stage}", levels - 2 - i
            modules[f"{ours}.down.{i}"] = (f"down_path_{stage}.{i}.downsample",)
            modules[f"{ours}.up.{i}"] = (f"up_path_{stage}.{j}.up",)
            modules[f"{ours}.skip.{i}"] = (f"skip_conv_{stage}.{j}",)
            for own, other in (("conv_a", "conv_1"), ("conv_b", "conv_2"), ("shortcut", "identity")):
                modules[f"{ours}.decoder.{i}.{own}"] = (f"up_path_{stage}.{j}.conv_block.{other}",)
            if stage == 2:
                modules[f"{ours}.csff_e.{i}"] = (f"down_path_2.{i}.csff_enc",)
                modules[f"{ours}.csff_d.{i}"] = (f"down_path_2.{i}.csff_dec",)
    return {
        f"{ours}.{part}": tuple(f"{each}.{part}" for each in theirs)
        for ours, theirs in modules.items()
        for part in ("weight", "bias")
        if part == "weight" or not (".down." in ours or ours.endswith("norm.conv"))  # these have no bias
    }


def _check_options(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Raise UserError, with the `--set` that mend it, for a network of other options than the release's.

    With `--set model.dfr.profile=released` a recipe of the paper's size has them all.
    """
    net: Any = network
    options: DFROptions = net.dfr
    theirs: dict[str, Any] = {
        "width": weights["conv_01.weight"].shape[0],
        "levels": sum(name.startswith("down_path_1.") and name.endswith(".identity.weight") for name in weights),
    }
    ours: dict[str, Any] = {"width": net.stage_1.stem.out_channels, "levels": len(net.stage_1.encoder)}
    released = DFROptions(profile="released")
    for name in ("branches", "region_norm", "affine", "unbiased", "delta", "t"):
        theirs[f"dfr.{name}"], ours[f"dfr.{name}"] = getattr(released, name), getattr(options, name)
    theirs["dfr.response_kernel"] = weights["down_path_1.0.norm.sa.conv1.weight"].shape[-1]
    ours["dfr.response_kernel"] = options.response_kernel
    if other := [name for name in theirs if theirs[name] != ours[name]]:
        have = ", ".join(f"{name} {_shown(ours[name])}" for name in other)
        settings = " ".join(f"--set model.{name}={_shown(theirs[name])}" for name in other)
        raise UserError(f"a DRCNet with other options than the recipe's ({have}); say {settings}")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()

"""The time-lapse release (repository jhcho90/MGID, no licence stated: model/Reconstruction_skip.py), as our TimeLapseNet.

Its checkpoints hold `model`, the network's tensors, and `memory_items` beside it. In `model`, numbers count the layers of a
Sequential of convolution, BatchNorm and ReLU:

    encoder.moduleConv1 to 3       E1 to E3: 0, 1 and 3, 4        encoder.moduleConv4      E4: 0, 1 and 3
    encoder.moduleBatchNorm        read by nothing: the 128 of its 818,115 parameters that the network has not
    decoder.moduleConv             D4: 0, 1 and 3, 4              decoder.moduleUpsample4  U3: 0, 1; moduleUpsample3, 2: U2, U1
    decoder.moduleDeconv3, 2       D3, D2: 0, 1 and 3, 4          decoder.moduleDeconv1    D1 and Output: 0, 1, 3, 4 and 6

What departs: the release concatenates the skip first and then what comes from below, we the other way round; its images are
OpenCV's, blue first, so the colours of the first and of the last convolution are turned; it applies tanh twice, which
`profile: released` has.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from pipeline.errors import UserError, some

NETWORK = "timelapse"
ITEMS = "memory_items"
UNUSED = "encoder.moduleBatchNorm."
FIRST, LAST = "encoder.moduleConv1.0.weight", "decoder.moduleDeconv1.6."
LAYERS = {  # ours: the release's
    **{f"e{n}.{i}.{j}": f"encoder.moduleConv{n}.{3 * i + j}" for n in (1, 2, 3) for i in (0, 1) for j in (0, 1)},
    **{"e4.0.0": "encoder.moduleConv4.0", "e4.0.1": "encoder.moduleConv4.1", "e4.1": "encoder.moduleConv4.3"},
    **{
        f"d{n}.{ours}": f"decoder.module{theirs}.{k}"
        for n, theirs in ((4, "Conv"), (3, "Deconv3"), (2, "Deconv2"), (1, "Deconv1"))
        for ours, k in (("conv_a", 0), ("activation_a.0", 1), ("b.0", 3), ("b.1", 4))
    },
    **{f"u{n}.{j}": f"decoder.moduleUpsample{n + 1}.{j}" for n in (3, 2, 1) for j in (0, 1)},
    "output": LAST.rstrip("."),
}


def fits(names: Collection[str]) -> bool:
    """Whether these are the tensors of the release's network, with or without its memory items."""
    return FIRST in names and f"{LAST}weight" in names and f"{UNUSED}weight" in names


def translate(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of our TimeLapseNet with two tanh. weights: those of `model`, and `memory_items`.

    Raises UserError for tensors that are missing, left over or of another shape, and for a network of other options, which it
    names.
    """
    if ITEMS not in weights:
        raise UserError(
            f"lacks {ITEMS}, which lie beside `model` in the release's checkpoint c; save both in one: "
            f"torch.save({{**c['model'], '{ITEMS}': c['{ITEMS}']}}, 'weights.pth')"
        )
    _check_options(weights, network)
    left = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED)}
    found: dict[str, Tensor] = {}
    for name, own in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        theirs = ITEMS if name == "memory.items" else f"{LAYERS[layer]}.{kind}"
        if theirs not in left:
            raise UserError(f"lacks {theirs}, which the release's network has; download it again")
        tensor = left.pop(theirs)
        if tensor.shape != own.shape:
            raise UserError(f"{theirs} is {tuple(tensor.shape)}, and the network's is {tuple(own.shape)}")
        if layer in ("d3.conv_a", "d2.conv_a", "d1.conv_a") and kind == "weight":
            tensor = tensor.roll(tensor.shape[1] // 2, 1)  # both halves change places
        if theirs == FIRST:
            tensor = tensor.flip(1)
        if theirs.startswith(LAST):
            tensor = tensor.flip(0)
        found[name] = tensor.to(own.dtype).contiguous()
    if left:
        raise UserError(f"has {some(sorted(left))}, which the release's network has not")
    return found


def _check_options(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Raise UserError, with the `--set` that mend it, for a network of other options than the file's."""
    net: Any = network
    memory, output = net.memory, net.output
    theirs = {
        "norm": "bn",
        "tanh": 2,
        "bias": True,
        "channels": weights[FIRST].shape[0],
        "memory.items": len(weights[ITEMS]),
    }
    ours = {
        "norm": net.settings.norm,
        "tanh": net.settings.tanh,
        "bias": output.bias is not None,
        "channels": output.in_channels,
        "memory.items": 0 if memory is None else len(memory.items),
    }
    if other := [name for name in theirs if theirs[name] != ours[name]]:
        settings = " ".join(f"--set model.{name}={str(theirs[name]).lower()}" for name in other)
        have = ", ".join(f"{name} {str(ours[name]).lower()}" for name in other)
        raise UserError(f"a network with other options than the release's ({have}); say {settings}")

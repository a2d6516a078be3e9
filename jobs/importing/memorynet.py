"""MemoryNet's release (repository zhangbaijin/MemoryNet, MIT licence: MemoryNet.py with memory.py), as our MemoryNet.

The names are MPRNet's (see `mprnet`), and those of the memory: memory.memory.weight, the part bank (100, 3);
memory.memory.reweight_layer_part and reweight_layer_ins, the gates, convolutions of kernel 1 over parts and over instances.

Our network computes what the release does with `memory.profile: released`: the memory is read with the pixels, by their dot product, in a
bank that is not normalised and whose rows the release reshapes, and outputs are residuals to what is read. What departs: the
release's shrinkage divides by |w - threshold| + 1e-12, and ours by |w - threshold|: 1e-8 of a read, at most. A file of the release without a memory
is an MPRNet, and `mprnet` reads it.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from jobs.importing import mprnet
from pipeline.errors import UserError

NETWORK = "memorynet"
MEMORY = {
    "memory.part": "memory.memory.weight",
    "memory.gate_part.weight": "memory.memory.reweight_layer_part.weight",
    "memory.gate_part.bias": "memory.memory.reweight_layer_part.bias",
    "memory.gate_instance.weight": "memory.memory.reweight_layer_ins.weight",
    "memory.gate_instance.bias": "memory.memory.reweight_layer_ins.bias",
}


def fits(names: Collection[str]) -> bool:
    """Whether these are the tensors of a MemoryNet of the release, of any width."""
    return mprnet.is_backbone(names) and MEMORY["memory.part"] in names


def translate(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of our MemoryNet with memory.profile `released`. network: a `jobs.models.memorynet.MemoryNet`.

    Raises UserError for tensors that are missing, left over or of another shape, and for a network of other options, which it
    names.
    """
    missing = sorted(set(MEMORY.values()) - weights.keys())
    if missing:
        raise UserError(f"lacks {missing[0]}, which the release's memory has; download it again")
    memory: Any = network.memory
    if memory is None:
        raise UserError("has a memory, and the recipe's network has none; say --set model.memory.profile=released")
    parts, instances = (weights[MEMORY[f"memory.gate_{level}.bias"]].numel() for level in ("part", "instance"))
    rows = weights[MEMORY["memory.part"]].shape[0]
    mprnet.check_options(
        weights,
        network,
        {
            "memory.parts": (parts, memory.parts),
            "memory.instances": (instances, memory.instances),
            "memory.classes": (rows // (parts * instances), memory.part.shape[0] // (memory.parts * memory.instances)),
            "memory.levels": (3, memory.levels),
            "memory.space": ("image", memory.space),
            "memory.similarity": ("dot", memory.similarity),
            "memory.normalise": (False, memory.normalise),
            "memory.base": ("read", memory.base),
            "memory.order": ("released", memory.order),
            "memory.shrink": (0.0025, memory.shrink),
        },
    )
    return mprnet.renamed(weights, network, dict(mprnet.backbone(network)) | MEMORY)

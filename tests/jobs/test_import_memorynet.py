import pytest
import torch
from mprnet_release import outputs, reads, release

from jobs.importing import memorynet as imported
from jobs.models.memorynet import LossOptions, MemoryNet, MemoryOptions
from jobs.recipe import build_model, read_recipe
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"n": 12, "u": 4, "o": 8, "cabs": 2}


def network(**memory: object) -> MemoryNet:
    options = MemoryOptions(**{"profile": "released"} | memory)
    return MemoryNet(**SMALL, memory=options, loss=LossOptions(recon=None), contrastive=None)


@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.0, 1e-11), (1e-12, 1e-7)])
@torch.no_grad()
def test_a_memorynet_computes_what_its_release_does(epsilon, tolerance):
    """Reads of the three levels and images of the three stages, in float64; the release's shrinkage has epsilon 1e-12."""
    model, weights = network(), release(**SMALL, memory=True)
    model.load_state_dict(imported.translate(weights, model), strict=True)
    model.double().eval()
    double = {name: tensor.double() for name, tensor in weights.items()}
    x = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    banks = model.memory.banks()
    ours = [*(model.memory(x, banks[:k]) for k in (1, 2, 3)), *model.stages(x)]
    theirs = [*reads(double, x, epsilon), *outputs(double, x, epsilon)]
    differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)]
    print("largest relative differences, reads of 3 levels and images of stages 3, 2, 1:", differences)
    assert max(differences) < tolerance
    weights["memory.memory.weight"] = weights["memory.memory.weight"].roll(1, 0)  # other instances
    model.float().load_state_dict(imported.translate(weights, model))
    other = model.double().memory(x, model.memory.banks()[:2])
    assert float((other - ours[1]).abs().max()) > 1e-3


def test_the_shipped_recipe_of_the_release_takes_its_weights():
    model = build_model(read_recipe("memorynet-deshadow-released").model)
    own = imported.translate(release(40, 20, 16, 8, memory=True), model)
    assert {k: (v.shape, v.dtype) for k, v in own.items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    assert sum(v.numel() for v in own.values()) == 3_637_585


def test_another_memory_is_told_its_options():
    weights = release(**SMALL, memory=True)
    with pytest.raises(UserError, match=r"say --set model\.memory\.order=released$") as caught:
        imported.translate(weights, network(order="class"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"--set model\.memory\.normalise=false .*--set model\.memory\.shrink=0\.0025$"):
        imported.translate(weights, network(profile="ours"))
    with pytest.raises(UserError, match=r"model\.memory\.profile=released"):
        imported.translate(weights, MemoryNet(**SMALL, memory=None))
    del weights["memory.memory.reweight_layer_ins.bias"]
    with pytest.raises(UserError, match=r"lacks memory\.memory\.reweight_layer_ins\.bias"):
        imported.translate(weights, network())

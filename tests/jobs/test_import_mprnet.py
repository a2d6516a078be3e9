import pytest
import torch
from mprnet_release import outputs, release

from jobs.importing import memorynet as memorynet_release
from jobs.importing import mprnet
from jobs.models.memorynet import MemoryNet, MemoryOptions
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"n": 12, "u": 4, "o": 8, "cabs": 2}
DERAINING, DENOISING, DEBLURRING = ((40, 20, 16), (80, 48, 32), (96, 48, 32))


def network(**options: object) -> MemoryNet:
    return MemoryNet(**SMALL | {"memory": None, "contrastive": None} | options)


@torch.no_grad()
def difference(model: MemoryNet, weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> float:
    """The largest difference of the three stages' images in float64, relative to the largest value."""
    model.load_state_dict(own, strict=True)
    x = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = model.double().eval().stages(x)
    theirs = outputs({name: tensor.double() for name, tensor in weights.items()}, x)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    print(f"largest relative difference {worst:.1e}")
    return worst


@pytest.mark.parametrize(
    "size", [SMALL, *(dict(zip("nuo", s, strict=True)) | {"cabs": 8} for s in (DERAINING,))], ids=str
)
def test_an_mprnet_computes_what_its_release_does(size):
    model, weights = network(**size), release(**size, memory=False)
    assert mprnet.fits(weights)
    assert difference(model, weights, mprnet.translate(weights, model)) < 1e-12


@pytest.mark.parametrize("sizes", [DENOISING, DEBLURRING], ids=str)
def test_the_wider_releases_have_the_names_and_shapes_of_our_network(sizes):
    size = dict(zip("nuo", sizes, strict=True)) | {"cabs": 8}
    model, weights = network(**size), release(**size, memory=False)
    own = mprnet.translate(weights, model)
    assert {k: (v.shape, v.dtype) for k, v in own.items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    slopes = sum(name.endswith(".body.1.weight") and w.numel() == 1 for name, w in weights.items())
    assert sum(w.numel() for w in weights.values()) - slopes + 1 == sum(p.numel() for p in model.parameters())


def test_a_network_of_other_widths_is_told_the_options():
    weights = release(**SMALL | {"n": 16, "cabs": 3}, memory=False)
    with pytest.raises(UserError, match=r"\(n 12, cabs 2\); say --set model.n=16 --set model.cabs=3$"):
        mprnet.translate(weights, network())


def test_a_network_with_a_memory_is_told_to_leave_it_out():
    weights = release(**SMALL, memory=False)
    with pytest.raises(UserError, match=r"\(memory .*\); say --set model.memory=null$") as caught:
        mprnet.translate(weights, network(memory=MemoryOptions()))
    assert "\n" not in str(caught.value)


def test_what_is_missing_left_over_or_of_another_shape_is_named():
    def complaint(**changes: torch.Tensor | None) -> str:
        weights = release(**SMALL, memory=False) | changes
        with pytest.raises(UserError) as caught:
            mprnet.translate({name: w for name, w in weights.items() if w is not None}, network())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "lacks sam12.conv1.weight," in complaint(**{"sam12.conv1.weight": None})
    assert "lacks stage1_decoder.skip_attn1.body.1.weight," in complaint(
        **{"stage1_decoder.skip_attn1.body.1.weight": None}
    )
    assert "lacks the width" in complaint(**{"stage1_encoder.down12.down.1.weight": None})
    assert "has tail.bias," in complaint(**{"tail.bias": torch.zeros(3)})
    assert "concat12.weight is (12, 24, 1, 1), and the recipe's network has (12, 24, 3, 3)" in complaint(
        **{"concat12.weight": torch.zeros(12, 24, 1, 1)}
    )
    slope = "stage2_encoder.encoder_level3.1.body.1.weight"
    assert f"{slope} differs from" in complaint(**{slope: torch.tensor([0.1])})


def test_each_release_knows_its_own():
    plain, remembering = (release(**SMALL, memory=memory) for memory in (False, True))
    assert (mprnet.fits(plain), mprnet.fits(remembering)) == (True, False)
    assert (memorynet_release.fits(plain), memorynet_release.fits(remembering)) == (False, True)
    ours = network().state_dict()
    assert not mprnet.fits(ours)
    assert not memorynet_release.fits(ours)

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jobs.models.contrastive import EPS, ratio
from jobs.models.vgg import VGG19Features, VGGOptions, distance

pytestmark = pytest.mark.usefixtures("one_thread")

OMEGA = (0.25, 1.0)


def distances(theta: Tensor, start: int, stop: int) -> tuple[list[Tensor], list[Tensor]]:
    """Two layers' distances of samples start..stop - 1, which depend on shared parameters theta (2,)."""
    i = torch.arange(start, stop, dtype=torch.float64)
    d_p = [(theta[0] * (i + 1)).sin().abs() + 0.1, (theta[1] * i).cos().abs() + 0.2]
    d_n = [(theta.sum() * (i + 2)).cos().abs() + 0.05, (theta[0] * theta[1] * i).exp() * 0.1]
    return d_p, d_n


def objective(theta: Tensor, start: int, stop: int, true: int, ranks: int, over: str) -> Tensor:
    """A rank's loss, of the samples start..stop - 1 of which those from `true` on are padding."""
    weight = (torch.arange(start, stop) < true).double()
    return (ratio(*distances(theta, start, stop), OMEGA, weight, over) * weight).sum() / (true / ranks)


def theta() -> Tensor:
    return torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)


def of_the_means(theta: Tensor, true: int) -> Tensor:
    """The ratio of the batch's means, as it stands."""
    d_p, d_n = distances(theta, 0, true)
    return sum(omega * p.mean() / (n.mean() + EPS) for omega, p, n in zip(OMEGA, d_p, d_n, strict=True))


def test_over_the_batch_it_is_the_ratio_of_the_means_with_its_gradient():
    a, b = theta(), theta()
    loss, expected = objective(a, 0, 6, 5, 1, "batch"), of_the_means(b, 5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=0)


def test_over_samples_it_is_the_mean_of_the_ratios():
    d_p, d_n = distances(theta().detach(), 0, 5)
    each = [
        sum(omega * float(p[i]) / (float(n[i]) + EPS) for omega, p, n in zip(OMEGA, d_p, d_n, strict=True))
        for i in range(5)
    ]
    weight = torch.ones(5, dtype=torch.float64)
    assert ratio(d_p, d_n, OMEGA, weight, "sample").tolist() == pytest.approx(each)
    weight[1] = 0
    each[1] = 0
    assert ratio(d_p, d_n, OMEGA, weight, "sample").tolist() == pytest.approx(each)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 2), st.booleans()), min_size=1, max_size=6),
    st.sampled_from(["sample", "batch"]),
)
def test_a_sample_without_weight_moves_nothing(rows, over):
    d_p, d_n = (torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in (0, 1))
    taken = torch.tensor([row[2] for row in rows])
    alone = ratio([d_p[taken]], [d_n[taken]], (1.0,), torch.ones(int(taken.sum())), over)
    among = ratio([d_p], [d_n], (1.0,), taken.float(), over)
    torch.testing.assert_close(among[taken], alone)
    assert not among[~taken].any()


def test_distances_of_0_have_no_ratio():
    zeros = [torch.zeros(3)] * 2
    for over in ("sample", "batch"):
        assert ratio(zeros, zeros, OMEGA, torch.ones(3), over).tolist() == [0, 0, 0]
        assert ratio(zeros, zeros, OMEGA, torch.zeros(3), over).tolist() == [0, 0, 0]


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_only_the_sample_that_is_not_finite_has_a_ratio_that_is_not(over, value):
    d_p, d_n = torch.tensor([0.5, value, 0.25]), torch.tensor([1.0, 1.0, 1.0])
    assert ratio([d_p], [d_n], (1.0,), torch.ones(3), over).isfinite().tolist() == [True, False, True]


def share(over: str) -> float:
    """Of four crops, the last without a shadow but a little darker than its target: its share of the gradient's norms.

    The output is near the target, as it is after most of a training.
    """
    generator = torch.Generator().manual_seed(0)
    Y = torch.rand(4, 3, 6, 6, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    J = Y.clone()
    J[:3, :, :, 8:] *= 0.5
    J[3] *= 0.95
    X = (Y + 0.04 * torch.randn(Y.shape, generator=generator)).requires_grad_()
    G = VGG19Features((1, 6, 11), VGGOptions(path="stand-in"))
    G_X, G_Y, G_J = G(X), G(Y), G(J)
    d_p, d_n = ([distance(a, b) for a, b in zip(G_X, other, strict=True)] for other in (G_Y, G_J))
    ratio(d_p, d_n, (1 / 32, 1 / 16, 1 / 8), torch.ones(4), over).mean().backward()
    norms = X.grad.flatten(1).norm(dim=1)
    return float(norms[3] / norms.sum())


def test_only_over_samples_does_a_crop_without_shadow_take_most_of_the_gradient():
    by_sample, by_batch = share("sample"), share("batch")
    print(f"share of one crop of four: {by_sample:.3f} over samples, {by_batch:.3f} over the batch")
    assert by_sample == pytest.approx(0.58, abs=0.03)
    assert by_batch == pytest.approx(0.24, abs=0.02)


# two ranks


def rank(index: int, folder: Path) -> None:
    """One of two gloo ranks: 4 and 1 of 5 samples, the second with padding, then all 5 on one and an idle other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    results = []
    for over in ("sample", "batch"):
        for cut in (4, 5):
            t = theta()
            loss = objective(t, *((0, cut) if index == 0 else (cut, cut + 4)), 5, 2, over)
            loss.backward()
            results.append((loss.detach(), t.grad))
    torch.save(results, folder / f"{index}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_ratio_and_the_gradient_of_one(tmp_path):
    torch.multiprocessing.spawn(rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{index}.pt") for index in range(2)]
    for over, a, b in zip(("sample", "sample", "batch", "batch"), *ranks, strict=True):
        t = theta()
        loss = objective(t, 0, 5, 5, 1, over)
        loss.backward()
        torch.testing.assert_close((a[0] + b[0]) / 2, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close((a[1] + b[1]) / 2, t.grad, rtol=1e-10, atol=0)

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jobs.models.batchnorm import BatchNorm2d, batch_statistics

CASES = ("plain", "offset", "bf16")


pytestmark = pytest.mark.usefixtures("one_thread")


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of b."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def affine(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Other values than 1 and 0, so that a forgotten gamma or beta shows."""
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
        layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
    return layer


def run(layer: nn.BatchNorm2d, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Everything that one step of a layer gives: output, gradients, running statistics."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad.to(y.dtype))
    return {
        "y": y.detach(),
        "d_x": x.grad,
        "d_gamma": layer.weight.grad,
        "d_beta": layer.bias.grad,
        "mean": layer.running_mean,
        "var": layer.running_var,
        "batches": layer.num_batches_tracked,
    }


def data(case: str) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a global batch whose two halves have different means and deviations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 9, 7, generator=generator)
    x[4:] = 3 * x[4:] + 2
    x = 50 + 0.1 * x if case == "offset" else x
    return x.bfloat16() if case == "bf16" else x, torch.randn(8, 5, 9, 7, generator=generator)


# one process


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0.001, 0.1])
def test_it_is_batchnorm(memory_format, momentum):
    x, grad = data("plain")
    x = x.to(memory_format=memory_format)
    expected = run(affine(nn.BatchNorm2d(5, momentum=1.0)), x, grad)  # the average of one batch is that batch's
    actual = run(affine(BatchNorm2d(5, momentum=momentum)), x, grad)
    for name, value in expected.items():
        assert difference(actual[name], value) < 2e-6, name


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    mean=st.sampled_from([0.0, -1.0, 50.0]),
    deviation=st.sampled_from([1e-4, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_it_is_exact_to_the_rounding_of_its_input(shape, mean, deviation, seed):
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])  # torch refuses a single value
    generator = torch.Generator().manual_seed(seed)
    x = mean + deviation * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    exact = run(affine(nn.BatchNorm2d(shape[1], momentum=1.0).double()), x.double(), grad.double())
    rstd = float((x.double().var((0, 2, 3), unbiased=False).min() + 1e-5).rsqrt())
    rounding = 2**-24 * (1 + float(x.abs().max()) * rstd)  # of x, in deviations
    for name, actual in run(affine(BatchNorm2d(shape[1])), x, grad).items():
        scale = float(exact[name].abs().max()) + float(grad.abs().max()) * (rstd if name == "d_x" else 1)
        assert float((actual - exact[name]).abs().max()) <= 20 * rounding * scale, name


def test_a_bf16_tensor_has_float32_statistics():
    x, grad = data("bf16")
    exact = run(affine(nn.BatchNorm2d(5, momentum=1.0).double()), x.double(), grad.double())
    actual = run(affine(BatchNorm2d(5)), x, grad)
    assert actual["y"].dtype == actual["d_x"].dtype == torch.bfloat16
    assert actual["d_gamma"].dtype == actual["mean"].dtype == torch.float32
    for name in ("mean", "var"):
        assert difference(actual[name], exact[name]) < 1e-6, name
    for name in ("y", "d_x", "d_gamma", "d_beta"):
        assert difference(actual[name], exact[name]) < 2**-7, name


def test_eval_mode_uses_the_running_statistics_and_changes_nothing():
    x, _ = data("plain")
    expected, actual = affine(nn.BatchNorm2d(5, momentum=1.0)), affine(BatchNorm2d(5, momentum=0.3))
    for layer in (expected, actual):
        layer(x)
        layer.eval()
    before = {name: tensor.clone() for name, tensor in actual.state_dict().items()}
    torch.testing.assert_close(actual(x + 1), expected(x + 1))
    torch.testing.assert_close(actual(x, batch_statistics(x + 5)), expected(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in actual.state_dict().items())


def test_it_is_trained_with_float64_and_once_differentiable():
    x = torch.randn(3, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    layer = affine(BatchNorm2d(2)).double()
    weights = torch.randn(3, 2, 4, 3, dtype=torch.float64)

    def loss(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, {"weight": gamma, "bias": beta}, (x,)) * weights).square().sum()

    assert torch.autograd.gradcheck(loss, (x, layer.weight, layer.bias))
    (gradient,) = torch.autograd.grad(layer(x, batch_statistics(x)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_sharing_statistics_between_layers_equals_separate_ones():
    x, grad = data("plain")
    results = []
    for shared in (True, False):
        layers = [affine(BatchNorm2d(5, momentum=m)) for m in (0.1, 0.5)]
        leaf = x.clone().requires_grad_()
        statistics = batch_statistics(leaf) if shared else None
        y = layers[0](leaf, statistics).sin() + layers[1](leaf, statistics) * grad
        y.backward(grad)
        buffers = [tensor for layer in layers for tensor in layer.state_dict().values()]
        results.append([y.detach(), leaf.grad, *(p.grad for layer in layers for p in layer.parameters()), *buffers])
    for ours, theirs in zip(*results, strict=True):
        assert difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_the_parts_of_a_concatenation_are_normalised_as_the_whole(training):
    a, b = data("plain")[0][:, :2], data("plain")[0][:, 2:] * 4 + 1
    grad = data("plain")[1]
    results = []
    for parts in (True, False):
        layer = (affine(BatchNorm2d(5)) if parts else affine(nn.BatchNorm2d(5, momentum=1.0))).train(training)
        leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
        if isinstance(layer, BatchNorm2d):
            y = torch.cat([layer.part(leaves[0], 0), layer.part(leaves[1], 2)], 1)
        else:
            y = layer(torch.cat(leaves, 1))
        y.backward(grad)
        results.append([y.detach(), *(t.grad for t in [*leaves, *layer.parameters()]), *layer.buffers()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


# the running averages


def batches(n: int) -> Tensor:
    """n batches (n, 4, 3, 5, 6) whose means and deviations drift."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 4, 3, 5, 6, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.5, 2, n).view(-1, 1, 1, 1, 1) + torch.linspace(-1, 3, n).view(-1, 1, 1, 1, 1)


def caffes_blobs(x: Tensor, momentum: float) -> tuple[Tensor, Tensor, float]:
    """What Caffe's layer keeps after these batches: sums of means and of unbiased variances, and the sum of weights."""
    mean, var, factor = torch.zeros(3).double(), torch.zeros(3).double(), 0.0
    for batch in x:
        m = batch.numel() // 3
        var = (1 - momentum) * var + m / (m - 1) * batch.var((0, 2, 3), unbiased=False)
        mean = (1 - momentum) * mean + batch.mean((0, 2, 3))
        factor = (1 - momentum) * factor + 1
    return mean, var, factor


@pytest.mark.parametrize("n", [1, 2, 60])
@pytest.mark.parametrize("momentum", [0.001, 0.1, 1.0])
def test_the_running_averages_are_caffes_sums_over_their_factor(n, momentum):
    layer, x = BatchNorm2d(3, momentum=momentum).double(), batches(n)
    for batch in x:
        layer(batch)
    mean, var, factor = caffes_blobs(x, momentum)
    torch.testing.assert_close(layer.running_mean, mean / factor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, var / factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "momentum"), [(1, 0.001), (263, 0.001), (5, 0.1)])
def test_a_layer_with_caffes_state_goes_on_as_caffe_does(n, momentum):
    x = batches(n + 3)
    layer = BatchNorm2d(3, momentum=momentum).double()
    mean, var, factor = caffes_blobs(x[:n], momentum)
    state = {"running_mean": mean / factor, "running_var": var / factor, "num_batches_tracked": torch.tensor(n)}
    layer.load_state_dict(state, strict=False)
    for batch in x[n:]:
        layer(batch)
    mean, var, factor = caffes_blobs(x, momentum)
    torch.testing.assert_close(layer.running_mean, mean / factor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, var / factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.001, 0.1])
def test_after_many_batches_a_new_one_has_its_limit(momentum):
    layer = BatchNorm2d(3, momentum=momentum)
    layer.num_batches_tracked.fill_(10**6)
    assert float(layer._newest_weight()) == pytest.approx(momentum)


def test_a_layer_that_is_saved_and_loaded_goes_on_to_the_same_bits():
    x = batches(9).float()
    through = BatchNorm2d(3, momentum=0.01)
    for batch in x[:4]:
        through(batch)
    again = BatchNorm2d(3, momentum=0.01)
    again.load_state_dict({name: tensor.clone() for name, tensor in through.state_dict().items()})
    for layer in (through, again):
        for batch in x[4:]:
            layer(batch)
    assert all(torch.equal(a, b) for a, b in zip(through.buffers(), again.buffers(), strict=True))


# two ranks


def rank(index: int, folder: Path) -> None:
    """One of two gloo ranks: half of each batch; leaves what it computed in folder/<index>.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    half = slice(4 * index, 4 * index + 4)
    results = {}
    for case in CASES:
        x, grad = data(case)
        results[case] = run(affine(BatchNorm2d(5)), x[half], grad[half])
    # one tensor, normalised by two layers that share its statistics
    x, grad = data("plain")
    layers = [affine(BatchNorm2d(5)), affine(BatchNorm2d(5))]
    leaf = x[half].clone().requires_grad_()
    statistics = batch_statistics(leaf)
    y = layers[0](leaf, statistics).sin() + layers[1](leaf, statistics) * grad[half]
    y.backward(grad[half])
    results["shared"] = {"y": y.detach(), "d_x": leaf.grad, "d_gamma": layers[0].weight.grad}
    x, grad = data("plain")
    own = affine(BatchNorm2d(5))
    own.of_rank = True
    results["of_rank"] = run(own, x[half], grad[half])
    leaf = x[half].clone().requires_grad_()
    affine(BatchNorm2d(5))(leaf, batch_statistics(leaf, of_rank=True)).backward(grad[half])
    results["of_rank shared"] = {"d_x": leaf.grad}
    torch.save(results, folder / f"{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{index}.pt") for index in range(2)]


def merged(ranks: list[dict[str, Tensor]], name: str) -> Tensor:
    """What the two ranks computed, as the value of the global batch."""
    a, b = (result[name] for result in ranks)
    return torch.cat([a, b]) if name in ("y", "d_x") else a + b if name.startswith("d_") else a


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_half_the_batch_equal_one_process(ranks, case):
    x, grad = data(case)
    expected = run(affine(BatchNorm2d(5)), x, grad)
    exact = run(affine(nn.BatchNorm2d(5, momentum=1.0).double()), x.double(), grad.double())
    for name, value in expected.items():
        actual = merged([result[case] for result in ranks], name)
        assert actual.dtype == value.dtype
        # bf16 results have 8 bits; a mean of 50 in float32 is known to 4e-5 of a deviation of 0.1
        offset = {"mean": 1e-6, "var": 4e-6}.get(name, 4e-5) if case == "offset" else 1e-6
        assert difference(actual, value) < (2**-7 if value.dtype == torch.bfloat16 else offset), name
        if name in ("mean", "var"):
            assert difference(actual, exact[name]) < offset, name


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_hold_the_same_statistics_bit_for_bit(ranks, case):
    for name in ("mean", "var", "batches"):
        assert torch.equal(ranks[0][case][name], ranks[1][case][name])


def test_layers_that_share_statistics_do_so_over_two_ranks(ranks):
    x, grad = data("plain")
    layers = [affine(nn.BatchNorm2d(5)), affine(nn.BatchNorm2d(5))]
    leaf = x.clone().requires_grad_()
    y = layers[0](leaf).sin() + layers[1](leaf) * grad
    y.backward(grad)
    expected = {"y": y.detach(), "d_x": leaf.grad, "d_gamma": layers[0].weight.grad}
    for name, value in expected.items():
        assert difference(merged([result["shared"] for result in ranks], name), value) < 1e-5, name


def test_statistics_of_a_rank_are_those_of_its_samples_alone(ranks):
    x, grad = data("plain")
    for index, result in enumerate(ranks):
        half = slice(4 * index, 4 * index + 4)
        expected = run(affine(nn.BatchNorm2d(5, momentum=1.0)), x[half], grad[half])
        for name, value in result["of_rank"].items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
        torch.testing.assert_close(result["of_rank shared"]["d_x"], result["of_rank"]["d_x"], rtol=1e-4, atol=1e-4)

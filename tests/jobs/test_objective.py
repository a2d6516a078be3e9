"""The terms of an objective against what others compute, and the sum over a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from jobs.models.objective import TERMS, objective
from jobs.recipe import Objective

B, C, H, W = 3, 2, 17, 14


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(B, C, H, W), torch.rand(B, C, H, W)


def reference(name: str, x: np.ndarray, y: np.ndarray) -> float:
    """Of one sample (C, H, W), in float64."""
    d = x - y
    if name == "l1":
        return np.abs(d).mean()
    if name == "l2":
        return np.square(d).mean()
    if name == "charbonnier":
        return np.sqrt(np.square(d) + 1e-6).mean()
    if name == "frequency":
        f = np.fft.rfft2(d)
        return (np.abs(f.real).mean() + np.abs(f.imag).mean()) / 2
    if name == "ssim":
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
        maps = [structural_similarity(a, b, **how)[1][5:-5, 5:-5] for a, b in zip(x, y, strict=True)]
        return 1 - np.mean(maps)
    assert name == "edge"  # MPRNet's loss, as released
    taps = np.outer([0.05, 0.25, 0.4, 0.25, 0.05], [0.05, 0.25, 0.4, 0.25, 0.05])

    def gauss(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))
        return np.einsum("chwij,ij->chw", windows, taps)

    def laplacian(image: np.ndarray) -> np.ndarray:
        spread = np.zeros_like(image)
        spread[:, ::2, ::2] = gauss(image)[:, ::2, ::2] * 4
        return image - gauss(spread)

    return np.sqrt(np.square(laplacian(x) - laplacian(y)) + 1e-6).mean()


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_its_formula_of_each_sample(name, images):
    values = TERMS[name](*images)
    assert values.shape == (B,)
    x, y = (each.double().numpy() for each in images)
    np.testing.assert_allclose(values.numpy(), [reference(name, x[i], y[i]) for i in range(B)], rtol=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_least_where_output_and_target_are_equal_and_has_a_gradient_there(name, images):
    target = images[1]
    output = target.clone().requires_grad_()
    least = TERMS[name](output, target)
    least.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert (least <= 1e-3 + 1e-6).all()
    assert (TERMS[name](*images) > least).all()


def test_the_keys_of_a_recipe_are_the_terms():
    assert list(Objective.model_fields) == list(TERMS)


@given(st.integers(1, B - 1))
def test_the_loss_of_a_batch_is_the_mean_over_the_ranks_and_padding_has_no_part(cut):
    torch.manual_seed(1)
    output, target = torch.rand(2, B, C, H, W)
    terms = {"charbonnier": 1.0, "ssim": 0.5}

    def loss(rows: slice, count: float, weight: torch.Tensor) -> tuple[float, dict[str, float]]:
        batch = {"gt": target[rows], "weight": weight[rows], "count": torch.tensor(count)}
        value, logs = objective(output[rows], batch, terms)
        return float(value), {name: float(log) for name, log in logs.items()}

    whole, logs = loss(slice(None), B, torch.ones(B))
    parts = [loss(rows, B / 2, torch.ones(B)) for rows in (slice(cut), slice(cut, None))]
    assert np.mean([value for value, _ in parts]) == pytest.approx(whole, rel=1e-5)
    expected = sum(weight * TERMS[name](output, target).mean() for name, weight in terms.items())
    assert whole == pytest.approx(float(expected), rel=1e-5)
    assert set(logs) == {"charbonnier", "ssim", "psnr"}
    assert np.mean([each["ssim"] for _, each in parts]) == pytest.approx(logs["ssim"], rel=1e-5)
    weight = torch.ones(B)
    weight[-1] = 0
    output[-1] = 1e3
    padded, _ = loss(slice(None), B - 1, weight)
    assert padded == pytest.approx(
        float(sum(w * TERMS[n](output, target)[:-1].mean() for n, w in terms.items())), rel=1e-5
    )
    assert set(objective(output, {"gt": target, "weight": weight, "count": torch.tensor(2.0)}, {"l1": 1.0})[1]) == {
        "psnr"
    }


def test_psnr_is_that_of_the_samples():
    target = torch.zeros(2, 1, 4, 4)
    batch = {"gt": target, "weight": torch.ones(2), "count": torch.tensor(2.0)}
    assert float(objective(target + 0.1, batch, {"l2": 1.0})[1]["psnr"]) == pytest.approx(20, abs=1e-4)

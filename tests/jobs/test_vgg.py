import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs.models.vgg import VGG19Features, VGGOptions, distance
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def torchvision_features() -> nn.Sequential:
    """`torchvision.models.vgg19().features`, layer by layer, with random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for convolutions, width in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(5)
    return torchvision_features()


@pytest.fixture(scope="module")
def state(network) -> dict[str, Tensor]:
    """The first two blocks' tensors under torchvision's names, with one of the classifier."""
    tensors = {f"features.{name}": tensor for name, tensor in network[:10].state_dict().items()}
    return tensors | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture
def file(state, tmp_path) -> Path:
    save_file(state, tmp_path / "vgg19.safetensors")
    return tmp_path / "vgg19.safetensors"


def vgg19(layers: tuple[int, ...], path: object, sha256: str | None = None, **more: bool) -> VGG19Features:
    return VGG19Features(layers, VGGOptions(path=str(path), sha256=sha256), **more)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_maps_are_torchvisions_at_torchvisions_indices(network, tmp_path):
    file = tmp_path / "vgg19.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, file)
    x = torch.rand(2, 3, 32, 48)
    layers = tuple(range(37))
    for index, actual in zip(layers, vgg19(layers, file)(x), strict=True):
        torch.testing.assert_close(actual, network[: index + 1](x), rtol=1e-4, atol=1e-6, msg=str(index))


def test_the_maps_come_in_the_order_asked_for(network, file):
    x = torch.rand(1, 3, 16, 16)
    for layer, actual in zip((6, 0, 4, 1), vgg19((6, 0, 4, 1), file)(x), strict=True):
        torch.testing.assert_close(actual, network[: layer + 1](x))


def test_imagenets_normalisation_is_a_switch(network, file):
    x = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    (actual,) = vgg19((6,), file, normalise=True)(x)
    torch.testing.assert_close(actual, network[:7](((x.movedim(1, -1) - mean) / std).movedim(-1, 1)))


@pytest.mark.parametrize("zipped", [True, False])  # torchvision's own file is of 2017, before torch's zip format
def test_a_torchvision_file_is_read(state, tmp_path, zipped):
    path = tmp_path / "vgg19-dcbb9e9d.pth"
    trained = {name: nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save(trained, path, _use_new_zipfile_serialization=zipped)
    actual = vgg19((6,), path, sha256(path)).weights
    assert set(actual) == {0, 2, 5}
    for index, (weight, bias) in actual.items():
        assert torch.equal(weight, state[f"features.{index}.weight"])
        assert torch.equal(bias, state[f"features.{index}.bias"])
        assert not weight.requires_grad
        assert not bias.requires_grad


def test_a_file_is_fetched_by_its_uri(file, server, monkeypatch):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from pipeline.storage import _client, storage

    bucket = storage("s3://vgg/weights")
    bucket.client.create_bucket(Bucket="vgg")
    bucket.write("vgg19.safetensors", file.read_bytes())
    x = torch.rand(1, 3, 16, 16)
    (expected,) = vgg19((6,), file)(x)
    for uri in ("s3://vgg/weights/vgg19.safetensors", file.as_uri()):
        assert torch.equal(vgg19((6,), uri, sha256(file))(x)[0], expected)
        with pytest.raises(UserError, match="no VGG19 weights there"):
            vgg19((6,), uri.replace("vgg19.", "vgg16."))
    _client.cache_clear()


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_file_is_refused_by_its_sha256(file):
    digest = sha256(file)
    for good in (digest, digest.upper(), digest[:8], None):
        vgg19((1,), file, good)
    for other in ("0" * 64, digest[:8] + "0" * 8):
        with pytest.raises(UserError, match=digest) as error:
            vgg19((1,), file, other)
        assert "mend model.contrastive.vgg.sha256" in one_line(error)
    for malformed in (digest[:7], digest + "0", "no hex digits"):
        with pytest.raises(ValueError, match="64 hex digits, or at least the first 8 of them"):
            VGGOptions(sha256=malformed)


def test_a_file_that_is_absent_or_no_vgg19_says_what_to_do(file, state, tmp_path):
    (tmp_path / "text.safetensors").write_text("not tensors")
    (tmp_path / "text.pth").write_text("not tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(
        {"features.0.weight": nn.Conv2d(3, 64, 3)}, tmp_path / "code.pth"
    )  # would run code: weights_only refuses
    save_file(state | {"features.5.bias": torch.zeros(64)}, tmp_path / "shape.safetensors")
    whole = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name, reason in {
        "absent.safetensors": "no VGG19 weights there",
        "vgg19.onnx": "neither .safetensors nor .pth",
        "text.safetensors": "cannot be read",
        "cut.safetensors": "cannot be read",
        "text.pth": "cannot be read",
        "code.pth": "cannot be read",
        "list.pth": "no features.0.weight in it",
        "shape.safetensors": "features.5.bias is (64,), VGG19's is (128,)",
    }.items():
        with pytest.raises(UserError) as error:
            vgg19((6,), tmp_path / name)
        text = one_line(error)
        assert reason in text
        assert name in text
        assert "set model.contrastive.vgg.path to the path or URI of torchvision's vgg19-dcbb9e9d.pth" in text
    with pytest.raises(UserError, match=r"no features\.10\.weight"):
        vgg19((11,), file)  # the file ends before


@pytest.mark.parametrize("layers", [(), (37,), (-1,), (1, 50)])
def test_layers_that_vgg19_does_not_have_are_refused(layers):
    with pytest.raises(ValueError, match="layers"):
        vgg19(layers, "stand-in")


def test_a_grey_image_is_refused():
    with pytest.raises(ValueError, match="3, H, W"):
        vgg19((1,), "stand-in")(torch.rand(2, 1, 16, 16))


def test_the_stand_in_is_he_normal_and_always_the_same():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    small, large = vgg19((6,), "stand-in"), vgg19((1, 11), "stand-in")
    assert torch.equal(torch.get_rng_state(), before)
    for index, (weight, bias) in large.weights.items():
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05)
        assert abs(float(weight.mean())) < 4 * float(weight.std()) / math.sqrt(weight.numel())
        assert not bias.any()
        if index in small.weights:
            assert torch.equal(weight, small.weights[index][0])


def test_gradients_reach_the_image_and_nothing_else():
    features = vgg19((1, 6), "stand-in")
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    sum(m.sum() for m in features(x)).backward()
    assert x.grad.any()
    assert all(not t.requires_grad and t.grad is None for pair in features.weights.values() for t in pair)


def test_a_model_that_keeps_it_has_neither_parameters_nor_state_of_it():
    model = nn.Conv2d(3, 3, 1)
    names = set(model.state_dict())
    model.features = vgg19((1,), "stand-in")
    assert set(model.state_dict()) == set(dict(model.named_parameters())) == names


def test_the_precision_is_the_inputs_and_float32_at_least():
    features = vgg19((6,), "stand-in")
    x = torch.rand(2, 3, 16, 16)
    (expected,) = features(x.double())
    assert expected.dtype == torch.float64
    (actual,) = features(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
    assert features(x.bfloat16())[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(x)[0], actual)


@pytest.mark.parametrize("away", [0.1, 0.01, 0.001])
def test_under_autocast_the_gradient_near_the_target_is_that_of_float32(away):
    """In bf16 its cosine with the true one was 0.994, 0.948 and 0.430."""
    features = vgg19((1, 6, 11), "stand-in")
    J = nn.functional.interpolate(torch.rand(2, 3, 4, 4), size=32, mode="bilinear")
    noise = torch.randn(J.shape)

    def gradient(dtype: torch.dtype, *, bf16: bool) -> Tensor:
        X = (J + away * noise).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            maps = zip((1 / 16, 1 / 8, 1 / 4), features(X), features(J.to(dtype)), strict=True)
            loss = sum(omega * distance(a, b).sum() for omega, a, b in maps)
        return torch.autograd.grad(loss, X)[0].flatten()

    exact = gradient(torch.float64, bf16=False).float()
    assert float(nn.functional.cosine_similarity(gradient(torch.float32, bf16=True), exact, 0)) > 0.999


def test_the_distance_is_each_samples_mean_absolute_difference():
    a, b = torch.rand(3, 4, 5, 6), torch.rand(3, 4, 5, 6)
    expected = [float(sum((a[i] - b[i]).abs().flatten().tolist())) / 120 for i in range(3)]
    assert distance(a, b).tolist() == pytest.approx(expected)
    assert distance(a.double(), b.double()).dtype == torch.float64


def test_the_distance_of_bf16_maps_is_a_float32_mean():
    a = torch.full((1, 4, 64, 64), 1.0, dtype=torch.bfloat16)
    b = torch.full_like(a, 1.0078125)  # the next number
    with torch.autocast("cpu", torch.bfloat16):
        assert float(distance(a, b)) == 0.0078125
        b[..., 0] = 1  # 1/64 of the pixels: 0.0078125 * 63/64 has more bits than bf16
        actual = distance(a, b)
    assert actual.dtype == torch.float32
    assert float(actual) == pytest.approx(0.0078125 * 63 / 64, rel=1e-6)

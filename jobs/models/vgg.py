"""VGG19 as a fixed feature extractor (Simonyan, Zisserman; ICLR 2015), for the contrastive losses of the papers."""

import hashlib
import math
import pickle
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from jobs.models.fp32 import exact
from pipeline.config import Frozen
from pipeline.errors import UserError

# Outputs of the 3x3 convolutions; "M" is a 2x2 max-pooling. Each convolution is followed by a ReLU: with those counted,
# positions are the indices of torchvision's vgg19().features (0 conv, 1 relu, 2 conv, 3 relu, 4 pool, ..., 36 pool).
LAYOUT: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADVICE = (
    "set model.contrastive.vgg.path to the path or URI of torchvision's vgg19-dcbb9e9d.pth, or of a .safetensors file of "
    "its tensors"
)


class VGGOptions(Frozen):
    """Which weights VGG19 has; nothing is read before they are needed, and that is by training only."""

    path: str = Field(
        "store/vgg19.safetensors",
        description="a .safetensors or torchvision .pth file, as a path, file:///path or s3:// URI; or stand-in: He-normal "
        "weights, always the same, that know nothing of images and are for tests and trials",
    )
    sha256: str | None = Field(
        None, description="of that file, in hex, or the first 8 digits or more; null: not checked"
    )

    @field_validator("sha256")
    @classmethod
    def _digits(cls, sha256: str | None) -> str | None:
        if sha256 is not None and (not 8 <= len(sha256) <= 64 or set(sha256.lower()) - set("0123456789abcdef")):
            raise ValueError("64 hex digits, or at least the first 8 of them")
        return sha256


class VGG19Features:
    """The frozen feature maps of VGG19. It is no module, so no model has its weights among its parameters or in its state.

    layers: indices into torchvision's `vgg19().features`, 0..36; the network is built up to the last of them.
    options: where the weights come from. A stand-in's are drawn from a generator of their own.
    normalise: apply ImageNet's mean and standard deviation first, as the classifier was trained.
    Raises ValueError for layers that VGG19 does not have, UserError for a file that is absent, another one, or no VGG19.
    """

    def __init__(self, layers: tuple[int, ...], options: VGGOptions, *, normalise: bool = False) -> None:
        # The layer at each index: a convolution (its outputs), "R" or "M".
        steps = [step for entry in LAYOUT for step in ((entry, "R") if isinstance(entry, int) else (entry,))]
        if not layers or not all(0 <= layer < len(steps) for layer in layers):
            raise ValueError(f"VGG19 layers {layers}: one or more indices from 0 to {len(steps) - 1}")
        self.layers, self.normalise = tuple(layers), normalise
        self.steps = steps[: max(layers) + 1]
        shapes: dict[int, tuple[int, ...]] = {}  # index -> shape of the convolution's weight
        channels = 3
        for index, step in enumerate(self.steps):
            if isinstance(step, int):
                shapes[index] = (step, channels, 3, 3)
                channels = step
        if options.path == "stand-in":
            self.weights = _stand_in(shapes)
        else:
            self.weights = _load(options.path, options.sha256, shapes)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The maps after each of `layers`, in their order. x: (B, 3, H, W) in [0, 1].

        Gradients reach x and nothing else. Maps and gradients have float32, or x's float64, under autocast too: near
        convergence x differs from the target by less than bf16 can tell in maps, and the sign of the difference is the
        gradient. The weights move to x's device at the first call.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"VGG19 takes (B, 3, H, W), not {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            return self._maps(exact(x))

    def to(self, device: torch.device, dtype: torch.dtype) -> "VGG19Features":
        """Move the weights, if they are elsewhere or of another dtype; returns itself."""
        held = next(iter(self.weights.values()))[0]
        if (held.device, held.dtype) != (device, dtype):
            self.weights = {i: (w.to(device, dtype), b.to(device, dtype)) for i, (w, b) in self.weights.items()}
        return self

    def _maps(self, x: Tensor) -> list[Tensor]:
        self.to(x.device, x.dtype)
        if self.normalise:
            mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            x = (x - mean) / std
        maps: dict[int, Tensor] = {}
        for index, step in enumerate(self.steps):
            if step == "R":
                x = F.relu(x)
            elif step == "M":
                x = F.max_pool2d(x, 2)
            else:
                x = F.conv2d(x, *self.weights[index], padding=1)
            if index in self.layers:
                maps[index] = x
        return [maps[layer] for layer in self.layers]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """mean |a - b| of each sample: (B, C, H, W) twice -> (B,), in float32 (float64 for float64) whatever autocast does.

    The contrastive losses divide by such a mean, which can be tiny.
    """
    with torch.autocast(a.device.type, enabled=False):
        return (exact(a) - exact(b)).abs().mean((1, 2, 3))


def _stand_in(shapes: dict[int, tuple[int, ...]]) -> dict[int, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(19)
    return {
        index: (torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:])), torch.zeros(shape[0]))
        for index, shape in shapes.items()
    }


def _load(uri: str, sha256: str | None, shapes: dict[int, tuple[int, ...]]) -> dict[int, tuple[Tensor, Tensor]]:
    """index -> (weight, bias) of these shapes, float32, from a file."""
    from pipeline.storage import storage

    folder, _, name = uri.rpartition("/")
    suffix = Path(name).suffix
    if suffix not in (".safetensors", ".pth"):
        raise UserError(f"vgg {uri!r}: neither .safetensors nor .pth; {ADVICE}")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(uri)
        if "://" in uri:
            path = Path(temporary, name)
            try:
                storage(folder).download(name, path)
            except FileNotFoundError:
                raise UserError(f"{uri}: no VGG19 weights there; {ADVICE}") from None
        elif not path.is_file():
            raise UserError(f"{uri}: no VGG19 weights there; {ADVICE}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 is not None and not digest.startswith(sha256.lower()):
            raise UserError(
                f"{uri}: its sha256 is {digest}, not {sha256}; fetch the file again, or mend model.contrastive.vgg.sha256"
            )
        tensors = _read(path, suffix, uri, [f"features.{i}.{part}" for i in shapes for part in ("weight", "bias")])
    weights = {}
    for index, shape in shapes.items():
        pair = []
        for part, expected in (("weight", shape), ("bias", shape[:1])):
            key = f"features.{index}.{part}"
            tensor = tensors.get(key)
            if tensor is None:
                raise UserError(f"{uri}: no {key} in it, so it is no VGG19; {ADVICE}")
            if tuple(tensor.shape) != expected:
                raise UserError(f"{uri}: {key} is {tuple(tensor.shape)}, VGG19's is {expected}; {ADVICE}")
            pair.append(tensor.detach().to("cpu", torch.float32, copy=True))
        weights[index] = (pair[0], pair[1])
    return weights


def _read(path: Path, suffix: str, uri: str, keys: list[str]) -> dict[str, Tensor]:
    """The tensors of a file that have one of these keys."""
    from safetensors import SafetensorError, safe_open

    try:
        if suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                return {key: file.get_tensor(key) for key in keys if key in present}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{uri}: cannot be read as {suffix} ({type(error).__name__}); {ADVICE}") from None
    tensors = state if isinstance(state, dict) else {}
    return {key: tensors[key] for key in keys if isinstance(tensors.get(key), Tensor)}

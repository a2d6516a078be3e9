"""How the weights move: optimisers in groups of parameters, the clipping of gradients, the average of the weights."""

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from jobs.models import Network, SparingDecay
from jobs.recipe import BETAS, Ema, Optimisation
from jobs.training.compiler import spared
from pipeline.errors import UserError, nearest

PACKAGES = {"lion": ("lion_pytorch", "Lion"), "schedule-free-adamw": ("schedulefree", "AdamWScheduleFree")}
INSTALL = "install it with `pip install 'memoir[optimisers]'`"
MOVING = {"lr", "k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"}  # numbers of a group that change in training
SMALLEST_NORM = 1e-3  # of a weight, in adaptive clipping


class Optimiser:
    """The optimisers of a model's parameters: one, or with Muon two of which each has its own.

    parts: torch's optimisers. Their groups have `relative_lr`, what the learning rate is multiplied by.
    """

    @spared()
    def __init__(self, model: Network, o: Optimisation) -> None:
        """What does not move needs no gradient from now on.

        Raises UserError if the package of the optimiser is not installed, and for names in `lr_of` that the model has not.
        """
        self.o = o
        rates = _rates(model, o)
        for name, p in model.named_parameters():
            if rates[name] == 0:
                p.requires_grad_(False)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        matrices = _matrices(model, named) if o.optimiser == "muon" else set()
        others = {name: p for name, p in named.items() if name not in matrices}
        spared = _spared(model, o)
        biases = {id(m.bias) for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
        groups = _groups(others, o, biases, spared, rates)
        self.parts: list[torch.optim.Optimizer] = []
        if groups or not matrices:
            self.parts.append(_build(groups, o))
        if matrices:
            hidden = {name: p for name, p in named.items() if name in matrices}
            self.parts.append(ConvMuon(_groups(hidden, o, biases, spared, rates), lr=o.lr, momentum=o.momentum))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """All groups of parameters."""
        return [group for part in self.parts for group in part.param_groups]

    @spared()
    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()

    @spared()
    def step(self, lr: float, scaler: torch.amp.GradScaler) -> None:
        """Move the weights at this learning rate. scaler: of fp16's gradients, which are unscaled by now."""
        for group in self.groups:
            group["lr"] = lr * group["relative_lr"]
        for part in self.parts:
            scaler.step(part)
        scaler.update()

    def clip(self, lr: float) -> Tensor:
        """Clip the gradients as the recipe says; returns their norm before."""
        o, parameters = self.o, self.parameters
        if o.clip is None or o.clip_by == "norm":
            limit = math.inf if o.clip is None else o.clip / lr if o.clip_over_lr else o.clip
            return nn.utils.clip_grad_norm_(parameters, limit)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if o.clip_by == "value":
            nn.utils.clip_grad_value_(parameters, o.clip)
        else:
            adaptive_clip(parameters, o.clip)
        return norm

    def evaluated(self, model: Network) -> dict[str, Tensor] | None:
        """The weights to evaluate by their names, where those in training are others: schedule-free's x beside its y."""
        if self.o.optimiser != "schedule-free-adamw":
            return None
        (part,) = self.parts
        found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        beta = part.param_groups[0]["betas"][0]
        for name, p in model.named_parameters():
            if "z" in part.state.get(p, {}):
                found[name] = p.detach().lerp(part.state[p]["z"], 1 - 1 / beta)
        return found

    @spared()
    def save(self, scaler: torch.amp.GradScaler) -> bytes:
        """The state as a file of tensors and numbers."""
        file = io.BytesIO()
        torch.save({"parts": [part.state_dict() for part in self.parts], "scaler": scaler.state_dict()}, file)
        return file.getvalue()

    @spared()
    def load(self, path: Path, scaler: torch.amp.GradScaler, device: torch.device) -> None:
        """Load what `save` wrote. Raises UserError if it is not of this optimiser and this model's parameters."""
        refusal = UserError(f"{path}: not a state of this recipe's optimiser; train under another name")
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise refusal  # as torch does not write it: a few bytes may stand for gigabytes
        saved = torch.load(path, weights_only=True, map_location=device)
        for theirs, part in zip(saved["parts"], self.parts, strict=True):
            if not _fits(theirs, part):
                raise refusal
        for theirs, part in zip(saved["parts"], self.parts, strict=True):
            part.load_state_dict(theirs)
        held = saved["scaler"]
        if set(held) != set(scaler.state_dict()) or not all(_number(value) for value in held.values()):
            raise refusal
        scaler.load_state_dict(held)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


STATE = {  # what each optimiser has of a parameter, once it has moved it
    "SGD": {"momentum_buffer"},
    "Adam": {"exp_avg", "exp_avg_sq", "step"},
    "AdamW": {"exp_avg", "exp_avg_sq", "step"},
    "ConvMuon": {"momentum_buffer"},
    "Lion": {"exp_avg"},
    "AdamWScheduleFree": {"z", "exp_avg_sq"},
}


def _fits(saved: dict[str, Any], part: torch.optim.Optimizer) -> bool:
    """Whether a state is one of this optimiser."""

    def of(value: Any, parameter: Tensor) -> bool:
        if not isinstance(value, Tensor):
            return value is None
        dense = value.untyped_storage().nbytes() >= value.nbytes  # no view that repeats a number a billion times
        return value.shape in (parameter.shape, ()) and dense and value.is_floating_point()

    for theirs, ours in zip(saved["param_groups"], part.state_dict()["param_groups"], strict=True):
        if any(theirs[name] != value for name, value in ours.items() if name not in MOVING and name in theirs):
            return False
        if not all(_number(theirs[name]) for name in MOVING & ours.keys() & theirs.keys()):
            return False
    parameters = [p for group in part.param_groups for p in group["params"]]
    for number, values in saved["state"].items():
        parameter = parameters[number]
        names = STATE[type(part).__name__]
        if set(values) not in (names, set()) or not all(of(value, parameter) for value in values.values()):
            return False
    return True


class ConvMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), for the weights of convolutions as matrices of an output channel a row.

    It is torch's, computed in float32: in bfloat16, as torch has it, the orthogonalisation takes a quarter of MemNet's step on
    a CPU without that arithmetic. The step has the root mean square of AdamW's (Moonshot's factor, 0.2 sqrt(max(rows,
    columns))), so that both take one learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        self.weights = [p for group in groups for p in group["params"]]
        flat = [group | {"params": [_matrix(p.detach()) for p in group["params"]]} for group in groups]
        super().__init__(flat, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See torch.optim.Optimizer."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See torch.optim.Optimizer; there is no closure."""
        weights = iter(self.weights)
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # matrices and their steps, by shape
            for matrix in group["params"]:
                weight = next(weights)
                if weight.grad is None:
                    continue
                grad = _matrix(weight.grad.to(memory_format=_format(weight)))
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
                average = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
                alike.setdefault(matrix.shape, []).append((matrix, grad.lerp(average, group["momentum"])))
            for shape, pairs in alike.items():
                steps = orthogonal(torch.stack([step for _, step in pairs]))
                for (matrix, _), step in zip(pairs, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(step, alpha=-0.2 * math.sqrt(max(shape)) * group["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices (n, rows, columns), float32, with the singular vectors of the given ones.

    Five Newton-Schulz iterations with Jordan's coefficients, which leave the singular values between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _format(weight: Tensor) -> torch.memory_format:
    plain = weight.dim() < 4 or weight.is_contiguous()
    return torch.contiguous_format if plain else torch.channels_last


def _matrix(weight: Tensor) -> Tensor:
    """A view of a weight, an output channel a row. The order of the columns is that of the memory; Muon does not depend on it."""
    if _format(weight) is torch.channels_last:
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(len(weight), -1)


def _matrices(model: Network, named: Mapping[str, Tensor]) -> set[str]:
    """The weights that Muon is for: of convolutions and linear layers between feature maps.

    The first and the last layers, between features and images, and all that is no matrix are AdamW's.
    """
    layers = [
        (name, m)
        for name, m in cast(nn.Module, model).named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    return {
        f"{name}.weight"
        for name, m in layers
        if f"{name}.weight" in named and min(m.weight.shape[:2]) > model.in_channels
    }


def _spared(model: Network, o: Optimisation) -> set[str]:
    """The parameters without weight decay: what the model says, and the recipe's rules."""
    spared = set(model.no_decay() if isinstance(model, SparingDecay) else ())
    for name, _ in model.named_parameters():
        module, _, last = name.rpartition(".")
        kind = type(cast(nn.Module, model).get_submodule(module)).__name__
        rules = {"bias": last == "bias", "norm": "Norm" in kind, "memory": "memory" in name.split(".")}
        if any(rules[rule] for rule in o.no_decay):
            spared.add(name)
    return spared


def _rates(model: Network, o: Optimisation) -> dict[str, float]:
    """The learning rate of each parameter relative to the recipe's: of several entries of `lr_of` the longest is its own."""
    names = [name for name, _ in model.named_parameters()]
    found = dict.fromkeys(names, 1.0)
    for part in sorted(o.lr_of, key=len):
        there = [name for name in names if name == part or name.startswith(f"{part}.")]
        if not there:
            parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
            raise UserError(f"optimisation.lr_of: the model has no {part}; {nearest(part, sorted(parts))}")
        found |= dict.fromkeys(there, o.lr_of[part])
    if not any(found.values()):
        raise UserError("optimisation.lr_of: no parameter of the model moves")
    return found


def _groups(
    named: Mapping[str, Tensor], o: Optimisation, biases: set[int], spared: set[str], rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Groups of parameters: convolution biases, when their rate differs, those without weight decay, and those of other rates."""
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        bias, decay = id(parameter) in biases, name not in spared
        relative = {
            "relative_lr": rates[name] * (o.bias_lr if bias else 1.0),
            "weight_decay": o.weight_decay if decay else 0.0,
        }
        groups.setdefault((bias, not decay, rates[name]), {"params": [], **relative})["params"].append(parameter)
    return [group for _, group in sorted(groups.items(), key=lambda item: item[0])]


def _build(groups: list[dict[str, Any]], o: Optimisation) -> torch.optim.Optimizer:
    if o.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
    betas = o.betas or (BETAS["lion"] if o.optimiser == "lion" else (o.momentum, 0.999))
    if o.optimiser in PACKAGES:
        module, name = PACKAGES[o.optimiser]
        try:
            kind: Callable[..., torch.optim.Optimizer] = getattr(import_module(module), name)
        except ImportError:
            raise UserError(f"optimisation.optimiser: {o.optimiser} is not installed; {INSTALL}") from None
        built = kind(groups, lr=o.lr, betas=betas)
        if o.optimiser == "schedule-free-adamw":
            cast(Any, built).train()
        return built
    # fused: one pass over the weights, and a square root that does not depend on the make of the CPU
    kind = torch.optim.Adam if o.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=o.lr, betas=betas, fused=True)


def adaptive_clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale each output channel's gradient to at most `limit` times its weight's norm (Brock et al. 2021, eq. 3)."""
    for p in parameters:
        if p.grad is None:
            continue
        over = tuple(range(1, p.dim())) or None
        weight, grad = (torch.linalg.vector_norm(x, dim=over, keepdim=over is not None) for x in (p.detach(), p.grad))
        most = limit * weight.clamp_min(SMALLEST_NORM)
        p.grad.mul_((most / grad.clamp_min(1e-6)).clamp_max(1))


class Average:
    """An exponential moving average of a model's weights and buffers, in their own float32.

    weights: by name; the first are those of the untrained model.
    """

    def __init__(self, model: Network, ema: Ema) -> None:
        """model: on its device; it is looked at from now on."""
        assert isinstance(model, nn.Module)
        self.ema = ema
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        # Where they are: to ask for the state_dict at each step takes ten times as long as to average it.
        places = [name.rpartition(".") for name in self.weights]
        self._places = [(model.get_submodule(module), name) for module, _, name in places]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimiser step `step` (from 1) in, if it is one of those that are averaged."""
        if step % self.ema.every:
            return
        n = step // self.ema.every
        decay = min(self.ema.decay, (1 + n) / (10 + n)) if self.ema.warmup else self.ema.decay
        newest: list[Tensor] = [getattr(module, name) for module, name in self._places]
        pairs = list(zip(self.weights.values(), newest, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floating], [tensor for _, tensor in floating], 1 - decay)
        for average, tensor in pairs:
            if not average.is_floating_point():
                average.copy_(tensor)


def learning_rate(o: Optimisation, step: int, total: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step `step` (from 0): a pure function, so a resumed schedule cannot drift."""
    warm = o.warmup.in_steps(steps_per_epoch) if o.warmup is not None else 0
    if o.schedule == "one-cycle" and step < warm:  # Smith and Topin 2018, with half a cosine up
        return o.lr * (1 - 0.96 * 0.5 * (1 + math.cos(math.pi * step / warm)))
    if step < warm:
        return o.lr * (step + 1) / (warm + 1)
    if o.schedule == "constant":
        return o.lr
    done = min(step - warm, total - warm) / max(total - warm, 1)
    if o.schedule == "linear":
        return o.lr + (o.lr_end - o.lr) * done
    if o.schedule == "cosine-restarts":  # Loshchilov and Hutter 2017, eq. 5
        assert o.period is not None
        into, period = step - warm, o.period.in_steps(steps_per_epoch)
        while into >= period:
            into, period = into - period, round(period * o.period_factor)
        done = into / period
    if o.schedule in ("cosine", "cosine-restarts", "one-cycle"):
        return o.lr_end + (o.lr - o.lr_end) * 0.5 * (1 + math.cos(math.pi * done))
    assert o.lr_step is not None
    return o.lr * o.gamma ** (step // o.lr_step.in_steps(steps_per_epoch))

"""The tensors of a checkpoint file by name, whatever tool wrote it, without running code that stands in it."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from jobs.importing.caffemodel import read_caffemodel
from pipeline.errors import UserError, some
from pipeline.storage import storage

TORCH = (".pth", ".pt", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *TORCH, ".caffemodel")
# Where checkpoints have their weights, the averaged ones first: those are what is evaluated where there are both.
NESTED = ("params_ema", "params", "state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
BESIDE = ("memory_items",)  # what a release keeps beside the dictionary of its network
DEEP = 3  # dictionaries in each other that are looked through; a file may hold one that holds itself
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and DataParallel, and of torch.compile
SHARED = 8  # times a file's bytes its tensors may have: those that share their numbers count each


@contextmanager
def at_hand(source: str) -> Iterator[Path]:
    """A checkpoint file on this machine, by its path or its URI. Raises UserError for one that is not there."""
    if not source.lower().endswith(SUFFIXES):
        raise UserError(
            f"{source}: not a checkpoint file that memoir reads; its name ends in one of {', '.join(SUFFIXES)}"
        )
    if "://" not in source:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"{source}: {'a folder' if path.is_dir() else 'not found'}; give the checkpoint's file")
        yield path
        return
    place, _, name = source.rpartition("/")
    with TemporaryDirectory(prefix="memoir-") as folder:
        path = Path(folder, f"foreign{Path(name).suffix}")
        try:
            storage(place).download(name, path)
        except FileNotFoundError:
            raise UserError(f"{source}: not found; give the URI of the checkpoint's file") from None
        yield path


def read_tensors(path: Path, shown: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors, a .caffemodel or a file of torch.save, on the CPU, by name.

    Of nested dictionaries the one that has the weights (see NESTED) is taken, and prefixes that all names have are stripped.
    shown: the file's name in messages. Raises UserError for a file that is damaged, has no tensors, or would have to run code
    to be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".caffemodel":
        return read_caffemodel(path, shown)
    found = _safetensors(path, shown) if suffix == ".safetensors" else _of_torch(path, shown)
    tensors = _weights(found, shown)
    if sum(tensor.nbytes for tensor in tensors.values()) > SHARED * path.stat().st_size:
        raise UserError(
            f"{shown}: its tensors stand for more than {SHARED} times the bytes of the file; it is not read"
        )
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _safetensors(path: Path, shown: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{shown}: not a safetensors file ({error})") from None


def _of_torch(path: Path, shown: str) -> Any:
    """What a file of torch.save holds, of the types that torch reads without running code."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                    raise UserError(f"{shown}: compressed, as torch.save writes none; save it again with torch.save")
        # A namespace of arguments is but names and values, and scripts save theirs with the weights.
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with allowed, warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(shown, error)) from None
    except Exception as error:  # torch may raise anything for a file that it has not written
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{shown}: damaged, cut off, or not a file of torch.save ({first}); download it again"
        ) from None


def _refusal(shown: str, error: pickle.UnpicklingError) -> str:
    """Why a file is not unpickled: what it would call, if it is one of torch.save."""
    called = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not called:
        return f"{shown}: damaged, or not a file of torch.save; download it again"
    return (
        f"{shown}: reading it would run code that it names ({called[1]}), so it is not read; who trusts it saves its tensors "
        "alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
    )


def _weights(found: Any, shown: str) -> dict[str, Tensor]:
    """The dictionary of tensors in what a file holds, once each of them is known to be plain."""
    beside: dict[Any, Any] = {}
    for _ in range(DEEP):
        inner = [found[key] for key in NESTED if isinstance(found, dict) and _deep(found.get(key))]
        beside |= {key: found[key] for key in BESIDE if inner and key in found}
        found = inner[0] if inner else found
    if not _has_tensors(found):
        parts = [key for key, value in found.items() if _has_tensors(value)] if isinstance(found, dict) else []
        if len(parts) != 1:
            there = f"; its parts with tensors are {some([str(key) for key in parts])}, save one of them alone"
            raise UserError(f"{shown}: no dictionary of tensors in it{there if parts else ''}")
        found = found[parts[0]]
    tensors = {name: value for name, value in (found | beside).items() if isinstance(value, Tensor)}
    if not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{shown}: its tensors have no names")
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(f"{shown}: {name} is no plain tensor (quantised, sparse, or without numbers of its own)")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(each, Tensor) for each in value.values())


def _deep(value: Any, depth: int = DEEP) -> bool:
    """Whether a dictionary, or one that it holds under a name of NESTED, has tensors."""
    if not isinstance(value, dict) or not depth:
        return False
    return _has_tensors(value) or any(_deep(value.get(key), depth - 1) for key in NESTED)

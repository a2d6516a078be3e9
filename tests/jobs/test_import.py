"""Weights from outside: which files are read, what is refused, and the version that is made of them."""

import collections
import json
import os
import re
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import blob, caffemodel, field, varint
from hostile import EXAMPLES, one_line
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_import_memnet import release

from jobs.importing.read import at_hand, read_tensors
from jobs.importing.releases import RELEASES, releases
from jobs.options import MODELS
from jobs.publishing.publish import models
from jobs.recipe import build_model, read_recipe
from jobs.restoring.checkpoint import load_model
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.storage import storage

RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 12}
optimisation: {optimiser: adam, lr: 0.00001, schedule: cosine, length: {steps: 6}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: photos}]}
"""
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with a recipe, a Caffe model of its network, and pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "params.yaml").write_text("store: store\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    (tmp_path / "M2R1.caffemodel").write_bytes(caffemodel(release(2, 1, 4)))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 1), np.uint8)
    write_image(tmp_path / "photos/one.png", pixels)
    return tmp_path


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in found)


# reading


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize(
    "held",
    [
        WEIGHTS,
        wrapped("module."),
        wrapped("module._orig_mod.module."),
        {"epoch": 3, "state_dict": wrapped("module."), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        {"params": wrapped(""), "iter": 5},
        {"params": {name: tensor + 1 for name, tensor in WEIGHTS.items()}, "params_ema": WEIGHTS},
        {"model": {"state_dict": WEIGHTS}, "lr": torch.ones(1)},
        {"generator": WEIGHTS, "arguments": {"depth": 3}},
        {"epoch": 4, "note": "best", **WEIGHTS},
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_the_weights_are_found_wherever_a_checkpoint_has_them(held, old, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(held, path, _use_new_zipfile_serialization=not old)
    assert same(read_tensors(path, "net.pth"))


def test_safetensors_are_read(tmp_path):
    save_file(wrapped("module."), tmp_path / "net.safetensors")
    assert same(read_tensors(tmp_path / "net.safetensors", "net"))


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_would_run_code_is_not_read(old, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for extra, named in ((Evil(), "posix.mkdir"), (collections.UserDict(lr=1), "collections.UserDict")):
        torch.save({"state_dict": WEIGHTS, "args": extra}, tmp_path / "net.pth", _use_new_zipfile_serialization=not old)
        with pytest.raises(
            UserError, match=rf"net.pth: reading it would run code that it names \({named}\).*weights_only=False"
        ):
            read_tensors(tmp_path / "net.pth", "net.pth")
    assert not (tmp_path / "ran").exists()


def test_what_has_no_plain_tensors_is_refused_in_one_line(tmp_path):
    def said(held: object) -> str:
        torch.save(held, tmp_path / "net.pt")
        with pytest.raises(UserError) as error:
            read_tensors(tmp_path / "net.pt", "net.pt")
        return str(error.value)

    assert "no dictionary of tensors" in said([1, 2])
    assert "no dictionary of tensors" in said({"epoch": 1})
    round_and_round: dict = {}
    round_and_round["model"] = round_and_round
    assert "no dictionary of tensors" in said(round_and_round)
    round_and_round["w"] = torch.ones(1).to_sparse()
    assert "w is no plain tensor" in said(round_and_round)
    assert "its parts with tensors are net_g, net_d, save one" in said({"net_g": WEIGHTS, "net_d": WEIGHTS})
    assert "have no names" in said({0: torch.ones(1)})
    assert "a is no plain tensor" in said({"a": torch.ones(1).expand(2**30)})  # 4 bytes that stand for 4 GiB
    assert "a is no plain tensor" in said({"a": torch.eye(3).to_sparse()})
    assert "a is no plain tensor" in said({"a": torch.ones(1, device="meta")})
    shared = torch.ones(1000)
    assert "more than 8 times the bytes" in said({f"t{i}": shared for i in range(200)})
    for data in (b"", b"PK\x03\x04 cut off", b"hello world", b"\x80\x02}q\x00."):
        (tmp_path / "net.pt").write_bytes(data)
        with pytest.raises(UserError, match=r"net.pt: (damaged|no dictionary)"):
            read_tensors(tmp_path / "net.pt", "net.pt")
    (tmp_path / "net.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_tensors(tmp_path / "net.safetensors", "net")


def test_a_file_comes_by_path_or_uri(tmp_path, s3):
    storage(s3).write("weights/net.pth", b"bytes")
    (tmp_path / "net.pth").write_bytes(b"bytes")
    for source in (str(tmp_path / "net.pth"), f"file://{tmp_path}/net.pth", f"{s3}/weights/net.pth"):
        with at_hand(source) as path:
            assert path.read_bytes() == b"bytes"
    for source, said in (
        ("none.pth", "none.pth: not found"),
        (f"{s3}/none.pth", "none.pth: not found"),
        ("net.onnx", "not a checkpoint file that memoir reads; its name ends in one of .safetensors"),
    ):
        with pytest.raises(UserError, match=said), at_hand(source):
            pass


# Caffe


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    how=st.fixed_dictionaries(dict.fromkeys(("old", "doubles", "packed", "v1"), st.booleans())),
)
@EXAMPLES
def test_a_caffemodel_gives_back_what_was_written(shapes, how, tmp_path):
    rng = np.random.default_rng(0)
    kind = np.float64 if how["doubles"] else np.float32
    layers = [("empty", []), *((f"layer{i}", [rng.normal(size=s).astype(kind)]) for i, s in enumerate(shapes))]
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(layers, **how))
    found = read_tensors(tmp_path / "net.caffemodel", "net")
    assert list(found) == [f"layer{i}.0" for i in range(len(shapes))]
    for (_, (values,)), tensor in zip(layers[1:], found.values(), strict=True):
        if how["old"]:
            values = values.reshape([1] * (4 - values.ndim) + list(values.shape))
        assert tensor.dtype == (torch.float64 if how["doubles"] else torch.float32)
        np.testing.assert_array_equal(tensor.numpy(), values)


LAYER = caffemodel([("one", [np.ones((2, 3), np.float32)])])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no layer in it has weights"),
        (field(100, field(1, b"one")), "no layer in it has weights"),
        (b"\xff" * 40, "more than 64 bits"),
        (varint(100 << 3 | 2) + varint(2**60) + b"x", "bytes announced"),
        (varint(3 << 3 | 3), "wire type 3"),
        (b"\x02\x01x", "a field without a number"),
        (LAYER + LAYER, "two layers are called one"),
        (field(100, field(1, b"\xff") + field(7, blob(np.ones(1)))), "no text"),
        (field(100, field(7, field(7, field(1, varint(2**62) * 4)) + field(5, b"\0" * 4))), "a blob of shape"),
        (field(100, field(7, field(7, field(1, varint(0) + varint(2**63))))), "a blob of shape"),
        (field(100, field(7, field(7, field(1, varint(1) * 1000)) + field(5, b"\0" * 4))), "more than 32 axes"),
        (field(100, field(7, field(7, field(1, varint(1))) + field(5, b"\0" * 3))), "a blob of shape 1 with 0"),
    ],
)
def test_a_damaged_or_hostile_caffemodel_is_one_line(data, said, tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_tensors(tmp_path / "net.caffemodel", "net")


@given(cut=st.integers(0, len(LAYER) - 1), at=st.integers(0, len(LAYER) - 1), byte=st.integers(0, 255))
@EXAMPLES
def test_no_byte_of_a_caffemodel_makes_a_traceback(cut, at, byte, tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(LAYER[:cut])
    assert (
        cut < 8 or one_line(lambda: read_tensors(path, "net")) is not None
    )  # before it, there is the net's name alone
    path.write_bytes(LAYER[:at] + bytes([byte]) + LAYER[at + 1 :])
    one_line(lambda: read_tensors(path, "net"))


# releases and versions


def test_each_release_keeps_the_contract():
    assert set(releases()) == set(RELEASES)
    for name, module in releases().items():
        assert module.NETWORK in MODELS, name
        assert not module.fits(["one.weight", "two.bias"]), name


def test_a_published_checkpoint_becomes_a_version_that_restores(project, cli):
    stated = ["--licence", "research only", "--source", "https://example.org/memnet"]
    code, out, _ = cli("import", "M2R1.caffemodel", "--as", "tiny.yaml", *stated)
    assert code == 0
    (held,) = models("store")
    assert out.startswith(f"{held['uri']}: imported, of release memnet ({held['sha256'][:16]})")
    folder = Path(held["uri"])
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    told = json.loads((folder / "provenance.json").read_text())
    sha256 = subprocess.run(["sha256sum", "M2R1.caffemodel"], capture_output=True, text=True, check=True).stdout[:64]
    assert (
        told["imported"]
        == held["lineage"]["imported"]
        == {
            "file": "M2R1.caffemodel",
            "sha256": sha256,
            "location": "M2R1.caffemodel",
            "release": "memnet",
            "licence": "research only",
            "source": "https://example.org/memnet",
        }
    )
    card = (folder / "card.md").read_text()
    for part in ("imported from `M2R1.caffemodel`", sha256, "research only", "https://example.org", "Not measured"):
        assert part in card
    assert "after 0 steps" not in card
    trained = load_model(held["uri"], Path("runs"))
    assert trained.model.ensemble.tolist() == pytest.approx(
        [float(blobs[0][0]) for name, blobs in release(2, 1, 4) if name.startswith("weight_output")]
    )
    for reference in (held["uri"], "store/models/tiny", "store/models/tiny@latest"):
        assert cli("restore", "photos/one.png", "out.png", "--model", reference)[0] == 0
    code, out, _ = cli("evaluate", "--model", held["uri"], "--benchmark", "jpeg-q10", "--data", "photos", "--json")
    assert code == 0
    assert json.loads(out)["psnr"] > 0
    code, out, _ = cli("models", "store")
    assert (code, out) == (0, f"tiny/{held['version']}  latest  imported from M2R1.caffemodel\n")
    code, out, _ = cli("models", "store", "--lineage", f"tiny/{held['version']}")
    assert f"tiny/{held['version']}  imported licence: research only" in out
    assert f"tiny/{held['version']}  data: not recorded" in out
    code, _, err = cli("reproduce", f"tiny/{held['version']}")
    assert (code, "was imported" in err) == (1, True)


def test_what_is_there_stays_the_latest_and_is_not_written_twice(project, cli):
    cli("import", "M2R1.caffemodel", "--as", "tiny.yaml")
    (first,) = models("store")
    assert "already there" in cli("import", "M2R1.caffemodel", "--as", "tiny.yaml")[1]
    Path("M2R1.caffemodel").rename("again.caffemodel")
    code, out, _ = cli("import", "again.caffemodel", "--as", "tiny.yaml")
    assert code == 0
    assert "not the latest of its recipe; `memoir promote tiny/" in out
    assert {each["version"]: each["latest"] for each in models("store")}[first["version"]]
    assert len(models("store")) == 2


def test_overrides_make_a_variant_and_our_own_names_come_back_as_they_are(project, cli):
    options = ["--as", "tiny.yaml", "--set", "model.memory_blocks=3"]
    network = build_model(read_recipe("tiny.yaml", ["model.memory_blocks=3"]).model)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, "ours.safetensors")
    code, _, err = cli("import", "ours.safetensors", *options)
    assert (code, err) == (0, "")
    (held,) = models("store")
    assert held["recipe"] == "tiny+model.memory_blocks=3"
    assert held["lineage"]["imported"]["release"] == "memoir"
    found = load_file(f"{held['uri']}/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ("none.pth", [], "none.pth: not found; give the checkpoint's file"),
        ("M2R1.caffemodel", ["--set", "model.recursions=2"], "M2R1.caffemodel: a MemNet with other options .*--set model.recursions=1"),
        ("M2R1.caffemodel", ["--as", "drcnet-derain"], "weights of memnet, and the recipe's network is drcnet; recipes of memnet: memnet-"),
        ("strange.pth", [], r"strange.pth: its tensors \(a.bias, a.weight\) are of no release that memoir knows \(.*memnet"),
        ("nan.caffemodel", [], "nan.caffemodel: recon.bias has numbers that are not finite"),
        ("ours.pth", ["--set", "model.channels=8"], "another shape than the recipe's network has, e.g. .*--set model.OPTION"),
        ("M2R1.caffemodel", ["--licence", "a\nb"], "--licence: expected one line"),
        ("M2R1.caffemodel", ["--as", "tinny.yaml"], "unknown recipe"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(file, options, said, project, cli):
    torch.save(WEIGHTS, "strange.pth")
    layers = release(2, 1, 4)
    for name, blobs in layers:
        if name.startswith("conv_end"):
            blobs[1][:] = np.nan
    Path("nan.caffemodel").write_bytes(caffemodel(layers))
    torch.save(build_model(read_recipe("tiny.yaml").model).state_dict(), "ours.pth")
    code, out, err = cli("import", file, "--as", "tiny.yaml", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search(said, err), err
    assert not Path("store").exists()

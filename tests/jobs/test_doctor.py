import os

import pytest
from conftest import photograph

from jobs.doctor import _cluster, _found, _precision
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.images import write_image
from pipeline.raw.manifest import Source
from pipeline.storage import storage


def test_a_root_in_a_bucket_is_looked_at_there(s3):
    source = Source(layout="folder", root=f"{s3}/photos")
    with pytest.raises(UserError, match=r"photos: nothing there; check the name, or upload the data set$"):
        _found("photos", source)
    for i in range(3):
        storage(source.root).write(f"train/{i}.png", b"")
    assert _found("photos", source) == "3 objects in the bucket, which `memoir ingest` will copy and look through"


def test_a_root_on_this_machine_is_looked_through_by_its_layout(tmp_path):
    for i in range(2):
        write_image(tmp_path / f"train/{i}.png", photograph(i, 16, 16))
    assert _found("photos", Source(layout="folder", root=str(tmp_path))) == "2 files, 0 of them rejected by the layout"


def test_the_cpus_are_those_of_this_process_and_a_long_folder_is_a_failure(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 91)
    found = _cluster()
    assert found.ok
    assert f"embedded, {available_cpus()} CPUs, its files in /tmp/ray-{os.getuid()}" in found.detail
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 91)
    found = _cluster()
    assert not found.ok
    assert "name a shorter folder" in found.detail


def test_the_precision_is_what_auto_takes_here(monkeypatch):
    for native, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("jobs.arithmetic.native_bf16", lambda device, native=native: native)
        assert f"auto is {precision} on this machine's " in _precision().detail

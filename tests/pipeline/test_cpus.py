import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cpus
from pipeline.cpus import available_cpus, available_memory, cpu_name

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def many_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def write(folder, **files):
    """Files of a control group: contents by name, with _ for the dot after cpu."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(text)


def test_a_process_that_is_bound_to_one_cpu_has_one():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from pipeline.cpus import available_cpus; print(available_cpus())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_without_limits_it_is_the_affinity(tmp_path):
    write(tmp_path / "cgroup", cpu_max="max 100000\n")
    (tmp_path / "own").write_text("0::/\n")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "own") == HERE
    assert available_cpus(tmp_path / "none", tmp_path / "none") == HERE


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_a_quota_of_version_2_counts_in_whole_cpus(tmp_path, quota, cpus):
    write(tmp_path / "cgroup", cpu_max=f"{quota}\n")
    (tmp_path / "own").write_text("0::/\n")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "own") == cpus


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_counts_in_whole_cpus(tmp_path, mount):
    write(tmp_path / "cgroup" / mount, cpu_cfs_quota_us="300000\n", cpu_cfs_period_us="100000\n")
    (tmp_path / "own").write_text(
        f"9:memory:/docker/a:b\n3:{mount}:/docker/a:b\n"
    )  # names a group that is not seen here
    assert available_cpus(tmp_path / "cgroup", tmp_path / "own") == 3
    write(tmp_path / "cgroup" / mount, cpu_cfs_quota_us="-1\n")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "own") == 64


@pytest.mark.usefixtures("many_cpus")
@given(st.lists(st.one_of(st.none(), st.integers(1, 100)), min_size=1, max_size=5))
def test_the_narrowest_of_nested_groups_counts(tmp_path_factory, limits):
    root = tmp_path_factory.mktemp("nested")
    folder = root / "cgroup"
    for depth, limit in enumerate(limits):
        folder = folder / f"level{depth}" if depth else folder
        write(folder, cpu_max=f"{'max' if limit is None else limit * 100_000} 100000\n")
    (root / "own").write_text(f"0::/{folder.relative_to(root / 'cgroup')}\n")
    expected = min([64, *(limit for limit in limits if limit is not None)])
    assert available_cpus(root / "cgroup", root / "own") == expected


def test_the_cpus_name_is_the_kernels_and_else_that_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_name() == platform.processor() or cpu_name() == platform.machine()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU: 2 GHz\nmodel name\t: another\n")
    assert cpu_name() == "A CPU: 2 GHz"


def test_memory_is_what_is_free_and_no_more_than_a_control_group_has(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**21))
    none = tmp_path / "none"
    assert available_memory(none, none) == 2**21
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/memory.max").write_text("max\n")
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") == 2**21
    (tmp_path / "cgroup/memory.max").write_text("1000000\n")
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") == 1_000_000
    (tmp_path / "cgroup/memory").mkdir()
    (tmp_path / "cgroup/memory/memory.limit_in_bytes").write_text("500000\n")
    (tmp_path / "own").write_text("4:memory:/docker/a\n")
    assert available_memory(tmp_path / "cgroup", tmp_path / "own") == 500_000

"""CPUs and memory of this machine: what a process may use of them, in a container or a SLURM job less than there is."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpu_name() -> str:
    """What the CPU is called."""
    with suppress(OSError):
        for line in CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or platform.machine()
    return platform.processor() or platform.machine()


def available_cpus(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Whole CPUs that this process may keep busy: those of its affinity, and no more than its control groups allow.

    cgroups: where control groups of version 1, 2 or both are mounted. own: the file that names the process's groups.
    A quota is rounded down to whole CPUs, and the result is at least 1.
    """
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    allowed += [int(quota) for quota in _quotas(cgroups, own)]
    return max(1, min(allowed))


def available_memory(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Bytes that new work of this process may take: what is free or could be, and no more than its control groups allow in all."""
    allowed = [psutil.virtual_memory().available]
    for folder in _folders("memory", cgroups, own):
        for file in ("memory.max", "memory.limit_in_bytes"):  # of version 2, of version 1
            with suppress(OSError, ValueError):  # no file, or "max": no limit of this group
                allowed.append(int((folder / file).read_text()))
    return min(allowed)


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Every limit, in CPUs, of the groups that this process is in, and of those around them."""
    for folder in _folders("cpu", cgroups, own):
        with suppress(OSError, ValueError, IndexError):  # no file, or "max": no limit of this group
            quota, period = (folder / "cpu.max").read_text().split()[:2]
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
            if int(quota) > 0:  # -1: no limit
                yield int(quota) / int(period)


def _folders(controller: str, cgroups: Path, own: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, for a controller, and of those around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            yield from _upwards(cgroups, group)
        elif controller in controllers.split(","):
            yield from _upwards(cgroups / controllers, group)
            yield from _upwards(cgroups / controller, group)


def _upwards(mount: Path, group: str) -> list[Path]:
    """The folder of a group and of all around it; in a container that sees only its own group, that is the mount."""
    inner = mount / group.lstrip("/")
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(mount))]

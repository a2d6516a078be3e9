"""The CPU of this machine: its name, and how many this process may use, in a container or a SLURM job fewer than there are."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Every limit, in CPUs, of the groups that this process is in, and of those around them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            folders = _upwards(cgroups, group)
        elif "cpu" in controllers.split(","):
            folders = [*_upwards(cgroups / controllers, group), *_upwards(cgroups / "cpu", group)]
        else:
            continue
        for folder in folders:
            with suppress(OSError, ValueError, IndexError):  # no file, or "max": no limit of this group
                quota, period = (folder / "cpu.max").read_text().split()[:2]
                yield int(quota) / int(period)
            with suppress(OSError, ValueError):
                quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
                if int(quota) > 0:  # -1: no limit
                    yield int(quota) / int(period)


def _upwards(mount: Path, group: str) -> list[Path]:
    """The folder of a group and of all around it; in a container that sees only its own group, that is the mount."""
    inner = mount / group.lstrip("/")
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(mount))]

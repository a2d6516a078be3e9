"""Processes: all that is started here stays below this process, also what Ray detaches and what a killed parent leaves."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil

from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
POLL = 0.1  # seconds between two looks at a run
ORPHAN = 60.0  # seconds that the processes of a run have to end after it


def adopt() -> None:
    """Have orphaned descendants handed to this process, instead of to the system's first."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def descendants() -> list[psutil.Process]:
    """Every living process below this one."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
            elif process.ppid() == os.getpid() and process.pid not in Command.pids:
                os.waitpid(process.pid, os.WNOHANG)
    return living


def title(process: psutil.Process) -> str:
    """The command line of a process, as Ray rewrites it."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def end(processes: list[psutil.Process]) -> None:
    """Send SIGKILL, and wait for the end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and {p.pid for p in processes} & {p.pid for p in descendants()}:
        time.sleep(POLL)


def sweep(note: Path) -> None:
    """End the cluster that a killed series has left. note: a file with the name of its folder, which its daemons name."""
    if note.exists():
        folder = note.read_text()
        for process in psutil.process_iter():
            if folder in title(process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink()


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


class Command(subprocess.Popen[bytes]):
    """A process that this one waits for."""

    pids: ClassVar[set[int]] = set()

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        with log.open("ab") as file:
            super().__init__(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)
        self.pids.add(self.pid)


def check(command: list[str], **options: Any) -> None:
    """Run a command. Raises UserError with its last line if it fails."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    Command.pids.add(process.pid)
    output, _ = process.communicate()
    if process.returncode:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command)}: exit code {process.returncode}: {last}")


def free_port(address: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])

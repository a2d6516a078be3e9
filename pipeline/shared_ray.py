"""One embedded Ray for several commands, because it takes longer to start than many of them run.

`memoir with-ray COMMAND` runs a command. The first memoir below it that needs an embedded Ray asks this process, which then
starts one; the others join it.
"""

import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import ProcessError
from multiprocessing.connection import Client, Listener

from pipeline.errors import UserError

OFFER = "MEMOIR_RAY"  # the environment variable that says where to ask: port and key
END = b"end"


def run_with_ray(command: list[str], start: Callable[[int], str]) -> int:
    """Run a command, and return its exit code. start: starts Ray with so many CPUs here, and returns its address."""
    key = secrets.token_bytes(16)
    with Listener(("127.0.0.1", 0), authkey=key) as listener:
        port = listener.address[1]
        process = subprocess.Popen(command, env=os.environ | {OFFER: f"{port}:{key.hex()}"})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is left to the command

        def tell() -> None:
            process.wait()
            _ask(port, key, END)

        threading.Thread(target=tell, daemon=True).start()
        _serve(listener, start)
    return process.returncode


def _serve(listener: Listener, start: Callable[[int], str]) -> None:
    """Answer requests until one ends it: with Ray's address, or with nothing if Ray has fewer CPUs than asked for."""
    address, has = "", 0
    while True:
        with suppress(OSError, EOFError, ValueError, ProcessError), listener.accept() as connection:
            question = connection.recv_bytes(8)
            if question == END:
                return
            wanted = int(question)
            if not address:
                with suppress(UserError):  # the process that asked then meets the same error
                    address, has = start(wanted), wanted
            mode = os.environ.get("RAY_AUTH_MODE", "")  # set by Ray when it started
            connection.send_bytes(f"{address} {mode}".encode() if wanted <= has else b"")


def offered(cpus: int) -> str:
    """The address of a Ray with at least this many CPUs that a parent process offers; "" where none does.

    It sets RAY_AUTH_MODE as that Ray has it.
    """
    port, _, key = os.environ.get(OFFER, "").partition(":")
    with suppress(OSError, EOFError, ValueError, ProcessError):
        address, _, mode = _ask(int(port), bytes.fromhex(key), str(cpus).encode()).decode().partition(" ")
        if mode:
            os.environ["RAY_AUTH_MODE"] = mode
        return address
    return ""


def _ask(port: int, key: bytes, question: bytes) -> bytes:
    with Client(("127.0.0.1", port), authkey=key) as connection:
        connection.send_bytes(question)
        return b"" if question == END else connection.recv_bytes(256)

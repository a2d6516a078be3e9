"""What training does when things break: faults at random moments of a small run, and what became of each.

    python benchmarks/faults --work DIR [--fault NAME ...] [--times 10] [--seed 0] [--hosts local] [--json FILE]
        [--set training.snapshot_every=1]

A recipe of seconds trains on a Ray cluster of two nodes with one rank each: undisturbed, and then for each fault and time
in a store of its own, with the fault at a moment that is drawn evenly from the start of the fit to the last step of the
undisturbed run: so long after the step that was seen last at that moment. Where `memoir train` ends with an error, or is
killed, the cause is mended and the same command is given once more. Faults:

- rank0, rank1: SIGKILL of a rank;
- node: SIGKILL of the second node with all its processes; a new node joins;
- preempted: SIGTERM to all processes of the second node, SIGKILL after 10 s; a new node joins;
- driver: SIGKILL of `memoir train`, and the same command again at once;
- network: the second host is cut off for 20 s (two-hosts only);
- unavailable, down: the bucket answers 503, or refuses connections, for 20 s;
- full: the store's file system has no space left (needs root);
- truncated: the driver is killed, and a file of the newest checkpoint loses its second half;
- clock: the wall clock of the second node jumps an hour ahead or back (needs `pip install libfaketime`).

--hosts local: two nodes on this machine; two-hosts: two network namespaces with addresses of their own (needs root and
`ip`). The bucket is moto's server behind a proxy. DIR keeps the log of each run; FILE (DIR/faults.jsonl) has a line for
each, and a series that was stopped goes on after the last.

Outcomes: recovered (without help), again (by the same command), error (told in a line, twice); and bad ones: weights
(others than undisturbed), loss (records missing or doubled), hang (ten times as long as undisturbed),
traceback, crash (no line at all). Steps lost are those done again, seconds lost those of `memoir train` beyond the one
undisturbed run, so a machine whose speed changes meanwhile changes them. Orphans are processes that outlive the run by
60 s. Ends with 1 after a bad outcome or an orphan.
"""

import argparse
import fcntl
import signal
import sys
from pathlib import Path

if not __package__:  # `python benchmarks/faults`: the folder is where modules are looked for, and not the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.faults.faults import FAULTS
from benchmarks.faults.processes import adopt
from benchmarks.faults.results import is_bad
from benchmarks.faults.series import run_series
from benchmarks.faults.table import show
from pipeline.errors import UserError, nearest


def main() -> None:
    """A user's mistake is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(
        "faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", nargs="+", metavar="NAME", help="; ".join(FAULTS))
    parser.add_argument("--times", type=int, default=10, help="runs of each fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--hosts", choices=("local", "two-hosts"), default="local")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, as `memoir train` takes it"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one line for each run; DIR/faults.jsonl by default")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster ends with this process
    try:
        sys.exit(series(arguments))
    except UserError as error:
        sys.exit(f"faults: {error}")


def series(arguments: argparse.Namespace) -> int:
    """Run and show what was asked for; returns the exit code. Raises UserError for what cannot be run here."""
    possible = [name for name in FAULTS if name != "network" or arguments.hosts == "two-hosts"]
    for name in arguments.fault or ():
        if name not in FAULTS:
            raise UserError(f"--fault {name}: unknown; {nearest(name, list(FAULTS))}")
        if name not in possible:
            raise UserError(f"--fault {name}: needs --hosts two-hosts")
    if arguments.times < 1:
        raise UserError(f"--times {arguments.times}: give 1 or more")
    arguments.fault = arguments.fault or possible
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    adopt()
    with (arguments.work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{arguments.work}: another series runs here; wait, or give another folder") from None
        rows = run_series(arguments, arguments.json or arguments.work / "faults.jsonl")
    show(rows)
    return int(any(map(is_bad, rows)))


if __name__ == "__main__":
    main()

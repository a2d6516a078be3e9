"""The series: an undisturbed run for each kind of store, then a run for each fault and time, and a record of each."""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.faults import FAULTS, OUTAGE
from benchmarks.faults.hosts import Cluster, Hosts, faketime, local, two_hosts
from benchmarks.faults.processes import ORPHAN, POLL, ROOT, check, end, sweep, title
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.recipe import prepare
from benchmarks.faults.results import Result, is_bad, outcome
from benchmarks.faults.run import BUCKET, MissedError, Training, moment
from pipeline.errors import UserError

PATIENCE = 10.0  # a command may last this many undisturbed runs
TRIES = 5  # of a run that ends before its fault
NOTE = ".cluster"  # in DIR: the cluster's folder


class Undisturbed(NamedTuple):
    """result: the same for every run. seen: see `moment`. seconds: how long a run takes, by store."""

    result: Result
    seen: list[tuple[float, int]]
    seconds: dict[str, float]


class Series:
    """Runs of the recipe in one work folder, on one cluster."""

    def __init__(self, work: Path, hosts: Hosts, seed: int, overrides: list[str]) -> None:
        from moto.server import ThreadedMotoServer

        self.work, self.small, self.seed, self.overrides = work, work / "small", seed, overrides
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        address, port = server.get_host_and_port()
        self.direct = f"http://{address}:{port}"
        self.proxy = Proxy(self.direct, hosts.here)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment = kept | {
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": f"http://{hosts.here}:{self.proxy.server_port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self.client = self._client(environment)
        self.client.create_bucket(Bucket=BUCKET)
        self.cluster = Cluster(hosts, environment, work / NOTE)

    def _client(self, environment: dict[str, str]) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.direct,
            region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self, uri: str) -> list[str]:
        """The names in the bucket, asked for behind the proxy."""
        prefix = uri.removeprefix(f"s3://{BUCKET}/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def undisturbed(self, store: str, name: str) -> tuple[Result, list[tuple[float, int]], float]:
        """Train without a fault: the result, what was seen when, and seconds. Raises UserError if that fails."""
        self.cluster.ready(faked=False)
        run = Training(self, name, store)
        run.start()
        run.follow()
        result, attempt = run.result(), run.attempts[-1]
        if result is None or not run.seen:
            raise UserError(f"{run.log}: the undisturbed run failed: {attempt.line or 'no clear error'}")
        return result, run.seen, attempt.seconds

    def disturbed(self, name: str, time_: int, undisturbed: Undisturbed) -> dict[str, Any]:
        """Train with a fault, and say what became of it."""
        fault = FAULTS[name]
        for attempt in range(TRIES):
            self.cluster.ready(faked=name == "clock")
            limit = OUTAGE + PATIENCE * undisturbed.seconds[fault.store]
            run = Training(self, f"{name}-{time_}", fault.store, limit)
            at = moment(self.seed, name, time_, attempt, undisturbed.seen)
            run.start()
            try:
                run.follow(at, fault.strike)
                break
            except MissedError:
                self.settle()
        else:
            raise UserError(
                f"{run.folder}: {TRIES} runs were over before their fault: is the undisturbed run too slow?"
            )
        first = run.attempts[0]
        if first.code is not None and (first.killed or first.code):
            run.start()
            run.follow()
        result = run.result()
        if result and result.run != undisturbed.result.run:
            raise UserError(f"{run.folder}: the code is not that of the undisturbed run: begin with another --json")
        word = outcome(run.attempts, result, undisturbed.result)
        orphans = self.settle()
        if word == "hang" or orphans:
            self.cluster.stop()
        row = {
            "fault": name,
            "time": time_,
            "at": [at.step, round(at.seconds, 2)],
            "step": run.struck,
            "outcome": word,
            "lines": [attempt.last for attempt in run.attempts if attempt.code != 0 and not attempt.killed],
            "equal": result.weights == undisturbed.result.weights if result else None,
            "steps_lost": run.steps.lost,
            "seconds_lost": round(sum(a.seconds for a in run.attempts) - undisturbed.seconds[fault.store], 1),
            "orphans": orphans,
        }
        if not is_bad(row) and run.place:
            shutil.rmtree(run.place, ignore_errors=True)
        return row

    def settle(self) -> list[str]:
        """Wait for what the last run has started; returns what is still there."""
        deadline = time.monotonic() + ORPHAN
        while (left := self.cluster.left()) and time.monotonic() < deadline:
            time.sleep(POLL)
        names = [title(process)[:80] for process in left]
        end(left)
        return names


@contextmanager
def small_file_system(path: Path) -> Iterator[None]:
    """A file system of 16 MiB."""
    if os.geteuid():
        raise UserError("fault full: needs root, to mount a small file system; leave it out with --fault")
    path.mkdir(exist_ok=True)
    subprocess.run(["umount", "-l", str(path)], capture_output=True)  # of a killed series
    check(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)])
    try:
        yield
    finally:
        check(["umount", "-l", str(path)])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a record."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def reference(series: Series, hosts: str, results: Path, stores: set[str]) -> Undisturbed:
    """The undisturbed runs, one for each kind of store; those that were run before are read."""
    conditions = {"hosts": hosts, "set": series.overrides}
    known = {row["store"]: row for row in read_lines(results) if row["fault"] == "none" and _under(row, conditions)}
    for store in ("warm", *sorted(stores | {"folder"})):
        if store not in known:
            kind = "folder" if store == "warm" else store
            result, seen, seconds = series.undisturbed(kind, f"none-{store}")
            times = {"seen": seen, "seconds": round(seconds, 2)}
            known[store] = {"fault": "none", **conditions, "store": store, "result": result, **times}
            append(results, known[store])
    every = {Result(*row["result"]) for row in known.values()}
    if len(every) > 1:
        raise UserError(
            f"{results}: undisturbed runs differ: begin again without it, and if that does not help, mend that"
        )
    (result,) = every
    return Undisturbed(result, known["folder"]["seen"], {store: row["seconds"] for store, row in known.items()})


def _under(row: dict[str, Any], conditions: dict[str, Any]) -> bool:
    """Whether a record is of a run under these conditions."""
    return all(row.get(name) == value for name, value in conditions.items())


def run_series(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """Every run that is not recorded yet; returns the records that were asked for."""
    wanted = {(fault, i) for fault in arguments.fault for i in range(arguments.times)}
    stores = {FAULTS[fault].store for fault in arguments.fault}

    conditions = {"hosts": arguments.hosts, "seed": arguments.seed, "set": arguments.set}

    def mine() -> list[dict[str, Any]]:
        same = [row for row in read_lines(results) if _under(row, conditions)]
        return [row for row in same if (row["fault"], row["time"]) in wanted]

    if len(mine()) < len(wanted):
        if "clock" in arguments.fault:
            faketime()
        sweep(arguments.work / NOTE)
        prepare(arguments.work)
        with (two_hosts if arguments.hosts == "two-hosts" else local)() as hosts:
            series = Series(arguments.work, hosts, arguments.seed, arguments.set)
            with small_file_system(series.small) if "full" in stores else nullcontext():
                try:
                    undisturbed = reference(series, arguments.hosts, results, stores)
                    for fault in arguments.fault:
                        for i in range(arguments.times):
                            if (fault, i) not in {(row["fault"], row["time"]) for row in mine()}:
                                row = series.disturbed(fault, i, undisturbed)
                                append(results, {**conditions, **row})
                                told = f"{fault} {i}: {row['outcome']}, at step {row['step']}, {row['seconds_lost']} s"
                                print(" ".join([told, *row["lines"][:1]]), file=sys.stderr, flush=True)
                finally:
                    series.cluster.stop()
                    sweep(arguments.work / NOTE)
    return mine()

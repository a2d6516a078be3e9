"""The series of faults: how it judges a run, when it strikes, what it does to a bucket and to processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from benchmarks.faults.processes import sweep
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.results import Attempt, Result, is_bad, outcome
from benchmarks.faults.run import Steps, logged, moment, started_ranks
from benchmarks.faults.table import summary

ROOT = Path(__file__).parent.parent
COMMAND = ROOT / "benchmarks/faults"
RIGHT = Result("tiny-1", "weights", "curve")


def attempt(code: int | None = 0, output: str = "", killed: bool = False) -> Attempt:
    return Attempt(code, output, killed, 1.0)


DEFECT = "Traceback (most recent call last):\n  File\nValueError: a defect\n"
MISTAKE = "1/2\nmemoir: store: No space left on device; mend it\n"


@pytest.mark.parametrize(
    ("attempts", "result", "expected"),
    [
        ([attempt()], RIGHT, "recovered"),
        ([attempt(-9, killed=True), attempt()], RIGHT, "again"),
        ([attempt(1, MISTAKE), attempt()], RIGHT, "again"),
        ([attempt(1, MISTAKE), attempt(1, MISTAKE)], None, "error"),
        ([attempt(None)], None, "hang"),
        ([attempt(-9, killed=True), attempt(None)], None, "hang"),
        ([attempt(1, DEFECT), attempt()], RIGHT, "traceback"),
        ([attempt(1, DEFECT + MISTAKE), attempt()], RIGHT, "traceback"),
        ([attempt(0, DEFECT)], RIGHT, "traceback"),
        ([attempt(1), attempt()], RIGHT, "crash"),
        ([attempt(-11), attempt()], RIGHT, "crash"),
        ([attempt(-9, killed=True), attempt(-9)], None, "crash"),
        ([attempt()], Result("tiny-1", "others", "curve"), "weights"),
        ([attempt(-9, killed=True), attempt()], Result("tiny-1", "others", "another"), "weights"),
        ([attempt()], Result("tiny-1", "weights", "another"), "loss"),
    ],
)
def test_the_outcome_of_a_run(attempts, result, expected):
    assert outcome(attempts, result, RIGHT) == expected


def test_the_line_of_an_attempt_is_the_last_that_memoir_told():
    output = "memoir: first\nmemoir: last\nsomething of Ray\n"
    assert attempt(1, output).line == "memoir: last"
    assert attempt(1, output).last == "memoir: last"
    assert attempt(1, "says memoir: no\n").line == ""
    assert attempt(1, "says memoir: no\n").last == "says memoir: no"
    assert attempt(1).last == ""


def test_moments_are_uniform_over_the_undisturbed_run_and_those_of_a_seed_are_the_same():
    seen = [(0.0, 0), (4.0, 5), (5.0, 10), (8.0, 20), (10.0, 25)]
    moments = [moment(0, "rank0", i, 0, seen) for i in range(2000)]
    assert moments == [moment(0, "rank0", i, 0, seen) for i in range(2000)]
    share = {step: sum(each.step == step for each in moments) / 2000 for _, step in seen}
    assert share == pytest.approx({0: 0.4, 5: 0.1, 10: 0.3, 20: 0.2, 25: 0}, abs=0.05)
    lengths = {0: 4.0, 5: 1.0, 10: 3.0, 20: 2.0}
    for step, length in lengths.items():
        seconds = [each.seconds for each in moments if each.step == step]
        assert 0 <= min(seconds) < length / 5
        assert length * 4 / 5 < max(seconds) <= length
    others = [(1, "rank0", 0, 0), (0, "rank1", 0, 0), (0, "rank0", 1, 0), (0, "rank0", 0, 1)]
    assert len({moment(0, "rank0", 0, 0, seen), *(moment(*each, seen) for each in others)}) == 5


def started(*workers: str) -> str:
    lines = "".join(f"\n- ({where})" for where in workers)
    return (
        json.dumps({"message": f"Started training worker group of size {len(workers)}: {lines}", "process": 7}) + "\n"
    )


def test_ranks_are_those_of_the_controllers_log():
    first = started(
        "ip=10.0.0.1, pid=41) world_rank=0, local_rank=0", "ip=10.0.0.2, pid=42) world_rank=1, local_rank=0"
    )
    again = started(
        "ip=10.0.0.1, pid=52) world_rank=1, local_rank=1", "ip=10.0.0.1, pid=51) world_rank=0, local_rank=0"
    )
    other = json.dumps({"message": "Rank 3: pid=99) world_rank=3"}) + "\n"
    assert started_ranks("") == []
    assert started_ranks(other + first + other + again + first[:50]) == [{0: 41, 1: 42}, {0: 51, 1: 52}]


def test_steps_that_were_done_again_are_counted_at_each_resume():
    steps = Steps()
    for step in (0, 10, 20, 20, 15, 30, 0, 5):
        steps.see(step)
    assert (steps.last, steps.lost) == (5, 5 + 30)


def test_the_last_step_of_a_log_is_that_of_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged(path) == 0
    path.write_text("")
    assert logged(path) == 0
    path.write_text('{"step": 5}\n{"step": 10}\n{"step": 1')
    assert logged(path) == 10


def row(outcome: str = "recovered", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "fault": "rank0",
        "hosts": "local",
        "seed": 0,
        "set": [],
        "time": 0,
        "step": 40,
        "outcome": outcome,
        "lines": [],
        "equal": True,
        "steps_lost": 10,
        "seconds_lost": 4.0,
        "orphans": [],
    }
    return values | changes


def test_the_line_of_a_fault_sums_up_its_runs():
    rows = [
        row(),
        row("again", steps_lost=20, seconds_lost=5.0, orphans=["ray::RayTrainWorker"]),
        row("error", equal=None, steps_lost=99, seconds_lost=99.0),
        row("weights", equal=False, steps_lost=0, seconds_lost=0.0),
        row("hang", equal=None),
    ]
    assert summary(rows) == {
        "n": "5",
        "recovered": "1",
        "again": "1",
        "error": "1",
        "equal": "2 of 3",
        "steps lost": "10.0 (20.0)",
        "s lost": "3.0 (5.0)",
        "orphans": "1",
        "bad": "weights 1, hang 1",
    }
    assert [is_bad(each) for each in rows] == [False, True, False, True, True]


# the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_the_folder_and_the_module_are_one_command(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def told(place: Path, *command: str | Path) -> str:
        command = (sys.executable, *command, "--help")
        return subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert "--hosts {local,two-hosts}" in told(tmp_path, COMMAND)
    assert told(tmp_path, COMMAND) == told(ROOT, "-m", "benchmarks.faults")


def test_recorded_runs_are_shown_and_not_run_again_and_a_bad_one_fails_the_series(tmp_path):
    record = tmp_path / "runs.jsonl"
    rows = [row(time=i) for i in range(2)]
    arguments = ("--work", str(tmp_path / "work"), "--json", str(record), "--fault", "rank0", "--times", "2")
    for last, code in ((row(time=1), 0), (row("hang", time=1, equal=None), 1), (row(time=1, orphans=["ray::Feed"]), 1)):
        record.write_text("".join(json.dumps(each) + "\n" for each in (rows[0], last)))
        before = record.read_bytes()
        done = run(*arguments)
        assert done.returncode == code, done.stderr
        assert "rank0" in done.stdout
        assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--fault", "rank2"), "faults: --fault rank2: unknown; did you mean 'rank1'?"),
        (("--fault", "network"), "faults: --fault network: needs --hosts two-hosts"),
        (("--times", "0"), "faults: --times 0: give 1 or more"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, expected):
    done = run("--work", str(tmp_path), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


# what is done to a bucket


def test_an_upload_in_chunks_arrives_whole(proxy):
    from pyarrow.fs import S3FileSystem

    address = f"http://127.0.0.1:{proxy.server_port}"
    bucket = S3FileSystem(
        access_key="someone",
        secret_key="something",
        endpoint_override=address,
        region="us-east-1",
        allow_bucket_creation=True,
    )
    bucket.create_dir("chunks")
    contents = bytes(range(256)) * 5000
    with bucket.open_output_stream("chunks/a") as stream:
        stream.write(contents)
    with bucket.open_input_stream("chunks/a") as stream:
        assert stream.read() == contents


def test_an_upload_that_is_broken_off_does_not_arrive(proxy, server):
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=server, **keys)
    client.create_bucket(Bucket="broken")
    with socket.create_connection(("127.0.0.1", proxy.server_port)) as connection:
        connection.sendall(b"PUT /broken/object HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert "Contents" not in client.list_objects_v2(Bucket="broken")


@pytest.fixture
def proxy(server: str):
    proxy = Proxy(server, "127.0.0.1")
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def test_a_bucket_fails_as_told_and_comes_back(proxy):
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{proxy.server_port}",
        region_name="us-east-1",
        aws_access_key_id="someone",
        aws_secret_access_key="something",
        config=Config(retries={"total_max_attempts": 1}),
    )
    client.create_bucket(Bucket="bucket")
    contents = bytes(range(256)) * 5000
    client.put_object(Bucket="bucket", Key="a/b", Body=contents)

    def got() -> bytes:
        return client.get_object(Bucket="bucket", Key="a/b")["Body"].read()

    assert got() == contents
    assert client.head_object(Bucket="bucket", Key="a/b")["ContentLength"] == len(contents)
    proxy.fail(503)
    with pytest.raises(ClientError, match="SlowDown"):
        got()
    proxy.fail("down")
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):  # the connection that was open
        got()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.server_port))
    proxy.fail(None)
    assert got() == contents
    assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 1
    client.delete_object(Bucket="bucket", Key="a/b")
    assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 0


# what is done to processes


FAMILY = """
import subprocess, time
from benchmarks.faults.processes import adopt, descendants, end, title
adopt()
# as a daemon: its parent is gone at once, in a session of its own
subprocess.run(["sh", "-c", "setsid sleep 987 & true"])
deadline = time.monotonic() + 20
while [title(p) for p in descendants()] != ["sleep 987"]:
    assert time.monotonic() < deadline, descendants()
    time.sleep(0.05)
end(descendants())
print(descendants())
"""


def test_a_process_that_left_its_parent_is_found_and_ended():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", FAMILY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
    assert time.monotonic() - began < 60


def test_the_cluster_of_a_killed_series_is_ended(tmp_path):
    folder, note = tmp_path / "faults-x", tmp_path / "note"
    folder.mkdir()
    sweep(note)  # nothing was killed
    (own, other) = (
        subprocess.Popen([sys.executable, "-c", "input()", str(name)], stdin=subprocess.PIPE)
        for name in (folder, tmp_path)
    )
    note.write_text(str(folder))
    sweep(note)
    assert own.wait(timeout=30) == -9
    assert not folder.exists()
    assert not note.exists()
    assert other.poll() is None
    other.communicate(b"\n", timeout=30)
    assert other.returncode == 0


# all of it


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_command_continues_to_the_same_weights_and_the_series_goes_on_after_its_last_run(tmp_path):
    arguments = ("--work", str(tmp_path), "--fault", "driver", "--times", "1")
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [(each["fault"], each.get("store")) for each in records[:2]] == [("none", "warm"), ("none", "folder")]
    (last,) = records[2:]
    assert last["outcome"] == "again"
    assert last["equal"] is True
    assert last["orphans"] == []
    assert last["steps_lost"] < 40  # a checkpoint is 20 steps, and one may be on its way
    first = sorted((tmp_path / "runs/driver-0").glob("*.log"))
    assert len(first) == 2  # killed, and finished
    began = time.monotonic()
    assert run(*arguments).returncode == 0
    assert time.monotonic() - began < 30
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) == 3

"""Time and memory of the plan for up to 10 million groups, each size in a process of its own.

    python benchmarks/scale.py [--groups 100000 1000000 10000000]

Target: 10 million groups in under 60 s and 4 GiB, the time per group flat from 100,000 on.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa

from pipeline.raw.manifest import SCHEMA
from pipeline.shards.plan import plan
from pipeline.task import Task


def manifest(groups: int) -> pa.Table:
    """A manifest of `groups` photographs of 100 KB, in no order, with sha256 as real ones have them."""
    rng = np.random.default_rng(0)
    number = pa.array(rng.permutation(groups)).cast(pa.string())
    digests = rng.integers(0, 16, (groups, 64), np.uint8)
    digests += np.where(digests < 10, np.uint8(ord("0")), np.uint8(ord("a") - 10))
    constant = {"dataset": "photos", "split": "train", "role": "gt", "channels": 3, "bit_depth": 8}
    columns = {name: pa.repeat(pa.scalar(constant.get(name), SCHEMA.field(name).type), groups) for name in SCHEMA.names}
    key = pa.compute.binary_join_element_wise("img", number, "_")
    columns |= {"key": key, "group": key, "path": pa.compute.binary_join_element_wise("datasets/photos", key, "/")}
    columns["sha256"] = _strings(digests)
    for side in ("width", "height"):
        columns[side] = pa.array(rng.integers(300, 500, groups, np.int32))
    return pa.table(columns).cast(SCHEMA)


def _strings(digests: np.ndarray) -> pa.Array:
    """Rows of bytes (n, 64) as strings, without an object for each."""
    offsets = np.arange(len(digests) + 1, dtype=np.int64) * digests.shape[1]
    array = pa.LargeStringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(digests.tobytes()))
    return pa.chunked_array([array.slice(i, 10**6).cast(pa.string()) for i in range(0, len(array), 10**6)])


def measure(groups: int) -> dict[str, float]:
    """Plan so many groups; returns seconds, and MiB at the peak beside those that the manifest takes."""
    manifests = [manifest(groups)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task = Task(
        colour="rgb",
        degradation={"kind": "jpeg", "quality": [10]},  # type: ignore[arg-type]
        splits={"train": ("photos/train",)},
    )
    began, cpu = time.perf_counter(), time.process_time()
    shards = plan(manifests.pop(), task)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(shard.files) for shard in shards) == groups
    return {
        "groups": groups,
        "shards": len(shards),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "us_per_group": 1e6 * seconds / groups,
        "peak_mib": peak / 1024,
        "manifest_mib": before / 1024,
    }


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print(f"{'groups':>12} {'shards':>8} {'s':>7} {'CPU s':>7} {'us/group':>9} {'peak MiB':>9} {'of it before':>13}")
    for groups in arguments.groups:
        output = subprocess.run(
            [sys.executable, __file__, "--one", str(groups)], capture_output=True, text=True, check=True
        ).stdout
        r = json.loads(output)
        print(
            f"{r['groups']:>12,} {r['shards']:>8,} {r['seconds']:>7.2f} {r['cpu_seconds']:>7.2f} "
            f"{r['us_per_group']:>9.2f} {r['peak_mib']:>9,.0f} {r['manifest_mib']:>13,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

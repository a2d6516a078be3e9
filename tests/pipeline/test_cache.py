"""Against a real S3 server over HTTP, through a proxy that fails on demand, and against folders."""

import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import SECRET, photograph
from http_fakes import Proxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from pipeline.sampling.patches import Grid
from pipeline.shards import cache as module
from pipeline.shards import download
from pipeline.shards.cache import VERIFIED, ShardCache
from pipeline.storage import Storage, UnavailableError, storage

MIB = 2**20
NOBODY = 65534

Shard = tuple[str, int, str]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Pauses of a test's length."""
    monkeypatch.setattr(download, "RETRY_SECONDS", 4.0)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(module, "SPACE_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "PREFETCH_POLL_SECONDS", 0.05)


def put(store: Storage, name: str, data: bytes) -> Shard:
    store.write(name, data)
    return name, len(data), hashlib.sha256(data).hexdigest()


def folder_of_shards(root: Path, *sizes: int) -> tuple[Storage, list[Shard]]:
    """Shards of these sizes, with contents of their own, in a file:// store."""
    store = storage(f"file://{root}/store")
    contents = [(bytes([i]) + random.Random(i).randbytes(size))[:size] for i, size in enumerate(sizes)]
    return store, [put(store, f"train/{i}.tar", data) for i, data in enumerate(contents)]


def held(folder: Path) -> set[str]:
    """sha256 of every file in the cache. Nothing but whole files may stay there; a thread may just be removing its lock."""

    def rest() -> list[Path]:
        return [path for path in files() if not re.fullmatch("[0-9a-f]{64}", path.name)]

    def files() -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file() and path.name != ".space"]

    deadline = time.monotonic() + 5
    while rest() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rest() == []
    return {path.name for path in files()}


def held_now(cache: ShardCache) -> set[str]:
    """As `held`, during downloads: also what is still coming."""
    return {path.name for path in cache.folder.glob("*/*")}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def one_proxy(server) -> Iterator[Proxy]:
    """On one port, for the sake of the clients, which take long to make."""
    proxy = Proxy(server)
    yield proxy
    proxy.end()


@pytest.fixture
def proxy(s3, one_proxy, monkeypatch) -> Proxy:
    """The S3 server is behind it from now on."""
    one_proxy.fail(None)
    one_proxy.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL", one_proxy.url)
    return one_proxy


@pytest.fixture
def behind(s3, server, proxy) -> Callable[..., tuple[Storage, list[Shard]]]:
    """Put shards of these sizes into the bucket: the bucket as seen through the proxy, and the shards."""

    def fill(*sizes: int) -> tuple[Storage, list[Shard]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", server)
            direct = storage(f"{s3}/data")
            shards = [put(direct, f"train/{i}.tar", random.Random(i).randbytes(size)) for i, size in enumerate(sizes)]
        return storage(f"{s3}/data"), shards

    return fill


def process(folder: Path, uri: str, shards: list[Shard], limit: int | None = None) -> subprocess.Popen:
    """Another process that gets these shards, prints "done", and holds the leases until its stdin ends."""
    code = (
        "import sys; from pathlib import Path; from pipeline.shards.cache import ShardCache; from pipeline.storage import storage\n"
        f"cache, source = ShardCache(Path({str(folder)!r}), limit_bytes={limit}), storage({uri!r})\n"
        f"leases = [cache.get(source, *shard) for shard in {shards!r}]\n"
        "print('done', flush=True); sys.stdin.read()"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# what comes, and where it lies


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_shard_comes_once_and_lies_under_the_sha256_of_its_bytes(kind, tmp_path, request, monkeypatch):
    source = storage(f"file://{tmp_path}/store" if kind == "file" else f"{request.getfixturevalue('s3')}/data")
    shard = put(source, "train/a.tar", os.urandom(2 * MIB + 7))
    again = put(source, "val/b.tar", source.read("train/a.tar"))
    cache = ShardCache(tmp_path / "deep" / "cache")
    with cache.get(source, *shard) as lease:
        assert lease.path == tmp_path / "deep" / "cache" / shard[2][:2] / shard[2]
        assert sha(lease.path) == shard[2]
        assert stat.S_IMODE(lease.path.stat().st_mode) == 0o644
    monkeypatch.setattr(source, "chunks", None)
    for same in (shard, again):
        with cache.get(source, *same) as other:
            assert other.path == lease.path
    assert held(cache.folder) == {shard[2]}


def test_the_file_has_its_name_only_when_it_is_on_the_disk_and_leased(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    path = tmp_path / "cache" / shard[2][:2] / shard[2]
    seen = []

    def fsync(descriptor):
        seen.append((os.fstat(descriptor).st_size, path.exists(), sha(path.with_name(f"{path.name}.part"))))

    monkeypatch.setattr(os, "fsync", fsync)
    rename, exclusively = Path.rename, module.exclusively
    monkeypatch.setattr(Path, "rename", lambda self, to: (rename(self, to), seen.append(exclusively(to))))
    ShardCache(tmp_path / "cache").get(source, *shard).release()
    assert seen == [(100, False, shard[2]), None]


def test_all_may_read_the_files_whatever_the_umask(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o2775)
    before = os.umask(0o077)
    try:
        path = ShardCache(tmp_path / "cache").get(source, *shard).path
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parents[1] / ".space", path.parent)]
    assert modes == [0o644, 0o644, 0o2775]


def test_a_folder_needs_no_boto3(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    code = (
        "import sys, pathlib; from pipeline.shards.cache import ShardCache; from pipeline.storage import storage;"
        f"ShardCache(pathlib.Path({str(tmp_path / 'cache')!r})).get(storage({source.uri!r}), *{shard!r});"
        "assert not {'boto3', 'botocore', 'torch', 'ray', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# one download for all


def test_threads_that_ask_for_the_same_shard_share_one_download(behind, proxy, tmp_path):
    source, shards = behind(300_000, 100)
    proxy.fault = lambda n, name: ("slow", 0.2)
    cache, paths = ShardCache(tmp_path / "cache"), []
    threads = [
        threading.Thread(target=lambda shard=shard: paths.append(cache.get(source, *shard).path))
        for shard in shards * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert {sha(path) for path in paths} == {shard[2] for shard in shards}
    assert proxy.names() == {"data/train/0.tar": 1, "data/train/1.tar": 1}


def test_two_processes_that_ask_for_the_same_shards_download_each_once(behind, proxy, tmp_path):
    source, shards = behind(*[200_000] * 4)
    proxy.fault = lambda n, name: ("slow", 0.1)
    children = [process(tmp_path / "cache", source.uri, order) for order in (shards, shards[::-1])]
    for child in children:
        assert child.communicate(timeout=60)[0] == b"done\n"
    assert proxy.names() == {f"data/train/{i}.tar": 1 for i in range(4)}
    assert held(tmp_path / "cache") == {shard[2] for shard in shards}


def test_whoever_waits_for_a_killed_process_completes_its_download(behind, proxy, tmp_path):
    source, (shard,) = behind(2 * MIB + 7)
    proxy.fault = lambda n, name: ("stall", MIB + 7) if n == 0 else None
    child = process(tmp_path / "cache", source.uri, [shard])
    assert proxy.stalled.wait(60)
    cache, paths = ShardCache(tmp_path / "cache"), []
    waiting = threading.Thread(target=lambda: paths.append(cache.get(source, *shard).path))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert len(proxy.gets) == 1
    os.kill(child.pid, signal.SIGKILL)
    waiting.join(30)
    assert sha(paths[0]) == shard[2]
    assert len(proxy.gets) == 2
    assert held(tmp_path / "cache") == {shard[2]}
    child.communicate()


def test_what_a_killed_process_leaves_blocks_nobody(behind, proxy, tmp_path):
    source, (shard,) = behind(MIB + 7)
    proxy.fault = lambda n, name: ("stall", 7) if n == 0 else None
    child = process(tmp_path / "cache", source.uri, [shard])
    assert proxy.stalled.wait(60)
    child.kill()
    child.communicate()
    rests = {path.suffix: path.stat().st_size for path in (tmp_path / "cache").rglob(f"{shard[2]}*")}
    assert rests == {".lock": 0, ".part": shard[1]}
    with ShardCache(tmp_path / "cache", limit_bytes=shard[1]).get(source, *shard) as lease:
        assert sha(lease.path) == shard[2]
    assert held(tmp_path / "cache") == {shard[2]}


def test_who_waited_for_vain_tries_does_not_begin_as_many_again(behind, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.5)
    source, (shard,) = behind(100)
    proxy.fault = lambda n, name: 503
    cache, errors = ShardCache(tmp_path / "cache"), []

    def get():
        with pytest.raises(UserError) as error:
            cache.get(source, *shard)
        errors.append(int(re.search(r"given up after (\d+) tries", one_line(error))[1]))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert sum(errors) == len(proxy.gets)  # boto3 has not tried again by itself
    assert errors[0] >= 5
    assert all(tries <= 3 for tries in errors[1:])


def test_a_lock_that_its_holder_has_removed_is_nobodys(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    cache, leases = ShardCache(tmp_path / "cache"), []
    path = cache.folder / shard[2][:2] / f"{shard[2]}.lock"
    path.parent.mkdir()
    thread = threading.Thread(target=lambda: leases.append(cache.get(source, *shard)), daemon=True)
    with module.lock_file(path) as removed:
        fcntl.flock(removed, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.2)
        path.unlink()
        with module.lock_file(path) as lock:  # the next in line
            fcntl.flock(lock, fcntl.LOCK_EX)
            fcntl.flock(removed, fcntl.LOCK_UN)
            thread.join(0.2)
            assert not leases
    thread.join(5)
    assert leases


def test_a_child_forked_during_a_download_keeps_no_lock(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    cache, leases = ShardCache(tmp_path / "cache"), []
    thread = threading.Thread(target=lambda: leases.append(cache.get(source, *shard)), daemon=True)
    with cache._locked(shard, wait=True), cache._space():
        thread.start()
        thread.join(0.2)
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        thread.join(5)
        assert leases
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# what the network does


def test_a_server_that_refuses_every_third_request_loses_nothing(behind, proxy, tmp_path):
    source, shards = behind(*[1000] * 12)
    proxy.fault = lambda n, name: 503 if n % 3 == 0 else None
    cache, state = ShardCache(tmp_path / "cache"), random.getstate()
    for shard in shards:
        with cache.get(source, *shard) as lease:
            assert sha(lease.path) == shard[2]
    assert len(proxy.gets) == 18
    assert random.getstate() == state  # a run's own seeds are not moved


def test_a_cut_download_goes_on_where_it_stopped(behind, proxy, tmp_path):
    source, (shard,) = behind(5 * MIB + 7)
    proxy.fault = lambda n, name: ("cut", 2 * MIB) if n < 2 else None
    with ShardCache(tmp_path / "cache").get(source, *shard) as lease:
        assert sha(lease.path) == shard[2]
    assert [where for _, where in proxy.gets] == [None, f"bytes={2 * MIB}-", f"bytes={4 * MIB}-"]
    assert proxy.sent == shard[1]


def test_a_cut_at_the_last_byte_asks_for_no_more(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    chunks, calls = source.chunks, []

    def cut(name, start=0, *, once=False):
        calls.append((start, once))
        yield from chunks(name, start)
        raise UnavailableError("cut")

    monkeypatch.setattr(source, "chunks", cut)
    with ShardCache(tmp_path / "cache").get(source, *shard) as lease:
        assert sha(lease.path) == shard[2]
    assert calls == [(0, True)]


def test_a_server_that_is_down_for_a_while_is_waited_for(behind, proxy, tmp_path):
    source, (shard,) = behind(1000)
    proxy.fail("down")
    timer = threading.Timer(1.0, proxy.fail, (None,))
    timer.start()
    began = time.monotonic()
    try:
        with ShardCache(tmp_path / "cache").get(source, *shard) as lease:
            assert sha(lease.path) == shard[2]
        assert time.monotonic() - began >= 0.9
    finally:
        timer.join()


@pytest.mark.parametrize("fault", ["down", 503, ("cut", 100)])
def test_after_its_time_the_last_error_is_told(fault, behind, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.5)
    source, (shard,) = behind(1000)
    if fault == "down":
        proxy.fail("down")
    # Of the last, some bytes come at first, and then no more.
    proxy.fault = lambda n, name: ("cut", 0) if n and fault == ("cut", 100) else fault
    began = time.monotonic()
    with pytest.raises(UserError, match=r"/data/train/0\.tar: .*given up after \d+ tries") as error:
        ShardCache(tmp_path / "cache").get(source, *shard)
    assert "SlowDown" in one_line(error) if fault == 503 else "no whole answer from http" in one_line(error)
    assert 0.4 < time.monotonic() - began < 5
    assert held(tmp_path / "cache") == set()


def test_pauses_grow_from_the_first_to_the_longest_with_full_jitter(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    monkeypatch.setattr(download, "RETRY_SECONDS", 31.0)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(download, "LONGEST_PAUSE", 10.0)
    limits, slept = [], []

    class Jitter:
        def uniform(self, low, high):
            limits.append((low, high))
            return high

    class Never(threading.Event):
        def wait(self, timeout=None):
            slept.append(timeout)
            return False

    def down(name, start=0, *, once=False):
        raise UnavailableError("down")
        yield

    monkeypatch.setattr(download, "JITTER", Jitter())
    monkeypatch.setattr(source, "chunks", down)
    with closing(module.FileIO(tmp_path / "out", "w")) as file, pytest.raises(UserError, match="after 8 tries"):
        download.fill(file, source, shard, 0.0, Never())
    assert limits == [(0, high) for high in (0.5, 1, 2, 4, 8, 10, 10)]
    assert slept == [high for _, high in limits]


def test_slow_tries_that_bring_nothing_use_up_the_time(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.25)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    tries = []

    def silent(name, start=0, *, once=False):
        tries.append(start)
        assert len(tries) < 10
        time.sleep(0.1)
        raise UnavailableError("silent")
        yield

    monkeypatch.setattr(source, "chunks", silent)
    with pytest.raises(UserError, match=r"silent \(given up after [123] tries\)"):
        ShardCache(tmp_path / "cache").get(source, *shard)


@pytest.mark.parametrize(
    ("change", "expected", "requests"),
    [
        ("forbidden", "access denied at http", 1),
        ("key", r"train/absent\.tar: not in the store; upload", 1),
        ("bucket", "no bucket 'bucket-.*-else' at http", 1),
        ("credentials", "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", 0),
    ],
)
def test_what_no_retry_mends_fails_at_once(change, expected, requests, s3, behind, proxy, tmp_path, monkeypatch):
    source, ((name, nbytes, sha256),) = behind(1000)
    if change == "forbidden":
        proxy.fault = lambda n, name: 403
    elif change == "key":
        name = "train/absent.tar"
    elif change == "bucket":
        source = storage(f"{s3}-else/data")
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        source = storage(f"{s3}/data")
    with pytest.raises(UserError, match=expected) as error:
        ShardCache(tmp_path / "cache").get(source, name, nbytes, sha256)
    one_line(error)
    assert len(proxy.gets) == requests
    assert held(tmp_path / "cache") == set()


def test_a_missing_file_of_a_folder_fails_at_once(tmp_path):
    source, ((_, nbytes, sha256),) = folder_of_shards(tmp_path, 100)
    with pytest.raises(UserError, match=r"file://.*/store/absent\.tar: not in the store; upload") as error:
        ShardCache(tmp_path / "cache").get(source, "absent.tar", nbytes, sha256)
    one_line(error)


def test_a_mount_that_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    chunks, errors = source.chunks, [OSError(errno.EIO, "Input/output error")]

    def failing(name, start=0, *, once=False):
        if errors:
            raise errors.pop()
        return chunks(name, start)

    monkeypatch.setattr(source, "chunks", failing)
    with ShardCache(tmp_path / "cache").get(source, *shard) as lease:
        assert sha(lease.path) == shard[2]


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_store_is_read_from_any_byte_on(kind, tmp_path, request):
    store = storage(f"file://{tmp_path}/store" if kind == "file" else f"{request.getfixturevalue('s3')}/data")
    data = os.urandom(MIB + 7)
    store.write("x", data)
    for start in (0, 1, MIB, MIB + 6):
        assert b"".join(store.chunks("x", start)) == b"".join(store.chunks("x", start, once=True)) == data[start:]


# wrong contents


@pytest.mark.parametrize("other", [b"x" * 1000, b"x" * 999, b"x" * 1001])
def test_wrong_contents_are_fetched_again(other, behind, proxy, tmp_path):
    source, (shard,) = behind(1000)
    proxy.fault = lambda n, name: ("other", other) if n < 2 else None
    with ShardCache(tmp_path / "cache").get(source, *shard) as lease:
        assert sha(lease.path) == shard[2]
    assert [where for _, where in proxy.gets] == [None] * 3


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (b"x" * 1000, "its sha256 is [0-9a-f]{64}, shards.json lists [0-9a-f]{64}"),
        (b"x" * 999, "999 bytes, shards.json lists 1,000"),
        (b"x" * 1001, "more than 1,000 bytes, shards.json lists 1,000"),
    ],
)
def test_contents_that_stay_wrong_are_refused(other, expected, s3, behind, proxy, server, tmp_path, monkeypatch):
    source, (shard,) = behind(1000)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server)
        storage(f"{s3}/data").write(shard[0], other)
    with pytest.raises(UserError, match=rf"s3://.*/data/train/0\.tar: {expected} \(tried 3 times\); upload") as error:
        ShardCache(tmp_path / "cache").get(source, *shard)
    one_line(error)
    assert len(proxy.gets) == 3
    assert held(tmp_path / "cache") == set()


def test_what_is_no_sha256_never_becomes_a_path(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    with pytest.raises(UserError, match=r"'\.\./\.\./x' is no sha256") as error:
        ShardCache(tmp_path / "cache").get(source, *shard[:2], "../../x")
    one_line(error)


# damage on the disk


@pytest.mark.parametrize("damage", ["shorter", "shorter, same time", "longer", "one byte", "touched"])
def test_a_file_that_was_written_to_is_verified_again(damage, tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 1000)
    cache = ShardCache(tmp_path / "cache")
    path = cache.get(source, *shard).path
    cache = ShardCache(tmp_path / "cache")
    with path.open("r+b") as file:
        if damage == "one byte":
            file.seek(500)
            file.write(bytes([path.read_bytes()[500] ^ 1]))
        elif damage != "touched":
            file.truncate(1001 if damage == "longer" else 999)
    if damage == "touched":
        os.utime(path)
    if damage == "shorter, same time":  # as a file system may leave it that lost power
        os.utime(path, ns=(VERIFIED, VERIFIED))
    else:
        assert path.stat().st_mtime_ns != VERIFIED
    reads, chunks = [], source.chunks
    monkeypatch.setattr(source, "chunks", lambda *args, **kwargs: (reads.append(args), chunks(*args, **kwargs))[1])
    for _ in range(2):
        with cache.get(source, *shard) as lease:
            assert sha(lease.path) == shard[2]
            assert path.stat().st_mtime_ns == VERIFIED
    assert len(reads) == (damage != "touched")


def test_an_untouched_file_is_not_read_again(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 1000)
    cache = ShardCache(tmp_path / "cache")
    cache.get(source, *shard).release()
    monkeypatch.setattr(module.hashlib, "sha256", None)
    cache.get(source, *shard).release()


# room


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    limit=st.integers(9, 25),
    steps=st.lists(
        st.tuples(st.sampled_from(["use", "use", "hold", "release"]), st.integers(0, 5)), min_size=15, max_size=30
    ),
)
def test_what_goes_is_the_least_recently_used_and_never_what_is_leased(sizes, limit, steps, tmp_path):
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    source, shards = folder_of_shards(place, *sizes)
    caches = [ShardCache(place / "cache", limit_bytes=limit) for _ in range(2)]  # the locks are all that they share
    here: OrderedDict[int, None] = OrderedDict()  # what should be there, least recently used first
    leases: list[tuple[int, module.Lease]] = []
    for number, (step, i) in enumerate(steps):
        if step == "release":
            if leases:
                leases.pop(i % len(leases))[1].release()
            continue
        expected, room = OrderedDict(here), True
        if i not in here:
            free = [j for j in here if j not in [leased for leased, _ in leases]]
            while sum(sizes[j] for j in expected) + sizes[i] > limit and free:
                del expected[free.pop(0)]
            room = sum(sizes[j] for j in expected) + sizes[i] <= limit
        if room:
            leases.append((i, caches[number % 2].get(source, *shards[i])))
            if step == "use":
                leases.pop()[1].release()
            here = expected
            here[i] = None
            here.move_to_end(i)
        else:
            with pytest.raises(UserError, match="no room"):
                caches[number % 2].get(source, *shards[i])
        assert held(place / "cache") == {shards[j][2] for j in here}
        assert sum(sizes[j] for j in here) <= limit
        assert all(sha(lease.path) == shards[j][2] for j, lease in leases)
    shutil.rmtree(place)


def test_what_another_process_uses_stays_until_it_ends(tmp_path):
    source, shards = folder_of_shards(tmp_path, 100, 100, 100)
    cache = ShardCache(tmp_path / "cache", limit_bytes=200)
    child = process(cache.folder, source.uri, shards[:1], limit=200)
    assert child.stdout.readline() == b"done\n"
    for shard in shards[1:]:
        cache.get(source, *shard).release()
        assert held(cache.folder) == {shards[0][2], shard[2]}
    child.kill()
    child.communicate()
    cache.get(source, *shards[1]).release()
    assert held(cache.folder) == {shards[1][2], shards[2][2]}


def test_a_file_that_goes_while_it_is_asked_for_comes_again(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    cache, leases = ShardCache(tmp_path / "cache"), []
    with cache.get(source, *shard) as lease:
        path = lease.path
    thread = threading.Thread(target=lambda: leases.append(cache.get(source, *shard)), daemon=True)
    removed = module.exclusively(path)
    assert removed
    thread.start()
    thread.join(0.2)
    assert not leases
    path.unlink()
    removed.close()
    thread.join(5)
    assert sha(leases[0].path) == shard[2]
    assert not module.exclusively(path)


def test_a_lease_ends_once(tmp_path):
    source, shards = folder_of_shards(tmp_path, 100, 100)
    cache = ShardCache(tmp_path / "cache", limit_bytes=100)
    first, second = cache.get(source, *shards[0]), cache.get(source, *shards[0])
    first.release()
    first.release()
    with pytest.raises(UserError, match="no room"):
        cache.get(source, *shards[1])
    second.release()
    cache.get(source, *shards[1]).release()


def test_a_forked_child_does_not_end_its_parents_leases(tmp_path):
    source, shards = folder_of_shards(tmp_path, 100, 100)
    cache = ShardCache(tmp_path / "cache", limit_bytes=100)
    lease = cache.get(source, *shards[0])
    child = os.fork()
    if not child:
        lease.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(UserError, match="no room"):
        cache.get(source, *shards[1])
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    try:
        lease.release()  # nor does the child go on holding it
        cache.get(source, *shards[1]).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_room_the_limit_and_the_need_are_named(tmp_path):
    source, shards = folder_of_shards(tmp_path, 1500, 400, 700)
    cache = ShardCache(tmp_path / "cache", limit_bytes=2000)
    lease = cache.get(source, *shards[0])
    cache.get(source, *shards[1]).release()
    expected = r"no room for the 700 bytes of train/2\.tar: 1,500 bytes are in use, of a limit of 2,000; raise"
    with pytest.raises(UserError, match=expected) as error:
        cache.get(source, *shards[2])
    one_line(error)
    assert held(cache.folder) == {shards[0][2], shards[1][2]}  # nothing went in vain
    lease.release()


def test_room_that_comes_soon_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPACE_SECONDS", 10.0)
    source, shards = folder_of_shards(tmp_path, 100, 100)
    cache = ShardCache(tmp_path / "cache", limit_bytes=100)
    timer = threading.Timer(0.2, cache.get(source, *shards[0]).release)
    timer.start()
    began = time.monotonic()
    cache.get(source, *shards[1]).release()
    assert 0.1 < time.monotonic() - began < 5
    assert held(cache.folder) == {shards[1][2]}


def test_room_that_downloads_take_is_waited_for_until_they_end(make_cache, tmp_path, monkeypatch):
    source, shards = folder_of_shards(tmp_path, 100, 100)
    chunks, going = source.chunks, threading.Event()
    monkeypatch.setattr(source, "chunks", lambda *args, **kwargs: (going.wait(20), chunks(*args, **kwargs))[1])
    cache, leases = make_cache(limit_bytes=100), []
    cache.prefetch(source, shards[:1])
    eventually(lambda: f"{shards[0][2]}.part" in held_now(cache))
    thread = threading.Thread(target=lambda: leases.append(cache.get(source, *shards[1])))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    going.set()
    thread.join(5)
    assert leases
    assert held(cache.folder) == {shards[1][2]}


def test_a_shard_above_the_limit_is_refused(tmp_path):
    source, (shard,) = folder_of_shards(tmp_path, 1001)
    expected = r"/train/0\.tar: its 1,001 bytes exceed the limit of 1,000 bytes of the cache .*; raise"
    with pytest.raises(UserError, match=expected) as error:
        ShardCache(tmp_path / "cache", limit_bytes=1000).get(source, *shard)
    one_line(error)
    with pytest.raises(UserError, match="limited to 0 bytes holds nothing"):
        ShardCache(tmp_path / "cache", limit_bytes=0)


def test_rests_of_killed_processes_go_first_and_count(tmp_path):
    source, shards = folder_of_shards(tmp_path, 100, 100)
    cache = ShardCache(tmp_path / "cache", limit_bytes=250)
    cache.get(source, *shards[0]).release()
    rest = cache.folder / "ab" / f"{'ab' * 32}.part"
    rest.parent.mkdir(exist_ok=True)
    rest.write_bytes(bytes(100))
    os.utime(rest, (time.time() + 60,) * 2)  # used last
    cache.get(source, *shards[1]).release()
    assert held(cache.folder) == {shards[0][2], shards[1][2]}


def test_the_limit_holds_while_many_download(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPACE_SECONDS", 30.0)
    source, shards = folder_of_shards(tmp_path, *[1000 + i for i in range(12)])
    chunks, limit = source.chunks, 5200

    def slow(name, start=0, *, once=False):
        for chunk in chunks(name, start):
            time.sleep(0.003)
            yield chunk

    monkeypatch.setattr(source, "chunks", slow)
    folder = tmp_path / "cache"
    errors: list[Exception] = []

    def work(seed):
        rng, cache = random.Random(seed), ShardCache(folder, limit_bytes=limit)
        try:
            for _ in range(25):
                shard = rng.choice(shards)
                with cache.get(source, *shard) as lease:
                    assert sha(lease.path) == shard[2]
                    time.sleep(0.002)
                    assert sha(lease.path) == shard[2]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        with module.lock_file(folder / ".space") as space:
            fcntl.flock(space, fcntl.LOCK_EX)
            total = 0
            for path in folder.rglob("?" * 64 + "*"):
                with suppress(FileNotFoundError):
                    total += path.stat().st_size
            most = max(most, total)
        time.sleep(0.005)
    assert errors == []
    assert 4000 < most <= limit
    held(folder)


# the disk


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 1000)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_write", full)
    with pytest.raises(UserError, match=r"/cache: no space on the disk for the 1,000 bytes of train/0\.tar") as error:
        ShardCache(tmp_path / "cache").get(source, *shard)
    one_line(error)
    assert held(tmp_path / "cache") == set()


@contextmanager
def as_nobody() -> Iterator[None]:
    """In this process, for a moment."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter."""
    if os.geteuid():
        pytest.skip("only root can be two users")
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_cache_that_may_only_be_read_serves_what_it_has(place):
    source, shards = folder_of_shards(place, 1000, 1000)
    ShardCache(place / "cache").get(source, *shards[0]).release()
    with as_nobody():
        cache = ShardCache(place / "cache", limit_bytes=2000)
        with cache.get(source, *shards[0]) as lease:
            assert sha(lease.path) == shards[0][2]
        with pytest.raises(
            UserError, match=rf"{place}/cache.*permission denied for the 1,000 bytes.*chmod -R g"
        ) as error:
            cache.get(source, *shards[1])
        one_line(error)
        with pytest.raises(UserError, match=rf"{place}/mine: permission denied; put the cache elsewhere"):
            ShardCache(place / "mine")


def test_two_users_share_a_cache_that_both_may_write(place):
    source, shards = folder_of_shards(place, 1000, 1000, 1000)
    cache = ShardCache(place / "cache", limit_bytes=2000)
    cache.folder.chmod(0o777)
    cache.get(source, *shards[0]).release()
    lease = cache.get(source, *shards[1])
    with as_nobody(), ShardCache(place / "cache", limit_bytes=2000).get(source, *shards[2]) as other:
        assert held(cache.folder) == {shards[1][2], shards[2][2]}
        assert other.path.stat().st_uid == NOBODY
        assert sha(lease.path) == shards[1][2]
    lease.release()
    with as_nobody(), cache.get(source, *shards[1]) as lease:
        assert sha(lease.path) == shards[1][2]
    cache.get(source, *shards[0]).release()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    for path in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(UserError, match=r"cache.*: not a folder; put the cache elsewhere") as error:
            ShardCache(path)
        one_line(error)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOLCK, "its file system has no locks"),
        (errno.ENOENT, "removed while in use"),
        (errno.EROFS, "read-only"),
    ],
)
def test_what_else_the_disk_refuses_is_one_line(number, expected, tmp_path, monkeypatch):
    source, (shard,) = folder_of_shards(tmp_path, 100)
    cache = ShardCache(tmp_path / "cache")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.raises(UserError, match=expected) as error:
        cache.get(source, *shard)
    one_line(error)


# ahead of need


@pytest.fixture
def make_cache(tmp_path) -> Iterator[Callable[..., ShardCache]]:
    """Caches in one folder that are closed afterwards."""
    caches = []

    def make(**options) -> ShardCache:
        caches.append(ShardCache(tmp_path / "cache", **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()
        assert not any(thread.is_alive() for thread in cache._threads)


def test_what_is_wanted_comes_in_the_order_of_need_and_is_not_leased(make_cache, behind, proxy, monkeypatch):
    monkeypatch.setattr(module, "PREFETCH_THREADS", 1)
    source, shards = behind(*[1000] * 6)
    cache, order = make_cache(), [3, 0, 5, 1, 4, 2]
    cache.prefetch(source, [shards[i] for i in order])
    eventually(lambda: held_now(cache) == {shard[2] for shard in shards})
    assert [name for name, _ in proxy.gets] == [f"data/train/{i}.tar" for i in order]
    for shard in shards:
        with cache.get(source, *shard) as lease:
            assert sha(lease.path) == shard[2]
    assert len(proxy.gets) == 6
    assert all(module.exclusively(path) for path in cache.folder.glob("*/" + "?" * 64))


def test_get_waits_for_the_download_that_prefetch_has_begun(make_cache, behind, proxy):
    source, shards = behind(1000)
    proxy.fault = lambda n, name: ("slow", 0.3)
    cache = make_cache()
    cache.prefetch(source, shards)
    eventually(lambda: len(proxy.gets) == 1)
    with cache.get(source, *shards[0]) as lease:
        assert sha(lease.path) == shards[0][2]
    assert len(proxy.gets) == 1


def test_prefetch_goes_as_far_ahead_as_the_limit_allows_and_follows_the_need(make_cache, tmp_path, monkeypatch):
    source, shards = folder_of_shards(tmp_path, *[100] * 12)
    chunks, reads = source.chunks, []
    monkeypatch.setattr(source, "chunks", lambda *args, **kwargs: (reads.append(args[0]), chunks(*args, **kwargs))[1])
    cache = make_cache(limit_bytes=450)

    def here() -> list[int]:
        return [i for i, shard in enumerate(shards) if cache._path(shard[2]).exists()]

    cache.prefetch(source, shards)
    eventually(lambda: here() == [0, 1, 2, 3])
    time.sleep(0.2)
    assert here() == [0, 1, 2, 3]
    for i in range(12):
        with cache.get(source, *shards[i]) as lease:
            assert sha(lease.path) == shards[i][2]
            time.sleep(0.05)
            assert set(range(i, min(i + 4, 12))) <= set(here())
        eventually(lambda i=i: set(range(i + 1, min(i + 5, 12))) <= set(here()))
    assert Counter(reads) == {f"train/{i}.tar": 1 for i in range(12)}


def test_what_is_wanted_goes_after_what_is_not_and_the_last_needed_first(make_cache, tmp_path):
    source, shards = folder_of_shards(tmp_path, *[100] * 6)
    cache = make_cache(limit_bytes=400)
    cache.prefetch(source, shards[:3])
    eventually(lambda: held_now(cache) == {shard[2] for shard in shards[:3]})
    cache.get(source, *shards[3]).release()  # used later than those that are wanted
    cache.get(source, *shards[4]).release()
    assert held(cache.folder) == {shards[i][2] for i in (0, 1, 2, 4)}
    lease = cache.get(source, *shards[4])
    with cache.get(source, *shards[5]):
        assert held(cache.folder) == {shards[i][2] for i in (0, 1, 4, 5)}
    eventually(lambda: held_now(cache) == {shards[i][2] for i in (0, 1, 2, 4)})  # it comes again when there is room
    lease.release()


def test_prefetch_takes_no_room_from_what_others_use_but_waits_for_it(make_cache, tmp_path):
    source, shards = folder_of_shards(tmp_path, 100, 100)
    lease = make_cache(limit_bytes=100).get(source, *shards[0])
    cache = make_cache(limit_bytes=100)  # knows the lease by its lock alone
    cache.prefetch(source, shards[1:])
    time.sleep(0.2)
    assert held(cache.folder) == {shards[0][2]}
    lease.release()
    eventually(lambda: held_now(cache) == {shards[1][2]})


def test_prefetch_does_not_wait_for_what_somebody_else_fetches(make_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PREFETCH_THREADS", 1)
    source, shards = folder_of_shards(tmp_path, 100, 100)
    cache = make_cache()
    with ShardCache(cache.folder)._locked(shards[0], wait=True):
        cache.prefetch(source, shards)
        eventually(lambda: shards[1][2] in held_now(cache))
    assert held(cache.folder) == {shards[1][2]}


def test_a_new_list_replaces_the_old_one(make_cache, behind, proxy, monkeypatch):
    monkeypatch.setattr(module, "PREFETCH_THREADS", 1)
    source, shards = behind(*[1000] * 6)
    proxy.fault = lambda n, name: ("slow", 0.2)
    cache = make_cache()
    cache.prefetch(source, shards[:3])
    eventually(lambda: len(proxy.gets) == 1)
    cache.prefetch(source, shards[3:])
    eventually(lambda: len(held_now(cache)) == 4 and all(len(name) == 64 for name in held_now(cache)))
    time.sleep(0.3)
    assert held(cache.folder) == {shards[i][2] for i in (0, 3, 4, 5)}


def test_what_fails_ahead_of_need_is_told_by_get(make_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PREFETCH_THREADS", 1)
    source, shards = folder_of_shards(tmp_path, 100, 100, 100)
    wrong = (shards[0][0], 100, shards[1][2])
    cache = make_cache(limit_bytes=250)
    cache.prefetch(source, [("absent.tar", 100, "0" * 64), wrong, ("large.tar", 1000, "1" * 64)])
    time.sleep(0.3)
    cache.prefetch(source, [("absent.tar", 50, "0" * 64), (shards[2])])
    eventually(lambda: held_now(cache) == {shards[2][2]})
    with pytest.raises(UserError, match=r"absent\.tar: not in the store"):
        cache.get(source, "absent.tar", 100, "0" * 64)
    with pytest.raises(UserError, match="its sha256 is"):
        cache.get(source, *wrong)


def test_close_ends_the_downloads_ahead_and_leaves_nothing(make_cache, behind, proxy, monkeypatch):
    monkeypatch.setattr(download, "RETRY_SECONDS", 60.0)
    monkeypatch.setattr(download, "LONGEST_PAUSE", 60.0)
    monkeypatch.setattr(download, "FIRST_PAUSE", 60.0)
    source, shards = behind(1000, 1000)
    proxy.fault = lambda n, name: 503
    cache = make_cache()
    cache.prefetch(source, shards)
    eventually(lambda: len(proxy.gets) >= 2)
    began = time.monotonic()
    cache.close()
    assert time.monotonic() - began < 2
    assert held(cache.folder) == set()
    proxy.fault = lambda n, name: None
    with cache.get(source, *shards[0]) as lease:  # which needs no threads
        assert sha(lease.path) == shards[0][2]


# whole epochs


@pytest.mark.parametrize(
    "trouble",
    ["503", "cut", pytest.param("down", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.slow)],
)
def test_an_epoch_is_whole_whatever_the_server_does(trouble, builder, s3, server, proxy, tmp_path, monkeypatch):
    """503 to a third of the requests, answers cut in the middle, no server for 20 s: two ranks, the batches of a folder."""
    photographs = {f"train/{i}.png": photograph(i, 90, 120) for i in range(24)}
    folder = builder("epochs", photographs, splits={"train": ["photos/train"]})
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage(f"{s3}/data").write(path.relative_to(folder).as_posix(), path)
    settings = {"batch": 16, "sampling": Grid(31, 21), "world_size": 2}
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    ranks = [Loader(f"{s3}/data", rank=rank, cache=ShardCache(tmp_path / "cache"), **settings) for rank in range(2)]
    proxy.reset()
    middle = max(shard["bytes"] for shard in ranks[0].shard_set.shards) // 2
    faults = {
        "503": lambda n, name: 503 if n % 3 == 0 else None,
        "cut": lambda n, name: ("cut", middle) if n % 2 else None,
    }
    if trouble in faults:
        proxy.fault = faults[trouble]
    if trouble == "both":
        proxy.fault = lambda n, name: faults["503"](n, name) or faults["cut"](n, name)
    if trouble == "down":
        monkeypatch.setattr(download, "RETRY_SECONDS", 90.0)
        monkeypatch.setattr(download, "LONGEST_PAUSE", 10.0)
        monkeypatch.setattr(download, "FIRST_PAUSE", 0.5)
        began = time.monotonic()
        proxy.fault = lambda n, name: 503 if time.monotonic() - began < 20 else None
    locals_ = [Loader(folder, rank=rank, **settings).batches() for rank in range(2)]
    streams = [rank.batches() for rank in ranks]
    for _ in range(len(ranks[0])):
        for remote, local in zip(streams, locals_, strict=True):
            (at, batch), (expected, right) = next(remote), next(local)
            assert at == expected
            assert all(torch.equal(batch[name], right[name]) for name in right)
    for stream in (*streams, *locals_):
        stream.close()
    shards = {f"data/train/{shard['name']}" for shard in ranks[0].shard_set.shards}
    assert shards <= set(proxy.names())
    if trouble == "down":
        assert time.monotonic() - began > 20

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SECRET
from http_fakes import answering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage as module
from pipeline.errors import UserError
from pipeline.storage import BLOCK, Storage, storage


@pytest.fixture(params=["folder", "file", "bucket", "prefix"])
def store(request, tmp_path) -> Storage:
    if request.param in ("bucket", "prefix"):
        uri = request.getfixturevalue("s3")
        return storage(uri if request.param == "bucket" else f"{uri}/some/where/")
    return storage(str(tmp_path / "store") if request.param == "folder" else f"file://{tmp_path}/the%20store")


# what every store does


def test_what_is_written_is_read(store, tmp_path):
    store.write("models/a/card.md", b"one")
    store.write_new("models/a/weights", b"two")
    (tmp_path / "local").write_bytes(b"three")
    store.write_new("models/b/weights", tmp_path / "local")
    assert store.read("models/a/card.md") == b"one"
    assert store.read("models/a/weights") == b"two"
    assert store.read("models/b/weights") == b"three"
    assert store.names() == ["models/a/card.md", "models/a/weights", "models/b/weights"]
    assert store.names("models/a") == store.names("models/a/") == ["models/a/card.md", "models/a/weights"]
    assert store.names("models/b/we") == ["models/b/weights"]
    assert store.names("runs/") == []


def test_entries_have_sizes_and_times(store):
    began = int(time.time()) - 2
    for name in ("a/b", "c"):
        store.write(name, name.encode())
    assert [(entry.name, entry.size) for entry in store.entries()] == [("a/b", 3), ("c", 1)]
    assert [entry.name for entry in store.entries("a/")] == store.names("a/")
    assert all(began <= entry.modified <= time.time() + 2 for entry in store.entries())


def test_a_bucket_gives_the_md5_of_what_was_sent_in_one_part(s3):
    storage(s3).write("a", b"contents")
    assert [entry.etag for entry in storage(s3).entries()] == [hashlib.md5(b"contents").hexdigest()]


def test_a_named_endpoint_goes_before_the_environment(s3, server, monkeypatch):
    storage(s3).write("a", b"contents")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = storage(s3, server)
    assert (store.read("a"), b"".join(store.chunks("a", once=True))) == (b"contents", b"contents")


def test_two_views_of_one_place_see_the_same_files(store):
    store.write("models/a/card.md", b"one")
    assert storage(f"{store.uri}/models").read("a/card.md") == b"one"
    assert storage(f"{store.uri}/models/").names() == ["a/card.md"]


def test_a_name_is_written_anew_only_once(store, tmp_path):
    (tmp_path / "local").write_bytes(b"second")
    store.write_new("x", b"first")
    for data in (b"second", tmp_path / "local"):
        with pytest.raises(FileExistsError) as error:
            store.write_new("x", data)
        assert error.value.errno == errno.EEXIST
        assert error.value.filename.endswith("/x")
    assert store.read("x") == b"first"
    store.write("x", b"third")
    assert store.read("x") == b"third"


def test_what_is_not_there_is_a_file_not_found(store, tmp_path):
    store.write("there", b"")
    for attempt in (store.read, store.sha256, lambda name: store.download(name, tmp_path / "out")):
        with pytest.raises(FileNotFoundError) as error:
            attempt("models/absent")
        assert error.value.filename.endswith("/models/absent")
    assert not (tmp_path / "out").exists()
    assert store.read("there") == b""


def test_large_files_pass_through_in_blocks(store, tmp_path):
    data = os.urandom(2 * BLOCK + 3)
    (tmp_path / "local").write_bytes(data)
    store.write_new("large", tmp_path / "local")
    assert max(len(chunk) for chunk in store.chunks("large")) <= BLOCK
    assert store.sha256("large") == hashlib.sha256(data).hexdigest()
    store.download("large", tmp_path / "folder" / "copy")
    assert (tmp_path / "folder" / "copy").read_bytes() == data
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["copy"]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("ab-_.1=+ é", min_size=1).filter(lambda name: name[0] != "."), st.binary(), max_size=4))
def test_names_and_contents_survive(store, files):
    place = uuid.uuid4().hex
    for name, data in files.items():
        store.write_new(f"{place}/{name}", data)
    assert store.names(place) == sorted(f"{place}/{name}" for name in files)
    assert {name: store.read(f"{place}/{name}") for name in files} == files


# a folder


def test_one_of_many_simultaneous_writers_succeeds(tmp_path):
    for attempt in range(20):
        start, won = threading.Barrier(8), []

        def write(writer, start=start, won=won, attempt=attempt):
            store = storage(str(tmp_path))
            start.wait()
            try:
                store.write_new(f"file-{attempt}", writer * 1000)
                won.append(writer)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert (tmp_path / f"file-{attempt}").read_bytes() == won[0] * 1000


@pytest.mark.parametrize("moment", ["fsync", "link"])
def test_a_writer_that_fails_leaves_nothing_under_the_name(tmp_path, monkeypatch, moment):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, moment, full)
    store = storage(str(tmp_path))
    with pytest.raises(OSError, match="No space"):
        store.write_new("x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_leaves_has_no_name(tmp_path):
    code = (
        "import os, pipeline.storage as s; os.fsync = lambda _: os.kill(os.getpid(), 9);"
        f"s.storage({str(tmp_path)!r}).write_new('x', b'half')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    store = storage(str(tmp_path))
    assert store.names() == []
    store.write_new("x", b"whole")
    assert store.read("x") == b"whole"


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="no hard links"):
        storage(str(tmp_path)).write_new("x", b"")


# a bucket


def test_listings_are_read_to_their_last_page(s3, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    store = storage(f"{s3}/place")
    names = [f"file-{i}" for i in range(7)]
    for name in names:
        store.write(name, b"")
    assert store.names() == names


@pytest.mark.parametrize(("setting", "sent"), [(None, False), ("when_supported", True)])
def test_uploads_have_no_checksums_that_older_stores_refuse(s3, monkeypatch, setting, sent):
    if setting:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    store = storage(s3)
    headers = []
    store.client.meta.events.register("before-send.s3", lambda request, **_: headers.extend(request.headers))
    store.write("x", b"data")
    store.write_new("y", b"data")
    assert any("checksum" in header.lower() for header in headers) == sent


SECTIONS = {
    "endpoint_url": "[default]\nendpoint_url = {url}\n",
    "services": "[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n",
}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(("setting", "sent"), [(None, False), ("when_supported", True)])
def test_an_endpoint_of_the_configuration_file_is_one_too(s3, server, monkeypatch, tmp_path, section, setting, sent):
    chosen = f"request_checksum_calculation = {setting}\n" if setting else ""
    (tmp_path / "config").write_text(
        SECTIONS[section].format(url=server).replace("[default]\n", f"[default]\n{chosen}")
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store = storage(s3)
    headers = []
    store.client.meta.events.register("before-send.s3", lambda request, **_: headers.extend(request.headers))
    store.write("x", b"data")
    assert store.endpoint == server
    assert any("checksum" in header.lower() for header in headers) == sent


def test_without_an_endpoint_it_is_amazons(monkeypatch, s3):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert storage(s3).endpoint == "AWS"


def test_a_write_that_meets_another_in_flight_tries_again(s3, monkeypatch):
    from botocore.exceptions import ClientError

    store = storage(s3)
    put, attempts = store._put_new, []

    def busy(name, body):
        attempts.append(body.read() if hasattr(body, "read") else body)
        if len(attempts) < 3:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
        put(name, attempts[-1])

    monkeypatch.setattr(store, "_put_new", busy)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    store.write_new("x", b"data")
    assert attempts == [b"data"] * 3
    assert store.read("x") == b"data"


def test_a_write_that_always_meets_another_ends_after_some_seconds_and_other_errors_at_once(s3, monkeypatch):
    from botocore.exceptions import ClientError

    store, pauses, clock = storage(s3), [], SimpleNamespace(now=0.0)

    def sleep(seconds):
        pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now))
    for code, waited in (("ConditionalRequestConflict", [0.1, 0.2, 0.4, 0.8, 1.6]), ("AccessDenied", [])):

        def fail(name, body, code=code):
            raise ClientError({"Error": {"Code": code}}, "PutObject")

        monkeypatch.setattr(store, "_put_new", fail)
        pauses.clear()
        with pytest.raises(UserError, match="x: "):
            store.write_new("x", b"data")
        assert pauses == waited


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def attempts(store: Storage, tmp_path: Path):
    yield lambda: store.read("x")
    yield lambda: store.names()
    yield lambda: store.write("x", b"")
    yield lambda: store.write_new("x", b"")
    yield lambda: store.download("x", tmp_path / "x")


def test_a_missing_bucket_is_named(s3, tmp_path):
    for attempt in attempts(storage(f"{s3}-else/place"), tmp_path):
        with pytest.raises(UserError, match=r"no bucket 'bucket-.*-else' at http.*; create it") as error:
            attempt()
        one_line(error)


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_the_missing_credential_is_named(s3, monkeypatch, missing):
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=rf"no credentials; set {missing}$") as error:
        storage(s3).read("x")
    one_line(error)


def test_without_credentials_both_are_named(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY$"):
        storage(s3).read("x")


def test_refused_credentials_are_named(s3, server, tmp_path):
    def authenticate_after(requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", requests, headers)).close()

    authenticate_after(b"0")
    try:
        for attempt in attempts(storage(s3), tmp_path):
            with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID is not known at http") as error:
                attempt()
            one_line(error)
    finally:
        authenticate_after(b"inf")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_line_break_in_a_credential_is_found_before_a_header_shows_it(s3, monkeypatch, variable):
    monkeypatch.setenv(variable, f"{SECRET}\n")
    with pytest.raises(UserError, match=f"{variable} begins or ends with a blank or a line break") as error:
        storage(s3)
    one_line(error)


def test_an_endpoint_that_does_not_answer_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"no whole answer from http://127\.0\.0\.1:9 .*AWS_ENDPOINT_URL") as error:
        storage(s3).read("x")
    one_line(error)


def test_an_endpoint_that_is_no_url_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(UserError, match="Invalid endpoint: nonsense") as error:
        storage(s3)
    one_line(error)


@pytest.fixture
def other_server(s3, monkeypatch):
    """A function that puts another answer to GET in the place of the S3 server's."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with ExitStack() as servers:
        yield lambda *answer: monkeypatch.setenv("AWS_ENDPOINT_URL", servers.enter_context(answering(*answer)))


@pytest.mark.parametrize("status", [200, 404])
def test_an_endpoint_that_is_no_store_is_named(s3, other_server, status):
    other_server(b"<html>hi", status)
    with pytest.raises(UserError, match=r"at http://127\.0\.0\.1") as error:
        storage(s3).names()
    one_line(error)


def test_an_answer_cut_short_is_an_error_and_no_file(s3, other_server, tmp_path):
    other_server(b"half of it", 200, 100)
    with pytest.raises(UserError, match="no whole answer") as error:
        storage(s3).download("x", tmp_path / "copy")
    one_line(error)
    assert list(tmp_path.iterdir()) == []


# URIs


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///x", "gs://bucket", "file://host/x", "file://", "https://host/x"])
def test_other_uris_are_refused(uri):
    with pytest.raises(UserError, match="not a store"):
        storage(uri)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for uri in (str(tmp_path / "file"), f"file://{tmp_path}/file"):
        with pytest.raises(UserError, match="is a file"):
            storage(uri)


def test_a_folder_needs_no_boto3():
    code = "import sys, pipeline.storage as s; s.storage('.').names('nothing/'); assert 'boto3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

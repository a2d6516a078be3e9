import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import SECRET
from teams import Clone

from benchmarks.faults import proxy
from jobs.sharing.health import examine_sharing
from jobs.sharing.probe import MARK, rights
from jobs.sharing.settings import edited, share
from pipeline import files
from pipeline.errors import UserError
from pipeline.params import read_params
from pipeline.storage import storage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path, s3):
    clone = Clone(tmp_path / "clone")
    shutil.copy(ROOT / "params.yaml", clone.root / "params.yaml")
    clone.commit()
    return clone


def behind(server, monkeypatch, **methods):
    """The URL of a server before the tests' own that behaves in another way."""
    between = proxy.Proxy(server, "127.0.0.1", type("Handler", (proxy.Handler,), methods))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.server_port}")
    return os.environ["AWS_ENDPOINT_URL"]


def read_only(self, body):
    denied = proxy.refusal(403, "AccessDenied", "Access Denied")
    self.give(denied if self.command in ("PUT", "DELETE") else self.upstream(body))


def without_conditions(self):
    return {name: value for name, value in proxy.Handler.passed(self).items() if name.lower() != "if-none-match"}


def settings(clone):
    return (clone.root / ".dvc/config").read_bytes(), (clone.root / "params.yaml").read_bytes()


def test_one_command_sets_up_remote_store_shards_and_endpoint(clone, s3, server):
    done = share(clone.root, f"{s3}/team/", server)
    config, params = (text.decode() for text in settings(clone))
    assert config == (
        "[core]\n    remote = bucket\n"
        f"['remote \"bucket\"']\n    url = {s3}/team/dvc\n    verify = true\n    endpointurl = {server}\n"
    )
    expected = f"store: {s3}/team\nshards: {s3}/team/shards\nendpoint: {server}\n"
    assert params == (ROOT / "params.yaml").read_text().replace("store: store\n", expected)
    assert (done.had, [str(may) for may in done.rights.values()]) == ("store", ["read, write and delete"] * 3)
    assert storage(s3).names() == [f"team/{place}/{MARK}" for place in ("dvc", "models", "shards")]
    assert SECRET not in config + params


def test_setting_up_again_changes_nothing(clone, s3, server):
    share(clone.root, s3, server)
    before = settings(clone)
    again = share(clone.root, s3, server)  # not committed in between
    assert (again.files, settings(clone)) == ([], before)


def test_a_remote_that_is_there_is_completed(clone, s3):
    (clone.root / ".dvc/config").write_text(
        f"# ours\n[core]\n    autostage = true\n    remote = team\n['remote \"team\"']\n    url = {s3}/dvc\n"
    )
    clone.commit()
    share(clone.root, s3, None)
    config = (clone.root / ".dvc/config").read_text()
    assert config.startswith("# ours\n[core]\n    autostage = true\n    remote = team\n")
    assert config.endswith(f"url = {s3}/dvc\n    verify = true\n")


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({"answer": read_only}, "read-only: pull, restore and evaluate work; .*; nothing was set up$"),
        ({"passed": without_conditions}, "the server ignores If-None-Match"),
    ],
)
def test_nothing_is_written_for_a_bucket_that_a_team_cannot_use(clone, s3, server, monkeypatch, methods, told):
    before = settings(clone)
    with pytest.raises(UserError, match=told):
        share(clone.root, s3, behind(server, monkeypatch, **methods))
    assert settings(clone) == before


def test_a_read_only_key_is_told_what_still_works(clone, s3, server, monkeypatch):
    share(clone.root, s3, server)
    endpoint = behind(server, monkeypatch, answer=read_only)
    assert str(rights(f"{s3}/dvc", endpoint)).startswith("read-only: pull, restore and evaluate work")


def test_a_key_that_cannot_delete_is_told(s3, server, monkeypatch):
    def answer(self, body):
        denied = proxy.refusal(403, "AccessDenied", "Access Denied")
        self.give(denied if self.command == "DELETE" else self.upstream(body))

    assert tuple(rights(s3, behind(server, monkeypatch, answer=answer))) == (True, False)


def test_a_server_that_gives_back_something_else_is_refused(s3, server, monkeypatch):
    def answer(self, body):
        given = self.upstream(body)
        self.give(
            given._replace(body=given.body[:-1] + b"x")
            if self.command == "GET" and self.path.endswith(MARK) and "?" not in self.path
            else given
        )

    with pytest.raises(UserError, match="gives back something else than was sent"):
        rights(s3, behind(server, monkeypatch, answer=answer))


def test_a_wrong_endpoint_and_an_expired_token_are_one_line(clone, s3, server, monkeypatch):
    before = settings(clone)
    with pytest.raises(UserError, match=r"no whole answer from http://127.0.0.1:1 "):
        share(clone.root, s3, "http://127.0.0.1:1")

    def expired(self, body):
        self.give(proxy.refusal(400, "ExpiredToken", "The provided token has expired."))

    with pytest.raises(UserError, match="AWS_SESSION_TOKEN has expired; get a new one"):
        share(clone.root, s3, behind(server, monkeypatch, answer=expired))
    assert settings(clone) == before


def test_keys_in_an_address_are_refused_and_not_repeated(clone, s3):
    for uri, endpoint in (("s3://me:hush@bucket/x", None), (s3, "https://me:hush@host:9000")):
        with pytest.raises(UserError, match="has a user or a password in it") as error:
            share(clone.root, uri, endpoint)
        assert "hush" not in str(error.value)
    with pytest.raises(UserError, match="not a bucket"):
        share(clone.root, "store", None)
    with pytest.raises(UserError, match="endpoint"):
        share(clone.root, s3, "no-url")


@pytest.mark.parametrize(
    ("params", "config", "told"),
    [
        ({"store": "s3://other/x"}, "", "store is 's3://other/x', not 's3://"),
        ({"shards": "s3://other/x"}, "", "shards is 's3://other/x', not 's3://"),
        ({"endpoint": "http://other"}, "", "endpoint is 'http://other', not 'http://"),
        (
            {},
            "[core]\n    remote = a\n['remote \"a\"']\n    url = s3://other/dvc\n",
            "remote 'a' has url 's3://other/dvc'",
        ),
        (
            {},
            "['remote \"a\"']\n    url = s3://a/b\n    access_key_id = k\n",
            "access_key_id is in DVC's configuration",
        ),
    ],
)
def test_settings_of_somebody_else_are_told_and_stay(tmp_path, s3, server, params, config, told):
    clone = Clone(tmp_path / "clone", **params)
    (clone.root / ".dvc/config").write_text(config)
    clone.commit()
    before = settings(clone)
    with pytest.raises(UserError, match=told):
        share(clone.root, s3, server)
    assert settings(clone) == before


def test_changes_that_are_not_committed_are_told_and_stay(clone, s3, server):
    (clone.root / "params.yaml").open("a").write("# mine\n")
    before = settings(clone)
    with pytest.raises(UserError, match=r"params\.yaml has changes that are not committed"):
        share(clone.root, s3, server)
    assert settings(clone) == before


def test_both_files_or_none(clone, s3, server, monkeypatch):
    before = settings(clone)

    def full(path, data):
        if path.name == "params.yaml":
            raise OSError(28, "No space left on device", str(path))
        files.write_bytes(path, data)

    monkeypatch.setattr("jobs.sharing.settings.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        share(clone.root, s3, server)
    assert settings(clone) == before


def test_without_git_or_dvc_it_says_so(clone, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    shutil.rmtree(clone.root / ".git")
    with pytest.raises(UserError, match="not a git repository"):
        share(clone.root, s3, None)


@pytest.mark.parametrize(
    "text", ["a: 1\nstore: store", "# c\nstore:   'store'  # ours\nshards: null\n\nother: {a: [b]}\n"]
)
def test_only_the_values_of_params_change(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(
        text.replace("a: 1\n", "") + "\ndatasets: {}\ntasks: []\nrecipes: {}\n".replace("other: {a: [b]}\n", "")
    )
    path.write_text(path.read_text().replace("other: {a: [b]}\n", ""))
    before = path.read_text()
    after = edited(path, {"store": "s3://a/b", "shards": "s3://a/b: #c"}).decode()
    path.write_text(after)
    assert (read_params(path).store, read_params(path).shards) == ("s3://a/b", "s3://a/b: #c")
    kept = [line for line in before.splitlines() if not line.startswith(("store", "shards"))]
    assert [line for line in after.splitlines() if not line.startswith(("store", "shards"))] == kept
    assert ("# ours" in after) == ("# ours" in before)


def findings(clone, params=None):
    params = params or read_params(clone.root / "params.yaml")
    return {f.what.split()[0]: (f.ok, f.detail) for f in examine_sharing(clone.root, params, clone.root / "runs")}


def details(clone):
    return " ".join(
        f.detail for f in examine_sharing(clone.root, read_params(clone.root / "params.yaml"), clone.root / "runs")
    )


def test_doctor_looks_at_the_remote_the_store_and_the_shards(clone, s3, server, monkeypatch):
    monkeypatch.chdir(clone.root)
    assert findings(clone)["remote"] == (
        True,
        "none; `memoir share init s3://bucket/prefix` shares data and models with a team",
    )
    share(clone.root, s3, server)
    found = findings(clone)
    assert all(ok for ok, _ in found.values())
    assert found["store"][1] == "0 published versions; read, write and delete"
    assert found["shards"][1] == "read, write and delete"
    config = clone.root / ".dvc/config"
    kept = config.read_text()
    config.write_text(kept.replace("verify = true", "verify = false"))
    assert findings(clone)["remote"] == (
        False,
        "DVC does not check what it downloads; run `dvc remote modify bucket verify true`",
    )
    config.write_text(kept.replace(server, "http://127.0.0.1:1"))
    assert not findings(clone)["remote"][0]
    config.write_text("")
    assert "no default remote" in findings(clone)["remote"][1]


def test_doctor_follows_the_pointers_into_the_store(tmp_path, monkeypatch):
    clone = Clone(tmp_path / "clone")
    monkeypatch.chdir(clone.root)
    runs, store = clone.root / "runs/x", storage("store")
    runs.mkdir(parents=True)
    (runs / "checkpoint.json").write_text(json.dumps({"checkpoint": "runs/x-1/step-00000002"}))
    (runs / "published.json").write_text(json.dumps({"model": "models/x/0123456789ab"}))
    assert "runs/x-1/step-00000002 is not in store" in details(clone)
    assert "models/x/0123456789ab is not in store" in details(clone)
    store.write("runs/x-1/step-00000002/model.safetensors", b"")
    store.write("models/x/0123456789ab/SHA256SUMS", b"")
    assert findings(clone)["pointers"] == (True, f"2 of {clone.root}/runs/ are in the store")
    (runs / "published.json").write_text(json.dumps({"model": "../other"}))
    assert findings(clone)["pointer"][1].endswith("model ../other leads out of the store; run its stage again")


def test_the_commands_speak_to_people(clone, s3, server, cli, monkeypatch):
    monkeypatch.chdir(clone.root)
    code, out, _ = cli("share", "init", s3)
    assert code == 0
    assert "dvc pull" in out
    assert f"endpoint: {server}\n" in (clone.root / "params.yaml").read_text()  # that of the environment
    assert cli("share", "init", s3)[1].endswith("is set up already; nothing changed\n")
    code, out, _ = cli("share", "status")
    assert (code, out.count("ok  ")) == (0, 4)
    code, _, err = cli("share", "verify", "--remote", "nix")
    assert (code, err.count("\n")) == (1, 1)

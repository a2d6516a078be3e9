import hashlib
import threading

import pytest
from conftest import SECRET

from jobs.sharing.transfer import copy
from pipeline.errors import UserError
from pipeline.storage import storage


def fill(uri):
    """A store with two versions of x, one of y, a half one, a run that has ended and one that has not."""
    store = storage(uri)

    def folder(name, sums, seed):
        files = {"model.safetensors": f"weights {seed}".encode() * 9, "recipe.yaml": b"recipe"}
        for file, data in files.items():
            store.write(f"{name}/{file}", data)
        lines = [f"{hashlib.sha256(data).hexdigest()}  {file}\n" for file, data in sorted(files.items())]
        store.write(f"{name}/{sums}", "".join(lines).encode())

    for name, digit in (("x", "1"), ("x", "2"), ("y", "3")):
        folder(f"models/{name}/{digit * 12}", "SHA256SUMS", digit)
    store.write("models/x/444444444444/model.safetensors", b"half")
    store.write("models/x/latest.json", b'{"version": "222222222222"}')
    store.write("models/x/promoted.json", b'{"version": "111111111111"}')
    for run in ("ended", "training"):
        folder(f"runs/{run}/step-00000001", "checkpoint.sha256", run)
        store.write(f"runs/{run}/metrics.jsonl", b"{}")
    store.write("runs/ended/done.json", b'{"checkpoint": "step-00000001"}')
    return store


def contents(store, prefix=""):
    return {name: store.read(name) for name in store.names(prefix)}


@pytest.fixture
def stores(tmp_path, s3):
    return fill(str(tmp_path / "a")), storage(f"{s3}/team")


def copied(source, target, *names):
    lines = []
    return copy(source.uri, target.uri, list(names), lines.append), lines


def test_all_that_is_whole_is_copied_and_nothing_twice(stores):
    a, b = stores
    done, lines = copied(a, b)
    expected = contents(a)
    left = [name for name in expected if name.startswith(("runs/training/", "models/x/444"))]
    assert contents(b) == {name: data for name, data in expected.items() if name not in left}
    assert (len(done.versions), done.runs, len(done.pointers), len(lines)) == (3, ["runs/ended"], 2, 4)
    assert done.left == [f"{a.uri}/runs/training: has no done.json: training, or broken off; copy it when it has ended"]
    again, lines = copied(a, b)
    assert (again.versions, again.runs, again.pointers, again.there, again.bytes, lines) == ([], [], [], 4, 0, [])


def test_what_is_named_is_copied_and_pointers_to_other_versions_stay_behind(stores):
    a, b = stores
    done, _ = copied(a, b, "models/x/111111111111")
    assert (done.versions, done.pointers) == (["models/x/111111111111"], ["models/x/promoted.json"])
    assert done.left == [f"{a.uri}/models/x/latest.json: names 222222222222, which was not copied"]
    copied(a, b, "models/y", "runs/ended")
    assert {name.split("/")[1] for name in b.names()} == {"x", "y", "ended"}
    with pytest.raises(UserError, match="models/z: nothing whole there; known: models/x/1"):
        copied(a, b, "models/z")
    with pytest.raises(UserError, match="expected models/<recipe>"):
        copied(a, b, "../x")


def test_sums_and_pointers_come_last(stores, monkeypatch):
    a, b = stores
    order = []
    write = type(b).write_new
    monkeypatch.setattr(type(b), "write_new", lambda self, name, data: (order.append(name), write(self, name, data))[1])
    copied(a, b, "models/x/222222222222", "runs/ended")
    ends = [name.rpartition("/")[2] for name in order]
    assert (
        ends.index("SHA256SUMS") == ends.index("latest.json") - 1 > ends.index("recipe.yaml", ends.index("done.json"))
    )
    assert ends[:5][-1] == "done.json"
    assert ends.index("checkpoint.sha256") == 2


@pytest.mark.parametrize("after", range(1, 9))
def test_a_killed_copy_is_continued(tmp_path, after):
    a, b = fill(str(tmp_path / "a")), storage(str(tmp_path / "b"))
    write, count = type(b).write_new, 0

    def killed(self, name, data):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        write(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(b), "write_new", killed)
        with pytest.raises(KeyboardInterrupt):
            copied(a, b)
    copied(a, b)
    whole = storage(str(tmp_path / "c"))
    copied(a, whole)
    assert contents(b) == contents(whole)


def test_two_may_copy_at_once(stores):
    a, b = stores
    start, problems = threading.Barrier(4), []

    def run():
        start.wait()
        try:
            copied(a, b)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert b.read("models/x/latest.json") == a.read("models/x/latest.json")
    assert len(b.names()) == 9 + 4 + 1 + 2


def test_the_targets_own_latest_stays(stores):
    a, b = stores
    b.write("models/x/latest.json", b'{"version": "999999999999"}')
    done, _ = copied(a, b)
    assert f"{b.uri}/models/x/latest.json: names another version, which stays" in done.left
    assert b.read("models/x/latest.json") == b'{"version": "999999999999"}'


def test_the_records_of_promotions_go_along_and_are_never_changed(stores):
    a, b = stores
    for name in ("1", "2"):
        a.write(f"models/x/promotions/{name}.json", name.encode())
    b.write("models/x/promotions/2.json", b"another")
    done, _ = copied(a, b)
    assert b.read("models/x/promotions/1.json") == b"1"
    assert b.read("models/x/promotions/2.json") == b"another"
    assert f"{b.uri}/models/x/promotions/2.json: is another record, which stays" in done.left
    assert not [line for line in copied(a, b)[0].left if "promotions/1" in line]


def test_other_contents_and_damage_are_told_and_never_spread(stores):
    a, b = stores
    b.write("models/x/111111111111/model.safetensors", b"other")
    with pytest.raises(UserError, match=r"111111111111/model.safetensors: is there with other contents"):
        copied(a, b, "models/x")
    assert b.read("models/x/111111111111/model.safetensors") == b"other"
    a.write("models/y/333333333333/recipe.yaml", b"damaged")
    with pytest.raises(UserError, match=r"333333333333/recipe.yaml: changed since it was written"):
        copied(a, b, "models/y")
    assert not b.names("models/y/333333333333/SHA256SUMS")
    for name in ("SHA256SUMS", "done.json"):
        prefix = "models/x/222222222222" if name == "SHA256SUMS" else "runs/ended"
        b.write(f"{prefix}/{name}", b"{}")
        with pytest.raises(UserError, match=f"{name}: is there with other contents"):
            copied(a, b, prefix)


def test_no_store_and_no_permission_are_one_line(stores, tmp_path, monkeypatch):
    a, b = stores
    with pytest.raises(UserError, match="no published versions and no runs"):
        copied(storage(str(tmp_path / "empty")), b)
    with pytest.raises(UserError, match="is both stores"):
        copied(a, a)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="no credentials; set AWS_SECRET_ACCESS_KEY"):
        copied(a, storage(b.uri))


def test_use_names_the_target_in_params(stores, cli, workplace):
    (workplace.root / "params.yaml").write_text(
        "# ours\nstore: a  # the old one\ndatasets: {}\ntasks: []\nrecipes: {}\n"
    )
    b = stores[1]
    code, out, err = cli("store", "copy", "a", b.uri, "models", "--use")
    assert (code, err.count("\n")) == (1, 1)
    code, out, err = cli("store", "copy", "a", b.uri, "--use")
    assert (code, SECRET in out) == (0, False)
    assert (workplace.root / "params.yaml").read_text().startswith(f"# ours\nstore: {b.uri}  # the old one\n")

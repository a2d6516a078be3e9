"""A team's day: Ann and Ben share data, parameters, runs and models through git and one bucket, and nothing is lost."""

import hashlib
import json
import os
import shutil
import signal
import time
from typing import Any, NamedTuple

import pytest
from colleagues import BUCKET, IMAGES, Passed, Person, Proxy, bucket, clone, repository

from pipeline.dvc_objects import object_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PREFIX = "memoir"
STORE = f"s3://{BUCKET}/{PREFIX}"
RECIPE = "jobs/recipes/tiny.yaml"


class Team(NamedTuple):
    """Both people, the proxy before the bucket, and the server behind it."""

    ann: Person
    ben: Person
    counted: Proxy
    server: Any

    def objects(self, below: str = "") -> dict[str, int]:
        """The bytes of each object of the bucket, by name."""
        pages = self.server.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/{below}")
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}

    def latest(self) -> str:
        """The latest version of the model."""
        body = self.server.get_object(Bucket=BUCKET, Key=f"{PREFIX}/models/tiny/latest.json")["Body"]
        return json.loads(body.read())["version"]


def names(person: Person, folder: str, suffix: str = "") -> set[str]:
    """The files of this kind below a folder of a clone."""
    found = (path for path in (person.root / folder).rglob(f"*{suffix}") if path.is_file())
    return {path.relative_to(person.root).as_posix() for path in found}


def digests(person: Person, folder: str) -> dict[str, str]:
    """The MD5 of each file below a folder of a clone."""
    return {name: hashlib.md5((person.root / name).read_bytes()).hexdigest() for name in names(person, folder)}


def test_two_people_work_on_one_bucket(tmp_path, capsys):
    with bucket() as (counted, server):
        origin = repository(tmp_path)
        team = Team(*(clone(name, origin, tmp_path / name.lower()) for name in ("Ann", "Ben")), counted, server)
        for step in (share, join, change, change_both, experiment, publish_both, break_off, damage):
            counted.passed()
            told = step(team) or counted.passed()
            with capsys.disabled():
                print(
                    f"{step.__name__:>12} {told.requests:>6} requests {told.up:>10,} bytes up {told.down:>10,} down",
                    flush=True,
                )


def share(team: Team) -> None:
    """Ann sets the bucket up, with data, shards and a published model."""
    ann = team.ann
    for split, count in IMAGES.items():
        for i in range(count):
            ann.photo(f"{split}/{i:03}.png", 1000 * len(split) + i)
    said = ann.run("memoir", "share", "init", STORE, "--endpoint", team.counted.url)
    assert said.count("read, write and delete") == 3
    ann.run("dvc", "add", "-q", "datasets")
    of_the_recipe = [f"{stage}@tiny" for stage in ("build", "train", "evaluate", "publish", "restore")]
    assert ann.repro() == ["list", "ingest", *of_the_recipe, "report"]
    ann.commit("Data and a first model")
    ann.send()
    assert team.latest() == ann.read("runs/tiny/published.json")["version"]


def join(team: Team) -> None:
    """Ben has nothing, pulls, has nothing to do, and restores with Ann's model."""
    ann, ben = team.ann, team.ben
    ben.run("git", "pull", "-q")
    assert not (ben.root / "datasets").exists()
    ben.run("dvc", "pull", "-q")
    assert ben.repro() == ["list"]
    assert ben.run("git", "status", "--porcelain") == ""
    assert ben.clean()
    assert "FAIL" not in ben.run("memoir", "share", "status")
    ben.run("memoir", "restore", "--model", "runs/tiny/published.json", "runs/tiny/pictures/input", "restored")
    by_ann = [(ann.root / name).read_bytes() for name in sorted(names(ann, "runs/tiny/restored"))]
    assert by_ann
    assert [(ben.root / name).read_bytes() for name in sorted(names(ben, "restored"))] == by_ann
    shutil.rmtree(ben.root / "restored")


def change(team: Team) -> Passed:
    """Ann adds 5 images, removes 3 and replaces 1: what moves is what she changed, and the shards and tables of it."""
    ann, ben, counted = team.ann, team.ben, team.counted
    before, shards = team.objects("dvc/files"), names(ann, "data/tiny", ".tar")
    photos = [ann.photo(f"train/{20 + i:03}-more.png", 100 + i) for i in range(5)]
    for i in (40, 41, 42):
        (ann.root / f"datasets/photos/train/{i:03}.png").unlink()
    photos.append(ann.photo("train/050.png", 200))
    ann.run("dvc", "add", "-q", "datasets")
    assert ann.repro("build@tiny") == ["list", "ingest", "build@tiny"]
    changed = names(ann, "data/tiny", ".tar") - shards
    assert 0 < len(changed) < len(shards)
    size = sum((ann.root / name).stat().st_size for name in changed)
    built = counted.passed()
    assert sum(name.endswith(".tar") for name in built.puts) == len(changed)
    assert built.up < 1.2 * size  # and what is remembered of each shard
    assert built.down < 0.1 * size  # nothing of it comes back
    ann.commit("Other images")
    ann.send()
    sent = counted.passed()
    new = {name: size for name, size in team.objects("dvc/files").items() if name not in before}
    tables = sum((ann.root / name).stat().st_size for name in names(ann, "data") if not name.endswith(".tar"))
    lists = sum(size for name, size in new.items() if name.endswith(".dir"))
    assert sent.up == sum(new.values()) <= size + sum(path.stat().st_size for path in photos) + tables + lists
    assert sorted(sent.puts) == sorted(new)
    assert sent.requests <= 3 * len(new) + 30
    ben.run("git", "pull", "-q")
    ben.run("dvc", "pull", "-q")
    got = counted.passed()
    assert got.down <= sum(new.values()) + 500 * len(before | new)  # with the list of all objects, by name
    assert ben.repro("build@tiny") == ["list"]
    assert digests(ben, "datasets") == digests(ann, "datasets")
    return sent


def change_both(team: Team) -> None:
    """Both change another image at the same time, and push at once; git merges it, and nothing is left to do for either."""
    ann, ben = team.ann, team.ben
    for i, person in enumerate((ann, ben)):
        person.photo(f"train/{5 + 40 * i:03}.png", 300 + i)
        person.run("dvc", "add", "-q", "datasets")
        person.repro("build@tiny")
        person.commit(f"An image of {person.name}")
    pushing = [(person, person.start("dvc", "push")) for person in (ann, ben)]
    ended = [person.ended(process) for person, process in pushing]
    assert [code for code, _ in ended] == [0, 0], ended
    ann.run("git", "push", "-q")
    ben.run("git", "push", "-q", rc=1)
    assert "both branches ran" in ben.run("git", "pull", "--no-rebase", "--no-edit")
    ben.run("dvc", "pull", "-q", "datasets")
    ben.repro()
    ben.commit("The shards of both images")
    ben.send()
    ann.run("git", "pull", "-q", "--no-rebase", "--no-edit")
    ann.run("dvc", "pull", "-q")
    for i, person in enumerate((ann, ben)):
        assert person.clean()
        assert person.repro() == ["list"]
        assert person.run("git", "status", "--porcelain") == ""
        photo = person.root / f"datasets/photos/train/{5 + 40 * i:03}.png"
        for each in (ann, ben):
            assert (each.root / photo.relative_to(person.root)).read_bytes() == photo.read_bytes()
    assert digests(ann, "data/tiny") == digests(ben, "data/tiny")


def experiment(team: Team) -> None:
    """Ben tries a parameter; Ann takes it over, and nobody trains it again. The latest model is Ben's when Ann says so."""
    ann, ben, counted = team.ann, team.ben, team.counted
    latest = team.latest()
    ben.run("dvc", "exp", "run", "--temp", "-n", "faster", "-S", f"{RECIPE}:optimisation.lr=0.002")
    ben.run("dvc", "exp", "push", "origin", "faster")
    assert ben.run("git", "status", "--porcelain") == ""
    counted.passed()
    ann.run(
        "memoir", "train", "tiny", "--set", "optimisation.lr=0.002", "--runs", ".cache/tried"
    )  # by hand: it is there
    assert counted.passed().puts == []
    ann.run("dvc", "exp", "pull", "origin", "faster")
    ann.run("dvc", "exp", "apply", "faster")
    counted.passed()
    assert ann.repro() == ["list"]
    assert counted.passed().puts == []
    tried, held = (ann.read(f"{runs}/checkpoint.json") for runs in (".cache/tried/tiny+lr=0.002", "runs/tiny"))
    assert (tried["run"], tried["sha256"]) == (held["run"], held["sha256"])
    scores = (ann.root / "runs/tiny/scores.json").read_bytes()
    ann.run("memoir", "evaluate", "--model", "tiny")
    assert (ann.root / "runs/tiny/scores.json").read_bytes() == scores
    assert team.latest() == latest
    ann.commit("Faster")
    assert "already there" in ann.run("memoir", "publish", "tiny")
    assert team.latest() == ann.read("runs/tiny/published.json")["version"] != latest
    assert ann.clean()
    ann.send()
    ben.run("git", "pull", "-q")
    ben.run("dvc", "pull", "-q")
    assert ben.repro() == ["list"]


def publish_both(team: Team) -> None:
    """Both publish the model at the same time into a store that does not have it: one version, whole, and no error."""
    store = f"s3://{BUCKET}/released"
    begun = [(person, person.start("memoir", "publish", "tiny", "--to", store)) for person in (team.ann, team.ben)]
    ended = [person.ended(process) for person, process in begun]
    assert [code for code, _ in ended] == [0, 0], ended
    said = team.ben.run("memoir", "models", store, "--json")
    (version,) = json.loads(said[said.index("[\n") :])  # after the line that says whose code runs
    assert version["version"] == team.latest()
    assert version["latest"]
    held = team.server.list_objects_v2(Bucket=BUCKET, Prefix=f"released/models/tiny/{version['version']}/")["Contents"]
    contents = {each["Key"].rpartition("/")[2]: each["Key"] for each in held}
    body = {name: team.server.get_object(Bucket=BUCKET, Key=key)["Body"].read() for name, key in contents.items()}
    sums = dict(reversed(line.split("  ")) for line in body.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in body.items()}


def break_off(team: Team) -> None:
    """A push that is killed in the middle is repeated, and sends only what is not there."""
    ann, counted = team.ann, team.counted
    for i in range(30):
        ann.photo(f"train/{i:03}-late.png", 400 + i)
    ann.run("dvc", "add", "-q", "datasets")
    counted.passed()
    counted.seconds = 0.3  # so that it is killed in the middle
    push = ann.start("dvc", "push", "--jobs", "4", "datasets")
    while len(counted.puts) < 6:
        assert push.poll() is None, push.communicate()
        time.sleep(0.01)
    os.killpg(push.pid, signal.SIGKILL)
    push.wait()
    time.sleep(1)  # what is on its way arrives
    counted.seconds = 0.0
    first = set(counted.passed().puts)
    assert 0 < len(first) < 30
    assert "missing" in ann.run("memoir", "share", "verify", rc=1)
    ann.run("dvc", "push", "-q", "datasets")
    again = counted.passed().puts
    assert len(again) == len(set(again))
    assert not first & set(again)
    assert len(first | set(again)) == 30 + 1  # and the list of the folder
    assert " 0 wrong" in ann.run("memoir", "share", "verify", "--contents")


def damage(team: Team) -> None:
    """An object that is deleted and one that is cut off are found, and mended by who has them."""
    ann, ben, server = team.ann, team.ben, team.server
    held = digests(ann, "datasets/photos/train")
    one, other = (
        f"{PREFIX}/dvc/{object_name(held[f'datasets/photos/train/{name}.png'])}" for name in ("000", "001-late")
    )
    server.delete_object(Bucket=BUCKET, Key=one)
    whole = server.get_object(Bucket=BUCKET, Key=other)["Body"].read()
    server.put_object(Bucket=BUCKET, Key=other, Body=whole[:100])
    said = ann.run("memoir", "share", "verify", rc=1)
    assert "missing: datasets/photos/" in said
    assert f"truncated (100 bytes instead of {len(whole):,})" in said
    said = ann.run("memoir", "share", "verify", "--repair")
    assert said.count("repaired: ") == 2
    assert server.get_object(Bucket=BUCKET, Key=other)["Body"].read() == whole
    ann.commit("Late images")
    ann.run("git", "push", "-q", "origin", "main")
    ben.run("git", "pull", "-q")
    ben.run("dvc", "pull", "-q", "datasets")
    assert digests(ben, "datasets") == digests(ann, "datasets")

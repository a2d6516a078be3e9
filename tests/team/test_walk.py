"""A team's day: Ann and Ben share data, parameters, runs and models through git and one bucket, and nothing is lost."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from colleagues import BUCKET, IMAGES, Passed, Person, Proxy, bucket, clone, repository

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


def test_two_people_work_on_one_bucket(tmp_path, capsys):
    with bucket() as (counted, server):
        origin = repository(tmp_path)
        team = Team(*(clone(name, origin, tmp_path / name.lower()) for name in ("Ann", "Ben")), counted, server)
        for step in (share, join, change, change_both, experiment, publish_both, break_off, damage):
            counted.passed()
            began = time.monotonic()
            step(team)
            passed = counted.passed()
            with capsys.disabled():
                print(
                    f"{step.__name__:>14} {time.monotonic() - began:>6.1f} s {passed.requests:>6} requests "
                    f"{passed.up:>10,} bytes up {passed.down:>10,} down",
                    flush=True,
                )


def share(team: Team) -> None:
    ann = team.ann
    for split, count in IMAGES.items():
        for i in range(count):
            ann.photo(f"{split}/{i:03}.png", 1000 * len(split) + i)
    said = ann.run("memoir", "share", "init", STORE, "--endpoint", team.counted.url)
    assert "read, write and delete" in said
    ann.run("dvc", "add", "-q", "datasets")
    assert ann.repro() == ["list", "ingest", *(f"{each}@tiny" for each in ("build", "train", "evaluate", "publish", "restore")), "report"]
    ann.commit("Data and a first model")
    ann.send()
    assert team.latest() == ann.read("runs/tiny/published.json")["version"]


def join(team: Team) -> None:
    ben = team.ben
    ben.run("git", "pull", "-q")
    assert not (ben.root / "datasets").exists()
    ben.run("dvc", "pull", "-q")
    assert ben.repro() == ["list"]
    assert ben.run("git", "status", "--porcelain") == ""
    assert ben.clean()
    assert "FAIL" not in ben.run("memoir", "share", "status")
    ben.run("memoir", "restore", "--model", "runs/tiny/published.json", "datasets/photos/test", "restored")
    by_ann = {path.name: path.read_bytes() for path in (team.ann.root / "runs/tiny/restored").iterdir()}
    assert len(list((ben.root / "restored").iterdir())) == IMAGES["test"] and by_ann


def change(team: Team) -> None:
    """Ann adds 5 images, removes 3 and replaces 1: what moves is what she changed, and the shards and tables of it."""
    ann, ben = team.ann, team.ben
    before, shards = team.objects("dvc/files"), names(ann, "data/tiny", ".tar")
    photos = [ann.photo(f"train/{20 + i:03}-more.png", 100 + i) for i in range(5)]
    for i in (40, 41, 42):
        (ann.root / f"datasets/photos/train/{i:03}.png").unlink()
    photos.append(ann.photo("train/050.png", 200))
    ann.run("dvc", "add", "-q", "datasets")
    ann.repro("build@tiny")
    changed = sum((ann.root / path).stat().st_size for path in names(ann, "data/tiny", ".tar") - shards)
    building = team.counted.passed()
    print(building)
    assert changed <= building.up
    ann.run("dvc", "repro")
    ann.commit("Other images")
    print(team.counted.passed())
    ann.send()
    sent = team.counted.passed()
    new = {name: size for name, size in team.objects("dvc/files").items() if name not in before}
    print(sent._replace(puts=[]), len(sent.puts), len(new), sum(new.values()), sorted(new.values()), changed, sum(p.stat().st_size for p in photos))
    print(len(names(ann, "data/tiny", ".tar")), len(shards))
    ben.run("git", "pull", "-q")
    ben.run("dvc", "pull", "-q")
    got = team.counted.passed()
    print(got)
    assert ben.repro() == ["list"]


def names(person: Person, folder: str, suffix: str) -> set[str]:
    """The files of this kind below a folder of a clone."""
    return {path.relative_to(person.root).as_posix() for path in (person.root / folder).rglob(f"*{suffix}")}


def change_both(team: Team) -> None:
    """Both change other images at the same time; git merges it, and neither has anything to do afterwards."""
    ann, ben = team.ann, team.ben
    for i, person in enumerate((ann, ben)):
        person.photo(f"train/{5 + 40 * i:03}.png", 300 + i)
        person.run("dvc", "add", "-q", "datasets")
        person.run("dvc", "repro", "build@tiny")
        person.commit(f"An image of {person.name}")
    for person, process in [(person, person.start("dvc", "push")) for person in (ann, ben)]:
        code, said = person.ended(process)
        assert code == 0, said
    ann.run("git", "push", "-q")
    ben.run("git", "push", "-q", rc=1)
    print(ben.run("git", "pull", "--no-rebase", "--no-edit"))
    print(ben.run("dvc", "pull", "datasets"))
    print(ben.run("dvc", "repro"))
    print(ben.run("git", "status"))
    ben.commit("Both")
    ben.send()
    print(ann.run("git", "pull", "--no-rebase", "--no-edit"))
    ann.run("dvc", "pull", "-q")
    for person in (ann, ben):
        assert person.clean()
        assert person.repro() == ["list"]
        assert person.run("git", "status", "--porcelain") == ""
    assert ann.read("data/tiny/shards.json") == ben.read("data/tiny/shards.json")


def experiment(team: Team) -> None:
    ann, ben = team.ann, team.ben
    latest = team.latest()
    print(ben.run("dvc", "exp", "run", "--temp", "-n", "faster", "-S", f"{RECIPE}:optimisation.lr=0.002"))
    print(team.counted.passed()._replace(puts=[]))
    print(ben.run("dvc", "exp", "push", "origin", "faster"))
    assert team.latest() == latest
    print(ann.run("dvc", "exp", "pull", "origin", "faster"))
    print(ann.run("dvc", "exp", "apply", "faster"))
    team.counted.passed()
    print(ann.run("dvc", "repro"))
    print(team.counted.passed())
    assert team.latest() == latest
    print(ann.run("git", "status"))
    ann.commit("faster")
    print(ann.run("memoir", "publish", "tiny"))
    assert team.latest() != latest
    ann.send()


def publish_both(team: Team) -> None:
    """Both publish the model at the same time into a store that does not have it: one version, whole, and no error."""
    store = f"s3://{BUCKET}/released"
    begun = [(person, person.start("memoir", "publish", "tiny", "--to", store)) for person in (team.ann, team.ben)]
    ended = [person.ended(process) for person, process in begun]
    assert [code for code, _ in ended] == [0, 0], ended
    (version,) = json.loads(team.ben.run("memoir", "models", store, "--json"))
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
    files = [path for path in team.objects("dvc/files") if not path.endswith(".dir")]
    one, other = (path for path in files if path.rpartition("/")[2] in objects_of(ann, "026-more.png", "000.png"))
    server.delete_object(Bucket=BUCKET, Key=one)
    whole = server.get_object(Bucket=BUCKET, Key=other)["Body"].read()
    server.put_object(Bucket=BUCKET, Key=other, Body=whole[:100])
    said = ann.run("memoir", "share", "verify", rc=1)
    assert "missing: datasets/photos/" in said
    assert f"truncated (100 bytes instead of {len(whole):,} bytes)" in said
    said = ann.run("memoir", "share", "verify", "--repair")
    assert said.count("repaired: ") == 2
    assert server.get_object(Bucket=BUCKET, Key=other)["Body"].read() == whole
    ann.commit("Late images")
    ann.run("git", "push", "-q", "origin", "main")
    ben.run("git", "pull", "-q")
    ben.run("dvc", "pull", "-q", "datasets")
    assert contents(ben, "datasets") == contents(ann, "datasets")

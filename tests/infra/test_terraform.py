"""infra/**/*.tf: that they hold together, that the bucket keeps what it must, and that the policies allow what the code does."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hcl2
import pytest
from moto.core.authorization import enable_iam_authentication
from moto.iam.access_control import S3IAMRequest

from jobs.training.resume import Checkpoints
from pipeline.errors import UserError
from pipeline.storage import Bucket, storage

ROOT = Path(__file__).parents[2]
BUCKET = "memoir-example"
ROLES = {
    "reader": ["reader"],
    "trainer": ["reader", "trainer"],
    "builder": ["reader", "trainer", "builder"],
}


def read(folder: str) -> dict[str, list[dict[str, Any]]]:
    """All blocks of a root module by their kind."""
    options = hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False, with_comments=False)
    blocks: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "infra" / folder).glob("*.tf")):
        with path.open() as file:
            for kind, found in hcl2.load(file, serialization_options=options).items():
                blocks.setdefault(kind, []).extend(found)
    return blocks


def named(blocks: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The resources, or data sources, of a kind by name."""
    return {name: body for block in blocks for name, body in block.get(kind, {}).items()}


def policies() -> dict[str, list[dict[str, Any]]]:
    """The statements of each policy document of the bucket, as IAM has them."""
    arn = f"arn:aws:s3:::{BUCKET}"
    found = {}
    for name, document in named(read("terraform")["data"], "aws_iam_policy_document").items():
        found[name] = [
            {
                "Effect": statement.get("effect", "Allow"),
                "Action": statement["actions"],
                "Resource": [
                    re.sub(r"\$\{aws_s3_bucket\.memoir\.arn\}", arn, r) for r in statement.get("resources", [])
                ],
            }
            for statement in document["statement"]
        ]
    return found


@pytest.mark.parametrize("folder", ["terraform", "vm"])
def test_every_reference_is_to_something_that_exists(folder):
    blocks = read(folder)
    known = {f"var.{name}" for block in blocks["variable"] for name in block}
    known |= {f"{kind}.{name}" for block in blocks["resource"] for kind, body in block.items() for name in body}
    known |= {f"data.{kind}.{name}" for block in blocks["data"] for kind, body in block.items() for name in body}
    expressions = " ".join(re.findall(r"\$\{(.*?)\}", json.dumps({k: v for k, v in blocks.items() if k != "variable"})))
    used = set(re.findall(r"(?<![\w.])(var\.\w+|data\.aws_\w+\.\w+|aws_\w+\.\w+)", expressions))
    assert used <= known
    assert {each for each in known if each.startswith("var.")} <= used


def test_both_modules_ask_for_the_same_provider():
    assert read("terraform")["terraform"] == read("vm")["terraform"]


def test_the_bucket_is_versioned_encrypted_and_closed():
    resources = read("terraform")["resource"]

    def only(kind: str) -> dict[str, Any]:
        (body,) = named(resources, kind).values()
        return body

    assert only("aws_s3_bucket")["lifecycle"] == [{"prevent_destroy": True}]
    assert only("aws_s3_bucket_versioning")["versioning_configuration"] == [{"status": "Enabled"}]
    (rule,) = only("aws_s3_bucket_server_side_encryption_configuration")["rule"]
    assert rule == {"apply_server_side_encryption_by_default": [{"sse_algorithm": "AES256"}]}
    assert only("aws_s3_bucket_ownership_controls")["rule"] == [{"object_ownership": "BucketOwnerEnforced"}]
    closed = only("aws_s3_bucket_public_access_block")
    assert {value for key, value in closed.items() if key != "bucket"} == {True}
    assert len(closed) == 5
    assert only("aws_s3_bucket_policy")["policy"] == "${data.aws_iam_policy_document.bucket.json}"


def test_only_tls_is_let_in():
    (statement,) = named(read("terraform")["data"], "aws_iam_policy_document")["bucket"]["statement"]
    assert statement["effect"] == "Deny"
    assert statement["actions"] == ["s3:*"]
    assert statement["principals"] == [{"type": "*", "identifiers": ["*"]}]
    assert statement["condition"] == [{"test": "Bool", "variable": "aws:SecureTransport", "values": ["false"]}]
    assert {r["Resource"][1] for r in policies()["bucket"]} == {f"arn:aws:s3:::{BUCKET}/*"}


def test_runs_expire_and_models_do_not():
    (configuration,) = named(read("terraform")["resource"], "aws_s3_bucket_lifecycle_configuration").values()
    rules = {rule["id"]: rule for rule in configuration["rule"]}
    assert all(rule["status"] == "Enabled" for rule in rules.values())
    expiring = {id: rule for id, rule in rules.items() if "days" in rule.get("expiration", [{}])[0]}
    assert {id: rule["filter"] for id, rule in expiring.items()} == {"runs": [{"prefix": "runs/"}]}
    assert expiring["runs"]["expiration"] == [{"days": "${var.runs_days}"}]
    leftovers = rules["leftovers"]
    assert leftovers["filter"] == [{}]
    assert leftovers["noncurrent_version_expiration"] == [{"noncurrent_days": "${var.noncurrent_days}"}]
    assert leftovers["abort_incomplete_multipart_upload"] == [{"days_after_initiation": 7}]


def test_the_vms_are_open_to_ssh_from_one_network_alone():
    resources = read("vm")["resource"]
    rules = named(resources, "aws_vpc_security_group_ingress_rule")
    assert rules.keys() == {"nodes", "ssh"}
    assert rules["nodes"]["referenced_security_group_id"] == "${aws_security_group.ray.id}"
    assert (rules["ssh"]["from_port"], rules["ssh"]["to_port"]) == (22, 22)
    assert rules["ssh"]["cidr_ipv4"] == "${var.ssh_cidr}"
    assert not {"ingress", "egress"} & named(resources, "aws_security_group")["ray"].keys()


def test_the_head_ends_only_its_own_workers_and_passes_only_their_role():
    statements = named(read("vm")["data"], "aws_iam_policy_document")["launcher"]["statement"]
    by_action = {action: statement for statement in statements for action in statement["actions"]}
    assert by_action["iam:PassRole"]["resources"] == ["${data.aws_iam_role.trainer.arn}"]
    assert by_action["ec2:TerminateInstances"]["condition"][0]["variable"] == "aws:ResourceTag/ray-cluster-name"
    wild = {action for action, statement in by_action.items() if statement["resources"] == ["*"]}
    assert wild == {"ec2:DescribeInstances", "ec2:RunInstances"}
    assert not any(action.endswith("*") for action in by_action)


# the policies at work: a server that checks each request against them


@pytest.fixture(scope="module")
def keys(server: str) -> dict[str, dict[str, str]]:
    """A user for each role: the variables of its credentials. The bucket has something under each prefix."""
    someone = {"aws_access_key_id": "someone", "aws_secret_access_key": "something", "region_name": "us-east-1"}
    s3, iam = (boto3.client(name, endpoint_url=server, **someone) for name in ("s3", "iam"))
    s3.create_bucket(Bucket=BUCKET)
    for name in (
        "data/tiny/shards.json",
        "shards/ab.tar",
        "dvc/files/md5/00/11",
        "models/x/latest.json",
        "runs/x/done.json",
    ):
        s3.put_object(Bucket=BUCKET, Key=name, Body=b"{}")
    found = {}
    for role, attached in ROLES.items():
        iam.create_user(UserName=role)
        for name in attached:
            document = json.dumps({"Version": "2012-10-17", "Statement": policies()[name]})
            iam.put_user_policy(UserName=role, PolicyName=name, PolicyDocument=document)
        key = iam.create_access_key(UserName=role)["AccessKey"]
        found[role] = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return found


@pytest.fixture
def requests(
    monkeypatch: pytest.MonkeyPatch, s3: str, keys: dict[str, dict[str, str]]
) -> Iterator[list[tuple[str, str]]]:
    """Every request from now on needs its permission; those that had it, as (action, resource)."""
    granted: list[tuple[str, str]] = []
    check = S3IAMRequest.check_action_permitted

    def checked(self: S3IAMRequest, resource: str) -> None:
        check(self, resource)
        granted.append((self._action, resource))

    monkeypatch.setattr(S3IAMRequest, "check_action_permitted", checked)
    with enable_iam_authentication():
        yield granted


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, keys: dict[str, dict[str, str]]) -> Any:
    """Take a role."""

    def take(role: str) -> None:
        for variable, value in keys[role].items():
            monkeypatch.setenv(variable, value)

    return take


def place(prefix: str) -> Bucket:
    """A part of the bucket."""
    found = storage(f"s3://{BUCKET}/{prefix}")
    assert isinstance(found, Bucket)
    return found


def train(tmp_path: Path) -> None:
    """What a run does in the bucket: reads its data, checkpoints and prunes, resumes, publishes; a build leaves a shard."""
    assert place("data/tiny").read("shards.json") == b"{}"
    run = place("runs/memnet-0123")
    checkpoints = Checkpoints(run, keep_last=1, keep_best=0)
    for step in (1, 2):
        checkpoints.save(step, {"model.safetensors": b"weights"}, {}, {"curve": b"beside"})
    checkpoints.wait()
    assert checkpoints.newest(tmp_path, print) == "step-00000002"
    assert not run.names("step-00000001")
    run.write_new("done.json", b"{}")
    place("models/memnet/0123").write_new("model.safetensors", b"weights")
    place("models/memnet").write("latest.json", b"{}")
    place("shards").write_new("cd.tar", b"shard")


def bring(tmp_path: Path) -> None:
    """What a person does who brings data."""
    place("data/more").write("shards.json", b"{}")
    place("dvc").write("files/md5/22/33", b"tracked")
    storage(f"s3://{BUCKET}").write("vgg19-dcbb9e9d.pth", b"weights")


def use(tmp_path: Path) -> None:
    """What somebody does who uses models."""
    assert "x/latest.json" in place("models").names()
    assert place("models").read("x/latest.json") == b"{}"


@pytest.mark.parametrize(("role", "work", "unused"), [
    ("reader", use, set()),
    ("trainer", train, set()),
    # boto3 and DVC send large files in parts, and take back what came to nothing
    ("builder", bring, {"s3:AbortMultipartUpload"}),
])  # fmt: skip
def test_a_role_may_do_its_work_and_needs_all_that_its_policy_allows(role, work, unused, become, requests, tmp_path):
    become(role)
    work(tmp_path)
    for statement in policies()[role]:
        for action in set(statement["Action"]) - unused:
            for pattern in statement["Resource"]:
                assert any(a == action and fnmatch.fnmatchcase(r, pattern) for a, r in requests), (action, pattern)


@pytest.mark.parametrize(("role", "refused"), [
    ("reader", ["write data/x", "write shards/x", "write dvc/x", "write runs/x", "write models/x", "remove runs/x/done.json"]),
    ("trainer", ["write data/x", "write dvc/x", "write x", "remove models/x/latest.json", "remove shards/ab.tar"]),
    ("builder", ["write x", "remove data/tiny/shards.json", "remove dvc/files/md5/00/11", "remove models/x/latest.json"]),
])  # fmt: skip
def test_a_role_may_not_do_more(role, refused, become, requests):
    become(role)
    bucket = storage(f"s3://{BUCKET}")
    for request in refused:
        verb, name = request.split()
        with pytest.raises(UserError, match="access denied"):
            bucket.write(name, b"") if verb == "write" else bucket.remove(name)
    assert not requests


@pytest.mark.slow  # DVC takes seconds for each command
def test_dvc_pushes_as_a_builder_and_pulls_as_a_reader(become, requests, tmp_path, monkeypatch):
    def dvc(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    (tmp_path / "none").touch()
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    photo = Path("photo.png")
    photo.write_bytes(b"pixels")
    become("builder")
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "bucket", f"s3://{BUCKET}/dvc")
    dvc("add", "photo.png")
    dvc("push")
    assert any(action == "s3:PutObject" and "/dvc/files/md5/" in resource for action, resource in requests)
    become("reader")
    photo.unlink()
    shutil.rmtree(".dvc/cache")
    dvc("pull")
    assert photo.read_bytes() == b"pixels"

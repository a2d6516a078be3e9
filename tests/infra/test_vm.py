"""infra/vm/cluster.yaml against Ray's own schema, EC2's own model, and what Ray's launcher makes of it."""

import copy
import os
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The file as it is."""
    return yaml.safe_load((ROOT / "infra" / "vm" / "cluster.yaml").read_text())


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults, held against Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def test_ray_takes_it(cluster):
    from jsonschema import ValidationError

    assert prepared(cluster)["head_node_type"] == "head"
    with pytest.raises(ValidationError, match="idle_timeout"):
        prepared(cluster | {"idle_timeout": 1})


def test_ec2_takes_its_nodes(cluster):
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    counts = {"MinCount": 1, "MaxCount": 1}
    for node in cluster["available_node_types"].values():
        assert not ParamValidator().validate(node["node_config"] | counts, shape).generate_report()
    assert "Imageid" in ParamValidator().validate(counts | {"Imageid": "x"}, shape).generate_report()


def test_the_launcher_opens_no_port(cluster, tmp_path, monkeypatch):
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws

    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("HOME", str(tmp_path))  # where the launcher puts the key of its nodes
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="memoir-ray", Description="x", VpcId=vpc)["GroupId"]
        mine = yaml.safe_load(yaml.safe_dump(cluster).replace("sg-0123456789abcdef0", group))
        nodes = bootstrap_aws(prepared(mine))["available_node_types"]
        groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["SecurityGroups"]
        roles = boto3.client("iam").list_roles()["Roles"]
    assert not roles  # nor does it make a role with all of EC2 and S3
    assert all(node["node_config"]["SecurityGroupIds"] == [group] for node in nodes.values())
    assert {each["GroupName"]: each["IpPermissions"] for each in groups} == {"default": [], "memoir-ray": []}


def test_the_dashboard_stays_on_the_head(cluster):
    (start,) = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


def test_nodes_ask_for_the_token_and_get_nothing_else(cluster):
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"/home/memoir/.ray/auth_token": "~/.ray/auth_token"}


def test_workers_come_and_go_and_the_head_takes_no_tasks(cluster):
    head, *workers = cluster["available_node_types"].values()
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert [node["min_workers"] for node in workers] == [0, 0]
    assert sum(node["max_workers"] for node in workers) <= cluster["max_workers"]
    assert not cluster["provider"]["cache_stopped_nodes"]
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_disks_are_encrypted_and_metadata_want_a_token(cluster):
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


def test_roles_and_image_are_those_of_the_other_files(cluster):
    terraform = (ROOT / "infra/terraform/access.tf").read_text() + (ROOT / "infra/vm/main.tf").read_text()
    for node in cluster["available_node_types"].values():
        assert f'name = "{node["node_config"]["IamInstanceProfile"]["Name"]}"' in terraform
    assert cluster["docker"]["image"] in (ROOT / "infra/kuberay/raycluster.yaml").read_text()
    assert f'values   = ["{cluster["cluster_name"]}"]' in terraform  # the tag of the nodes that the head may end

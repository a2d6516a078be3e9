"""The manifests of infra/kuberay against Kubernetes' schemas, KubeRay's rules, and what the code and the image need."""

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

import memoir
from jobs.recipe import read_recipe
from pipeline.shards.shard_set import CACHE
from pipeline.storage import Bucket, storage

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
OLDEST, NEWEST = "1.31", "1.37"  # of Kubernetes
HOME = Path("/home/memoir")  # the working directory of the image


class Closed(BaseModel):
    """An unknown field is an error."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


# No package registry carries KubeRay's CRDs. These are, by hand, the fields of ray.io/v1 in KubeRay 1.7 that a manifest here
# may have; the pods in them are checked against Kubernetes' own schemas.


class AuthOptions(Closed):
    """Token authentication."""

    mode: Literal["token", "disabled"]


class AutoscalerOptions(Closed):
    """The autoscaler's container."""

    version: Literal["v2"]
    idle_timeout_seconds: int
    resources: dict[str, Any]
    security_context: dict[str, Any]


class HeadGroupSpec(Closed):
    """The head."""

    ray_start_params: dict[str, str]
    template: dict[str, Any]


class WorkerGroupSpec(HeadGroupSpec):
    """A pool of workers."""

    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int


class RayClusterSpec(Closed):
    """A cluster."""

    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec]


class RayJobSpec(Closed):
    """A job and its cluster."""

    entrypoint: str
    backoff_limit: int
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    ray_cluster_spec: RayClusterSpec


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def parsed(cluster: dict[str, Any]) -> RayClusterSpec:
    """A cluster's spec, held against KubeRay's rules. Raises ValidationError, or AssertionError."""
    spec = RayClusterSpec.model_validate(cluster)
    for group in spec.worker_group_specs:
        assert 0 <= group.min_replicas <= group.replicas <= group.max_replicas
    if spec.enable_in_tree_autoscaling:  # version 2 replaces a pod, it never restarts one
        groups = [spec.head_group_spec, *spec.worker_group_specs]
        assert {group.template["spec"]["restartPolicy"] for group in groups} == {"Never"}
    return spec


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The spec of the standing cluster."""
    return documents("raycluster.yaml")[0]["spec"]


@pytest.fixture
def job() -> dict[str, Any]:
    """The spec of the run with a cluster of its own."""
    return documents("rayjob.yaml")[0]["spec"]


@pytest.fixture
def templates(cluster: dict[str, Any], job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All pod templates by <manifest>/<group>."""
    found = {}
    for name, spec in (("raycluster", cluster), ("rayjob", job["rayClusterSpec"])):
        found[f"{name}/head"] = spec["headGroupSpec"]["template"]
        found |= {f"{name}/{group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    return found


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    """A pod made of a template."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template.get("metadata", {})}} | {
        "spec": template["spec"]
    }


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_plain_objects_are_valid(version):
    objects = documents("namespace.yaml")
    assert [each["kind"] for each in objects] == ["Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy"]
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_pods_are_valid(templates, cluster, version):
    for template in templates.values():
        kubernetes_validate.validate(as_pod(template), version, strict=True)
    # what the operator puts beside the head
    autoscaler = {key: cluster["autoscalerOptions"][key] for key in ("resources", "securityContext")}
    pod = as_pod({"spec": {"containers": [{"name": "autoscaler", "image": "x"} | autoscaler]}})
    kubernetes_validate.validate(pod, version, strict=True)


def test_an_unknown_field_of_a_pod_is_found(templates):
    pod = copy.deepcopy(as_pod(templates["raycluster/gpu"]))
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(pod, NEWEST, strict=True)


def test_clusters_keep_kuberays_rules(cluster, job):
    assert parsed(cluster).autoscaler_options
    spec = RayJobSpec.model_validate(job)
    assert not parsed(job["rayClusterSpec"]).enable_in_tree_autoscaling  # the operator keeps the number of pods
    assert spec.ttl_seconds_after_finished == 0 or spec.shutdown_after_job_finishes
    with pytest.raises(ValidationError, match="minReplica"):
        parsed(cluster | {"workerGroupSpecs": [{"groupName": "x", "minReplica": 1}]})


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_names_and_kinds(name):
    (each,) = documents(name)
    assert each["apiVersion"] == "ray.io/v1"
    assert each["kind"].lower() == Path(name).stem
    assert each["metadata"].keys() == {"name", "namespace"}
    assert each["metadata"]["namespace"] == documents("namespace.yaml")[0]["metadata"]["name"]
    assert len(each["metadata"]["name"]) < 48  # KubeRay makes longer names of it


def test_ray_has_the_locked_version(cluster, job):
    locked = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    assert f"ray=={cluster['rayVersion']}" == locked
    assert job["rayClusterSpec"]["rayVersion"] == cluster["rayVersion"]


def test_both_manifests_have_the_same_pods(templates, cluster, job):
    assert templates["rayjob/head"] == templates["raycluster/head"]
    assert templates["rayjob/gpu"] == templates["raycluster/gpu"]
    assert job["rayClusterSpec"]["headGroupSpec"] == cluster["headGroupSpec"]


def test_tokens_are_asked_for_and_the_head_takes_no_tasks(cluster, job):
    for spec in (cluster, job["rayClusterSpec"]):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_job_runs_a_recipe_that_its_pods_can_hold(job):
    program, command, recipe, *options = shlex.split(job["entrypoint"])
    assert (program, command) == ("memoir", "train")
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--data"] == f"{given['--store']}/data"
    known = {opt for parameter in click_command("train").params for opt in parameter.opts}
    assert given.keys() <= known
    overrides = [value for name, value in zip(options[::2], options[1::2], strict=True) if name == "--set"]
    training = read_recipe(recipe, overrides).training
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert training.gpu
    assert training.workers == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert training.cpus_per_worker <= int(limits["cpu"])


def click_command(name: str) -> Any:
    """A command of memoir, as click has it."""
    import typer

    return typer.main.get_command(memoir.app).commands[name]


def test_pods_are_confined(templates):
    for name, template in templates.items():
        spec = template["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == security["fsGroup"] == 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["serviceAccountName"] == "memoir", name
        head = name.endswith("/head")  # its autoscaler speaks to Kubernetes
        assert spec.get("automountServiceAccountToken", True) is head, name
        (container,) = spec["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all("hostPath" not in volume for volume in spec["volumes"]), name


def test_pods_have_limits_for_all_they_ask_for(templates):
    for name, template in templates.items():
        resources = template["spec"]["containers"][0]["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= resources["requests"].keys() == resources["limits"].keys(), (
            name
        )
        for volume in template["spec"]["volumes"]:
            memory = volume["emptyDir"].get("medium") == "Memory"
            room = resources["limits"]["memory" if memory else "ephemeral-storage"]
            assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) < int(room.removesuffix("Gi")), name


def test_the_cache_and_shared_memory_are_volumes(templates):
    for name, template in templates.items():
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str((HOME / CACHE).parent) == str(Path(documents("namespace.yaml")[2]["data"]["MEMOIR_CACHE"]).parent)
        assert str((HOME / CACHE).parent) in mounts, name
        assert {"/tmp/ray", "/dev/shm"} <= mounts, name
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            v["name"] for v in template["spec"]["volumes"]
        }


def test_shared_memory_has_room_for_the_object_store(templates, cluster):
    size = next(v for v in templates["raycluster/gpu"]["spec"]["volumes"] if v["name"] == "shm")["emptyDir"][
        "sizeLimit"
    ]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert 2 * int(group["rayStartParams"]["object-store-memory"]) <= int(size.removesuffix("Gi")) * 2**30


def test_gpu_pods_go_to_gpu_nodes_and_others_do_not(templates):
    for name, template in templates.items():
        gpu = name.endswith("/gpu")
        spec = template["spec"]
        assert ("nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]) is gpu, name
        assert ("nodeSelector" in spec) is ("tolerations" in spec) is gpu, name


def test_the_settings_reach_the_store_and_ray(monkeypatch):
    config = (KUBERAY / "namespace.yaml").read_text().replace("# AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL")
    settings = list(yaml.safe_load_all(config))[2]["data"]
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, os.devnull)
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    place = storage("s3://memoir-example")
    assert isinstance(place, Bucket)
    assert place.client.meta.region_name == settings.pop("AWS_DEFAULT_REGION")
    assert place.client.meta.endpoint_url == settings.pop("AWS_ENDPOINT_URL")
    told = "from pipeline.shards.shard_set import CACHE; print(CACHE)"
    environment = {**os.environ, "MEMOIR_CACHE": settings["MEMOIR_CACHE"]}
    cache = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert cache.stdout.strip() == settings.pop("MEMOIR_CACHE")
    (left,) = settings
    assert f'setdefault("{left}"' in "".join(path.read_text() for path in (ROOT / "jobs/training").glob("*.py"))


def test_pods_have_the_settings_and_the_optional_keys(templates):
    _, _, config, _ = documents("namespace.yaml")
    for name, template in templates.items():
        sources = template["spec"]["containers"][0]["envFrom"]
        assert sources == [
            {"configMapRef": {"name": config["metadata"]["name"]}},
            {"secretRef": {"name": "memoir-s3", "optional": True}},
        ], name


def test_only_the_namespace_and_the_operator_reach_the_dashboard(cluster):
    *_, policy = documents("namespace.yaml")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    between, dashboard = policy["spec"]["ingress"]
    assert between == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    assert dashboard["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert dashboard["from"] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}}},
    ]
    assert not {"serviceType", "headService", "enableIngress"} & cluster["headGroupSpec"].keys()

"""What memoir uses of Ray that Ray does not promise: each test names what a new release has moved. No cluster is started."""

import inspect
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_submission import JobSubmissionClient
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.training import submit
from pipeline import cluster

ROOT = Path(__file__).parents[2]
INSIDE = "ray.train.v2._internal"
TRAINER = "ray.train.v2.api.data_parallel_trainer"
ELASTIC = ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1})
STARTS = ("InsufficientClusterResourcesError", "WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError")


@pytest.fixture
def ours() -> Any:
    """The adapter, which cannot be imported at all when a name that it imports has moved."""
    return resolve_name("jobs.training.ray_train")


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def naming(pattern: str) -> set[str]:
    """The files of the pipeline and the jobs with this in them."""
    files = [path for folder in ("jobs", "pipeline") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix() for path in files if re.search(pattern, path.read_text("utf-8"))}


def test_what_is_private_of_ray_is_used_in_these_files_alone():
    assert naming(r"\b_internal\b|_base_exc\b") == {"jobs/training/ray_train.py"}
    assert naming(r"ray\._private|_do_request") == {"jobs/training/submit.py", "pipeline/cluster.py"}


@pytest.mark.parametrize(
    "name",
    [
        f"{INSIDE}.callbacks.datasets:DatasetsCallback",
        f"{INSIDE}.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
        *(f"{INSIDE}.exceptions:{name}" for name in STARTS),
        f"{INSIDE}.execution.context:get_train_context",
        f"{INSIDE}.execution.scaling_policy:ElasticScalingPolicy",
        f"{INSIDE}.execution.scaling_policy:FixedScalingPolicy",
        "ray._private:services",
    ],
)
def test_what_is_imported_is_where_it_was(name):
    module, _, thing = name.partition(":")
    assert naming(rf"from {re.escape(module)} import [^)]*\b{thing}\b")
    assert resolve_name(name) is not None


# Ray Train: the trainer


@pytest.fixture
def started(ours: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `fit` of our trainer starts its controller with; none is started."""
    options: dict[str, Any] = {}

    def run(trainer: object, **given: Any) -> SimpleNamespace:
        options.update(given)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(f"{TRAINER}.ObjectRefWrapper", lambda function: function)  # which needs a cluster
    monkeypatch.setattr(f"{TRAINER}.DataParallelTrainer._initialize_and_run_controller", run)
    ours.Trainer(lambda config: {}, batch=8, train_loop_config={}, scaling_config=ELASTIC).fit()
    return options


def test_fit_gives_its_controller_our_policy(ours, started):
    assert isinstance(started["scaling_policy"], ours.Policy)
    assert started["scaling_policy"].batch == 8


def test_fit_gives_its_controller_all_callbacks_but_the_placement_group_cleaner_and_rays_datasets(started):
    theirs = TorchTrainer(lambda config: {}, train_loop_config={})._create_default_callbacks()
    names, ours = ({type(each).__name__ for each in callbacks} for callbacks in (theirs, started["callbacks"]))
    assert names - ours == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert ours < names


def test_rays_trainer_for_torch_is_the_class_that_ours_is_made_of_and_its_backend_does_as_ours(ours):
    assert TorchTrainer.__mro__[1] is ours.Trainer.__mro__[1] is resolve_name(f"{TRAINER}:DataParallelTrainer")
    theirs = inspect.getsource(TorchConfig(backend="gloo").backend_cls)
    for call in (
        "execute_single(",
        "execute_single_async(",
        "execute_async(",
        "share_cuda_visible_devices: bool = True",
    ):
        assert call in theirs
    assert "torch.cuda.set_device(device)" in inspect.getsource(TorchConfig(backend="gloo").train_func_context)


def test_what_starts_a_training_imports_no_torch():
    code = "import sys, jobs.training.ray_train, jobs.training.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_fit_leaves_a_handler_of_ctrl_c_behind():
    assert "signal.signal(signal.SIGINT," in inspect.getsource(resolve_name(TRAINER))


def test_an_elastic_trainer_has_the_elastic_policy_and_a_fixed_one_another():
    policies = resolve_name(f"{INSIDE}.execution.scaling_policy")
    assert type(policies.create_scaling_policy(ELASTIC)) is policies.ElasticScalingPolicy
    fixed = policies.create_scaling_policy(ScalingConfig(num_workers=2))
    assert not isinstance(fixed, policies.ElasticScalingPolicy)


def test_the_fixed_policy_asks_for_room_by_these_two_and_ours_does_not(ours, monkeypatch):
    theirs = resolve_name(f"{INSIDE}.execution.scaling_policy:FixedScalingPolicy")
    base = resolve_name(f"{INSIDE}.execution.scaling_policy.scaling_policy:ScalingPolicy")
    assert "TrainAutoscalingCoordinatorClient(" in inspect.getsource(base.after_controller_start)
    assert "_coordinator_client" in inspect.getsource(base._maybe_send_resource_request)
    for name, member in vars(theirs).items():
        if inspect.isfunction(member):
            assert "_send_resource_request" not in inspect.getsource(member).replace("_maybe_send_", ""), name
    alone = ours.Alone(ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}))
    alone.after_controller_start(None)
    assert alone.make_decision_for_non_running_worker_group().num_workers == 2
    alone.before_controller_abort()  # has nothing to take back


def test_without_a_cluster_the_trainer_asks_nobody_for_room(ours, started, monkeypatch):
    for address, policy in (("", ours.Alone), ("10.0.0.1:6379", ours.FixedScalingPolicy)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        ours.Trainer(lambda config: {}, batch=8, scaling_config=ScalingConfig(num_workers=2)).fit()
        assert type(started["scaling_policy"]) is policy


@pytest.mark.parametrize("variable", ["ENABLE_PREEMPTION_WATCHER", "HEALTH_CHECK_INTERVAL_S"])
def test_the_variables_for_a_ray_of_this_machine_alone_are_named_as_before(variable):
    name = resolve_name(f"{INSIDE}.constants:{variable}_ENV_VAR")
    assert name in (ROOT / "jobs/training/ray_train.py").read_text("utf-8")
    assert name in resolve_name(f"{INSIDE}.constants:ENV_VARS_TO_PROPAGATE")


@pytest.mark.parametrize(("free", "any_number", "divisor"), [(3, 3, 2), (7, 7, 4), (8, 8, 8), (100, 8, 8), (1, 1, 1)])
def test_the_elastic_policy_decides_by_count_possible_workers(ours, free, any_number, divisor, monkeypatch):
    theirs = resolve_name(f"{INSIDE}.execution.scaling_policy:ElasticScalingPolicy")
    assert parameters(theirs._count_possible_workers) == ["self", "reserved_resources"]
    monkeypatch.setattr(theirs, "_maybe_send_resource_request", lambda self: None)
    monkeypatch.setattr(theirs, "_get_reserved_resources", lambda self: {"node": {"CPU": free}})
    assert theirs(ELASTIC).make_decision_for_non_running_worker_group().num_workers == any_number
    assert ours.Policy(ELASTIC, 8).make_decision_for_non_running_worker_group().num_workers == divisor


def test_the_configurations_take_what_they_are_given():
    assert FailureConfig(max_failures=3, controller_failure_limit=0).controller_failure_limit == 0
    assert RunConfig(worker_runtime_env={"env_vars": {"A": "1"}}).worker_runtime_env == {"env_vars": {"A": "1"}}
    assert ScalingConfig(num_workers=(1, 2), elastic_resize_monitor_interval_s=2).elastic_resize_monitor_interval_s == 2


def test_the_variable_for_the_start_of_workers_is_named_as_before():
    name = resolve_name(f"{INSIDE}.constants:WORKER_GROUP_START_TIMEOUT_S_ENV_VAR")
    assert name in (ROOT / "jobs/training/train.py").read_text("utf-8")


# Ray Train: what a worker is told


def test_a_notice_to_a_worker_is_in_the_preemption_context_of_its_train_context(ours, monkeypatch):
    context = resolve_name(f"{INSIDE}.execution.context")
    assert "preemption_context" in context.TrainContext.__dataclass_fields__
    notices = resolve_name(f"{INSIDE}.execution.preemption:PreemptionContext")()
    monkeypatch.setattr(context, "_train_context", SimpleNamespace(preemption_context=notices))
    assert ours.preemption() is None
    info = resolve_name("ray.train.v2.api.preemption:PreemptionInfo")
    notices.preemption_info = info(deadline_ms=0, preempted_node_to_ranks={"node": [1]})
    assert ours.preemption().preempted_ranks == [1]


def test_the_public_get_preemption_info_asks_the_other_ranks():
    """When it does so no more, `preemption` can be it."""
    public = resolve_name(f"{INSIDE}.execution.train_fn_utils:DistributedTrainFnUtils.get_preemption_info")
    assert "broadcast_from_rank_zero" in inspect.getsource(public)


# Ray Train: its failures


def sent(error: Exception) -> Any:
    """An error as it comes out of another process."""
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_fails_is_told_by_its_class(name):
    source = inspect.getsource(resolve_name(f"{INSIDE}.execution.worker_group.worker_group"))
    assert f"raise {name}(" in source


@pytest.mark.parametrize(("name", "kind"), [*zip(STARTS, ("NO_ROOM", "NO_ROOM", "LOST"), strict=True)])
def test_a_start_that_fails_comes_as_the_failure_of_the_controller(name, kind, ours):
    failure = resolve_name(f"{INSIDE}.exceptions:{name}")(2)
    assert ours.classify(sent(ControllerError(failure))).kind is ours.Kind[kind]


def test_what_a_worker_raised_is_in_base_exc_and_not_its_cause():
    wrapped = resolve_name(f"{INSIDE}.exceptions:UserExceptionWithTraceback")(KeyError(1), "")
    (cause,) = sent(WorkerGroupError("", {0: wrapped})).worker_failures.values()
    assert isinstance(cause._base_exc, KeyError)
    assert cause.__cause__ is None


def test_what_a_health_check_met_is_in_health_check_failure_and_not_its_cause():
    cause = sent(resolve_name(f"{INSIDE}.exceptions:WorkerHealthCheckFailedError")("", KeyError(1)))
    assert isinstance(cause.health_check_failure, KeyError)
    assert cause.__cause__ is None


# placement groups


def test_the_id_of_a_placement_group_ends_with_that_of_its_job():
    job = ray.JobID.from_int(7)
    group = ray.PlacementGroupID.of(job)
    assert group.hex().endswith(job.hex())
    assert ray.PlacementGroupID.from_hex(group.hex()) == group


def test_a_removed_placement_group_is_called_so():
    states = resolve_name("ray.core.generated.gcs_pb2:PlacementGroupTableData.PlacementGroupState")
    assert "REMOVED" in dict(states.items())


# the client of the Jobs API


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests that a client sends, to nobody."""
    requests: list[dict[str, Any]] = []

    def request(method: str, url: str, **options: Any) -> SimpleNamespace:
        requests.append({"method": method, "url": url, **options})
        answer = {"version": "4", "ray_version": "2.60.0"} if url.endswith("/api/version") else []
        return SimpleNamespace(status_code=200, text="", json=lambda: answer, raise_for_status=lambda: None)

    monkeypatch.setattr("requests.request", request)
    return requests


def test_every_request_goes_through_do_request_which_takes_a_timeout(asked):
    assert parameters(JobSubmissionClient._do_request)[:3] == ["self", "method", "endpoint"]
    client = submit.Client("http://head:8265")
    assert client.ray_version() == "2.60.0"
    assert client.list_jobs() == []
    assert len(asked) >= 3  # one as the client is made
    assert {each["timeout"] for each in asked} == {submit.ANSWER_SECONDS}


def test_the_public_get_version_has_not_that_of_ray(asked):
    """When it has, `Client.ray_version` can be it."""
    assert submit.Client("http://head:8265").get_version() == "4"


def test_a_job_that_is_not_there_is_told_with_status_code_404():
    client = JobSubmissionClient.__new__(JobSubmissionClient)
    with pytest.raises(RuntimeError, match="status code 404"):
        client._raise_error(SimpleNamespace(status_code=404, text="no such job"))


def test_a_job_that_is_there_is_told_with_already_exists():
    spec = find_spec("ray.dashboard.modules.job.job_manager")
    assert spec is not None
    assert "already exists" in Path(str(spec.origin)).read_text("utf-8")


def test_the_loggers_that_are_silenced_are_those_of_the_client():
    silenced = set(re.findall(r'"(ray\.[\w.]+)"', inspect.getsource(submit.client)))
    (above,) = JobSubmissionClient.__bases__
    assert silenced == {JobSubmissionClient.__module__, above.__module__, "ray._private.runtime_env"}
    assert find_spec("ray._private.runtime_env.packaging") is not None


# the start of Ray


def test_ray_init_asks_get_node_of_services_for_30_seconds_as_long_as_it_raises_runtime_error():
    assert parameters(resolve_name("ray._private.services:get_node")) == ["gcs_address", "node_id"]
    start = inspect.getsource(resolve_name("ray._private.node:Node.__init__"))
    assert "ray._private.services.get_node(" in start  # by its place, so that another may stand there
    assert "except RuntimeError" in start
    assert "raylet_start_wait_time_s = 30\n" in start  # not a setting yet


def test_get_node_is_rays_own_again_after_a_start():
    services = resolve_name("ray._private.services")
    before = services.get_node
    with cluster._patiently():
        assert services.get_node is not before
    assert services.get_node is before


def test_ray_starts_its_processes_that_nobody_asks_by_these_three(monkeypatch):
    node = resolve_name("ray._private.node:Node")
    starts = inspect.getsource(node.start_head_processes) + inspect.getsource(node.start_ray_processes)
    names = ("start_api_server", "start_monitor", "start_log_monitor")
    before = {name: getattr(node, name) for name in names}
    assert all(f"self.{name}(" in starts for name in names)
    assert "self._webui_url" in inspect.getsource(node.start_api_server)
    with cluster._patiently():
        assert not [name for name in names if getattr(node, name) is before[name]]
    assert {name: getattr(node, name) for name in names} == before


@pytest.mark.parametrize("variable", [*cluster.PATIENT, "RAY_worker_niceness"])
def test_the_settings_of_a_slow_start_are_rays(variable):
    """Ray's raylet has most of them, and its Python the other."""
    name = variable.removeprefix("RAY_").encode()
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    assert name in raylet.read_bytes() or name in Path(resolve_name("ray._private.node").__file__).read_bytes()


def test_the_variables_for_accelerators_and_tokens_are_named_as_before():
    mode = resolve_name("ray._private.authentication.authentication_token_setup:AUTH_MODE_ENV_VAR")
    devices = resolve_name("ray._private.accelerators.accelerator:RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR")
    assert naming(mode) >= {"pipeline/shared_ray.py"}
    assert naming(devices) == {"pipeline/cluster.py"}

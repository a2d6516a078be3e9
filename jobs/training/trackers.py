"""Trackers of experiments that a run's records also go to, where its recipe asks for them: W&B and MLflow.

What they are told stands in metrics.jsonl, too: a tracker that fails is left out, with one line, and training goes on. Where
they are, and whether anybody is: their own variables say (WANDB_MODE=offline, MLFLOW_TRACKING_URI), those of the command, whose
workers may be on other machines (`variables`).
"""

import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from pipeline.errors import UserError, printable

PROJECT = "memoir"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says another
PATIENCE_S = 90  # with a server that does not answer, as W&B has it when a run begins
VARIABLES = (  # of a tracker, which workers are given; no secrets: Ray shows them
    *("MODE", "BASE_URL", "ENTITY", "PROJECT", "RUN_GROUP", "JOB_TYPE", "TAGS", "NOTES", "DIR"),
    *("TRACKING_URI", "EXPERIMENT_NAME", "ALLOW_FILE_STORE", "TRACKING_INSECURE_TLS", "TRACKING_SERVER_CERT_PATH"),
)


class Tracker(Protocol):
    """One of them, with a run open."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """Record the numbers of a step."""

    def finish(self) -> None:
        """Close the run, which may go on later."""


class Wandb:
    """W&B. A run that continues is the same run there."""

    def __init__(self, run: str, recipe: dict[str, Any]) -> None:
        import wandb

        ends = {"finish_timeout": PATIENCE_S, "finish_timeout_raises": True}  # `wandb sync` sends what is left
        quiet = wandb.Settings(console="off", silent=True, **ends)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.wandb = wandb
        self.run = wandb.init(project=project, id=run, name=run, resume="allow", config=recipe, settings=quiet)

    def add(self, step: int, values: dict[str, float]) -> None:
        """See Tracker."""
        self.run.log(values, step=step)

    def finish(self) -> None:
        """See Tracker."""
        try:
            self.run.finish()
        finally:
            self.wandb.teardown()  # waits for its process, which writes the last records after `finish`; at exit Ray is in the way


class MLflow:
    """MLflow. A run that continues is the same run there, found by its tag."""

    def __init__(self, run: str, recipe: dict[str, Any]) -> None:
        # By default it tries for minutes, or longer than a step may take (training.hang_s) where nothing answers.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE_S // 3))
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        there = mlflow.search_runs(filter_string=f"tags.`memoir.run` = '{run}'", output_format="list")
        known, told = (there[0].info.run_id, there[0].data.params) if there else (None, {})
        self.id = mlflow.start_run(known, run_name=run, tags={"memoir.run": run}, log_system_metrics=False).info.run_id
        # One that was told stays: MLflow takes no other value, and how a run is carried out may change when it continues.
        mlflow.log_params({key: value for key, value in _flat(recipe).items() if key not in told})

    def add(self, step: int, values: dict[str, float]) -> None:
        """See Tracker."""
        self.mlflow.log_metrics(values, step=step, run_id=self.id)

    def finish(self) -> None:
        """See Tracker."""
        self.mlflow.end_run()


KINDS: dict[str, Callable[[str, dict[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


class Trackers:
    """The trackers of a run."""

    def __init__(self, names: Sequence[str], run: str, recipe: dict[str, Any], warn: Callable[[str], None]) -> None:
        """recipe: resolved. warn: is told of a tracker that is left out. Raises UserError for one that is not installed."""
        check_installed(names)
        self.warn = warn
        self.open: dict[str, Tracker] = {}
        for name in names:
            if (tracker := self._tried(name, lambda name=name: KINDS[name](run, recipe))) is not None:  # type: ignore[misc]
                self.open[name] = tracker

    def _tried(self, name: str, action: Callable[[], Any]) -> Any:
        """What an action of a tracker returns; None, and it is left out, where it fails in whatever way."""
        try:
            return action()
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.warn(printable(f"{name} is left out from here on: {first}; all records are in metrics.jsonl"))
            self.open.pop(name, None)
            return None

    def add(self, record: dict[str, Any]) -> None:
        """Record the numbers of a line of metrics.jsonl."""
        values = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        for name, tracker in list(self.open.items()):
            self._tried(name, lambda tracker=tracker: tracker.add(record["step"], values))  # type: ignore[misc]

    def finish(self) -> None:
        """Close all."""
        for name, tracker in list(self.open.items()):
            self._tried(name, tracker.finish)


def variables(names: Sequence[str]) -> dict[str, str]:
    """The variables here that say where these trackers are and what they call a run, but for an address with a password."""
    there = {
        name: os.environ.get(name, "") for name in (f"{each.upper()}_{rest}" for each in names for rest in VARIABLES)
    }
    return {name: value for name, value in there.items() if value and not re.search("//[^/]*@", value)}


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not installed here."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"training.track: {name} is not installed; `pip install 'memoir[{name}]'`")


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    """A recipe as MLflow's parameters, whose values it cuts off after 6,000 characters."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": str(value)[:6000]}
    return found

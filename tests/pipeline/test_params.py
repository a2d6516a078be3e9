"""params.yaml: where its store is, and which server its URIs are of."""

import os
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.params import in_project, is_of_the_past, read_params, use_endpoint

PARAMS = "store: store\ndatasets: {}\ntasks: []\nrecipes: {}\n"


def test_a_relative_store_lies_in_the_project_also_for_an_experiment_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    (copy / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert in_project("store") == "store"
    for folder in (copy, copy / "below"):
        monkeypatch.chdir(folder)
        assert in_project("store") == str(tmp_path / "store")
        assert in_project("s3://bucket/store") == "s3://bucket/store"
        assert in_project("/store") == "/store"


def test_the_endpoint_of_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS + "endpoint: http://here:9000\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:9000")
    use_endpoint(read_params(path))
    assert os.environ["AWS_ENDPOINT_URL"] == "http://elsewhere:9000"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    use_endpoint(read_params(path))
    assert os.environ["AWS_ENDPOINT_URL"] == "http://here:9000"


@pytest.mark.parametrize("endpoint", ["here:9000", "http://user:password@here", "file:///etc", "http://a b"])
def test_an_endpoint_that_is_no_server_is_refused(tmp_path: Path, endpoint: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS + f"endpoint: '{endpoint}'\n")
    with pytest.raises(UserError, match=r"params.yaml:5: endpoint"):
        read_params(path)


@pytest.mark.parametrize("name", ["two words", "a/b", "-x", "x.yaml", "", "é", "manifest", "listing", ".x", "a\n"])
def test_a_name_that_a_stage_cannot_have_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    for given in ({"tasks": [name]}, {"recipes": {name: {"task": "t"}}}, {"recipes": {"r": {"task": name}}}):
        path.write_text(yaml.safe_dump({"store": "store", "datasets": {}, "tasks": [], "recipes": {}} | given))
        with pytest.raises(
            UserError, match=r"params.yaml:\d: .*(a name is of letters|place of another stage)"
        ) as error:
            read_params(path)
        assert "\n" not in str(error.value)


def test_dots_in_names_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("store: store\ndatasets: {}\ntasks: [t.1]\nrecipes: {v1.5_a-b: {task: t.1}}\n")
    assert list(read_params(path).recipes) == ["v1.5_a-b"]


@pytest.mark.parametrize(
    ("stage", "params", "past"),
    [
        ("build@old", b"tasks: [new]\nrecipes: {r: {task: new}}\n", True),
        ("build@new", b"tasks: [new]\nrecipes: {r: {task: new}}\n", False),
        ("train@r", b"tasks: [new]\nrecipes: {r: {task: new}}\n", False),
        ("ingest", b"tasks: [new]\nrecipes: {}\n", False),
        ("build@old", None, False),
        ("build@old", b"tasks: 3\n", False),
        ("build@old", b"\xff", False),
    ],
)
def test_a_stage_of_the_lock_is_of_the_past_if_params_yaml_names_it_no_more(stage, params, past):
    assert is_of_the_past(stage, params) is past

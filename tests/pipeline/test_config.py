import json
import time
from fnmatch import fnmatch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.config import YAML_BYTES, Frozen, parse_json, parse_yaml, read_yaml
from pipeline.errors import UserError
from pipeline.params import read_params
from pipeline.task import TASKS, Jpeg, read_task


class Optimisation(Frozen):
    lr: float = Field(0.1, gt=0)
    steps: int = 10


class Run(Frozen):
    name: str
    optimisation: Optimisation = Optimisation()
    stages: tuple[Optimisation, ...] = ()
    limits: dict[str, Optimisation] | None = None


TASK = """\
colour: y
degradation: {kind: jpeg, quality: [10, 20]}
splits:
  train: [photos/train]
"""


@pytest.fixture
def mistake(tmp_path):
    """What `read_yaml` says of a text, without the folder before the file's name; it is one line."""

    def said(text: str | bytes, overrides: list[str] | None = None, schema: type[Frozen] = Run) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError) as error:
            read_yaml(path, schema, overrides)
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{tmp_path}/")

    return said


def test_values_and_defaults_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: größer\noptimisation: {lr: 0.5}\nstages: [{steps: 1}, {steps: 2}]\n", "utf-8")
    run = read_yaml(path, Run, ["optimisation.steps=3", "limits.a.lr=2"])
    assert run == Run(
        name="größer",
        optimisation=Optimisation(lr=0.5, steps=3),
        stages=(Optimisation(steps=1), Optimisation(steps=2)),
        limits={"a": Optimisation(lr=2)},
    )


def test_a_misspelt_key_names_file_line_and_the_nearest(mistake):
    known = "known: limits, name, optimisation, stages"
    assert mistake("name: a\nstagse: []\n") == f"run.yaml:2: stagse: unknown key; did you mean 'stages'? {known}"


def test_a_misspelt_key_is_said_to_be_unknown_and_not_to_be_missing(mistake):
    assert mistake("stages: []\nnam: a\n").startswith("run.yaml:2: nam: unknown key; did you mean 'name'?")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\noptimisation:\n  lr: 1\n  step: 2\n", 4, "optimisation.step"),
        ("name: a\nstages:\n- steps: 1\n- step: 2\n", 4, "stages.1.step"),
        ("name: a\nlimits:\n  some:\n    step: 2\n", 4, "limits.some.step"),
    ],
    ids=["section", "list", "mapping"],
)
def test_a_misspelt_key_is_found_at_any_depth(mistake, text, line, key):
    assert mistake(text) == f"run.yaml:{line}: {key}: unknown key; did you mean 'steps'? known: lr, steps"


def test_a_wrong_value_is_shown_with_its_line(mistake):
    assert mistake("name: a\noptimisation:\n  lr: -1\n") == (
        "run.yaml:3: optimisation.lr: Input should be greater than 0 (given: -1)"
    )


def test_a_missing_key_is_named(mistake):
    assert mistake("stages: []\n") == "run.yaml:1: name: missing; add it"


def test_a_key_given_twice_is_a_mistake(mistake):
    assert mistake("name: a\noptimisation:\n  lr: 1\n  steps: 1\n  lr: 2\n") == (
        "run.yaml:5: lr is given twice; keep one"
    )
    assert mistake("stages:\n- {lr: 1, lr: 2}\n") == "run.yaml:2: lr is given twice; keep one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a\n", "run.yaml:2: not valid YAML: "),
        ("name: !!python/object:os.system a\n", "run.yaml:1: the tag !!python/object:os.system is not taken; "),
        ("name: \x01\n", "run.yaml: not valid YAML: "),
        (b"name: \xff\n", "run.yaml: not a text file in UTF-8"),
        ("", "run.yaml: expected `key: value` lines, found NoneType"),
        ("- a\n", "run.yaml: expected `key: value` lines, found list"),
    ],
)
def test_what_is_no_configuration_is_one_line(mistake, text, message):
    assert mistake(text).startswith(message)


# what is made to harm

BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{i + 1}: &b{i + 1} [{', '.join([f'*b{i}'] * 10)}]\n" for i in range(10))
HOSTILE = {
    "aliases that stand for 10^10 values": BOMB,
    "a list that holds itself": "a: &a [*a]\n",
    "merged keys": "a: &a {b: 1}\nc: {<<: *a}\n",
    "merged keys without an alias": "name: a\n<<: {stages: []}\n",
    "an object": "!!python/object/apply:os.system ['touch PWNED']\n",
    "a tag of one's own": "name: !mine a\n",
    "5,000 lists": "a: " + "[" * 5000 + "\n",
    "5,000 mappings": "a: " + "{b: " * 5000 + "\n",
    "5,000 lists of blocks": "- " * 5000 + "a\n",
    "a number of 9,000 digits": "a: " + "9" * 9000 + "\n",
    "a hexadecimal number without digits": "a: 0x_\n",
    "a number in base 60": "a: " + "1:" * 5000 + "1\n",
    "half a character": 'a: "\\ud800"\n',
    "more than any configuration has": "a: " + "x" * YAML_BYTES + "\n",
    "a list as a key": "? [a]\n: b\n",
    "an equals sign": "a: =\n",
    "a version from the future": "%YAML 9.9\n---\na: b\n",
    "control characters": "a: \x00\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_line_at_once(mistake, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    assert len(mistake(text)) < 200
    assert time.process_time() - began < 1
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [(BOMB, 2, "b0"), ("a: &a [*a]\n", 1, "a"), ("a: &a 1\nb: *a\n", 2, "a"), ("a: &a {b: 1}\nc: {<<: *a}\n", 2, "a")],
    ids=["bomb", "itself", "once", "merged"],
)
def test_a_value_that_repeats_another_is_refused_and_not_written_out(text, line, name):
    with pytest.raises(UserError, match=rf"^there:{line}: \*{name} repeats another value; write it out$"):
        parse_yaml(text.encode(), "there")


def test_the_largest_configuration_is_read_in_seconds(tmp_path):
    began = time.process_time()
    assert len(parse_yaml(b"[" + b"1," * (YAML_BYTES // 2 - 1) + b"]", "here")) == YAML_BYTES // 2 - 1
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\noptimisation: {steps: 1e5}\n", "2: optimisation.steps: Input should be a valid integer*; 1e5 is text in YAML; write 100000"),
        ("name: a\noptimisation: {steps: 1.5e5}\n", "2: optimisation.steps: *; 1.5e5 is text in YAML; write 150000"),
        ("name: on\n", "1: name: *(given: True); on is true or false in YAML; for the text write 'on'"),
        ("name: 291\n", "1: name: *(given: 291); 291 is a number in YAML; for the text write '291'"),
        ("name: 2026-01-01\n", "1: 2026-01-01 is a date in YAML; put it in quotes"),
        ("optimisation: {steps: 010}\n", "1: 010 is a number in base 8 in YAML; write it without 0, or '010'"),
        ("optimisation: {steps: 12:30}\n", "1: 12:30 is a number in base 60 in YAML; write it plainly, or '12:30'"),
        ("name: a\non: 1\n", "2: the key on is true or false in YAML; put it in quotes"),
        ("name: a\n~: 1\n", "2: the key ~ is nothing in YAML; put it in quotes"),
        ("name: a\n01: 1\n", "2: the key 01 is a number in YAML; put it in quotes"),
        ("name: a\n1.5: 1\n", "2: the key 1.5 is a number in YAML; put it in quotes"),
        ("name: a\n1: 1\n1: 2\n", "3: 1 is given twice; keep one"),
        ("name: a\noptimisation: {lr: .inf}\n", "2: optimisation.lr: Input should be a finite number*"),
        ("name: a\noptimisation: {lr: .nan}\n", "2: optimisation.lr: Input should be a finite number*"),
    ],
)  # fmt: skip
def test_what_yaml_turns_into_something_else_is_told_with_what_to_write(mistake, text, message):
    said = mistake(text)
    assert fnmatch(said, f"run.yaml:{message}"), said


def test_text_that_yaml_takes_for_numbers_is_read_where_a_number_is_due(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: '12:30'\noptimisation: {lr: 1e-4, steps: 1_000}\n")
    assert read_yaml(path, Run) == Run(name="12:30", optimisation=Optimisation(lr=1e-4, steps=1000))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a": ' * 100_000,
        "1" * 9000,
        "1e999",
        "[NaN]",
        "-Infinity",
        '{"a": 1, "b": 2, "a": 3}',
        '"\\ud800"',
        '{"\\uDC00": 1}',
        "'a'",
        b"\xff",
        "{} {}",
    ],
    ids=range(14),
)
def test_hostile_json_is_one_line_at_once(text):
    began = time.process_time()
    with pytest.raises(UserError, match=r"^here: not (JSON|a text file)") as error:
        parse_json(text if isinstance(text, bytes) else text.encode(), "here")
    assert time.process_time() - began < 1
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
        lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), below, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
def test_what_python_writes_as_json_and_yaml_is_read_back(value):
    assert parse_json(json.dumps(value).encode(), "here") == value
    text = yaml.safe_dump({"value": json.loads(json.dumps(value))})
    assert parse_yaml(text.encode(), "here") == {"value": value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimisation.lr", "--set optimisation.lr: expected section.key=value"),
        ("name.of=1", "--set name.of=1: name has no keys of its own"),
        ("name=[", "--set name=[: not valid YAML: "),
        ("optimisation.ler=1", "run.yaml:1: optimisation.ler: unknown key; did you mean 'lr'? known: lr, steps"),
    ],
)
def test_a_wrong_override_is_one_line(mistake, override, message):
    assert mistake("name: a\n", [override]).startswith(message)


@given(st.text("ab:-[]{}'\"!&*#|> \n1.,?%@`\t\x00é", max_size=40), st.text("ab.=[: 1", max_size=8))
def test_any_text_is_read_or_a_mistake_of_one_line(tmp_path_factory, text, override):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, "utf-8")
    try:
        read_yaml(path, Run, [override])
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml: No such file or directory$"):
        read_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"mine\.yaml: No such file or directory$"):
        read_task(str(tmp_path / "mine.yaml"))


# tasks


def test_every_task_of_the_package_is_valid():
    names = [path.stem for path in TASKS.glob("*.yaml")]
    assert names
    for name in names:
        assert read_task(name).splits["train"]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match=r"^unknown task 'photo-jpeg'; did you mean 'photos-jpeg'"):
        read_task("photo-jpeg")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[10, 20]", "[10, 10]", "2: degradation.jpeg.quality: a level is given twice"),
        ("[10, 20]", "[]", "2: degradation.jpeg.quality: Tuple should have at least 1 item"),
        ("[10, 20]", "[0]", "2: degradation.jpeg.quality.0: Input should be greater than or equal to 1 (given: 0)"),
        ("jpeg", "jpg", "2: degradation: no degradation is of kind 'jpg'; did you mean 'jpeg'? known: "),
        ("train:", "val:", "3: splits: no train split"),
        ("train:", "trian:", "4: splits.trian"),
        ("photos/train", "photos", "3: splits: 'photos' is not of the form <dataset>/<split>"),
        (
            "photos/train]",
            "photos/train]\n  val: [photos/train]",
            "3: splits: 'photos/train' is named twice, in train and",
        ),
        ("jpeg, quality: [10, 20]", "timelapse, pairs_per_scene: some", "2: degradation.timelapse.pairs_per_scene"),
        ("jpeg, quality: [10, 20]", "timelapse, pairs_per_scene: 0", "2: degradation.timelapse.pairs_per_scene"),
        ("jpeg, quality", "paired, quality", "2: degradation.paired.quality"),
        ("photos/train", "", "4: splits.train: Tuple should have at least 1 item"),
    ],
)
def test_a_mistake_in_a_task_names_its_line(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(TASK)
    assert read_task(str(path)).degradation == Jpeg(kind="jpeg", quality=(10, 20))
    path.write_text(TASK.replace(old, new))
    with pytest.raises(UserError) as error:
        read_task(str(path))
    assert str(error.value).startswith(f"{path}:{message}")

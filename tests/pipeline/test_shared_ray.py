import os
import signal
import subprocess
import sys
from multiprocessing.connection import Client

import pytest

from pipeline.errors import UserError
from pipeline.shared_ray import OFFER, offered, run_with_ray

ASK = "import sys; from pipeline.shared_ray import offered; print([offered(n) for n in (2, 1, 3, 2)]); sys.exit(7)"


@pytest.fixture(autouse=True)
def interruptible():
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_the_first_who_asks_has_it_started_and_who_needs_more_cpus_is_left_alone(capfd):
    started: list[int] = []

    def start(cpus: int) -> str:
        started.append(cpus)
        return "10.0.0.1:6379"

    assert run_with_ray([sys.executable, "-c", ASK], start) == 7
    assert capfd.readouterr().out == "['10.0.0.1:6379', '10.0.0.1:6379', '', '10.0.0.1:6379']\n"
    assert started == [2]


def test_nothing_is_started_for_a_command_that_asks_for_nothing():
    assert run_with_ray([sys.executable, "-c", "pass"], lambda cpus: pytest.fail("started")) == 0


def test_where_it_cannot_be_started_everybody_starts_an_own_one(capfd):
    def start(cpus: int) -> str:
        raise UserError("no room")

    assert run_with_ray([sys.executable, "-c", ASK], start) == 7
    assert capfd.readouterr().out == "['', '', '', '']\n"


def test_without_an_offer_or_with_a_dead_or_foreign_one_there_is_none(monkeypatch):
    monkeypatch.delenv(OFFER, raising=False)
    assert offered(1) == ""
    for dead in ("1:00", "nonsense", "65535:" + "00" * 16, ":"):
        monkeypatch.setenv(OFFER, dead)
        assert offered(1) == ""


def test_who_lacks_the_key_is_not_answered_and_disturbs_nobody(capfd):
    intruder = (
        "import os; from multiprocessing.connection import Client; from multiprocessing import AuthenticationError\n"
        f"port = int(os.environ['{OFFER}'].split(':')[0])\n"
        "try:\n    Client(('127.0.0.1', port), authkey=b'wrong')\n"
        "except AuthenticationError:\n    print('refused')\n"
    )
    assert run_with_ray([sys.executable, "-c", intruder + ASK], lambda cpus: "a:1") == 7
    assert capfd.readouterr().out.splitlines() == ["refused", "['a:1', 'a:1', '', 'a:1']"]


@pytest.mark.slow
def test_commands_share_one_ray_which_ends_with_them(tmp_path):
    command = (
        "from pipeline.cluster import connect; connect(1)\n"
        "import ray; print(ray.get_runtime_context().gcs_address, ray.get(ray.remote(lambda: 5).remote()))\n"
    )
    twice = f"{sys.executable} -c '{command}' && {sys.executable} -c '{command}'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "memoir", "with-ray", "bash", "-c", twice],
        env=environment,
        capture_output=True,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.endswith(" 5")
    host, port = first.split()[0].rsplit(":", 1)
    with pytest.raises(OSError):
        Client((host, int(port)))

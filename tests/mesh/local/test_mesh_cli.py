"""`nexus fault`, `nexus traffic` and `nexus certificates` say what is wrong in one line."""

import pytest
from typer.testing import CliRunner

from mesh.cli import app
from mesh.local.supervisor import read_state
from tests.platforms import Platform

ADD = ("fault", "add", "--to")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*ADD, "user-auth"), "Say what goes wrong: --abort UNAVAILABLE, --delay 300ms, or both."),
        ((*ADD, "user-auth", "--abort", "BROKEN"), "A call cannot fail with BROKEN; it can with CANCELLED,"),
        ((*ADD, "user-auth", "--abort", "OK"), "A call cannot fail with OK; it can with CANCELLED,"),
        ((*ADD, "user-auth", "--delay", "300"), "--delay 300: say it as 300ms or 2s"),
        ((*ADD, "user-auth", "--delay", "-1s"), "--delay -1s: say it as 300ms or 2s"),
        ((*ADD, "user-auth", "--delay", "²s"), "--delay ²s: say it as 300ms or 2s"),
        ((*ADD, "user-auth", "--delay", "0ms"), "--delay 0ms: say it as 300ms or 2s"),
        ((*ADD, "user-auth", "--delay", "61s"), "the longest is 60s."),
        ((*ADD, "user-auht", "--abort", "UNAVAILABLE"), "There is no service user-auht."),
        (("fault", "clear", "--to", "user-auht"), "There is no service user-auht."),
        (("traffic", "set", "--to", "user-auht", "--canary", "10"), "There is no service user-auht."),
        (("traffic", "set", "--to", "token-mgr", "--canary", "10"), "token-mgr runs no canary"),
    ],
)
def test_a_mistake_is_answered_in_one_line(platform: Platform, arguments: tuple[str, ...], said: str) -> None:
    refuse(platform.environment, arguments, said)


@pytest.mark.parametrize(
    "arguments",
    [
        (*ADD, "user-auth", "--abort", "UNAVAILABLE"),
        ("fault", "list"),
        ("fault", "clear"),
        ("traffic", "clear"),
        ("certificates", "renew"),
    ],
)
def test_where_nothing_runs_nothing_is_changed(platform: Platform, arguments: tuple[str, ...]) -> None:
    elsewhere = str(platform.home.parent / "elsewhere")
    refuse({**platform.environment, "NEXUS_HOME": elsewhere}, arguments, "No platform runs in")


def test_a_platform_without_the_local_mesh_says_so(platform: Platform) -> None:
    past_it = {**platform.environment, "NEXUS_SERVICE_ADDRESS": "unix:{run}/{service}.sock"}
    for arguments in ((*ADD, "user-auth", "--abort", "UNAVAILABLE"), ("certificates", "renew")):
        refuse(past_it, arguments, "past the local mesh")
    state = read_state(platform.settings.run_dir)
    assert state is not None
    assert state.alive, "a signal that nobody waits for would have ended it"


@pytest.mark.parametrize("percent", ["-1", "101", "many"])
def test_a_percentage_is_between_0_and_100(percent: str) -> None:
    result = CliRunner().invoke(app, [*ADD, "user-auth", "--abort", "UNAVAILABLE", "--percent", percent])
    assert result.exit_code == 2
    assert "Invalid value for '--percent'" in result.stderr.splitlines()[-1]


def refuse(environment: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, arguments, env={**environment, "COLUMNS": "300"})
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr

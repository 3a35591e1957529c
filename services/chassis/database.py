"""PostgreSQL for one service: its own schema and role, every row guarded by the call's tenant.

Stores write plain SQL and never name the tenant in a WHERE clause for safety's sake: row-level security does
that, with the tenant that this module sets on every connection it hands out. Outside a transaction a query
runs by itself, in one round trip where the connection last served the same tenant.
"""

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import asyncpg

from nexus.type.v1.faults import Conflict, DeadlineExceeded, DependencyUnavailable, InvalidRequest
from services.chassis.config import Settings
from services.chassis.context import acting_for, current_tenant
from services.chassis.sealing import Sealer
from services.chassis.spec import ServiceSpec

__all__ = ["TENANT_ID", "Database", "acting_for", "role_password", "service_dsn"]

TENANT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
NO_NUL = "text must not hold the character NUL"
"""What PostgreSQL says of text, and whoever seals text before PostgreSQL sees it."""
_STATEMENT_TIMEOUT_MS = 8_000
_LOCK_TIMEOUT_MS = 4_000
_IDLE_TIMEOUT_MS = 30_000
_CONNECT_TIMEOUT = 3.0
_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_Operation = Callable[..., Awaitable[Any]]

logger = logging.getLogger(__name__)


class _Connection(asyncpg.Connection):
    """A pooled connection that remembers which tenant its session is set to."""

    __slots__ = ("_tenant",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tenant: str | None = ""

    async def serve(self, tenant: str | None) -> None:
        """Set the session to a tenant; a round trip only when the last one was another."""
        if self._tenant != (tenant or ""):
            self._tenant = None  # unknown, should we be cut off while the server changes it
            await self.execute(_set_tenant(tenant, local=False))
            self._tenant = tenant or ""


async def _prepare(connection: Any) -> None:
    """Ids are text everywhere else: in contracts, in tokens, in events."""
    await asyncpg.Connection.set_type_codec(
        connection, "uuid", schema="pg_catalog", encoder=str, decoder=str, format="text"
    )


async def _keep_session(_connection: object) -> None:
    """No reset between uses: a session's only state is its tenant, and `serve` sees to that."""


class _Hooks(NamedTuple):
    """What is to be called when a transaction is over."""

    after_commit: list[Callable[[], None]]
    after_rollback: list[Callable[[], None]]


class Database:
    """The rows of one service.

    All methods raise DependencyUnavailable, Conflict or DeadlineExceeded for what can befall any query; broken
    constraints come through as asyncpg's exceptions, for the store to name.
    """

    def __init__(self, settings: Settings, spec: ServiceSpec) -> None:
        self._dsn = service_dsn(settings, spec)
        self._spec = spec
        self._pool_size = settings.database_pool_size
        self._pool: Any = None
        self._hooks: ContextVar[_Hooks | None] = ContextVar(f"{spec.id}_hooks", default=None)
        self._transaction: ContextVar[Any] = ContextVar(f"{spec.id}_transaction", default=None)

    async def start(self) -> None:
        """Prepare the pool. Connections are opened when they are needed, so a database that is away does not
        keep the service from starting."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=self._pool_size,
            max_inactive_connection_lifetime=60,
            statement_cache_size=500,
            connection_class=_Connection,
            init=_prepare,
            reset=_keep_session,
            timeout=_CONNECT_TIMEOUT,
            server_settings={
                "application_name": self._spec.id,
                "search_path": f"{self._spec.schema},nexus",
                "statement_timeout": str(_STATEMENT_TIMEOUT_MS),
                "lock_timeout": str(_LOCK_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(_IDLE_TIMEOUT_MS),
                "timezone": "UTC",
            },
        )

    async def stop(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        return await self._run(asyncpg.Connection.fetch, query, *args)

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        return await self._run(asyncpg.Connection.fetchrow, query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        return await self._run(asyncpg.Connection.fetchval, query, *args)

    async def execute(self, query: str, *args: Any) -> int:
        """Returns how many rows it touched."""
        status: str = await self._run(asyncpg.Connection.execute, query, *args)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def executemany(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        await self._run(asyncpg.Connection.executemany, query, rows)

    @contextlib.asynccontextmanager
    async def transaction(self, *, platform_wide: bool = False) -> AsyncIterator[None]:
        """All queries inside commit together or not at all. A transaction within another is part of it.

        `platform_wide` lifts the guard of the tenant, for jobs that tend the rows of all tenants.
        """
        if self._transaction.get() is not None:
            assert not platform_wide, "a tenant's transaction cannot become platform-wide"
            yield
            return
        # The session may still be at the tenant that it served last, and a default would give rows to that one.
        scope = _set_tenant(None if platform_wide else current_tenant(), local=True)
        if platform_wide:
            scope += f"; SET LOCAL ROLE {self._spec.role}_platform"
        connection = await self._acquire()
        try:
            await _run_on(connection, asyncpg.Connection.execute, f"BEGIN; {scope}")
            hooks = _Hooks([], [])
            token, hooks_token = self._transaction.set(connection), self._hooks.set(hooks)
            try:
                yield
            except BaseException:
                # If this fails, the connection is lost, and what was done on it too.
                with contextlib.suppress(Exception):
                    await asyncpg.Connection.execute(connection, "ROLLBACK")
                for hook in hooks.after_rollback:
                    hook()
                raise
            else:
                await _run_on(connection, asyncpg.Connection.execute, "COMMIT")
                for hook in hooks.after_commit:
                    hook()
            finally:
                self._transaction.reset(token)
                self._hooks.reset(hooks_token)
        finally:
            await self._pool.release(connection)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this once the running transaction has committed; not at all if it does not."""
        self._open_hooks().after_commit.append(callback)

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Call this once the running transaction has been rolled back; not at all if it commits, or might have."""
        self._open_hooks().after_rollback.append(callback)

    def _open_hooks(self) -> "_Hooks":
        hooks = self._hooks.get()
        assert hooks is not None, "there is no transaction to commit"
        return hooks

    async def _run(self, operation: _Operation, *args: Any) -> Any:
        open_transaction = self._transaction.get()
        if open_transaction is not None:
            return await _run_on(open_transaction, operation, *args)
        connection = await self._acquire()
        try:
            await _run_on(connection, _serve, current_tenant())
            return await _run_on(connection, operation, *args)
        finally:
            await self._pool.release(connection)

    async def _acquire(self) -> Any:
        assert self._pool is not None, "the database has not been started"
        try:
            return await self._pool.acquire()
        except Exception as error:
            raise _as_fault(error) from error


async def _run_on(connection: Any, operation: _Operation, *args: Any) -> Any:
    if connection._con is None:  # lost inside a transaction: the pool has taken it back
        raise DependencyUnavailable(dependency="database", retry_after=1)
    try:
        return await operation(connection, *args)
    except Exception as error:
        fault = _as_fault(error)
        if fault is error:
            raise
        raise fault from error


async def _serve(connection: Any, tenant: str | None) -> None:
    await connection.serve(tenant)


def _set_tenant(tenant: str | None, *, local: bool) -> str:
    if tenant is not None and not TENANT_ID.fullmatch(tenant):
        raise ValueError(f"not a tenant id: {tenant!r}")
    return f"SET {'LOCAL' if local else 'SESSION'} nexus.tenant_id = '{tenant or ''}'"


def _as_fault(error: Exception) -> Exception:
    """The platform's fault for what can befall any query, or the error itself."""
    if isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError | asyncpg.LockNotAvailableError):
        return Conflict(retry_after=0.05)
    if isinstance(error, asyncpg.CharacterNotInRepertoireError | asyncpg.UntranslatableCharacterError):
        return InvalidRequest(summary=NO_NUL)
    if isinstance(error, asyncpg.QueryCanceledError):
        return DeadlineExceeded(seconds=_STATEMENT_TIMEOUT_MS // 1000)
    if isinstance(error, asyncpg.InterfaceError) and "in progress" in str(error):
        return error  # a defect: two tasks share one transaction
    if isinstance(error, _AWAY):
        logger.warning("the database does not answer: %s", error or type(error).__name__)
        return DependencyUnavailable(dependency="database", retry_after=1)
    return error


def service_dsn(settings: Settings, spec: ServiceSpec) -> str:
    """The connection string of a service: the platform's URL with the service's own role.

    A URL that names the role already is used as it stands; otherwise the role's password is derived.
    """
    assert settings.database_url is not None, "NEXUS_DATABASE_URL is not set"
    url = urlsplit(settings.database_url.get_secret_value())
    if url.username == spec.role:
        return url.geturl()
    hosts = url.netloc.rpartition("@")[2]
    user = spec.role
    password = role_password(settings, spec.role)
    if password is not None:
        user += f":{quote(password)}"
    return url._replace(netloc=f"{user}@{hosts}", query=urlencode(parse_qs(url.query), doseq=True)).geturl()


def role_password(settings: Settings, role: str) -> str | None:
    """The password of a service's database role; None where the server trusts its socket."""
    if settings.database_role_key is None:
        return None
    key = settings.database_role_key.get_secret_value().encode().ljust(32, b"\0")
    return Sealer(key, "database").digest(role.encode()).hex()

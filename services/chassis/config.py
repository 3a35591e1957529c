"""Configuration: typed, read once from the environment, and refused when a name is unknown.

Platform settings are `NEXUS_<NAME>`; a service's own are `NEXUS_<SERVICE>_<NAME>`, declared by the pydantic
model that its spec names. A misspelt variable stops the start with the nearest right name, instead of being
ignored.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

PREFIX = "NEXUS_"
_UNIX_PATH_LIMIT = 104 - len("/mesh/puabo-nexus-driver-app-backend.canary.in.sock")
"""A socket's path has 104 bytes on macOS, 108 on Linux; this is what the longest of ours leaves for its folder."""


class ConfigError(Exception):
    """The environment does not make a valid configuration. The message says what to change."""


def _absolute(value: object) -> object:
    return Path(str(value)).expanduser().absolute()


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]

Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]*/(second|minute|hour)$")]
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


class Settings(BaseModel):
    """What every process of the platform knows. Each field is the variable `NEXUS_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: AbsolutePath = Field(default=Path(".nexus"), validate_default=True)
    """Folder of everything a local platform keeps: data, logs, sockets, secrets."""
    host: str = "127.0.0.1"
    """Address that ports are opened on."""
    port_offset: int = Field(default=0, ge=0, le=50_000)
    """Added to every port, so that several platforms can share a machine."""
    environment: Literal["development", "staging", "production"] = "development"
    strict: bool = False
    """Open no plaintext TCP port for services; they are reached through the mesh and the edge only."""

    database_url: SecretStr | None = None
    """PostgreSQL (15 or newer) to use; an embedded one when unset."""
    database_role_key: SecretStr | None = None
    """Derives the password of each service's own database role. Unset for a server that trusts its socket."""
    database_pool_size: int = Field(default=8, ge=1, le=100)
    """Most connections that one service holds open in one process."""
    redis_url: SecretStr | None = None
    """Redis (6.2 or newer) to use; an embedded one when unset."""
    root_key_file: Path | None = None
    """Sealed file of the root keys, which seal stored secrets; `<home>/secrets/root.key` when unset."""
    unseal_key_file: Path | None = None
    """File with what opens the file of the root keys: a secret of at least 16 bytes, kept elsewhere. systemd's
    credential `nexus-unseal-key` when unset, else `~/.config/nexus/unseal.key`, which is made at the first start."""

    service_address: str = "unix:{run}/{service}.sock"
    """Where a callee is dialled: a gRPC target with {service}, {caller}, {port} and {run}."""
    instance: str = Field(default="", pattern=r"^[a-z0-9-]*$")
    """Tells replicas of a service on one machine apart; the one without a name has the well-known port."""
    trust_domain: str = "nexus.local"
    namespace: str = "nexus"
    """With the trust domain, the SPIFFE id of a service: spiffe://<trust domain>/ns/<namespace>/sa/<service>."""
    trusted_proxies: str = "unix"
    """Peers whose `x-forwarded-client-cert` is believed: "unix", or addresses of the mesh's sidecar, by comma."""

    platform_tenant: str = "platform"
    """The tenant of those who run the platform. Only its users have permissions that reach beyond one tenant."""

    trusted_hops: int = Field(default=0, ge=0)
    """Proxies before the edge whose x-forwarded-for is believed."""
    edge_capacity: int = Field(default=112, gt=0)
    """Calls that the edge has in progress with one instance of a service; more are refused at once, with 503 and
    `retry-after`: those that are let in are answered in good time. Streams do not count."""

    default_timeout: float = Field(default=10.0, gt=0)
    """Seconds that a call may take when neither the contract nor the caller says less."""
    longest_restart_delay: float = Field(default=30.0, gt=0)
    """Seconds, at most, before a local process that keeps dying is started again; half a second at first."""
    drain_timeout: float = Field(default=20.0, gt=0)
    """Seconds that calls in progress have to finish when a process stops."""
    max_message_bytes: int = Field(default=4 * 1024 * 1024, gt=0)
    max_concurrent_calls: int = Field(default=2000, gt=0)
    """Calls that one service works on at once; more are refused at once with RESOURCE_EXHAUSTED."""

    rate_read: Rate = "1200/minute"
    """How often one user, and one address, may call the methods of a rate class: "<calls>/<second|minute|hour>"."""
    rate_write: Rate = "600/minute"
    rate_credentials: Rate = "30/minute"
    rate_costly: Rate = "60/minute"

    token_issuer: str = "https://nexus.local"
    token_audience: str = "nexus"

    access_token_seconds: int = Field(default=600, ge=30, le=3600)
    """How long an access token lives."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    trace_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of calls traced when the caller has not decided."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector for traces, as "http://host:4317"; traces are not kept when unset."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port of `/metrics` for Prometheus; 0 for none."""

    smtp_url: SecretStr | None = None
    """Mail server, as "smtp://user:password@host:587" or "smtps://…"; the outbox folder when unset."""
    mail_sender: str = "Nexus COS <no-reply@nexus.local>"
    public_url: str = "https://127.0.0.1:8443"
    """Where people reach the edge, for links in mails and documents."""

    def rate(self, rate_class: str) -> tuple[int, int]:
        """The limit of a rate class ("READ", …) as (calls, seconds)."""
        amount, _, unit = getattr(self, f"rate_{rate_class.lower()}").partition("/")
        return int(amount), _SECONDS[unit]

    @cached_property
    def run_dir(self) -> Path:
        """Folder of sockets and process files. Moves to /tmp where the home's path is too long for a unix socket."""
        run = self.home / "run"
        if len(str(run)) <= _UNIX_PATH_LIMIT:
            return run
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path("/tmp") / f"nexus-{digest}"  # noqa: S108  `make_folders` sees to it that it is ours

    def port(self, well_known: int) -> int:
        """The port to use where the catalogue says `well_known`."""
        return well_known + self.port_offset

    def spiffe_id(self, service: str) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{service}"


ServiceConfig = TypeVar("ServiceConfig", bound=BaseModel)


def load_settings(environ: Mapping[str, str] = os.environ, service_ids: Iterable[str] = ()) -> Settings:
    """Read the platform's settings.

    `service_ids` are the services whose own variables may stand beside them.
    Raises ConfigError for an unknown name or a value that does not fit.
    """
    prefixes = tuple(service_prefix(service) for service in service_ids)
    own = {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not (prefixes and name.startswith(prefixes))
    }
    return _load(Settings, PREFIX, own)


def load_service_config(
    model: type[ServiceConfig], service: str, environ: Mapping[str, str] = os.environ, service_ids: Iterable[str] = ()
) -> ServiceConfig:
    """Read what a service declares for itself, from `NEXUS_<SERVICE>_…`.

    `service_ids` are all services: a variable belongs to the one with the longest name that fits.
    """
    prefix = service_prefix(service)
    longer = tuple(other for other in map(service_prefix, service_ids) if other != prefix and other.startswith(prefix))
    own = {
        name: value
        for name, value in environ.items()
        if name.startswith(prefix) and not (longer and name.startswith(longer))
    }
    return _load(model, prefix, own)


def service_prefix(service: str) -> str:
    """`user-auth` → `NEXUS_USER_AUTH_`."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", service.upper()) + "_"


Model = TypeVar("Model", bound=BaseModel)


def _load(model: type[Model], prefix: str, variables: Mapping[str, str]) -> Model:
    fields = {prefix + name.upper(): name for name in model.model_fields}
    for name in variables:
        if name not in fields:
            nearest = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"Unknown setting {name}.{hint}")
    values: dict[str, Any] = {fields[name]: value for name, value in variables.items() if value != ""}
    for name in values:
        if get_origin(model.model_fields[name].annotation) is dict:
            try:
                values[name] = json.loads(values[name])
            except ValueError as error:
                raise ConfigError(f"{prefix}{name.upper()}: it must be a JSON object ({error})") from None
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = prefix + str(first["loc"][0]).upper() if first["loc"] else prefix
        raise ConfigError(f"{name}: {first['msg']}") from None

"""The platform's root keys, in a sealed file.

The file is JSON: how the unseal key was stretched (scrypt, RFC 7914), and AES-256-GCM of the keys under the result.
The unseal key lies elsewhere, so that a copy of the data folder opens nothing: in the file that NEXUS_UNSEAL_KEY_FILE
names (a Kubernetes or Docker secret), in systemd's credential `nexus-unseal-key`, or in `~/.config/nexus/unseal.key`,
which is made where there is none.

The newest key whose time has come seals; all that are there open. The file is replaced in one step, and who has it
open sees the new one at the next use. A file of before, 32 bytes in clear, still works; `ensure` seals it.
"""

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.chassis.clock import now
from services.chassis.config import ConfigError, Settings

KEY_BYTES = 32
KEEP = timedelta(hours=48)
"""How long a root key is kept once another seals: longer than the answers and tickets that it has sealed live."""
_NONCE_BYTES = 12
_SALT_BYTES = 16
_SHORTEST_UNSEAL_KEY = 16
_CREDENTIAL = "nexus-unseal-key"

logger = logging.getLogger(__name__)


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", hide_input_in_errors=True
    )


class RootKey(_Model):
    version: int
    key: bytes = Field(repr=False)
    since: datetime
    """When it begins to seal."""


class RootKeys(_Model):
    keys: tuple[RootKey, ...] = Field(min_length=1)
    """The oldest first."""
    lookup: bytes = Field(repr=False)
    """Makes the keyed hashes that rows are found by: it stays when the others change."""

    @classmethod
    def of(cls, key: bytes) -> "RootKeys":
        """One key of 32 bytes, for all."""
        return cls(keys=(RootKey(version=1, key=key, since=datetime.min.replace(tzinfo=UTC)),), lookup=key)

    @property
    def sealing(self) -> RootKey:
        moment = now()
        return next((key for key in reversed(self.keys) if key.since <= moment), self.keys[0])

    def with_another(self, since: datetime) -> "RootKeys":
        another = RootKey(version=self.keys[-1].version + 1, key=secrets.token_bytes(KEY_BYTES), since=since)
        return RootKeys(keys=(*self.keys, another), lookup=self.lookup)

    def without(self, version: int) -> "RootKeys":
        """Raises ConfigError for a version that there is not, or that may still be needed."""
        if version not in (key.version for key in self.keys):
            raise ConfigError(f"There is no version {version} of the root key.")
        successor = next((key for key in self.keys if key.version > version), None)
        if successor is None:
            raise ConfigError(f"Version {version} of the root key is the newest.")
        if successor.since + KEEP > now():
            raise ConfigError(
                f"Version {version} of the root key may be needed until {successor.since + KEEP:%Y-%m-%d %H:%M} UTC."
            )
        return RootKeys(keys=tuple(key for key in self.keys if key.version != version), lookup=self.lookup)


class _Stretching(_Model):
    """Of the unseal key, by scrypt."""

    salt: bytes
    n: int = Field(default=1 << 14, ge=1 << 14, le=1 << 20)
    r: int = Field(default=8, ge=8, le=32)
    p: int = Field(default=1, ge=1, le=16)

    def derive(self, unseal_key: bytes) -> AESGCM:
        return AESGCM(Scrypt(self.salt, KEY_BYTES, self.n, self.r, self.p).derive(unseal_key))


class _Sealed(_Model):
    """What the file holds."""

    scrypt: _Stretching
    nonce: bytes
    root_keys: bytes = Field(repr=False)
    """RootKeys as JSON, encrypted."""


class RootKeyFile:
    """The root keys, as the file has them at each moment."""

    def __init__(self, path: Path, unseal_key_file: Path) -> None:
        self.path = path
        self._unseal_key_file = unseal_key_file
        self._seen: tuple[int, int] | None = None
        self._keys: RootKeys | None = None

    @property
    def keys(self) -> RootKeys:
        """Raises ConfigError where the file cannot be opened; one that could be before, and cannot now, is only
        complained of."""
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen != self._seen:
                self._keys = self.read()
                self._seen = seen
        except (OSError, ConfigError) as error:
            if self._keys is None:
                raise _unreadable(self.path, error) from None
            logger.warning("the root keys cannot be read anew", extra={"why": str(error)})
        assert self._keys is not None
        return self._keys

    def read(self) -> RootKeys:
        """Raises OSError, ConfigError."""
        content = self.path.read_bytes()
        if len(content) == KEY_BYTES:
            return RootKeys.of(content)
        try:
            sealed = _Sealed.model_validate_json(content)
            opened = self._aead(sealed.scrypt).decrypt(sealed.nonce, sealed.root_keys, None)
            return RootKeys.model_validate_json(opened)
        except ValidationError:
            raise ConfigError(
                f"NEXUS_ROOT_KEY_FILE: {self.path} must hold sealed root keys or {KEY_BYTES} random bytes"
            ) from None
        except InvalidTag:
            raise ConfigError(
                f"NEXUS_UNSEAL_KEY_FILE: {self._unseal_key_file} is not the key that seals {self.path}"
            ) from None

    def change(self, change: Callable[[RootKeys], RootKeys]) -> RootKeys:
        """Nobody else changes the file meanwhile. Raises OSError, ConfigError."""
        with _locked(self.path):
            changed = change(self.read())
            self.write(changed)
        return changed

    def reseal(self, unseal_key_file: Path) -> None:
        """With another unseal key, that whoever opens the file needs from now on. Raises OSError, ConfigError."""
        with _locked(self.path):
            RootKeyFile(self.path, unseal_key_file).write(self.read())

    def write(self, keys: RootKeys) -> None:
        stretching = _Stretching(salt=os.urandom(_SALT_BYTES))
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._aead(stretching).encrypt(nonce, keys.model_dump_json().encode(), None)
        _put(self.path, _Sealed(scrypt=stretching, nonce=nonce, root_keys=sealed).model_dump_json(indent=1).encode())

    def _aead(self, stretching: _Stretching) -> AESGCM:
        try:
            unseal_key = self._unseal_key_file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(
                f"NEXUS_UNSEAL_KEY_FILE: {self._unseal_key_file} cannot be read ({error.strerror})"
            ) from None
        if len(unseal_key) < _SHORTEST_UNSEAL_KEY:
            raise ConfigError(
                f"NEXUS_UNSEAL_KEY_FILE: {self._unseal_key_file} must hold at least {_SHORTEST_UNSEAL_KEY} bytes"
            )
        return stretching.derive(unseal_key)


@cache
def _file(path: Path, unseal_key_file: Path) -> RootKeyFile:
    """One for all services of a process: to open it takes a tenth of a second."""
    return RootKeyFile(path, unseal_key_file)


def root_key_file(settings: Settings) -> RootKeyFile:
    return _file(settings.root_key_file or settings.home / "secrets" / "root.key", _unseal_key_file(settings))


def ensure(settings: Settings) -> None:
    """Make the file if there is none, and seal one that is in clear. Raises ConfigError."""
    file = root_key_file(settings)
    try:
        with _locked(file.path):
            if file.path.exists() and file.path.stat().st_size != KEY_BYTES:
                return
            if settings.unseal_key_file is None:
                _make_unseal_key(_unseal_key_file(settings))
            file.write(file.read() if file.path.exists() else RootKeys.of(secrets.token_bytes(KEY_BYTES)))
    except OSError as error:
        raise _unreadable(file.path, error) from None


def _unseal_key_file(settings: Settings) -> Path:
    if settings.unseal_key_file is not None:
        return settings.unseal_key_file
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (Path(credentials) / _CREDENTIAL).exists():
        return Path(credentials) / _CREDENTIAL
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "nexus" / "unseal.key"


def _make_unseal_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        if not path.exists():
            _put(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")


def _put(path: Path, content: bytes) -> None:
    """In one step: whatever happens, the file is the old or the new one, and once this returns, it is the new one."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The folder's lock, which ends with its holder."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, OSError):
        return ConfigError(f"NEXUS_ROOT_KEY_FILE: {path} cannot be read ({error.strerror})")
    assert isinstance(error, ConfigError)
    return error

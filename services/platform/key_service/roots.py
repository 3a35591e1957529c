"""What wraps the material of keys: the platform's root key, or the transit engine of a Vault.

Wrapped material opens only for the same `purpose`, so that one key's row cannot be put in the place of another's.
"""

import base64
import hashlib
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.sealing import SealBroken, Sealer

_LOCAL = "local"
_VAULT_SECONDS = 2.0
_REMEMBER = 10_000
_REMEMBER_SECONDS = 60.0


@dataclass(frozen=True)
class Wrapped:
    root: str
    """What wrapped it: the version of the platform's root key, as "local:v2" ("local" is its first), or of Vault's key,
    as "vault:v3"."""
    data: bytes


class RootKey(Protocol):
    """Wraps and unwraps. Both raise DependencyUnavailable when the root cannot be reached."""

    async def generation(self) -> str:
        """The `Wrapped.root` of what is wrapped now."""

    async def wrap(self, material: bytes, purpose: str) -> Wrapped: ...

    async def unwrap(self, wrapped: Wrapped, purpose: str) -> bytes:
        """Raises SealBroken."""

    async def renew(self, wrapped: Wrapped, purpose: str) -> Wrapped:
        """The same material, wrapped by the newest generation. Raises SealBroken."""


class LocalRoot:
    """The platform's root key, from its sealed file."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    async def generation(self) -> str:
        return _local(self._sealer.version)

    async def wrap(self, material: bytes, purpose: str) -> Wrapped:
        version = self._sealer.version
        return Wrapped(_local(version), self._sealer.seal(material, purpose, version))

    async def unwrap(self, wrapped: Wrapped, purpose: str) -> bytes:
        return self._sealer.open(wrapped.data, purpose)

    async def renew(self, wrapped: Wrapped, purpose: str) -> Wrapped:
        return await self.wrap(await self.unwrap(wrapped, purpose), purpose)


class VaultError(Exception):
    """Vault refuses what we ask: its token or policy does not fit. The message is Vault's."""


class VaultRoot:
    """A key of Vault's transit engine (https://developer.hashicorp.com/vault/api-docs/secret/transit).

    The purpose travels inside what Vault encrypts: that binds it with every version of Vault, and survives
    `rewrap`. Unwrapped material is remembered for a minute, by the hash of what it was unwrapped from, so that
    Vault is not asked for every use of a key; a key that is disabled or destroyed is refused before.
    """

    def __init__(self, address: str, token: str, key: str, mount: str = "transit") -> None:
        self._client = httpx.AsyncClient(
            base_url=f"{address.rstrip('/')}/v1/{mount}/",
            headers={"X-Vault-Token": token, "X-Vault-Request": "true"},
            timeout=_VAULT_SECONDS,
        )
        self._key = key
        self._remembered: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    async def generation(self) -> str:
        return f"vault:v{(await self._call('GET', f'keys/{self._key}'))['latest_version']}"

    async def wrap(self, material: bytes, purpose: str) -> Wrapped:
        bound = struct.pack(">I", len(purpose.encode())) + purpose.encode() + material
        answer = await self._call("POST", f"encrypt/{self._key}", plaintext=base64.b64encode(bound).decode())
        return _wrapped(answer["ciphertext"])

    async def unwrap(self, wrapped: Wrapped, purpose: str) -> bytes:
        digest = hashlib.sha256(wrapped.data).digest()
        bound, expires = self._remembered.get(digest, (b"", 0.0))
        if expires < time.monotonic():
            answer = await self._call("POST", f"decrypt/{self._key}", ciphertext=wrapped.data.decode())
            bound = base64.b64decode(answer["plaintext"])
            self._remembered[digest] = (bound, time.monotonic() + _REMEMBER_SECONDS)
            while len(self._remembered) > _REMEMBER:
                self._remembered.popitem(last=False)
        (length,) = struct.unpack_from(">I", bound)
        if bound[4 : 4 + length] != purpose.encode():
            raise SealBroken(purpose)
        return bound[4 + length :]

    async def renew(self, wrapped: Wrapped, purpose: str) -> Wrapped:
        answer = await self._call("POST", f"rewrap/{self._key}", ciphertext=wrapped.data.decode())
        return _wrapped(answer["ciphertext"])

    async def _call(self, verb: str, path: str, **body: str) -> dict[str, Any]:
        try:
            answer = await self._client.request(verb, path, json=body or None)
        except httpx.HTTPError as error:
            raise DependencyUnavailable(dependency="root key", retry_after=1) from error
        if answer.status_code >= 500 or answer.status_code in (412, 429, 472, 473):  # sealed, standby, busy
            raise DependencyUnavailable(dependency="root key", retry_after=1)
        if answer.is_success:
            data: dict[str, Any] = answer.json()["data"]
            return data
        if answer.status_code == 400 and path.startswith(("decrypt", "rewrap")):
            raise SealBroken(path)
        raise VaultError(f"{path}: {answer.status_code} {answer.text[:500]}")


class Roots:
    """The root that wraps now, and those that wrapped before."""

    def __init__(self, local: LocalRoot, vault: VaultRoot | None = None) -> None:
        self._local = local
        self._vault = vault
        self.current: RootKey = vault or local

    async def unwrap(self, wrapped: Wrapped, purpose: str) -> bytes:
        return await self._of(wrapped).unwrap(wrapped, purpose)

    async def renew(self, wrapped: Wrapped, purpose: str) -> Wrapped:
        """The same material, wrapped by the root that wraps now."""
        root = self._of(wrapped)
        if root is self.current:
            return await root.renew(wrapped, purpose)
        return await self.current.wrap(await root.unwrap(wrapped, purpose), purpose)

    def _of(self, wrapped: Wrapped) -> RootKey:
        if wrapped.root.partition(":")[0] == _LOCAL:
            return self._local
        if self._vault is None:
            raise VaultError(f"a key is wrapped by {wrapped.root}, and no Vault is configured")
        return self._vault


def _local(version: int) -> str:
    return _LOCAL if version == 1 else f"{_LOCAL}:v{version}"


def _wrapped(ciphertext: str) -> Wrapped:
    """ "vault:v3:…" as Vault writes it."""
    return Wrapped(ciphertext.rpartition(":")[0], ciphertext.encode())

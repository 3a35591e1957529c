"""Access tokens as every service verifies them: ES256 JWTs against token-mgr's keys, remembered while good."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import KeySet

from nexus.type.v1.faults import DependencyUnavailable, TokenExpired, TokenInvalid
from services.chassis.config import Settings
from services.chassis.context import User
from services.chassis.errors import Fault
from services.chassis.signals import Signals

ALGORITHM = "ES256"
_REMEMBER_SECONDS = 60.0
_REMEMBER_TOKENS = 20_000
_KEYS_FRESH_SECONDS = 60.0
_KEYS_RETRY_SECONDS = 1.0
_MAX_TOKEN_LENGTH = 16_384

KeySource = Callable[[], Awaitable[Any]]
"""Reads the JWK Set (RFC 7517, section 5)."""


class TokenVerifier:
    """Turns an access token into the user it stands for.

    A verified token is remembered for a minute, or until it expires. Keys are read again once a minute, and at
    once for a key id not seen before, so neither a rotation nor a withdrawn key needs a restart.
    """

    def __init__(self, settings: Settings, signals: Signals, key_source: KeySource) -> None:
        self._signals = signals
        self._key_source = key_source
        self._keys = KeySet([])
        self._kids: frozenset[str] = frozenset()
        self._keys_read = float("-inf")
        self._reading = asyncio.Lock()
        self._remembered: dict[str, tuple[User, float]] = {}
        self._claims = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": settings.token_issuer},
            aud={"essential": True, "value": settings.token_audience},
            sub={"essential": True},
            tid={"essential": True},
            sid={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )

    async def verify(self, token: str) -> User:
        """Raises TokenInvalid, TokenExpired, or DependencyUnavailable when nobody can say."""
        if not self._signals.up_to_date and not await self._signals.wait_up_to_date(1.0):
            raise DependencyUnavailable(dependency="broker", retry_after=1)
        remembered = self._remembered.get(token)
        now = time.time()
        if remembered is not None and remembered[1] > now:
            user = remembered[0]
        else:
            user = await self._verify_signature(token)
            self._remember(token, user, now)
        if self._signals.session_ended(user.session_id):
            raise TokenInvalid(why="its session has ended")
        return user

    async def _verify_signature(self, token: str) -> User:
        if len(token) > _MAX_TOKEN_LENGTH:
            raise TokenInvalid(why="it is too long")
        await self._refresh_keys(_KEYS_FRESH_SECONDS)
        try:
            decoded = await self._decode(token)
            self._claims.validate(decoded.claims)
            claims = decoded.claims
            return User(
                user_id=str(claims["sub"]),
                tenant_id=str(claims["tid"]),
                session_id=str(claims["sid"]),
                permissions=frozenset(map(str, claims.get("permissions", ()))),
                token_expires=int(claims["exp"]),
                scoped="client_id" in claims,
                scopes=frozenset(str(claims.get("scope", "")).split()),
                machine=claims.get("client_id") == claims["sub"],
                assurance=str(claims.get("acr", "")),
                auth_time=int(claims.get("auth_time", 0)),
                second_factor=claims.get("second_factor"),
            )
        except ExpiredTokenError:
            raise TokenExpired() from None
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TokenInvalid(why="it is malformed, forged or not meant for this platform") from error

    async def _decode(self, token: str) -> jwt.Token:
        try:
            return jwt.decode(token, self._keys, algorithms=[ALGORITHM])
        except (JoseError, ValueError) as error:
            # An unknown key id may be a new key; anything else is simply wrong.
            if not await self._refresh_keys(_KEYS_RETRY_SECONDS):
                raise error
            return jwt.decode(token, self._keys, algorithms=[ALGORITHM])

    async def _refresh_keys(self, max_age: float) -> bool:
        """Read the keys again if they are older than `max_age` seconds; say whether they changed."""
        if time.monotonic() - self._keys_read < max_age:
            return False
        async with self._reading:
            if time.monotonic() - self._keys_read < max_age:
                return True
            try:
                serialized = await self._key_source()
            except Fault as fault:
                if not self._kids:
                    raise DependencyUnavailable(dependency="token-mgr", retry_after=1) from fault
                return False  # what is known still verifies; token-mgr will be back
            self._keys = KeySet.import_key_set(serialized)
            self._keys_read = time.monotonic()
            kids = frozenset(key.kid or "" for key in self._keys.keys)
            changed, self._kids = kids != self._kids, kids
            if changed:
                self._remembered.clear()
            return changed

    def _remember(self, token: str, user: User, now: float) -> None:
        while len(self._remembered) >= _REMEMBER_TOKENS:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[token] = (user, min(user.token_expires, now + _REMEMBER_SECONDS))

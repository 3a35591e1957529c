"""Challenges in Redis: questions that a user has a few minutes to answer, once."""

import json
import secrets
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from nexus.identity.auth_service.v1.faults import ChallengeInvalid
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.ids import hash_secret, new_secret

LOGIN, PASSKEY_LOGIN, STEP_UP, REGISTER = "login", "passkey-login", "step-up", "register"


@dataclass(frozen=True)
class Challenge:
    """What the platform must remember of a question."""

    purpose: str
    nonce: str
    """What an authenticator has to sign, in hex: 256 random bits."""
    user_id: str = ""
    """Empty where the answer is to say who the user is."""
    credentials_version: int = 0
    """The user's, when they gave their password."""
    recognized_by: str = ""
    """How another service recognised them: "pwd", "fed"; then it says whose browser theirs is, too."""
    user_agent: str = ""
    ip_address: str = ""

    @property
    def signed(self) -> bytes:
        return bytes.fromhex(self.nonce)


def new_challenge(purpose: str, user_id: str = "", credentials_version: int = 0) -> Challenge:
    return Challenge(purpose, secrets.token_hex(32), user_id, credentials_version)


class Challenges:
    """Open challenges, by the hash of their ids."""

    def __init__(self, redis: Redis, lifetime: timedelta) -> None:
        self._redis = redis
        self._lifetime = lifetime

    async def put(self, tenant_id: str, challenge: Challenge) -> str:
        """Returns the id."""
        challenge_id = new_secret()
        await self._do("set", _key(tenant_id, challenge_id), json.dumps(asdict(challenge)), ex=self._lifetime)
        return challenge_id

    async def find(self, tenant_id: str, challenge_id: str, purpose: str, user_id: str | None = None) -> Challenge:
        """An open challenge; of this user, where one is signed in. Raises ChallengeInvalid."""
        found = await self._do("get", _key(tenant_id, challenge_id))
        challenge = Challenge(**json.loads(found)) if found is not None else None
        if challenge is None or challenge.purpose != purpose or user_id not in (None, challenge.user_id):
            raise ChallengeInvalid()
        return challenge

    async def close(self, tenant_id: str, challenge_id: str) -> None:
        """To be called when the answer was right. Raises ChallengeInvalid if another right answer came first."""
        if not await self._do("delete", _key(tenant_id, challenge_id)):
            raise ChallengeInvalid()

    async def _do(self, command: str, *args: Any, **options: Any) -> Any:
        try:
            return await getattr(self._redis, command)(*args, **options)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error


def _key(tenant_id: str, challenge_id: str) -> str:
    return f"auth-service:challenge:{tenant_id}:{hash_secret(challenge_id).hex()}"

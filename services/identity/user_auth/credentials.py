"""Passwords of users: what a tenant asks of them, and who has the right one."""

from nexus.identity.user_auth.v1.faults import CredentialsInvalid, SignInLocked
from services.chassis.lockout import Lockout
from services.chassis.service import Service
from services.chassis.table import Row
from services.identity.user_auth import passwords
from services.identity.user_auth.breaches import BreachedPasswords
from services.identity.user_auth.passwords import Policy
from services.identity.user_auth.profiles import Profile
from services.identity.user_auth.spec import Config
from services.identity.user_auth.store import Store

_FORGET_SECONDS = 3600.0


class Credentials:
    """Of users of the call's tenant."""

    def __init__(self, service: Service, store: Store) -> None:
        self._config: Config = service.config
        self._store = store
        url = self._config.breached_passwords_url
        self._breached = BreachedPasswords(url) if url is not None else None
        self._lockout = Lockout(service.database, self._config.lockout)
        service.every(_FORGET_SECONDS, self._lockout.forget_old)

    async def policy(self) -> Policy:
        own = await self._store.password_policies.find()
        if own is not None:
            return Policy(own["min_length"], own["min_strength"])
        return Policy(self._config.password_min_length, self._config.password_min_strength)

    async def hash(self, password: str, profile: Profile) -> str:
        """What is stored of a new password of this person. Raises PasswordWeak."""
        personal = (profile.email, profile.display_name)
        await passwords.require_strong(password, await self.policy(), personal, self._breached)
        return await passwords.hash_password(password)

    async def prove(self, subject: bytes, user: Row | None, password: str) -> Row:
        """The user of an address, given its digest, if the password is theirs. The same work is done for an address
        that belongs to nobody.

        Raises CredentialsInvalid or SignInLocked.
        """
        left = await self._lockout.seconds_left(subject)
        if not left:
            right = await passwords.matches(user["password_hash"] if user else None, password)
            left = await self._lockout.settle(subject, right=right)
        if left:
            raise SignInLocked(seconds=left, retry_after=left)
        if not right or user is None:
            raise CredentialsInvalid()
        return user

    async def forgive(self, subject: bytes) -> None:
        """Forget the wrong passwords of an address."""
        await self._lockout.clear(subject)

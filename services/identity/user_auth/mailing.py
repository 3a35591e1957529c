"""Codes by mail: to verify an address, to recover an account.

Who asks for a mail by address only leaves a request; a job looks into it a moment later. So the asking takes as
long for an unknown address as for a known one, and a request survives a crash and a mail server that is away.
"""

from dataclasses import dataclass
from datetime import timedelta

from services.chassis.clock import now
from services.chassis.context import acting_for
from services.chassis.ids import hash_secret, new_id, new_secret
from services.chassis.service import Service
from services.chassis.table import Row
from services.identity.user_auth.profiles import Profiles
from services.identity.user_auth.spec import Config
from services.identity.user_auth.store import Store

VERIFY, RECOVER, INVITE = "verify", "recover", "invite"
SEND_SECONDS = 1.0
_BATCH = 100


@dataclass(frozen=True)
class _Mail:
    subject: str
    body: str
    lifetime: timedelta
    redeemed_as: str
    """What the code is for."""


class CodeMailer:
    """Makes codes, keeps their hashes and mails them."""

    def __init__(self, service: Service, store: Store, profiles: Profiles) -> None:
        config: Config = service.config
        self._database = service.database
        self._mailer = service.mailer
        self._store = store
        self._profiles = profiles
        self._mails = {
            VERIFY: _Mail(
                "Verify your e-mail address",
                "Your verification code is:\n\n    {code}\n\nIf you did not register, ignore this mail.\n",
                config.verification_lifetime,
                VERIFY,
            ),
            RECOVER: _Mail(
                "Set a new password",
                "The code to set a new password is:\n\n    {code}\n\n"
                "If you did not ask for it, ignore this mail: your password stays as it is.\n",
                config.recovery_lifetime,
                RECOVER,
            ),
            INVITE: _Mail(
                "You are invited",
                "An account has been made for you. The code to choose its password is:\n\n    {code}\n",
                config.invitation_lifetime,
                RECOVER,
            ),
        }

    async def request(self, email: str, purpose: str) -> None:
        """Have a mail sent to whoever has this address, if anybody may have it."""
        digest = self._profiles.address(email).digest
        await self._store.mail_requests.insert(request_id=new_id(), email_digest=digest, purpose=purpose)

    async def send(self, user: Row, purpose: str) -> None:
        """Mail the user a fresh code, within a transaction; earlier ones for this purpose stop working."""
        mail, code = self._mails[purpose], new_secret()
        kind = {"user_id": user["user_id"], "purpose": mail.redeemed_as}
        await self._store.codes.delete(**kind)
        await self._store.codes.insert(code_hash=hash_secret(code), expire_time=now() + mail.lifetime, **kind)
        profile = await self._profiles.of(user)
        greeting = f"Hello{' ' + profile.display_name if profile.display_name else ''},\n\n"
        await self._mailer.send(profile.email, mail.subject, greeting + mail.body.format(code=code))

    async def send_requested(self) -> None:
        """Answer the requests of all tenants: mail those users who may have what was asked for."""
        for request in await self._store.requested_mails(_BATCH):
            with acting_for(request["tenant_id"]):
                async with self._database.transaction():
                    await self._answer(request["request_id"])

    async def _answer(self, request_id: str) -> None:
        request = await self._store.take_mail_request(request_id)
        if request is None:
            return
        user = await self._store.users.find(email_digest=request["email_digest"])
        if user is None or user["state"] != "active":
            return
        if request["purpose"] == RECOVER or not user["email_verified"]:
            await self.send(user, request["purpose"])

"""What a payment provider is to this service. One class for each, chosen by the payment method.

Every request carries a key that never changes for one operation: a provider that has seen it answers as it did then
and moves no money again. So after `InDoubt` the same request may be sent again, for as long as `replay_window` says;
after that the provider is only looked at (`find`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Literal, Protocol

State = Literal["PENDING", "REQUIRES_ACTION", "AUTHORIZED", "CAPTURED", "VOIDED", "FAILED"]
DisputeState = Literal["NEEDS_ANSWER", "UNDER_REVIEW", "WON", "LOST"]


class InDoubt(Exception):  # noqa: N818  says what is known
    """No answer: whether money moved is not known. Ask again with the same key."""


class Refused(Exception):  # noqa: N818
    """The provider said no to one operation; nothing moved, and nothing will under this key."""

    def __init__(self, failure: str, reason: str) -> None:
        """`failure` is the name of a FailureCode without its prefix, `reason` the provider's own word."""
        super().__init__(f"{failure}: {reason}")
        self.failure, self.reason = failure, reason[:200]


class MethodRefused(Exception):  # noqa: N818
    """The provider does not take a payment method."""


class SignatureInvalid(Exception):  # noqa: N818
    """A notice that the provider did not sign, or too long ago."""


@dataclass(frozen=True)
class Card:
    """A payment method, as the provider keeps it, and as its row has it."""

    provider_token: str
    provider_customer: str
    brand: str
    last_digits: str = ""
    expiry: str = ""


@dataclass(frozen=True)
class Charge:
    """An amount to reserve, or to take at once."""

    payment_id: str
    operation_id: str
    customer_id: str
    token: str
    provider_customer: str
    currency: str
    amount: int
    capture: bool
    off_session: bool
    description: str


@dataclass(frozen=True)
class Movement:
    """A capture or a refund, as the provider has it."""

    provider_id: str
    amount: int
    operation_id: str = ""
    """Ours, if the provider was given it."""
    state: Literal["PENDING", "SUCCEEDED", "FAILED"] = "SUCCEEDED"


@dataclass(frozen=True)
class DisputeNotice:
    provider_id: str
    state: DisputeState
    amount: int
    reason: str
    answer_due: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    """A payment as the provider has it now: all of it, so that it does not matter in which order snapshots come."""

    provider_payment_id: str
    state: State
    payment_id: str = ""
    """Ours, if the provider was given it."""
    captures: tuple[Movement, ...] = ()
    refunds: tuple[Movement, ...] = ()
    disputes: tuple[DisputeNotice, ...] = ()
    failure: str = ""
    failure_reason: str = ""
    action_url: str = ""
    client_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Notice:
    """What a webhook says: that something happened to a payment. What, is looked up."""

    notice_id: str
    provider_payment_id: str
    """Empty when the notice is about something else."""


class Provider(Protocol):
    """Requests raise InDoubt and Refused."""

    replay_window: ClassVar[timedelta]
    """For how long a key is remembered."""

    async def close(self) -> None:
        """Let go of its connections."""

    async def check(self) -> None:
        """Raises Refused when the account's credentials are not good."""

    async def attach(self, token: str, customer_id: str, key: str) -> Card:
        """Take in a payment method. Raises MethodRefused."""

    async def detach(self, token: str) -> None:
        """Forget a payment method."""

    async def authorize(self, charge: Charge) -> Snapshot: ...

    async def capture(self, payment: str, amount: int, currency: str, keep_rest: bool, key: str) -> Snapshot: ...

    async def void(self, payment: str, key: str) -> Snapshot: ...

    async def refund(self, payment: str, amount: int, currency: str, key: str) -> Snapshot: ...

    async def confirm(self, payment: str, answer: str, key: str) -> Snapshot:
        """Go on after the customer's action."""

    async def look_at(self, payment: str) -> Snapshot: ...

    async def find(self, charge: Charge) -> Snapshot | None:
        """The payment of an operation whose answer was lost, asked for when `replay_window` is over; None if the
        provider never heard of it. One that cannot be asked raises InDoubt: what may have been charged is not charged
        again, until a notice or a person says what became of it."""

    async def answer_dispute(self, payment: str, dispute: str, evidence: str) -> Snapshot: ...

    async def notice(self, headers: Mapping[str, str], body: bytes) -> Notice:
        """Read a webhook. Raises SignatureInvalid."""

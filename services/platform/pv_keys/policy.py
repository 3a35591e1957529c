"""What a key may sign, and with whose approval."""

from collections.abc import Collection
from dataclasses import dataclass

from nexus.platform.pv_keys.v1.faults import ApproverNotAllowed, LimitExceeded, PolicyForbids, PolicyInvalid
from nexus.platform.pv_keys.v1.pv_keys_pb2 import SigningLimit, SigningPolicy
from services.platform.pv_keys.payloads import Payload


@dataclass(frozen=True)
class Usage:
    """What a key has signed in a period."""

    signatures: int
    amount: int
    """Of the limit's asset."""


def require_sound(policy: SigningPolicy) -> None:
    """Raises PolicyInvalid for one that can never be kept, or says half of something."""
    if policy.approver_ids and len(policy.approver_ids) < policy.approvals:
        raise PolicyInvalid(why=f"{policy.approvals} approvals of {len(policy.approver_ids)} approvers")
    for limit in policy.limits:
        if bool(limit.asset) != bool(limit.amount):
            raise PolicyInvalid(why="asset and amount belong together")
        if not limit.asset and not limit.HasField("signatures"):
            raise PolicyInvalid(why="a limit limits neither signatures nor an amount")


def require_replaceable(policy: SigningPolicy) -> None:
    """Raises PolicyForbids if the policy of a root cannot be left out for what is derived from it: a manager could do
    without the approvers."""
    if not is_approved(policy, ()):
        raise PolicyForbids(why="what is derived begins with the root's policy, which asks for approvals")


def check(policy: SigningPolicy, payload: Payload) -> None:
    """Raises PolicyForbids for a payload that no number of approvals makes right."""
    restricts = bool(policy.destinations) or any(limit.asset for limit in policy.limits)
    if payload.is_message:
        if restricts and not policy.allow_messages:
            raise PolicyForbids(why="a message says neither destination nor amount, and these are limited")
        return
    if payload.calls_contract and restricts and not policy.allow_contract_calls:
        raise PolicyForbids(why="what a contract call sends is not known, and destinations or amounts are limited")
    if policy.destinations and not _allows(policy.destinations, payload.destination):
        raise PolicyForbids(why=f"{payload.destination} is not among its destinations")


def check_limit(limit: SigningLimit, payload: Payload, used: Usage) -> None:
    """Raises LimitExceeded if the payload, on top of what was used, is more than the limit."""
    seconds = limit.period.seconds
    if limit.HasField("signatures") and used.signatures + 1 > limit.signatures:
        raise LimitExceeded(limit=f"{limit.signatures} signatures", period_seconds=seconds)
    if limit.asset and limit.asset == payload.asset and used.amount + payload.amount > int(limit.amount):
        raise LimitExceeded(limit=f"{limit.amount} of {limit.asset}", period_seconds=seconds)


def check_approver(policy: SigningPolicy, requester_id: str, user_id: str) -> None:
    """Raises ApproverNotAllowed."""
    if user_id == requester_id:
        raise ApproverNotAllowed(why="you asked for it yourself")
    if policy.approver_ids and user_id not in policy.approver_ids:
        raise ApproverNotAllowed(why="you are not among the approvers of this key")


def is_approved(policy: SigningPolicy, approved_by: Collection[str]) -> bool:
    """Whether enough of today's approvers have agreed."""
    counted = {user for user in approved_by if not policy.approver_ids or user in policy.approver_ids}
    return len(counted) >= policy.approvals


def _allows(destinations: Collection[str], destination: str) -> bool:
    if destination in destinations:
        return True
    is_account = destination.startswith("0x")
    return is_account and destination.lower() in {allowed.lower() for allowed in destinations}

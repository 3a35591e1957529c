"""When to try again to collect a bill, and what becomes of it in the end."""

from datetime import datetime, timedelta

from nexus.finance.billing_service.v1.subscriptions_pb2 import DUNNING_OUTCOME_CANCEL, DunningPolicy

DEFAULT = DunningPolicy(retry_after_hours=(24, 72, 120, 168), outcome=DUNNING_OUTCOME_CANCEL)
"""After one, three, five and seven days more, then the subscription ends."""


def next_attempt(policy: DunningPolicy, failed: int, at: datetime) -> datetime | None:
    """When to try for the next time after so many failed attempts, the last of them at this time; None to give up."""
    if failed > len(policy.retry_after_hours):
        return None
    return at + timedelta(hours=policy.retry_after_hours[failed - 1])

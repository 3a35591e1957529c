"""Step-up: methods that ask how recently, and how surely, the user has proved who they are.

The contract says so (`recent_proof`, `two_factors`); sign-in and StepUp give the proof, and the access token carries
it: `acr` (NIST SP 800-63B: "aal1", "aal2") and `auth_time` (RFC 9068, section 2.2.1).
"""

import time

from nexus.type.v1.faults import StepUpRequired
from services.chassis.context import User
from services.chassis.contract import Method

ONE_FACTOR, TWO_FACTORS = "aal1", "aal2"


def require_proof(method: Method, user: User) -> None:
    """Raises StepUpRequired, with what to prove, unless the user has proved it. For methods with `recent_proof`."""
    if user.machine and method.policy.permission:
        return  # nobody there to ask; whoever gave it the permission has been asked
    seconds = method.policy.recent_proof.seconds
    # A token that does not say whether there is a second factor may be that of somebody who has one.
    needs_two = method.policy.two_factors and user.second_factor is not False
    if time.time() - user.auth_time > seconds or (needs_two and user.assurance != TWO_FACTORS):
        raise StepUpRequired(assurance=TWO_FACTORS if needs_two else ONE_FACTOR, max_age=seconds)

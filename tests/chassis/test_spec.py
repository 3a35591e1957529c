"""What specs say of each other fits together."""

import pytest

from services.chassis.spec import ServiceSpec, callers_of, discover, require_no_circle


def test_services_that_call_each_other_in_a_circle_are_refused() -> None:
    first = [ServiceSpec(id="a", port=1, calls=["b"]), ServiceSpec(id="b", port=2, calls=["c"])]
    require_no_circle([*first, ServiceSpec(id="c", port=3, calls_back=["a"])])
    with pytest.raises(ValueError, match=r"these call each other: (a|b|c), (a|b|c), (a|b|c), (a|b|c)"):
        require_no_circle([*first, ServiceSpec(id="c", port=3, calls=["a"])])


def test_who_calls_back_is_a_caller_too() -> None:
    assert "user-auth" in callers_of("auth-service")
    assert "auth-service" not in discover()["user-auth"].calls

"""A fault is the same on both sides of the wire."""

import importlib

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from nexus.identity.user_auth.v1.faults import EmailTaken, PasswordWeak
from nexus.type.v1 import faults
from services.chassis.errors import Fault, fault_from_status
from services.chassis.spec import discover
from tests.guards import walks

USER_AUTH = "nexus.identity.user_auth.v1"
WORDS = st.text(st.characters(codec="utf-8"), max_size=40)
NAMES = st.from_regex(r"[a-z][a-z_]{0,10}", fullmatch=True).filter(
    lambda name: name not in ("retry_after", "violations")
)


def over_the_wire(fault: Fault, package: str = USER_AUTH) -> Fault | None:
    return fault_from_status(status_pb2.Status.FromString(fault.status().SerializeToString()), package)


def test_every_reason_crosses_the_wire_as_its_own_class() -> None:
    for reason in walks.reasons():
        kind: type[Fault] = getattr(importlib.import_module(f"{reason.package}.faults"), reason.fault)
        arrived = over_the_wire(kind(), reason.package)
        assert type(arrived) is kind, reason.full_name
        assert kind.code.value[0] == reason.policy.code, reason.full_name


def test_domain_and_reason_are_as_documented() -> None:
    domains = {spec.proto_package: spec.id for spec in discover().values()} | {"nexus.type.v1": "nexus"}
    for reason in walks.reasons():
        kind: type[Fault] = getattr(importlib.import_module(f"{reason.package}.faults"), reason.fault)
        assert (kind.domain, kind.reason) == (domains[reason.package], reason.name)


@given(
    metadata=st.dictionaries(NAMES, WORDS, max_size=4),
    retry_after=st.none() | st.floats(0, 1e6),
    violations=st.lists(st.tuples(WORDS, WORDS), max_size=4),
)
def test_everything_that_a_fault_carries_arrives(
    metadata: dict[str, str], retry_after: float | None, violations: list[tuple[str, str]]
) -> None:
    arrived = over_the_wire(faults.InvalidRequest(retry_after=retry_after, violations=violations, **metadata))
    assert isinstance(arrived, faults.InvalidRequest)
    assert arrived.metadata == metadata
    assert arrived.violations == violations
    assert arrived.retry_after == (None if retry_after is None else pytest.approx(retry_after, abs=1e-6))


def test_the_message_has_its_blanks_filled_and_arrives_as_it_was() -> None:
    fault = PasswordWeak(why="it needs at least 10 characters")
    assert fault.message == str(fault) == "Choose another password: it needs at least 10 characters."
    arrived = over_the_wire(fault)
    assert isinstance(arrived, PasswordWeak)
    assert arrived.message == fault.message


def test_the_callees_own_words_arrive_even_if_ours_have_changed_since() -> None:
    status = EmailTaken().status()
    status.message = "As another release says it."
    fault = fault_from_status(status, USER_AUTH)
    assert fault is not None
    assert fault.message == "As another release says it."


def test_a_blank_that_nobody_filled_stays_and_a_value_is_not_a_template() -> None:
    assert PasswordWeak().message == "Choose another password: {why}."
    assert PasswordWeak(why="{why.__class__} {0}").message == "Choose another password: {why.__class__} {0}."


def test_the_status_has_code_message_and_details_in_googles_shapes() -> None:
    status = faults.RateLimited(seconds=3, retry_after=2.5, violations=[("email", "too often")]).status()
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    assert status.code == StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert [status.details[0].Unpack(info), status.details[1].Unpack(bad_request), status.details[2].Unpack(retry)] == [
        True
    ] * 3
    assert (info.reason, info.domain, dict(info.metadata)) == ("RATE_LIMITED", "nexus", {"seconds": "3"})
    assert bad_request.field_violations[0].field == "email"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5


def test_a_status_without_a_known_reason_is_no_fault() -> None:
    def status(*details: any_pb2.Any) -> status_pb2.Status:
        return status_pb2.Status(code=5, message="x", details=details)

    def info(domain: str, reason: str) -> any_pb2.Any:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason))
        return packed

    assert fault_from_status(status(), USER_AUTH) is None
    assert fault_from_status(status(info("nexus", "NO_SUCH_REASON")), USER_AUTH) is None
    assert fault_from_status(status(info("user-auth", "EMAIL_TAKEN_TWICE")), USER_AUTH) is None
    assert fault_from_status(status(info("elsewhere", "CONFLICT")), "nexus.no.such.v1") is None
    assert type(fault_from_status(status(info("user-auth", "EMAIL_TAKEN")), USER_AUTH)) is EmailTaken

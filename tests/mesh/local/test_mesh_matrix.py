"""Who may call whom, tried out: every identity of the mesh calls every method of every service.

Each undeclared call is refused three times over: by the caller's own proxy, by the callee's for one that goes around
the first, and by the service for one that goes around both.
"""

import socket
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509

from edge.layout import inbound_socket
from mesh.local.identities import LIFETIME, Authority
from mesh.topology import HEALTH, REFLECTION, topology
from nexus.identity.auth_service.v1.auth_service_pb2 import LoginRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.type.v1.faults import CallerNotAllowed
from services.chassis import contract
from services.chassis.clock import now
from services.chassis.config import Settings
from services.chassis.context import EDGE, OPERATOR
from services.chassis.peers import XFCC
from tests.mesh.local.wire import PREFACE, Line, certificate_for, identity_of, shake_hands, trusting
from tests.platforms import PASSWORD, Platform, Tenant

CALLERS = topology().callers
HEALTH_CHECK = HEALTH.replace("*", "Check")
REFLECT = [path.replace("*", "ServerReflectionInfo") for path in REFLECTION]
PATHS = {
    service: [*(method.path for method in methods), HEALTH_CHECK, *REFLECT]
    for service, methods in topology().methods.items()
}
TLS_ALERT = b"\x15"


@pytest.fixture(scope="module")
async def token(platform: Platform) -> str:
    tenant = await platform.new_tenant()
    return (await tenant.sign_in()).access_token


@pytest.mark.parametrize("caller", [caller for caller in CALLERS if caller != EDGE])
async def test_the_callers_own_proxy_lets_out_what_is_declared(settings: Settings, caller: str) -> None:
    callees = topology().callees_of(caller)
    async with Line(settings.run_dir / "mesh" / f"{caller}.sock") as line:
        await expect(
            {
                (callee, path): callee in callees and allowed(caller, callee, path)
                for callee, paths in PATHS.items()
                for path in paths
            },
            line,
        )


@pytest.mark.parametrize("caller", CALLERS)
async def test_the_callees_proxy_lets_in_what_is_declared(settings: Settings, caller: str) -> None:
    certificate = identity_of(settings, caller)
    for callee, paths in PATHS.items():
        async with Line(inbound_socket(settings, callee), certificate) as line:
            await expect({(callee, path): allowed(caller, callee, path) for path in paths}, line)


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_service_refuses_what_is_not_declared_by_itself(settings: Settings, token: str, caller: str) -> None:
    """Straight to the socket that only its proxy is to use, signed in, as a proxy that lets everybody in would."""
    headers = {XFCC: f"URI={settings.spiffe_id(caller)}", "authorization": f"Bearer {token}"}
    for callee, methods in topology().methods.items():
        undeclared = [(callee, method.path) for method in methods if not topology().allows(caller, method.path)]
        async with Line(settings.run_dir / f"{callee}.sock") as line:
            answers = dict(zip(undeclared, await line.calls(undeclared, headers), strict=True))
        assert {call: answer.reason for call, answer in answers.items()} == dict.fromkeys(
            undeclared, CallerNotAllowed.reason
        )


@pytest.mark.parametrize("caller", [caller for caller in CALLERS if caller not in (EDGE, OPERATOR)])
async def test_nobody_gets_further_by_claiming_to_be_another(settings: Settings, caller: str) -> None:
    claim = {XFCC: f"URI={settings.spiffe_id(OPERATOR)}"}
    certificate = identity_of(settings, caller)
    for callee, paths in PATHS.items():
        async with Line(inbound_socket(settings, callee), certificate) as line:
            await expect({(callee, path): allowed(caller, callee, path) for path in paths}, line, claim)


async def test_a_claimed_identity_is_replaced_by_the_true_one(
    platform: Platform, settings: Settings, tenant: Tenant
) -> None:
    """The edge is believed about the client's address; others are not, and saying to be the edge does not help."""
    login = LoginRequest(email=await tenant.provision(), password=PASSWORD)
    claim = (
        *tenant.headers.items(),
        (XFCC, f"URI={settings.spiffe_id(EDGE)}"),
        ("x-forwarded-for", "203.0.113.9"),
    )
    recorded = {}
    for way, path in {
        "around the mesh": settings.run_dir / "auth-service.sock",
        "through it": settings.run_dir / "mesh" / "operator.sock",
    }.items():
        async with grpc.aio.insecure_channel(f"unix:{path}", [("grpc.default_authority", "auth-service")]) as channel:
            answer = await AuthServiceStub(channel).Login(login, metadata=claim, timeout=10)
            recorded[way] = answer.session.ip_address
    assert recorded["around the mesh"] == "203.0.113.9", "this is what the claim would do"
    assert recorded["through it"] != "203.0.113.9"


async def test_an_undeclared_callee_is_refused_by_whatever_name(settings: Settings) -> None:
    async with Line(settings.run_dir / "mesh" / "session-mgr.sock") as line:
        for name in ("user-auth", "USER-AUTH", "user-auth:443", "user-auth.canary", "token-mgr.evil.example"):
            assert (await line.call(name, HEALTH_CHECK)).refused_by_proxy, name


@pytest.mark.parametrize("service", topology().services)
def test_a_service_shows_its_own_identity(settings: Settings, service: str) -> None:
    certificate = shake_hands(inbound_socket(settings, service), identity_of(settings, OPERATOR))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [settings.spiffe_id(service)]
    assert certificate.not_valid_after_utc <= now() + LIFETIME


@pytest.fixture(params=["user-auth", "token-mgr", "backend-api"])
def inbound(request: pytest.FixtureRequest, settings: Settings) -> Path:
    return inbound_socket(settings, request.param)


def test_a_certificate_of_the_mesh_is_taken(settings: Settings, inbound: Path) -> None:
    assert shake_hands(inbound, identity_of(settings, "session-mgr"))


def test_a_certificate_of_another_authority_is_refused(settings: Settings, inbound: Path, tmp_path: Path) -> None:
    """It says all the right things, signed by somebody else."""
    stranger = Authority(settings.model_copy(update={"home": tmp_path}))
    assert_refused(inbound, identity_of(settings, "session-mgr", stranger), "unknown.ca|decrypt.error")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://evil.example/ns/nexus/sa/session-mgr",
        "spiffe://nexus.local.evil.example/ns/nexus/sa/session-mgr",
        "https://nexus.local/ns/nexus/sa/session-mgr",
    ],
)
def test_a_certificate_of_another_trust_domain_is_refused(settings: Settings, inbound: Path, uri: str) -> None:
    assert_refused(inbound, certificate_for(settings, uri), "certificate")


def test_an_expired_certificate_is_refused(settings: Settings, inbound: Path) -> None:
    expired = certificate_for(settings, settings.spiffe_id("session-mgr"), lifetime=-timedelta(seconds=1))
    assert_refused(inbound, expired, "certificate.*expired")


def test_no_certificate_at_all_is_refused(settings: Settings, inbound: Path) -> None:
    assert_refused(inbound, trusting(settings), "certificate.required")


def test_an_older_tls_is_refused(settings: Settings, inbound: Path) -> None:
    older = identity_of(settings, "session-mgr")
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    assert_refused(inbound, older, "protocol.version")


def test_plaintext_is_not_answered(inbound: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(inbound))
        connection.sendall(PREFACE)
        assert connection.recv(1024)[:1] in (b"", TLS_ALERT)


@pytest.mark.parametrize(
    "namespace", ["other/sa", "nexus-too/sa", "nexus"], ids=["another", "one that begins like ours", "no account"]
)
async def test_an_identity_of_another_namespace_may_call_nothing(settings: Settings, namespace: str) -> None:
    """Its certificate is good; "everybody" is everybody of ours."""
    neighbour = certificate_for(settings, f"spiffe://nexus.local/ns/{namespace}/session-mgr")
    for callee in ("token-mgr", "backend-api"):
        async with Line(inbound_socket(settings, callee), neighbour) as line:
            await expect({(callee, path): False for path in PATHS[callee]}, line)


def allowed(caller: str, callee: str, path: str) -> bool:
    return any(rule.allows(path) for rule in topology().rules_of_caller(caller) if rule.callee == callee)


async def expect(wanted: Mapping[tuple[str, str], bool], line: Line, headers: Mapping[str, str] | None = None) -> None:
    """Make all these calls: the ones that are to pass reach their service, which is of the same opinion; the others
    do not reach it."""
    answers = dict(zip(wanted, await line.calls(list(wanted), headers), strict=True))
    passed = {call: not answer.refused_by_proxy for call, answer in answers.items()}
    assert passed == wanted
    lost = [call for call, answer in answers.items() if not answer.delivered]
    assert not lost, "let through, they did not arrive"
    in_contract = contract.methods()
    for (callee, path), answer in answers.items():
        if wanted[callee, path] and path in in_contract:
            assert answer.reason != CallerNotAllowed.reason, f"{callee}{path}: the service refuses it"
        elif wanted[callee, path] and path == HEALTH_CHECK:
            assert answer.code == 0, f"{callee}: {answer}"


def assert_refused(path: Path, context: ssl.SSLContext, why: str) -> None:
    with pytest.raises(ssl.SSLError, match=f"(?i)alert.*({why})"):
        shake_hands(path, context)

"""A sensitive method asks how recently the user has proved who they are, and takes the token after the proof."""

from typing import Any

import httpx
import pytest

from nexus.identity.user_auth.v1.user_auth_pb2 import ExportUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis import contract
from services.chassis.clients import Clients
from services.chassis.ids import new_id
from tests.identity.people import body, change, claims, enroll_totp, reason
from tests.platforms import PASSWORD, Platform, SignedIn, Tenant

EXPORT = "/api/v1/auth/me:export"
TOTP = "/api/v1/auth/factors/totp"


async def aged(platform: Platform, http: httpx.AsyncClient, user: SignedIn, minutes: int) -> dict[str, Any]:
    """The user's tokens as of a session in which they proved who they are so long ago."""
    await change(
        platform,
        "UPDATE session_mgr.sessions SET auth_time = now() - $2 * interval '1 minute' WHERE session_id = $1",
        user.session_id,
        minutes,
    )
    answer = await http.post(
        "/api/v1/auth/refresh",
        headers={"x-nexus-tenant": claims(user.access_token)["tid"]},
        json={"refreshToken": user.refresh_token},
    )
    tokens: dict[str, Any] = body(answer)["tokens"]
    return tokens


async def step_up(http: httpx.AsyncClient, tokens: dict[str, Any], **proof: object) -> dict[str, str]:
    """Prove who one is; returns the headers to go on with."""
    headers = bearer(tokens)
    challenge = body(await http.post("/api/v1/auth/step-up:start", headers=headers, json={}))["challenge"]
    raised = await http.post(
        "/api/v1/auth/step-up",
        headers=headers,
        json={"challengeId": challenge["challengeId"], "refreshToken": tokens["refreshToken"], **proof},
    )
    return bearer(body(raised)["tokens"])


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {tokens['accessToken']}"}


def asked(answer: httpx.Response) -> tuple[str, str]:
    """(assurance, max_age) of a refusal that asks for a proof."""
    assert (answer.status_code, reason(answer)) == (401, "STEP_UP_REQUIRED"), answer.text
    metadata = answer.json()["details"][0]["metadata"]
    return metadata["assurance"], metadata["max_age"]


async def test_an_old_sign_in_is_asked_for_the_password_and_then_let_through(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant
) -> None:
    ann = await tenant.sign_in()
    body(await http.get(EXPORT, headers=ann.headers))
    tokens = await aged(platform, http, ann, minutes=16)
    assert asked(await http.get(EXPORT, headers=bearer(tokens))) == ("aal1", "900")
    assert (await http.get("/api/v1/auth/me", headers=bearer(tokens))).status_code == 200
    headers = await step_up(http, tokens, password=PASSWORD)
    assert body(await http.get(EXPORT, headers=headers))["export"]["user"]["email"] == ann.email


async def test_a_factor_is_removed_with_a_factor_only(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant
) -> None:
    ann = await tenant.sign_in()
    _, codes = await enroll_totp(http, ann)
    # The session began with the password alone, and its next token knows of the factor.
    tokens = await aged(platform, http, ann, minutes=1)
    assert asked(await http.delete(TOTP, headers=bearer(tokens))) == ("aal2", "900")
    assert asked(await http.post(f"{TOTP}:enroll", headers=bearer(tokens), json={})) == ("aal2", "900")
    headers = await step_up(http, tokens, recoveryCode=codes[0])
    body(await http.delete(TOTP, headers=headers))


async def test_who_has_no_second_factor_enrols_the_first_by_the_password(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant
) -> None:
    ann = await tenant.sign_in()
    tokens = await aged(platform, http, ann, minutes=16)
    enrol = f"{TOTP}:enroll"
    assert asked(await http.post(enrol, headers=bearer(tokens), json={})) == ("aal1", "900")
    headers = await step_up(http, tokens, password=PASSWORD)
    assert body(await http.post(enrol, headers=headers, json={}))["totpSecret"]


async def test_a_service_goes_on_for_a_user_whose_proof_is_old(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant, operator: Clients
) -> None:
    ann = await tenant.sign_in("owner")
    tokens = await aged(platform, http, ann, minutes=60)
    path = f"/api/v1/users/{ann.user_id}:export"
    assert asked(await http.get(path, headers=bearer(tokens))) == ("aal1", "900")
    metadata = tuple(bearer(tokens).items())
    exported = await operator.stub(UserServiceStub).ExportUser(
        ExportUserRequest(user_id=ann.user_id), timeout=10, metadata=metadata
    )
    assert exported.export.user.user_id == ann.user_id


SENSITIVE = {
    "auth-service": "EnrollTotp RemoveTotp StartPasskeyRegistration RemovePasskey RegenerateRecoveryCodes",
    "auth-service-v2": "CreateClient UpdateClient RotateClientSecret CreateRegistrationToken CreateProvider",
    "backend-api": "CreateApiKey",
    "key-service": "ScheduleKeyDestruction",
    "puabo-os": "SuspendTenant EraseTenant",
    "pv-keys": "ImportKey SetPolicy ApprovePolicy Sign ApproveSigning",
    "token-mgr": "RotateKeys",
    "user-auth": "UpdateUser ResetPassword ExportUser ExportMe EraseUser EraseMe SetRole AssignRoles RemoveRoles "
    "CreateUser UnlinkIdentity SetPasswordPolicy",
}
BY_TWO_FACTORS = "EnrollTotp RemoveTotp StartPasskeyRegistration RemovePasskey RegenerateRecoveryCodes RotateKeys \
ScheduleKeyDestruction EraseTenant"


def test_the_contracts_mark_what_gives_an_account_away_and_what_cannot_be_undone() -> None:
    marked: dict[str, set[str]] = {}
    methods = [method for method in contract.methods().values() if method.policy.HasField("recent_proof")]
    for method in methods:
        marked.setdefault(method.service_id, set()).add(method.name)
    assert marked == {service: set(names.split()) for service, names in SENSITIVE.items()}
    assert {method.name for method in methods if method.policy.two_factors} == set(BY_TWO_FACTORS.split())


async def test_an_owner_with_an_old_proof_neither_makes_clients_nor_moves_an_address(
    platform: Platform, http: httpx.AsyncClient, tenant: Tenant
) -> None:
    ann, other = await tenant.sign_in("owner"), await tenant.sign_in()
    tokens = await aged(platform, http, ann, minutes=16)
    mask, address = {"updateMask": "email"}, {"email": f"{new_id()}@example.com"}
    client = {"settings": {"clientName": "Mine", "redirectUris": ["https://app.example/cb"]}}

    async def act(headers: dict[str, str]) -> list[httpx.Response]:
        return [
            await http.patch(f"/api/v1/users/{other.user_id}", headers=headers, params=mask, json=address),
            await http.post("/api/v1/clients", headers=headers, json=client),
        ]

    assert {asked(answer) for answer in await act(bearer(tokens))} == {("aal1", "900")}
    for answer in await act(await step_up(http, tokens, password=PASSWORD)):
        body(answer)


@pytest.mark.parametrize("name", ["RemoveTotp", "ExportMe"])
async def test_the_document_and_the_route_table_say_so(http: httpx.AsyncClient, name: str) -> None:
    document = body(await http.get("/openapi.json"))
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    (operation,) = [each for each in operations if each["operationId"].endswith(f"_{name}")]
    assert operation["x-nexus-step-up"]["max_age"] == 900
    assert "STEP_UP_REQUIRED" in operation["responses"]["401"]["description"]
    routes = body(await http.get("/api/v1/platform/routes", params={"pageSize": 1000}))["routes"]
    (route,) = [each for each in routes if each["grpcMethod"].endswith(f"/{name}")]
    assert route["recentProofSeconds"] == 900

"""`nexus tenant`, `nexus user`, `nexus client` and `nexus key`, as an operator types them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey

from mesh import cli_operator
from services.chassis.ids import new_id
from tests.edge.wire import reason
from tests.identity.people import mailed_codes
from tests.platforms import PASSWORD, Platform, Tenant


def read(platform: Platform, *arguments: str) -> Any:
    return json.loads(platform.nexus(*arguments, "--json").stdout)


def refused(platform: Platform, *arguments: str) -> str:
    """The one line that says why not."""
    result = platform.nexus(*arguments, check=False)
    assert result.returncode == 1, result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


async def test_a_tenant_from_its_beginning_to_its_end(platform: Platform, http: httpx.AsyncClient) -> None:
    tenant_id = f"t-{new_id()}"
    shown = platform.nexus("tenant", "create", tenant_id, "--name", "Acme Inc.").stdout
    assert shown.splitlines()[1].split() == [tenant_id, "active", "standard", "Acme", "Inc."]
    assert "TENANT_TAKEN" in refused(platform, "tenant", "create", tenant_id, "--name", "Other")
    (owner,) = read(
        platform, "user", "create", "ann@acme.example", "-t", tenant_id, "--password", PASSWORD, "--role", "owner"
    )
    assert owner["roles"] == ["owner"]
    signed_in = await Tenant(platform, tenant_id).sign_in(email="ann@acme.example")
    assert "suspend it first" in refused(platform, "tenant", "erase", tenant_id, "--confirm", tenant_id)

    platform.nexus("tenant", "suspend", tenant_id, "--why", "unpaid")
    assert reason(await http.get("/api/v1/auth/me", headers=signed_in.headers), 403) == "TENANT_SUSPENDED"
    assert tenant_id in [each["tenant_id"] for each in read(platform, "tenant", "list", "--state", "suspended")]
    platform.nexus("tenant", "resume", tenant_id)
    assert (await http.get("/api/v1/auth/me", headers=signed_in.headers)).status_code == 200

    platform.nexus("tenant", "suspend", tenant_id)
    assert "ERASURE_UNCONFIRMED" in refused(platform, "tenant", "erase", tenant_id, "--confirm", "acme")
    (erasing,) = read(platform, "tenant", "erase", tenant_id, "--confirm", tenant_id, "--delay", "72")
    assert erasing["state"] == "TENANT_STATE_ERASING"


async def test_users_are_listed_disabled_and_given_roles(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann, bob = await tenant.provision("owner"), await tenant.provision()
    of = ("-t", tenant.tenant_id)
    assert {each["email"] for each in read(platform, "user", "list", *of)} == {ann, bob}
    assert [each["email"] for each in read(platform, "user", "list", *of, "--role", "owner")] == [ann]
    (changed,) = read(platform, "user", "roles", bob, *of, "--add", "owner")
    assert changed["roles"] == ["owner"]
    (changed,) = read(platform, "user", "roles", bob, *of, "--remove", "owner")
    assert "roles" not in changed
    signed_in = await tenant.sign_in(email=bob)
    platform.nexus("user", "disable", bob, *of)
    assert (await http.get("/api/v1/auth/me", headers=signed_in.headers)).status_code == 401
    platform.nexus("user", "enable", bob, *of)
    await tenant.sign_in(email=bob)
    assert "has no user" in refused(platform, "user", "disable", "nobody@acme.example", *of)
    assert "TENANT_UNKNOWN" in refused(platform, "user", "list", "-t", "no-such-tenant")


async def test_users_are_invited_exported_reset_and_erased(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    email, of = f"{new_id()}@acme.example", ("-t", tenant.tenant_id)
    (invited,) = read(platform, "user", "create", email, *of, "--invite", "--name", "Ann")
    assert "EMAIL_TAKEN" in refused(platform, "user", "create", email, *of, "--invite")
    for subject in ("You are invited", "Set a new password"):
        (code,) = mailed_codes(platform, email, subject)
        chosen = {"code": code, "newPassword": PASSWORD}
        answer = await http.post("/api/v1/auth/complete-recovery", headers=tenant.headers, json=chosen)
        assert answer.status_code == 200, answer.text
        user = await tenant.sign_in(email=email)
        if subject == "You are invited":
            assert "1 sessions have ended" in platform.nexus("user", "reset-password", email, *of).stdout
            assert (await http.get("/api/v1/auth/me", headers=user.headers)).status_code == 401
    exported = json.loads(platform.nexus("user", "export", email, *of).stdout)
    assert (exported["user"]["email"], exported["user"]["user_id"]) == (email, invited["user_id"])
    platform.nexus("user", "erase", email, *of, "--yes")
    assert (await http.get("/api/v1/auth/me", headers=user.headers)).status_code == 401
    assert "has no user" in refused(platform, "user", "export", email, *of)


async def test_keys_are_made_for_users_and_revoked(platform: Platform, tenant: Tenant) -> None:
    ann = await tenant.provision("owner")
    plain = await tenant.provision()
    of = ("-t", tenant.tenant_id)
    made = platform.nexus("key", "create", "export", *of, "--user", ann, "--scope", "users.read", "--days", "90").stdout
    (found,) = read(platform, "key", "list", *of)
    assert made.startswith(found["prefix"] + "_")
    assert found["scopes"] == ["users.read"]
    denied = refused(platform, "key", "create", "export", *of, "--user", plain, "--scope", "users.read")
    assert "SCOPE_NOT_HELD" in denied
    (revoked,) = read(platform, "key", "revoke", found["key_id"], *of)
    assert revoked["revoke_time"]
    assert read(platform, "key", "list", *of) == []
    assert len(read(platform, "key", "list", *of, "--all")) == 1


async def test_clients_are_registered_with_a_secret_or_a_key_and_deleted(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    of = ("-t", tenant.tenant_id)
    machine = ("--grant-type", "client_credentials", "--scope", "users.read")
    client_id, secret = platform.nexus("client", "create", "Nightly", *of, *machine).stdout.split()
    endpoint, form = f"/t/{tenant.tenant_id}/oauth2/token", {"grant_type": "client_credentials"}
    granted = await http.post(endpoint, data=form, auth=(client_id, secret))
    assert granted.json()["scope"] == "users.read"
    former, secret = secret, platform.nexus("client", "rotate-secret", client_id, *of).stdout.strip()
    assert (await http.post(endpoint, data=form, auth=(client_id, former))).json()["error"] == "invalid_client"
    assert (await http.post(endpoint, data=form, auth=(client_id, secret))).status_code == 200

    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False)]}))
    by_key = ("--authentication", "private_key_jwt", "--jwks", str(keys))
    signing = read(platform, "client", "create", "Signing", *of, *machine, *by_key)
    assert "client_secret" not in signing or not signing["client_secret"]
    device = ("--grant-type", "device_code", "--authentication", "none", "--scope", "openid")
    television = read(platform, "client", "create", "Television", *of, *device)
    assert television["settings"]["grant_types"] == ["urn:ietf:params:oauth:grant-type:device_code"]
    listed = read(platform, "client", "list", *of)
    assert [each["settings"]["client_name"] for each in listed] == ["Television", "Signing", "Nightly"]
    assert "client_credentials" in platform.nexus("client", "list", *of).stdout

    platform.nexus("client", "delete", client_id, *of)
    refusal = await http.post(endpoint, data=form, auth=(client_id, secret))
    assert refusal.json()["error"] == "invalid_client"
    assert "CLIENT_NOT_FOUND" in refused(platform, "client", "delete", client_id, *of)
    assert "CLIENT_METADATA_INVALID" in refused(platform, "client", "create", "Web", *of, "--scope", "openid")
    assert "no way to authenticate" in refused(platform, "client", "create", "Web", *of, "--authentication", "x")


@pytest.mark.parametrize("command", ["tenant", "user", "client", "key", "root-key"])
def test_help_shows_every_command_with_an_example(platform: Platform, command: str) -> None:
    for each in getattr(cli_operator, command.replace("-", "_")).registered_commands:
        shown = " ".join(platform.nexus(command, each.name, "--help").stdout.split())
        assert f"Example: nexus {command} {each.name}" in shown

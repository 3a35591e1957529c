"""The root key of a platform that runs is changed, and nobody notices."""

import asyncio
import json
import signal
import subprocess
import sys

import httpx
import pytest

from services.chassis.clock import now
from services.chassis.config import Settings
from services.chassis.database import Database
from services.chassis.resealing import Resealing
from services.chassis.root_keys import root_key_file
from services.chassis.sealing import Sealer
from services.chassis.spec import ServiceSpec, discover
from services.identity.auth_service_v2.spec import PROVIDER_SECRETS
from tests.platforms import Platform, Tenant, eventually

pytestmark = pytest.mark.xdist_group("root key")  # the platform has one, and a test at a time may change it


async def roots_of(platform: Platform, tenant: Tenant) -> set[str]:
    admin = await platform.admin()
    try:
        query = "SELECT DISTINCT root FROM key_service.key_versions WHERE tenant_id = $1 AND wrapped IS NOT NULL"
        return {row["root"] for row in await admin.fetch(query, tenant.tenant_id)}
    finally:
        await admin.close()


def newest(platform: Platform) -> int:
    return root_key_file(platform.settings).keys.keys[-1].version


def interrupt_a_rotation(platform: Platform) -> None:
    """Kill it once the new version is there, before all keys are wrapped by it."""
    version, command = newest(platform), [sys.executable, "-m", "mesh.cli", "root-key", "rotate"]
    with subprocess.Popen(command, env=platform.environment, stdout=subprocess.DEVNULL) as rotating:
        eventually(lambda: newest(platform) > version)
        rotating.send_signal(signal.SIGKILL)


async def test_everything_goes_on_while_the_root_key_changes_and_an_interrupted_change_is_finished(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient
) -> None:
    ann = await tenant.sign_in("owner")
    made = await http.post(
        "/api/v1/keys", headers=ann.headers, json={"name": "k", "algorithm": "KEY_ALGORITHM_AES_256_GCM"}
    )
    key_id = made.json()["key"]["keyId"]

    async def encrypt() -> str:
        answer = await http.post(f"/api/v1/keys/{key_id}:encrypt", headers=ann.headers, json={"plaintext": "c2VjcmV0"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["ciphertext"])

    async def decrypt(ciphertext: str) -> None:
        answer = await http.post("/api/v1/keys:decrypt", headers=ann.headers, json={"ciphertext": ciphertext})
        assert answer.status_code == 200, answer.text
        assert answer.json()["plaintext"] == "c2VjcmV0"

    before, version = await encrypt(), newest(platform)
    interrupt_a_rotation(platform)
    await decrypt(before)
    between = await encrypt()

    again = asyncio.create_task(asyncio.to_thread(platform.nexus, "root-key", "rotate"))
    while not again.done():
        await decrypt(await encrypt())
        await decrypt(before)
    assert (await again).stdout.startswith(f"Version {newest(platform)} seals")
    assert newest(platform) == version + 2
    assert await roots_of(platform, tenant) == {f"local:v{newest(platform)}"}
    for ciphertext in (before, between):
        await decrypt(ciphertext)
    await tenant.sign_in(email=ann.email)  # found by the hash of the address, opened by keys that were wrapped anew
    shown = json.loads(platform.nexus("root-key", "list", "--json").stdout)
    assert [row["version"] for row in shown if row["seals"]] == [newest(platform)]
    refused = platform.nexus("root-key", "retire", str(version), check=False)
    assert "may be needed until" in refused.stderr


async def test_rows_that_services_seal_are_sealed_anew(platform: Platform, settings: Settings, tenant: Tenant) -> None:
    file, spec = root_key_file(settings), discover()["auth-service-v2"]
    sealer, purpose = Sealer(file, spec.id), PROVIDER_SECRETS.purpose_of(tenant.tenant_id, "up")
    former = sealer.version
    file.change(lambda keys: keys.with_another(now()))
    admin = await platform.admin()
    try:
        await admin.execute(
            "INSERT INTO auth_service_v2.providers (tenant_id, provider_id, title, issuer, client_id, client_secret, "
            "scopes) VALUES ($1, 'up', 'Up', 'https://up.example', 'c', $2, '{}')",
            tenant.tenant_id,
            sealer.seal(b"secret", purpose, former),
        )
        for each in filter(lambda each: each.sealed_columns, discover().values()):
            await reseal(settings, each)
        sealed = await admin.fetchval(
            "SELECT client_secret FROM auth_service_v2.providers WHERE tenant_id = $1", tenant.tenant_id
        )
    finally:
        await admin.close()
    assert sealer.renewed(sealed, purpose) is None
    assert Sealer(file.keys.sealing.key, spec.id).open(sealed, purpose) == b"secret"


async def reseal(settings: Settings, spec: ServiceSpec) -> None:
    """As the service does now and then."""
    database = Database(settings, spec)
    await database.start()
    try:
        await Resealing(spec, database, Sealer(root_key_file(settings), spec.id)).run()
    finally:
        await database.stop()

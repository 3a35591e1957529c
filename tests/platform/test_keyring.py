"""Keys under two replicas at once, under any order of rotations, and under another root key."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nexus.platform.key_service.v1.faults import CiphertextInvalid, OlderCiphertextsRemain, VersionTooOld
from nexus.type.v1.faults import Conflict, DependencyUnavailable
from services.chassis.config import Settings
from services.chassis.context import acting_for
from services.chassis.database import Database
from services.chassis.ids import new_id
from services.chassis.root_keys import root_key_file
from services.chassis.sealing import SealBroken, Sealer
from services.chassis.spec import discover
from services.platform.key_service.keyring import Keyring
from services.platform.key_service.lifecycle import PEOPLE
from services.platform.key_service.material import Algorithm
from services.platform.key_service.roots import LocalRoot, Roots, VaultError, VaultRoot
from services.platform.key_service.store import Use
from tests.platform.vaults import TransitVault
from tests.platforms import Platform, Tenant


@contextlib.asynccontextmanager
async def keyring(settings: Settings, vault: VaultRoot | None = None) -> AsyncIterator[Keyring]:
    """A replica of key-service, in this process."""
    database = Database(settings, discover()["key-service"])
    await database.start()
    try:
        yield Keyring(database, Roots(LocalRoot(Sealer(root_key_file(settings), "key-service")), vault))
    finally:
        await database.stop()


@pytest.fixture
def transit() -> Iterator[TransitVault]:
    vault = TransitVault()
    vault.start()
    yield vault
    vault.stop()


@pytest.fixture
def own_platform() -> Iterator[Callable[..., Platform]]:
    """Starts a platform with these variables."""
    home = Path(tempfile.mkdtemp(prefix="nexus-vault-"))
    home.chmod(0o711)  # PostgreSQL, which does not run as root, must pass through it
    started: list[Platform] = []

    def start(**variables: str) -> Platform:
        started.append(Platform(home / "platform", variables=variables))
        started[-1].up()
        return started[-1]

    yield start
    for platform in started:
        platform.down()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def forgotten(platform: Platform, tenant: Tenant) -> AsyncIterator[None]:
    """Takes away what the test wrapped with a Vault that the platform does not know."""
    yield
    admin = await platform.admin()
    try:
        for table in ("ciphertexts", "key_versions", "keys"):
            await admin.execute(f"DELETE FROM key_service.{table} WHERE tenant_id = $1", tenant.tenant_id)
    finally:
        await admin.close()


def use(**context: str) -> Use:
    return Use(new_id(), "Test", "", "", "", context)


def root_of(transit: TransitVault, token: str = "") -> VaultRoot:
    return VaultRoot(transit.address, token or transit.token, "nexus")


async def roots_in_use(platform: Platform, tenant: Tenant) -> set[str]:
    admin = await platform.admin()
    try:
        rows = await admin.fetch("SELECT root FROM key_service.key_versions WHERE tenant_id = $1", tenant.tenant_id)
    finally:
        await admin.close()
    return {row["root"] for row in rows}


async def kinds_of_root(platform: Platform, tenant: Tenant) -> set[str]:
    """Without versions: another test may change the root key meanwhile."""
    return {root.partition(":")[0] for root in await roots_in_use(platform, tenant)}


async def test_replicas_that_rotate_at_once_make_one_version_each_time_it_is_due(
    platform: Platform, settings: Settings, tenant: Tenant
) -> None:
    async with keyring(settings) as one, keyring(settings) as two:
        with acting_for(tenant.tenant_id):
            made = [
                await one.create(tenant.tenant_id, PEOPLE, f"k{n}", "", Algorithm.AES_256_GCM, None) for n in range(30)
            ]
        admin = await platform.admin()
        try:
            await admin.execute(
                "UPDATE key_service.keys SET rotation_period = '1 day', next_rotation_time = now() - interval '1 s' "
                "WHERE tenant_id = $1",
                tenant.tenant_id,
            )
        finally:
            await admin.close()
        await asyncio.gather(*(replica.rotate_due() for replica in (one, two) * 5))
        with acting_for(tenant.tenant_id):
            versions = [(await one.get(key.key_id)).primary_version for key in made]
        assert versions == [2] * 30


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=st.lists(st.sampled_from(["encrypt", "rotate", "rewrap", "raise"]), min_size=3, max_size=14))
async def test_whatever_was_encrypted_opens_unless_its_version_was_retired_expressly(
    settings: Settings, tenant: Tenant, steps: list[str]
) -> None:
    """The newest form of every ciphertext opens after any order of rotations, rewraps and raised minimums."""
    async with keyring(settings) as ring:
        with acting_for(tenant.tenant_id):
            key_id = (
                await ring.create(tenant.tenant_id, PEOPLE, f"k{new_id()}", "", Algorithm.AES_256_GCM, None)
            ).key_id
            living: dict[bytes, bytes] = {}
            for number, step in enumerate(steps):
                key = await ring.get(key_id)
                if step == "encrypt":
                    plaintext = bytes([number])
                    living[plaintext] = await ring.encrypt(await ring.primary(key_id), plaintext, use(n="x"))
                elif step == "rotate":
                    await ring.rotate(key_id)
                elif step == "rewrap":
                    for plaintext, ciphertext in living.items():
                        living[plaintext], _ = await ring.rewrap(PEOPLE, ciphertext, use(n="x"))
                else:
                    older = [c for c in living.values() if int.from_bytes(c[17:21], "big") < key.primary_version]
                    if older:
                        with pytest.raises(OlderCiphertextsRemain):
                            await ring.set_minimum_version(key_id, key.primary_version, abandon_older=False)
                    else:
                        await ring.set_minimum_version(key_id, key.primary_version, abandon_older=False)
                for plaintext, ciphertext in living.items():
                    opened, _ = await ring.decrypt(PEOPLE, ciphertext, use(n="x"))
                    assert opened == plaintext
                    with pytest.raises(CiphertextInvalid):
                        await ring.decrypt(PEOPLE, ciphertext, use(n="y"))


async def test_a_rewrapped_ciphertext_outlives_its_old_version(settings: Settings, tenant: Tenant) -> None:
    async with keyring(settings) as ring:
        with acting_for(tenant.tenant_id):
            key = await ring.create(tenant.tenant_id, PEOPLE, "k", "", Algorithm.AES_256_GCM, None)
            old = await ring.encrypt(await ring.primary(key.key_id), b"x", use())
            await ring.rotate(key.key_id)
            fresh, version = await ring.rewrap(PEOPLE, old, use())
            await ring.set_minimum_version(key.key_id, version, abandon_older=False)
            assert (await ring.decrypt(PEOPLE, fresh, use()))[0] == b"x"
            with pytest.raises(VersionTooOld):
                await ring.decrypt(PEOPLE, old, use())


async def test_a_call_that_began_before_a_key_changed_hands_nothing_out_after(
    settings: Settings, tenant: Tenant
) -> None:
    async with keyring(settings) as ring:
        with acting_for(tenant.tenant_id):
            key = await ring.create(tenant.tenant_id, PEOPLE, "k", "", Algorithm.AES_256_GCM, None)
            began = await ring.primary(key.key_id)
            await ring.rotate(key.key_id)
            assert await ring.encrypt(began, b"x", use()), "an older version is good while it is not retired"
            await ring.set_minimum_version(key.key_id, 2, abandon_older=True)
            with pytest.raises(Conflict):
                await ring.encrypt(began, b"x", use())
            began = await ring.primary(key.key_id)
            await ring.set_enabled(key.key_id, enabled=False)
            with pytest.raises(Conflict):
                await ring.encrypt(began, b"x", use())


@pytest.mark.usefixtures("forgotten")
async def test_under_vault_what_the_root_file_wrapped_still_opens(
    platform: Platform, settings: Settings, tenant: Tenant, transit: TransitVault
) -> None:
    async with keyring(settings) as before, keyring(settings, root_of(transit)) as after:
        with acting_for(tenant.tenant_id):
            key = await before.create(tenant.tenant_id, PEOPLE, "k", "", Algorithm.AES_256_GCM, None)
            ciphertext = await before.encrypt(await before.primary(key.key_id), b"x", use())
            assert await kinds_of_root(platform, tenant) == {"local"}
            assert (await after.decrypt(PEOPLE, ciphertext, use()))[0] == b"x", "before it has moved"
            await after.rotate(key.key_id)
            assert await kinds_of_root(platform, tenant) == {"local", "vault"}
            assert (await after.decrypt(PEOPLE, ciphertext, use()))[0] == b"x"
            fresh = await after.encrypt(await after.primary(key.key_id), b"y", use())
            with pytest.raises(VaultError):
                await before.decrypt(PEOPLE, fresh, use())


async def test_every_key_moves_to_vault_and_to_the_newest_version_of_its_key(
    transit: TransitVault, own_platform: Callable[..., Platform]
) -> None:
    platform = own_platform(
        NEXUS_KEY_SERVICE_VAULT_ADDR=transit.address,
        NEXUS_KEY_SERVICE_VAULT_TOKEN=transit.token,
        NEXUS_KEY_SERVICE_VAULT_KEY="nexus",
    )
    tenant = await platform.new_tenant()
    owner = await tenant.sign_in("owner")
    async with (
        keyring(platform.settings) as before,
        keyring(platform.settings, root_of(transit)) as after,
        httpx.AsyncClient(base_url=f"{platform.http_url}/api/v1", headers=owner.headers, timeout=15) as http,
    ):
        with acting_for(tenant.tenant_id):
            key = await before.create(tenant.tenant_id, PEOPLE, "k", "", Algorithm.AES_256_GCM, None)
        sealed = await http.post(f"/keys/{key.key_id}:encrypt", json={"plaintext": "eA=="})
        assert sealed.status_code == 200
        for generation in ("vault:v1", "vault:v2"):
            await asyncio.gather(*(after.move_to_current_root() for _ in range(3)))
            assert await roots_in_use(platform, tenant) == {generation}
            opened = await http.post("/keys:decrypt", json={"ciphertext": sealed.json()["ciphertext"]})
            assert opened.json()["plaintext"] == "eA=="
            transit.rotate()
        transit.sealed = True
        refused = await http.post("/keys", json={"name": "new", "algorithm": "KEY_ALGORITHM_ES256"})
        assert refused.json()["details"][0]["reason"] == "DEPENDENCY_UNAVAILABLE"
    assert "rewrap" in transit.asked


async def test_vault_wraps_unwraps_and_renews(transit: TransitVault) -> None:
    root = root_of(transit)
    wrapped = await root.wrap(b"material", "key 1")
    assert (wrapped.root, await root.generation()) == ("vault:v1", "vault:v1")
    assert b"material" not in wrapped.data
    transit.rotate()
    renewed = await root.renew(wrapped, "key 1")
    assert (renewed.root, await root.generation()) == ("vault:v2", "vault:v2")
    for form in (wrapped, renewed):
        assert await root_of(transit).unwrap(form, "key 1") == b"material"


async def test_what_vault_wrapped_opens_for_its_key_only_and_unchanged(transit: TransitVault) -> None:
    root = root_of(transit)
    wrapped = await root.wrap(b"material", "key 1")
    for form, purpose in ((wrapped, "key 2"), (wrapped, "key 1m"), (changed(wrapped.data), "key 1")):
        with pytest.raises(SealBroken):
            await root.unwrap(form if not isinstance(form, bytes) else type(wrapped)("vault:v1", form), purpose)


def changed(data: bytes) -> bytes:
    return data[:20] + (b"A" if data[20:21] != b"A" else b"B") + data[21:]


async def test_vault_is_asked_once_a_minute_for_the_same_material(transit: TransitVault) -> None:
    root = root_of(transit)
    wrapped = await root.wrap(b"material", "key 1")
    for _ in range(5):
        await root.unwrap(wrapped, "key 1")
    assert transit.asked == ["encrypt", "decrypt"]


async def test_a_vault_that_is_sealed_or_gone_is_a_dependency_that_is_away(transit: TransitVault) -> None:
    transit.sealed = True
    for root in (root_of(transit), VaultRoot("http://127.0.0.1:9", transit.token, "nexus")):
        with pytest.raises(DependencyUnavailable):
            await root.wrap(b"material", "key 1")


async def test_a_token_that_vault_refuses_is_our_mistake_not_the_callers(transit: TransitVault) -> None:
    with pytest.raises(VaultError, match="permission denied"):
        await root_of(transit, token="wrong").wrap(b"material", "key 1")

"""The identities of the local mesh: short-lived certificates that say one thing, and keys that nobody else reads."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from edge.layout import TRUST
from mesh.local.identities import CA_LIFETIME, LIFETIME, Authority
from mesh.topology import topology
from services.chassis.clock import now
from services.chassis.config import Settings
from tests.platforms import Platform


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(Settings(home=tmp_path))


def issued(authority: Authority, identity: str) -> x509.Certificate:
    return next(
        x509.load_pem_x509_certificate(secret.tls_certificate.certificate_chain.inline_string.encode())
        for secret in authority.issue([identity])
        if secret.tls_certificate is not None
        and secret.tls_certificate.certificate_chain is not None
        and secret.tls_certificate.certificate_chain.inline_string is not None
    )


def test_a_certificate_says_who_it_is_for_and_nothing_else(authority: Authority) -> None:
    certificate = issued(authority, "user-auth")
    names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    spiffe_id = "spiffe://nexus.local/ns/nexus/sa/user-auth"
    assert list(names.value) == [x509.UniformResourceIdentifier(spiffe_id)]  # type: ignore[call-overload]
    assert names.critical
    assert list(certificate.subject) == []


def test_a_certificate_can_be_used_on_both_ends_and_signs_no_other(authority: Authority) -> None:
    extensions = issued(authority, "user-auth").extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def test_a_certificate_lives_for_a_day_at_most(authority: Authority) -> None:
    assert timedelta(days=1) >= LIFETIME
    ends = issued(authority, "user-auth").not_valid_after_utc
    assert now() < ends <= now() + LIFETIME


def test_a_new_certificate_has_a_new_key(authority: Authority) -> None:
    first, second = issued(authority, "user-auth"), issued(authority, "user-auth")
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key()


def test_every_identity_gets_one_and_all_trust_the_same_authority(authority: Authority) -> None:
    secrets = authority.issue(topology().callers)
    assert sorted(secret.name for secret in secrets) == sorted([TRUST, *topology().callers])


def test_the_authority_is_kept_and_its_key_is_its_owners_alone(tmp_path: Path) -> None:
    first, again = (Authority(Settings(home=tmp_path)) for _ in range(2))
    assert issued(first, "edge").issuer == issued(again, "edge").issuer
    issued(again, "edge").verify_directly_issued_by(
        x509.load_pem_x509_certificate((first.folder / "ca.crt").read_bytes())
    )
    assert (first.folder / "ca.key").stat().st_mode & 0o777 == 0o600
    assert first.folder.stat().st_mode & 0o777 == 0o700


def test_an_authority_that_would_not_outlive_its_certificates_is_replaced(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    first = x509.load_pem_x509_certificate((Authority(settings).folder / "ca.crt").read_bytes())
    later = Authority(settings, lifetime=CA_LIFETIME / 2)
    with pytest.raises(InvalidSignature):
        issued(later, "edge").verify_directly_issued_by(first)


def test_no_key_of_a_service_is_on_the_disk(platform: Platform) -> None:
    """Only the authority's own is, and nobody else can read it."""
    texts = [path for path in platform.home.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    keys = {path for path in texts if b"PRIVATE KEY" in path.read_bytes()}
    assert keys == {
        platform.home / "secrets" / "mesh" / "ca.key",
        platform.home / "secrets" / "edge" / "tls.key",
    }
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}

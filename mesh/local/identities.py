"""The local certificate authority: a short-lived certificate for every identity of the mesh.

Certificates are SPIFFE X.509-SVIDs, as Istio's. The supervisor hands them to the proxies (`discovery.py`), and new ones
in time; their keys live in memory only. The authority's own key is kept, sealed off in the platform's secrets.
"""

from collections.abc import Iterable
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    Secret,
    TlsCertificate,
)

from edge.layout import TRUST
from services.chassis.clock import now
from services.chassis.config import Settings

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(hours=24)
RENEW_AFTER = 0.5
"""The share of its life after which a certificate is replaced."""
_SKEW = timedelta(minutes=5)


class Authority:
    """Issues the certificates of one local platform."""

    def __init__(self, settings: Settings, lifetime: timedelta = LIFETIME) -> None:
        self._settings = settings
        self._lifetime = lifetime
        self.folder = settings.home / "secrets" / "mesh"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key, self._certificate = self._load_or_make()

    def issue(self, identities: Iterable[str]) -> list[Secret]:
        """A fresh certificate for every identity, and the authority to trust."""
        secrets = [
            Secret(
                name=TRUST,
                validation_context=CertificateValidationContext(trusted_ca=_inline(_pem(self._certificate))),
            )
        ]
        for identity in identities:
            key, certificate = self.certify(self._settings.spiffe_id(identity), self._lifetime)
            tls = TlsCertificate(certificate_chain=_inline(_pem(certificate)), private_key=_inline(_key_pem(key)))
            secrets.append(Secret(name=identity, tls_certificate=tls))
        return secrets

    def certify(self, uri: str, lifetime: timedelta) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """A new key and a certificate for a SPIFFE id."""
        key = ec.generate_private_key(ec.SECP256R1())
        moment = now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - _SKEW)
            .not_valid_after(moment + lifetime)
            # SPIFFE X.509-SVID, section 2: the id is the only URI, and critical where the subject is empty.
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return key, certificate

    def _load_or_make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, certificate_path = self.folder / "ca.key", self.folder / "ca.crt"
        if key_path.exists() and certificate_path.exists():
            loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            if certificate.not_valid_after_utc > now() + 2 * self._lifetime:
                return loaded, certificate
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self._settings.trust_domain} local mesh")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - _SKEW)
            .not_valid_after(now() + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        key_path.touch(mode=0o600)
        key_path.write_bytes(_key_pem(key))
        certificate_path.write_bytes(_pem(certificate))
        return key, certificate


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _inline(pem: bytes) -> DataSource:
    return DataSource(inline_string=pem.decode())

"""The certificate of a local edge: self-signed, made once. Production mounts its own in the same place."""

import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.chassis.clock import now

_LIFETIME = timedelta(days=825)


@dataclass(frozen=True)
class Certificate:
    """PEM files: `tls.crt` and `tls.key`, as a Kubernetes TLS secret has them."""

    chain: Path
    key: Path


def ensure_certificate(folder: Path) -> Certificate:
    """The certificate in this folder; a self-signed one for localhost if there is none, or it has run out."""
    certificate = Certificate(folder / "tls.crt", folder / "tls.key")
    if certificate.chain.exists() and certificate.key.exists():
        current = x509.load_pem_x509_certificate(certificate.chain.read_bytes())
        if current.not_valid_after_utc > now() + timedelta(days=1):
            return certificate
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Nexus COS local edge")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(minutes=5))
        .not_valid_after(now() + _LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    x509.IPAddress(ipaddress.ip_address("::1")),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.key.touch(mode=0o600)
    certificate.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate.chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return certificate

"""Passkeys: the relying party's side of WebAuthn (W3C Web Authentication Level 3), by the `webauthn` library."""

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import webauthn
from webauthn.helpers import base64url_to_bytes, bytes_to_base64url, parse_authentication_credential_json
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

Json = dict[str, Any]


class PasskeyWrong(Exception):  # noqa: N818  the authenticator's answer is, not the program
    """The authenticator's answer does not fit. The message says in what."""


@dataclass(frozen=True)
class NewPasskey:
    credential_id: bytes
    public_key: bytes
    sign_count: int
    backed_up: bool


@dataclass(frozen=True)
class Used:
    """A passkey's answer, found to be true."""

    sign_count: int
    user_verified: bool


class RelyingParty:
    """Asks authenticators, and checks what they answer."""

    def __init__(self, *, rp_id: str, name: str, origins: str, public_url: str) -> None:
        """`origins` are separated by commas; id and origins are those of the public URL when empty."""
        self._id = rp_id or urlsplit(public_url).hostname or ""
        self._name = name
        self._origins = [origin.strip() for origin in origins.split(",") if origin.strip()] or [public_url]

    def registration_options(
        self, *, challenge: bytes, user_id: str, account: str, display_name: str, present: Iterable[bytes]
    ) -> Json:
        """PublicKeyCredentialCreationOptionsJSON. `present` are the ids of passkeys that the user has already."""
        options = webauthn.generate_registration_options(
            rp_id=self._id,
            rp_name=self._name,
            user_id=uuid.UUID(user_id).bytes,
            user_name=account,
            user_display_name=display_name or account,
            challenge=challenge,
            authenticator_selection=AuthenticatorSelectionCriteria(
                resident_key=ResidentKeyRequirement.REQUIRED,
                user_verification=UserVerificationRequirement.PREFERRED,
            ),
            exclude_credentials=_descriptors(present),
        )
        return _json(webauthn.options_to_json(options))

    def register(self, answer: Json, *, challenge: bytes) -> NewPasskey:
        """Raises PasskeyWrong."""
        try:
            verified = webauthn.verify_registration_response(
                credential=answer,
                expected_challenge=challenge,
                expected_rp_id=self._id,
                expected_origin=self._origins,
            )
        except (WebAuthnException, ValueError) as error:
            raise PasskeyWrong(str(error)) from None
        return NewPasskey(
            verified.credential_id,
            verified.credential_public_key,
            verified.sign_count,
            verified.credential_backed_up,
        )

    def authentication_options(self, *, challenge: bytes, allowed: Iterable[bytes], verify_user: bool) -> Json:
        """PublicKeyCredentialRequestOptionsJSON. Without `allowed` ids the authenticator offers what it has."""
        options = webauthn.generate_authentication_options(
            rp_id=self._id,
            challenge=challenge,
            allow_credentials=_descriptors(allowed),
            user_verification=(
                UserVerificationRequirement.REQUIRED if verify_user else UserVerificationRequirement.PREFERRED
            ),
        )
        return _json(webauthn.options_to_json(options))

    def check(
        self,
        answer: Json,
        *,
        challenge: bytes,
        user_id: str,
        public_key: bytes,
        sign_count: int,
        verify_user: bool,
    ) -> Used:
        """Raises PasskeyWrong."""
        try:
            verified = webauthn.verify_authentication_response(
                credential=answer,
                expected_challenge=challenge,
                expected_rp_id=self._id,
                expected_origin=self._origins,
                credential_public_key=public_key,
                credential_current_sign_count=sign_count,
                require_user_verification=verify_user,
            )
            handle = parse_authentication_credential_json(answer).response.user_handle
        except (WebAuthnException, ValueError) as error:
            raise PasskeyWrong(str(error)) from None
        if handle and handle != uuid.UUID(user_id).bytes:
            raise PasskeyWrong("it belongs to another user")
        return Used(verified.new_sign_count, verified.user_verified)


def credential_id(answer: Json) -> bytes:
    """The id of the passkey that an answer claims to come from; b"" if it names none."""
    return passkey_bytes(str(answer.get("rawId", "")))


def passkey_bytes(passkey_id: str) -> bytes:
    """The credential id as an authenticator has it; b"" for what is none."""
    try:
        return base64url_to_bytes(passkey_id)
    except ValueError:
        return b""


def passkey_id(credential: bytes) -> str:
    return bytes_to_base64url(credential)


def _descriptors(ids: Iterable[bytes]) -> list[PublicKeyCredentialDescriptor]:
    return [PublicKeyCredentialDescriptor(id=credential) for credential in ids]


def _json(text: str) -> Json:
    result: Json = json.loads(text)
    return result

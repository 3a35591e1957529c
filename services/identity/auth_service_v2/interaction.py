"""What users do in their browsers: sign in, consent, let a device in, sign out.

An errand is what a user came for; it travels inside the sealed tickets of the pages, so that nothing is stored for
a visitor who never comes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from authlib.oauth2 import OAuth2Error
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from nexus.identity.auth_service.v1.faults import ChallengeInvalid, SecondFactorMissing
from nexus.identity.session_mgr.v1.session_mgr_pb2 import Session
from nexus.identity.user_auth.v1.faults import CredentialsInvalid
from nexus.identity.user_auth.v1.user_auth_pb2 import ResolveUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clock import moment, now
from services.chassis.context import RequestContext
from services.chassis.errors import Fault
from services.chassis.ids import new_id
from services.chassis.issuers import tenant_issuer
from services.chassis.service import Service
from services.chassis.tokens import KeySource
from services.identity.auth_service_v2 import tickets
from services.identity.auth_service_v2.accounts import (
    Accounts,
    AddressTaken,
    NoAccount,
    SecondFactor,
    browser,
    is_from,
)
from services.identity.auth_service_v2.authorization import (
    AuthorizationRequest,
    CannotReturn,
    back,
    parse,
    require_returnable,
)
from services.identity.auth_service_v2.clients import ID_TOKEN_ALGORITHMS, OWN_SCOPES, STANDARD_SCOPES, Client
from services.identity.auth_service_v2.forms import Form
from services.identity.auth_service_v2.pages import message, page
from services.identity.auth_service_v2.replies import Reply, redirect
from services.identity.auth_service_v2.spec import Config
from services.identity.auth_service_v2.sso import Upstream, UpstreamFailed
from services.identity.auth_service_v2.store import MAX_PROVIDERS, Store
from services.identity.auth_service_v2.tickets import Tickets

Errand = dict[str, Any]
"""`{"authorize": parameters}` or `{"device": user code}`; with `{"link": identity}` that is to be the user's, too."""

_PAGE_IS_OLD = "This page is too old, or was opened in another browser. Go back to the application and start again."
_ANSWERS_TO_AN_ATTEMPT = {
    "UNAUTHENTICATED", "FAILED_PRECONDITION", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT",
}  # fmt: skip
"""Faults that tell the user something about their own attempt."""


class Interaction:
    """Pages and what they lead to."""

    def __init__(
        self, service: Service, accounts: Accounts, sealed: Tickets, upstream: Upstream, key_source: KeySource
    ) -> None:
        self._config: Config = service.config
        self._settings = service.settings
        self._accounts = accounts
        self._tickets = sealed
        self._upstream = upstream
        self._key_source = key_source
        self._store = Store(service.database)
        self._users = service.clients.stub(UserServiceStub)

    async def authorize(self, parameters: Mapping[str, str], call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        client = require_returnable(parameters, await self._store.client(parameters.get("client_id", "")))
        try:
            request = parse(parameters, client)
        except OAuth2Error as error:
            return self._return_error(parameters, error, call)
        session = await self._accounts.session(call)
        hint = parameters.get("id_token_hint")
        if session is not None and hint and (await self._claims(hint, call)).get("sub") != session.user_id:
            session = None
        if session is not None and not request.too_old(moment(session.auth_time), now()):
            return await self._grant(request, client, session, call)
        if "none" in request.prompt:
            return self._return_error(parameters, OAuth2Error(error="login_required"), call)
        return await self._sign_in_page({"authorize": dict(parameters)}, call, email=request.login_hint)

    async def sign_in(self, form: Form, call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        errand = self._opened(tickets.SIGN_IN, form.get("ticket", ""), call)["errand"]
        email = form.get("email", "")
        try:
            signed_in = await self._accounts.sign_in(email, form.get("password", ""), call)
        except Fault as fault:
            return await self._sign_in_page(errand, call, email=email, problem=_answer_to(fault))
        return await self._go_on(errand, signed_in, call)

    async def second_factor(self, form: Form, call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        ticket = self._opened(tickets.SECOND_FACTOR, form.get("ticket", ""), call)
        errand, factor = ticket["errand"], SecondFactor(**ticket["factor"])
        try:
            session = await self._accounts.prove(factor, code=form.get("code", ""), passkey=form.get("passkey", ""))
        except (ChallengeInvalid, CredentialsInvalid):
            return await self._sign_in_page(errand, call, problem="That took too long. Sign in again.")
        except Fault as fault:
            return self._second_factor_page(errand, factor, call, problem=_answer_to(fault))
        return await self._go_on(errand, session, call)

    async def consent(self, form: Form, call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        ticket = self._opened(tickets.CONSENT, form.get("ticket", ""), call)
        session = await self._same_session(ticket, call)
        parameters = ticket["parameters"]
        client = require_returnable(parameters, await self._store.client(parameters["client_id"]))
        if form.get("decision") != "allow":
            return self._return_error(parameters, OAuth2Error(error="access_denied"), call)
        try:
            request = parse(parameters, client)
        except OAuth2Error as error:  # the client was changed while the page was open
            return self._return_error(parameters, error, call)
        await self._store.consent(session.user_id, client.client_id, request.scope)
        return self._return_code(request, session, call)

    async def device_page(self, user_code: str, call: RequestContext) -> Reply:
        user_code = "".join(filter(str.isalnum, user_code)).upper()
        if not user_code:
            return page("device", base=_base(call))
        session = await self._accounts.session(call)
        if session is None:
            return await self._sign_in_page({"device": user_code}, call)
        return await self._device_consent(user_code, session, call)

    async def decide_device(self, form: Form, call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        ticket = self._opened(tickets.DEVICE, form.get("ticket", ""), call)
        session = await self._same_session(ticket, call)
        allowed = form.get("decision") == "allow"
        if allowed:
            await self._store.consent(session.user_id, ticket["client_id"], ticket["scope"].split())
        device = await self._store.waiting_device(ticket["user_code"])
        decided = device and await self._store.devices.update(
            device["device_hash"],
            where={"state": "pending"},
            state="approved" if allowed else "denied",
            user_id=session.user_id,
            session_id=session.session_id,
            auth_time=session.auth_time,
        )
        if not decided:
            return message("Too late", "The device does not wait any more. Start again there.", 410)
        return message("Done", "The device goes on by itself." if allowed else "The device was not let in.")

    async def sign_out_page(self, parameters: Mapping[str, str], call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        claims = await self._claims(parameters.get("id_token_hint", ""), call)
        client_id = parameters.get("client_id") or claims.get("aud", "")
        if claims and claims.get("aud") != client_id:
            raise CannotReturn("The application that sent you here is not the one that it says.")
        uri = parameters.get("post_logout_redirect_uri", "")
        client = await self._store.client(client_id) if uri else None
        if uri and (client is None or uri not in client.post_logout_redirect_uris):
            raise CannotReturn("The application wants you back at an address that is not registered.")
        content = {"uri": uri, "state": parameters.get("state", "")}
        return self._page(tickets.SIGN_OUT, content, call, "sign_out", returns_to=uri)

    async def sign_out(self, form: Form, call: RequestContext) -> Reply:
        """Raises CannotReturn."""
        if "ticket" not in form:
            return await self.sign_out_page(form, call)
        ticket = self._opened(tickets.SIGN_OUT, form.get("ticket", ""), call)
        session = await self._accounts.session(call)
        if session is not None:
            await self._accounts.end(session)
        if ticket["uri"]:
            reply = redirect(back(ticket["uri"], "", {"state": ticket["state"]}))
        else:
            reply = message("Signed out", "You are signed out.")
        return reply.with_headers(self._accounts.no_session_cookie(call))

    async def start_sso(self, provider_id: str, ticket: str, call: RequestContext) -> Reply:
        """Raises CannotReturn, ProviderNotFound."""
        opened = self._opened(tickets.SIGN_IN, ticket, call)
        provider = await self._store.providers.require(provider_id)
        try:
            trip = await self._upstream.start(provider, call.tenant_id)
            state = self._tickets.issue(
                tickets.SSO,
                call.tenant_id,
                {**opened, "provider_id": provider_id, "nonce": trip.nonce, "verifier": trip.verifier},
                self._config.page_lifetime,
            )
        except UpstreamFailed as failure:
            return await self._sign_in_page(opened["errand"], call, problem=str(failure))
        return redirect(trip.location(state))

    async def finish_sso(self, provider_id: str, parameters: Mapping[str, str], call: RequestContext) -> Reply:
        """Raises CannotReturn, ProviderNotFound."""
        state = self._opened(tickets.SSO, parameters.get("state", ""), call)
        if state["provider_id"] != provider_id:
            raise CannotReturn(_PAGE_IS_OLD)
        provider = await self._store.providers.require(provider_id)
        try:
            profile = await self._upstream.finish(
                provider, call.tenant_id, parameters, nonce=state["nonce"], verifier=state["verifier"]
            )
            signed_in = await self._accounts.sign_in_from(provider["issuer"], profile, call)
        except AddressTaken as taken:
            link = {"issuer": provider["issuer"], "subject": profile["sub"]}
            return await self._sign_in_page({**state["errand"], "link": link}, call, problem=str(taken))
        except (UpstreamFailed, NoAccount, SecondFactorMissing) as failure:
            return await self._sign_in_page(state["errand"], call, problem=str(failure))
        return await self._go_on(state["errand"], signed_in, call)

    async def _go_on(self, errand: Errand, session: Session | SecondFactor, call: RequestContext) -> Reply:
        """Go on with what the user came for, once they have proved who they are."""
        if isinstance(session, SecondFactor):
            return self._second_factor_page(errand, session, call)
        if "link" in errand:
            await self._accounts.link(**errand["link"], session=session)
        if "device" in errand:
            reply = await self._device_consent(errand["device"], session, call)
        else:
            parameters = errand["authorize"]
            client = require_returnable(parameters, await self._store.client(parameters["client_id"]))
            try:
                reply = await self._grant(parse(parameters, client), client, session, call)
            except OAuth2Error as error:
                reply = self._return_error(parameters, error, call)
        return reply.with_headers(self._accounts.session_cookie(session, call))

    async def _grant(
        self, request: AuthorizationRequest, client: Client, session: Session, call: RequestContext
    ) -> Reply:
        """The code, or the page that asks for consent first."""
        if not client.first_party:
            known = await self._store.consented(session.user_id, client.client_id)
            if "consent" in request.prompt or not set(request.scope) <= known:
                if "none" in request.prompt:
                    error = OAuth2Error(error="consent_required")
                    return self._return_error(_parameters(request), error, call)
                content = {"parameters": _parameters(request)}
                shown = {"action": "consent", "returns_to": request.redirect_uri}
                return await self._consent_page(tickets.CONSENT, content, client, request.scope, session, call, **shown)
        return self._return_code(request, session, call)

    async def _device_consent(self, user_code: str, session: Session, call: RequestContext) -> Reply:
        device = await self._store.waiting_device(user_code)
        client = await self._store.client(device["client_id"]) if device is not None else None
        if device is None or client is None:
            return page("device", base=_base(call), problem="No device waits with this code.")
        content = {"user_code": user_code, "client_id": client.client_id, "scope": device["scope"]}
        shown = {"action": "device", "shown_code": f"{user_code[:4]}-{user_code[4:]}"}
        scope = device["scope"].split()
        return await self._consent_page(tickets.DEVICE, content, client, scope, session, call, **shown)

    async def _consent_page(
        self,
        kind: str,
        content: Mapping[str, Any],
        client: Client,
        scope: Sequence[str],
        session: Session,
        call: RequestContext,
        *,
        action: str,
        returns_to: str = "",
        shown_code: str = "",
    ) -> Reply:
        resolved = await self._users.ResolveUser(ResolveUserRequest(user_id=session.user_id))
        return self._page(
            kind,
            {**content, "session_id": session.session_id},
            call,
            "consent",
            returns_to=returns_to,
            action=f"{_base(call)}/oauth2/{action}",
            client_name=client.client_name,
            shown_code=shown_code,
            email=resolved.user.email,
            asks=[(STANDARD_SCOPES | OWN_SCOPES).get(name, f"Use your permission {name}") for name in scope],
        )

    async def _sign_in_page(self, errand: Errand, call: RequestContext, *, email: str = "", problem: str = "") -> Reply:
        parameters = errand.get("authorize", {})
        client = await self._store.client(parameters["client_id"]) if parameters else None
        return self._page(
            tickets.SIGN_IN,
            {"errand": errand},
            call,
            "sign_in",
            returns_to=parameters.get("redirect_uri", ""),
            problem=problem,
            client_name=client.client_name if client is not None else "",
            email=email,
            providers=await self._store.providers.page("", MAX_PROVIDERS),
        )

    def _second_factor_page(
        self, errand: Errand, factor: SecondFactor, call: RequestContext, *, problem: str = ""
    ) -> Reply:
        return self._page(
            tickets.SECOND_FACTOR,
            {"errand": errand, "factor": asdict(factor)},
            call,
            "second_factor",
            returns_to=errand.get("authorize", {}).get("redirect_uri", ""),
            problem=problem,
            script="passkey.js" if factor.passkey_options else "",
            factor=factor,
        )

    def _page(
        self,
        kind: str,
        content: Mapping[str, Any],
        call: RequestContext,
        template: str,
        *,
        problem: str = "",
        **values: Any,
    ) -> Reply:
        """A page whose form brings a ticket with this content back, from this browser."""
        mark, cookies = browser(call)
        ticket = self._tickets.issue(kind, call.tenant_id, {**content, "browser": mark}, self._config.page_lifetime)
        status = 400 if problem else 200
        shown = page(template, status=status, problem=problem, base=_base(call), ticket=ticket, **values)
        return shown.with_headers(*cookies)

    def _opened(self, kind: str, ticket: str, call: RequestContext) -> dict[str, Any]:
        """The content of a page's ticket. Raises CannotReturn if it was not made for this browser."""
        opened = self._tickets.read(kind, call.tenant_id, ticket)
        if opened is None or not is_from(opened["browser"], call):
            raise CannotReturn(_PAGE_IS_OLD)
        return opened

    async def _same_session(self, ticket: Mapping[str, Any], call: RequestContext) -> Session:
        """The session that the page was made for. Raises CannotReturn when it is not the browser's any more."""
        session = await self._accounts.session(call)
        if session is None or session.session_id != ticket["session_id"]:
            raise CannotReturn(_PAGE_IS_OLD)
        return session

    def _return_code(self, request: AuthorizationRequest, session: Session, call: RequestContext) -> Reply:
        content = {
            "grant_id": new_id(),
            "client_id": request.client_id,
            "redirect_uri": request.redirect_uri,
            "scope": " ".join(request.scope),
            "nonce": request.nonce,
            "code_challenge": request.code_challenge,
            "user_id": session.user_id,
            "session_id": session.session_id,
            "auth_time": moment(session.auth_time).timestamp(),
        }
        code = self._tickets.issue(tickets.CODE, call.tenant_id, content, self._config.code_lifetime)
        issuer = tenant_issuer(self._settings, call.tenant_id)
        return redirect(back(request.redirect_uri, issuer, {"code": code, "state": request.state}))

    def _return_error(self, parameters: Mapping[str, str], error: OAuth2Error, call: RequestContext) -> Reply:
        """RFC 6749, section 4.1.2.1."""
        told = {
            "error": error.error or "server_error",
            "error_description": error.description or "",
            "state": parameters.get("state", ""),
        }
        return redirect(back(parameters["redirect_uri"], tenant_issuer(self._settings, call.tenant_id), told))

    async def _claims(self, id_token: str, call: RequestContext) -> dict[str, Any]:
        """The claims of an ID token of this tenant, however old; none of any other."""
        if not id_token:
            return {}
        try:
            keys = KeySet.import_key_set(await self._key_source())
            claims = jwt.decode(id_token, keys, algorithms=ID_TOKEN_ALGORITHMS).claims
        except (JoseError, ValueError, TypeError):
            return {}
        return claims if claims.get("iss") == tenant_issuer(self._settings, call.tenant_id) else {}


def _answer_to(fault: Fault) -> str:
    """What a fault tells the user about their own attempt. Raises the fault if it is about anything else."""
    if fault.code.name not in _ANSWERS_TO_AN_ATTEMPT:
        raise fault
    return fault.message


def _parameters(request: AuthorizationRequest) -> dict[str, str]:
    """The parameters that make this request once more, without those that a page has dealt with."""
    return {
        "response_type": "code",
        "client_id": request.client_id,
        "redirect_uri": request.redirect_uri,
        "scope": " ".join(request.scope),
        "state": request.state,
        "nonce": request.nonce,
        "code_challenge": request.code_challenge,
        "code_challenge_method": "S256",
    }


def _base(call: RequestContext) -> str:
    return f"/t/{call.tenant_id}"

"""Routes, one set for each method that has an HTTP rule.

A JSON request first matches the method's HTTP route, which tells the strict-JSON filter what the body may hold;
once transcoded it matches, like any gRPC request, the method's gRPC route, which carries its policy.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any as AnyValue

from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Metadata,
)
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import PerRouteConfig
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct
from google.protobuf.descriptor import Descriptor

from edge import openapi, reference, replies, schemas
from edge.envoy import retries
from edge.transcoding import speaks_for_itself, transcoder
from edge.upstreams import TIMEOUT_MARGIN, Layout, routes_to
from nexus.type.v1 import faults
from services.chassis import contract
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.contract import HttpRoute, Method
from services.chassis.errors import Fault
from services.chassis.peers import API_KEY, MESH_REPLY, XFCC
from services.chassis.spec import discover

METADATA = "nexus"
JWKS_METHOD = "/nexus.identity.token_mgr.v1.TokenService/GetJwks"
DOCS_METHOD = "/nexus.platform.backend_api.v1.PlatformService/GetReference"
REFLECTION = ("/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/")
REFLECTION_SERVICE = "backend-api"
# gRPC and gRPC-Web, which only becomes gRPC after the route has been chosen.
_GRPC = HeaderMatcher(name="content-type", string_match=StringMatcher(prefix="application/grpc"))
_OVERWRITE = HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD


def table(settings: Settings, name: str, layout: Layout) -> RouteConfiguration:
    """All routes of a listener; what matches none of them is a 404 in the platform's shape."""
    # A contract may come before its service.
    external = [method for method in contract.methods().values() if method.external and method.service_id in discover()]
    return RouteConfiguration(
        name=name,
        response_headers_to_remove=[MESH_REPLY],
        virtual_hosts=[
            VirtualHost(
                name="everyone",
                domains=["*"],
                routes=[
                    *(route for method in external for route in _grpc_routes(settings, method, layout)),
                    *(_reflection_route(settings, prefix) for prefix in REFLECTION),
                    _answer(RouteMatch(path="/healthz"), 200, {"status": "ok"}),
                    *_http_routes(external),
                    # Everything else counts as a read, so that probing for paths is limited too.
                    _refusal(RouteMatch(prefix="/"), 404, faults.RouteUnknown),
                ],
                typed_per_filter_config={"envoy.filters.http.cors": Any.pack(_cors())},
            )
        ],
    )


def keys_table(settings: Settings) -> RouteConfiguration:
    """The routes of the edge's private listener: token-mgr's keys, nothing else."""
    keys = _grpc_routes(settings, contract.methods()[JWKS_METHOD], Layout())
    return RouteConfiguration(
        name="keys",
        virtual_hosts=[VirtualHost(name="keys", domains=["*"], routes=keys)],
    )


def _grpc_routes(settings: Settings, method: Method, layout: Layout) -> list[Route]:
    limit = method.timeout(settings.default_timeout)
    wait = timedelta(seconds=limit + TIMEOUT_MARGIN) if limit is not None else timedelta(0)
    action = RouteAction(
        timeout=wait,
        idle_timeout=timedelta(minutes=5) if method.streams else wait,
        retry_policy=retries(method),
    )
    match = RouteMatch(path=method.path, headers=[_GRPC])
    result = routes_to(method.service_id, match, action, layout)
    for route in result:
        route.name = method.full_name
        route.request_headers_to_add = [_identity(settings)]
        # Where no user is asked for, a token that has run out must not get in the way, here or in a sidecar.
        wanted = method.needs_user or speaks_for_itself(method)
        unwanted = [] if wanted else ["authorization"]
        route.request_headers_to_remove = unwanted if method.needs_user else [*unwanted, API_KEY]
        route.response_headers_to_add = _page_headers(settings) if method.path == DOCS_METHOD else []
        route.metadata = _rate_class(method.rate_class)
        route.typed_per_filter_config = {
            "envoy.filters.http.jwt_authn": Any.pack(
                PerRouteConfig(requirement_name="signed_in") if method.needs_user else PerRouteConfig(disabled=True)
            )
        }
    return result


def _page_headers(settings: Settings) -> list[HeaderValueOption]:
    """The reference page may run its own script and style, and call its own origin; nothing else."""
    page = reference.page(openapi.document(server_url=settings.public_url))
    return [_header("content-security-policy", reference.content_security_policy(page))]


def _reflection_route(settings: Settings, prefix: str) -> Route:
    return Route(
        name="reflection",
        match=RouteMatch(prefix=prefix, headers=[_GRPC]),
        route=RouteAction(cluster=REFLECTION_SERVICE, timeout=timedelta(0)),
        request_headers_to_add=[_identity(settings)],
        metadata=_rate_class("READ"),
        typed_per_filter_config={"envoy.filters.http.jwt_authn": Any.pack(PerRouteConfig(disabled=True))},
    )


def _identity(settings: Settings) -> HeaderValueOption:
    """Tells the service that the edge is calling. In a mesh the proxy before the service overwrites it with what
    the edge's certificate says."""
    return _header(XFCC, f"URI={settings.spiffe_id(EDGE)}")


def _header(key: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=key, value=value), append_action=_OVERWRITE)


def _rate_class(rate_class: str, **form: str) -> Metadata:
    """What the rate limit, and the strict-JSON filter, need to know of a route."""
    of_route = {METADATA: Struct.from_dict({"rate_class": rate_class})}
    if form:
        of_route["envoy.filters.http.lua"] = Struct.from_dict(form)
    return Metadata(filter_metadata=of_route)


def _http_routes(methods: Sequence[Method]) -> list[Route]:
    """For every path: its HTTP methods, then 405 for all others. Paths without variables first."""
    by_path: dict[str, list[tuple[HttpRoute, Method]]] = {}
    for method in methods:
        for route in method.routes:
            by_path.setdefault(route.regex, []).append((route, method))
    result = []
    for regex, bindings in sorted(by_path.items(), key=_most_specific_first):
        path = bindings[0][0].path
        for binding, method in bindings:
            match = _path_match(path, regex)
            match.headers = [HeaderMatcher(name=":method", string_match=StringMatcher(exact=binding.verb))]
            result.append(
                Route(
                    name=method.full_name,
                    match=match,
                    # Only for the filters: transcoding moves the request to the method's gRPC route.
                    route=RouteAction(cluster=method.service_id),
                    metadata=Metadata(
                        filter_metadata={"envoy.filters.http.lua": Struct.from_dict(_form(binding, method))}
                    ),
                    typed_per_filter_config=(
                        {"envoy.filters.http.grpc_json_transcoder": Any.pack(transcoder(lenient=True))}
                        if speaks_for_itself(method) and "{" in path
                        else {}
                    ),
                )
            )
        allowed = ", ".join(sorted({binding.verb for binding, _ in bindings}))
        refusal = _refusal(_path_match(path, regex), 405, faults.MethodNotAllowed, allow=allowed)
        result.append(refusal)
    return result


def _most_specific_first(item: tuple[str, list[tuple[HttpRoute, Method]]]) -> tuple[bool, bool, str]:
    path = item[1][0][0].path
    return "{" in path, ":" not in path.rpartition("/")[2], item[0]


def _form(binding: HttpRoute, method: Method) -> dict[str, AnyValue]:
    """What the strict-JSON filter needs to know of a request to this route."""
    message: Descriptor | None = method.descriptor.input_type
    if binding.body and binding.body != "*":
        message = method.descriptor.input_type.fields_by_name[binding.body].message_type
    if not binding.body or message is None:
        return {"body": "none"}
    if schemas.is_opaque(message):
        return {"body": "any"}
    return {"body": "json", "message": message.full_name}


def _path_match(path: str, regex: str) -> RouteMatch:
    if "{" in path:
        return RouteMatch(safe_regex=RegexMatcher(regex=regex))
    return RouteMatch(path=path)


def _refusal(match: RouteMatch, status: int, fault: type[Fault], **more: str) -> Route:
    return _answer(match, status, replies.error(fault), **more)


def _answer(match: RouteMatch, status: int, body: dict[str, AnyValue], **more: str) -> Route:
    """A route that leads nowhere: the strict-JSON filter answers before the router would be asked. It is no direct
    response, because the CORS filter passes those over."""
    return Route(
        match=match,
        route=RouteAction(cluster=REFLECTION_SERVICE),
        metadata=_rate_class("READ", body="answered", status=str(status), answer=json.dumps(body), **more),
    )


def _cors() -> CorsPolicy:
    """Any origin may call with a token in a header; no origin's cookies count."""
    return CorsPolicy(
        allow_origin_string_match=[StringMatcher(safe_regex=RegexMatcher(regex=".*"))],
        allow_methods="GET, POST, PUT, PATCH, DELETE, OPTIONS",
        allow_headers="authorization, x-api-key, content-type, x-nexus-tenant, idempotency-key, x-grpc-web, "
        "grpc-timeout, x-user-agent",
        expose_headers="x-request-id, retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, "
        "grpc-status, grpc-message, grpc-status-details-bin",
        max_age="86400",
        allow_credentials=False,
    )

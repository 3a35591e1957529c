"""Routes, one for each method that has an HTTP rule: its gRPC path, with its policy.

A JSON request first matches the route of all HTTP paths, where the request filter tells them apart; once transcoded
it matches, like any gRPC request, its method's route.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from betterproto2 import Message
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Metadata,
    RoutingPriority,
)
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteList,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import PerRouteConfig
from envoy_data_plane.envoy.type.matcher.v3 import HttpRequestHeaderMatchInput, RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct
from envoy_data_plane.xds.core.v3 import TypedExtensionConfig
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherTree,
    MatcherMatcherTreeMatchMap,
    MatcherOnMatch,
)

from edge import cache, openapi, reference
from edge.envoy import retries
from edge.layout import TIMEOUT_MARGIN, Layout
from edge.transcoding import speaks_for_itself, transcoder
from edge.upstreams import routes_to
from services.chassis import contract
from services.chassis.config import Settings
from services.chassis.context import EDGE
from services.chassis.contract import Method
from services.chassis.peers import API_KEY, MESH_REPLY, XFCC
from services.chassis.spec import discover

METADATA = "nexus"
JWKS_METHOD = "/nexus.identity.token_mgr.v1.TokenService/GetJwks"
DOCS_METHOD = "/nexus.platform.backend_api.v1.PlatformService/GetReference"
REFLECTION = ("/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/")
REFLECTION_SERVICE = "backend-api"
LENIENT = ("/t/",)
"""Where OAuth's endpoints are, which ignore parameters they do not know (RFC 6749, section 3.1)."""
# gRPC and gRPC-Web, which only becomes gRPC after the route has been chosen.
_GRPC = HeaderMatcher(name="content-type", string_match=StringMatcher(prefix="application/grpc"))
_OVERWRITE = HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD


def table(settings: Settings, layout: Layout) -> RouteConfiguration:
    """All routes, of every listener."""
    return RouteConfiguration(
        name="edge",
        response_headers_to_remove=[MESH_REPLY],
        virtual_hosts=[
            VirtualHost(
                name="everyone",
                domains=["*"],
                matcher=_matcher(
                    grpc_routes(settings, layout),
                    [
                        *_cached_routes(served()),
                        *(_reflection_route(settings, prefix) for prefix in REFLECTION),
                        *_http_routes(),
                    ],
                ),
                typed_per_filter_config={"envoy.filters.http.cors": Any.pack(_cors())},
            )
        ],
    )


def grpc_routes(settings: Settings, layout: Layout) -> dict[str, list[Route]]:
    """By path; those of a method in the order in which they are tried."""
    return {method.path: _grpc_routes(settings, method, layout) for method in served()}


def _matcher(grpc: Mapping[str, Sequence[Route]], others: Sequence[Route]) -> Matcher:
    """What finds a gRPC path's routes by its hash: each request is matched as it comes and once it is transcoded, and
    a list of some hundred routes took a fifth of the time of a cached answer. Within a list the first that fits wins.
    """
    fallback = others[-1]
    return Matcher(
        matcher_tree=MatcherMatcherTree(
            input=_typed("path", HttpRequestHeaderMatchInput(header_name=":path")),
            exact_match_map=MatcherMatcherTreeMatchMap(
                # What is no gRPC call is none for any other route, either.
                map={path: _to([*routes, fallback]) for path, routes in grpc.items()}
            ),
        ),
        on_no_match=_to(others),
    )


def _to(routes: Sequence[Route]) -> MatcherOnMatch:
    return MatcherOnMatch(action=_typed("routes", RouteList(routes=list(routes))))


def _typed(name: str, config: Message) -> TypedExtensionConfig:
    return TypedExtensionConfig(name=name, typed_config=Any.pack(config))


def served() -> list[Method]:
    """The methods that outside callers reach. A contract may come before its service."""
    return [method for method in contract.methods().values() if method.external and method.service_id in discover()]


def keys_table(settings: Settings) -> RouteConfiguration:
    """The routes of the edge's private listener: token-mgr's keys, nothing else."""
    keys = _grpc_routes(settings, contract.methods()[JWKS_METHOD], Layout())
    return RouteConfiguration(
        name="keys",
        virtual_hosts=[VirtualHost(name="keys", domains=["*"], routes=keys)],
    )


def origin_table(settings: Settings, layout: Layout) -> RouteConfiguration:
    """The routes of the listener that the cache asks: methods whose good answers may be kept, and are told for how
    long."""
    kept = cache.cacheable(served())
    grpc = [route for method in kept for route in _grpc_routes(settings, method, layout, cache.cache_control(method))]
    return RouteConfiguration(
        name=cache.ORIGIN,
        virtual_hosts=[VirtualHost(name="cache", domains=["*"], routes=[*grpc, _http_route("/", {})])],
    )


def _cached_routes(methods: Iterable[Method]) -> list[Route]:
    result = []
    for method in cache.cacheable(methods):
        for template in method.routes:
            result.append(cache.route(method, template))
            result[-1].metadata = _metadata(method.rate_class)
    return result


def _grpc_routes(settings: Settings, method: Method, layout: Layout, cache_control: str = "") -> list[Route]:
    limit = method.timeout(settings.default_timeout)
    wait = timedelta(seconds=limit + TIMEOUT_MARGIN) if limit is not None else timedelta(0)
    action = RouteAction(
        timeout=wait,
        idle_timeout=timedelta(minutes=5) if method.streams else wait,
        retry_policy=retries(method),
        priority=RoutingPriority.HIGH if method.streams else RoutingPriority.DEFAULT,
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
        route.metadata = _metadata(method.rate_class, cache_control=cache_control)
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
        metadata=_metadata("READ"),
        typed_per_filter_config={"envoy.filters.http.jwt_authn": Any.pack(PerRouteConfig(disabled=True))},
    )


def _identity(settings: Settings) -> HeaderValueOption:
    """Tells the service that the edge is calling. In a mesh the proxy before the service overwrites it with what
    the edge's certificate says."""
    return _header(XFCC, f"URI={settings.spiffe_id(EDGE)}")


def _header(key: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=key, value=value), append_action=_OVERWRITE)


def _metadata(rate_class: str, http: bool = False, cache_control: str = "") -> Metadata:
    """What the rate limit needs to know of a route, and the request filter: whether paths are HTTP's here, and what
    its good answers say to caches."""
    of_filters = {METADATA: Struct.from_dict({"rate_class": rate_class})}
    for_script = {"http": True} if http else {"cache_control": cache_control} if cache_control else None
    if for_script:
        of_filters["envoy.filters.http.lua"] = Struct.from_dict(for_script)
    return Metadata(filter_metadata=of_filters)


def _http_routes() -> list[Route]:
    """One for all paths: the request filter knows them, and transcoding moves a request on to its method's gRPC route.
    A transcoder of its own, which takes megabytes, only the paths have where unknown parameters are ignored."""
    lenient = {"envoy.filters.http.grpc_json_transcoder": Any.pack(transcoder(lenient=True))}
    return [*(_http_route(prefix, lenient) for prefix in LENIENT), _http_route("/", {})]


def _http_route(prefix: str, config: dict[str, Any]) -> Route:
    # It leads nowhere. What is refused counts as a read, so that probing for paths is limited too.
    return Route(
        match=RouteMatch(prefix=prefix),
        route=RouteAction(cluster=REFLECTION_SERVICE),
        metadata=_metadata("READ", http=True),
        typed_per_filter_config=config,
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

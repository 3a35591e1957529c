"""The edge's HTTP filters, in the order in which they see a request."""

import json
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation as Mutation
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HttpUri,
    RuntimeFractionalPercent,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.route.v3 import (
    RateLimit,
    RateLimitAction,
    RateLimitActionMetaData,
    RateLimitActionMetaDataSource,
    RateLimitActionRemoteAddress,
)
from envoy_data_plane.envoy.extensions.common.ratelimit.v3 import (
    LocalRateLimitDescriptor,
    RateLimitDescriptorEntry,
    XRateLimitHeadersRfcVersion,
)
from envoy_data_plane.envoy.extensions.compression.gzip.compressor.v3 import Gzip
from envoy_data_plane.envoy.extensions.filters.http.compressor.v3 import (
    Compressor,
    CompressorCommonDirectionConfig,
    CompressorResponseDirectionConfig,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors
from envoy_data_plane.envoy.extensions.filters.http.grpc_web.v3 import GrpcWeb
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import HeaderMutation, Mutations
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwksAsyncFetch,
    JwtAuthentication,
    JwtCacheConfig,
    JwtProvider,
    JwtRequirement,
    JwtRequirementOrList,
    RemoteJwks,
)
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import LocalRateLimit
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.metadata.v3 import (
    MetadataKey,
    MetadataKeyPathSegment,
)
from envoy_data_plane.envoy.type.v3 import FractionalPercent, FractionalPercentDenominatorType, TokenBucket
from envoy_data_plane.google.protobuf import Any, Empty

from edge import cache, paths, replies, schemas
from edge.envoy import http_filter
from edge.routes import JWKS_METHOD, METADATA, served
from edge.transcoding import transcoder
from nexus.type.v1 import faults
from services.chassis.config import Settings

FOLDER = Path(__file__).parent
KEYS_CLUSTER = "edge-keys"
KEYS_FRESH = timedelta(seconds=10)
"""How long the edge knows a set of keys. token-mgr publishes a key for longer than this before it signs."""
RATE_CLASSES = ("READ", "WRITE", "CREDENTIALS", "COSTLY")
ADDRESS_FACTOR = {"CREDENTIALS": 1}
ADDRESS_FACTOR_OTHERWISE = 10
"""How many users one address may hold before it is limited as one: an office, a school, a carrier."""
_PROVIDER = "token-mgr"
_CLAIMS = "claims"
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "cross-origin",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "cache-control": "no-store",
}


def chain(settings: Settings) -> list[HttpFilter]:
    script = request_script(paths.tree(served()).lua(), schemas.lua_table())
    return [
        http_filter("header_mutation", _security_headers()),
        http_filter("compressor", _compressor()),
        http_filter("cors", Cors()),
        http_filter("grpc_web", GrpcWeb()),
        http_filter("lua", _requests(script)),
        http_filter("grpc_json_transcoder", transcoder()),
        http_filter("jwt_authn", _jwt(settings)),
        http_filter("local_ratelimit", _rate_limits(settings)),
        cache.cache_filter(settings),
        http_filter("router", Router(suppress_envoy_headers=True)),
    ]


def origin_chain() -> list[HttpFilter]:
    """For requests that the cache makes: no body, no user, counted already."""
    kept = cache.cacheable(served())
    return [
        http_filter("lua", _requests(request_script(paths.tree(kept).lua(), "{}"))),
        http_filter(
            "grpc_json_transcoder", transcoder(*sorted({method.path[1:].partition("/")[0] for method in kept}))
        ),
        http_filter("router", Router(suppress_envoy_headers=True)),
    ]


def keys_chain() -> list[HttpFilter]:
    """Transcoding alone, for the edge's own reading of the keys."""
    return [
        http_filter("grpc_json_transcoder", transcoder(JWKS_METHOD[1:].partition("/")[0])),
        http_filter("router", Router()),
    ]


def _security_headers() -> HeaderMutation:
    absent = HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT
    added = [
        HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=absent)
        for name, value in _SECURITY_HEADERS.items()
    ]
    added.append(HeaderValueOption(header=HeaderValue(key="vary", value="x-nexus-tenant")))
    return HeaderMutation(
        mutations=Mutations(
            response_mutations=[
                Mutation(remove="x-envoy-upstream-service-time"),
                *(Mutation(append=each) for each in added),
            ]
        )
    )


def _compressor() -> Compressor:
    return Compressor(
        response_direction_config=CompressorResponseDirectionConfig(
            common_config=CompressorCommonDirectionConfig(
                min_content_length=1024,
            )
        ),
        compressor_library=TypedExtensionConfig(name="gzip", typed_config=Any.pack(Gzip())),
    )


def _requests(script: str) -> Lua:
    cached = DataSource(inline_string=(FOLDER / "cached.lua").read_text())
    return Lua(
        default_source_code=DataSource(inline_string=script),
        source_codes={cache.SCRIPT: cached},
        stat_prefix="requests",
    )


def request_script(routes: str, messages: str) -> str:
    """The request filter: its constants, of which these two are Lua tables out of the contracts, then its parts."""
    not_found = replies.error(faults.RouteUnknown)
    constants = {
        "ROUTES": routes,
        "MESSAGES": messages,
        "ROUTE_UNKNOWN": _quoted(json.dumps(not_found)),
        "METHOD_NOT_ALLOWED": _quoted(json.dumps(replies.error(faults.MethodNotAllowed))),
        "HEALTHY": _quoted(json.dumps({"status": "ok"})),
        "NOT_GRPC": _quoted(replies.status_details(404, not_found)),
    }
    parts = [f"local {name} = {value}" for name, value in constants.items()]
    parts += [(FOLDER / f"{name}.lua").read_text() for name in ("paths", "strict_json", "requests")]
    return "\n".join(parts)


def _quoted(text: str) -> str:
    return f"[==[{text}]==]"


def _jwt(settings: Settings) -> JwtAuthentication:
    provider = JwtProvider(
        issuer=settings.token_issuer,
        audiences=[settings.token_audience],
        forward=True,
        payload_in_metadata=_CLAIMS,
        clock_skew_seconds=1,
        jwt_cache_config=JwtCacheConfig(jwt_cache_size=10_000),
        remote_jwks=RemoteJwks(
            http_uri=HttpUri(
                uri="http://edge-keys/.well-known/jwks.json",
                cluster=KEYS_CLUSTER,
                timeout=timedelta(seconds=2),
            ),
            cache_duration=KEYS_FRESH,
            async_fetch=JwksAsyncFetch(fast_listener=True, failed_refetch_duration=timedelta(milliseconds=200)),
        ),
    )
    # A call without a token goes on to the service, which names what the method needs; a bad token ends here.
    signed_in = JwtRequirement(
        requires_any=JwtRequirementOrList(
            requirements=[JwtRequirement(provider_name=_PROVIDER), JwtRequirement(allow_missing=Empty())]
        )
    )
    return JwtAuthentication(
        providers={_PROVIDER: provider}, requirement_map={"signed_in": signed_in}, bypass_cors_preflight=True
    )


def _rate_limits(settings: Settings) -> LocalRateLimit:
    """A bucket for each (rate class, address) and each (rate class, user)."""
    descriptors = []
    for rate_class in RATE_CLASSES:
        calls, seconds = settings.rate(rate_class)
        factor = ADDRESS_FACTOR.get(rate_class, ADDRESS_FACTOR_OTHERWISE)
        for who, amount in (("remote_address", calls * factor), ("user", calls)):
            descriptors.append(
                LocalRateLimitDescriptor(
                    entries=[
                        RateLimitDescriptorEntry(key="rate_class", value=rate_class),
                        RateLimitDescriptorEntry(key=who),
                    ],
                    token_bucket=_bucket(amount, seconds),
                )
            )
    always = RuntimeFractionalPercent(
        default_value=FractionalPercent(numerator=100, denominator=FractionalPercentDenominatorType.HUNDRED)
    )
    rate_class_of_route = RateLimitAction(
        metadata=RateLimitActionMetaData(
            descriptor_key="rate_class",
            metadata_key=_metadata_key(METADATA, "rate_class"),
            source=RateLimitActionMetaDataSource.ROUTE_ENTRY,
        )
    )
    address = RateLimitAction(remote_address=RateLimitActionRemoteAddress())
    user = RateLimitAction(
        metadata=RateLimitActionMetaData(
            descriptor_key="user",
            metadata_key=_metadata_key("envoy.filters.http.jwt_authn", _CLAIMS, "sub"),
            source=RateLimitActionMetaDataSource.DYNAMIC,
        )
    )
    return LocalRateLimit(
        stat_prefix="rate",
        filter_enabled=always,
        filter_enforced=always,
        # The limit of calls that no descriptor meets, of which there are none: wide open.
        token_bucket=_bucket(1_000_000, 1),
        always_consume_default_token_bucket=False,
        descriptors=descriptors,
        rate_limits=[
            RateLimit(actions=[rate_class_of_route, address]),
            RateLimit(actions=[rate_class_of_route, user]),
        ],
        max_dynamic_descriptors=50_000,
        enable_x_ratelimit_headers=XRateLimitHeadersRfcVersion.DRAFT_VERSION_03,
        rate_limited_as_resource_exhausted=True,
    )


def _bucket(calls: int, seconds: int) -> TokenBucket:
    """Full at first, refilled all along: `calls` a window of `seconds`, without the window's edges."""
    interval = timedelta(seconds=max(1, round(seconds / calls)))
    return TokenBucket(
        max_tokens=calls,
        tokens_per_fill=max(1, round(calls * interval.total_seconds() / seconds)),
        fill_interval=interval,
    )


def _metadata_key(namespace: str, *path: str) -> MetadataKey:
    return MetadataKey(key=namespace, path=[MetadataKeyPathSegment(key=part) for part in path])

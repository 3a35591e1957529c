"""The edge's response cache (RFC 9111): public answers, for as long as their contract says (`cache_lifetime`).

A cacheable path has a route of its own, which meets the cache instead of the transcoder. What the cache lacks it asks
for past the filters that stand behind it, so it asks `origin`, a listener inside this Envoy that does their work.
An answer is kept by tenant, path and query. A request with a token, an API key or a version to try goes another way.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.route.v3 import FilterConfig, HeaderMatcher, Route, RouteAction, RouteMatch
from envoy_data_plane.envoy.extensions.bootstrap.internal_listener.v3 import InternalListener
from envoy_data_plane.envoy.extensions.common.async_files.v3 import (
    AsyncFileManagerConfig,
    AsyncFileManagerConfigThreadPool,
)
from envoy_data_plane.envoy.extensions.filters.http.cache_v2.v3 import CacheV2Config
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.cache_v2.file_system_http_cache.v3 import FileSystemHttpCacheV2Config
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any

from edge.envoy import http_filter
from services.chassis.config import Settings
from services.chassis.contract import HttpRoute, Method
from services.chassis.peers import API_KEY, VERSION_HEADER

ORIGIN = "origin"
"""The listener that the cache asks, and the cluster that leads there."""
MAX_BYTES = 128 * 1024 * 1024
"""Then the answers that nobody has asked for the longest go."""
MAX_SHARED_LIFETIME = timedelta(seconds=60)
"""However long a browser may keep an answer: what a tenant takes back the edge has forgotten by then."""
SCRIPT = "cached"
"""The name of the request filter's script for cacheable paths."""
_BYPASS = ("authorization", API_KEY, VERSION_HEADER)
"""Headers of requests whose answers are not everybody's."""
_FILTER = "envoy.filters.http.cache_v2"
_BEHIND = ("grpc_json_transcoder", "jwt_authn")
"""The filters whose work `origin` does."""


def cacheable(methods: Iterable[Method]) -> list[Method]:
    return [method for method in methods if method.policy.HasField("cache_lifetime")]


def cache_control(method: Method) -> str:
    """What a good answer of a method says to all caches, ours and those outside (RFC 9111, section 5.2; RFC 5861)."""
    lifetime = method.policy.cache_lifetime.ToTimedelta()
    seconds, shared = (int(each.total_seconds()) for each in (lifetime, min(lifetime, MAX_SHARED_LIFETIME)))
    return f"public, max-age={seconds}, s-maxage={shared}, stale-while-revalidate={shared}"


def extension() -> TypedExtensionConfig:
    """What lets a cluster lead to a listener of the same Envoy."""
    return TypedExtensionConfig(name="envoy.bootstrap.internal_listener", typed_config=Any.pack(InternalListener()))


def folder(settings: Settings) -> Path:
    """Where the answers are."""
    return settings.home / "edge" / "cache"


def cache_filter(settings: Settings) -> HttpFilter:
    """Off, but on the routes that turn it on."""
    store = FileSystemHttpCacheV2Config(
        manager_config=AsyncFileManagerConfig(thread_pool=AsyncFileManagerConfigThreadPool(thread_count=1)),
        cache_path=str(folder(settings)),
        max_cache_size_bytes=MAX_BYTES,
    )
    config = CacheV2Config(
        typed_config=Any.pack(store),
        ignore_request_cache_control_header=True,  # or anybody could have the services asked each time
    )
    result = http_filter("cache_v2", config)
    result.disabled = True
    return result


def route(method: Method, template: HttpRoute) -> Route:
    """From a cacheable path through the cache."""
    bypass = [HeaderMatcher(name=name, present_match=True, invert_match=True) for name in _BYPASS]
    verb = HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET"))
    match = RouteMatch(headers=[verb, *bypass])
    if "{" in template.path:
        match.safe_regex = RegexMatcher(regex=template.regex)
    else:
        match.path = template.path
    # An empty configuration says no more than that the filter is on.
    enabled, disabled = Any.pack(FilterConfig(config=Any())), Any.pack(FilterConfig(disabled=True))
    return Route(
        name=method.full_name,
        match=match,
        route=RouteAction(cluster=ORIGIN, timeout=timedelta(0)),  # `origin` has the method's own
        typed_per_filter_config={
            _FILTER: enabled,
            "envoy.filters.http.lua": Any.pack(LuaPerRoute(name=SCRIPT)),
            **{f"envoy.filters.http.{name}": disabled for name in _BEHIND},
        },
    )

"""What Schemathesis makes of /openapi.json: every operation is called with what it allows and what it does not.

Two checks, for each answer: it is no server error, and its status, media type and body are documented. Left out:
what an answer should have been (`positive_data_acceptance`, `negative_data_rejection`), because a request that
fits the schema may still name a user or a code that does not exist, and what the transcoder reads as text, like
a number in a query, fits every schema; and the checks of tokens, methods and headers (`ignored_auth`,
`unsupported_method`, …), which `test_tokens.py` and `test_requests.py` make for every route by name.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.feedback import NO_FEEDBACK
from schemathesis.generation.meta import CoverageScenario
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edge import openapi
from services.chassis import contract
from tests.platforms import Platform, SignedIn

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def document() -> dict[str, Any]:
    """The document, without what Schemathesis cannot call: streams, which do not end, and a path with a dot in the
    name of a variable."""
    whole = openapi.document(server_url="http://127.0.0.1")
    streams = {route.path for method in contract.methods().values() if method.streams for route in method.routes}
    fit = {
        path: item for path, item in whole["paths"].items() if path not in streams and not re.search(r"\{[^}]*\.", path)
    }
    return {**whole, "paths": fit}


schema = schemathesis.openapi.from_dict(document())
# Beside the owner's token, a made-up API key would have every call refused for its two credentials.
schema.config.generation.update(with_security_parameters=False)
schema.config.phases.coverage.unexpected_methods = set()
WRONG_TYPES_SENT = 4
"""One in so many. They are the transcoder's to refuse, by the same code for each field, and Schemathesis has five or
six for every field: this way it gets one or two, the next field another."""


@pytest.fixture(scope="module")
async def owner(platform: Platform) -> SignedIn:
    """May do everything in a tenant of its own."""
    return await (await platform.new_tenant()).sign_in("owner")


def test_the_platform_serves_the_document_that_is_tested(platform: Platform) -> None:
    served = httpx.get(f"{platform.http_url}/openapi.json").json()
    assert served == openapi.document(server_url=platform.settings.public_url)


def test_paths_are_told_apart_by_more_than_the_names_of_their_variables() -> None:
    """Others are the same path to OpenAPI (3.1, section 4.8.8.2), and a dot in a name to many tools an attribute."""
    paths = list(openapi.document(server_url="http://127.0.0.1")["paths"])
    assert len({re.sub(r"\{.*?\}", "{}", path) for path in paths}) == len(paths)
    assert not [path for path in paths if re.search(r"\{[^}]*\.", path)]


def operations() -> list[str]:
    """All but signing out, which would end the session that the others are called in."""
    ends = re.compile("logout|change-password|^DELETE /api/v1/sessions$")
    every = [f"{verb.upper()} {path}" for path, item in document()["paths"].items() for verb in item]
    return [operation for operation in every if not ends.search(operation)]


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as kept:
        kept.trust_env = False
        yield kept


# The cases are made here and not by `schema.parametrize()`, which makes those of all operations in every worker.
@pytest.mark.parametrize("operation", operations())
def test_every_operation_keeps_to_the_document(
    operation: str, platform: Platform, owner: SignedIn, session: requests.Session
) -> None:
    wrong_types = itertools.count()

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    def keeps(case: Any) -> None:
        is_wrong_type = getattr(case.meta.phase.data, "scenario", None) == CoverageScenario.INCORRECT_TYPE
        if is_wrong_type and next(wrong_types) % WRONG_TYPES_SENT:
            return
        case.call_and_validate(platform.http_url, session, owner.headers, checks=CHECKS)

    verb, _, path = operation.partition(" ")
    build_operation_test(
        config=schema.config, operation=schema[path][verb], test_func=keeps, given_kwargs={}, feedback=NO_FEEDBACK
    )()

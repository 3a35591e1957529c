"""A caller is who the mesh's proxy says, and only that proxy is believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.config import Settings
from services.chassis.peers import PeerIdentifier

EDGE = "By=spiffe://nexus.local/ns/nexus/sa/user-auth;Hash=ab12;URI=spiffe://nexus.local/ns/nexus/sa/edge"


def identifier(proxies: str = "unix") -> PeerIdentifier:
    return PeerIdentifier(Settings(trusted_proxies=proxies))


def test_the_header_is_believed_from_the_unix_socket() -> None:
    assert identifier().caller("unix:", EDGE) == "edge"
    assert identifier().caller("unix:/run/user-auth.sock", EDGE) == "edge"


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:5000", "ipv4:10.0.0.1:1", "ipv6:%5B::1%5D:5000", "", "unknown"])
def test_the_header_is_not_believed_from_anybody_else(peer: str) -> None:
    assert identifier().caller(peer, EDGE) is None


def test_a_call_without_the_header_has_no_caller() -> None:
    assert identifier().caller("unix:", None) is None
    assert identifier().caller("unix:", "") is None


def test_a_sidecar_is_believed_at_its_address() -> None:
    peers = identifier("127.0.0.6, ::6")
    assert peers.caller("ipv4:127.0.0.6:41234", EDGE) == "edge"
    assert peers.caller("ipv6:%5B::6%5D:41234", EDGE) == "edge"
    assert peers.caller("unix:", EDGE) is None


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.61:5000", "ipv4:127.0.0.66:5000", "ipv6:%5B::61%5D:5000"])
def test_an_address_that_begins_like_the_sidecars_is_not_the_sidecar(peer: str) -> None:
    assert identifier("127.0.0.6,::6").caller(peer, EDGE) is None


def test_the_last_element_wins_for_our_own_proxy_added_it() -> None:
    forged = "URI=spiffe://nexus.local/ns/nexus/sa/operator"
    assert identifier().caller("unix:", f"{forged},{EDGE}") == "edge"
    assert identifier().caller("unix:", f"{forged},By=x;Hash=y") is None


def test_a_comma_inside_quotes_does_not_begin_an_element() -> None:
    subject = 'Hash=ab;Subject="CN=edge,O=Nexus";URI=spiffe://nexus.local/ns/nexus/sa/edge'
    assert identifier().caller("unix:", subject) == "edge"
    assert identifier().caller("unix:", 'URI="spiffe://nexus.local/ns/nexus/sa/edge";DNS=edge') == "edge"


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://evil.example/ns/nexus/sa/edge",
        "spiffe://nexus.local/ns/other/sa/edge",
        "spiffe://nexus.local.evil.example/ns/nexus/sa/edge",
        "https://nexus.local/ns/nexus/sa/edge",
        "x-spiffe://nexus.local/ns/nexus/sa/edge",
        "edge",
    ],
)
def test_a_foreign_identity_is_nobody(identity: str) -> None:
    assert identifier().caller("unix:", f"Hash=ab;URI={identity}") is None


@pytest.mark.parametrize(
    "header",
    [
        "URI=",
        "URI",
        ";;;",
        ",",
        "uri;URI",
        "By=spiffe://nexus.local/ns/nexus/sa/edge",
        "XURI=spiffe://nexus.local/ns/nexus/sa/edge",
        'Subject="x;URI',
    ],
)
def test_a_malformed_header_is_nobody(header: str) -> None:
    assert identifier().caller("unix:", header) is None


@given(header=st.text())
def test_no_header_raises_or_makes_an_operator_of_anybody(header: str) -> None:
    if "operator" not in header and "%" not in header:
        assert identifier().caller("unix:", header) != "operator"

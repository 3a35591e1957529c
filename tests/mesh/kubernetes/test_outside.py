"""A service reaches what it needs outside of the cluster, by name and by packet, and nobody reaches anything else."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

from mesh.kubernetes import __main__ as renderer
from mesh.kubernetes import rendering
from mesh.kubernetes.overlays import OVERLAYS, Overlay
from mesh.topology import topology
from services.chassis.spec import ServiceSpec, discover
from tests.mesh.kubernetes.clusters import Object, built, of_kind, tool

SPECS = discover()
TO_ALL = {"postgres", "redis", "otlp"}
SOMEWHERE = "93.184.215.14"
EVERY_OVERLAY = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
EVERY_SERVICE = pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))


class Reached(NamedTuple):
    host: str
    port: int
    protocol: str


@EVERY_SERVICE
def test_every_address_in_a_services_defaults_is_one_that_it_is_let_out_to(spec: ServiceSpec) -> None:
    fields = spec.config.model_fields.values()
    addresses = {field.default for field in fields if "://" in str(field.default)}

    assert addresses <= set(spec.urls_outside(spec.config.model_construct()))


@EVERY_SERVICE
def test_who_sends_mail_says_so(spec: ServiceSpec) -> None:
    code = "".join(path.read_text() for path in spec.folder.glob("**/*.py"))

    assert ("service.mailer" in code) == spec.sends_mail


@EVERY_OVERLAY
def test_a_sidecar_knows_what_its_service_reaches_and_nothing_else(overlay: Overlay) -> None:
    objects = built(overlay.name)
    by_name = {server.name: Reached(server.host, server.port, "TCP") for server in overlay.servers}
    known = {service: set(hosts_outside(objects, service)) for service in SPECS}

    assert {service for service in SPECS if by_name["smtp"] in known[service]} == {"user-auth", "invoice-gen"}
    for service, spec in SPECS.items():
        expected = {by_name[name] for name in TO_ALL | ({"smtp"} if spec.sends_mail else set())}
        expected |= {web(url) for url in spec.urls_outside(overlay.config_of(spec))}
        expected |= {Reached(host, 443, "TLS") for host in overlay.further_hosts.get(service, ())}
        assert known[service] == expected, service
    assert set().union(*known.values()) == set(entries(objects).values()), "what nobody reaches is not known"


@EVERY_OVERLAY
def test_the_providers_that_people_pay_and_sign_in_by_are_reached(overlay: Overlay) -> None:
    objects = built(overlay.name)
    paypal = "api-m.sandbox.paypal.com" if overlay.name == "staging" else "api-m.paypal.com"

    assert {"api.stripe.com", paypal} < names_outside(objects, "billing-service")
    assert "api.easypost.com" in names_outside(objects, "puabo-nuki-shipping-service")
    assert {"accounts.google.com", "login.microsoftonline.com"} < names_outside(objects, "auth-service-v2")


@EVERY_OVERLAY
def test_a_packet_leaves_only_to_where_its_service_has_something_to_do(overlay: Overlay) -> None:
    objects = built(overlay.name)
    servers = {(server.cidr, server.port) for server in overlay.servers if server.name in TO_ALL}
    smtp = {(server.cidr, server.port) for server in overlay.servers if server.name == "smtp"}
    for service, spec in SPECS.items():
        internet = {reached.port for reached in hosts_outside(objects, service) if reached.protocol != "TCP"}
        expected = servers | (smtp if spec.sends_mail else set())
        expected |= {(block, port) for port in internet for block in ("0.0.0.0/0", "::/0")}
        assert {(block["cidr"], port) for block, port in ways_out(objects, service)} == expected, service
    database = {(server.cidr, server.port) for server in overlay.servers if server.name == "postgres"}
    assert {(block["cidr"], port) for block, port in ways_out(objects, "migrations")} == database
    for nobody in ("edge", "operator"):
        assert not set(names_outside(objects, nobody))
        assert not list(ways_out(objects, nobody))


@EVERY_OVERLAY
@pytest.mark.parametrize("address", ["10.0.0.1", "172.17.0.1", "192.168.1.1", "169.254.169.254", "fd00:ec2::254"])
def test_the_internet_is_not_the_clusters_own_network(overlay: Overlay, address: str) -> None:
    """Nor the cloud's metadata server, which hands out credentials."""
    ways = [block for block, port in ways_out(built(overlay.name), "auth-service-v2") if port == 443]

    assert any(contains(block, SOMEWHERE) for block in ways)
    assert not any(contains(block, address) for block in ways)


def test_an_environment_gives_a_service_settings_and_secrets_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vault = replace(
        OVERLAYS[0],
        service_settings={"key-service": {"vault_addr": "https://vault.example.com:8200"}},
        service_secrets={"key-service": ["vault_token"]},
        networks={"vault.example.com": "10.9.0.0/24"},
    )
    monkeypatch.setattr(rendering, "OVERLAYS", (with_vault,))
    monkeypatch.setattr("sys.argv", ["mesh.kubernetes"])
    renderer.main(tmp_path)
    folder = tmp_path / rendering.RENDERED / "overlays" / with_vault.name
    answer = subprocess.run([tool("kustomize"), "build", folder], check=True, capture_output=True, text=True)
    objects = list(yaml.load_all(answer.stdout, yaml.CSafeLoader))

    [settings] = of_kind(objects, "ConfigMap")
    [deployment] = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == "key-service"]
    variables = {each["name"]: each["valueFrom"] for each in variables_of(deployment)}
    assert settings["data"]["NEXUS_KEY_SERVICE_VAULT_ADDR"] == "https://vault.example.com:8200"
    assert variables["NEXUS_KEY_SERVICE_VAULT_TOKEN"] == {
        "secretKeyRef": {"name": "nexus-key-service", "key": "vault_token"}
    }
    others = [each for each in of_kind(objects, "Deployment") if each is not deployment]
    assert not [each for other in others for each in variables_of(other) if "VAULT" in each["name"]]
    assert Reached("vault.example.com", 8200, "TLS") in hosts_outside(objects, "key-service")
    assert ({"cidr": "10.9.0.0/24"}, 8200) in ways_out(objects, "key-service")
    assert not [block for block, _ in ways_out(objects, "key-service") if contains(block, SOMEWHERE)]


def test_a_setting_that_its_service_does_not_have_is_refused() -> None:
    misspelt = replace(OVERLAYS[0], service_settings={"billing-service": {"paypal_uri": "https://example.com"}})

    with pytest.raises(Exception, match=r"PAYPAL_URI\. Did you mean NEXUS_BILLING_SERVICE_PAYPAL_URL"):
        rendering.environment(misspelt, topology())


def entries(objects: list[Object]) -> dict[str, Reached]:
    """By host; each has one, and one port."""
    found = {}
    for each in of_kind(objects, "ServiceEntry"):
        [host], [port] = each["spec"]["hosts"], each["spec"]["ports"]
        by_name = port["protocol"] != "TCP" and not host.startswith("*")
        assert each["spec"]["resolution"] == ("DNS" if by_name else "NONE")
        assert bool(each["spec"].get("addresses")) == (port["protocol"] == "TCP")
        found[host] = Reached(host, port["number"], port["protocol"])
    return found


def hosts_outside(objects: list[Object], service: str) -> Iterator[Reached]:
    """What the sidecar of a service knows outside of the cluster."""
    known = entries(objects)
    [sidecar] = [each["spec"] for each in of_kind(objects, "Sidecar") if each["metadata"]["name"] == service]
    [listener] = sidecar["egress"]
    for name in listener["hosts"]:
        if name.startswith("./") and not name.endswith(".nexus.svc.cluster.local"):
            yield known[name.removeprefix("./")]


def names_outside(objects: list[Object], service: str) -> set[str]:
    return {reached.host for reached in hosts_outside(objects, service)}


def ways_out(objects: list[Object], pods: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The blocks of addresses, with ports, that the packets of some pods may leave to."""
    for each in of_kind(objects, "NetworkPolicy"):
        selected = each["spec"]["podSelector"]
        chosen = selected.get("matchLabels", {}).get("app.kubernetes.io/name") == pods
        for expression in selected.get("matchExpressions", []):
            assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/name", "In")
            chosen = pods in expression["values"]
        for egress in each["spec"].get("egress", []) if chosen else []:
            [port] = egress["ports"]
            yield from ((peer["ipBlock"], port["port"]) for peer in egress["to"] if "ipBlock" in peer)


def contains(block: dict[str, Any], address: str) -> bool:
    inside, *without = (ip_network(each) for each in (block["cidr"], *block.get("except", [])))
    return ip_address(address) in inside and not any(ip_address(address) in each for each in without)


def web(url: str) -> Reached:
    parts = urlsplit(url)
    assert parts.hostname
    return Reached(parts.hostname, parts.port or 443, "TLS" if parts.scheme == "https" else "HTTP")


def variables_of(deployment: Object) -> list[dict[str, Any]]:
    return list(deployment["spec"]["template"]["spec"]["containers"][0].get("env", []))

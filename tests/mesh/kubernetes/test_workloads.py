"""What runs in a cluster: as little privilege as can be, no secrets in files, settings that services accept."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.kubernetes import __main__ as renderer
from mesh.kubernetes.overlays import OVERLAYS, Overlay
from mesh.kubernetes.rendering import RENDERED, ROOT, files
from mesh.topology import topology
from services.chassis.config import Settings, load_service_config, load_settings, service_prefix
from services.chassis.spec import discover
from tests.mesh.kubernetes.clusters import Object, built, of_kind, rendered
from tests.platforms import Platform

FOLDERS = ["base", *(f"overlays/{overlay.name}" for overlay in OVERLAYS)]
SPECS = discover()
PODS = ("Deployment", "Job")
"""Kinds of what has pods."""


def test_the_rendered_files_are_up_to_date() -> None:
    stale = [str(path) for path, text in files(topology()).items() if (ROOT / path).read_text() != text]
    written = {path.relative_to(ROOT) for path in (ROOT / RENDERED).rglob("*") if path.is_file()}

    assert stale == []
    assert written == files(topology()).keys() - {Path("compose.yaml"), Path("docs/mesh.md")}


def test_the_check_names_stale_files_and_writing_mends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mesh.kubernetes"])
    assert renderer.main(tmp_path) == 0
    (tmp_path / RENDERED / "base/edge.yaml").write_text("old")
    (tmp_path / RENDERED / "base/gone.yaml").write_text("left over")

    monkeypatch.setattr("sys.argv", ["mesh.kubernetes", "--check"])
    assert renderer.main(tmp_path) == 1
    said = capsys.readouterr().out
    assert f"{RENDERED}/base/edge.yaml is stale" in said
    assert f"{RENDERED}/base/gone.yaml is stale" in said

    monkeypatch.setattr("sys.argv", ["mesh.kubernetes"])
    renderer.main(tmp_path)
    monkeypatch.setattr("sys.argv", ["mesh.kubernetes", "--check"])
    assert renderer.main(tmp_path) == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_is_rendered(folder: str) -> None:
    assert of_kind(rendered(folder), "Secret") == []
    for path in (ROOT / RENDERED / folder).glob("*.yaml"):
        assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text()), f"a password in {path}"
    for pod in _pods(rendered(folder)):
        for container in _containers(pod):
            for variable in container.get("env", []):
                assert variable.keys() == {"name", "valueFrom"}, variable


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_no_secret_setting_is_in_the_config_map(overlay: Overlay) -> None:
    models = {"NEXUS_": Settings} | {service_prefix(spec.id): spec.config for spec in SPECS.values()}
    secrets = {
        prefix + name.upper()
        for prefix, model in models.items()
        for name, field in model.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    [settings_map] = of_kind(built(overlay.name), "ConfigMap")

    assert {"NEXUS_DATABASE_URL", "NEXUS_KEY_SERVICE_VAULT_TOKEN"} <= secrets
    assert not secrets & settings_map["data"].keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_have_no_privilege(folder: str) -> None:
    for pod in _pods(rendered(folder)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in _containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_a_pod_has_the_memory_that_its_processes_may_take(overlay: Overlay) -> None:
    """The route-optimizer's workers say that a problem is too large; a pod that is ended does not."""
    limits = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for each in of_kind(built(overlay.name), "Deployment")
    }
    optimizer = SPECS["puabo-nexus-route-optimizer"]
    config = overlay.config_of(optimizer).model_dump()
    processes = config["workers"] + config["background_workers"]

    assert int(limits.pop(optimizer.id).removesuffix("Mi")) >= 384 + processes * config["worker_memory_mib"] > 3000
    assert set(limits.values()) == {"384Mi", "512Mi"}, "the edge has more than the other services"


def test_the_edges_cache_fits_into_its_home() -> None:
    homes = {
        each["metadata"]["name"]: next(volume for volume in pod["volumes"] if volume["name"] == "home")["emptyDir"]
        for each in _deployments("base")
        for pod in [each["spec"]["template"]["spec"]]
    }

    assert homes.pop("edge") == {"sizeLimit": "256Mi"}
    assert all(home == {"sizeLimit": "64Mi"} for home in homes.values())


def test_every_service_runs_under_its_own_name() -> None:
    deployments = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in _deployments("base")}

    assert deployments.keys() == {*SPECS, "edge"}
    for name, pod in deployments.items():
        assert pod["serviceAccountName"] == name
        if name in SPECS:
            assert pod["containers"][0]["args"] == ["serve", name]


def test_no_sidecar_hangs_up_on_all_callers_for_what_some_take_back() -> None:
    """What the edge does for strangers it must not meet itself: see `test_requests.py`, for the local mesh."""
    for deployment in _deployments("base"):
        config = json.loads(deployment["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"])
        assert config["runtimeValues"] == {"overload.premature_reset_total_stream_count": str(2**31)}


def test_a_pod_outlives_its_calls() -> None:
    for deployment in _deployments("base"):
        pod = deployment["spec"]["template"]["spec"]
        before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        # Envoy does not drain when it is told to stop: all its time is before that.
        after = 0 if deployment["metadata"]["name"] == "edge" else Settings().drain_timeout
        assert pod["terminationGracePeriodSeconds"] > before + after
        assert before + after >= Settings().drain_timeout


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_services_accept_the_settings(overlay: Overlay) -> None:
    objects = built(overlay.name)
    [settings_map] = of_kind(objects, "ConfigMap")
    secrets = {"NEXUS_DATABASE_URL": "postgresql://db", "NEXUS_DATABASE_ROLE_KEY": "k", "NEXUS_REDIS_URL": "redis://r"}

    settings = load_settings({**settings_map["data"], **secrets}, SPECS)

    assert settings.environment == overlay.name
    assert settings.spiffe_id("edge") == "spiffe://cluster.local/ns/nexus/sa/edge"
    for spec in SPECS.values():
        load_service_config(spec.config, spec.id, settings_map["data"])
        target = settings.service_address.format(service=spec.id, port=spec.port, caller="", run="")
        [service] = [each for each in of_kind(objects, "Service") if each["metadata"]["name"] == spec.id]
        assert target == f"dns:///{spec.id}.nexus.svc.cluster.local:{service['spec']['ports'][0]['port']}"
        assert service["spec"]["ports"][0]["name"] == "grpc-api"


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_an_overlay_sets_image_and_bounds(overlay: Overlay) -> None:
    objects = built(overlay.name)
    tags = {each["metadata"]["name"]: overlay.tag for kind in PODS for each in of_kind(objects, kind)}
    tags |= {f"{service}-canary": canary.tag for service, canary in overlay.canaries.items()}
    bounds = {
        each["metadata"]["name"]: (each["spec"]["minReplicas"], each["spec"]["maxReplicas"])
        for each in of_kind(objects, "HorizontalPodAutoscaler")
    }

    assert all(canary.tag != overlay.tag for canary in overlay.canaries.values()), "they could be mixed up unseen"
    for each in (each for kind in PODS for each in of_kind(objects, kind)):
        images = {container["image"] for container in _containers(each["spec"]["template"]["spec"])}
        assert images == {f"{overlay.image}:{tags[each['metadata']['name']]}"}
    expected = dict.fromkeys(SPECS, (overlay.services.least, overlay.services.most))
    assert bounds == {**expected, "edge": (overlay.edge.least, overlay.edge.most)}
    for each in of_kind(objects, "HorizontalPodAutoscaler"):
        scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": each["metadata"]["name"]}
        assert each["spec"]["scaleTargetRef"] == scaled


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_an_environment_has_these_objects_and_no_others(overlay: Overlay) -> None:
    found = [(each["kind"], each["metadata"]["name"]) for each in built(overlay.name)]
    [settings] = [name for kind, name in found if kind == "ConfigMap"]

    assert re.fullmatch(r"nexus-settings-[a-z0-9]{10}", settings), "another name for other settings"
    assert sorted(found) == sorted({("ConfigMap", settings), *expected_objects(overlay)})


def expected_objects(overlay: Overlay) -> Iterator[tuple[str, str]]:
    """Every kind with the names of its objects."""
    kinds: dict[str, set[str]] = {
        "Namespace": {"nexus"},
        "ServiceAccount": {*SPECS, "edge", "operator"},
        "Sidecar": {*SPECS, "edge", "operator"},
        "NetworkPolicy": {*SPECS, "edge", "operator", "deny-all", "infrastructure"},
        "AuthorizationPolicy": {*SPECS, "edge", "deny-all"},
        "PeerAuthentication": {"default", "edge"},
        "RequestAuthentication": SPECS.keys() - {"auth-service-v2", "backend-api", "puabo-nuki-product-catalog"},
        "VirtualService": {*SPECS, "edge"},
        "Deployment": {*SPECS, "edge", *(f"{service}-canary" for service in overlay.canaries)},
        **{
            kind: {*SPECS, "edge"}
            for kind in ("Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "DestinationRule")
        },
        "Job": {f"migrations-{overlay.tag.replace('.', '-')}"},
        "Gateway": {"edge"},
        "Telemetry": {"default"},
    }
    hosts = {host for of_service in overlay.further_hosts.values() for host in of_service}
    for spec in SPECS.values():
        hosts |= {str(urlsplit(url).hostname) for url in spec.urls_outside(overlay.config_of(spec))}
    kinds["ServiceEntry"] = {each.name for each in overlay.servers} | {host.replace("*", "any") for host in hosts}
    kinds["NetworkPolicy"] |= {f"outside-{each.name}-{each.port}" for each in overlay.servers}
    kinds["NetworkPolicy"].add("outside-internet-443")
    for kind, names in kinds.items():
        yield from ((kind, name) for name in names)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_pods_are_spread_disrupted_one_at_a_time_and_found_by_their_labels(overlay: Overlay) -> None:
    objects = built(overlay.name)
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "PodDisruptionBudget")}
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service")}
    for deployment in of_kind(objects, "Deployment"):
        pods = deployment["spec"]["template"]
        own = {"app.kubernetes.io/name": pods["spec"]["serviceAccountName"]}
        assert own.items() <= pods["metadata"]["labels"].items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
        assert budgets[pods["spec"]["serviceAccountName"]] == {"maxUnavailable": 1, "selector": {"matchLabels": own}}
        assert services[pods["spec"]["serviceAccountName"]]["selector"] == own
        spread = {each["topologyKey"]: each for each in pods["spec"]["topologySpreadConstraints"]}
        assert spread.keys() == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for constraint in spread.values():
            assert constraint["labelSelector"] == {"matchLabels": own}
            assert constraint["maxSkew"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_secrets_come_by_reference_to_those_who_need_them(overlay: Overlay) -> None:
    database = {"NEXUS_DATABASE_ROLE_KEY": ("nexus-database", "role-key")}
    service = {**database, "NEXUS_DATABASE_URL": ("nexus-database", "url"), "NEXUS_REDIS_URL": ("nexus-redis", "url")}
    mail = {"NEXUS_SMTP_URL": ("nexus-smtp", "url")}
    for each in (each for kind in PODS for each in of_kind(built(overlay.name), kind)):
        pod = each["spec"]["template"]["spec"]
        found = {
            variable["name"]: (reference["name"], reference["key"])
            for container in _containers(pod)
            for variable in container.get("env", [])
            for reference in [variable["valueFrom"]["secretKeyRef"]]
        }
        files = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        name = pod["serviceAccountName"]
        if name in SPECS:
            assert found == service | (mail if SPECS[name].sends_mail else {}), name
            assert files == {"nexus-root-key", "nexus-unseal-key"}, name
        elif name == "operator":
            assert found == {**database, "NEXUS_DATABASE_URL": ("nexus-database-owner", "url")}
            assert not files
        else:
            assert (name, found, files) == ("edge", {}, set())


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_the_way_in_is_https_alone(overlay: Overlay) -> None:
    objects = built(overlay.name)
    [gateway] = of_kind(objects, "Gateway")
    https, http = gateway["spec"]["servers"]
    [way] = [each["spec"] for each in of_kind(objects, "VirtualService") if each["metadata"]["name"] == "edge"]

    assert (https["port"]["number"], https["hosts"]) == (443, [overlay.host])
    assert (https["tls"]["mode"], https["tls"]["minProtocolVersion"]) == ("SIMPLE", "TLSV1_3")
    assert (http["port"]["number"], http["hosts"], http["tls"]) == (80, [overlay.host], {"httpsRedirect": True})
    assert (way["hosts"], way["gateways"]) == ([overlay.host], ["istio-ingress/edge"])
    [route] = way["http"]
    assert [each["destination"]["host"] for each in route["route"]] == ["edge.nexus.svc.cluster.local"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda each: each.name)
def test_calls_are_logged_and_traced_as_the_settings_say(overlay: Overlay) -> None:
    objects = built(overlay.name)
    [telemetry], [settings] = of_kind(objects, "Telemetry"), of_kind(objects, "ConfigMap")

    share = float(settings["data"]["NEXUS_TRACE_RATIO"]) * 100
    assert telemetry["metadata"]["namespace"] == "nexus"
    assert telemetry["spec"] == {
        "accessLogging": [{"providers": [{"name": "envoy"}]}],
        "tracing": [{"randomSamplingPercentage": share}],
    }


async def test_the_probes_are_answered(platform: Platform) -> None:
    for deployment in _deployments("base"):
        name, container = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]["containers"][0]
        if name == "edge":
            continue
        async with grpc.aio.insecure_channel(f"unix:{platform.settings.run_dir}/{name}.sock") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container[probe]["grpc"].get("service", "")
                answer = await health.Check(health_pb2.HealthCheckRequest(service=asked), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_compose_runs_every_service() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    domains = {each["command"][1] for each in compose["services"].values() if "serve" in each.get("command", [])}

    assert domains == {spec.domain for spec in SPECS.values()}


def _deployments(folder: str) -> list[Object]:
    return of_kind(rendered(folder), "Deployment")


def _pods(objects: list[Object]) -> list[Object]:
    return [each["spec"]["template"]["spec"] for kind in PODS for each in of_kind(objects, kind)]


def _containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]

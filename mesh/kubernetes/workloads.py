"""What runs: one Deployment, Service, autoscaler and disruption budget for each service, and for the edge."""

import json
from collections.abc import Mapping, Sequence

from lightkube.models.apps_v1 import Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment
from lightkube.models.autoscaling_v2 import (
    ContainerResourceMetricSource,
    CrossVersionObjectReference,
    HorizontalPodAutoscaler,
    HorizontalPodAutoscalerSpec,
    MetricSpec,
    MetricTarget,
)
from lightkube.models.batch_v1 import Job, JobSpec
from lightkube.models.core_v1 import (
    Capabilities,
    ConfigMapEnvSource,
    Container,
    ContainerPort,
    EmptyDirVolumeSource,
    EnvFromSource,
    EnvVar,
    EnvVarSource,
    GRPCAction,
    HTTPGetAction,
    Lifecycle,
    LifecycleHandler,
    PodSecurityContext,
    PodSpec,
    PodTemplateSpec,
    Probe,
    ResourceRequirements,
    SeccompProfile,
    SecretKeySelector,
    SecretVolumeSource,
    SecurityContext,
    Service,
    ServiceAccount,
    ServicePort,
    SleepAction,
    TopologySpreadConstraint,
    Volume,
    VolumeMount,
)
from lightkube.models.core_v1 import (
    ServiceSpec as ServiceObjectSpec,
)
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
from lightkube.models.policy_v1 import PodDisruptionBudget, PodDisruptionBudgetSpec

from edge.envoy import PATIENT
from mesh.kubernetes.cluster import (
    CANARY,
    EDGE_PORT,
    HOME,
    MIGRATIONS,
    NAMESPACE,
    ROOT_KEY,
    SERVICE,
    SETTINGS,
    STABLE,
    UNSEAL_KEY,
    labels,
    meta,
    selector,
    service_variable,
)
from mesh.kubernetes.policies import MERGED_METRICS_PORT
from services.chassis.context import EDGE, OPERATOR
from services.chassis.spec import ServiceSpec

IMAGE = "nexus-cos"
"""Stands for the image in the base; an overlay names the registry and the tag."""
CANARY_IMAGE = "nexus-cos-canary"
"""Stands for a canary's, with the tag after a dash."""
SETTINGS_MAP = "nexus-settings"
"""The ConfigMap with the settings. Kustomize appends a digest, so that a change of settings is a rollout."""
LIVE = "live"
"""The name under which a service's health says that the process works, whatever its database does."""
USER = 65532
_EDGE_BOOTSTRAP = f"{HOME}/edge/bootstrap.pb"
_HOME_MIB = 64
_EDGE_HOME_MIB = 256  # with the response cache, which is half of that at most
_APART = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
_UNHURRIED = 5  # seconds in which the cluster learns that a pod is going away, before the pod is told
_GRACE = 10  # seconds beyond the drain time-out, to close what is open

DATABASE, OWNER, REDIS, SMTP, ROOT, UNSEAL = (
    "nexus-database",
    "nexus-database-owner",
    "nexus-redis",
    "nexus-smtp",
    "nexus-root-key",
    "nexus-unseal-key",
)
"""Secrets that are made outside of this repository."""


def account(name: str) -> ServiceAccount:
    return ServiceAccount(metadata=meta(name, labels(name)), automountServiceAccountToken=False)


def service_deployment(spec: ServiceSpec, canary_tag: str | None = None) -> Deployment:
    """A service, or its canary."""
    container = Container(
        name=SERVICE,
        image=f"{CANARY_IMAGE}-{canary_tag}" if canary_tag else IMAGE,
        args=["serve", spec.id],
        env=[
            *_database_env(DATABASE),
            _secret("NEXUS_REDIS_URL", REDIS),
            *([_secret("NEXUS_SMTP_URL", SMTP, optional=True)] if spec.sends_mail else []),
        ],
        ports=[_container_port("grpc-api", spec.port), _container_port("metrics", SETTINGS.metrics_port)],
        startupProbe=_probe(spec, LIVE, every=1, failures=60),
        livenessProbe=_probe(spec, LIVE, every=10, failures=3),
        readinessProbe=_probe(spec, "", every=2, failures=2),
        lifecycle=_leave_after(_UNHURRIED),
        resources=_resources(cpu="100m", memory_mib=spec.memory_mib),
        volumeMounts=[
            VolumeMount(name=name, mountPath=path, subPath=path.rpartition("/")[2], readOnly=True)
            for name, path in ((ROOT, ROOT_KEY), (UNSEAL, UNSEAL_KEY))
        ],
    )
    keys = [Volume(name=name, secret=SecretVolumeSource(secretName=name, defaultMode=0o440)) for name in (ROOT, UNSEAL)]
    version = CANARY if canary_tag else STABLE
    return _deployment(spec.id, [container], version=version, volumes=keys, annotations=_MEASURED)


def edge_deployment() -> Deployment:
    """Envoy from the same image as the services. Its bootstrap is written by that image as the pod starts, so that
    the edge always fits the contracts it ships with; as a ConfigMap it would outgrow the limit of 1 MiB."""
    healthz = HTTPGetAction(path="/healthz", port=EDGE_PORT)
    write = Container(name="bootstrap", image=IMAGE, command=write_edge_bootstrap())
    envoy = Container(
        name="envoy",
        image=IMAGE,
        command=run_edge(),
        ports=[_container_port("http2", EDGE_PORT)],
        startupProbe=Probe(httpGet=healthz, periodSeconds=1, failureThreshold=30),
        livenessProbe=Probe(httpGet=healthz, periodSeconds=10, failureThreshold=3),
        readinessProbe=Probe(httpGet=healthz, periodSeconds=2, failureThreshold=2),
        # Envoy does not wait for requests in flight when it is told to stop; so it is told once they are done.
        lifecycle=_leave_after(round(SETTINGS.drain_timeout)),
    )
    for container in (write, envoy):
        container.resources = _resources(cpu="200m", memory_mib=512)
    return _deployment(EDGE, [envoy], prepare=[write], home_mib=_EDGE_HOME_MIB)


def write_edge_bootstrap() -> list[str]:
    return ["python", "-m", "edge.bootstrap", _EDGE_BOOTSTRAP]


def run_edge() -> list[str]:
    return ["envoy", "-c", _EDGE_BOOTSTRAP, "--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"]


def migration_job(tag: str) -> Job:
    """Brings the database up to the version of the image. A Job cannot be changed, so each version has its own;
    it stays out of the mesh, where a sidecar would outlive it."""
    name = MIGRATIONS
    container = Container(
        name=name,
        image=IMAGE,
        args=["migrate"],
        env=_database_env(OWNER),
        resources=_resources(cpu="100m", memory_mib=384),
    )
    template = _template(
        name,
        OPERATOR,
        [container],
        labels={**labels(name), "sidecar.istio.io/inject": "false"},
        restart_policy="Never",
    )
    return Job(
        metadata=meta(f"{name}-{tag.replace('.', '-')}", labels(name)),
        spec=JobSpec(template=template, backoffLimit=5, activeDeadlineSeconds=900, ttlSecondsAfterFinished=86_400),
    )


def service(name: str, port: int, port_name: str) -> Service:
    """The API, and the metrics of the service and its sidecar merged."""
    ports = [
        ServicePort(name=port_name, port=port, targetPort=port, protocol="TCP"),
        ServicePort(name="http-metrics", port=MERGED_METRICS_PORT, targetPort=MERGED_METRICS_PORT, protocol="TCP"),
    ]
    return Service(metadata=meta(name, labels(name)), spec=ServiceObjectSpec(selector=selector(name), ports=ports))


def autoscaler(name: str) -> HorizontalPodAutoscaler:
    """By the CPU of the service alone, without its sidecar's. Overlays set the bounds."""
    container = "envoy" if name == EDGE else SERVICE
    target = MetricTarget(type="Utilization", averageUtilization=70)
    metric = ContainerResourceMetricSource(name="cpu", container=container, target=target)
    return HorizontalPodAutoscaler(
        metadata=meta(name, labels(name)),
        spec=HorizontalPodAutoscalerSpec(
            scaleTargetRef=CrossVersionObjectReference(apiVersion="apps/v1", kind="Deployment", name=name),
            minReplicas=1,
            maxReplicas=1,
            metrics=[MetricSpec(type="ContainerResource", containerResource=metric)],
        ),
    )


def disruption_budget(name: str) -> PodDisruptionBudget:
    spec = PodDisruptionBudgetSpec(maxUnavailable=1, selector=LabelSelector(matchLabels=selector(name)))
    return PodDisruptionBudget(metadata=meta(name, labels(name)), spec=spec)


_MEASURED = {
    # Istio's agent reads the metrics here and serves them with the sidecar's, outside of mTLS.
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(SETTINGS.metrics_port),
    "prometheus.io/path": "/metrics",
}


def _deployment(
    name: str,
    containers: list[Container],
    *,
    version: str = STABLE,
    prepare: list[Container] | None = None,
    volumes: list[Volume] | None = None,
    annotations: Mapping[str, str] | None = None,
    home_mib: int = _HOME_MIB,
) -> Deployment:
    """Without a number of replicas, which is the autoscaler's to say."""
    return Deployment(
        metadata=meta(name if version == STABLE else f"{name}-{version}", labels(name)),
        spec=DeploymentSpec(
            selector=LabelSelector(matchLabels={**selector(name), "version": version}),
            strategy=DeploymentStrategy(
                type="RollingUpdate", rollingUpdate=RollingUpdateDeployment(maxSurge="25%", maxUnavailable=0)
            ),
            template=_template(
                name,
                name,
                containers,
                prepare=prepare,
                volumes=volumes,
                labels={**labels(name), "version": version},
                annotations={**_sidecar_config(), **(annotations or {})},
                home_mib=home_mib,
            ),
        ),
    )


def _template(
    name: str,
    account: str,
    containers: list[Container],
    *,
    labels: dict[str, str],
    annotations: dict[str, str] | None = None,
    prepare: list[Container] | None = None,
    volumes: list[Volume] | None = None,
    restart_policy: str | None = None,
    home_mib: int = _HOME_MIB,
) -> PodTemplateSpec:
    for container in [*(prepare or []), *containers]:
        container.envFrom = [EnvFromSource(configMapRef=ConfigMapEnvSource(name=SETTINGS_MAP))]
        container.volumeMounts = [VolumeMount(name="home", mountPath=HOME), *(container.volumeMounts or [])]
        container.securityContext = SecurityContext(
            allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=Capabilities(drop=["ALL"])
        )
    return PodTemplateSpec(
        metadata=ObjectMeta(labels=labels, annotations=annotations),
        spec=PodSpec(
            serviceAccountName=account,
            automountServiceAccountToken=False,
            enableServiceLinks=False,  # would add variables, some named NEXUS_…, which the settings refuse
            securityContext=PodSecurityContext(
                runAsNonRoot=True,
                runAsUser=USER,
                runAsGroup=USER,
                fsGroup=USER,
                seccompProfile=SeccompProfile(type="RuntimeDefault"),
            ),
            initContainers=prepare,
            containers=containers,
            volumes=[
                Volume(name="home", emptyDir=EmptyDirVolumeSource(sizeLimit=f"{home_mib}Mi")),
                *(volumes or []),
            ],
            topologySpreadConstraints=[_spread(name, key) for key in _APART],
            restartPolicy=restart_policy,
            terminationGracePeriodSeconds=round(SETTINGS.drain_timeout) + _UNHURRIED + _GRACE,
        ),
    )


def _spread(name: str, key: str) -> TopologySpreadConstraint:
    return TopologySpreadConstraint(
        maxSkew=1,
        topologyKey=key,
        whenUnsatisfiable="ScheduleAnyway",
        labelSelector=LabelSelector(matchLabels=selector(name)),
        matchLabelKeys=["pod-template-hash"],
    )


def _sidecar_config() -> dict[str, str]:
    """The sidecar is there before the service, drains for as long, and puts up with calls that are taken back."""
    drain = f"{round(SETTINGS.drain_timeout) + _UNHURRIED}s"
    config = {
        "holdApplicationUntilProxyStarts": True,
        "terminationDrainDuration": drain,
        "runtimeValues": {name: str(value) for name, value in PATIENT.items()},
    }
    return {"proxy.istio.io/config": json.dumps(config)}


def _probe(spec: ServiceSpec, health: str, *, every: int, failures: int) -> Probe:
    action = GRPCAction(port=spec.port, service=health or None)
    return Probe(grpc=action, periodSeconds=every, timeoutSeconds=2, failureThreshold=failures)


def _leave_after(seconds: int) -> Lifecycle:
    return Lifecycle(preStop=LifecycleHandler(sleep=SleepAction(seconds=seconds)))


def _resources(*, cpu: str, memory_mib: int) -> ResourceRequirements:
    """No limit on CPU: it would only slow a service down while the node has time to spare. Of the memory that it may
    have, a pod is usually content with less than half."""
    return ResourceRequirements(
        requests={"cpu": cpu, "memory": f"{memory_mib * 5 // 12}Mi"}, limits={"memory": f"{memory_mib}Mi"}
    )


def _container_port(name: str, port: int) -> ContainerPort:
    return ContainerPort(name=name, containerPort=port, protocol="TCP")


def _database_env(secret: str) -> list[EnvVar]:
    return [_secret("NEXUS_DATABASE_URL", secret), _secret("NEXUS_DATABASE_ROLE_KEY", DATABASE, "role-key")]


def service_secrets(service: str, names: Sequence[str]) -> list[EnvVar]:
    """Settings of a service's own, out of its secret."""
    return [_secret(service_variable(service, name), f"{NAMESPACE}-{service}", name) for name in names]


def _secret(variable: str, secret: str, key: str = "url", *, optional: bool | None = None) -> EnvVar:
    reference = SecretKeySelector(name=secret, key=key, optional=optional)
    return EnvVar(name=variable, valueFrom=EnvVarSource(secretKeyRef=reference))

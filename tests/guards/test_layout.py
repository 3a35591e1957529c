"""The tree is what the architecture says: folders that name services, imports that point one way."""

import ast
import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from services.chassis import contract, pipeline
from services.chassis.spec import SERVICES, ServiceSpec, discover

ROOT = SERVICES.parent
NOT_RULES = {"spec.py", "servicer.py", "store.py", "cache.py", "jobs.py", "__init__.py"}
READS_THE_EDGE = "services.platform.backend_api"
"""It serves the OpenAPI document that the edge derives."""
EVERY_SERVICE = pytest.mark.parametrize("spec", discover().values(), ids=list(discover()))
STAGES = [
    *("observe", "deadline", "authenticate", "authorize", "limit_rate", "scope_tenant", "end_stream", "validate"),
    "once",
]


def test_calls_pass_the_stages_in_the_documented_order() -> None:
    assert [stage.__name__ for stage in pipeline.STAGES] == STAGES


@EVERY_SERVICE
def test_id_folder_and_contract_of_a_service_agree(spec: ServiceSpec) -> None:
    assert spec.folder.is_dir()
    assert spec.folder.name == spec.id.replace("-", "_")
    assert (ROOT / "proto" / "nexus" / spec.domain / spec.package_name / "v1").is_dir()
    assert services_of(spec), f"{spec.proto_package} has no gRPC service"


def test_every_contract_has_its_service_folder() -> None:
    packages = {spec.proto_package for spec in discover().values()}
    assert not [name for name, service in contract.services().items() if service.file.package not in packages]


def test_ids_ports_schemas_and_roles_are_unique() -> None:
    specs = discover().values()
    for names in (
        [spec.id for spec in specs],
        [spec.port for spec in specs],
        [spec.schema for spec in specs],
        [spec.role for spec in specs],
    ):
        assert not [name for name, count in Counter(names).items() if count > 1]


@EVERY_SERVICE
def test_a_servicer_has_every_method_of_its_contract(spec: ServiceSpec) -> None:
    servicer = importlib.import_module(f"{spec.module}.servicer")
    for service in services_of(spec):
        implementation = getattr(servicer, service.name, None)
        assert implementation is not None, f"{spec.module}.servicer has no class {service.name}"
        for method in contract.methods_of(service):
            behaviour = getattr(implementation, method.name, None)
            is_async = (
                inspect.isasyncgenfunction(behaviour)
                if method.descriptor.server_streaming
                else inspect.iscoroutinefunction(behaviour)
            )
            assert is_async, f"{service.name}.{method.name} is missing or not async in {spec.module}.servicer"


@EVERY_SERVICE
def test_a_servicer_has_no_public_method_that_no_contract_names(spec: ServiceSpec) -> None:
    servicer = importlib.import_module(f"{spec.module}.servicer")
    for service in services_of(spec):
        named = {method.name for method in service.methods}
        public = {name for name in vars(getattr(servicer, service.name)) if not name.startswith("_")}
        assert public == named


def test_the_chassis_knows_no_service_no_edge_and_no_mesh() -> None:
    assert not [
        offence
        for path in files("services/chassis")
        for offence in imports(path, "services", "edge", "mesh")
        if not is_in(offence.partition(" imports ")[2], "services.chassis")
    ]


def test_a_service_imports_no_other_service_and_no_mesh() -> None:
    offences = []
    for spec in discover().values():
        for path in spec.folder.rglob("*.py"):
            for offence in imports(path, "services", "edge", "mesh"):
                module = offence.partition(" imports ")[2]
                allowed = is_in(module, "services.chassis") or is_in(module, spec.module)
                if spec.module == READS_THE_EDGE:
                    allowed |= is_in(module, "edge")
                if not allowed:
                    offences.append(offence)
    assert not offences


def test_the_edge_knows_no_service_and_no_mesh() -> None:
    assert not [
        offence
        for path in files("edge")
        for offence in imports(path, "services", "mesh")
        if not is_in(offence.partition(" imports ")[2], "services.chassis")
    ]


def test_nothing_imports_the_tests() -> None:
    assert not [
        offence
        for folder in ("services", "edge", "mesh")
        for path in files(folder)
        for offence in imports(path, "tests")
    ]


def test_rules_can_be_read_without_grpc_or_sql() -> None:
    assert not [
        offence
        for spec in discover().values()
        for path in spec.folder.glob("*.py")
        if path.name not in NOT_RULES
        for offence in imports(path, "grpc", "asyncpg")
    ]


def services_of(spec: ServiceSpec) -> list[ServiceDescriptor]:
    return [service for service in contract.services().values() if service.file.package == spec.proto_package]


def files(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(path: Path, *packages: str) -> list[str]:
    """The imports of these packages in a file, wherever in it, as "<file> imports <module>"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from services.chassis import tokens` means services.chassis.tokens.
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not node.level, f"{path} imports relatively; say the whole name"
        else:
            continue
        found += [module for module in modules if any(is_in(module, package) for package in packages)]
    return [f"{path.relative_to(ROOT)} imports {module}" for module in found]

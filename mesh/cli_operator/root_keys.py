"""`nexus root-key`: the keys that wrap and seal everything else, in their file."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli_operator.operator import AsJson, Operator, print_json, run

if TYPE_CHECKING:
    from nexus.platform.key_service.v1.vault_pb2 import RewrapKeysResponse
    from services.chassis.config import Settings
    from services.chassis.root_keys import RootKeyFile

root_key = typer.Typer(no_args_is_help=True, help="Show, change and reseal the platform's root key.")


@root_key.command("seal")
def root_key_seal() -> None:
    """Make the root key's file if there is none, and seal one that is in clear. `nexus up` does so by itself.

    With NEXUS_ROOT_KEY_FILE and NEXUS_UNSEAL_KEY_FILE, for another machine. Example: nexus root-key seal
    """
    from services.chassis import root_keys

    settings = _settings()
    root_keys.ensure(settings)
    print(root_keys.root_key_file(settings).path)


@root_key.command("list")
def root_key_list(as_json: AsJson = False) -> None:
    """Show the versions of the root key. Example: nexus root-key list"""
    file = _file()
    keys, sealing = file.keys, file.keys.sealing
    rows = [{"version": key.version, "since": key.since.isoformat(), "seals": key == sealing} for key in keys.keys]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(row["version"], "since", row["since"], "seals" if row["seals"] else "")


@root_key.command("rotate")
def root_key_rotate(
    after: Annotated[
        float, typer.Option(min=0, help="Hours until it seals, in which its file reaches every machine.")
    ] = 0,
) -> None:
    """Make a new version of the root key, and wrap all keys anew with it. Nothing stops meanwhile.

    What was begun goes on by itself should this be interrupted. Example: nexus root-key rotate
    """
    from services.chassis.clock import now

    file = _file()
    made = file.change(lambda keys: keys.with_another(now() + timedelta(hours=after))).keys[-1]
    if after:
        print(f"Version {made.version} seals from {made.since:%Y-%m-%d %H:%M} UTC. Bring {file.path} to every machine.")
        return
    done = run(_rewrap)
    print(f"Version {made.version} seals; {done.current_root} has wrapped every key.")


@root_key.command("retire")
def root_key_retire(version: Annotated[int, typer.Argument(help="As `nexus root-key list` shows it.")]) -> None:
    """Take a version out of the file that no key is wrapped by any more, two days after another one has sealed.

    What it has sealed opens no more: backups of before, too.

    Example: nexus root-key retire 1
    """
    from mesh.cli_operator.operator import problem

    file = _file()
    file.read().without(version)
    remaining = {each.root: each.key_versions for each in run(_rewrap).roots}
    name = "local" if version == 1 else f"local:v{version}"
    if remaining.get(name):
        raise problem(f"{remaining[name]} versions of keys are still wrapped by {name}.")
    file.change(lambda keys: keys.without(version))


@root_key.command("reseal")
def root_key_reseal(
    unseal_key_file: Annotated[Path, typer.Argument(help="A file with the new unseal key: at least 16 bytes.")],
) -> None:
    """Seal the root key's file with another unseal key. Then set NEXUS_UNSEAL_KEY_FILE, before anything starts again.

    Example: nexus root-key reseal /run/secrets/unseal.key
    """
    _file().reseal(unseal_key_file)


async def _rewrap(operator: Operator) -> "RewrapKeysResponse":
    """Until nothing more can be wrapped by the root that wraps now."""
    from nexus.platform.key_service.v1.vault_pb2 import RewrapKeysRequest
    from nexus.platform.key_service.v1.vault_pb2_grpc import VaultServiceStub

    stub = operator.clients.stub(VaultServiceStub)
    while True:
        done: Any = await operator.call(stub.RewrapKeys, RewrapKeysRequest())
        if not done.rewrapped_versions:
            return done


def _file() -> "RootKeyFile":
    from services.chassis.root_keys import root_key_file

    return root_key_file(_settings())


def _settings() -> "Settings":
    from services.chassis.config import load_settings
    from services.chassis.spec import discover

    return load_settings(service_ids=discover())

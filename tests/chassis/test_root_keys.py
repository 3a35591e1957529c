"""The root keys' file: sealed, changed in one step, and read anew by whoever has it open."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from services.chassis import root_keys
from services.chassis.clock import now
from services.chassis.config import ConfigError, Settings
from services.chassis.root_keys import KEEP, RootKeyFile, RootKeys, root_key_file
from services.chassis.sealing import SealBroken, Sealer


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path / "config"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home" / "secrets").mkdir(parents=True)
    return Settings(home=tmp_path / "home")


def test_the_first_start_makes_a_sealed_file_and_an_unseal_key_outside_of_the_home(
    settings: Settings, config_folder: Path
) -> None:
    root_keys.ensure(settings)
    file, unseal_key = root_key_file(settings), config_folder / "nexus" / "unseal.key"
    (key,) = file.keys.keys
    assert len(key.key) == 32
    assert [path.stat().st_mode & 0o777 for path in (file.path, unseal_key)] == [0o600, 0o600]
    content = file.path.read_bytes()
    assert key.key not in content
    assert key.model_dump(mode="json")["key"].encode() not in content
    root_keys.ensure(settings)
    assert file.path.read_bytes() == content


def test_a_file_in_clear_from_before_is_sealed_and_opens_what_it_sealed(settings: Settings) -> None:
    path = settings.home / "secrets" / "root.key"
    path.write_bytes(bytes(range(32)))
    before = Sealer(bytes(range(32)), "user-auth")
    sealed, digest = before.seal(b"value", "column"), before.digest(b"address")
    assert Sealer(root_key_file(settings), "user-auth").open(sealed, "column") == b"value"
    root_keys.ensure(settings)
    assert bytes(range(32)) not in path.read_bytes()
    after = Sealer(root_key_file(settings), "user-auth")
    assert after.open(sealed, "column") == b"value"
    assert after.digest(b"address") == digest


def test_whoever_has_it_open_seals_with_a_new_version_and_opens_what_any_version_sealed(settings: Settings) -> None:
    root_keys.ensure(settings)
    file = root_key_file(settings)
    sealer, other = Sealer(file, "user-auth"), Sealer(RootKeyFile(file.path, _unseal_key()), "user-auth")
    first, digest = sealer.seal(b"1", "column"), sealer.digest(b"address")
    assert other.open(first, "column") == b"1"
    file.change(lambda keys: keys.with_another(now()))
    second = sealer.seal(b"2", "column")
    assert [each.open(sealed, "column") for each in (sealer, other) for sealed in (first, second)] == [b"1", b"2"] * 2
    assert other.version == 2
    assert other.digest(b"address") == digest
    renewed = other.renewed(first, "column")
    assert renewed is not None
    assert other.renewed(renewed, "column") is None
    with pytest.raises(SealBroken):
        Sealer(file.keys.keys[0].key, "user-auth").open(renewed, "column")


def test_a_new_version_seals_when_its_time_has_come(settings: Settings) -> None:
    root_keys.ensure(settings)
    file = root_key_file(settings)
    file.change(lambda keys: keys.with_another(now() + timedelta(hours=1)))
    assert Sealer(file, "user-auth").version == 1
    assert len(file.keys.keys) == 2


def test_a_version_is_kept_while_what_it_sealed_may_live() -> None:
    only = RootKeys.of(bytes(32))
    with pytest.raises(ConfigError, match="is the newest"):
        only.without(1)
    with pytest.raises(ConfigError, match="no version 7"):
        only.without(7)
    with pytest.raises(ConfigError, match="may be needed until"):
        only.with_another(now()).without(1)
    (kept,) = only.with_another(now() - KEEP).without(1).keys
    assert kept.version == 2


def test_another_unseal_key_seals_it_anew_and_the_old_one_opens_it_no_more(settings: Settings, tmp_path: Path) -> None:
    root_keys.ensure(settings)
    file = root_key_file(settings)
    keys, new = file.keys, tmp_path / "passphrase"
    new.write_text("correct horse battery staple\n")
    file.reseal(new)
    assert RootKeyFile(file.path, new).keys == keys
    assert file.keys == keys, "a service that runs goes on with what it knows"
    with pytest.raises(ConfigError, match=r"NEXUS_UNSEAL_KEY_FILE: .* is not the key that seals"):
        _ = RootKeyFile(file.path, _unseal_key()).keys


def test_what_cannot_be_opened_says_what_to_change(settings: Settings, tmp_path: Path) -> None:
    path, short = settings.home / "secrets" / "root.key", tmp_path / "short"
    short.write_text("too short\n")
    with pytest.raises(ConfigError, match=r"NEXUS_ROOT_KEY_FILE: .*root\.key cannot be read \(No such file"):
        _ = root_key_file(settings).keys
    path.write_bytes(bytes(31))
    with pytest.raises(ConfigError, match="must hold sealed root keys or 32 random bytes"):
        _ = root_key_file(settings).keys
    path.unlink()
    for unseal_key, problem in ((tmp_path / "none", "cannot be read"), (short, "at least 16 bytes")):
        with pytest.raises(ConfigError, match=f"NEXUS_UNSEAL_KEY_FILE: .* {problem}"):
            root_keys.ensure(settings.model_copy(update={"unseal_key_file": unseal_key}))
        assert not path.exists()


def test_systemd_hands_over_the_unseal_key(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "nexus-unseal-key").write_text("handed over by systemd")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    root_keys.ensure(settings)
    assert RootKeyFile(root_key_file(settings).path, credentials / "nexus-unseal-key").keys


def test_killed_while_it_changes_the_file_is_the_old_or_the_new_one(settings: Settings) -> None:
    root_keys.ensure(settings)
    file = root_key_file(settings)
    first = file.keys.keys[0]
    rotate = (
        "import sys; from pathlib import Path; from services.chassis.clock import now; "
        "from services.chassis.root_keys import RootKeyFile; file = RootKeyFile(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print('ready', flush=True)\n"
        "while True: file.change(lambda keys: keys.with_another(now()))"
    )
    seen = 1
    for delay in (0.02, 0.15, 0.3):
        command = [sys.executable, "-c", rotate, str(file.path), str(_unseal_key())]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)  # any moment will do
            process.send_signal(signal.SIGKILL)
        keys = RootKeyFile(file.path, _unseal_key()).keys.keys
        assert keys[0] == first
        assert [key.version for key in keys] == list(range(1, len(keys) + 1))
        assert len(keys) >= seen
        seen = len(keys)
    file.change(lambda keys: keys.with_another(now()))
    assert len(file.keys.keys) == seen + 1, "the lock died with its holder"


def _unseal_key() -> Path:
    return Path(os.environ["XDG_CONFIG_HOME"]) / "nexus" / "unseal.key"

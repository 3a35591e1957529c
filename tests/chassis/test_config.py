"""Settings are typed, and a name that nobody knows stops the start."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError

from services.chassis.config import ConfigError, Settings, load_service_config, load_settings, service_prefix
from services.chassis.spec import discover


class Config(BaseModel):
    password_min_length: int = Field(default=10, ge=8)
    code_lifetime: timedelta = timedelta(hours=24)


def test_an_empty_environment_is_a_development_platform() -> None:
    settings = load_settings({"PATH": "/bin"})
    assert settings.environment == "development"
    assert settings.database_url is None
    assert settings.home == Path.cwd() / ".nexus"


def test_an_unknown_name_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"Unknown setting NEXUS_DATABSE_URL\. Did you mean NEXUS_DATABASE_URL\?"):
        load_settings({"NEXUS_DATABSE_URL": "postgresql://x"})


def test_a_name_like_no_other_is_refused_without_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"^Unknown setting NEXUS_QQQQQQQQQQQQQQ\.$"):
        load_settings({"NEXUS_QQQQQQQQQQQQQQ": "1"})


def test_names_in_small_letters_are_not_ours() -> None:
    assert load_settings({"nexus_home": "/elsewhere"}).home == Path.cwd() / ".nexus"


def test_the_settings_of_services_may_stand_beside_the_platforms() -> None:
    environ = {"NEXUS_USER_AUTH_PASSWORD_MIN_LENGTH": "12", "NEXUS_PORT_OFFSET": "7"}
    assert load_settings(environ, service_ids=["user-auth"]).port(3003) == 3010
    with pytest.raises(ConfigError, match="Unknown setting NEXUS_USER_AUTH_PASSWORD_MIN_LENGTH"):
        load_settings(environ, service_ids=["session-mgr"])


def test_a_service_reads_its_own_settings_and_refuses_unknown_ones() -> None:
    environ = {"NEXUS_USER_AUTH_PASSWORD_MIN_LENGTH": "12", "NEXUS_PORT_OFFSET": "7", "NEXUS_TOKEN_MGR_X": "1"}
    assert load_service_config(Config, "user-auth", environ).password_min_length == 12
    with pytest.raises(ConfigError, match=r"Did you mean NEXUS_USER_AUTH_CODE_LIFETIME\?"):
        load_service_config(Config, "user-auth", {"NEXUS_USER_AUTH_CODE_LIFETIM": "PT1H"})


def test_a_service_is_not_stopped_by_the_settings_of_one_whose_name_begins_alike() -> None:
    for spec in discover().values():
        for other in discover().values():
            if other is not spec and service_prefix(other.id).startswith(service_prefix(spec.id)):
                for name in other.config.model_fields:
                    variables = {service_prefix(other.id) + name.upper(): "1"}
                    load_service_config(spec.config, spec.id, variables, discover())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXUS_PORT_OFFSET", "many"),
        ("NEXUS_PORT_OFFSET", "-1"),
        ("NEXUS_ENVIRONMENT", "prod"),
        ("NEXUS_TRACE_RATIO", "1.5"),
        ("NEXUS_RATE_READ", "5/fortnight"),
        ("NEXUS_RATE_READ", "0/second"),
        ("NEXUS_RATE_READ", "10/second\n"),
        ("NEXUS_DATABASE_POOL_SIZE", "0"),
        ("NEXUS_LOG_LEVEL", "loud"),
        ("NEXUS_STRICT", "perhaps"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        load_settings({name: value})


def test_a_service_setting_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^NEXUS_USER_AUTH_PASSWORD_MIN_LENGTH: .*greater than or equal to 8"):
        load_service_config(Config, "user-auth", {"NEXUS_USER_AUTH_PASSWORD_MIN_LENGTH": "4"})


def test_an_empty_value_means_the_default() -> None:
    assert load_settings({"NEXUS_DATABASE_URL": "", "NEXUS_HOST": ""}).host == "127.0.0.1"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().host = "0.0.0.0"  # noqa: S104


def test_secrets_are_not_printed() -> None:
    settings = load_settings({"NEXUS_DATABASE_URL": "postgresql://nexus:hunter2@db/nexus"})
    assert "hunter2" not in repr(settings)
    assert isinstance(settings.database_url, SecretStr)


def test_a_rate_is_calls_in_seconds() -> None:
    settings = load_settings({"NEXUS_RATE_CREDENTIALS": "30/minute", "NEXUS_RATE_READ": "5/hour"})
    assert settings.rate("CREDENTIALS") == (30, 60)
    assert settings.rate("READ") == (5, 3600)


def test_sockets_move_where_the_path_fits_a_unix_socket(tmp_path: Path) -> None:
    near = Settings(home=Path("/tmp/nexus"))  # noqa: S108
    far, other = (Settings(home=tmp_path / (letter * 120)) for letter in "ab")
    assert near.run_dir == near.home / "run"
    assert len(str(far.run_dir)) < 90
    assert far.run_dir != other.run_dir


def test_a_home_in_the_users_folder_is_found() -> None:
    assert load_settings({"NEXUS_HOME": "~/nexus"}).home == Path.home() / "nexus"


class WithNames(BaseModel):
    """A service's configuration with a setting of many values."""

    names: dict[str, int] = {}


def test_a_setting_of_many_values_is_json() -> None:
    name = "NEXUS_SHOP_NAMES"
    assert load_service_config(WithNames, "shop", {name: '{"ann": 1}'}).names == {"ann": 1}
    for bad in ("ann=1", "[1]", '{"ann": "x"}', "1"):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            load_service_config(WithNames, "shop", {name: bad})

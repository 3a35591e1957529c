from datetime import timedelta

from pydantic import BaseModel, Field, SecretStr, model_validator

from services.chassis.spec import Outside, ServiceSpec


class Config(BaseModel):
    vault_addr: Outside[str | None] = None
    """A Vault server ("https://vault:8200") whose transit engine wraps key material instead of the platform's root
    key. Material wrapped before is moved over."""
    vault_token: SecretStr | None = None
    """A token that may update transit/encrypt, decrypt and rewrap of the key, and read transit/keys."""
    vault_key: str = "nexus"
    """The name of the transit key."""
    vault_mount: str = "transit"
    destruction_delay: timedelta = timedelta(days=30)
    """How long a scheduled destruction waits when the caller does not say."""
    minimum_destruction_delay: timedelta = timedelta(days=7)
    sealing_key_period: timedelta = Field(default=timedelta(days=90), ge=timedelta(hours=1))
    """How often a key with which a service seals gets a new version, unless the service made it with another period."""
    keep_uses: timedelta = timedelta(days=400)
    """How long it is remembered who used a key for what."""

    @model_validator(mode="after")
    def _vault_is_whole(self) -> "Config":
        if (self.vault_addr is None) != (self.vault_token is None):
            raise ValueError("vault_addr and vault_token belong together")
        return self


SERVICE = ServiceSpec(id="key-service", port=3080, config=Config)

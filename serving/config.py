"""Configuration of a server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .auth import Keys

__all__ = ["ServerConfig", "ServerLimits"]


@dataclass(frozen=True)
class ServerLimits:
    """Limits of one request, and numbers of running and queued runs."""

    body_bytes: int = 4_000_000
    prompt_characters: int = 400_000  # sum over all messages and inputs
    tokens: int = 4_096  # largest max_tokens of a request
    choices: int = 8
    seconds: float = 600.0  # per run, without its time in the queue
    running: int = 16
    waiting: int = 64
    event_bytes: int = 8_000_000  # of one run's events in memory; the oldest are dropped


@dataclass(frozen=True)
class ServerConfig:
    """Address, access and limits of a server."""

    host: str = "127.0.0.1"
    port: int = 8765
    keys: Keys | None = None  # None: no authentication
    hosts: tuple[str, ...] = ()  # accepted host names besides addresses and `localhost`
    limits: ServerLimits = field(default_factory=ServerLimits)
    grace: float = 30.0  # seconds for runs to finish after a stop request
    allow_upload: bool = False  # clients may run changed recipes
    reports: Path | None = None  # folder of comparison reports
    response_days: float = 30.0  # after which a stored response is deleted
    response_bytes: float = 2e9  # of all stored responses
    log_content: bool = False  # replies and errors of runs are logged

    @property
    def tenants(self) -> Sequence[str | None]:
        """The tenants; only None if the server has no keys."""
        return [None] if self.keys is None else sorted(set(self.keys.tenants.values()))

    @property
    def shows_prompts(self) -> bool:
        """Whether clients see recipes and prompts: users of this machine do, tenants only if they may change them."""
        return self.keys is None or self.allow_upload

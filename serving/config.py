"""What a server is told when it starts."""

from dataclasses import dataclass, field

from .auth import Keys

__all__ = ["Limits", "ServerConfig"]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many runs are at work and in line."""

    body_bytes: int = 4_000_000
    prompt_characters: int = 400_000  # of all messages and inputs together
    tokens: int = 4_096  # that a request may ask for as max_tokens
    choices: int = 8
    seconds: float = 600.0  # of one run, without the time it waits in line
    running: int = 16
    waiting: int = 64


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, who may use it, and how much."""

    host: str = "127.0.0.1"
    port: int = 8765
    keys: Keys | None = None  # None: whoever reaches the server may use it
    hosts: tuple[str, ...] = ()  # names beside addresses and `localhost` that clients may call this server by
    limits: Limits = field(default_factory=Limits)
    grace: float = 30.0  # seconds that runs have to finish when the server is asked to stop

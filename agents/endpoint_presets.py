"""Presets of endpoints: `ollama/llama3.2` instead of an address, a key's variable and a model's name.

A preset names the address, the variable of the key, and where a server's API differs from OpenAI's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

__all__ = ["KEY_HOSTS", "PRESETS", "Preset", "expand_preset", "preset_of"]

NOTHING: Mapping[str, str] = MappingProxyType({})
BEYOND = ("top_k", "min_p", "repetition_penalty", "min_new_tokens", "ignore_eos")  # settings outside OpenAI's API


@dataclass(frozen=True)
class Preset:
    """One kind of server."""

    base_url: str
    key: str | None = None  # the variable of its key; None: it needs none
    renamed: Mapping[str, str] = field(default_factory=lambda: NOTHING)  # names of parameters at this server
    ignored: tuple[str, ...] = ()  # settings that it drops without an error
    ignored_hint: str = "leave it out"
    hub: str | None = None  # names with this prefix are models of the hub, which the server does not have

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""


PRESETS: Mapping[str, Preset] = {
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", hub="gpt-oss"),
    "anthropic": Preset("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", ignored=("seed", *BEYOND)),
    "gemini": Preset("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "mistral": Preset("https://api.mistral.ai/v1", "MISTRAL_API_KEY", {"seed": "random_seed"}),
    "deepseek": Preset("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "ollama": Preset("http://localhost:11434/v1", ignored=BEYOND, ignored_hint="set it in the model's Modelfile"),
    "lmstudio": Preset(
        "http://localhost:1234/v1",
        renamed={"repetition_penalty": "repeat_penalty"},
        ignored=("min_p", "min_new_tokens", "ignore_eos"),
        ignored_hint="set it in LM Studio",
    ),
    "llamacpp": Preset(
        "http://localhost:8080/v1",
        renamed={"repetition_penalty": "repeat_penalty"},
        ignored=("min_new_tokens",),
    ),
    "vllm": Preset("http://localhost:8000/v1"),
    "sglang": Preset("http://localhost:30000/v1"),
    "cachegraph": Preset("http://localhost:8765/v1"),
}

# Variables whose value may go to one host only.
KEY_HOSTS: Mapping[str, str] = {preset.key: preset.host for preset in PRESETS.values() if preset.key is not None}


def preset_of(source: object) -> tuple[Preset, str] | None:
    """Return the preset that a model's source names, and the model there; None for any other source."""
    if not isinstance(source, str):
        return None
    name, _, model = source.partition("/")
    preset = PRESETS.get(name)
    if preset is None or not model or (preset.hub is not None and model.startswith(preset.hub)):
        return None
    return preset, model


def expand_preset(entry: Any) -> Any:
    """Return an entry of `models` with the preset's address, model and key filled in; any other entry unchanged.

    What the entry says itself stays. With another `base_url` no key is filled in, because it would go to that host.
    An entry with a `revision` is a model of the hub.
    """
    given: dict[str, Any] = {"source": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or given.get("revision") is not None:
        return entry
    found = preset_of(given.get("source"))
    if found is None:
        return entry
    preset, model = found
    headers = given.get("headers")
    has_own_key = isinstance(headers, Mapping) and any(str(name).lower() == "authorization" for name in headers)
    needs_key = preset.key is not None and "base_url" not in given and not has_own_key
    key = {"api_key_env": preset.key} if needs_key else {}
    return {"base_url": preset.base_url, "model": model, **key, **given}

"""Checkpoints of a training: written atomically, verified by hash when read, free of pickles.

RUN/step-000200/   weights.safetensors, optimizer.safetensors, state.json with their hashes
RUN/best/          the best fuser so far, as a fuser's folder
RUN/log.jsonl      one line per step and per dev evaluation
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cachegraph.errors import FuserError, library_errors

__all__ = ["CheckpointState", "load", "newest", "restore", "save", "tensors_of"]

KEPT = 2
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class CheckpointState:
    """Progress of a training. `recipe` hashes everything that decides the loss curve."""

    recipe: str
    step: int = 0
    judged_step: int | None = None  # the last step with a dev evaluation; None: before the first one
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_score: float | None = None
    best_logprob: float | None = None
    top_score: float | None = None  # the highest so far, of the best checkpoint or not
    without_progress: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    seconds: float = 0.0

    __pydantic_config__ = ConfigDict(extra="forbid")

    def improves(self, score: float, noise: float, logprob: float) -> bool:
        """Whether a checkpoint replaces the best: of those whose score is within `noise` of the highest, the one with
        the likeliest answers is best. `logprob` is in nats."""
        if self.best_score is None or self.best_logprob is None or self.top_score is None:
            return True
        floor = max(self.top_score, score) - noise
        return score >= floor and (self.best_score < floor or logprob > self.best_logprob)


_state = TypeAdapter(CheckpointState)


def save(run: Path, state: CheckpointState, module: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write a checkpoint and keep only the one before it. Raises FuserError if it can't be written."""
    target = run / f"step-{state.step:06d}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        for half in run.glob(".step-*"):  # left by a killed process
            shutil.rmtree(half, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=".step-", dir=run))
        try:
            for name, tensors in zip((WEIGHTS, OPTIMIZER), tensors_of(module, optimizer), strict=True):
                save_file(tensors, fresh / name)
            hashes = {name: _sha256(fresh / name) for name in (WEIGHTS, OPTIMIZER)}
            (fresh / STATE).write_text(json.dumps({**asdict(state), "sha256": hashes}, indent=1), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise FuserError(
            f"the checkpoint of step {state.step} can't be written to {str(run)!r} ({error}); make room and resume"
        ) from error
    for old in _checkpoints(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(run: Path) -> tuple[Path, CheckpointState] | None:
    """The newest undamaged checkpoint, or None."""
    for folder in _checkpoints(run):
        try:
            fields: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
            hashes = fields.pop("sha256")
            if all(_sha256(folder / name) == hashes[name] for name in (WEIGHTS, OPTIMIZER)):
                return folder, _state.validate_python(fields)
        except Exception:  # noqa: S112  # any damage: an older checkpoint may be whole
            continue
    return None


def restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and optimizer state. Raises FuserError if they belong to another network."""
    other = f"the checkpoint {str(folder)!r} is not of this fuser"
    with library_errors(lambda why: FuserError(f"{other} ({why}); start over with --restart")):
        load(module, optimizer, load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER))


def tensors_of(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights by name, and AdamW's state by parameter and name, in the shapes of their parameters, on the CPU."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return weights, _flat(module, optimizer)


def load(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
) -> None:
    """Load what `tensors_of` returned, shapes included. Raises RuntimeError or KeyError if it is of another network."""
    module.load_state_dict(weights)
    _fill(module, optimizer, moments)


def _checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("step-*"), reverse=True) if run.is_dir() else []


def _flat(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as tensors, keyed by parameter and name: `down.weight/exp_avg`."""
    return {
        f"{parameter}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for parameter, weights in module.named_parameters()
        for name, value in optimizer.state.get(weights, {}).items()
    }


def _fill(module: nn.Module, optimizer: torch.optim.Optimizer, flat: dict[str, torch.Tensor]) -> None:
    """Load by name, since the optimizer's own order follows its groups. Raises KeyError for an unknown name."""
    order = {weights: place for place, weights in enumerate(w for g in optimizer.param_groups for w in g["params"])}
    places = {parameter: order[weights] for parameter, weights in module.named_parameters()}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in flat.items():
        parameter, _, name = key.rpartition("/")
        if parameter not in places:
            raise KeyError(key)
        state.setdefault(places[parameter], {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

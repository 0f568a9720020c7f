"""The finished fuser: the best checkpoint's weights, with a card that describes the training."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cachegraph.channels.fusers.files.atomic_folder import replaced_folder
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.joint_folder import PARTS, is_pair
from cachegraph.channels.fusers.files.load import load_ours
from cachegraph.channels.fusers.files.trained_rows import TrainedRows, trained_rows
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.graph.data.dataset import FILES

from .checkpoint import CheckpointState
from .data.dataset import TrainingExample
from .spec import TrainSpec

__all__ = ["all_trained_rows", "finish_card", "publish_fuser"]


def finish_card(
    spec: TrainSpec, state: CheckpointState, rows: Sequence[TrainingExample], start: Card | None = None
) -> dict[str, object]:
    """The card fields that are known after the training. `start` is the card of the weights that it started from."""
    trained_on = f"{_titles(spec)}: {len(rows)} rows, {state.step} steps, {state.prompt_tokens} prompt tokens"
    if start is not None:
        trained_on += f"; started from weights trained on {start.trained_on or 'unknown data'}"
    if spec.control != "none":
        trained_on += f"; control {spec.control!r}: not for use"
    return {
        "trained_on": trained_on,
        "trained_rows": all_trained_rows(rows, start),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def all_trained_rows(rows: Sequence[TrainingExample], start: Card | None) -> TrainedRows | None:
    """The hashes of a training's examples, and of those that its start was trained on."""
    own, earlier = trained_rows([row.inputs for row in rows]), None if start is None else start.trained_rows
    return own if own is None or earlier is None else own.after(earlier)


def publish_fuser(best: Path, folder: Path, card: dict[str, object]) -> None:
    """Copy the fuser in `best`, or both networks of a pair, to `folder`, and add these fields to the cards."""
    if not is_pair(best):
        _write(best, folder, card)
        return
    with replaced_folder(folder, frozenset(PARTS)) as fresh:
        for part in PARTS:
            _write(best / part, fresh / part, card)


def _write(best: Path, folder: Path, card: dict[str, object]) -> None:
    fuser = load_ours(best)
    save_fuser(replace(fuser, card=fuser.card.model_copy(update=card)), folder)


def _titles(spec: TrainSpec) -> str:
    """The data sources; of files only the names, since their folders are private."""
    return ", ".join(Path(source).name if source.endswith(tuple(FILES)) else source for source in spec.data.sources)

"""Give a fuser that was trained before cards kept them the rows of its training."""

from pathlib import Path

from accelerate import Accelerator

from cachegraph.channels.fusers.files.card import change_card
from cachegraph.channels.fusers.files.joint_folder import fuser_parts
from cachegraph.channels.fusers.files.trained_rows import TrainedRows, trained_rows
from cachegraph.errors import InputError

from .callbacks import NullCallback, TrainingCallback
from .load import load_training
from .train import open_training

__all__ = ["note_rows"]


def note_rows(
    fuser: Path, recipe: Path, data_folder: Path | None = None, callback: TrainingCallback | None = None
) -> TrainedRows:
    """Write into the fuser's card, or both cards of a pair, which rows this training recipe learns from.

    Loads the models, since the rows that do not fit them were left out. Raises what `train` raises, and ConfigError
    where the card can't be written.
    """
    spec, folder = load_training(recipe), recipe.resolve().parent
    with open_training(spec, folder, data_folder or folder, callback or NullCallback(), Accelerator()) as found:
        rows = trained_rows([row.inputs for row in found.rows])
    if rows is None:
        raise InputError(f"the rows of {str(recipe)!r} hold no text; check the columns of its data")
    for part in fuser_parts(fuser):
        change_card(part, lambda card: card.model_copy(update={"trained_rows": rows}))
    return rows

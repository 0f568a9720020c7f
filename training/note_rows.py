"""Add the hashes of its training examples to the card of a fuser that was trained before cards had them."""

from pathlib import Path

from accelerate import Accelerator

from cachegraph.channels.fusers.files.card import change_card
from cachegraph.channels.fusers.files.joint_folder import fuser_parts
from cachegraph.channels.fusers.files.trained_rows import TrainedRows
from cachegraph.errors import InputError

from .callbacks import NullCallback, TrainingCallback
from .load import load_training
from .publish import all_trained_rows
from .train import open_training

__all__ = ["note_rows"]


def note_rows(
    fuser: Path, recipe: Path, data_folder: Path | None = None, callback: TrainingCallback | None = None
) -> TrainedRows:
    """Write the hashes of this recipe's training examples to the fuser's card, or to both cards of a pair.

    Loads the models, since training leaves out examples that do not fit them. Raises what `train` raises,
    InputError if the rows hold no text, and ConfigError if a card can't be written.
    """
    spec, folder = load_training(recipe), recipe.resolve().parent
    with open_training(spec, folder, data_folder or folder, callback or NullCallback(), Accelerator()) as found:
        rows = all_trained_rows(found.rows, found.learner.start_card)
    if rows is None:
        raise InputError(f"the rows of {str(recipe)!r} hold no text; check the columns of its data")
    for part in fuser_parts(fuser):
        change_card(part, lambda card: card.model_copy(update={"trained_rows": rows}))
    return rows

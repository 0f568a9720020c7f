"""Write the model card of a fuser for the Hugging Face hub: a README.md made from card.json alone. No torch."""

import re
from typing import Any

from cachegraph.common.printable import printable_line

from ..files.card import Card
from ..files.card_text import card_words

__all__ = ["model_card"]

# The hub's licence ids that fusers are likely to use; the hub refuses a README with an unknown id.
# fmt: off
LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0", "unlicense",
    "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "gemma", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3",
}
# fmt: on
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def model_card(card: Card, name: str, parameters: int) -> str:
    """Format the README of the fuser that recipes call `name`."""
    return "\n".join(
        [
            "---",
            _metadata(card),
            "---",
            "",
            f"# {_code(card.sharer.name)} → {_code(card.receiver.name)}",
            "",
            _what(card),
            "",
            "## Use",
            "",
            "On an edge of a recipe, from an agent of the first model to one of the second:",
            "",
            "```yaml",
            f"channel: cache\nfuser: {name}",
            "```",
            "",
            *_table(("", ""), [(title, _code(said)) for title, said in card_words(card, parameters).items()]),
            "",
            "## Metrics",
            "",
            *(
                _table(("metric", "value"), [(_code(k), f"{v:.6g}") for k, v in card.metrics.items()])
                or ["None stated."]
            ),
            "",
            "## Licence",
            "",
            f"{_code(card.licence) if card.licence else 'None stated'}. Both base models have licences of their own.",
            "",
        ]
    )


def _metadata(card: Card) -> str:
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {}
    licence = (card.licence or "").lower()
    if licence in LICENCES:
        fields["license"] = licence
    elif licence:
        fields |= {"license": "other", "license_name": card.licence}
    bases = [end.name for end in (card.receiver, card.sharer) if HUB_ID.fullmatch(end.name)]
    if bases:  # the hub refuses invalid ids
        fields["base_model"] = bases
    tags = ["cachegraph", "kv-cache", "cache-to-cache", card.kind]
    return ModelCardData(library_name="cachegraph", tags=tags, **fields).to_yaml().strip()


def _what(card: Card) -> str:
    if card.kind == "prefix":
        return "A trained prefix for cachegraph: a control of comparisons, KV entries of the receiver alone."
    does = (
        "corrects the receiver's KV cache with what the sharer understood of the same text"
        if card.kind == "fuse"
        else "makes a receiver's KV cache out of the sharer's, of text that only the sharer has read"
    )
    return f"A fuser for cachegraph: it {does}, with no words in between."


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in (titles, ("---",) * len(titles), *rows)]


def _code(text: str) -> str:
    """Escape untrusted text, so that it can't end its table cell or code span."""
    return f"`{printable_line(text).replace('`', chr(39)).replace('|', '/') or ' '}`"

"""Format a card as text for the terminal and the hub. No torch."""

from .card import Card, Evidence

__all__ = ["card_words"]


def _depth(card: Card) -> str | None:
    """The depth to which a fuser reads its sharer; None for all layers."""
    read, layers = {*card.sharer_layers, *(sharer for _, sharer in card.layer_map)}, card.sharer.geometry.layers
    depth = max((sharer + 1 for sharer in read), default=0)
    return f"the first {depth} of {layers} layers" if 0 < depth < layers else None


def _task(evidence: Evidence) -> str:
    return f"{evidence.task} text" + (f", carrying the {evidence.carries}" if evidence.carries else "")


def card_words(card: Card, parameters: int) -> dict[str, str]:
    """Everything on the card except licence and metrics, by title; missing fields are left out."""
    words: dict[str, str | None] = {}
    for role, end in (("receiver", card.receiver), ("sharer", card.sharer)):
        words[role] = end.name
        words[f"{role} weights"] = end.identity or "unknown"
        words[f"{role} cache"] = str(end.geometry)
        words[f"{role} vocabulary"] = f"{end.vocab:,}" if end.vocab else None
    layers = ", ".join(f"{receiver} ← {sharer}" for receiver, sharer in card.layer_map)
    if card.sharer_layers:
        layers = f"all ← {', '.join(map(str, card.sharer_layers))}"
    words |= {
        "kind": card.kind,
        "architecture": card.architecture,
        "sizes": ", ".join(f"{key} {value}" for key, value in card.params.items()),
        "parameters": f"{parameters:,}",
        "sharer depth": _depth(card),
        "layers": layers,
        "alignment": card.alignment,
        "sharer reads": card.reads,
        "keys": card.rope,
        "scope": card.scope and f"{card.scope}; only an edge that names it uses it",
        "trained on": card.trained_on,
        "evidence": "; ".join(f"{_task(evidence)}: {evidence}" for evidence in card.evidence)
        or "none: no edge picks it by itself",
        "training rows": f"{card.trained_rows.rows:,}, kept as hashes" if card.trained_rows else None,
        "created": card.created,
        "sha256": card.sha256,
    }
    return {title: value for title, value in words.items() if value}

"""Predicted seconds and bytes of a run, from its shape and the measured constants. No torch.

One device computes everything one after another; agents of one level and model decode in one batch. Transfers within a
process are part of the measured cost of an edge; with a bandwidth, the bytes of every edge take time besides.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from .constants import EdgeConstants, ModelConstants
from .shape import Shape, ShapeEdge, TurnShape

__all__ = ["CostSetting", "Prediction", "predict"]

BLOCK = 128  # tokens of a block that the engine finds again as a prefix


@dataclass(frozen=True)
class CostSetting:
    """The constants, and what is assumed beside them.

    `edges` are by (sharer's model key, receiver's model key, fuser). `bandwidth` is in bytes a second; None: edges stay
    in the memory of one process. `reuse`: the engine finds prefixes that it has read before, in whole blocks; `smooth`:
    the mean over lengths instead, for curves without the steps of blocks. `replies` are tokens by agent that take the
    place of the recipe's limits.
    """

    models: Mapping[str, ModelConstants]
    edges: Mapping[tuple[str, str, str | None], EdgeConstants]
    bandwidth: float | None = None
    reuse: bool = True
    smooth: bool = False
    replies: Mapping[str, int] = field(default_factory=dict)


class Prediction(BaseModel):
    """Seconds of one run by part, tokens, and bytes over all edges. `unknown` names edges without constants."""

    prefill: float = 0.0
    move: float = 0.0
    transfer: float = 0.0
    decode: float = 0.0
    prefilled: float = 0.0
    generated: float = 0.0
    bytes: float = 0.0
    unknown: list[str] = []

    @property
    def seconds(self) -> float:
        return self.prefill + self.move + self.transfer + self.decode


def predict(shape: Shape, setting: CostSetting, length: float | None = None) -> Prediction:
    """The cost of one run. `length` is the document's, in characters; by default the shape's own."""
    return _Predictor(shape, setting, shape.length if length is None else length).run()


class _Predictor:
    def __init__(self, shape: Shape, setting: CostSetting, length: float):
        self.shape, self.setting, self.length = shape, setting, length
        self.found = Prediction()
        self.decoding: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        self.openings: dict[tuple[str, str, str], float] = {}  # prefixes that have been read, in tokens

    def run(self) -> Prediction:
        for turn in self.shape.turns:
            if turn.model is not None and turn.model in self.setting.models:
                self._take(turn, self.setting.models[turn.model])
        for (_, model), replies in self.decoding.items():
            step = self.setting.models[model].step
            for number, reply in enumerate(sorted(replies)):
                before = sorted(replies)[number - 1] if number else 0
                self.found.decode += (reply - before) * step.at(len(replies) - number)
        return self.found

    def _take(self, turn: TurnShape, model: ModelConstants) -> None:
        incoming = [edge for edge in self.shape.edges if edge.receiver == turn.name]
        outgoing = [edge for edge in self.shape.edges if edge.sender == turn.name]
        reply = self._reply(turn)
        writes = reply > 0 and (turn.name in self.shape.outputs or any(edge.needs_text for edge in outgoing))
        if not writes and not any(edge.needs_cache for edge in outgoing):  # it hands over words, and computes nothing
            self._receive(incoming, 0.0, turn, computes=False)
            return
        own = self._prompt(turn, model)
        past = self._receive(incoming, own, turn, computes=True)
        text = sum(self._payload(edge, model) for edge in incoming if edge.form is None or edge.both)
        partial = self._partial(outgoing) if not writes else None
        saved = self._reused(incoming, turn, model) if past == 0 else 0.0
        tokens = own + text - saved
        seconds = model.prefill_behind(tokens, past + saved)
        if partial is not None:
            seconds *= min(partial.sharer_prefill.at(tokens) / model.prefill.at(tokens), 1.0)
        self.found.prefill += seconds
        self.found.prefilled += tokens
        if writes and turn.model is not None:
            self.decoding[turn.level, turn.model].append(reply)
            self.found.generated += reply

    def _receive(self, incoming: list[ShapeEdge], own: float, turn: TurnShape, *, computes: bool) -> float:
        """Add the cost of edges; return the positions that are grafted in front of the prompt."""
        past = 0.0
        for edge in incoming:
            if edge.form is None or edge.both:
                self._send(self._characters(edge))
            if edge.form is None or not computes:
                continue
            constants = self._constants(edge, turn)
            if constants is None:
                self.found.unknown.append(edge.name)
                continue
            positions = own if edge.form == "fuse" else self._positions(edge)
            self.found.move += constants.move.at(positions)
            self._send(constants.bytes_per_position * positions)
            if edge.form == "fuse":
                if not edge.needs_cache:  # the sharer reads the receiver's prompt; else its own turn has read its own
                    self.found.prefill += constants.sharer_prefill.at(positions)
                    self.found.prefilled += positions
            else:
                past += positions
        return past

    def _send(self, size: float) -> None:
        self.found.bytes += size
        if self.setting.bandwidth is not None:
            self.found.transfer += size / self.setting.bandwidth

    def _reply(self, turn: TurnShape) -> int:
        return self.setting.replies.get(turn.name, turn.reply)

    def _prompt(self, turn: TurnShape, model: ModelConstants) -> float:
        """Tokens of a prompt without what edges bring."""
        tokens = model.tokens(turn.own + turn.documents * self.length)
        return tokens + ((model.system_tokens if turn.system is not None else model.chat_tokens) if turn.chat else 0)

    def _characters(self, edge: ShapeEdge) -> float:
        """The length of the text that an edge carries: a reply, or what an agent that only reads has read."""
        sender = self.shape.turn(edge.sender)
        if sender.reply == 0:
            return self.shape.handed_over(sender, self.length)
        model = self.setting.models.get(sender.model or "")
        return self._reply(sender) * (model.characters_per_token if model is not None else 4.0)

    def _payload(self, edge: ShapeEdge, receiver: ModelConstants) -> float:
        """The receiver's tokens of the text that an edge carries."""
        return receiver.tokens(self._characters(edge))

    def _positions(self, edge: ShapeEdge) -> float:
        """The positions of the sender's cache that an edge grafts."""
        sender = self.shape.turn(edge.sender)
        model = self.setting.models.get(sender.model or "")
        if model is None:
            return 0.0
        prompt = self._prompt(sender, model) if edge.carries in ("prompt", "all") else 0.0
        return prompt + (self._reply(sender) if edge.carries in ("reply", "all") else 0)

    def _constants(self, edge: ShapeEdge, turn: TurnShape) -> EdgeConstants | None:
        sharer = self.shape.turn(edge.sender).model
        if sharer is None or turn.model is None:
            return None
        return self.setting.edges.get((sharer, turn.model, edge.fuser))

    def _partial(self, outgoing: list[ShapeEdge]) -> EdgeConstants | None:
        """The constants of the only cache edge out of an agent that doesn't write: it may need fewer layers."""
        cached = [edge for edge in outgoing if edge.needs_cache]
        if len({edge.fuser for edge in cached}) != 1 or cached[0].form == "graft":  # a graft needs all layers
            return None
        return self._constants(cached[0], self.shape.turn(cached[0].receiver))

    def _reused(self, incoming: list[ShapeEdge], turn: TurnShape, model: ModelConstants) -> float:
        """Tokens in whole blocks that an earlier receiver of the same text has read."""
        texts = [edge for edge in incoming if edge.form is None]
        if not (self.setting.reuse and texts and turn.model is not None):
            return 0.0
        edge = texts[0]
        key = (turn.model, edge.opening, edge.sender)
        shared = model.tokens(len(edge.opening)) + self._payload(edge, model)
        seen = self.openings.get(key)
        self.openings[key] = shared
        if seen is None:
            return 0.0
        return max(shared - BLOCK / 2, 0.0) if self.setting.smooth else shared // BLOCK * BLOCK

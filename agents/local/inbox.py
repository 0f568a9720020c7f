"""Inbox: the payloads delivered for one turn, by sender, and the report of each edge."""

from dataclasses import dataclass, field
from typing import NamedTuple

from cachegraph.channels.cache.edge_plan import FusePlan, GraftPlan, JointPlan
from cachegraph.channels.choose_channel import fall_back
from cachegraph.channels.payload import EdgeReport

from ..base import Delivery, Turn
from ..prompt.filters import Value

__all__ = ["FuseDelivery", "GraftDelivery", "Inbox"]


class GraftDelivery(NamedTuple):
    """A delivery whose cache is grafted into a slot of the prompt."""

    delivery: Delivery
    plan: GraftPlan

    @property
    def sender(self) -> str:
        return self.delivery.route.edge.sender


class FuseDelivery(NamedTuple):
    """A delivery whose sharer corrects the receiver's own KV."""

    delivery: Delivery
    plan: FusePlan

    @property
    def sender(self) -> str:
        return self.delivery.route.edge.sender


@dataclass(eq=False)
class Inbox:
    """The deliveries of one turn. An edge whose cache does not fit falls back to text here, for this turn only."""

    agent: str
    turn: Turn
    _reports: dict[str, EdgeReport] = field(default_factory=dict)
    _fallen: set[str] = field(default_factory=set)

    def report(self, delivery: Delivery) -> EdgeReport:
        """The report of this edge, filled in during the turn."""
        edge, route = delivery.route.edge, delivery.route
        if edge.sender not in self._reports:
            self._reports[edge.sender] = EdgeReport.of(route)
        return self._reports[edge.sender]

    def grafts(self) -> list[GraftDelivery]:
        """The deliveries to graft. An empty reply has no KV: its slot stays empty, as over text."""
        found = []
        for delivery in self._caching():
            plan = delivery.route.plan
            plan = plan.graft if isinstance(plan, JointPlan) else plan
            empty = isinstance(plan, GraftPlan) and plan.carries == "reply" and delivery.payload.text == ""
            if isinstance(plan, GraftPlan) and not empty:
                found.append(GraftDelivery(delivery, plan))
        return found

    def fuses(self) -> list[FuseDelivery]:
        """The deliveries to fuse."""
        found = []
        for delivery in self._caching():
            plan = delivery.route.plan
            plan = plan.fuse if isinstance(plan, JointPlan) else plan
            if isinstance(plan, FusePlan):
                found.append(FuseDelivery(delivery, plan))
        return found

    def fall_back(self, delivery: Delivery, reason: str) -> None:
        """Use this edge's text instead of its cache. Raises ChannelError if the recipe forbids it."""
        route = fall_back(delivery.route.edge, reason)
        report = self.report(delivery)
        report.channel_used, report.fallback_reason = "text", route.fallback_reason
        report.positions_fused = report.positions_grafted = 0
        self._fallen.add(delivery.route.edge.sender)

    async def texts(self) -> dict[str, Value]:
        """By sender, the text of its reply with its data; an empty text if only the cache travels."""
        texts = {}
        for delivery in self.turn.deliveries:
            sender, report = delivery.route.edge.sender, self.report(delivery)
            reads = report.channel_used != "cache"
            text = await delivery.payload.read() if reads else ""
            texts[sender] = Value(text, delivery.payload.turn or sender, delivery.payload.data)
            report.bytes = len(texts[sender].encode())
        return texts

    def _caching(self) -> list[Delivery]:
        return [delivery for delivery in self.turn.deliveries if delivery.route.edge.sender not in self._fallen]

"""What the edges brought for one turn, by sender, and what became of it."""

from dataclasses import dataclass, field

from cachegraph.channels.cache.edge_plan import FusePlan, GraftPlan, JointPlan
from cachegraph.channels.payload import EdgeReport
from cachegraph.channels.routing import fall_back

from ..base import Delivery, Turn
from ..prompt.filters import Value

__all__ = ["Inbox"]


@dataclass(eq=False)
class Inbox:
    """The deliveries of one turn. An edge whose cache turns out not to fit falls back here, for this turn alone."""

    agent: str
    turn: Turn
    _reports: dict[str, EdgeReport] = field(default_factory=dict)
    _fallen: set[str] = field(default_factory=set)

    def report(self, delivery: Delivery) -> EdgeReport:
        """What this edge did; filled in as the turn goes on."""
        edge, route = delivery.route.edge, delivery.route
        if edge.sender not in self._reports:
            self._reports[edge.sender] = EdgeReport.of(route)
        return self._reports[edge.sender]

    def grafts(self) -> list[tuple[Delivery, GraftPlan]]:
        """Edges that bring KV for the prompt's slots. An empty reply brings none: its slot is empty, as over text."""
        parts = (
            (each, plan.graft if isinstance(plan := each.route.plan, JointPlan) else plan) for each in self._caching()
        )
        return [
            (each, plan)
            for each, plan in parts
            if isinstance(plan, GraftPlan) and not (plan.carries == "reply" and each.payload.text == "")
        ]

    def fuses(self) -> list[tuple[Delivery, FusePlan]]:
        """Edges whose sharer corrects this agent's own KV."""
        parts = (
            (each, plan.fuse if isinstance(plan := each.route.plan, JointPlan) else plan) for each in self._caching()
        )
        return [(each, plan) for each, plan in parts if isinstance(plan, FusePlan)]

    def fall_back(self, delivery: Delivery, reason: str) -> None:
        """Read this edge's text instead. Raises ChannelError where the recipe forbids it."""
        route = fall_back(delivery.route.edge, reason)
        report = self.report(delivery)
        report.channel_used, report.fallback_reason = "text", route.fallback_reason
        report.positions_fused = report.positions_grafted = 0
        self._fallen.add(delivery.route.edge.sender)

    async def texts(self) -> dict[str, Value]:
        """The reply of every sender whose text is read, with its data; an empty text where only the cache goes over."""
        texts = {}
        for delivery in self.turn.deliveries:
            sender, report = delivery.route.edge.sender, self.report(delivery)
            reads = report.channel_used != "cache"
            text = await delivery.payload.read() if reads else ""
            texts[sender] = Value(text, delivery.payload.turn or sender, delivery.payload.data)
            report.bytes = len(texts[sender].encode())
        return texts

    def _caching(self) -> list[Delivery]:
        return [each for each in self.turn.deliveries if each.route.edge.sender not in self._fallen]

"""Lines and tables of `cachegraph plan`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cachegraph.common.human import format_bytes

if TYPE_CHECKING:
    from cachegraph.evaluation.cost.break_even import BreakEven
    from cachegraph.evaluation.cost.check import CheckedRun
    from cachegraph.evaluation.cost.constants import EdgeConstants, ModelConstants
    from cachegraph.evaluation.cost.predict import Prediction
    from cachegraph.evaluation.cost.shape import Shape, ShapeEdge

__all__ = ["break_even_table", "check_table", "constants_table", "plan_lines", "prediction_table"]

AT = 512  # tokens at which a prefill's speed is shown


def plan_lines(name: str, shape: "Shape", swapped: bool) -> list[str]:
    """What is known before models load: agents by level, edges, and the longest input."""
    edges = len(shape.edges)
    lines = [f"{name}: {len(shape.turns)} agents, {edges} edge{'' if edges == 1 else 's'}"]
    if swapped:
        lines.append("all its edges are text edges; this is the plan with cache on every edge")
    levels = sorted({turn.level for turn in shape.turns})
    lines += [f"{level + 1}. {', '.join(turn.name for turn in shape.turns if turn.level == level)}" for level in levels]
    lines += [f"{edge.name}: {_edge(edge)}" for edge in shape.edges]
    if shape.document is not None:
        lines.append(f"longest input: {shape.document}, {shape.length:,.0f} characters")
    return lines


def _edge(edge: "ShapeEdge") -> str:
    if edge.form is None:
        return "text" + (f" ({edge.why_text})" if edge.why_text else "")
    carries = "" if edge.form == "fuse" else f" the sender's {edge.carries if edge.carries != 'all' else 'whole row'}"
    by = f", by {edge.fuser}" if edge.fuser else ""
    return f"cache, {edge.form}s{carries}{by}"


def constants_table(
    models: "Mapping[str, ModelConstants]", edges: "Mapping[tuple[str, str, str | None], EdgeConstants]", machine: str
) -> Table:
    """The measured constants."""
    columns = ["", "prefill\ntokens/s", "decode\ntokens/s", "of 4\nrows", "bytes per\nposition"]
    table = _table(f"measured on {machine}", columns)
    for model in models.values():
        size = min(AT, model.prefill.longest)
        table.add_row(
            Text(f"{model.name}, {model.dtype}"),
            f"{model.prefill.rate(size):,.0f} at {size:,.0f}",
            f"{1 / model.step.at(1):,.0f}",
            f"{4 / model.step.at(4):,.0f}",
            f"{model.bytes_per_position:,.0f}",
        )
    for (sharer, receiver, fuser), edge in edges.items():
        by = f" by {fuser}" if fuser else ""
        what = Text(f"{edge.form} {sharer} → {receiver}{by}, positions/s")
        speed = f"{edge.move.rate(edge.move.longest):,.0f}"
        table.add_row(what, speed, "", "", f"{edge.bytes_per_position:,.0f}")
    return table


def prediction_table(
    predictions: "Mapping[str, Prediction]", length: float, shape: "Shape", models: "Mapping[str, ModelConstants]"
) -> Table:
    """Predicted seconds of one run, by part."""
    reader = next((turn.model for turn in shape.turns if turn.documents and turn.model in models), None)
    tokens = f", {shape.document} of {models[reader].tokens(length):,.0f} tokens" if reader is not None else ""
    parts = ["prefill", "edges", "wire", "decode", "all, s", "read", "written", "sent"]
    table = _table(f"predicted, one run{tokens}", ["over", *parts])
    for name, prediction in predictions.items():
        seconds = (prediction.prefill, prediction.move, prediction.transfer, prediction.decode, prediction.seconds)
        table.add_row(
            Text(name),
            *(f"{value:.2f}" for value in seconds),
            f"{prediction.prefilled:,.0f}",
            f"{prediction.generated:,.0f}",
            format_bytes(prediction.bytes),
        )
    unknown = sorted({name for prediction in predictions.values() for name in prediction.unknown})
    if unknown:
        table.caption, table.caption_justify = Text(f"without the cost of {', '.join(unknown)}"), "left"
    return table


def break_even_table(break_evens: "Sequence[BreakEven]", measured: float) -> Table:
    """From which length a cache beats text, and the least bandwidth, by edge and number of receivers.

    `measured` is the longest measured prompt, in tokens.
    """
    columns = ["edge", "receivers", "faster", "cache, s", "text, s", "bandwidth"]
    table = _table("one sender, copies of one receiver: where a cache is faster than text", columns)
    beyond = f", extrapolated above {measured:,.0f}"
    for break_even in break_evens:
        least = "-" if break_even.bandwidth is None else f"{format_bytes(break_even.bandwidth)}/s"
        seconds = (f"{break_even.cache:.2f}", f"{break_even.text:.2f}")
        table.add_row(
            Text(f"{break_even.edge} ({break_even.form})"),
            str(break_even.receivers),
            _window(break_even),
            *seconds,
            least,
        )
    table.caption = f"in tokens of the document{beyond}; seconds and bandwidth at the length of the prediction"
    table.caption_justify = "left"
    return table


def _window(break_even: "BreakEven") -> str:
    from cachegraph.evaluation.cost.break_even import LONGEST, SHORTEST

    if break_even.shortest is None or break_even.longest is None:
        return "never"
    start, end = break_even.shortest > SHORTEST, break_even.longest < LONGEST
    if start and end:
        return f"{break_even.shortest:,} to {break_even.longest:,}"
    return f"from {break_even.shortest:,}" if start else f"up to {break_even.longest:,}" if end else "always"


def check_table(checked: "Sequence[CheckedRun]") -> Table:
    """Predictions beside real runs."""
    columns = ["over", "predicted, s", "measured, s (range)", "ratio", "tokens", "measured", "sent", "measured"]
    table = _table(f"checked: {checked[0].runs} runs each, with the lengths of their replies", columns)
    for run in checked:
        table.add_row(
            Text(run.over),
            f"{run.predicted:.2f}",
            f"{run.measured:.2f} ({run.fastest:.2f} to {run.slowest:.2f})",
            f"{run.ratio:.2f}",
            f"{run.predicted_tokens:,.0f}",
            f"{run.measured_tokens:,.0f}",
            format_bytes(run.predicted_bytes),
            format_bytes(run.measured_bytes),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    return table

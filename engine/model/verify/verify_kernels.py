"""Finds out whether kernels compute what a model does, and which kernels it then decodes with."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import DecodeKernels, KernelBackend, Unsupported, backend
from ...kv.cache import LayerKV, RowCache
from ..devices import home_of
from ..forward import Row, forward
from ..model_config import ModelInfo
from .comparisons import Comparisons, OutputMismatch
from .probe import NEAR_PIECE, narrow_windows, read_rows, relative_difference

__all__ = ["AttentionCalls", "backend_of", "verify_kernels"]

_SAME_QUERY = 0.01  # of a query's norm: how far it may differ between two positions
_LOUDER = 256.0  # by how much the head's input is scaled, to see whether logits are a plain product


@dataclass(eq=False)
class AttentionCalls:
    """What a model passes to its attention."""

    capped: bool = False
    sinks: bool = False
    scales: dict[int, float] = field(default_factory=dict)  # by layer
    norms: dict[int, Tensor] = field(default_factory=dict)  # by layer: (heads, tokens) of the first pass's queries

    def watch(
        self, layer: int, query: Tensor, new: LayerKV, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> None:
        """Note one call of `attention.Watch`: `query` is (1, heads, tokens, head_dim), `new` has kv_heads."""
        self.capped |= softcap is not None
        self.sinks |= sinks is not None
        self.scales[layer] = scale
        if layer not in self.norms:
            self.norms[layer] = query[0].float().norm(dim=-1).cpu()


def backend_of(network: Any) -> KernelBackend:
    """The backend for the device that a model is on."""
    return backend(home_of(network).type)


def verify_kernels(
    network: Any, info: ModelInfo, comparisons: Comparisons, calls: AttentionCalls
) -> tuple[DecodeKernels | None, str | None]:
    """The kernels that compute what the model does, or why there are none."""
    kernels = backend_of(network)
    if reason := kernels.why_not(network):
        return None, reason
    if info.by_length is not None:
        return None, "its RoPE depends on the length of a row"
    if info.states:
        return None, "it has recurrent layers"
    if info.alone:
        return None, "it attends by itself"
    try:
        if kernels.bypasses_model and (reason := _why_not_plain(network, info, comparisons, calls)):
            raise Unsupported(reason)
        decoder = kernels.create_decoder(network, info)
        _compare(network, info, comparisons, decoder)
    except torch.OutOfMemoryError:
        raise
    except Unsupported as error:
        return None, str(error)
    except Exception as error:  # a boundary: whatever a compiler or a driver says, torch decodes without it
        mismatch = isinstance(error, OutputMismatch)
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = "the kernels compute something else" if mismatch else first_line
        if not kernels.bypasses_model:
            logging.getLogger("cachegraph").warning("torch alone decodes %s: %s", info.model_type, reason)
        return None, reason
    return decoder.settled(), None


def _compare(network: Any, info: ModelInfo, comparisons: Comparisons, decoder: DecodeKernels) -> None:
    """Raises OutputMismatch."""
    limit = max(comparisons.limit, decoder.rounding_error)
    for many in sorted({False, decoder.reads_prompts}):
        short = not many and decoder.max_short_prompt > 1
        with narrow_windows(network, info) as narrow, decoder.with_windows(narrow) as used:

            def step(
                rows: list[Row], short: bool = short, used: DecodeKernels = used, info: ModelInfo = narrow
            ) -> list[Tensor | None]:
                return forward(network, info, [replace(row, short=short) for row in rows], used)

            results = read_rows(comparisons.rows, step)
        comparisons.compare_logits(", by kernels for matrices" if many else ", by kernels", results, limit)


def _why_not_plain(network: Any, info: ModelInfo, comparisons: Comparisons, calls: AttentionCalls) -> str | None:
    """What kernels that bypass the model's own code would miss in its attention and its output head."""
    if calls.capped:
        return "it caps the scores of its attention"
    if calls.sinks:
        return "its attention has sinks"
    scale = network.get_decoder().layers[0].self_attn.scaling
    if any(abs(layer_scale - scale) > 1e-6 * abs(scale) for layer_scale in calls.scales.values()):
        return "its layers scale their scores by different factors"
    # In the first pass the near row's first tokens come first, then the other row's, then those of the far rows.
    rows = comparisons.rows
    for norms in calls.norms.values():
        first, begin = norms[:, :NEAR_PIECE], NEAR_PIECE + rows[1].pieces[0]
        for row in rows[2:]:
            row_norms = norms[:, begin : begin + NEAR_PIECE]
            if ((row_norms - first).norm() / first.norm()).item() > _SAME_QUERY:
                return "it scales queries by their position"
            begin += row.pieces[0]
    return None if _has_plain_head(network, info, rows[0].ids) else "its logits are not a plain product"


def _has_plain_head(network: Any, info: ModelInfo, ids: list[int]) -> bool:
    """Whether logits are the last norm's output times the head's weights, at any scale."""
    factor = 1.0
    hook = network.get_decoder().norm.register_forward_hook(lambda _module, _inputs, out: out * factor)
    try:
        (plain,) = forward(network, info, [Row(ids, RowCache())])
        factor = _LOUDER
        (loud,) = forward(network, info, [Row(ids, RowCache())])
    finally:
        hook.remove()
    assert plain is not None
    assert loud is not None
    return relative_difference([loud[0]], [plain[0] * _LOUDER]) < 1e-3

"""What a model must show before it is trusted: what we compute in our ways is what it computes by itself.

Checks compute in float32 whatever the model's dtype. In 16 bits two correct ways differ by so much (values of SmolLM2
in bfloat16 by a cosine of 0.8 to 0.9 at other positions) that a wrong one could hide behind it. What the rows are that
are compared says probe.py. Whatever a model raises meanwhile is a reason not to trust it, never an error.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cachegraph.errors import ModelError

from ..kernels import DecodeKernels, KernelBackend, Unsupported, backend
from ..kv.cache import LayerKV, RowCache
from ..kv.rope import Rotation
from ..kv.rope_by_length import ByLength, watch_lengths
from .attention import NAME, watching
from .devices import home_of
from .forward import Row, cache_argument, forward
from .hf_fallback import FallbackCache, fallback_forward
from .model_config import ModelInfo
from .probe import NEAR_PIECE, ProbeRow, Results, apart, generated, narrow_windows, own_logits, probe_rows, read_rows
from .quiet_transformers import quiet_transformers
from .recurrent_modules import recurrent_modules, split_by_rows
from .verdict import OutputComparison, Verdict

__all__ = ["VerifiedModel", "check", "in_float32", "restore"]

# Differences as a share of what is expected.
_EXACT = 0.001  # of logits, where both ways compute in float32
_ROUNDED = 0.05  # where weights are kept in fewer bits, and each way may round what meets them
_SAME_QUERY = 0.01  # of a query's norm, at two places
_LOUDER = 256.0  # how many times what the head reads is taken, to see whether it is a plain product
_HALF = (torch.bfloat16, torch.float16)


class VerifiedModel(NamedTuple):
    """What a model may be trusted with."""

    verdict: Verdict
    info: ModelInfo  # with the shapes of what it was seen to cache
    rotation: Rotation
    decoder: DecodeKernels | None  # the kernels, if there are any and they compute what the model does

    @property
    def why_no_cache(self) -> str | None:
        return self.verdict.why_no_cache


def check(network: Any, info: ModelInfo) -> VerifiedModel:
    """Switch the model to row-wise attention and find out what it may be trusted with; or leave it as it is.

    Raises ModelError where it computes something else from its cache than from a whole prompt, so that no way is right.
    """
    info = replace(info, by_length=_watch_lengths(network))
    with torch.inference_mode(), in_float32(network):
        checking = _Checking(network, info)
        why_no_cache = info.why_no_cache or checking.packed()
        rotation = Rotation(network, checking.info)
        decoder: DecodeKernels | None = None
        if why_no_cache is not None:
            checking.native()
            rotation.settle((), why_no_cache)
            why_no_kernels: str | None = "its rows run one by one"
        else:
            checking.moved_keys(rotation)
            decoder, why_no_kernels = checking.kernels()
    return VerifiedModel(checking.verdict(why_no_cache, rotation, why_no_kernels), checking.info, rotation, decoder)


def restore(network: Any, info: ModelInfo, verdict: Verdict) -> VerifiedModel:
    """The same from a verdict on the same weights, versions and machine; nothing is computed."""
    info = replace(
        info,
        shapes=verdict.shapes,
        expands=verdict.expands,
        reversed=verdict.reversed,
        alone=verdict.alone,
        by_length=_watch_lengths(network),
        state_shapes=verdict.state_shapes,
    )
    rotation = Rotation(network, info)
    rotation.settle(verdict.rotations, verdict.why_no_rotation, verdict.reach)
    decoder: DecodeKernels | None = None
    if verdict.why_no_cache is None:
        if not verdict.alone:
            _set_attention(network, NAME)
        split_by_rows(network, verdict.by_rows)
        if verdict.why_no_kernels is None:
            decoder = _backend(network).create_decoder(network, info).settled()
    return VerifiedModel(verdict, info, rotation, decoder)


class _Unlike(Exception):
    """Raised where a comparison fails."""


@dataclass(eq=False)
class _Seen:
    """What a model hands to its attention."""

    capped: bool = False
    sinks: bool = False
    scales: dict[int, float] = field(default_factory=dict)  # by layer
    norms: dict[int, Tensor] = field(default_factory=dict)  # by layer: (heads, tokens) of the first pass's queries

    def watch(
        self, layer: int, query: Tensor, new: LayerKV, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> None:
        self.capped |= softcap is not None
        self.sinks |= sinks is not None
        self.scales[layer] = scale
        if layer not in self.norms:
            self.norms[layer] = query[0].float().norm(dim=-1).cpu()


class _Checking:
    """The check of one model; `compared` grows by what was compared."""

    def __init__(self, network: Any, info: ModelInfo):
        self.compared: list[OutputComparison] = []
        self.info = info
        self._network = network
        self._rows = probe_rows(network.config, info)
        self._expected: list[list[Tensor]] = []
        self._read: Results | None = None
        self._seen = _Seen()
        self._by_rows: tuple[tuple[str, bool], ...] = ()
        plain = all(type(p.data) is Tensor and p.is_floating_point() for p in network.parameters())
        self._limit = _EXACT if plain else _ROUNDED

    def verdict(self, why_no_cache: str | None, rotation: Rotation, why_no_kernels: str | None) -> Verdict:
        return Verdict(
            why_no_cache,
            rotation.why_not,
            why_no_kernels,
            self.info.shapes,
            self.info.expands,
            self.info.reversed,
            rotation.reach,
            rotation.found if rotation.why_not is None else (),
            tuple(self.compared),
            self.info.state_shapes,
            self.info.alone,
            self._by_rows,
        )

    def packed(self) -> str | None:
        """Hold the packed forward pass to the model's own; why it computes something else, or None.

        Where our attention is not the model's, its own attends to the entries of one row a pass.
        """
        network, own = self._network, self._network.config._attn_implementation
        before = list(self.compared)
        if self.info.states:
            found = recurrent_modules(network, self.info, self._rows[0].ids)
            if isinstance(found, str):
                return found
            self._by_rows = found
            split_by_rows(network, found)
        info = self.info
        for tried in (info, replace(info, expands=True), replace(info, alone=True)):
            self.compared = list(before)
            try:
                self._packed(tried)
                return None
            except torch.OutOfMemoryError:  # says nothing of the model
                raise
            except Exception:  # a boundary: whatever a foreign model raises, it does not do what we take it to do
                _set_attention(network, own)
        return f"{self.info.model_type!r} models compute attention in a way of their own"

    def _packed(self, info: ModelInfo) -> None:
        network = self._network
        with narrow_windows(network, info) as narrow:
            self._expected = self._expected or own_logits(network, self._rows, one_by_one=info.by_length is not None)
            if not info.alone:
                _set_attention(network, NAME)
            with watching(self._seen.watch):
                read = read_rows(self._rows, lambda rows: forward(network, narrow, rows))
            self._compare_logits("", read, self._limit)
            if info.expands and _has_rope_in_values(read):
                info, narrow = replace(info, reversed=True), replace(narrow, reversed=True)
                read = read_rows(self._rows, lambda rows: forward(network, narrow, rows))
                self._compare_logits(", its cache turned over", read, self._limit)
        self.info, self._read = info.measured(read.caches[0].tail()), read

    def native(self) -> None:
        """Hold a row that goes on from transformers' own cache to the reading of all of it at once.

        Where those differ, as with models that see a choice of what they have read, `generate` is what counts. Raises
        ModelError where that gives something else, too, or transformers itself can't compute the model.
        """
        kind, first = self.info.model_type, self._rows[0]
        near = replace(first, pieces=(len(first.ids) - 2, 1, 1))
        what = "a prompt and two tokens behind it, by transformers' cache"
        try:
            (expected,) = own_logits(self._network, [near], one_by_one=True)
            error = apart(self._by_cache(near), expected)
            if error > _ROUNDED:
                what += ", and by its generate"
                written, expected = generated(self._network, near)
                error = apart(self._by_cache(written), expected)
            self._note(what, error, _ROUNDED)
        except torch.OutOfMemoryError:
            raise
        except _Unlike as error:
            raise ModelError(
                f"models of type {kind!r} can't run here: transformers computes something else from its cache than "
                "from a whole text; take another model"
            ) from error
        except Exception as error:  # a boundary, as above
            raise ModelError(
                f"models of type {kind!r} can't run here: reading a text piece by piece fails in transformers "
                f"({type(error).__name__}: {_first_line(error)}); take another model"
            ) from error

    def _by_cache(self, row: ProbeRow) -> list[Tensor]:
        network = self._network
        return read_rows([row], lambda rows: fallback_forward(network, rows), FallbackCache).logits[0]

    def moved_keys(self, rotation: Rotation) -> None:
        """Hold moved keys to those that the model computes far out.

        Where they differ, sets `why_not`; or `reach`, if they do so only behind a border.
        """
        assert self._read is not None
        near, far = self._read.caches[0].tail(), [cache.tail() for cache in self._read.caches[2:]]
        for index, (row, there) in enumerate(zip(self._rows[2:], far, strict=True)):
            error, limit = rotation.compare(near, there, rounded=self._limit > _EXACT)
            self.compared.append(OutputComparison(f"keys moved to position {row.start}", error, limit))
            if rotation.why_not is not None:
                if index and row.border is not None:
                    rotation.why_not, rotation.reach = None, row.border
                return

    def kernels(self) -> "tuple[DecodeKernels | None, str | None]":
        """The kernels that compute what the model does, or why there are none."""
        network, info, kernels = self._network, self.info, _backend(self._network)
        if reason := kernels.why_not(network):
            return None, reason
        if info.by_length is not None:
            return None, "its RoPE depends on the length of a row"
        if info.states:
            return None, "it has recurrent layers"
        if info.alone:
            return None, "it attends by itself"
        try:
            if kernels.bypasses_model and (reason := self._why_not_plain()):
                raise Unsupported(reason)
            decoder = kernels.create_decoder(network, info)
            self._compare_kernels(decoder)
        except torch.OutOfMemoryError:
            raise
        except Unsupported as error:
            return None, str(error)
        except Exception as error:  # a boundary: whatever a compiler or a driver says, torch decodes without it
            reason = "the kernels compute something else" if isinstance(error, _Unlike) else _first_line(error)
            if not kernels.bypasses_model:
                logging.getLogger("cachegraph").warning("torch alone decodes %s: %s", info.model_type, reason)
            return None, reason
        return decoder.settled(), None

    def _why_not_plain(self) -> str | None:
        """What kernels that bypass the model's own code would miss in its attention and its output head."""
        seen = self._seen
        if seen.capped:
            return "it caps the scores of its attention"
        if seen.sinks:
            return "its attention has sinks"
        scale = self._network.get_decoder().layers[0].self_attn.scaling
        if any(abs(each - scale) > 1e-6 * abs(scale) for each in seen.scales.values()):
            return "its layers scale their scores by different factors"
        # In the first pass the near row's first tokens stand in front, and far ones behind them and the other row's.
        for norms in seen.norms.values():
            first, begin = norms[:, :NEAR_PIECE], NEAR_PIECE + self._rows[1].pieces[0]
            for row in self._rows[2:]:
                there = norms[:, begin : begin + NEAR_PIECE]
                if ((there - first).norm() / first.norm()).item() > _SAME_QUERY:
                    return "it scales queries by their position"
                begin += row.pieces[0]
        plain = _has_plain_head(self._network, self.info, self._rows[0].ids)
        return None if plain else "its logits are no plain product"

    def _compare_kernels(self, decoder: DecodeKernels) -> None:
        network, limit = self._network, max(self._limit, decoder.rounding_error)
        for many in sorted({False, decoder.reads_prompts}):
            short = not many and decoder.max_short_prompt > 1
            with narrow_windows(network, self.info) as info, decoder.with_windows(info) as used:

                def step(
                    rows: list[Row], short: bool = short, used: DecodeKernels = used, info: ModelInfo = info
                ) -> list[Tensor | None]:
                    return forward(network, info, [replace(row, short=short) for row in rows], used)

                read = read_rows(self._rows, step)
            self._compare_logits(", by kernels for matrices" if many else ", by kernels", read, limit)

    def _compare_logits(self, how: str, read: Results, limit: float) -> None:
        """Raises _Unlike where one comparison fails."""
        for index, row in enumerate(self._rows):
            error = apart(read.logits[index], self._expected[index])
            self._note(_words(row, index) + how, error, limit)

    def _note(self, what: str, error: float, limit: float) -> None:
        self.compared.append(made := OutputComparison(what, error, limit))
        if not made.passed:
            raise _Unlike(what)


def _words(row: ProbeRow, index: int) -> str:
    if index > 1:
        return f"a row at position {row.start}, and a token behind it"
    return "a shorter row beside it" if index else "a prompt in two pieces, and two tokens behind it"


def _has_rope_in_values(read: Results) -> bool:
    """Whether of the two things that the model caches the second depends on the position, and the first does not."""
    if len(read.caches) < 3:
        return False
    here, there = (cache.tail().layers[0] for cache in (read.caches[0], read.caches[2]))
    first, second = ([apart(*([each.flatten()] for each in pair))] for pair in zip(here, there, strict=True))
    return first[0] <= _EXACT < second[0]


def _backend(network: Any) -> KernelBackend:
    return backend(home_of(network).type)


def _has_plain_head(network: Any, info: ModelInfo, ids: list[int]) -> bool:
    """Whether logits are the product of the last norm's results and the head's weights, however large they are."""
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
    return apart([loud[0]], [plain[0] * _LOUDER]) < 1e-3


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """While this is open, 16-bit weights are widened as they are used, one module at a time; vectors all at once.

    Activations and KV follow. Quantised weights stay as they are, and what their layers compute in.
    """
    narrow: dict[nn.Parameter, tuple[nn.Module, Tensor]] = {}  # by whom, and what it was

    def widen(module: nn.Module, given: tuple[Any, ...]) -> Any:
        if type(module) is nn.Embedding:  # large, and exact as it is
            return None
        widened = [weight for weight in _weights_of(module) if _is_narrow(weight)]
        for weight in widened:
            narrow[weight] = module, weight.data
            weight.data = weight.data.float()
        if not widened:
            return None
        # Some models cast what they hand to a part to the dtype that its weights had a moment before.
        return tuple(each.float() if isinstance(each, Tensor) and each.dtype in _HALF else each for each in given)

    def restore(module: nn.Module, _: Any, out: Any) -> Any:
        for weight in _weights_of(module):
            if weight in narrow and narrow[weight][0] is module:
                weight.data = narrow.pop(weight)[1]
        return out.float() if type(module) is nn.Embedding and out is not None else out

    # Some modules look at their parts' norms for what dtype to give them.
    vectors = [(weight, weight.data) for weight in network.parameters() if weight.ndim < 2 and _is_narrow(weight)]
    for weight, data in vectors:
        weight.data = data.float()
    hooks = []
    for module in network.modules():
        if next(_weights_of(module), None) is not None:
            hooks += [
                module.register_forward_pre_hook(widen),
                module.register_forward_hook(restore, always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in vectors:
            weight.data = data


def _is_narrow(weight: nn.Parameter) -> bool:
    return type(weight.data) is Tensor and weight.dtype in _HALF


def _weights_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """What a module computes with itself. Recurrent ones take weights of parts, such as their convolution, directly."""
    yield from module.parameters(recurse=False)
    parts = list(module.children())
    if any(isinstance(part, nn.Conv1d) for part in parts):
        for part in parts:
            yield from part.parameters(recurse=False)


def _watch_lengths(network: Any) -> ByLength | None:
    try:
        return watch_lengths(network, cache_argument(network))
    except TypeError:  # it takes no cache
        return None


def _set_attention(network: Any, name: str) -> None:
    with quiet_transformers():
        network.set_attn_implementation(name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

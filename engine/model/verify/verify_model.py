"""Finds out what a model may be trusted with: the engine must compute from its cache what the model itself computes.

Comparisons are made in float32 whatever the model's dtype. In 16 bits two correct ways differ so much (values of
SmolLM2 in bfloat16 by a cosine of 0.8 to 0.9 at other positions) that a wrong one could hide. probe.py describes the
rows that are compared. Whatever a model raises is a reason not to trust it, never an error.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ...kernels import DecodeKernels
from ...kv.rope import Rotation
from ...kv.rope_by_length import ByLength, watch_lengths
from ..attention import NAME, watching
from ..forward import cache_argument, forward
from ..hf_fallback import FallbackCache, fallback_forward
from ..model_config import ModelInfo
from ..quiet_transformers import quiet_transformers
from ..recurrent_modules import recurrent_modules, split_by_rows
from .comparisons import EXACT, ROUNDED, Comparisons, OutputMismatch
from .in_float32 import in_float32
from .probe import (
    ProbeRow,
    Results,
    generate_logits,
    narrow_windows,
    own_logits,
    probe_rows,
    read_rows,
    relative_difference,
)
from .verdict import OutputComparison, Verdict
from .verify_kernels import AttentionCalls, backend_of, verify_kernels

__all__ = ["VerifiedModel", "restore_verified", "verify_model"]


class VerifiedModel(NamedTuple):
    """What a model may be trusted with."""

    verdict: Verdict
    info: ModelInfo  # with the shapes that it was seen to cache
    rotation: Rotation
    decoder: DecodeKernels | None  # the kernels, if there are any and they compute what the model does

    @property
    def why_no_cache(self) -> str | None:
        return self.verdict.why_no_cache


def verify_model(network: Any, info: ModelInfo) -> VerifiedModel:
    """Switch the model to row-wise attention and find out what it may be trusted with; or leave it as it is.

    Raises ModelError if it computes something else from its cache than from a whole prompt, so that no way is right.
    """
    info = replace(info, by_length=_watch_lengths(network))
    with torch.inference_mode(), in_float32(network):
        verification = _Verification(network, info)
        why_no_cache = info.why_no_cache or verification.packed()
        rotation = Rotation(network, verification.info)
        decoder: DecodeKernels | None = None
        if why_no_cache is not None:
            verification.fallback()
            rotation.settle((), why_no_cache)
            why_no_kernels: str | None = "its rows run one by one"
        else:
            verification.moved_keys(rotation)
            decoder, why_no_kernels = verify_kernels(
                network, verification.info, verification.comparisons, verification.calls
            )
    verdict = verification.verdict(why_no_cache, rotation, why_no_kernels)
    return VerifiedModel(verdict, verification.info, rotation, decoder)


def restore_verified(network: Any, info: ModelInfo, verdict: Verdict) -> VerifiedModel:
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
            decoder = backend_of(network).create_decoder(network, info).settled()
    return VerifiedModel(verdict, info, rotation, decoder)


class _Verification:
    """The verification of one model. `info` and `comparisons` are filled in as it proceeds."""

    def __init__(self, network: Any, info: ModelInfo):
        exact = all(
            type(parameter.data) is Tensor and parameter.is_floating_point() for parameter in network.parameters()
        )
        self.info = info
        self.comparisons = Comparisons(probe_rows(network.config, info), exact)
        self.calls = AttentionCalls()
        self._network = network
        self._results: Results | None = None
        self._by_rows: tuple[tuple[str, bool], ...] = ()

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
            tuple(self.comparisons.made),
            self.info.state_shapes,
            self.info.alone,
            self._by_rows,
        )

    def packed(self) -> str | None:
        """Compare the packed forward pass with the model's own; why it computes something else, or None.

        If our attention does not compute the model's, the model attends by itself, to the entries of one row a pass.
        """
        network, own = self._network, self._network.config._attn_implementation
        before = list(self.comparisons.made)
        if self.info.states:
            found = recurrent_modules(network, self.info, self.comparisons.rows[0].ids)
            if isinstance(found, str):
                return found
            self._by_rows = found
            split_by_rows(network, found)
        info = self.info
        for tried in (info, replace(info, expands=True), replace(info, alone=True)):
            self.comparisons.made = list(before)
            try:
                self._packed(tried)
                return None
            except torch.OutOfMemoryError:  # says nothing about the model
                raise
            except Exception:  # a boundary: whatever a foreign model raises, it does not compute what we assume
                _set_attention(network, own)
        return f"{self.info.model_type!r} models compute attention in a way of their own"

    def _packed(self, info: ModelInfo) -> None:
        network, comparisons = self._network, self.comparisons
        rows = comparisons.rows
        with narrow_windows(network, info) as narrow:
            one_by_one = info.by_length is not None
            comparisons.expected = comparisons.expected or own_logits(network, rows, one_by_one=one_by_one)
            if not info.alone:
                _set_attention(network, NAME)
            with watching(self.calls.watch):
                results = read_rows(rows, lambda some: forward(network, narrow, some))
            comparisons.compare_logits("", results, comparisons.limit)
            if info.expands and _has_rope_in_values(results):
                info, narrow = replace(info, reversed=True), replace(narrow, reversed=True)
                results = read_rows(rows, lambda some: forward(network, narrow, some))
                comparisons.compare_logits(", its cache turned over", results, comparisons.limit)
        self.info, self._results = info.measured(results.caches[0].tail()), results

    def fallback(self) -> None:
        """Compare a row that continues from transformers' own cache with one that is read at once.

        If they differ, as with models that see a part of what they have read, `generate` is what counts. Raises
        ModelError if that gives something else, too, or if transformers itself can't compute the model.
        """
        kind, first = self.info.model_type, self.comparisons.rows[0]
        near = replace(first, pieces=(len(first.ids) - 2, 1, 1))
        what = "a prompt and two tokens behind it, by transformers' cache"
        try:
            (expected,) = own_logits(self._network, [near], one_by_one=True)
            if any(bool(logits.isnan().any()) for logits in expected):
                raise ModelError(
                    f"this {kind!r} model computes NaN: its weights are damaged or too large; fetch it again, or take "
                    "another model"
                )
            error = relative_difference(self._by_own_cache(near), expected)
            if error > ROUNDED:
                what += ", and by its generate"
                written, expected = generate_logits(self._network, near)
                error = relative_difference(self._by_own_cache(written), expected)
            self.comparisons.note(what, error, ROUNDED)
        except (torch.OutOfMemoryError, ModelError):
            raise
        except OutputMismatch as error:
            raise ModelError(
                f"models of type {kind!r} can't run here: transformers computes something else from its cache than "
                "from a whole text; take another model"
            ) from error
        except Exception as error:  # a boundary, as above
            raise ModelError(
                f"models of type {kind!r} can't run here: reading a text piece by piece fails in transformers "
                f"({type(error).__name__}: {_first_line(error)}); take another model"
            ) from error

    def _by_own_cache(self, row: ProbeRow) -> list[Tensor]:
        network = self._network
        return read_rows([row], lambda rows: fallback_forward(network, rows), FallbackCache).logits[0]

    def moved_keys(self, rotation: Rotation) -> None:
        """Compare moved keys with those that the model computes far out.

        Where they differ, sets `why_not` of the rotation; or `reach`, if they do so only behind a border.
        """
        assert self._results is not None
        rows, rounded = self.comparisons.rows, self.comparisons.limit > EXACT
        near, far = self._results.caches[0].tail(), [cache.tail() for cache in self._results.caches[2:]]
        for index, (row, far_kv) in enumerate(zip(rows[2:], far, strict=True)):
            error, limit = rotation.compare(near, far_kv, rounded=rounded)
            self.comparisons.made.append(OutputComparison(f"keys moved to position {row.start}", error, limit))
            if rotation.why_not is not None:
                if index and row.border is not None:
                    rotation.why_not, rotation.reach = None, row.border
                return


def _has_rope_in_values(results: Results) -> bool:
    """Whether the second of the two tensors that the model caches depends on the position, and the first does not."""
    if len(results.caches) < 3:
        return False
    near_layer, far_layer = (cache.tail().layers[0] for cache in (results.caches[0], results.caches[2]))
    first, second = (
        relative_difference([near.flatten()], [far.flatten()]) for near, far in zip(near_layer, far_layer, strict=True)
    )
    return first <= EXACT < second


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

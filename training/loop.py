"""The training loop: losses, gradients, optimizer steps, dev evaluations and checkpoints."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import FuserError

from . import checkpoint
from .callbacks import TrainingCallback, TrainingLog
from .checkpoint import CheckpointState
from .data.packed_replies import reply_logprobs
from .data.sampler import ExampleSampler
from .dev_eval import DevScores, derange, evaluate_dev
from .loss import Losses, losses
from .networks.learner import Learner
from .processes import average, broadcast_weights, from_main
from .run_lock import LOG
from .spec import TrainSpec

__all__ = ["TrainingLoop"]


@dataclass(eq=False)
class TrainingLoop:
    """A running training. Each process of a distributed launch has one; they average gradients after each step."""

    spec: TrainSpec
    learner: Learner[Any]
    receiver: LoadedModel
    train: Sequence[Any]  # encoded examples
    dev: Sequence[Any]
    run: Path
    state: CheckpointState
    callback: TrainingCallback
    accelerator: Accelerator

    def __post_init__(self) -> None:
        optim = self.spec.optim
        self.module = self.learner.module.to(self.receiver.device, torch.float32).requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(
            self._by_rate(),
            lr=optim.learning_rate,
            weight_decay=optim.weight_decay,
            betas=(0.9, 0.98),
            fused=self.receiver.device.type in ("cpu", "cuda"),  # one pass over the weights instead of about twelve
        )
        groups = [self.learner.group(example) for example in self.train]
        lengths = [self.learner.prompt_tokens([example]) for example in self.train]
        self.sampler = ExampleSampler(groups, lengths, texts=optim.texts, rows=optim.rows, seed=self.spec.seed)
        self.log: TrainingLog | None = None  # set by `start`, on the main process

    def _by_rate(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, one per learning-rate scale."""
        learning_rate_scales = self.learner.learning_rate_scales()
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in self.module.parameters():
            groups.setdefault(learning_rate_scales.get(parameter, 1.0), []).append(parameter)
        return [{"params": parameters, "part": part} for part, parameters in groups.items()]

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def prepares(self) -> bool:
        """Whether the training uses each example at least once on average, so that all are prepared at the start."""
        optim = self.spec.optim
        return optim.steps * optim.accumulate * optim.texts * optim.rows >= len(self.train)

    def start(self) -> None:
        """Restore the newest checkpoint if the state comes from one; else initialise the fuser."""
        if self.prepares:
            self.learner.prepare(self.train, self.callback.on_phase)
        resumed = self.state.judged_step is not None
        found = checkpoint.newest(self.run) if resumed and self.main else None  # only main's disk need have it
        if found is not None:
            checkpoint.restore(found[0], self.module, self.optimizer)
        elif not resumed or self.main:
            torch.manual_seed(self.spec.seed)
            self.learner.start(self.train, self.callback.on_phase)
        broadcast_weights(self.accelerator, self.module, self.optimizer)
        if self.main:
            self.log = TrainingLog(self.run / LOG, self.state.step if found is not None else None)

    def finish(self) -> None:
        """Run the remaining steps, or stop early when the dev score no longer improves.

        A KeyboardInterrupt writes a checkpoint, except before the first dev evaluation.
        """
        steps = self.spec.optim.steps
        try:
            self._evaluate_if_due()
            while self.state.step < steps and not self._stalled():
                numbers = self.step()
                self.callback.on_step(self.state.step, steps, numbers)
                self._evaluate_if_due()
        except KeyboardInterrupt:
            if self.state.judged_step is not None:
                self._save()
            raise

    def step(self) -> dict[str, float]:
        """One optimizer step. Returns the numbers of its log line."""
        began = perf_counter()
        state, optim = self.state, self.spec.optim
        torch.manual_seed(hash((self.spec.seed, state.step, self.accelerator.process_index)) % 2**63)
        self.learner.anneal(state.step)
        rate = optim.learning_rate * schedule(state.step, optim.steps, optim.warmup, optim.final)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["part"]
        sums: dict[str, float] = {}
        prompt = response = 0
        for part in range(optim.accumulate):
            examples = self.step_examples(state.step * optim.accumulate + part)
            found = self._losses(examples)
            (found.total / optim.accumulate).backward()  # type: ignore[no-untyped-call]
            for name, value in found.numbers().items():
                sums[name] = sums.get(name, 0.0) + value / optim.accumulate
            prompt += self.learner.prompt_tokens(examples)
            response += sum(len(ids) for example in examples for ids in self.learner.replies(example).ids)
        norm = self._gradients()
        with deferred_interrupts():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.prompt_tokens += prompt
            state.response_tokens += response
            seconds = perf_counter() - began
            state.seconds += seconds
            numbers = {
                **sums,
                "gradient": norm,
                "learning_rate": rate,
                "seconds": seconds,
                "prompt_tokens_per_second": prompt / seconds,
                "response_tokens_per_second": response / seconds,
            }
            if self.log is not None:
                self.log.add("step", state.step, numbers)
        return numbers

    def evaluate(self) -> DevScores:
        """Judge the dev rows; the fuser is kept in `best` if it is the best so far, or the last is to be kept.

        The main process's scores count in all of them: another machine's may differ in the last bits.
        """
        found = from_main(self.accelerator, evaluate_dev(self.learner, self.receiver, self.dev))
        state = self.state
        with deferred_interrupts():
            kept = self.spec.judge.keep == "last" or state.improves(found.score, found.noise, found.answer_logprob)
            if kept:
                state.best, state.best_step, state.without_progress = found.numbers(), state.step, 0
                state.best_score, state.best_logprob = found.score, found.answer_logprob
            else:
                state.without_progress += 1
            state.top_score = found.score if state.top_score is None else max(state.top_score, found.score)
            if self.main and kept:
                self.learner.save(self.run / "best", self.card(), self.receiver.dtype)
            if self.log is not None:
                self.log.add("judgement", state.step, found.numbers())
            state.judged_step = state.step
        self.callback.on_eval(state.step, found.numbers(), kept)
        return found

    def card(self) -> dict[str, object]:
        """The card fields of the kept fuser that describe its training."""
        state, spec = self.state, self.spec
        metrics = {f"dev_{name}": round(value, 4) for name, value in state.best.items()}
        return {
            "metrics": {**metrics, "step": state.best_step, "seed": spec.seed},
            "scope": spec.scope,
            "licence": spec.licence,
        }

    def step_examples(self, step: int) -> list[Any]:
        """This process's examples of a step, counted from 0."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        return [self.train[row] for row in self.sampler.indices(step * world + rank)]

    def _losses(self, examples: list[Any]) -> Losses:
        replies = [self.learner.replies(example) for example in examples]
        own = self._logprobs(examples)
        other = None
        if self.spec.loss.mismatched:
            others = [examples[i] for i in derange([self.learner.group(example) for example in examples])]
            other = self._logprobs(examples, others)
        return losses(self.spec.loss, replies, own, other)

    def _logprobs(self, examples: list[Any], others: list[Any] | None = None) -> list[Tensor]:
        half = self.receiver.dtype in (torch.bfloat16, torch.float16)
        precision = self.spec.optim.precision
        with torch.autocast(
            self.receiver.device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and half)
        ):
            trees, places = self.learner.trees(examples, others, right_only=others is not None)
        flat = [scores for tree in reply_logprobs(self.receiver, trees) for scores in tree]
        return [flat[place] for place in places]

    def _gradients(self) -> float:
        """Average gradients over processes and clip them. Returns the norm before clipping.

        Raises FuserError if the norm is not finite.
        """
        if self.accelerator.num_processes > 1:
            for parameter in self.module.parameters():
                if parameter.grad is None:  # all processes must reduce the same tensors
                    parameter.grad = torch.zeros_like(parameter)
                average(self.accelerator, parameter.grad)
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self.spec.optim.clip))
        if not math.isfinite(norm):
            raise FuserError(
                f"the gradient of step {self.state.step + 1} is {norm}; lower the learning rate and --restart"
            )
        return norm

    def _evaluate_if_due(self) -> None:
        """Evaluate at the start, every `judge.every` steps and at the end; never twice at one step."""
        step = self.state.step
        if step != self.state.judged_step and (step % self.spec.judge.every == 0 or step == self.spec.optim.steps):
            self.evaluate()
            self._save()

    def _stalled(self) -> bool:
        patience = self.spec.judge.patience
        return patience is not None and self.state.without_progress >= patience

    def _save(self) -> None:
        if self.main:
            checkpoint.save(self.run, self.state, self.module, self.optimizer)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends, since a half-done step can't be resumed."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *seen: came.append(seen))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])


def schedule(step: int, steps: int, warmup: int, final: float) -> float:
    """Learning-rate factor at a step, counted from 0: linear warm-up, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    part = (step - warmup) / max(steps - warmup, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * part)) / 2

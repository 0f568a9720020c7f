"""The harness's model class: answers its requests for likelihoods and texts with a graph."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from cachegraph.errors import CachegraphError, InputError, RunError

from .bare import BarePlayer
from .decoding import generate_spec
from .in_order import gather
from .options import is_bare, read_options
from .player import GraphPlayer, Likelihood, Player
from .tally import Tally

__all__ = ["CachegraphLM"]

T = TypeVar("T")

log = logging.getLogger("lm_eval.models.cachegraph")


class CachegraphLM(LM):  # type: ignore[misc]  # the harness has no types
    """A recipe as a model of the harness. Takes the arguments of `--model_args`; loads models on the first request."""

    def __init__(self, **arguments: Any):
        super().__init__()
        self._options = read_options(arguments, seed=torch.initial_seed() % 2**31)
        self._tally = Tally()
        self._player: Player | None = None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Likelihood]:
        """Score (context, continuation) requests. Those with the same context share its run, or its prefill."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.args[0], []).append(index)
        found: dict[int, Likelihood] = {}

        async def score(members: list[int]) -> None:
            context = requests[members[0]].args[0]
            scores = await self._playing.likelihoods(context, [requests[index].args[1] for index in members])
            for index, likelihood in zip(members, scores, strict=True):
                found[index] = likelihood
                self.cache_hook.add_partial("loglikelihood", requests[index].args, likelihood)

        named = [(requests[members[0]], members) for members in groups.values()]
        self._serve(score, named, "loglikelihood", disable_tqdm)
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score (text,) requests. Only a bare model can score a text that is not a reply."""

        async def score(request: Instance) -> float:
            assert isinstance(self._playing, BarePlayer)
            total = await self._playing.rolling(request.args[0])
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return total

        self._bare_only("loglikelihood_rolling scores a text as a whole, and a graph's agents only score replies")
        return self._serve(score, [(request, request) for request in requests], "loglikelihood_rolling", disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer (context, generation arguments) requests. A repeated context is sampled with another seed."""
        graph, seed = self._options.graph, self._options.seed
        recipe = graph.spec.speaker(graph.output).generate
        asked: Counter[str] = Counter()
        jobs = []
        for request in requests:
            context, arguments = request.args
            jobs.append((request, (context, arguments, generate_spec(recipe, arguments, seed + asked[context]))))
            asked[context] += 1

        async def write(job: Any) -> str:
            context, arguments, spec = job
            text = await self._playing.write(context, spec)
            self.cache_hook.add_partial("generate_until", (context, arguments), text)
            return text

        return self._serve(write, jobs, "generate_until", disable_tqdm)

    def close(self) -> None:
        """Release the models; later requests load them again."""

        async def let_go(player: Player) -> None:
            await player.close()
            await self._options.graph.aclose()

        if self._player is not None:
            gather(let_go, [self._player], limit=1, title="", quiet=True, before=_nothing)
            self._player = None

    # Facts that the harness writes beside its results

    def get_model_info(self) -> dict[str, Any]:
        """Return the recipe, and the counts of its edges."""
        options = self._options
        return {
            "recipe": options.graph.to_yaml(),
            "recipe_input": options.input,
            "channel": options.channel,
            "seed": options.seed,
            "edges": self._tally.to_json(),
        }

    # Chats: a recipe's agents render their own, so the harness renders chats only for a bare model

    @property
    def tokenizer_name(self) -> str:
        """The template's name, part of the harness's key of cached requests."""
        self._chat_player()
        return self._options.graph.spec.speaker(self._options.graph.output).model.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own chat template."""
        return self._chat_player().chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render the chat history as one text."""
        return self._chat_player().chat(chat_history, add_generation_prompt)

    def _chat_player(self) -> BarePlayer:
        self._bare_only(
            "agents apply their chat templates themselves, as the recipe says; leave --apply_chat_template out"
        )
        if self._player is None:
            gather(_nothing, [None], limit=1, title="", quiet=True, before=self._open)
        assert isinstance(self._player, BarePlayer)
        return self._player

    # Running requests

    @property
    def _playing(self) -> Player:
        assert self._player is not None
        return self._player

    async def _open(self) -> None:
        if self._player is not None:
            return
        options = self._options
        wiring = await options.graph.awire()
        if is_bare(options.graph.spec, options.input):
            engine = wiring.nodes[0].agent.peer().engine
            assert engine is not None
            self._player = BarePlayer(engine, options.max_length)
            return
        if options.max_length is not None:
            raise InputError("`max_length` is for recipes that are one bare model; leave it out")
        self._player = GraphPlayer(options.graph, options.input, self._tally)

    def _bare_only(self, why: str) -> None:
        spec, name = self._options.graph.spec, self._options.input
        if not is_bare(spec, name):
            raise InputError(
                f"recipe {spec.name!r} is not a bare model (one agent, no system message, `chat: false`, "
                f"prompt '{{{{ {name} }}}}'): {why}"
            )

    def _serve(
        self, work: Callable[[Any], Awaitable[T]], jobs: Sequence[tuple[Instance, Any]], title: str, quiet: bool
    ) -> list[T]:
        """Run all jobs, name the request in errors, and log what the edges did."""

        async def one(job: tuple[Instance, Any]) -> T:
            request, item = job
            try:
                return await work(item)
            except CachegraphError as error:
                raise RunError(f"task {request.task_name!r}, example {request.doc_id}: {error}") from error

        try:
            return gather(one, jobs, limit=self._options.batch_size, title=title, quiet=quiet, before=self._open)
        finally:
            level = logging.WARNING if self._tally.fell_back else logging.INFO
            for sentence in self._tally.sentences():
                log.log(level, "%s", sentence)


async def _nothing(_: object = None) -> None:
    """Do nothing."""


register_model("cachegraph")(CachegraphLM)

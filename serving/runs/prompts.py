"""/runs/ID/prompt: the prompt of a turn by origin, and the tokens of its cache edges side by side."""

from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.agents.prompt.prompt_view import PromptView, TokenAlignment
from cachegraph.common.abandoned_threads import run_or_abandon

from ..errors import ApiError
from ..server_state import state_of, tenant_of

__all__ = ["require_prompts", "show_prompt"]

MOST = 4_000  # tokens of an alignment


async def show_prompt(request: Request) -> Response:
    """Show the prompt of one turn, while this process has the run in memory. Raises ApiError (404) if it does not."""
    state, run, turn = state_of(request), request.path_params["run"], request.query_params.get("turn", "")
    require_prompts(request)
    await state.board.get(run, tenant_of(request))
    live = state.board.live(run)
    prompt = live.prompts.get(turn) if live is not None else None
    if prompt is None:
        words = f"the prompt of turn {turn[:200]!r} is not in memory; only recent runs of this server have theirs"
        raise ApiError(404, words, "prompt_not_found", "turn")
    return JSONResponse(await run_or_abandon(partial(_plain, prompt)))


def require_prompts(request: Request) -> None:
    """Raise ApiError if clients of this server may not see its recipes and prompts."""
    if not state_of(request).config.shows_prompts:
        words = "this server shows its recipes and prompts to nobody; it is started without --allow-upload"
        raise ApiError(403, words, "not_allowed")


def _plain(prompt: PromptView) -> dict[str, Any]:
    edges = {
        sender: [_alignment(alignment) for alignment in alignments]
        for sender, alignments in prompt.alignments().items()
    }
    return {"tokens": prompt.tokens, "parts": [asdict(part) for part in prompt.parts()], "edges": edges}


def _alignment(alignment: TokenAlignment) -> dict[str, Any]:
    """Return the first tokens of a long alignment; `cut` says that there are more."""
    pairs = [pair for pair in alignment.pairs if max(pair) < MOST]
    return {
        "kind": alignment.kind,
        "receiver": list(alignment.receiver[:MOST]),
        "sharer": list(alignment.sharer[:MOST]),
        "pairs": pairs,
        "cut": len(pairs) < len(alignment.pairs) or len(alignment.receiver) > MOST,
    }

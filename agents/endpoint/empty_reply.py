"""Explain why a reply is empty. An empty reply is an error, since agents downstream would continue without content."""

from .completion import Completion

__all__ = ["why_empty"]


def why_empty(said: Completion, most_tokens: int, *, may_stop: bool = False) -> str:
    """Describe the cause of a reply without text, to complete a sentence about the endpoint."""
    thought = bool(said.reasoning or said.reasoning_tokens)
    if said.finish == "refusal":
        return "refused to answer" + (f": {said.refusal}" if said.refusal.strip() else "")
    if said.finish == "content_filter":
        return "filtered the whole reply (finish_reason 'content_filter'); change the prompt, or the endpoint's filter"
    if said.finish == "length" and thought:
        return (
            f"spent all {most_tokens} tokens on reasoning (finish_reason 'length') and wrote no reply; "
            "raise max_new_tokens, or ask for less reasoning with the model's extra_body"
        )
    if said.finish == "length":
        return f"reached {most_tokens} tokens (finish_reason 'length') before it wrote a word; raise max_new_tokens"
    if said.calls.calls:
        return "called a tool instead of answering, and the agent has none"
    if thought:
        return "sent reasoning and no reply; ask for a reply in the prompt, or for less reasoning with extra_body"
    hint = "; one of its stop strings may have come first" if may_stop else ""
    return f"sent an empty reply (finish_reason {said.finish or 'missing'!r}){hint}"

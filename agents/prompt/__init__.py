"""Prompts: Jinja templates in a sandbox, rendered to messages, spans and tokens.

bounded_template  Templates that surely render at once
chat_context      What stands around an agent's own messages
chat_layout       Messages as one text
expression        Expressions in a recipe
filters           The filters and methods that a template may use, each linear in what it is given and paid from t
parse_template    Reading the code of templates and expressions, and refusing what they may not hold, with its pla
prompt            An agent's prompt on its way to tokens
prompt_reads      What an agent's templates read, known before anything runs
render_threads    Templates and tokenizers at work in threads, so that timeouts, Ctrl-C and other runs never wait
sandbox           What a template may do
template          Prompt templates that remember where every character of a prompt came from
template_usage    How a template uses a name
"""

"""Prompts: sandboxed Jinja templates, rendered to chat messages and tokens.

bounded_template  Whether a template renders in linear time
chat_context      Session history and tools around an agent's own messages
chat_layout       Apply the chat template, and mark whose text is where
expression        Compile and evaluate the expressions of a recipe
filters           The filters and methods of templates
parse_template    Parse and check a template's code
prompt            From templates to messages, and from messages to tokens
prompt_reads      Which inputs and replies an agent's templates read
prompt_view       A prompt as people look at it: parts by origin, tokens side by side
render_threads    Render and tokenize in threads, with a time limit
sandbox           What a template may do
template          Compile and render templates; spans of whose text is where
template_usage    How a template uses a name: prints it, tests it, works on it
"""

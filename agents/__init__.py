"""Who speaks.

spec.py       what a recipe says of an agent; base.py, what the graph knows of one
template.py   prompt templates in a sandbox that keeps track of whose text is whose
text_work.py  templates and tokenizers in threads; bounded.py, which templates need none
prompt.py     templates to messages, messages to tokens; chat_layout.py, messages to one text that knows whose it is
local.py      an agent whose model runs here: inbox.py, reading.py, writing.py, scoring.py are its turn
structured.py replies that are data
endpoint/     an agent behind an OpenAI-compatible endpoint
testing.py    scripted agents, for tests
"""

"""Text to tokens and back: tokenizers, control tokens, chat templates.

chat                 Chat templates, with the place of every message's content in the rendered text
chat_rules           What a chat template takes, found by trying it
chat_template/       Chat templates as transformers renders them, but within a budget
compact_tokenizer    Compact copies of tokenizer files in the cache folder
control_tokens       Control tokens
hide_control_tokens  Names of control tokens taken out of texts before a chat template sees them, and put back int
tokenizer            Text to tokens and back
tokenizer_load       Reading a tokenizer, as transformers does and as fast as the tokenizers library can
"""

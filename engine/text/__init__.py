"""Text to tokens and back: tokenizers, control tokens, chat templates.

tokenizer             a model's tokenizer, and TextDecoder for replies that grow
tokenizer_load        loads a tokenizer
compact_tokenizer     compact copies of tokenizer files, which load faster
control_tokens        encodes text so that no user's words become control tokens
hide_control_tokens   hides the names of control tokens from chat templates
chat                  renders a chat, with the place of every message's content
chat_rules            which roles and orders of messages a chat template takes
chat_template/        chat templates in a sandbox with a budget
"""

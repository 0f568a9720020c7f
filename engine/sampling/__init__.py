"""From logits to tokens: sampling, grammars, JSON Schemas.

closed_schema  From a JSON Schema to the narrower one that a grammar is made of, so that what is written passes wh
finite_schema  Schemas that no finite reply can satisfy
grammar        Replies that obey a JSON schema
json_schema    JSON schemas that a reply can be held to while it is written
reply          ReplyState: tokens, text, and the reason why a reply ends
sampler        From logits to the next tokens
text_formats   Whether a text fits a pattern or a format, as the grammars of replies read them
"""

"""What every folder may use: one thing a file.

schemas/             check values against JSON Schemas that strangers wrote
json_text.py         JSON from outside, refused in a sentence
surrogates.py        texts that hold half characters, mended
file_lock.py         a file that one process alone may write
printable.py         text made safe for a screen
template_budget.py   what one rendering of a stranger's template may spend
"""

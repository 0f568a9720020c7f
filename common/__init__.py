"""What every folder may use: one thing a file.

atomic_write.py write a file whole or not at all
schemas/        check values against JSON Schemas that strangers wrote
json_text.py    JSON from outside, refused in a sentence
surrogates.py   texts that hold half characters, mended
printable.py    text made safe for a screen
"""

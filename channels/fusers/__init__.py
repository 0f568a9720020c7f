"""Fusers: the trained networks that turn one model's KV cache into corrections of another's.

card.py        what a fuser is and was trained on; no torch
base.py        Projector (one receiver layer) and Fuser (all of them, with the card)
c2c.py         the architecture of the Cache-to-Cache paper
translator.py  one network for all layers, that makes a receiver's cache out of a sharer's
create.py      architectures by name; a new fuser
weights.py     our folder: fuser.safetensors and card.json
published.py   which projectors the folder names that the paper's authors publish; no torch
reference.py   that folder, in and out
find.py        a name or a path to a folder; does it fit these two models
hub.py         a fuser of the Hugging Face hub; name.py: how a recipe names one
pair.py        a folder that holds a fuser and a translator
load.py        a folder of either kind to a Fuser, or to a Translator
verify.py      a stranger's folder, opened whole or refused
inventory.py   what is on this disk, what is known of each, removal
install.py     import, export, pull; publish.py: push to the hub, with the model card of readme.py
words.py       a card in words
"""

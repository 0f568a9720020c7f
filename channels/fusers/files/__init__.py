"""Fusers on disk: cards, weights, and the published C2C format.

atomic_folder  Reading strangers' folders, and writing ours so that nobody ever sees half of one
c2c_folder     What the folder that the authors of Cache-to-Cache publish says of itself
c2c_format     The folder that the authors of Cache-to-Cache publish, read as it is and written back
card           A fuser's card
card_text      A card in words, the same on a terminal and on the hub
joint_folder   A folder that holds both networks of a pair
load           One door to every kind of fuser folder
trained_rows   Which rows a fuser was trained on, kept on its card, so that a comparison can say where it evaluate
verify         A stranger's folder, opened whole or refused
weights        Our folder of a fuser
"""

"""Fusers on disk: cards, weights, and the published Cache-to-Cache format.

atomic_folder  Write a folder whole or not at all; read JSON of untrusted folders
c2c_folder     Which projectors a published Cache-to-Cache folder names
c2c_format     Read and write the published Cache-to-Cache format
card           Card: what a fuser is and how it was trained
card_text      A card in words, for terminal and hub
joint_folder   A folder with a fuser and a translator
load           Load a fuser or translator from any kind of folder
trained_rows   Fingerprints of the training data, to detect evaluation on it
verify         Check an untrusted folder
weights        Read and write our own format: fuser.safetensors and card.json
"""

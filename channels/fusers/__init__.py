"""Fusers: trained networks that correct one model's KV cache by another's, and translators between caches.

choose_fuser  Choose the fuser of an edge
files/        Cards, weights and published formats on disk
fuser_folder  From a fuser's name to its folder; does it fit two models
hub/          Pull from and push to the Hugging Face hub
install       Import, export and pull fusers
inventory     List and remove the fusers on this disk
layer_map     Which sharer layer corrects which receiver layer
networks/     The architectures, one a file
"""

"""Channels: what an edge hands over, words or a KV cache, and in which form.

cache/   The cache channel
decide   What an edge hands over, and in which form
fusers/  Fusers
payload  What travels on an edge, and what is known of the journey
peer     The two ends of an edge as the channels see them
routing  From an edge of a recipe and its two ends to a route
spec     The channels' slice of a recipe
"""

"""Channels: what an edge transfers, text or a KV cache.

cache/          The cache channel: graft, translate, fuse
channel         The channels by name
choose_channel  Decide the channel of an edge before any model is loaded
fusers/         Fuser networks, their files, and how an edge finds one
join_payloads   Join the payloads of several turns
load_route      Load what a cache edge needs and make its Route
payload         Payload, Route, EdgeReport, Origin, KVSpan
peer            Peer: one end of an edge
spec            Edges in a recipe
"""

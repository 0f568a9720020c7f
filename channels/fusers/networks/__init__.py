"""Fuser networks: one architecture a file.

base         Projector and Fuser, the interface of all architectures
bottleneck   One network for all layers
c2c          The projector of Cache-to-Cache (arXiv 2510.03215)
create       Create a new fuser by the name of its architecture
gumbel_gate  Learned gates
lean         The projector of Latent Cache Flow (arXiv 2605.22863)
prefix       Prefix: trained entries in front of a receiver's prompt, a control
translator   Translator: makes a receiver's cache out of a sharer's
"""

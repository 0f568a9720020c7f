"""Fuser networks: one architecture a file.

base         What a fuser is, whatever its architecture
bottleneck   A fuser of one network for all layers
c2c          The projector of Cache-to-Cache (Fu et al., arXiv 2510.03215), number for number as its authors compu
create       Architectures by name, and new fusers with random weights
gumbel_gate  A learned gate
lean         The projector of Latent Cache Flow (arXiv 2605.22863)
translator   A translator
"""

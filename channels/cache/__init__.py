"""The cache channel: align, rotate, fuse, graft."""

"""Which channel is better, and by how much: comparisons of one graph's variants on a user's own data."""

"""A recovery point served over NBD."""

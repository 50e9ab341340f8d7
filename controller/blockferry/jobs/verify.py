"""Prove that recovery points can be restored: read every stored object they need, and check it."""

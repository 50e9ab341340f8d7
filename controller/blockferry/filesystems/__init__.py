"""Single files out of a disk, without mounting it."""

"""Binary units. Every offset and length in this project is in bytes."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

"""
Backups of a VM: starting, phases, finalizing.

    POST ─▶ validation ─▶ row ─▶ prepare ─▶ 201           finalize ─▶ 200
                                   │                          │
    worker:                        └▶ start ─▶ READY ───wait──┴▶ stop ─▶ SUCCEEDED
                                        │                         │
                                        └──▶ FINALIZING_FAILURE ◀─┘ ─▶ FAILED

Three modes do the real work, each its own module: `live`, `cold`, `hybrid`.
"""

"""
Back up one VM: from the engine's backup to a committed recovery point.

    find the VM, take its OVF ─▶ choose the base ─▶ start the backup ─▶ for each disk, side by side:
        transfer ─▶ first transport that answers ─▶ blocks ─▶ repository
    ─▶ commit ─▶ finish the transfers and the backup ─▶ drop the checkpoints that nothing needs any more

Whatever fails before the commit leaves no recovery point, nothing open in the engine, and the old base in force.
"""

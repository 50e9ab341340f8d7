"""
Looking into the file systems of disks with libguestfs, which mounts them in a small machine of its own.

    appliance   guestfish, asked one thing after another
    commands    what is said to it, and how its answers are read

Whoever wrote a file system may want to attack who mounts it: in the appliance that is a kernel in a QEMU without
network, not this machine's.
"""

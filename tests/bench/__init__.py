"""
Benchmarks: ours beside its peers, on the same disk in the same run. `make bench`, or `python -m tests.bench --help`.

    stage         one disk behind one NBD server, as vdsm serves it, and all that reads it: agent, Image I/O, sshd
    contenders    who reads it: each a name and something to run
    race          rounds in which all run, in changing order; medians, and ratios within each round
    backup        a full backup into a local repository, beside virtnbdbackup, on the lab's VM
    repository    the repository, beside restic and borg; `ours` runs one operation of ours
    many          a million small chunks
    scale         huge disks: time, bytes and memory that follow what is there, not the size
    paper         the Markdown table

Nothing here is an assertion: a machine that is shared says little in absolute times. Ratios of one round say more.
"""

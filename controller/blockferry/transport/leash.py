"""
Run a program that does not outlive the controller: `python -I -S leash.py PARENT PROGRAM ARGUMENT...`

PARENT: process id of the controller. However that ends, by SIGKILL too, Linux sends the program SIGTERM (prctl(2),
PR_SET_PDEATHSIG). To Linux the parent is the thread that started this process: it must live as long as the program.
A program of its own, because Python must not run between the fork and the exec of a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Become the program."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("The controller ended before.")
    os.execvp(command[0], command)  # noqa: S606 -- no shell is what is wanted


if __name__ == "__main__":
    main()

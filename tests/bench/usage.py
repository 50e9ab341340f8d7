"""
Run a command, and print as the last line what it used, as JSON: `python usage.py COMMAND …`.

A process of its own, and a small one: the peak of memory that Linux tells of a command is at least what the process had
that started it.
"""

import json
import os
import sys
import time


def main() -> None:
    began = time.monotonic()
    pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, used = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    print(
        json.dumps(
            {
                "status": os.waitstatus_to_exitcode(status),
                "seconds": seconds,
                "processor": used.ru_utime + used.ru_stime,
                "memory": used.ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()

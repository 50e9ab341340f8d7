"""
What goes wrong on the lab's host.

    LabError                the lab cannot do it; the text says why
    └── HostError           vdsm would have answered with this code and text
"""

from __future__ import annotations

# vdsm's codes (lib/vdsm/common/exception.py).
NO_SUCH_VM = 1
VM_EXISTS = 4
BITMAP_DOES_NOT_EXIST = 947
BACKUP_ERROR = 1600
NO_SUCH_BACKUP = 1601
CHECKPOINT_ERROR = 1610
NO_SUCH_CHECKPOINT = 1611
INCONSISTENT_CHECKPOINT = 1612
GENERAL_ERROR = 100
NON_RESPONSIVE_GUEST_AGENT = 19


class LabError(Exception):
    """The lab cannot do what was asked; the text names the thing and the reason."""


class HostError(LabError):
    """
    The host refused, as vdsm would.

    message: libvirt's, qemu-img's or vdsm's text.  code: vdsm's number (above).
    """

    def __init__(self, message: str, code: int = GENERAL_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

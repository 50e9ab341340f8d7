"""
The engine's options, with the names that `engine-config` gives them, and the delays of its scheduler.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Settings:
    """
    Seconds, all of them. A test may change one while the engine runs.

    phase_delay: pause before a backup or transfer enters its next phase, so that a poller sees the phases.
    poll_interval: between two looks at the ticket of a transfer; the real engine starts at 1 s and doubles to 10 s.
    """

    phase_delay: float = 0.03
    poll_interval: float = 1.0

    client_inactivity_timeout: int = 60  # TransferImageClientInactivityTimeoutInSeconds
    client_ticket_validity: int = 300  # ImageTransferClientTicketValidityInSeconds
    host_ticket_validity: int = 300  # ImageTransferHostTicketValidityInSeconds
    ticket_refresh_allowance: int = 240  # ImageTransferHostTicketRefreshAllowanceInSeconds

    cleanup_rate: float = 10 * 60  # DbEntitiesCleanupRateInMinutes
    succeeded_backup_cleanup: float = 15 * 60  # SucceededBackupCleanupTimeInMinutes
    failed_backup_cleanup: float = 30 * 60  # FailedBackupCleanupTimeInMinutes
    succeeded_transfer_cleanup: float = 15 * 60  # SucceededImageTransferCleanupTimeInMinutes
    failed_transfer_cleanup: float = 30 * 60  # FailedImageTransferCleanupTimeInMinutes

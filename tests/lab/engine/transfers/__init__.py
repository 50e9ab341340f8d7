"""
Image transfers: a ticket on the host for one disk, watched until it is finished.

    download:  initializing ─▶ transferring ─▶ finalizing_success ─▶ finished_success
    error:     transferring ─▶ cancelled_system | paused_system ─▶ finalizing_failure ─▶ finished_failure
    cancel:    transferring ─▶ cancelled_user ─▶ finalizing_cleanup ─▶ finished_cleanup ─▶ finished_failure
"""

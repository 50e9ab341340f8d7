"""
What is done on the host: this file is sent to the host's Python, 3.9 or later, with the request as its argument.

    python3 -I -S - '{"do": "install", "directory": "/opt/blockferry-agent", …}' < onhost.py

Its last line of output is JSON: {"done": …}, or {"refused": "a sentence", "hint": …, "busy": may be tried later}. It is
part of no package there and imports nothing of ours. Once begun, it ends its work even if the connection breaks.

The agent's directory, and nothing outside of it:

    .blockferry-agent         marks the directory as ours; without it nothing is touched
    lock                      held (flock) by who changes anything, so it is free as soon as that process ends
    incoming/<id>/            uploads under way, then moved to releases
    bundles/<sha256>/         unpacked bundles
    releases/<id>/            one deployment: agent.json, agent.crt, agent.key, ca.crt, release.json; private
    current -> releases/<id>  the last one that came to serve; switched in one step
    run/agent.pid             written by the agent as soon as it serves
    log/agent.log             of the running agent, which bounds it; agent.log.1 what was said before

A deployment that is cut off anywhere leaves the old release current, maybe stopped; the next one cleans up. What is
complete by its name is on the disk: a power cut leaves no bundle or release in force of which parts are missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

MARKER = ".blockferry-agent"
MARKER_TEXT = (
    "This directory belongs to Blockferry's agent: `blockferry agent remove` deletes it with all that is in it.\n"
)

# Seconds.
START_TIMEOUT = 30
STOP_TIMEOUT = 10
KILL_TIMEOUT = 5
ABANDONED_UPLOAD = 24 * 3600

LOG_LINES = 12


class Refused(Exception):
    """It cannot be done; args: a sentence, and optionally the next step."""


class Busy(Refused):
    """Somebody else changes the same directory now."""


def claim(directory: Path, upload: str) -> None:
    """Make the directory ours if it is new or empty, and make room for an upload."""
    try:
        directory.mkdir(exist_ok=True)
        # In this order: the marker is the first file of a directory that another deployment claims just now.
        if any(directory.iterdir()) and not (directory / MARKER).is_file():
            raise Refused(f"{directory} has files in it that are not Blockferry's.", "Choose another agent.directory.")
        (directory / MARKER).write_text(MARKER_TEXT)
        (directory / "incoming").mkdir(mode=0o700, exist_ok=True)
        (directory / "incoming" / upload).mkdir(mode=0o700)
    except OSError as error:
        raise Refused(
            f"{error.filename} cannot be made: {error.strerror}.",
            "Its parent must exist and be writable for the user who logs in; or choose another agent.directory.",
        ) from error


def inspect(directory: Path) -> dict[str, Any]:
    """Say what is there, and change nothing."""
    if not (directory / MARKER).is_file():
        return {"bundles": [], "release": None, "pid": None}
    bundles = [path.name for path in (directory / "bundles").glob("*") if path.suffix != ".partial"]
    return {"bundles": bundles, "release": read_release(directory), "pid": serving(directory)}


def read_release(directory: Path) -> dict[str, Any] | None:
    """Return what the release in force says of itself, its configuration and its certificate; a damaged one is none."""
    release = current(directory)
    if release is None:
        return None
    try:
        return {
            "about": json.loads((release / "release.json").read_text()),
            "config": json.loads((release / "agent.json").read_text()),
            "certificate": (release / "agent.crt").read_text(),
        }
    except (OSError, ValueError):
        return None


def install(directory: Path, upload: str) -> int:
    """
    Put an upload in force and return the process id of its agent.

    Stops the agent that runs, starts the new one, waits until it serves; else starts the old one again.
    """
    incoming = directory / "incoming" / upload
    with locked(directory):
        bundle = json.loads((incoming / "release.json").read_text())["bundle"]
        unpack(directory, incoming, bundle)
        (incoming / "bundle.tar.gz").unlink(missing_ok=True)
        make_durable(incoming)
        (directory / "releases").mkdir(exist_ok=True)
        release = incoming.rename(directory / "releases" / upload)
        stop(directory)
        try:
            pid = start(directory, release)
        except Refused as error:
            raise fall_back(directory, error) from error
        switch(directory, release)
        sweep(directory, release, bundle)
        return pid


def fall_back(directory: Path, failure: Refused) -> Refused:
    """Start the release again that is in force and return the whole story as an error."""
    stop(directory)
    release = current(directory)
    if release is None or read_release(directory) is None:
        return failure
    sentence, *hint = failure.args
    try:
        start(directory, release)
    except Refused as error:
        return Refused(f"{sentence} The agent that ran before does not start any more: {error.args[0]}", *hint)
    return Refused(f"{sentence} The agent that ran before runs again.", *hint)


def remove(directory: Path) -> bool:
    """Stop the agent and delete the directory with all that is in it; False when there is nothing to remove."""
    if not directory.exists():
        return False
    if not (directory / MARKER).is_file():
        raise Refused(f"{directory} is not a directory of Blockferry's agent (it has no {MARKER}): it was left alone.")
    with locked(directory):
        stop(directory)
        # The marker last: a removal that was cut off can be repeated.
        for path in directory.iterdir():
            if path.is_symlink() or not path.is_dir():
                if path.name != MARKER:
                    path.unlink()
            else:
                shutil.rmtree(path)
        (directory / MARKER).unlink()
        directory.rmdir()
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep others from changing the directory."""
    path = directory / "lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"Another deployment works in {directory}.", "Try again when it has ended.") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise Busy(f"{directory} was removed a moment ago.", "Try again.")
        yield


def unpack(directory: Path, incoming: Path, digest: str) -> None:
    """Unpack the uploaded bundle, after its digest was checked; without an upload it must be there already."""
    target = directory / "bundles" / digest
    if target.is_dir():
        return
    archive = incoming / "bundle.tar.gz"
    if not archive.is_file():
        raise Busy("The bundle was removed by another deployment.", "Try again.")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
        raise Refused("The bundle arrived damaged.", "Try again.")
    partial = target.with_suffix(".partial")
    if partial.exists():
        shutil.rmtree(partial)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            content = tar.extractfile(member)
            if content is None or name.is_absolute() or ".." in name.parts:
                raise Refused(f"The bundle has a member that no bundle has: {member.name}.")
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    make_durable(partial)
    partial.rename(target)


def make_durable(directory: Path) -> None:
    """Have a directory with all that is in it on the disk when this returns, before its new name makes it count."""
    for path in (directory, *directory.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def current(directory: Path) -> Path | None:
    """Return the release that is in force."""
    try:
        return directory / (directory / "current").readlink()
    except OSError:
        return None


def switch(directory: Path, release: Path) -> None:
    link = directory / ".current"
    link.unlink(missing_ok=True)
    link.symlink_to(release.relative_to(directory))
    link.replace(directory / "current")


def start(directory: Path, release: Path) -> int:
    """Start a release's agent, away from this login, and return its process id once it serves."""
    about = json.loads((release / "release.json").read_text())
    (directory / "run").mkdir(mode=0o700, exist_ok=True)
    (directory / "log").mkdir(exist_ok=True)
    pid_file = directory / "run" / "agent.pid"
    pid_file.unlink(missing_ok=True)
    log = directory / "log" / "agent.log"
    if log.exists():
        log.replace(directory / "log" / "agent.log.1")
    command = [about["python"], "-I", "-S", str(directory / "bundles" / about["bundle"])]
    command += ["--config", str(release / "agent.json"), "--log", str(log)]
    # Else gRPC prints a line for each handshake that fails: strangers could fill the disk.
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        raise Refused(f"{about['python']} cannot be started: {error.strerror}.") from error
    deadline = time.monotonic() + START_TIMEOUT
    while read_pid(pid_file) != process.pid:
        status = process.poll()
        if status is not None:
            raise Refused(f"The agent ended at its start ({status}); its log says:\n{tail(log)}\n")
        if time.monotonic() > deadline:
            raise Refused(f"The agent does not serve after {START_TIMEOUT} seconds; its log says:\n{tail(log)}\n")
        time.sleep(0.02)
    return process.pid


def stop(directory: Path) -> None:
    """Stop every agent of this directory, also one that never came to serve."""
    for number, timeout in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
        running = processes(directory)
        for pid in running:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                raise Refused(f"The agent that runs (process {pid}) belongs to another user.") from None
        deadline = time.monotonic() + timeout
        while processes(directory):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise Refused(f"The agent that runs (process {min(running)}) does not stop.", "See what it hangs on, on the host.")


def processes(directory: Path) -> dict[int, str]:
    """
    Return this directory's agents: each with its process id and its release's configuration.

    They are known by their command lines, so a stale pid file misleads nobody.
    """
    prefix = f"{directory}/releases/"
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended just now
        if "--config" in words[:-1] and words[words.index("--config") + 1].startswith(prefix):
            found[int(path.parent.name)] = words[words.index("--config") + 1]
    return found


def serving(directory: Path) -> int | None:
    """Return the process id of the agent of the release in force; None when it does not serve."""
    pid = read_pid(directory / "run" / "agent.pid")
    release = current(directory)
    if pid is None or release is None or processes(directory).get(pid) != str(release / "agent.json"):
        return None
    return pid


def read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"    {line[:500]}" for line in lines) or "    (nothing)"


def sweep(directory: Path, release: Path, bundle: str) -> None:
    """Delete what earlier deployments left, but no upload that somebody may still be sending."""
    old = [path for path in (directory / "releases").iterdir() if path != release]
    old += [path for path in (directory / "bundles").iterdir() if path.name != bundle]
    deadline = time.time() - ABANDONED_UPLOAD
    old += [path for path in (directory / "incoming").iterdir() if path.stat().st_mtime < deadline]
    for path in old:
        shutil.rmtree(path)


def abandon(directory: Path, upload: str) -> None:
    """Delete an upload that was not installed."""
    shutil.rmtree(directory / "incoming" / upload, ignore_errors=True)


ACTIONS = {action.__name__: action for action in (claim, inspect, install, remove, abandon)}


def main(request: dict[str, Any]) -> dict[str, Any]:
    os.umask(0o022)
    action = ACTIONS[request.pop("do")]
    directory = Path(os.path.realpath(request.pop("directory")))
    try:
        return {"done": action(directory, **request)}
    except Refused as error:
        sentence, hint = (*error.args, "")[:2]
        return {"refused": sentence, "hint": hint, "busy": isinstance(error, Busy)}
    except OSError as error:
        sentence = f"{error.filename or directory} cannot be used: {error.strerror}."
        return {"refused": sentence, "hint": "See whether its file system is full or read-only.", "busy": False}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")

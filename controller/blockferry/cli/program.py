"""
The program: its top-level options, its signals, and the one place where an error becomes a sentence and an exit code.

Exit codes: 0 done; 1 a defect of Blockferry (a report with the traceback is asked for); 2 the command line is wrong;
others as `blockferry.errors` lists them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from blockferry import __version__, errors
from blockferry.cli import agent, backup, compare, files, output, points, repository, restore, retention, serve
from blockferry_agent import malloc

LOG_VARIABLE = "BLOCKFERRY_LOG"

_log = logging.getLogger(__name__)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Exit codes: 0 done, 1 defect, 2 command line, 3 configuration, 4 engine, 5 no such thing, 6 something else runs,
    7 data path, 8 repository, 9 damaged data, 10 deploying, 11 restore target, 130 interrupted.
    """,
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file. Default: $BLOCKFERRY_CONFIG, else /etc/blockferry/config.toml.",
)
@click.version_option(__version__, message="blockferry %(version)s")
def program(config: Path | None) -> None:
    """
    Back up oVirt VMs by changed blocks, and restore them.

    Deploy the agent to your hosts once (`agent deploy`), then run `backup VM` as often as you like: every recovery
    point is complete by itself. `list` shows them, `restore` brings their disks back, `verify` reads them to prove
    that they can be restored, `prune` deletes old ones by a policy, and `collect` makes room.
    """
    # The commands find `config` in the context (`settings.common_options`).


program.add_command(agent.agent)
program.add_command(repository.repository)
program.add_command(backup.backup)
program.add_command(points.list_points)
program.add_command(points.show)
program.add_command(restore.restore)
program.add_command(serve.serve)
program.add_command(files.files)
program.add_command(points.verify)
program.add_command(retention.prune)
program.add_command(retention.delete)
program.add_command(retention.undelete)
program.add_command(retention.trash)
program.add_command(retention.pin)
program.add_command(retention.unpin)
program.add_command(retention.collect)
program.add_command(compare.compare)


def main() -> NoReturn:
    """Run the program and exit."""
    level = logging.getLevelNamesMapping().get(os.environ.get(LOG_VARIABLE, "").upper(), logging.WARNING)
    logging.basicConfig(level=level, stream=sys.stderr, format="blockferry: %(levelname)s: %(message)s")
    malloc.keep_small()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    sys.exit(_run())


def _run() -> int:
    machine = "--json" in sys.argv[1:]
    try:
        # What it returns is 0 after --help, a code after `output.failed`, and nothing after a command that went well.
        return program.main(prog_name="blockferry", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        if machine:
            output.as_json({"error": {"kind": "UsageError", "message": error.format_message(), "hint": ""}})
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        stopped = errors.Interrupted("Stopped by a signal.")
        output.error(stopped, machine)
        return errors.exit_code(stopped)
    except errors.Error as error:
        output.error(error, machine)
        return errors.exit_code(error)
    except SystemExit:
        # That is how click and rich react when who read our output went away (`blockferry list | head`).
        return 0
    except Exception as error:
        _log.debug("A defect", exc_info=True)
        defect = errors.Error(
            f"This is a defect of Blockferry ({type(error).__name__}: {error}).",
            f"Run it again with {LOG_VARIABLE}=DEBUG, and report what it prints.",
        )
        output.error(defect, machine)
        return errors.exit_code(defect)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt

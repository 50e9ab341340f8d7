"""The program's commands as an operator types them, without an engine: a repository is all that most of them need."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from blockferry import errors
from blockferry.cli import program
from blockferry.repository import Repository, Vm
from blockferry_agent.units import KiB
from tests.unit import repository_images

BLOCKFERRY = Path(sys.executable).parent / "blockferry"
README = Path(__file__).parents[2] / "README.md"
OTHER_VM = Vm("ffffffff-9a1e-4d35-9d3f-0a37be5a01a1", repository_images.VM.name)
CONTENT = random.Random(5).randbytes(600 * KiB) + bytes(800 * KiB)


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    output: str
    errors: str


class Site:
    """
    A configuration whose engine is nowhere, and its repository.

    points: of the VM "web", in the order in which they were taken.  newest: what its disk holds at the last one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.toml"
        self.config.write_text(f"""\
            state = "{directory / "state"}"
            cache = "{directory / "cache"}"
            [engine]
            url = "https://localhost:1/ovirt-engine/api"
            username = "admin@internal"
            ca_file = "ca.pem"
            [repository]
            url = "{directory / "repository"}"
            """)
        self.environment = {**os.environ, "BLOCKFERRY_CONFIG": str(self.config)}
        self.repository = Repository.init(str(directory / "repository"))
        self.points = [repository_images.full(self.repository, CONTENT)]
        self.newest = bytes(100) + CONTENT[100:]
        self.points.append(repository_images.incremental(self.repository, CONTENT, self.newest, self.points[0]))

    def run(self, *words: str) -> Done:
        """Run a command in this process: a new one takes longer to start than most commands run."""
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["blockferry", *words])
            patch.setenv("BLOCKFERRY_CONFIG", str(self.config))
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = program._run()
        return Done(status, output.getvalue(), errors.getvalue())

    def document(self, *words: str) -> object:
        """What a command that must succeed prints for machines: that, and nothing else."""
        done = self.run(*words, "--json", "--quiet")
        assert (done.status, done.errors) == (0, "")
        return json.loads(done.output)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Tests leave it as it is."""
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def own_site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# Help


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Generate all commands with the words that lead to them."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = [((), program.program), *commands(program.program)]


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) or "blockferry" for words, _ in COMMANDS])
def test_every_command_and_option_is_explained(words: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} of {words}"
        else:
            # Arguments have no help of their own: the command's text has to name them.
            shown = (parameter.metavar or str(parameter.name)).strip("[].").upper()
            assert shown in command.help + (command.epilog or ""), f"{shown} of {words}"


def test_help_needs_no_configuration(site: Site, tmp_path: Path) -> None:
    for words in (["--help"], ["restore", "-h"], ["--version"]):
        done = site.run("--config", str(tmp_path / "none"), *words)
        assert (done.status, done.errors) == (0, "")
        assert "blockferry" in done.output


def readme_commands() -> list[str]:
    """The commands in README's blocks of shell."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("blockferry ")]


def test_readme_has_commands() -> None:
    assert len(readme_commands()) >= 7


@pytest.mark.parametrize("line", readme_commands())
def test_commands_of_the_readme_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = program.program
    context = click.Context(command, info_name="blockferry")
    while isinstance(command, click.Group):
        name, *words = words
        assert name in command.commands, line
        command = command.commands[name]
        context = click.Context(command, info_name=name, parent=context)
    # Raises UsageError for an option that is not there, a value that is none, an argument too many or too few.
    command.parse_args(context, words)


def test_readme_names_every_exit_code() -> None:
    named = {int(code) for code in re.findall(r"^\| (\d+) \| ", README.read_text(), re.MULTILINE)}
    assert named == {0, 1, 2} | {code for _, code in errors.EXIT_CODES}


# What there is


def test_list(site: Site) -> None:
    newest_first = [point.id for point in reversed(site.points)]
    for words in (["list"], ["list", "web"], ["list", repository_images.VM.id]):
        done = site.run(*words)
        assert done.status == 0
        assert [line.split()[1] for line in done.output.splitlines()[1:]] == newest_first
        documents = site.document(*words)
        assert isinstance(documents, list)
        assert [document["id"] for document in documents] == newest_first


def test_show_takes_the_beginning_of_an_id(site: Site) -> None:
    first, second = site.points
    for name, expected in ((second.id, second), (first.id, first), ("latest", second), (second.id[:-1], second)):
        document = site.document("show", "web", name)
        assert isinstance(document, dict)
        assert document["id"] == expected.id
        assert document["parent_id"] == expected.parent_id
    done = site.run("show", "web")
    assert done.status == 0
    assert second.id in done.output
    assert f"Read against:    {first.id}" in done.output


def test_beginning_of_several_ids(site: Site) -> None:
    done = site.run("show", "web", "2")
    assert done.status == 5
    assert "2 recovery points of VM web begin with 2. Write more of the id." in done.errors


def test_what_is_not_there(site: Site) -> None:
    done = site.run("show", "web", "19990101")
    assert done.status == 5
    assert "VM web has no recovery point 19990101. See `blockferry list web`." in done.errors
    done = site.run("list", "db", "--json")
    assert done.status == 5
    assert json.loads(done.output)["error"] == {
        "kind": "NotFound",
        "message": "The repository has no recovery point of VM db.",
        "hint": "See `blockferry list`.",
    }


def test_two_vms_of_one_name(own_site: Site) -> None:
    other = repository_images.back_up(own_site.repository, [repository_images.zero(0, 512)], 512, vm=OTHER_VM)
    done = own_site.run("list", "web")
    assert done.status == 5
    assert repository_images.VM.id in done.errors
    assert OTHER_VM.id in done.errors
    documents = own_site.document("list", OTHER_VM.id)
    assert isinstance(documents, list)
    assert [document["id"] for document in documents] == [other.id]


def test_damage(own_site: Site) -> None:
    assert own_site.document("verify") == own_site.document("verify", "web")
    chunks = [path for path in (own_site.directory / "repository/chunks").rglob("*") if path.is_file()]
    largest = max(chunks, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"x")

    done = own_site.run("verify", "web", "latest", "--json", "--quiet")
    assert done.status == 9
    (damage,) = json.loads(done.output)["damage"]
    assert damage["name"].endswith(largest.name)
    assert {hurt["point_id"] for hurt in damage["hurts"]} == {point.id for point in own_site.points}
    assert "backup --fresh" in done.errors

    done = own_site.run("verify")
    assert done.status == 9
    assert largest.name in done.output
    done = own_site.run("restore", "web", "--to", str(own_site.directory / "restored"))
    assert done.status == 9
    assert largest.name in done.errors
    assert not any((own_site.directory / "restored").iterdir())

    done = own_site.run("restore", "web", "--to", str(own_site.directory / "restored"), "--skip-damaged", "--json")
    assert done.status == 9
    assert "could not be read in the repository: there are zeros now" in done.errors
    (image,) = json.loads(done.output)
    gaps = [(gap["start"], gap["length"]) for gap in image["gaps"]]
    assert gaps
    assert all(largest.name in gap["reason"] for gap in image["gaps"])
    restored = Path(image["path"]).read_bytes()
    for start, length in gaps:
        assert restored[start : start + length] == bytes(length)
        restored = restored[:start] + own_site.newest[start : start + length] + restored[start + length :]
    assert restored == own_site.newest
    done = own_site.run("restore", "web", "--to", str(own_site.directory / "restored"), "--skip-damaged", "--force")
    assert f"Disk system: bytes {gaps[0][0]} to {gaps[0][0] + gaps[0][1]} are zeros." in done.output


def test_restore(site: Site, tmp_path: Path) -> None:
    images = site.document("restore", "web", site.points[0].id, "--to", str(tmp_path))
    assert isinstance(images, list)
    (image,) = images
    assert (image["disk_id"], image["alias"]) == (repository_images.DISK, "system")
    assert (image["path"], image["size"]) == (str(tmp_path / "system.raw"), len(CONTENT))
    assert Path(image["path"]).read_bytes() == CONTENT
    done = site.run("restore", "web", "--to", str(tmp_path))
    assert done.status == 6
    assert "is there already. Use --force" in done.errors
    assert (tmp_path / "system.raw").read_bytes() == CONTENT
    assert site.run("restore", "web", "--to", str(tmp_path), "--force").status == 0
    assert (tmp_path / "system.raw").read_bytes() != CONTENT


def test_restore_to_standard_output(site: Site) -> None:
    command = [BLOCKFERRY, "restore", "web", site.points[0].id, "--to", "-"]
    done = subprocess.run(command, env=site.environment, check=True, capture_output=True)
    assert done.stdout == CONTENT
    assert b"restoring system" in done.stderr


# What goes wrong


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["restore", "web"], "Give one of --to, --new-vm, --new-disk and --in-place"),
        (["restore", "web", "--to", "x", "--in-place"], "Give one of"),
        (["restore", "web", "--to", "x", "--start"], "--start does not go with --to, but with --new-vm"),
        (["restore", "web", "--in-place", "--format", "raw"], "--format does not go with --in-place"),
        (["restore", "web", "--in-place", "--storage-domain", "x"], "--storage-domain does not go with --in-place"),
        (["restore", "web", "--new-vm", "x", "--force"], "--force does not go with --new-vm, but with --to"),
        (["restore", "web", "--to", "x", "--transport", "grpc"], "--transport does not go with --to"),
        (["restore", "web", "--new-disk", "--no-fallback"], "--no-fallback needs --transport"),
        (["restore", "web", "--new-disk", "--storage-map", "x"], "'x' is not OLD=NEW"),
        (["restore", "web", "--to", "-", "--format", "qcow2"], "Standard output is written from its beginning"),
        (["restore", "web", "--to", "-", "--json"], "--json does not go with --to -"),
        (["restore", "web", "--to", "x", "--format", "vmdk"], "'vmdk' is not one of 'raw', 'qcow2'"),
        (["backup"], "Missing argument 'VM'"),
        (["backup", "web", "--transport", "pigeon"], "'pigeon' is not one of"),
        (["backup", "web", "--no-fallback"], "--no-fallback needs --transport"),
        (["fly"], "No such command 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words(site: Site, words: list[str], says: str) -> None:
    done = site.run(*words)
    assert done.status == 2
    assert says in done.errors
    assert "--help" in done.errors


def test_no_configuration(site: Site, tmp_path: Path) -> None:
    done = site.run("--config", str(tmp_path / "none.toml"), "list", "--json")
    assert done.status == 3
    assert "There is no configuration at" in done.errors
    assert json.loads(done.output)["error"]["kind"] == "ConfigError"


def test_repository_that_is_not_there(own_site: Site) -> None:
    done = own_site.run("repository", "init")
    assert done.status == 6, "it is there already"
    (own_site.directory / "repository/repository.json").unlink()
    done = own_site.run("list")
    assert done.status in (5, 8)
    assert "blockferry repository init" in done.errors


@pytest.mark.parametrize("words", [["list"], ["list", "--json"]], ids=" ".join)
def test_reader_that_goes_away(site: Site, words: list[str]) -> None:
    """As in `blockferry list | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as gone:
        done = subprocess.run(
            [BLOCKFERRY, *words], env=site.environment, stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPTED_WHILE_IT_LOADS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Impatience:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "blockferry.cli.program":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Impatience)
from blockferry import cli
cli.main()
"""


def test_interrupted_while_it_loads() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_WHILE_IT_LOADS], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b""), "no traceback"


# On a terminal


def test_bars_on_a_terminal(site: Site, tmp_path: Path) -> None:
    """They go to standard error: standard output stays clean."""
    status, output, shown = on_terminal(site, "restore", "web", "--to", str(tmp_path), "--json")
    assert status == 0
    assert json.loads(output)[0]["alias"] == "system"
    assert "restoring system" in shown
    assert "100%" in shown
    assert "\x1b[" in shown

    status, output, shown = on_terminal(site, "verify", "--quiet", "--json")
    assert (status, shown) == (0, "")
    assert json.loads(output)["damage"] == []


def test_no_bars_in_a_log(site: Site, tmp_path: Path) -> None:
    done = site.run("restore", "web", "--to", str(tmp_path))
    assert done.status == 0
    assert "\x1b" not in done.errors
    assert "restoring system" in done.errors


def on_terminal(site: Site, *words: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal. Returns its status, its output and what the terminal got."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [BLOCKFERRY, *words],
            env={**site.environment, "TERM": "xterm", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        ) as process:
            os.close(theirs)
            shown = b"".join(iter(lambda: _read(ours), b""))
            assert process.stdout is not None
            output = process.stdout.read()
    finally:
        os.close(ours)
    return process.returncode, output, shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # Linux says so when the last process has closed the other side.
        return b""

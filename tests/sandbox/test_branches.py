# ruff: noqa: E501 (one program a line reads better than a program folded)
"""A branch has a copy of the files under the same names, and nothing that it does or sees is its origin's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from polyturn.sandbox import Limits, Sandbox, SandboxError, Session, Status, open_sandbox

# Names of the folder by every way in which a program may have learnt them before it was forked.
BEFORE = """
import ctypes, os
here, home, real = os.getcwd(), os.environ['HOME'], os.path.realpath('.')
libc = ctypes.CDLL(None); libc.getcwd.restype = ctypes.c_char_p
by_c = libc.getcwd(None, 0).decode()
names = dict(here=here, home=home, real=real, by_c=by_c)
os.makedirs('d/e'); open('a', 'w').write('A'); open('d/b', 'w').write('B')
os.chmod('a', 0o640); os.utime('a', (10, 10))
"""
LOOK = """
def look(top):
    return sorted((p[len(top):] or '.', oct(os.lstat(p).st_mode), os.lstat(p).st_mtime == 10)
                  for folder, _, files in os.walk(top) for p in [folder, *(os.path.join(folder, f) for f in files)])
"""


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=16, spares=0, preload=())
    with opened:
        if not opened.capabilities.fork:
            pytest.skip("sessions cannot be branched here")
        yield opened


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    opened = sandbox.open(Limits(wall_s=20.0, memory_mb=256))
    yield opened
    opened.close()


CHANGES = [
    "os.chmod({top}, 0)",
    "os.chmod({top}, 0o777)",
    "os.chmod({top} + '/a', 0)",
    "os.chmod({top} + '/d/e', 0)",
    "os.utime({top}, (1, 1))",
    "os.utime({top} + '/a', (1, 1))",
    "os.rename({top} + '/a', {top} + '/z')",
    "os.unlink({top} + '/d/b')",
    "os.truncate({top} + '/a', 0)",
    "open({top} + '/new', 'w')",
    "os.chown({top} + '/a', os.getuid(), os.getgid())",
    "os.setxattr({top} + '/a', 'user.x', b'1')",
    "os.mkfifo({top} + '/p')",
    "os.rmdir({top} + '/d/e')",
    "os.chmod(os.path.dirname({top}), 0)",
    "os.chmod(os.path.dirname(os.path.dirname({top})), 0)",
]


def test_nothing_that_a_branch_does_to_names_it_knows_reaches_its_origin(session: Session) -> None:
    """Modes, times and names are not Landlock's to protect; a branch of a branch tries as well."""
    session.run(BEFORE + LOOK)
    branch = session.fork()
    grandchild = branch.fork()
    before = session.run("look(here)").value
    for name in ("here", "home", "real", "by_c"):
        for attacker in (branch, grandchild):
            for change in CHANGES:
                attacker.run(change.format(top=f"names[{name!r}]"))
                attacker.run(f"os.chmod(names[{name!r}], 0o700)")
            assert session.run("look(here)").value == before, name
    assert session.run("os.chmod('a', 0o600); open('a').read(), open('d/b').read()").value == "('A', 'B')"
    assert session.fork().run("look(here)").value is not None
    for one in (branch, grandchild):
        one.close()


HELD = [
    "os.fchmod({fd}, 0)",
    "os.utime({fd}, (1, 1))",
    "os.chmod('/proc/self/fd/%d' % {fd}, 0)",
    "os.write({fd}, b'evil')",
    "os.ftruncate({fd}, 0)",
    "os.lseek({fd}, 100, 0)",
    "os.chmod('a', 0, dir_fd={fd})",
    "os.unlink('a', dir_fd={fd})",
    "os.rename('a', 'z', src_dir_fd={fd}, dst_dir_fd={fd})",
    "os.mkdir('new', dir_fd={fd})",
    "os.fchdir({fd}); open('new', 'w').close()",
]


def test_nothing_that_a_branch_does_to_what_it_held_open_reaches_its_origin(session: Session) -> None:
    """A fork shares open files; a branch has them on its own copies, at the same place."""
    opened = "top, sub, file = os.open('.', os.O_RDONLY), os.open('d', os.O_PATH), os.open('a', os.O_RDWR)\nos.read(file, 1)\n"
    session.run(BEFORE + LOOK + opened)
    before = session.run("look(here)").value
    for fd in ("top", "sub", "file"):
        for change in HELD:
            branch = session.fork()
            branch.run(change.format(fd=fd))
            assert session.run("look(here)").value == before, (fd, change)
            assert session.run("open('a').read(), os.lseek(file, 0, 1)").value == "('A', 1)", (fd, change)
            branch.close()


def test_a_branch_goes_on_writing_where_its_origin_was(session: Session) -> None:
    """Text still in a file's own buffer, a removed temporary file, a file that was made read-only, one to append to."""
    session.run(
        "import os, tempfile\nlog, more = open('log', 'w+'), open('more', 'a+')\nlog.write('start '); more.write('x'); more.flush()\n"
        "temporary = tempfile.TemporaryFile('w+'); temporary.write('kept '); temporary.flush(); os.chmod('log', 0o400)"
    )
    branch = session.fork()
    for one, text in ((branch, "branch"), (session, "origin")):
        one.run(f"for f in (log, more, temporary): f.write({text!r})")
    for one, text in ((session, "origin"), (branch, "branch")):
        read = "for f in (log, more, temporary): f.seek(0)\nlog.read(), more.read(), temporary.read(), oct(os.stat('log').st_mode)"
        assert one.run(read).value == f"('start {text}', 'x{text}', 'kept {text}', '0o100400')"
    branch.close()


def test_a_fork_whose_open_files_cannot_be_copied_is_refused(session: Session) -> None:
    session.run("import os; fd = os.open('gone', os.O_WRONLY | os.O_CREAT); os.unlink('gone')")
    with pytest.raises(SandboxError, match="a file open that it removed and cannot read"):
        session.fork()
    session.run("os.close(fd)")
    session.fork().close()


def test_a_branch_does_not_see_what_becomes_of_its_origins_files(session: Session) -> None:
    session.run(BEFORE)
    branch = session.fork()
    session.run("open('later', 'w').write('x' * 99); os.chmod('a', 0o400); os.remove('d/b')")
    for name in ("here", "home", "real", "by_c"):
        assert branch.run(f"os.path.exists(names[{name!r}] + '/later')").value == "False", name
        seen = branch.run(f"oct(os.stat(names[{name!r}] + '/a').st_mode)")
        assert seen.value == "'0o100640'" or "FileNotFoundError" in (seen.error or ""), name
    branch.close()


def test_absolute_names_lead_each_session_to_its_own_files(session: Session) -> None:
    """The name of the folder is the same in every session, so it can be kept, printed and compared."""
    session.run(BEFORE + "import tempfile; first = tempfile.mkstemp()[1]; open('mod.py', 'w').write('value = 1')")
    branch = session.fork()
    for one, text in ((session, "origin"), (branch, "branch")):
        assert one.run(f"open(here + '/a', 'w').write({text!r}); os.chmod(here + '/a', 0o600)").ok
        assert one.run(
            "import mod, os\nmod.value, os.path.exists(first), os.path.exists(tempfile.mkstemp()[1])"
        ).value == ("(1, True, True)")
    for one, text in ((session, "origin"), (branch, "branch")):
        assert one.run("open('a').read(), open(home + '/a').read(), os.getcwd() == here == home").value == (
            f"({text!r}, {text!r}, True)"
        )
        assert one.run(
            "os.chdir('d/e'); os.getcwd() == here + '/d/e', os.getcwdb() == os.fsencode(os.getcwd())"
        ).value == ("(True, True)")
    grandchild = branch.fork()
    assert grandchild.run("os.getcwd() == here + '/d/e', open(here + '/a').read()").value == "(True, 'branch')"
    branch.close()
    grandchild.close()


def test_the_name_of_the_folder_is_no_source_of_chance(sandbox: Sandbox) -> None:
    """Texts that programs print must not differ between two episodes that are otherwise the same."""
    said = []
    for _ in range(2):
        session = sandbox.open(seed=1)
        said.append(
            session.run(
                "import os, tempfile\nprint(os.getcwd(), tempfile.gettempdir(), os.path.abspath('x'))\nopen('missing')"
            )
        )
        session.close()
    assert said[0].stdout == said[1].stdout
    assert said[0].error == said[1].error
    assert said[0].status is Status.ERROR


def test_programs_of_other_kinds_find_the_folder_too(sandbox: Sandbox) -> None:
    """A shell inherits no descriptor that a fixed name could lead to, so there the true name is given."""
    session = sandbox.open(Limits(wall_s=20.0, programs=True))
    shell = "import subprocess, os\nopen('a', 'w').write('text')\n"
    look = "subprocess.run(['/bin/sh', '-c', 'cat \"$HOME/a\"'], capture_output=True, text=True, env=os.environ).stdout"
    assert session.run(shell + look).value == "'text'"
    branch = session.fork()
    for one in (session, branch):
        assert one.run(look).value == "'text'"
    branch.close()
    session.close()

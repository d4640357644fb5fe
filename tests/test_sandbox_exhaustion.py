"""What the sessions of one container share is never used up, nor held up, by one of them: disk, user ids, births.

A session that goes beyond its share is ended or refused; whoever comes after it finds everything as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from turnwise.sandbox import Limits, Session, Status
from turnwise.sandbox.docker import DockerSandbox

pytestmark = pytest.mark.docker

LIMITS = Limits(wall_s=20.0, memory_mb=256)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DockerSandbox]:
    with DockerSandbox(sessions=64, memory_mb=1024, spares=0, containers=1) as opened:
        yield opened


@pytest.fixture
def session(sandbox: DockerSandbox) -> Iterator[Session]:
    opened = sandbox.open(LIMITS)
    yield opened
    opened.close()


def in_use(session: Session) -> int:
    """Blocks and entries in use on the disk that the sessions share, as any of them sees it."""
    seen = session.run("import os; v = os.statvfs('.'); v.f_blocks - v.f_bfree + v.f_files - v.f_ffree")
    assert seen.value is not None
    return int(seen.value)


def wait_until(true_at_last: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not true_at_last():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# Each of 250 letters: the sixteenth is deeper than the 4,096 bytes of a path, where names alone no longer reach.
DEEP = "import os\nn = 'd' * 250\nfor _ in range(40): os.mkdir(n); os.chdir(n)\n"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (DEEP + "for i in range(8): open(str(i), 'wb').write(bytes(8 << 20))", Status.CRASH),
        (DEEP + "for i in range(3000): open(str(i), 'w').close()", Status.CRASH),
        (DEEP, Status.OK),
        ("import os\nfor _ in range(1900): os.mkdir('d'); os.chdir('d')", Status.OK),
        ("import os; open('f', 'w').write('x' * 9999); os.chmod('.', 0)", Status.OK),
    ],
    ids=["bytes too deep", "files too deep", "long names", "many levels", "closed to itself"],
)
def test_a_share_of_the_disk_is_kept_and_given_back(
    sandbox: DockerSandbox, session: Session, program: str, status: Status
) -> None:
    before = in_use(session)
    attacker = sandbox.open(LIMITS)
    result = attacker.run(program)
    if result.status is Status.OK and status is Status.CRASH:  # it was quicker than the watch, which looks once more
        assert attacker.run("1").state_lost
    else:
        assert result.status is status, result
    attacker.close()
    assert wait_until(lambda: in_use(session) <= before), (before, in_use(session))

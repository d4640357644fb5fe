"""The same hostile programs inside gVisor, whose kernel lacks Landlock and process limits: the rest is promised.

Needs a Docker engine that knows the runtime "runsc".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, Attack, Campaign, judge

from polyturn.cli import main
from polyturn.sandbox import SandboxError, Status
from polyturn.sandbox.docker import DockerSandbox, connect

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    client = connect()
    known = client.info()["Runtimes"]
    client.close()
    if "runsc" not in known:
        pytest.skip("the Docker engine has no runtime 'runsc' (gVisor)")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sandbox = DockerSandbox(runtime="runsc", transport="attach", sessions=128)
    assert "no Landlock" in str(said[0].message)
    with sandbox:
        campaign = Campaign(sandbox, ATTACKS, crowd=4)
        yield campaign
        campaign.close()


def test_what_this_kernel_lacks_is_declared(campaign: Campaign) -> None:
    """16 of the programs start processes or look round the system's folders; the others must all be stopped."""
    seen = campaign.sandbox.capabilities
    assert (seen.name, seen.fork, seen.landlock) == ("docker/standard/runsc", False, False)
    assert all((seen.network_denied, seen.users_separate, seen.syscalls_filtered, seen.memory_limited))
    assert len(ATTACKS) - len(campaign.outcomes) == 16


def test_variables_live_on_and_a_branch_is_refused(campaign: Campaign) -> None:
    with campaign.sandbox.open() as session:
        session.run("x = 6")
        assert session.run("x * 7").value == "42"
        with pytest.raises(SandboxError, match="cannot fork"):
            session.fork()
        assert session.run("import os; os.fork()").status is Status.ERROR
        assert session.run("x").value == "6"


def test_files_are_limited_though_this_kernel_does_not_count_them(campaign: Campaign) -> None:
    """Its file system reports no number of files in use, by which the watch otherwise knows when to look."""
    with campaign.sandbox.open() as session:
        result = session.run("for i in range(3000): open(str(i), 'w').close()", wall_s=60)
        assert "more than 2048 files" in (result.error or session.run("1").error or "")


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not a.needs], ids=lambda attack: attack.name)
def test_gvisor(campaign: Campaign, attack: Attack) -> None:
    judge(campaign, attack)


def test_the_command_runs_a_program_there(
    campaign: Campaign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text("print(6 * 7)")
    assert main(["sandbox", "run", str(program), "--runtime", "runsc"]) == 0
    assert capsys.readouterr().out == "42\n"


def test_a_runtime_for_the_local_sandbox_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--runtime", "runsc", "--sandbox", "local"]) == 2
    assert "--runtime is Docker's" in capsys.readouterr().err

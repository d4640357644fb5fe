"""Hostile programs against every sandbox: each has the named outcome, and afterwards nothing shows that it ran.

After each attack: the next honest call in the same session works, a neighbour's variables and files are untouched,
no process of the attacker's user is left on the machine, and its folder is gone. The programs run several at a time,
as they would in training; each test then looks at what came of one of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, Attack, Campaign, judge

from polyturn.sandbox import open_sandbox


@pytest.fixture(scope="module")
def docker_campaign() -> Iterator[Campaign]:
    with open_sandbox("docker", sessions=128) as sandbox:
        campaign = Campaign(sandbox, ATTACKS)
        yield campaign
        campaign.close()


@pytest.fixture(scope="module")
def local_campaign() -> Iterator[Campaign]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sandbox = open_sandbox("local", sessions=128)
    with sandbox:
        campaign = Campaign(sandbox, ATTACKS if sandbox.capabilities.syscalls_filtered else [])
        yield campaign
        campaign.close()


@pytest.mark.docker
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_docker(docker_campaign: Campaign, attack: Attack) -> None:
    judge(docker_campaign, attack)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_local(local_campaign: Campaign, attack: Attack) -> None:
    judge(local_campaign, attack)


def test_there_are_as_many_attacks_as_the_security_page_says() -> None:
    """The page claims at least 200; names are unique, or one outcome would stand for two."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 200
    assert os.path.basename(__file__) in (Path(__file__).parents[2] / "docs" / "SECURITY.md").read_text()

"""A separate engine is restarted under load: only the calls in flight are lost, and are reported as lost."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from polyturn.benchmarks.sandbox.engine import OwnEngine, under_load
from polyturn.sandbox import SandboxUnavailable
from polyturn.sandbox.docker import LABEL, DockerSandbox, connect
from polyturn.sandbox.images import host_image

CAN = os.geteuid() == 0 and shutil.which("dockerd") is not None


@pytest.mark.skipif(not CAN, reason="needs root, to start its own engine")
def test_an_engine_restarted_under_load_loses_the_calls_in_flight_and_no_more(tmp_path: Path) -> None:
    """Four callers: each may lose the call it is in; no call gets a wrong answer; afterwards all go on."""
    with OwnEngine() as engine:
        archive = tmp_path / "root.tar"
        host_image.write_archive(archive, [])
        client = connect(engine.address)
        client.api.import_image_from_file(str(archive), repository="polyturn-test-host", tag="1")

        def restart() -> None:
            engine.stop()
            time.sleep(0.5)
            engine.start()

        with DockerSandbox(
            engines=[engine.address], image="polyturn-test-host:1", preload=(), spares=0, sessions=16
        ) as sandbox:
            counts = under_load(sandbox, restart, callers=4, seconds=1)
        assert counts["wrong"] == 0
        assert 1 <= counts["calls reported lost"] <= 4
        assert counts["right before"] > 0
        assert counts["right after"] > 0
        assert client.api.containers(all=True, filters={"label": LABEL}) == []
        client.close()


def test_an_engine_of_another_address_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxUnavailable, match="root and `dockerd`"):
        OwnEngine()

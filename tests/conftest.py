"""What every test file shares: one thread a process, no network, and Docker tests that cannot vanish unseen."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

# Set before any test imports torch or tokenizers: two workers on two cores must not start a thread a core each,
# and a test that needs the network must fail everywhere, not only on a train.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

# Some tests start processes that load a test file, and with it the modules that test files share.
_HELPERS = str(Path(__file__).parent / "helpers")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_HELPERS, os.environ.get("PYTHONPATH"))))

# A shell that starts something in the background has it ignore Ctrl-C, and children inherit that; the tests of Ctrl-C
# need what a terminal gives.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DOCKER_SKIPS = pytest.StashKey[int]()


@lru_cache
def docker_problem() -> str:
    """Why Docker tests cannot run here, or ""."""
    from polyturn.sandbox.docker import connect
    from polyturn.sandbox.images.image import require
    from polyturn.sandbox.sandbox import SandboxError

    try:
        client = connect()
        try:
            require(client)
        finally:
            client.close()
    except SandboxError as error:
        return str(error)
    return ""


def docker_required() -> bool:
    """Whether a skipped Docker test is a failure, as in continuous integration."""
    return os.environ.get("POLYTURN_REQUIRE_DOCKER", "0") == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and (problem := docker_problem()):
        pytest.skip(problem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    xfailed = hasattr(report, "wasxfail")
    if report.skipped and not xfailed and docker_required() and _about_docker(report, item):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped although POLYTURN_REQUIRE_DOCKER=1: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    if report.skipped and docker_required() and _about_docker(report):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: skipped although POLYTURN_REQUIRE_DOCKER=1: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    docker = [report for report in skipped if _about_docker(report)]
    if docker:
        terminalreporter.write_line(f"Docker tests skipped: {len(docker)} ({_reason(docker[0])})", yellow=True)


def _about_docker(report: Any, item: pytest.Item | None = None) -> bool:
    marked = "docker" in report.keywords if hasattr(report, "keywords") else False
    return (
        marked
        or (item is not None and item.get_closest_marker("docker") is not None)
        or "docker" in _reason(report).lower()
    )


def _reason(report: Any) -> str:
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")


@pytest.fixture(scope="session", autouse=True)
def one_copy_of_every_module() -> Iterator[None]:
    """Fails the run if a floor was imported by its bare name: every class would exist twice."""
    yield
    import sys

    bare = [name for name in ("sandbox", "envs", "agents", "algorithms", "benchmarks") if name in sys.modules]
    assert not bare, f"imported without 'polyturn.': {bare}"

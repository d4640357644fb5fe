"""The image is built from checked packages, from a base that can be pinned, and with an optimised BLAS."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyturn.sandbox import SandboxUnavailable, open_sandbox
from polyturn.sandbox.images import build as building, image
from polyturn.sandbox.images.build import build

DIGEST = "sha256:" + "0123456789abcdef" * 4


class Builder:
    """An engine that notes what it is asked to build."""

    def __init__(self) -> None:
        self.images = self
        self.asked: dict[str, Any] = {}

    def build(self, **options: Any) -> None:
        self.asked = options

    def get(self, name: str) -> SimpleNamespace:
        labels = {image.CONTENT_LABEL: name.partition(":")[2]}
        return SimpleNamespace(id="sha256:1234567890abcdef", labels=labels, attrs={"RepoDigests": [f"debian@{DIGEST}"]})


def test_a_base_is_pinned_by_its_digest_and_an_unpinned_build_says_how() -> None:
    said: list[str] = []
    engine: Any = Builder()
    build(engine, method="registry", say=said.append)
    assert engine.asked["buildargs"]["BASE"] == "debian:bookworm-slim"
    assert f"--base debian:bookworm-slim@{DIGEST}" in "\n".join(said)
    pinned = f"debian:bookworm-slim@{DIGEST}"
    said.clear()
    build(engine, method="registry", base=pinned, say=said.append)
    assert engine.asked["buildargs"]["BASE"] == pinned
    assert "--base" not in "\n".join(said)
    assert engine.asked["labels"] == {image.CONTENT_LABEL: image.content()}  # the same recipe, so the same name
    build(engine, base=pinned, say=said.append)  # "auto" then means the registry
    for wrong in ("debian:bookworm-slim", f"debian@{DIGEST[:-1]}", "debian@sha256:" + "g" * 64):
        with pytest.raises(ValueError, match="base is an image with its digest"):
            build(engine, method="registry", base=wrong)
    with pytest.raises(ValueError, match="base is for the method 'registry'"):
        build(engine, method="host", base=pinned)


def test_the_dockerfile_takes_the_base_and_the_packages_of_the_recipe() -> None:
    text = image.dockerfile()
    assert f"ARG BASE={image.BASE}\nFROM ${{BASE}}\n" in text
    assert all(package in text for package in image.DEBIAN_PACKAGES if package != "python3-minimal")


def test_packages_are_never_taken_unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """debootstrap only warns where it cannot check: so it is told to, and not started where it could not."""
    ran: list[list[str]] = []

    def run(command: list[str], what: str) -> None:
        ran.append(command)
        raise SandboxUnavailable("stopped here")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(building, "_run", run)
    engine: Any = Builder()
    (tmp_path / "keys.gpg").write_text("")
    monkeypatch.setattr(image, "DEBIAN_KEYRING", str(tmp_path / "keys.gpg"))
    with pytest.raises(SandboxUnavailable, match="stopped here"):
        build(engine, method="debootstrap", say=print)
    assert {"--force-check-gpg", f"--keyring={tmp_path}/keys.gpg"} <= set(ran[0])
    monkeypatch.setattr(image, "DEBIAN_KEYRING", str(tmp_path / "missing.gpg"))
    with pytest.raises(SandboxUnavailable, match=r"cannot be checked .*apt install debian-archive-keyring gpgv"):
        build(engine, method="debootstrap", say=print)
    assert len(ran) == 1


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("debootstrap") is None or not os.path.exists(image.DEBIAN_KEYRING),
    reason="needs root, debootstrap and Debian's keys",
)
def test_a_mirror_whose_signature_is_not_debians_is_refused(tmp_path: Path) -> None:
    release = tmp_path / "dists" / image.DEBIAN_RELEASE
    release.mkdir(parents=True)
    text = f"Origin: Debian\nCodename: {image.DEBIAN_RELEASE}\nComponents: main\nArchitectures: amd64\n"
    for name, content in (("InRelease", text), ("Release", text), ("Release.gpg", "no signature")):
        (release / name).write_text(content)
    engine: Any = Builder()
    with pytest.raises(SandboxUnavailable, match="debootstrap failed"):
        build(engine, method="debootstrap", mirror=f"file://{tmp_path}", say=print)


@pytest.mark.docker
def test_numpy_multiplies_with_an_optimised_library() -> None:
    """OpenBLAS answers to its own name; in an image of this machine's Python it comes with numpy."""
    code = (
        "import ctypes, glob, numpy, os\n"
        "own = glob.glob(os.path.dirname(numpy.__file__) + '.libs/*openblas*')\n"
        "own or ctypes.CDLL('libblas.so.3').openblas_get_num_threads()"
    )
    with open_sandbox("docker", spares=0) as sandbox, sandbox.open() as session:  # type: ignore[attr-defined]
        value = session.run(code).value
        assert value == "1" or "openblas" in (value or ""), value

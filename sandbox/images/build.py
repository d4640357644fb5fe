"""Builds the sandbox image: from a registry by Dockerfile, or without one from Debian packages or the host's Python."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyturn.sandbox.images import host_image, image
from polyturn.sandbox.sandbox import SandboxUnavailable

if TYPE_CHECKING:
    import docker

_PINNED = re.compile(r"\S+@sha256:[0-9a-f]{64}")
METHODS = ("auto", "registry", "debootstrap", "host")
_UNNEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)


def build(
    client: docker.DockerClient,
    *,
    method: str = "auto",
    packages: Sequence[str] = (),
    mirror: str = "http://deb.debian.org/debian",
    base: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Builds the image and checks it.

    Args:
        client: The engine that shall have it.
        method: "registry" (the Dockerfile; needs Docker Hub), "debootstrap" (a root file system of Debian packages;
            needs root and a Debian mirror), "host" (this machine's own Python, its numpy and sympy, and the libraries
            they need; Linux), or "auto": debootstrap where it can run, else the registry.
        packages: Further Debian packages, for example "python3-scipy"; by "host" further Python distributions that
            are installed here, for example "scipy". They make another image with another name, for
            `open_sandbox("docker", image=...)`.
        mirror: The Debian mirror for debootstrap, which checks the signatures of what it gets there.
        base: The image that the Dockerfile starts from, with its digest (`name:tag@sha256:...`); None means the tag of
            Debian, the image of that name at the time. Only for "registry".
        say: Takes one line of progress at a time.

    Returns:
        The image's name.

    Raises:
        SandboxUnavailable: It could not be built; the message holds the reason.
        ValueError: No such method, or `base` names no digest or belongs to another method.
    """
    if base is not None and not _PINNED.fullmatch(base):
        raise ValueError(f"base is an image with its digest, such as {image.BASE}@sha256:(64 hex digits), not {base!r}")
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if method == "host":
        name, labels = image.host_name(packages), {image.CONTENT_LABEL: image.host_content(packages)}
    else:
        name, labels = image.default_name(packages), {image.CONTENT_LABEL: image.content(packages)}
    if method == "auto":
        here = base is None and os.geteuid() == 0 and shutil.which("debootstrap")
        method = "debootstrap" if here else "registry"
    if base is not None and method != "registry":
        raise ValueError(f"base is for the method 'registry', not {method!r}")
    say(f"building {name} by {method}")
    if method == "host":
        _from_host(client, name, [*host_image.DISTRIBUTIONS, *packages], labels, say)
    elif method == "registry":
        _from_registry(client, name, packages, labels, base, say)
    else:
        _from_packages(client, name, packages, labels, mirror, say)
    found = image.require(client, name)
    say(f"built {name} ({found[7:19]})")
    return name


def _from_registry(
    client: docker.DockerClient, name: str, packages: Sequence[str], labels: dict[str, str], base: str | None,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    from docker.errors import BuildError, DockerException

    folder = Path(__file__).parent
    arguments = {"PACKAGES": " ".join(packages), "BASE": base or image.BASE}
    try:
        client.images.build(path=str(folder), tag=name, buildargs=arguments, labels=labels, rm=True)
    except (BuildError, DockerException) as error:
        raise SandboxUnavailable(
            f"the image could not be built from the registry: {error}; without one, use this machine's own Python "
            "(`polyturn sandbox build --method host`), or debootstrap as root (`--method debootstrap`)"
        ) from None
    if base is None:
        with contextlib.suppress(DockerException):
            digest = next(iter(client.images.get(image.BASE).attrs.get("RepoDigests") or []), "").rpartition("@")[2]
            say(f"{image.BASE} can change; to build from the same image again: --base {image.BASE}@{digest}")


def _from_packages(
    client: docker.DockerClient, name: str, packages: Sequence[str], labels: dict[str, str], mirror: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SandboxUnavailable("debootstrap needs root and the debootstrap package (`apt install debootstrap`)")
    if not os.path.exists(image.DEBIAN_KEYRING) or shutil.which("gpgv") is None:
        # Without them debootstrap would take the packages of any mirror unchecked, with a warning.
        raise SandboxUnavailable(
            f"the signatures of Debian's packages cannot be checked without {image.DEBIAN_KEYRING} and gpgv: "
            "`apt install debian-archive-keyring gpgv`"
        )
    with tempfile.TemporaryDirectory(prefix="polyturn-image-") as folder:
        root = os.path.join(folder, "root")
        include = ",".join(image.DEBIAN_PACKAGES)
        checked = ["--force-check-gpg", f"--keyring={image.DEBIAN_KEYRING}"]
        command = ["debootstrap", "--variant=minbase", *checked, f"--include={include}", image.DEBIAN_RELEASE]
        _run([*command, root, mirror], "debootstrap")
        if packages:  # by apt, which orders dependencies that debootstrap stumbles over
            shutil.copy("/etc/resolv.conf", os.path.join(root, "etc", "resolv.conf"))
            say(f"installing {' '.join(packages)}")
            _run(["chroot", root, "apt-get", "update", "-q"], "apt-get update")
            install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
            _run(["chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", *install], "apt-get install")
        for unneeded in _UNNEEDED:
            path = os.path.join(root, unneeded)
            if os.path.isdir(path):
                shutil.rmtree(path)
                os.mkdir(path)
        archive = os.path.join(folder, "root.tar")
        _run(["tar", "-C", root, "--numeric-owner", "-cf", archive, "."], "tar")
        _import(client, name, archive, labels, say)


def _from_host(
    client: docker.DockerClient, name: str, distributions: Sequence[str], labels: dict[str, str],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="polyturn-image-") as folder:
        archive = os.path.join(folder, "root.tar")
        host_image.write_archive(Path(archive), distributions)
        _import(client, name, archive, labels, say)


def _import(
    client: docker.DockerClient, name: str, archive: str, labels: dict[str, str], say: Callable[[str], None]
) -> None:
    say(f"importing {os.path.getsize(archive) >> 20} MB")
    repository, _, tag = name.partition(":")
    changes = [f"LABEL {key}={value}" for key, value in labels.items()]
    answer = client.api.import_image_from_file(archive, repository=repository, tag=tag, changes=changes)
    if '"error"' in str(answer):
        raise SandboxUnavailable(f"the Docker engine refused the image: {answer}")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise SandboxUnavailable(f"{what} failed with code {done.returncode}: {last[0]}")

"""Builds the sandbox image: from a registry by Dockerfile, or without one from Debian packages or the host's Python."""

from __future__ import annotations

import os
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
    say: Callable[[str], None] = print,
) -> str:
    """Builds the image and checks it.

    Args:
        client: The engine that shall have it.
        method: "registry" (the Dockerfile; needs Docker Hub), "debootstrap" (a root file system of Debian packages;
            needs root and a Debian mirror), "host" (this machine's own Python, its numpy and sympy, and the libraries
            they need; Linux), or "auto": debootstrap where it can run, else the registry.
        packages: Further Debian packages, for example "python3-scipy"; by "host" further Python distributions that
            are installed here, for example "scipy". They make another image with a name of its own, for
            `open_sandbox("docker", image=...)`.
        mirror: The Debian mirror for debootstrap.
        say: Takes one line of progress at a time.

    Returns:
        The image's name.

    Raises:
        SandboxUnavailable: It could not be built; the message holds the reason.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if method == "host":
        name, labels = image.host_name(packages), {image.CONTENT_LABEL: image.host_content(packages)}
    else:
        name, labels = image.default_name(packages), {image.CONTENT_LABEL: image.content(packages)}
    if method == "auto":
        method = "debootstrap" if os.geteuid() == 0 and shutil.which("debootstrap") else "registry"
    say(f"building {name} by {method}")
    if method == "host":
        _from_host(client, name, [*host_image.DISTRIBUTIONS, *packages], labels, say)
    elif method == "registry":
        _from_registry(client, name, packages, labels)
    else:
        _from_packages(client, name, packages, labels, mirror, say)
    found = image.require(client, name)
    say(f"built {name} ({found[7:19]})")
    return name


def _from_registry(client: docker.DockerClient, name: str, packages: Sequence[str], labels: dict[str, str]) -> None:
    from docker.errors import BuildError, DockerException

    folder = Path(__file__).parent
    arguments = {"PACKAGES": " ".join(packages)}
    try:
        client.images.build(path=str(folder), tag=name, buildargs=arguments, labels=labels, rm=True)
    except (BuildError, DockerException) as error:
        raise SandboxUnavailable(
            f"the image could not be built from the registry: {error}; without one, use this machine's own Python "
            "(`polyturn sandbox build --method host`), or debootstrap as root (`--method debootstrap`)"
        ) from None


def _from_packages(
    client: docker.DockerClient, name: str, packages: Sequence[str], labels: dict[str, str], mirror: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SandboxUnavailable("debootstrap needs root and the debootstrap package (`apt install debootstrap`)")
    with tempfile.TemporaryDirectory(prefix="polyturn-image-") as folder:
        root = os.path.join(folder, "root")
        include = ",".join(image.DEBIAN_PACKAGES)
        command = ["debootstrap", "--variant=minbase", f"--include={include}", image.DEBIAN_RELEASE, root, mirror]
        _run(command, "debootstrap")
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

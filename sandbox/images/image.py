"""The container image: what is in it, how it is built with and without a registry, how it is recognised."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyturn.sandbox.images import host_image
from polyturn.sandbox.sandbox import ImageMissing, SandboxUnavailable

if TYPE_CHECKING:
    import docker

REPOSITORY = "polyturn-sandbox"
CONTENT_LABEL = "polyturn.sandbox.content"
DEBIAN_RELEASE = "bookworm"
BASE = f"debian:{DEBIAN_RELEASE}-slim"  # what the Dockerfile starts from, unless a digest is named
# numpy takes whichever BLAS is there: OpenBLAS multiplies 1000 x 1000 matrices in a seventh of the reference's time.
DEBIAN_PACKAGES = ("python3-minimal", "python3", "python3-numpy", "python3-sympy", "libopenblas0-serial")
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def dockerfile() -> str:
    """The Dockerfile's text."""
    return (Path(__file__).parent / "Dockerfile").read_text(encoding="utf-8")


def content(packages: Sequence[str] = ()) -> str:
    """What an image must be made from: a digest of its recipe. The supervisor is not in it: it is sent at start."""
    return _digest([dockerfile(), DEBIAN_RELEASE, *DEBIAN_PACKAGES, *sorted(packages)])


def host_content(distributions: Sequence[str] = ()) -> str:
    """The same for an image made from this machine's Python: other versions here, another digest."""
    return _digest(host_image.recipe(distributions))


def _digest(recipe: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]


def default_name(packages: Sequence[str] = ()) -> str:
    """The image this version uses, with these further packages."""
    return f"{REPOSITORY}:{content(packages)}"


def host_name(distributions: Sequence[str] = ()) -> str:
    """The image made from this machine's Python, with these further distributions."""
    return f"{REPOSITORY}:{host_content(distributions)}"


def require(client: docker.DockerClient, name: str | None = None) -> str:
    """The id of an image that is there and right.

    Args:
        client: The engine.
        name: Another name; None means the project's: that of Debian packages, else that of this machine's
            Python. An image of the project's repository must carry the content label its tag says.

    Raises:
        ImageMissing: It is not there, or its label is another recipe's.
    """
    from docker.errors import ImageNotFound

    wanted = name or default_name()
    try:
        found = client.images.get(wanted)
    except ImageNotFound:
        if name is None:
            with contextlib.suppress(ImageMissing, SandboxUnavailable):
                return require(client, host_name())
        remedy = "build it with `polyturn sandbox build`" if name is None else "pull or build it first"
        raise ImageMissing(f"the Docker engine has no image {wanted}: {remedy}") from None
    repository, _, tag = wanted.partition(":")
    label = (found.labels or {}).get(CONTENT_LABEL)
    if repository == REPOSITORY and label != tag:
        raise ImageMissing(
            f"image {wanted} was made from recipe {label}, expected {tag}: rebuild it with `polyturn sandbox build`"
        )
    identity: str = found.id
    return identity

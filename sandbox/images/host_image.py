"""An image put together from this machine's own Python: for people with neither a registry nor a Debian mirror."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from polyturn.sandbox.sandbox import SandboxUnavailable

DISTRIBUTIONS = ("numpy", "sympy")
PACKAGES = "usr/local/lib/python3/dist-packages"  # where a supervisor in a container looks for packages
_FOLDERS = ("dev", "etc", "proc", "run/polyturn", "sys", "tmp", "usr/local/bin", "work")
_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "ensurepip", "site-packages", "dist-packages", "tkinter"}
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")


def recipe(distributions: Sequence[str] = ()) -> list[str]:
    """What the image is made from: this interpreter and the versions of these distributions and the usual ones."""
    versions = [f"{name}=={distribution(name).version}" for name in closure([*DISTRIBUTIONS, *distributions])]
    return ["host", platform.machine(), platform.python_version(), *versions]


def closure(names: Sequence[str]) -> list[str]:
    """Installed distributions and what they need, sorted.

    Raises:
        SandboxUnavailable: One of the named ones is not installed here.
    """
    found: set[str] = set()
    waiting = [(name, True) for name in names]
    while waiting:
        name, asked = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            if asked:
                raise SandboxUnavailable(
                    f"the Python distribution {name!r} is not installed here, so no image can be made from it: "
                    f"`pip install {name}`"
                ) from None
            continue  # needed elsewhere only
        found.add(key)
        plain = (re.match(r"[A-Za-z0-9._-]+", need) for need in needs if "extra" not in need)
        waiting.extend((match.group(), False) for match in plain if match)
    return sorted(found)


def contents(distributions: Sequence[str]) -> dict[str, str]:
    """Every file of the image: its path there (without the leading slash) and here."""
    if sys.platform != "linux":
        raise SandboxUnavailable("only the Python of a Linux machine can run in a container")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    files = {f"usr/local/bin/{version}": os.path.realpath(sys.executable)}
    standard = sysconfig.get_path("stdlib")
    for path in _below(standard):
        files[f"usr/local/{sys.platlibdir}/{version}/{path}"] = os.path.join(standard, path)
    for name in closure(distributions):
        for entry in distribution(name).files or []:
            inside = PurePosixPath(entry)
            if ".." not in inside.parts and not _LEFT_OUT & set(inside.parts):
                files[f"{PACKAGES}/{inside}"] = str(entry.locate())
    files = {there: here for there, here in files.items() if os.path.isfile(here)}
    own = {os.path.realpath(here) for here in files.values()}
    for library in libraries([here for here in files.values() if _is_binary(here)]):
        if os.path.realpath(library) not in own:
            files[library.lstrip("/")] = library
    return files


def _below(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in names:
            if not name.startswith("_tkinter") and not name.endswith((".a", ".opt-1.pyc", ".opt-2.pyc")):
                yield os.path.relpath(os.path.join(folder, name), root)


def _is_binary(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(binaries: Sequence[str]) -> list[str]:
    """Shared libraries these need, the loader among them, as the loader itself finds them.

    Raises:
        SandboxUnavailable: There is no `ldd` to ask.
    """
    if shutil.which("ldd") is None:
        raise SandboxUnavailable("`ldd` is needed to find the libraries of this Python (package libc-bin)")
    found: set[str] = set()
    for start in range(0, len(binaries), 64):
        done = subprocess.run(["ldd", *binaries[start : start + 64]], capture_output=True, text=True, check=False)
        found.update(_LIBRARY.findall(done.stdout))
    return sorted(found)


def write_archive(path: Path, distributions: Sequence[str]) -> None:
    """Writes the image's root file system as a tar file."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with tarfile.open(path, "w", dereference=True) as archive:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("python3", "python"):
            entry = tarfile.TarInfo(f"usr/local/bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, version
            archive.addfile(entry)
        for there, here in sorted(contents(distributions).items()):
            entry = archive.gettarinfo(here, there)
            if not entry.isreg():
                continue
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            with open(here, "rb") as file:
                archive.addfile(entry, file)

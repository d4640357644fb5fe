"""What to install where an optional package is missing."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit


def how_to_install(extra: str) -> str:
    """The command that adds an extra of polyturn, for the end of an error message.

    Until the first release polyturn is on no index (another project there has a similar name), so the command names the
    checkout or the wheel that this installation came from.
    """
    try:
        note = json.loads(distribution("polyturn").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        note = {}
    url = note.get("url", "")
    if url.startswith("file:") and "dir_info" in note:
        editable = "-e " if note["dir_info"].get("editable") else ""
        return f'pip install {editable}"{unquote(urlsplit(url).path)}[{extra}]"'
    if url:
        return f'pip install "polyturn[{extra}] @ {url}"'
    return f'pip install "PATH[{extra}]", where PATH is the repository or the wheel that polyturn was installed from'

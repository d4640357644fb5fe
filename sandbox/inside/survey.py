"""Measures folders in another process, so that no session waits for another one's files. Runs inside.

A program chooses how many files it has and how deep they lie. The supervisor therefore never walks a folder: it asks
here, and acts when the answer comes. Folders are measured in turns of a few entries each, so that a small one is done
soon, however much the others hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, NoReturn

from polyturn.sandbox.inside import isolation

ENTRIES_A_TURN = 128
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def main(channel: socket.socket, config: dict[str, Any]) -> NoReturn:
    """Answers requests until the channel ends."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):  # the host's channel
            os.dup2(null, fd)
        os.close(null)
        if isolation.LINUX:
            isolation.prctl(isolation.PR_SET_PDEATHSIG, 9)
        serve(channel, users=config["users"])
    except BaseException as error:
        os.write(2, f"survey: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def serve(channel: socket.socket, *, users: bool) -> None:
    """Takes requests as they come and measures all folders in turn."""
    at_work: deque[tuple[int, int | None, Iterator[tuple[int, int]]]] = deque()
    while True:
        while select.select([channel], [], [], 0 if at_work else None)[0]:
            data = channel.recv(65536)
            if not data:
                return
            request = json.loads(data)
            at_work.append((request["number"], request["uid"], measure(request["folder"], request["most"])))
        number, uid, steps = at_work.popleft()
        if users:
            os.seteuid(uid or 0)  # with the rights of the files' owner; signals to this process stay root's to send
        try:
            found = next(steps)
        finally:
            if users:
                os.seteuid(0)
        if found == CONTINUES:
            at_work.append((number, uid, steps))
        else:
            channel.send(json.dumps([number, *found]).encode())


CONTINUES = (-1, -1)


def measure(path: str, most: int) -> Iterator[tuple[int, int]]:
    """Bytes and entries below a folder; stops counting at `most` entries. A folder closed to its owner is opened.

    Folders are opened one within the other by name, never by a path, whose length and cost a program chooses. A folder
    stays open only as long as it has others in it that are not measured yet.

    Yields:
        `CONTINUES` after each turn, then bytes and entries.
    """
    size = entries = turn = 0
    stack: list[tuple[int, list[str]]] = []  # open folders, and the names of those in them still to be measured
    try:
        with contextlib.suppress(OSError):
            stack.append((_open(path, None), []))
            fresh = True
        while stack and entries < most:
            fd, names = stack[-1]
            if fresh:
                with contextlib.suppress(OSError), os.scandir(fd) as listing:
                    for entry in listing:
                        entries += 1
                        turn += 1
                        with contextlib.suppress(OSError):  # removed meanwhile; the others count
                            if entry.is_dir(follow_symlinks=False):
                                names.append(entry.name)
                            else:
                                size += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entries >= most:
                            break
                        if turn >= ENTRIES_A_TURN:
                            turn = 0
                            yield CONTINUES
            fresh = False
            if not names:
                os.close(stack.pop()[0])
            else:
                name = names.pop()
                try:
                    inner = _open(name, fd)
                except OSError:  # removed meanwhile, or moved
                    continue
                if not names:
                    os.close(stack.pop()[0])
                stack.append((inner, []))
                fresh = True
            if turn >= ENTRIES_A_TURN:
                turn = 0
                yield CONTINUES
        yield size, entries
    finally:
        for fd, _ in stack:
            os.close(fd)


def glance(path: str, most: int) -> tuple[int, int] | None:
    """Bytes and entries of a small folder, at a cost that no program chooses.

    Returns:
        As `measure` counts them, or None where there are more than `most` entries, or folders, or it is closed.
    """
    size = entries = 0
    try:
        fd = os.open(path, _OPEN_FOLDER)
    except OSError:
        return None
    try:
        with os.scandir(fd) as listing:
            for entry in listing:
                entries += 1
                if entries > most or entry.is_dir(follow_symlinks=False):
                    return None
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile, by a thread
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return None
    finally:
        os.close(fd)
    return size, entries


def _open(name: str, folder: int | None) -> int:
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=folder)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder)
        return os.open(name, _OPEN_FOLDER, dir_fd=folder)

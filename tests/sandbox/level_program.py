# ruff: noqa: E501 (one program a line reads better than a program folded)
"""Looks at one level of the local sandbox from inside and outside, as the user that starts it, and prints what it saw.

`test_plain` starts it, beside a copy of the package that this user may read: `level_program.py LEVEL [old kernel]`.
"""

import contextlib
import json
import os
import socket
import sys
import warnings

from polyturn.sandbox import Limits, local, open_sandbox

warnings.simplefilter("ignore")
HOME = os.environ["HOME"]
OWN = os.path.join(HOME, "own")  # a file of the user's, which is no business of a program's
said = {"uid": os.getuid()}

if sys.argv[2:] == ["old kernel"]:  # Landlock as it was before it kept signals in

    def old(config, send=local.boot_frame):
        frame = json.loads(send(config)[4:])
        frame["modules"]["isolation"] += "\nlandlock_abi = lambda: 5\n"
        body = json.dumps(frame).encode()
        return len(body).to_bytes(4, "big") + body

    local.boot_frame = old

ears = [socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)]
addresses = [f"\0polyturn-{os.getpid()}", f"/tmp/polyturn-{os.getpid()}", f"\0polyturn-stream-{os.getpid()}"]
for ear, address in zip(ears, addresses, strict=True):
    ear.bind(address)
    ear.setblocking(False)
ears[2].listen()
os.chmod(addresses[1], 0o777)

BY_C = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
TALK = "import socket\nends = socket.socketpair(socket.AF_UNIX, socket.{})\nends[0].sendto(b'out', {!r})"
METADATA = (
    f"os.chmod({OWN!r}, 0o777)", f"os.chmod({HOME!r}, 0)", f"os.utime({OWN!r}, (1, 1))",
    f"libc.chmod({OWN.encode()!r}, 0o777)", f"libc.fchmodat(-100, {OWN.encode()!r}, 0o777, 0)",
    f"libc.utimensat(-100, {OWN.encode()!r}, None, 0)", f"libc.syscall(452, -100, {OWN.encode()!r}, 0, 0)",
    f"os.chmod(os.open({OWN!r}, os.O_PATH), 0)",
)  # fmt: skip
HONEST = """
import os, shutil, tarfile
open('f', 'w').write('x'); os.chmod('f', 0o640); os.utime('f', (10, 10))
shutil.copy2('f', 'g'); os.mkdir('d'); os.chmod('d', 0o750)
assert os.stat('g').st_mode & 0o777 == 0o640 and os.stat('g').st_mtime == 10 and os.stat('d').st_mode & 0o777 == 0o750
os.utime('g', ns=(5, 6)); assert os.stat('g').st_mtime_ns == 6
with tarfile.open('t', 'w') as t: t.add('g')
with tarfile.open('t') as t: t.extractall('d')
assert os.stat('d/g').st_mode & 0o777 == 0o640
"""
ON_ORIGIN = ("os.chmod({}, 0)", "os.chmod({} + '/a', 0)", "os.chmod(os.path.dirname({}), 0)",
             "libc.chmod(os.path.dirname({}).encode(), 0o700)", "libc.chmod({}.encode(), 0)")  # fmt: skip


def metadata():
    return [(os.stat(path).st_mode, os.stat(path).st_mtime_ns) for path in (OWN, HOME)]


with open_sandbox("local", level=sys.argv[1], preload=(), spares=1) as sandbox:
    said["name"], said["users"] = sandbox.capabilities.name, sandbox.capabilities.users_separate
    said["private"] = sandbox.capabilities.filesystem_private
    session, other = sandbox.open(Limits(wall_s=20, memory_mb=128)), sandbox.open(Limits(wall_s=20))
    other.run("secret = 7; open('mine', 'w').write('kept')")

    def status(code, **more):
        result = session.run(code, **more)
        return [str(result.status), result.state_lost, (result.error or "").splitlines()[-1:]]

    said["answer"] = session.run("x = 40\nx + 2").value
    said["loop"] = status("while True: pass", wall_s=0.3)
    said["state"] = session.run("x").value
    said["stubborn"] = status("import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass", wall_s=0.3)
    said["memory"] = status("x = bytearray(10**10)")
    said["flood"] = status("while True: print('x' * 1000)")
    said["socket"] = session.run("import socket; socket.socket()").error or ""
    said["program"] = status("import os; os.execv('/bin/sh', ['sh'])")
    said["kill"] = status(f"import os; os.kill({os.getpid()}, 9)")
    for number, address in enumerate(addresses):
        for kind in ("SOCK_DGRAM", "SOCK_RAW", "SOCK_SEQPACKET", "SOCK_STREAM"):
            said[f"{kind} {number}"] = [session.run(TALK.format(kind, address)).error or ""]
    said["heard"] = []
    for ear in ears[:2]:
        with contextlib.suppress(BlockingIOError):
            said["heard"].append(ear.recv(9).decode())
    os.unlink(addresses[1])
    said["file"] = status(f"open({OWN!r}).read()")
    said["write"] = status(f"open({os.path.join(HOME, 'new')!r}, 'w')")
    before = metadata()
    for attempt in METADATA:
        status(BY_C + attempt)
    said["metadata kept"] = metadata() == before
    said["own metadata"] = status(HONEST)
    session.run("import os; here, real = os.getcwd(), os.path.realpath('.'); open('a', 'w').write('A')")
    if sandbox.capabilities.fork:
        branch = session.fork()
        for name in ("here", "real"):
            for change in ON_ORIGIN:
                branch.run(BY_C + change.format(name))
                branch.run(f"os.chmod({name}, 0o700)")
        said["branch"] = session.run("open('a').read(), open(here + '/a').read()").value
        said["above"] = [session.run(f"os.{call}").error or "" for call in
                         ("listdir(os.path.dirname(real))", "mkdir(os.path.dirname(real) + '/x')", "listdir('..')")]  # fmt: skip
        branch.close()
    said["threads"] = status("import threading\nfor _ in range(2): threading.Thread(target=print).start()")
    said["crash"] = status("import os; os._exit(3)")
    said["after"] = session.run("6 * 7").value
    said["other"] = other.run("secret, open('mine').read()").value
print(json.dumps(said))

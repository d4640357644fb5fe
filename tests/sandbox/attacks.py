# ruff: noqa: E501 (one program a line reads better than a program folded)
"""The hostile programs, and what is looked at after each of them. `test_attacks` says what must be seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from polyturn.sandbox import Limits, Result, Sandbox, Session, Status

OK, ERROR, TIMEOUT, MEMORY = Status.OK, Status.ERROR, Status.TIMEOUT, Status.MEMORY
OUTPUT, PROCESS, CRASH = Status.OUTPUT_LIMIT, Status.PROCESS_LIMIT, Status.CRASH
LIMITS = Limits(wall_s=60.0, memory_mb=256)  # attacks that must finish get time on a busy machine
SHORT = 0.3  # attacks that must be stopped get little


@dataclass(frozen=True)
class Attack:
    """A program, the outcomes that are right, and what must be true of the result."""

    name: str
    code: str
    statuses: tuple[Status, ...]
    check: Callable[[Result], bool] = field(default=lambda result: True)
    wall_s: float | None = None
    alone: bool = False
    needs: str = ""


def denied(name: str, statements: str, **options: Any) -> Attack:
    """An attack that must be refused with an exception of the operating system or of Python."""
    body = "\n".join("    " + line for line in statements.splitlines())
    code = f"import os, sys\ntry:\n{body}\nexcept Exception as error:\n    print('denied')\nelse:\n    print('ESCAPED')"
    return Attack(name, code, (OK,), lambda result: result.stdout == "denied\n", **options)


def syscall(name: str, number: int, *arguments: int, **options: Any) -> Attack:
    """A raw system call (x86_64 number) that must fail without any effect."""
    text = ", ".join(f"ctypes.c_long({argument})" for argument in arguments)
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"done = libc.syscall(ctypes.c_long({number}), {text})\n"
        "print('ESCAPED' if done >= 0 else 'denied', ctypes.get_errno() in (1, 38))"
    )
    return Attack(f"syscall {name}", code, (OK,), lambda result: result.stdout == "denied True\n", **options)


def stopped(name: str, code: str, *statuses: Status, **options: Any) -> Attack:
    """A program that never ends by itself."""
    return Attack(name, code, statuses or (TIMEOUT,), wall_s=SHORT, **options)


def ends(name: str, code: str, *statuses: Status, says: str = "", **options: Any) -> Attack:
    """A program that ends by itself; `says` must be in its output or error."""

    def check(result: Result) -> bool:
        return says in result.stdout + (result.error or "") + (result.value or "") and "ESCAPED" not in result.stdout

    return Attack(name, code, statuses, check, **options)


TIME = [
    stopped("busy loop", "while True: pass"),
    stopped("long sleep", "import time; time.sleep(1e8)"),
    stopped("swallows every exception", "while True:\n  try:\n    while True: pass\n  except BaseException: pass"),
    stopped("ignores SIGINT", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"),
    stopped(
        "ignores every signal",
        "import signal\nfor n in range(1, 64):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
    ),
    stopped("blocks every signal", "import signal; signal.pthread_sigmask(0, range(1, 64))\nwhile True: pass"),
    stopped("handler that loops", "import signal\ndef h(*a):\n  while True: pass\nsignal.signal(2, h)\nwhile True: pass"),
    stopped("regular expression", "import re; re.match('(a+)+$', 'a' * 40 + 'b')"),
    stopped("power of integers", "x = 3 ** (10 ** 9)", TIMEOUT, MEMORY),
    stopped("endless sum in C", "sum(iter(int, 1))"),
    stopped("endless deque in C", "import collections, itertools; collections.deque(itertools.repeat(0), maxlen=0)"),
    stopped("sympy that never ends", "import sympy; sympy.factorint(2**521 * (2**607 - 1) * (2**1279 + 3**300))"),
    stopped("finalizer that loops", "class A:\n  def __del__(self):\n    while True: pass\na = A()\ndel a"),
    stopped("deadlock", "import threading; l = threading.Lock(); l.acquire(); l.acquire()"),
    stopped("waits for a signal", "import signal; signal.pause()"),
    stopped("stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"),
    stopped("waits in select", "import select; select.select([], [], [])"),
    stopped("asyncio that sleeps", "import asyncio; asyncio.run(asyncio.sleep(1e8))"),
    stopped("reads its end over and over", "while True:\n  try: input()\n  except EOFError: pass"),
    stopped("loops while it is interrupted", "try:\n  while True: pass\nfinally:\n  while True: pass"),
    stopped("trace function that loops", "import sys\ndef t(*a):\n  while True: pass\nsys.settrace(t)\n(lambda: 0)()"),
    stopped("waits for a thread", "import threading, time; t = threading.Thread(target=time.sleep, args=(1e6,), daemon=True)"
            "\nt.start(); t.join()"),
    ends("exit handler that sleeps", "import atexit, time; atexit.register(time.sleep, 1e8)", OK),
    ends("thread that outlives the run", "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()", OK),
    ends("own alarm that kills", "import signal, time\nsignal.alarm(1)\ntime.sleep(5)", CRASH, says="SIGALRM"),
    ends("own timer that raises", "import signal, time\ndef h(*a): raise ValueError('mine')\nsignal.signal(14, h)\n"
         "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(5)", ERROR, says="mine"),
    stopped("cpu in many threads", "import threading\ndef f():\n  while True: pass\n"
            "[threading.Thread(target=f, daemon=True).start() for _ in range(4)]\nf()"),
]  # fmt: skip

MEMORY_AND_CRASHES = [
    ends("list doubling", "x = [0]\nwhile True: x = x * 2", MEMORY),
    ends("string doubling", "x = 'a'\nwhile True: x += x", MEMORY),
    ends("list without end", "import itertools; x = list(itertools.repeat(0))", MEMORY),
    ends("dictionary without end", "d = {}\ni = 0\nwhile True:\n  d[i] = bytes(1000); i += 1", MEMORY),
    ends("huge bytearray", "bytearray(10**12)", MEMORY),
    ends("huge numpy array", "import numpy; numpy.zeros(10**12)", MEMORY),
    ends("filled numpy array", "import numpy; numpy.ones(5 * 10**8, dtype='u1')", MEMORY),
    ends("decompression bomb", "import zlib\nz = zlib.compressobj(9, zlib.DEFLATED, -15)\n"
         "b = z.compress(bytes(1 << 20)) + z.flush(zlib.Z_FULL_FLUSH)\nzlib.decompress(b * 600 + z.flush(), -15)", MEMORY),
    ends("shared mapping", "import mmap; mmap.mmap(-1, 1 << 32)", ERROR, MEMORY),
    denied("shared memory folder", "open('/dev/shm/x', 'wb').write(bytes(1 << 20))"),
    ends("memory spread over processes", "import os, time\nfor _ in range(6):\n  if os.fork() == 0:\n"
         "    x = bytes(1) * (100 << 20); time.sleep(60)\ntime.sleep(60)", MEMORY, CRASH, needs="fork"),
    ends("many digits", "int('9' * 10**6)", ERROR, says="ValueError"),
    ends("recursion", "def f(): return f()\nf()", ERROR, says="RecursionError"),
    stopped("recursion without limit", "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return [f([x])]\nf(0)",
            CRASH, MEMORY, ERROR, TIMEOUT),
    ends("null pointer", "import ctypes; ctypes.string_at(0)", CRASH, says="SIGSEGV"),
    ends("abort", "import os; os.abort()", CRASH, says="SIGABRT"),
    ends("kills itself", "import os; os.kill(os.getpid(), 9)", CRASH, says="SIGKILL"),
    ends("kills its group", "import os; os.kill(0, 9)", CRASH, says="SIGKILL"),
    ends("floating point signal", "import os; os.kill(os.getpid(), 8)", CRASH, says="SIGFPE"),
    ends("overwrites its interpreter", "import ctypes\nctypes.memset(id(int), 0, 400)\nint('1') + 1", CRASH),
    ends("leaves at once", "import os; os._exit(0)", CRASH, says="code 0"),
    ends("leaves from a thread", "import os, threading; t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
         CRASH),
    ends("bad byte code", "f = lambda: 0\nf.__code__ = f.__code__.replace(co_code=b'\\x64\\xff' * 9)\nf()",
         CRASH, ERROR, OK, MEMORY),
    ends("runs away through the stack", "import ctypes\nctypes.memset(ctypes.addressof(ctypes.c_int()), 65, 1 << 24)", CRASH),
]  # fmt: skip

PROCESSES = [
    ends("fork bomb", "import os\nwhile True: os.fork()", PROCESS, wall_s=5.0, needs="fork"),
    stopped("fork bomb that swallows errors", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
            TIMEOUT, PROCESS, MEMORY, needs="fork"),
    stopped("fork and kill", "import os\nwhile True:\n  try:\n    if os.fork() == 0: os.kill(-1, 9)\n  except OSError: pass",
            TIMEOUT, PROCESS, CRASH, needs="fork"),
    ends("thread bomb", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
         PROCESS, MEMORY),
    ends("multiprocessing bomb", "import multiprocessing as m, time\nc = m.get_context('fork')\n"
         "while True: c.Process(target=time.sleep, args=(60,)).start()", PROCESS, ERROR, needs="fork"),
    ends("daemon", "import os, time\nif os.fork() == 0:\n  try: os.setsid()\n  except OSError: pass\n  if os.fork() == 0:\n"
         "    while True: time.sleep(1)\n  os._exit(0)\nos.wait()\nprint('started')", OK, says="started", needs="fork"),
    ends("daemon that hides", "import os, time, signal\nif os.fork() == 0:\n  for n in range(1, 32):\n"
         "    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n  os.closerange(0, 64)\n  if os.fork() == 0:\n"
         "    while True: pass\n  os._exit(0)\nos.wait()\nprint('started')", OK, says="started", needs="fork"),
    ends("daemon that forks on", "import os, time\nif os.fork() == 0:\n  while True:\n    if os.fork(): os._exit(0)\n"
         "    time.sleep(0.001)\nprint('started')", OK, says="started", needs="fork"),
    ends("children that end", "import os\nfor _ in range(8):\n  if os.fork() == 0: os._exit(0)\nprint('done')", OK, says="done",
         needs="fork"),
    Attack("both sides of a fork go on", "import os\nos.fork()\nprint('here', flush=True)\n'value'", (OK,),
           lambda result: result.value == "'value'" and 1 <= result.stdout.count("here") <= 2, needs="fork"),
    ends("all descriptors", "import os\nwhile True: os.open('/dev/null', 0)", ERROR, says="Too many open files"),
    ends("all pipes", "import os\nx = []\nwhile True: x.append(os.pipe())", ERROR, says="Too many open files"),
    ends("all socket pairs", "import socket\nx = []\nwhile True: x.append(socket.socketpair())", ERROR, says="Too many open files"),
    denied("leaves its group", "os.setpgid(0, 0)"),
    denied("makes a session", "os.setsid()"),
    denied("runs a shell", "import subprocess; subprocess.run(['/bin/sh', '-c', 'id'], check=True)"),
    denied("runs Python", "import subprocess; subprocess.run([sys.executable, '-c', '1'], check=True)"),
    denied("replaces itself", "os.execv('/bin/sh', ['sh', '-c', 'echo ok'])"),
    denied("spawns", "os.posix_spawn('/bin/true', ['true'], {})"),
    ends("shell through libc", "import os\nprint(os.system('echo ESCAPED'))", OK),
    denied("installs a package", "import subprocess\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', 'six'])"),
]  # fmt: skip

OUTPUTS = [
    stopped("prints indefinitely", "while True: print('x')", OUTPUT, TIMEOUT),
    ends("prints too much", "while True: print('x' * 10000)", OUTPUT),
    ends("prints too much to stderr", "import sys\nwhile True: sys.stderr.write('x' * 10000)", OUTPUT),
    ends("one line of 100 MB", "print('x' * 10**8)", OUTPUT, MEMORY),
    ends("writes too much below Python", "import os\nwhile True: os.write(1, b'x' * 60000)", OUTPUT),
    ends("prints on when interrupted", "import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: print('x' * 9999)", OUTPUT),
    ends("many prints then done", "for i in range(100000): print(i)", OK, says="99999"),
    Attack("bytes that are no text", "import sys; sys.stdout.buffer.write(b'a\\xff\\xfe\\x00\\x1b[31m\\x07z\\n')", (OK,),
           lambda result: result.stdout.startswith("a") and not set("\x00\x1b\x07") & set(result.stdout)),
    Attack("turns the text round", "print('a\\u202eb\\u2066c\\u200f')", (OK,),
           lambda result: not set("\u202e\u2066\u200f") & set(result.stdout)),
    Attack("lone surrogate", "print('\\ud800')\n'\\udfff'", (OK,), lambda result: bool(result.stdout.encode())),
    Attack("chat tokens are text", "print('<|im_start|>system\\n\\\\boxed{42}')", (OK,),
           lambda result: result.stdout == "<|im_start|>system\n\\boxed{42}\n"),
    ends("closes standard output", "import sys; sys.stdout.close()", OK, ERROR),
    ends("closes both below Python", "import os; os.close(1); os.close(2); print('x')", OK, ERROR),
    ends("standard output is None", "import sys; sys.stdout = sys.stderr = None", OK),
    ends("standard output that raises", "import sys\nclass O:\n  def write(self, s): raise RuntimeError('no')\n"
         "sys.stdout = O()\nprint(1)", ERROR, says="RuntimeError"),
    ends("repr that raises", "class A:\n  def __repr__(self): raise ValueError('no')\nA()", ERROR, says="ValueError"),
    ends("repr that is no text", "class A:\n  def __repr__(self): return 3\nA()", ERROR, says="TypeError"),
    stopped("repr that loops", "class A:\n  def __repr__(self):\n    while True: pass\nA()"),
    Attack("repr of 50 MB", "class A:\n  def __repr__(self): return 'x' * 5 * 10**7\nA()", (OK,),
           lambda result: result.truncated and len(result.value or "") <= 2 * LIMITS.output_bytes),
    ends("text that lies about its length", "class S(str):\n  def __getitem__(self, i): return 'y' * 10**7\n"
         "  def __len__(self): return 1\nclass A:\n  def __repr__(self): return S('x')\nA()", OK, ERROR),
    Attack("message of 50 MB", "raise ValueError('x' * 5 * 10**7)", (ERROR,), lambda result: len(result.error or "") < 5000),
    ends("deep traceback", "import sys; sys.setrecursionlimit(5000)\ndef f(n): return f(n - 1) if n else 1 / 0\nf(3000)", ERROR,
         says="more calls"),
    ends("message that raises", "class E(Exception):\n  def __str__(self): raise ValueError('no')\nraise E", ERROR,
         says="could not be shown"),
    stopped("message that loops", "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E"),
    ends("exception that lies about its class", "class E(Exception):\n  __class__ = MemoryError\nraise E('x')", ERROR, says="E: x"),
    ends("base exception of its own", "class Fine(BaseException): pass\nraise Fine", ERROR, says="Fine"),
    ends("exception group", "raise ExceptionGroup('many', [ValueError(i) for i in range(10**4)])", ERROR, says="ExceptionGroup"),
    ends("memory error by hand", "raise MemoryError", MEMORY),
    ends("interrupt by hand", "raise KeyboardInterrupt", ERROR, says="KeyboardInterrupt"),
    ends("interrupts itself", "import os, time; os.kill(os.getpid(), 2); time.sleep(1)", ERROR, says="KeyboardInterrupt"),
    ends("exit with 0", "import sys; sys.exit(0)", OK),
    ends("exit with a code", "import sys; sys.exit(3)", ERROR, says="SystemExit: 3"),
    ends("exit with a text", "raise SystemExit('done')", ERROR, says="SystemExit: done"),
    ends("quit", "quit()", OK),
    ends("asks for input", "input()", ERROR, says="EOFError"),
    ends("debugger", "breakpoint()", ERROR, OK),
    ends("reads standard input", "import os; os.read(0, 9)", OK, says="b''"),
]  # fmt: skip

FILES = [
    ends("one file that grows", "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", ERROR, says="File too large", alone=True),
    ends("many big files", "for i in range(64): open(str(i), 'wb').write(bytes(8 << 20))", CRASH, ERROR, alone=True),
    ends("many small files", "for i in range(200000): open(str(i), 'wb').close()", CRASH, ERROR, TIMEOUT, alone=True),
    denied("link to the root, then writes", "os.symlink('/', 'root'); open('root/etc/x', 'w')"),
    denied("hard link to a system file", "os.link('/etc/passwd', 'passwd')"),
    denied("reads the shadow file", "open('/etc/shadow').read()"),
    denied("reads the supervisor's environment", "open('/proc/1/environ', 'rb').read()", needs="landlock"),
    denied("reads the supervisor's memory", "open('/proc/1/mem', 'rb')"),
    denied("lists the supervisor's descriptors", "os.listdir('/proc/1/fd')", needs="landlock"),
    denied("reads its parent's memory", "open(f'/proc/{os.getppid()}/mem', 'rb')"),
    denied("lists processes", "os.listdir('/proc')", needs="landlock"),
    denied("lists the work folder", "os.listdir('/work')"),
    denied("lists the folder above", "os.listdir('../..')"),
    denied("makes a folder beside its own", "os.mkdir('/work/next')"),
    denied("reads the control group", "os.listdir('/sys/fs/cgroup')", needs="landlock"),
    denied("reads the root's files", "os.listdir('/root')"),
    denied("writes beside numpy", "import numpy; open(os.path.dirname(numpy.__file__) + '/x.py', 'w')"),
    denied("writes a path file", "open('/usr/lib/python3/dist-packages/x.pth', 'w')"),
    denied("writes to the root", "open('/x', 'w')"),
    denied("writes to the temporary folder", "open('/tmp/x', 'w')"),
    denied("writes a system file", "open('/etc/ld.so.preload', 'w')"),
    denied("makes a device", "os.mknod('null', 0o20666, os.makedev(1, 3)); open('null')", needs="landlock"),
    denied("opens a terminal", "open('/dev/tty')"),
    denied("opens the memory device", "open('/dev/mem', 'rb')"),
    denied("gives a file away", "open('f', 'w'); os.chown('f', 0, 0)"),
    stopped("pipe that nobody writes", "import os; os.mkfifo('p'); open('p')"),
    ends("leaves read-only folders", "import os\nos.makedirs('a/b/c'); open('a/b/c/f', 'w').close()\n"
         "os.chmod('a/b/c', 0); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)", OK),
    ends("leaves a deep folder", "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')", OK, CRASH),
    ends("leaves odd names", "for n in (b'a\\nb', b'\\xff\\xfe', b'-rf', b' ', b'$(x)'): open(n, 'w').close()", OK),
    ends("leaves links", "import os\nos.symlink('/usr', 'l'); os.symlink('l', 'm'); os.symlink('.', 'loop')", OK),
    ends("set-user-id file", "import os; open('s', 'w').close(); os.chmod('s', 0o6777)", OK, ERROR),
    ends("leaves code for the next", "for n in ('sitecustomize.py', 'usercustomize.py', 'numpy.py', 'json.py'):\n"
         "  open(n, 'w').write('print(\"ESC\" + \"APED\")')", OK),
    ends("names a plug-in for the loader", "import os; os.environ.update(LD_PRELOAD='x.so', PYTHONSTARTUP='x', PYTHONPATH='.')", OK),
]  # fmt: skip

ESCAPES = [
    denied("internet socket", "import socket; socket.create_connection(('1.1.1.1', 80), 1)"),
    denied("internet socket version 6", "import socket; socket.socket(socket.AF_INET6)"),
    denied("loopback", "import socket; socket.create_connection(('127.0.0.1', 22), 1)"),
    denied("metadata address", "import urllib.request; urllib.request.urlopen('http://169.254.169.254/', timeout=1)"),
    denied("name lookup", "import socket; socket.getaddrinfo('example.com', 80)"),
    denied("datagram", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))"),
    denied("raw socket", "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    denied("Unix socket", "import socket; socket.socket(socket.AF_UNIX)"),
    denied("abstract Unix socket", "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0x')"),
    denied("supervisor's socket", "import socket; socket.socket(socket.AF_UNIX).connect('/run/polyturn/socket')"),
    denied("supervisor's folder", "os.listdir('/run/polyturn')"),
    denied("Docker's socket", "os.stat('/var/run/docker.sock'); open('/var/run/docker.sock')"),
    denied("netlink", "import socket; socket.socket(16, 3, 0)"),
    denied("kernel crypto", "import socket; socket.socket(38, 5, 0)"),
    denied("packet socket", "import socket; socket.socket(17, 3, 3)"),
    denied("virtual machine socket", "import socket; socket.socket(40, 1, 0)"),
    denied("internet socket pair", "import socket; socket.socketpair(socket.AF_INET)"),
    denied("datagram socket pair", "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    denied("raw socket pair", "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW | socket.SOCK_CLOEXEC)"),
    denied("sends from a pair elsewhere", "import socket; a, b = socket.socketpair(); a.sendto(b'x', '/run/polyturn/socket')"),
    denied("connects a pair elsewhere", "import socket; a, b = socket.socketpair(); a.connect('/run/polyturn/socket')"),
    denied("kills the supervisor", "os.kill(1, 9)"),
    denied("kills its parent", "os.kill(os.getppid(), 9)"),
    ends("kills everybody it can", "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint('alone')", OK, says="alone"),
    denied("becomes root", "os.setuid(0)"),
    denied("becomes another user", "os.setuid(os.getuid() + 1)"),
    denied("root's group", "os.setgid(0)"),
    denied("more groups", "os.setgroups([0])"),
    denied("effective root", "os.seteuid(0)"),
    denied("another root folder", "os.chroot('.')"),
    denied("priority", "os.setpriority(0, 0, -5)"),
    denied("processor of its choice", "os.sched_setaffinity(0, {0})"),
    denied("real time", "os.sched_setscheduler(0, 1, os.sched_param(1))"),
    denied("raises its memory limit", "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
    denied("raises its process limit", "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))"),
    denied("changes its parent's limits", "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_AS, (1, 1))"),
    denied("kernel's core pattern", "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')"),
    denied("system request", "open('/proc/sysrq-trigger', 'w').write('b')"),
    denied("device tree", "open('/sys/kernel/uevent_helper', 'w').write('/x')"),
    denied("its kill score", "open('/proc/self/oom_score_adj', 'w').write('0')"),
    denied("anonymous file", "os.memfd_create('x')"),
    denied("process descriptor", "os.pidfd_open(1)"),
    denied("other processes' priority", "os.setpriority(0, os.getppid(), 5)"),
    denied("host name", "import socket; socket.sethostname('x')"),
    denied("clock", "import time; time.clock_settime(time.CLOCK_REALTIME, 0)"),
    denied("namespace file", "os.open('/proc/1/ns/mnt', 0)"),
    denied("POSIX semaphore", "import multiprocessing; multiprocessing.Lock()"),
    denied("pseudo terminal", "import pty; pty.openpty()", needs="landlock"),
    syscall("ptrace", 101, 16, 1, 0, 0),
    syscall("process_vm_readv", 310, 1, 0, 0, 0, 0, 0),
    syscall("process_vm_writev", 311, 1, 0, 0, 0, 0, 0),
    syscall("pidfd_getfd", 438, 3, 0, 0),
    syscall("pidfd_open", 434, 1, 0),
    syscall("unshare user", 272, 0x10000000),
    syscall("setns", 308, 0, 0),
    syscall("mount", 165, 0, 0, 0, 0, 0),
    syscall("umount2", 166, 0, 0),
    syscall("fsopen", 430, 0, 0),
    syscall("open_tree", 428, 0, 0, 0),
    syscall("pivot_root", 155, 0, 0),
    syscall("bpf", 321, 0, 0, 0),
    syscall("perf_event_open", 298, 0, 0, 0, 0, 0),
    syscall("keyctl", 250, 0, 0, 0, 0, 0),
    syscall("add_key", 248, 0, 0, 0, 0, 0),
    syscall("userfaultfd", 323, 0),
    syscall("io_uring_setup", 425, 1, 0),
    syscall("init_module", 175, 0, 0, 0),
    syscall("kexec_load", 246, 0, 0, 0, 0),
    syscall("reboot", 169, 0, 0, 0, 0),
    syscall("swapon", 167, 0, 0),
    syscall("settimeofday", 164, 0, 0),
    syscall("iopl", 172, 3),
    syscall("modify_ldt", 154, 0, 0, 0),
    syscall("personality", 135, 0x0040000),
    syscall("shmget", 29, 0, 4096, 0o1600),
    syscall("msgget", 68, 0, 0o1600),
    syscall("semget", 64, 0, 1, 0o1600),
    syscall("mq_open", 240, 0, 0, 0, 0),
    syscall("memfd_create", 319, 0, 0),
    syscall("memfd_secret", 447, 0),
    syscall("inotify_init1", 294, 0),
    syscall("fanotify_init", 300, 0, 0),
    syscall("name_to_handle_at", 303, 0, 0, 0, 0, 0),
    syscall("open_by_handle_at", 304, 0, 0, 0),
    syscall("quotactl", 179, 0, 0, 0, 0),
    syscall("acct", 163, 0),
    syscall("syslog", 103, 2, 0, 0),
    syscall("vmsplice", 278, 1, 0, 0, 0),
    syscall("seccomp", 317, 1, 0, 0),
    syscall("dumpable again", 157, 4, 1, 0, 0, 0),
    syscall("allows a tracer", 157, 0x59616D61, -1, 0, 0, 0),
    syscall("clone with a user namespace", 56, 0x10000011, 0, 0, 0, 0),
    syscall("clone3", 435, 0, 0),
    syscall("a call of the future", 500, 0, 0, 0),
    ends("x32 entry", "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))", CRASH, says="SIGSYS"),
    ends("32-bit entry", "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
         "m.write(bytes.fromhex('b814000000cd80c3'))\n"
         "f = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
         "import os; print('ESCAPED' if f() == os.getpid() else 'not the old call')", CRASH, OK),
    Attack("environment", "import os; sorted(os.environ)", (OK,),
           lambda result: result.value == "['HOME', 'LANG', 'PATH', 'TMPDIR']"),
    Attack("descriptors it was given", "import os\nopen_ones = []\nfor fd in range(256):\n  try: os.fstat(fd); open_ones.append(fd)\n"
           "  except OSError: pass\nopen_ones", (OK,), lambda result: result.value in ("[0, 1, 2, 3]", "[0, 1, 2, 3, 4]")),
    Attack("what its memory holds", "import gc\nfound = [o for o in gc.get_objects() if type(o).__name__ in "
           "('Supervisor', 'Peer', 'Interpreter', 'Loop')]\nlen(found), '_'.join(['neighbour', 'secret']) in globals()", (OK,),
           lambda result: result.value == "(0, False)"),
    Attack("frames above it", "import sys\nf = sys._getframe()\nseen = []\nwhile f: seen.append(f.f_code.co_name); f = f.f_back\n"
           "'command' in seen or 'run_supervisor' in seen", (OK,), lambda result: result.value == "False"),
    ends("breaks builtins", "import builtins\nfor n in ('print', 'open', 'len', 'isinstance', 'exec', 'compile', 'eval', 'repr'):\n"
         "  setattr(builtins, n, None)", OK, CRASH, ERROR),
    ends("breaks the library", "import json, sys, struct, ast, sympy\nstruct.pack = struct.unpack = json.dumps = ast.parse = None\n"
         "sympy.solve = lambda *a: 'owned'\nsys.modules.clear()", OK, CRASH, ERROR),
    ends("changes its surroundings", "import os, locale, resource\nos.chdir('/'); os.umask(0)\n"
         "resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))", OK, CRASH),
]  # fmt: skip

SOURCES = [
    ends("source of 10 MB", "x = 1\n" * (10 * 1024 * 1024 // 6), ERROR, says="longer than"),
    ends("source with a zero byte", "x = 1\0", ERROR, says="null bytes"),
    ends("parentheses", "(" * 100_000, ERROR, MEMORY, CRASH),
    ends("nested lists", "[" * 5000 + "]" * 5000, ERROR, MEMORY, CRASH),
    ends("many signs", "x = " + "-" * 200_000 + "1", ERROR, MEMORY, CRASH),
    ends("long sum", "+".join(["1"] * 100_000), ERROR, MEMORY, CRASH, OK),
    ends("encoding line", "# -*- coding: utf-7 -*-\nx = '+AGE-'\nx", OK, ERROR),
    ends("surrogate in the source", "x = '\ud800'", OK, ERROR),
    ends("bad indentation", "  x = 1\n y = 2", ERROR, says="IndentationError"),
    ends("syntax error", "def (", ERROR, says="SyntaxError"),
    ends("nothing", "", OK),
    ends("pickle bomb", "import pickle\nclass P:\n  def __reduce__(self): return (print, ('inside only',))\n"
         "pickle.loads(pickle.dumps(P()))", OK, says="inside only"),
]  # fmt: skip

ATTACKS = [*TIME, *MEMORY_AND_CRASHES, *PROCESSES, *OUTPUTS, *FILES, *ESCAPES, *SOURCES]


@dataclass
class Aftermath:
    """What was seen after an attack."""

    result: Result
    works_after: bool
    neighbour: Result
    processes_left: list[int]


def processes_of(uid: int) -> list[int]:
    """Processes of a user on this machine, zombies included: a zombie is something left behind, too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and _real_uid(entry) == uid:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def _real_uid(entry: Path) -> int:
    # a process that is not dumpable shows root as its owner, so the status file is asked
    for line in (entry / "status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return -1


def honest(session: Session) -> bool:
    """Whether an honest call works; one run may say that the interpreter died since the last."""
    for _ in range(3):
        result = session.run("6 * 7")
        if result.status is OK and result.value == "42":
            return True
    return False


def carry_out(sandbox: Sandbox, attack: Attack) -> Aftermath:
    """Runs one attack beside a neighbour and looks round afterwards."""
    neighbour = sandbox.open(LIMITS)
    attacker = sandbox.open(LIMITS)
    try:
        kept = neighbour.run("neighbour_secret = 12345; open('mine', 'w').write('kept')")
        assert kept.ok, kept
        uid = int(attacker.run("import os; os.getuid()").value or "-1")
        del_names = attacker.run("del os")
        assert del_names.ok
        result = attacker.run(attack.code, wall_s=attack.wall_s)
        works = honest(attacker)
        seen = neighbour.run("neighbour_secret, open('mine').read(), __import__('sympy').sqrt(16), len([1, 2])")
    finally:
        attacker.close()
        neighbour.close()
    left: list[int] = []
    if sandbox.capabilities.users_separate and sys.platform == "linux":
        deadline = time.monotonic() + 10
        while (left := processes_of(uid)) and time.monotonic() < deadline:
            time.sleep(0.02)
    return Aftermath(result, works, seen, left)


class Campaign:
    """All attacks on one sandbox, several at a time; those that crowd a shared disk one after another."""

    def __init__(self, sandbox: Sandbox, attacks: list[Attack], crowd: int = 6) -> None:
        self.sandbox = sandbox
        self._crowd = ThreadPoolExecutor(crowd)
        self._single = ThreadPoolExecutor(1)
        self.outcomes: dict[str, Future[Aftermath]] = {}
        for attack in attacks:
            if possible(sandbox, attack):
                pool = self._single if attack.alone else self._crowd
                self.outcomes[attack.name] = pool.submit(carry_out, sandbox, attack)

    def close(self) -> None:
        self._crowd.shutdown(cancel_futures=True)
        self._single.shutdown(cancel_futures=True)


def possible(sandbox: Sandbox, attack: Attack) -> bool:
    """Whether the sandbox promises anything about this attack."""
    return not attack.needs or bool(getattr(sandbox.capabilities, attack.needs))


def judge(campaign: Campaign, attack: Attack) -> None:
    if attack.name not in campaign.outcomes:
        pytest.skip(f"{campaign.sandbox.capabilities.name} promises nothing about it")
    after = campaign.outcomes[attack.name].result(120)
    shown = replace(after.result, stdout=after.result.stdout[-500:], stderr=after.result.stderr[-500:])
    assert after.result.status in attack.statuses, shown
    assert attack.check(after.result), shown
    assert "ESCAPED" not in after.result.stdout, shown
    assert after.works_after, "the next honest call in the same session failed"
    assert after.neighbour.value == "(12345, 'kept', 4, 2)", f"another session noticed: {after.neighbour}"
    assert after.processes_left == []

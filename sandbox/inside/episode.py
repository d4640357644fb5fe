"""One episode's interpreter: receives programs, runs them in one namespace, says what they printed. Runs inside.

Nothing here is trusted. The supervisor holds the clock, the limits and the exit status; what this process sends is
text. It shares its address space with the model's program, so it guards against accidents, not against attack: a
program that breaks it breaks only its own episode.
"""

from __future__ import annotations

import array
import ast
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import sys
import traceback
import types
from collections.abc import Callable

from polyturn.sandbox.inside import surroundings
from polyturn.sandbox.inside.held import held_below, open_anew
from polyturn.sandbox.inside.outbox import Outbox, Text

CONTROL = 3  # the descriptor of the channel to the supervisor
HOME = 4  # the descriptor of the interpreter's folder, which the folder's fixed name leads to
REPLY = ">I8sBIIII"  # length of the rest, token, kind, sizes of stdout, stderr, value, error
OK, ERROR, MEMORY, PROCESS, CUT = 0, 1, 2, 3, 0x80
HELLO = b"\0" * 8
LAST_WORDS = 16384  # of output that comes with the answer; the outbox holds 8 KiB of each stream
_FRAMES_SHOWN, _MESSAGE_SHOWN = 8, 2000
_LINE_END = re.compile("\r\n|\r|\n")  # as Python counts lines; `splitlines` also splits at U+2028 and form feeds


def _short_path(path: str) -> str:
    """A library's file without the folders above it."""
    for root in sorted((p for p in sys.path if p), key=len, reverse=True):
        if path.startswith(root + "/"):
            return path[len(root) + 1 :]
    return path.rsplit("/", 1)[-1]


def explain(error: BaseException, sources: dict[str, list[str]]) -> str:
    """A short traceback: the program's own lines, the innermost library line, the message."""
    lines: list[str] = []
    here = explain.__code__.co_filename
    frames = [pair for pair in traceback.walk_tb(error.__traceback__) if pair[0].f_code.co_filename != here]
    own = [(frame.f_code, line) for frame, line in frames if frame.f_code.co_filename in sources]
    if own:
        lines.append("Traceback (most recent call last):")
        cut = len(own) - _FRAMES_SHOWN
        for index, (code, line) in enumerate(own):
            if cut > 0 and 3 <= index < 3 + cut:
                if index == 3:
                    lines.append(f"  ... {cut} more calls ...")
                continue
            lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
            text = sources[code.co_filename]
            if 0 < line <= len(text):
                lines.append(f"    {text[line - 1].strip()[:200]}")
        last, line = frames[-1]
        if last.f_code.co_filename not in sources:
            lines.append(f'  File "{_short_path(last.f_code.co_filename)}", line {line}, in {last.f_code.co_name}')
    kind = type(error)
    try:
        if issubclass(kind, SyntaxError) and error.filename in sources:  # type: ignore[attr-defined]
            lines.extend(part.rstrip("\n")[:400] for part in traceback.format_exception_only(kind, error))
        else:
            message = str(error)[:_MESSAGE_SHOWN]
            lines.append(f"{kind.__name__}: {message}" if message else kind.__name__)
            files = [frame.f_code.co_filename for frame, _ in frames]
            if files and (why := surroundings.explanation(error, files)):
                lines.append(f"({why})")
    except KeyboardInterrupt:
        raise
    except BaseException:  # a program's own __str__ may do anything
        lines.append(f"{kind.__name__}: <message could not be shown>")
    return "\n".join(lines)


def _identity(fd: int) -> tuple[int, int]:
    """What a descriptor refers to; one that is closed refers to nothing."""
    try:
        status = os.fstat(fd)
    except OSError:
        return -1, fd
    return status.st_dev, status.st_ino


def classify(error: BaseException) -> int:
    """Which limit an exception stands for, by its real class."""
    kind = type(error)
    if issubclass(kind, MemoryError):
        return MEMORY
    if kind is BlockingIOError and error.errno == 11 and error.filename is None:  # type: ignore[attr-defined]
        return PROCESS  # fork refused
    if kind is RuntimeError and error.args[:1] == ("can't start new thread",):
        return PROCESS
    return ERROR


class EpisodeInterpreter:
    """The loop of one interpreter."""

    def __init__(self, fork: Callable[[], int], confine: Callable[[str], None], silence: Callable[[], None]) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=CONTROL)
        self.folder, self.home, self.limit = "", "", 1024
        self.true_name = os.getcwd
        self.ends: dict[int, tuple[int, int]] = {}  # what the channel and the pipes are, to know copies of them by
        self.fork, self.confine, self.silence = fork, confine, silence
        self.silent = False
        self.pid = os.getpid()
        self.running = False
        self.turn = 0
        self.sources: dict[str, list[str]] = {}
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.names.update(__builtins__=__builtins__, exit=sys.exit, quit=sys.exit)
        self.shelter = surroundings.Shelter()
        self.box = Outbox()
        self.out, self.err = Text(1, self.box), Text(2, self.box)
        sys.stdout, sys.stderr = self.out, self.err
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
        vars(sys).update(__stdout__=sys.stdout, __stderr__=sys.stderr, __stdin__=sys.stdin)
        sys.modules["__main__"] = self.module
        signal.signal(signal.SIGINT, self.interrupted)

    def settle(self, folder: str, home: str, limit: int, confine: Callable[[str], None]) -> None:
        """What is known only with the request: its folder and that one's fixed name, its limits, its isolation."""
        self.folder, self.home, self.limit, self.confine = folder, home, limit, confine
        if home:
            surroundings.stay_at(home, lambda: self.folder)
        os.register_at_fork(after_in_child=self.forked)
        surroundings.install(lambda: self.running)
        self.ends = {target: _identity(target) for target in (CONTROL, 1, 2)}

    def interrupted(self, number: int, frame: object) -> None:
        """SIGINT ends a program, never the loop round it."""
        if self.running:
            raise KeyboardInterrupt

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes of the control channel; the process ends where it ends."""
        parts = []
        while size:
            part = self.control.recv(min(size, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forked(self) -> None:
        """In a process that the program forked: it writes to the pipes, and does not touch its parent's outbox."""
        self.out.stream.leave()
        self.err.stream.leave()

    def serve(self) -> None:
        """Answers until the channel closes."""
        while True:
            self.serve_one()

    def serve_one(self) -> None:
        """Carries out the next request."""
        (size,) = struct.unpack(">I", self.read(4))
        body = self.read(size)
        kind, token, payload = body[:1], body[1:9], body[9:]
        if kind == b"R":
            self.answer(token, payload)
        elif kind == b"S":
            self.seed(payload)
        elif kind == b"F":
            self.branch(token)
        elif kind == b"M":
            self.moved(payload.decode())
        elif kind == b"P":
            self.adopt(self.receive_descriptors(), (1, 2))

    def moved(self, folder: str) -> None:
        """Takes note of the new name of its folder."""
        self.folder = folder
        if not self.home:
            os.environ["HOME"] = os.environ["TMPDIR"] = folder

    @staticmethod
    def seed(number: bytes) -> None:
        """Seeds the generators of this interpreter."""
        surroundings.seed(int(number))

    def send(
        self, token: bytes, kind: int, out: bytes = b"", err: bytes = b"", value: str = "", error: str = ""
    ) -> None:
        """Sends one answer; texts longer than the limit are cut and the answer is marked as cut."""
        texts = [value.encode("utf-8", "backslashreplace"), error.encode("utf-8", "backslashreplace")]
        if max(map(len, texts)) > self.limit:
            kind |= CUT
            texts = [text[: self.limit] for text in texts]
        most = max(self.limit, LAST_WORDS)
        texts = [out[-most:], err[-most:], *texts]
        sizes = [len(text) for text in texts]
        head = struct.pack(REPLY, 25 + sum(sizes), token, kind, *sizes)
        self.control.sendall(b"".join((head, *texts)))

    def answer(self, token: bytes, code: bytes) -> None:
        """Runs one program and sends what came of it."""
        kind, value, error = ERROR, "", ""
        if self.out.closed or self.err.closed:
            self.out, self.err = Text(1, self.box), Text(2, self.box)
            sys.stdout, sys.stderr = self.out, self.err
        for text in (self.out, self.err):
            text.stream.take()  # what threads wrote since the last run belongs to no run
        try:
            self.shelter.leave()
            self.running = True
            try:
                try:
                    value = self.execute(code.decode("utf-8", "surrogatepass"))
                finally:  # what the program watches itself with must not watch this loop
                    try:
                        sys.setprofile(None)
                    finally:
                        sys.settrace(None)
                        surroundings.disarm()
                        self.flush_replaced()
                kind = OK
            except SystemExit as stop:
                if stop.code is None or stop.code == 0:
                    kind = OK
                else:
                    error = explain(stop, self.sources)
            except BaseException as failure:
                kind = classify(failure)
                error = explain(failure, self.sources)
            finally:
                self.running = False
        except BaseException as failure:  # explaining it failed, or the interrupt came at the very end
            self.running = False
            kind = kind or ERROR
            error = error or type(failure).__name__
        surroundings.disarm()  # once more, where a handler raised before
        self.shelter.enter()
        if os.getpid() != self.pid:
            os._exit(0)  # a copy the program forked has come to the end of the program; only the original answers
        self.send(token, kind, self.out.stream.take(), self.err.stream.take(), value, error)

    def flush_replaced(self) -> None:
        """Writes what waits in streams that the program has put in the place of its standard ones."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not self.out and stream is not self.err:
                with contextlib.suppress(Exception):  # the program's own object, which may be anything
                    stream.flush()

    def execute(self, source: str) -> str:
        """Runs the program in the episode's namespace; the last expression's repr, as in a notebook."""
        self.turn += 1
        name = f"<turn {self.turn}>"
        source = source.removeprefix("\ufeff")  # a byte order mark, as Python leaves it out of files
        self.sources[name] = _LINE_END.split(source)
        tree = ast.parse(source, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        if tree.body:
            exec(compile(tree, name, "exec", dont_inherit=True), self.names)
        if not isinstance(last, ast.Expr):
            return ""
        result = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), self.names)
        if result is None:
            return ""
        self.names["_"] = result
        # slicing a hostile str subclass would call the subclass; join takes the characters
        return "".join((repr(result)[: self.limit + 1],))

    def receive_descriptors(self) -> array.array[int]:
        """The descriptors that come with one byte after a request."""
        fds = array.array("i")
        _, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(4 * 4))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % 4])
        return fds

    def adopt(self, fds: array.array[int], targets: tuple[int, ...]) -> None:
        """Puts new descriptors in the places of the old ones, and of every copy that the program has of those."""
        new = {self.ends[target]: fd for target, fd in zip(targets, fds, strict=True)}
        for kept in range(CONTROL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
            identity = _identity(kept)  # such as a copy that os.dup(1) made
            if identity in new:
                os.dup2(new[identity], kept, inheritable=os.get_inheritable(kept))
        for target, fd in zip(targets, fds, strict=True):
            os.dup2(fd, target, inheritable=True)
            self.ends[target] = _identity(target)
        for fd in fds:
            os.close(fd)

    def branch(self, token: bytes) -> None:
        """Forks this interpreter: the copy takes the channel and pipes that came with the request.

        Both share a user id from then on, so neither may send signals any more, and the copy works on a copy of the
        files in another folder, in a Landlock domain that knows no other.
        """
        fds = self.receive_descriptors()
        try:
            if len(sys._current_frames()) > 1:
                raise OSError(11, "the program has started threads, which a fork would lose")
            if not self.silent:
                self.silence()
                self.silent = True
            held = held_below(self.folder, HOME + bool(self.home))
            drawn = random.getstate()
            pid = self.fork()
        except OSError as error:
            for fd in fds:
                os.close(fd)
            self.send(token, ERROR, error=error.strerror or str(error))
            return
        if pid:
            for fd in fds:
                os.close(fd)
            self.send(token, OK)
            return
        self.pid = os.getpid()
        random.setstate(drawn)  # which a fork seeds anew, from the system
        self.box.share(fds[3])
        os.close(fds.pop())
        for text in (self.out, self.err):
            text.stream.come_back()
        self.adopt(fds, (CONTROL, 1, 2))
        # Only now, on a channel that its origin does not hold, it learns of the folder that its origin cannot find.
        area, folder = self.read(struct.unpack(">I", self.read(4))[0]).decode().split("\n")
        if os.listdir(self.folder):
            shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        open_anew(held, folder)
        here = self.true_name()
        os.chdir(folder + here[len(self.folder) :] if here.startswith(self.folder) else folder)
        if self.home:
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            os.dup2(fd, HOME, inheritable=True)
            os.close(fd)
        self.moved(folder)
        try:
            self.confine(area)
        except OSError as error:
            if error.errno != 7:  # the kernel nests sixteen Landlock domains at most
                raise
        self.hello()

    def hello(self) -> None:
        """Shows the supervisor which process uses this channel: the kernel adds the process id."""
        self.send(HELLO, OK, value=str(self.pid))

"""The store: lossless, append-only, readable after a kill at any byte, and honest about damage."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from polyturn.envs.store import (
    HEADER,
    CorruptRecord,
    NotAStore,
    Store,
    StoreError,
    StoreLocked,
    StoreWriteError,
    UnknownSchema,
    index,
    read,
    read_groups,
)
from polyturn.envs.trajectory import Trajectory, Turn


def trajectory(seed: int = 0, member: int = 0, text: str = "hello", **fields: Any) -> Trajectory:
    turn = Turn(text, f"answer {member}", 0.5, np.array([1, 2]), np.array([3, 4, 5]), np.array([-0.1, -2.5, 0.0]))
    return Trajectory("polyturn/Guess-v0", seed, (turn, turn), member=member, terminated=True, **fields)


def write(path: Path, *trajectories: Trajectory) -> Path:
    with Store(path) as store:
        for item in trajectories:
            store.append(item)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def test_what_was_written_comes_back(path: Path) -> None:
    full = Trajectory(
        env_id="polyturn/ToolMath-v0",
        seed=2**63,
        turns=(Turn("q", "a", -1.5, info={"tool": [1, None, True, {"x": 0.1}]}), Turn("r", "b", 1e-300)),
        task_id="gsm8k-7",
        agent="policy",
        policy_version="iteration-2",
        member=3,
        final_observation="done",
        truncated=True,
        error="SandboxLost: gone",
        env_options={"turns": 3, "nested": {"deep": ["x"]}},
        info={"task_id": "gsm8k-7"},
    )
    assert list(read(write(path, full, trajectory()))) == [full, trajectory()]


@pytest.mark.parametrize(
    "text",
    [
     "", "a\0b", "line\u2028sep\u2029\x85\r\n\v\f", "\ud800 alone", "\udfff\ud800 wrong way round",
     "\ud83d\ude00 two halves",
     "\U0001f600 whole", "\U0010ffff\ufffe", "\x7f\x1b[31m", '"\\u0041\\', "e\u0301", "\u202eabc",
    ],
)  # fmt: skip
def test_every_text_survives_everywhere(path: Path, text: str) -> None:
    turn = Turn(text, text, info={text: text})
    item = Trajectory(
        text, 0, (turn,), text, text, text, 0, text, error=text, env_options={"o": text}, info={"i": text}
    )
    neighbour = trajectory(1)
    (back, after) = read(write(path, item, neighbour))
    assert back == item
    assert back.turns[0].action == text  # not only equal under our own __eq__
    assert back.start == item.start
    assert after == neighbour
    assert next(index(path)).start == item.start


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(), max_size=50),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20),
    st.lists(st.floats(width=32), max_size=20),
    st.floats(),
)
def test_arrays_and_rewards_are_exact_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, text: str, ids: list[int], logps: list[float], reward: float
) -> None:
    path = tmp_path_factory.mktemp("bits") / "s"
    actions = np.arange(len(logps), dtype=np.int32)
    turn = Turn(text, text, reward, np.array(ids, np.int32), actions, np.array(logps, np.float32))
    (back,) = read(write(path, Trajectory("e", 0, (turn,))))
    assert back.turns[0].context_ids.tolist() == ids
    assert back.turns[0].logps.tobytes() == np.array(logps, np.float32).tobytes()
    assert (back.turns[0].context_ids.dtype, back.turns[0].logps.dtype) == (np.int32, np.float32)
    assert repr(back.turns[0].reward) == repr(reward)


def test_numbers_that_are_not_finite_come_back(path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    turns = tuple(
        Turn("o", "a", r, np.zeros(0), np.array([1]), np.array([r]), {"r": r}) for r in (inf, -inf, nan, -0.0)
    )
    (back,) = read(write(path, Trajectory("e", 0, turns)))
    assert back.turns == turns
    assert np.isnan(back.turns[2].reward)
    assert str(back.turns[3].reward) == "-0.0"


def test_the_layout_is_the_documented_one(path: Path) -> None:
    """A reader without polyturn: JSON lines, a CRC-32 of what follows it, base64 of little-endian arrays."""
    write(path, trajectory(text="\u6211"))
    header, line, end = path.read_bytes().split(b"\n")
    assert json.loads(header) == {"polyturn": "trajectories", "schema": 1}
    assert end == b""
    record = json.loads(line)
    assert list(record) == ["crc32", "head", "turns", "final_observation", "info"]
    assert int(record["crc32"], 16) == zlib.crc32(line[len('{"crc32":"01234567",') :])
    assert "\u6211".encode() in line
    turn = record["turns"][0]
    assert np.frombuffer(base64.b64decode(turn["action_ids"]), "<i4").tolist() == [3, 4, 5]
    assert np.frombuffer(base64.b64decode(turn["logps"]), "<f4").tolist() == [np.float32(-0.1), -2.5, 0.0]


def test_lone_surrogates_leave_the_file_readable_by_any_json_tool(path: Path) -> None:
    write(path, trajectory(text="\ud800"))
    path.read_bytes().decode("utf-8")  # strict


# Crashes


def test_cut_at_every_byte_only_the_last_record_is_lost(path: Path, tmp_path: Path) -> None:
    whole = write(path, trajectory(1), trajectory(2)).read_bytes()
    before = len(write(tmp_path / "one", trajectory(1)).read_bytes())
    cut = tmp_path / "cut"
    for length in range(before, len(whole)):
        cut.write_bytes(whole[:length])
        assert list(read(cut)) == [trajectory(1)]
        assert len(list(index(cut))) == 1
    for length in range(before, len(whole), 7):
        cut.write_bytes(whole[:length])
        if length == before:
            write(cut, trajectory(3))
        else:
            with pytest.warns(RuntimeWarning, match=f"removed {length - before} bytes"):
                write(cut, trajectory(3))
        assert list(read(cut)) == [trajectory(1), trajectory(3)]


def test_cut_at_every_byte_of_the_header_is_an_empty_store(path: Path) -> None:
    for length in range(len(HEADER)):
        path.write_bytes(HEADER[:length])
        assert list(read(path)) == []
        write(path, trajectory(1))
        assert list(read(path)) == [trajectory(1)]


def test_a_lost_tail_of_zeros_after_a_power_cut_is_removed(path: Path) -> None:
    write(path, trajectory(1))
    with open(path, "ab") as file:
        file.write(b"\0" * 200_000)  # longer than one block of the search for the last newline
    with pytest.warns(RuntimeWarning, match="removed 200000 bytes"):
        write(path, trajectory(2))
    assert list(read(path)) == [trajectory(1), trajectory(2)]


WRITER = """
import sys
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn
store = Store(sys.argv[1])
for seed in range(10**6):
    store.append(Trajectory("e", seed, (Turn("x" * (3_000_000 if seed % 3 else 9), "y"),), terminated=True))
    print(seed, flush=True)
"""


def test_kill_9_loses_nothing_that_append_returned_from(path: Path) -> None:
    for round_ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(5 + 7 * round_):
            said = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        returned = int(rest[-1] if rest else said)
        seeds = [item.seed for item in read(path)]
        assert seeds == list(range(len(seeds)))
        assert len(seeds) >= returned + 1
        with warnings.catch_warnings():  # whether the kill left half a record is chance
            warnings.simplefilter("ignore")
            write(path, trajectory(-1))  # the dead writer's lock is gone
        assert [item.seed for item in read(path)] == [*seeds, -1]


# Damage


def test_a_flipped_bit_anywhere_is_reported_and_costs_no_other_record(path: Path) -> None:
    """Every byte of the second of three records is damaged in turn; the first and the third always come back.

    A damaged newline joins records 2 and 3, so there the third is lost too.
    """
    first = len(HEADER) + len(write(path, trajectory(1)).read_bytes()[len(HEADER) :])
    second = len(write(path, trajectory(2)).read_bytes())
    data = write(path, trajectory(3)).read_bytes()
    for place in range(first, second):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x04]) + data[place + 1 :])
        with pytest.raises(CorruptRecord, match=rf"record 2 \(line 3, byte {first}\)"):
            list(read(path))
        with pytest.warns(RuntimeWarning, match="record 2 .* skipped"):
            kept = [item.seed for item in read(path, corrupt="skip")]
        assert kept == ([1, 3] if place < second - 1 else [1])


def test_records_before_the_damage_are_yielded_first(path: Path) -> None:
    write(path, trajectory(1), trajectory(2))
    path.write_bytes(path.read_bytes().replace(b"answer 0", b"answer 1"))
    with pytest.raises(CorruptRecord, match="record 1"):
        next(read(path))
    with pytest.raises(CorruptRecord, match="record 1"):
        next(read_groups(path))


def test_a_record_with_a_right_checksum_but_other_fields_is_corrupt(path: Path) -> None:
    write(path, trajectory(1))
    for body in (b'"head":{"env_id":"e","seed":0},"turns":[{}]}', b'"head":{"bogus":1},"turns":[]}', b"nonsense"):
        path.write_bytes(HEADER + b'{"crc32":"%08x",' % zlib.crc32(body) + body + b"\n")
        with pytest.raises(CorruptRecord, match="record 1"):
            list(read(path))


def test_an_unknown_way_to_treat_damage_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="raise or skip"):
        next(read(write(path), corrupt="ignore"))


# Files that are something else


@pytest.mark.parametrize("content", [b"hello\n", b"\x00" * 100, b'{"env_id": 1}\n', b"hello without newline"])
def test_another_file_is_refused_and_untouched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for action in (lambda: Store(path), lambda: next(read(path)), lambda: next(index(path))):
        with pytest.raises(NotAStore, match="first line"):
            action()
    assert path.read_bytes() == content


def test_a_newer_schema_is_named(path: Path) -> None:
    content = b'{"polyturn":"trajectories","schema":7,"more":1}\n'
    path.write_bytes(content)
    with pytest.raises(UnknownSchema, match="schema 1, got schema 7"):
        next(read(path))
    with pytest.raises(StoreError, match="schema 7"):
        Store(path)
    assert path.read_bytes() == content


def test_a_missing_file_is_the_usual_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(read(path))


# Writers and readers


def test_two_writers_are_kept_apart(path: Path) -> None:
    with Store(path) as store:
        with pytest.raises(StoreLocked, match="has a writer already"):
            Store(path)
        code = f"from polyturn.envs.store import Store; Store({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "StoreLocked" in other.stderr
        store.append(trajectory(1))  # the refused writers have harmed nothing
    write(path, trajectory(2))
    assert [item.seed for item in read(path)] == [1, 2]


def test_close_gives_up_the_lock_even_if_a_forked_child_lives_on(path: Path) -> None:
    store = Store(path)
    held, release = os.pipe()
    child = os.fork()
    if child == 0:  # only system calls here: pytest's threads do not exist in the child
        os.close(release)
        os.read(held, 1)
        os._exit(0)
    store.close()
    write(path, trajectory(1))
    os.close(release)
    os.waitpid(child, 0)
    os.close(held)


def test_a_forked_child_cannot_append(path: Path) -> None:
    code = f"""
import os
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory
store = Store({str(path)!r})
if os.fork() == 0:
    try:
        store.append(Trajectory("child", 0, ()))
    except ValueError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
store.append(Trajectory("parent", 0, ()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "before a fork" in done.stdout
    assert [item.env_id for item in read(path)] == ["parent"]


def test_readers_see_whole_records_while_a_writer_appends(path: Path) -> None:
    with Store(path) as store:
        for count in range(1, 4):
            store.append(trajectory(count))
            assert [item.seed for item in read(path)] == list(range(1, count + 1))
        reader = read(path)
        assert next(reader).seed == 1
        store.append(trajectory(4))
        assert [item.seed for item in reader][:2] == [2, 3]


def test_threads_may_share_a_store(path: Path) -> None:
    with Store(path) as store:

        def work(first: int) -> None:
            for seed in range(first, first + 50):
                store.append(trajectory(seed, text="x" * (seed % 97)))

        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(item.seed for item in read(path)) == sorted(s for i in range(4) for s in range(100 * i, 100 * i + 50))


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.append(trajectory())


def test_fsync_policy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a new store flushes its header and folder (2) unless "never"; "always" adds one an append."""
    calls: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), real(fd))[1])
    for policy, expected in (("never", [0, 0, 0]), ("close", [2, 2, 3]), ("always", [2, 4, 5])):
        path.unlink(missing_ok=True)
        calls.clear()
        store = Store(path, fsync=policy)
        counts = [len(calls)]
        store.append(trajectory(1))
        store.append(trajectory(2))
        counts.append(len(calls))
        store.close()
        assert [*counts, len(calls)] == expected, policy
    with pytest.raises(ValueError, match="never, close or always"):
        Store(path, fsync="sometimes")


# What cannot be written


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, object(), b"bytes"])
def test_values_that_are_not_json_are_refused_and_nothing_is_written(path: Path, value: object) -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with Store(path) as store:
        for bad in (value, loop):
            with pytest.raises(ValueError, match="JSON values only"):
                store.append(trajectory(info={"x": bad}))
        store.append(trajectory(1))
    assert [item.seed for item in read(path)] == [1]


def test_a_missing_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreWriteError, match="create the folder first"):
        Store(tmp_path / "no" / "such" / "runs.jsonl")


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    """Root may write anywhere, so the attempt is made by a child that has given up being root."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    code = f"""
import os
from polyturn.envs.store import Store
if os.getuid() == 0:
    os.chmod({str(folder)!r}, 0o755)
    os.setuid(65534)
else:
    os.chmod({str(folder)!r}, 0o555)
try:
    Store("runs.jsonl")
except OSError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert "StoreWriteError" in done.stdout, done.stderr
    assert "permission denied" in done.stdout
    assert list(folder.iterdir()) == []


FULL = """
import resource, signal, sys
from polyturn.envs.store import Store, StoreWriteError
from polyturn.envs.trajectory import Trajectory, Turn
path = sys.argv[1]
small = lambda seed: Trajectory("e", seed, (Turn("x", "y"),), terminated=True)
with Store(path) as store:
    store.append(small(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        store.append(Trajectory("big", 2, (Turn("x" * 5000, "y"),)))
    except StoreWriteError as error:
        print(error.errno, error)
    store.append(small(3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.append(Trajectory("big", 4, (Turn("x" * 5000, "y"),)))
"""


def test_a_file_that_may_not_grow_keeps_its_records_and_goes_on(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write to the store: file too large; raise the limit" in done.stdout
    assert [item.seed for item in read(path)] == [1, 3, 4]


class TornWrites:
    """Stands in for `os.pwrite` on a disk with this many bytes left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.real: Callable[..., int] = os.pwrite

    def __call__(self, fd: int, data: bytes, offset: int) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        written = self.real(fd, data[: self.room], offset)
        self.room -= written
        return written


def test_a_full_disk_at_any_byte_leaves_the_store_usable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as store:
        store.append(trajectory(0))
        good = path.read_bytes()
        for room in range(0, 300, 11):
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", TornWrites(room))
                with pytest.raises(StoreWriteError, match="no space left on device; free space"):
                    store.append(trajectory(9))
            assert path.read_bytes() == good
        store.append(trajectory(1))
    assert [item.seed for item in read(path)] == [0, 1]


def test_an_interrupted_append_does_not_spoil_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after half of a long line: the next, shorter line must not leave the rest of it."""

    def interrupted(fd: int, data: bytes, offset: int) -> int:
        real(fd, data[: len(data) - 10], offset)
        raise KeyboardInterrupt

    real = os.pwrite
    with Store(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.append(trajectory(1, text="x" * 10_000))
        store.append(trajectory(2))
    assert [item.seed for item in read(path)] == [2]


def test_a_store_deleted_under_its_writer_is_noticed(path: Path) -> None:
    with Store(path) as store:
        path.unlink()
        with pytest.raises(StoreWriteError, match="deleted"):
            store.append(trajectory())


# Index and groups


def test_index_names_the_agents_without_the_turns(path: Path) -> None:
    items = [
        trajectory(1, 0, policy_version="iteration-1", agent="a", task_id="t", env_options={"b": 1, "a": "\ud800"}),
        trajectory(1, 1, error="SandboxLost"),
    ]
    entries = list(index(write(path, *items)))
    assert [entry.start for entry in entries] == [item.start for item in items]
    assert [(e.number, e.member, e.valid, e.agent, e.policy_version) for e in entries] == [
        (1, 0, True, "a", "iteration-1"),
        (2, 1, False, "", ""),
    ]
    with open(path, "rb") as file:
        file.seek(entries[1].offset)
        assert json.loads(file.readline())["head"]["error"] == "SandboxLost"


def test_groups_are_gathered_from_anywhere_in_the_file(path: Path) -> None:
    write(path, *(trajectory(seed, member) for member in range(3) for seed in (5, 7)))
    groups = list(read_groups(path))
    assert [[(item.seed, item.member) for item in group] for group in groups] == [
        [(5, 0), (5, 1), (5, 2)],
        [(7, 0), (7, 1), (7, 2)],
    ]


def test_groups_can_be_read_after_damage(path: Path) -> None:
    write(path, *(trajectory(1, member) for member in range(3)))
    path.write_bytes(path.read_bytes().replace(b"answer 1", b"answer X"))
    with pytest.warns(RuntimeWarning, match="record 2"):
        (group,) = read_groups(path, corrupt="skip")
    assert [item.member for item in group] == [0, 2]


def test_reading_holds_one_record_at_a_time(path: Path) -> None:
    """40 MB are read by a process whose data may grow by 24 MB only."""
    with Store(path) as store:
        for seed in range(40):
            store.append(Trajectory("e", seed, (Turn("x" * 1_000_000, "y"),), terminated=True))
    code = f"""
import resource
from polyturn.envs.store import index, read, read_groups
def used():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used() + 24 * 2**20,) * 2)
print(sum(len(t.turns[0].observation) for t in read({str(path)!r})), sum(1 for _ in index({str(path)!r})),
      sum(len(g) for g in read_groups({str(path)!r})))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc to limit memory")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["40000000", "40", "40"], done.stderr


def test_the_lock_is_the_kernels(path: Path) -> None:
    """A lock file would outlive a killed writer; this lock does not."""
    with Store(path), open(path, "rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("number", "text", "remedy"),
    [
        (28, "No space left on device", "free space, or choose another place"),
        (27, "File too large", "raise the limit on file sizes"),
        (5, "Input/output error", "choose another place"),
    ],
)
def test_a_write_error_names_the_store_the_cause_and_a_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str, remedy: str
) -> None:
    def broken(fd: int, data: bytes, offset: int) -> int:
        raise OSError(number, text)

    with Store(path) as store, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(StoreWriteError) as caught:
            store.append(trajectory())
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert f"the store: {text.lower()}; {remedy}" in str(caught.value)


def test_a_write_in_many_small_pieces_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operating system may write less than it was given, again and again."""
    real = os.pwrite
    with Store(path) as store, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
        store.append(trajectory(1))
        store.append(trajectory(2))
    assert list(read(path)) == [trajectory(1), trajectory(2)]


def test_damage_is_named_by_file_and_record_in_every_way_of_reading(path: Path) -> None:
    write(path, trajectory(1), trajectory(2), trajectory(3))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"hello", b"jello")
    path.write_bytes(b"".join(lines))
    for readers in (lambda: list(read(path)), lambda: list(read_groups(path))):
        with pytest.raises(CorruptRecord) as caught:
            readers()
        assert str(path) in str(caught.value)
        assert "record 2" in str(caught.value)


def test_segments_come_back(path: Path) -> None:
    parted = trajectory(segment_starts=(1,))
    write(path, parted, trajectory())
    assert [item.segment_starts for item in read(path)] == [(1,), ()]
    assert list(read(path)) == [parted, trajectory()]
    assert json.loads(path.read_text("utf-8").splitlines()[1])["segment_starts"] == [1]


def test_arrays_are_base64_without_line_breaks(path: Path) -> None:
    """As the format says, so that other programs can read it: little-endian int32 and float32."""
    record = json.loads(write(path, trajectory()).read_text("utf-8").splitlines()[1])
    turn = record["turns"][0]
    assert base64.b64decode(turn["action_ids"], validate=True) == np.array([3, 4, 5], "<i4").tobytes()
    assert base64.b64decode(turn["logps"], validate=True) == np.array([-0.1, -2.5, 0.0], "<f4").tobytes()

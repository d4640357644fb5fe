"""A vLLM server of one's own: started on this machine for one policy, asked through a socket in a private folder.

No other process reaches it, it has the flags that training needs, and it ends with this process. If it dies it is
started again and given the weights once more.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyturn.agents.http_client import Again, HttpClient, ServerRefused
from polyturn.agents.transformer.adapters import has_adapters
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.scoring import base_model

URL = "http://vllm/v1"
"""What its address is called; the connection is the socket."""
# Seconds until it must answer: a large model takes minutes to load and, on a GPU, to compile.
_STARTING_S = 1800.0
_SAID = 3000


# By model, slots and capacity: agents that are made again, as in every iteration, go on with the server that there is.
_RUNNING: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], OwnServer]] = weakref.WeakKeyDictionary()


def own_server(policy: Policy, *, slots: int, capacity: int) -> OwnServer:
    """The server for this policy's model, one for all its agents of the same slots and capacity; see `OwnServer`."""
    mine = _RUNNING.setdefault(policy.model, {})
    if (slots, capacity) not in mine:
        mine[slots, capacity] = OwnServer(policy, slots=slots, capacity=capacity)
    return mine[slots, capacity]


class OwnServer:
    """One server process; it ends with the model that it was started for.

    Args:
        policy: Whose weights it is started with: adapters' base is loaded from where that came from.
        slots: Conversations at once.
        capacity: Tokens that a conversation may have in all.

    Raises:
        ImportError: vLLM is not installed here.
        ValueError: Adapters on a base that is stored nowhere.
    """

    def __init__(self, policy: Policy, *, slots: int, capacity: int) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "engine='vllm' needs vLLM in this environment; install it (pip install vllm, or scripts/vllm.sh of the "
                "repository for a CPU), or start a server elsewhere and pass its address"
            )
        self._base = ""
        if has_adapters(policy.model):
            self._base = str(base_model(policy.model).config._name_or_path or "")
            if not self._base:
                raise ValueError(
                    "engine='vllm': expected adapters on a base that was loaded from a folder or a Hub id, got one "
                    "made in memory; save the base and load it, or use engine='exact'"
                )
        self._slots, self._capacity = slots, capacity
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    @property
    def socket(self) -> str:
        """Where it listens."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="polyturn-vllm-"))  # only this user may enter
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        return str(self._folder / "socket")

    async def revived(self, policy: Policy, http: HttpClient) -> bool:
        """Starts it, with a policy's weights, where it does not run: whether it was started.

        Raises:
            ServerRefused: It ended, or did not answer in time; with what it said last.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._starting:
            self._starting = {loop: asyncio.Lock()}
        async with self._starting[loop]:
            if self._process is not None and self._process.poll() is None:
                return False
            self._start(policy)
            end = time.monotonic() + _STARTING_S
            while True:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > end:
                    self.close()
                    raise ServerRefused(f"engine='vllm': the server did not start; it said last: {self._last()}")
                with contextlib.suppress(Again):
                    status, _, _ = await http.once(URL.removesuffix("/v1"), "/health", None, timeout=5.0)
                    if status == 200:
                        return True
                await asyncio.sleep(0.5)

    def close(self) -> None:
        """Ends it; the next request starts another."""
        if self._end is not None:
            self._end()
            self._end = self._process = None

    def _start(self, policy: Policy) -> None:
        socket, cpu = Path(self.socket), not torch.cuda.is_available()
        socket.unlink(missing_ok=True)
        source, more = self._base, ["--enable-lora", "--max-lora-rank", "64", "--max-cpu-loras", "4"]
        if not source:
            policy.save_pretrained(socket.parent / "policy")
            source, more = str(socket.parent / "policy"), []
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source, "--uds", str(socket),
            "--dtype", str(policy.model.dtype).removeprefix("torch."), "--max-model-len", str(self._capacity),
            "--max-num-seqs", str(self._slots), "--logprobs-mode", "processed_logprobs", *more,
            # Training needs the rest of a GPU; on a CPU compiling takes longer than it saves.
            *(["--enforce-eager"] if cpu else ["--gpu-memory-utilization", "0.4"]),
        ]  # fmt: skip
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        }  # fmt: skip
        with open(socket.parent / "log", "wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._end = weakref.finalize(self, _killed, self._process, os.getpid())

    def _last(self) -> str:
        assert self._folder is not None
        said = (self._folder / "log").read_bytes()[-_SAID:].decode("utf-8", "replace")
        return " | ".join(line for line in said.splitlines() if line.strip())[-_SAID:]


def _killed(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ends a server and the workers that it has started; in a forked child it is the parent's."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

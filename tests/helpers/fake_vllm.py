"""A server that answers as vLLM does, from a policy of ours: completions of token ids, versions, weights from a folder.

It runs in threads of this process. `acts` makes it misbehave, request by request.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from polyturn.agents.transformer.generation import Sampling, draw
from polyturn.agents.transformer.policy import Policy

Act = Callable[["FakeVllm", BaseHTTPRequestHandler, dict[str, Any]], None]


class FakeVllm:
    """One server.

    Args:
        policy: What it serves; its weights are replaced where it is told to.
        processed: Whether log-probabilities are those of the distribution that is sampled from.
        dev: Whether weights can be handed over.
        port: Where to listen; 0: anywhere.
        max_model_len: As vLLM reports it.
    """

    def __init__(
        self, policy: Policy, *, processed: bool = True, dev: bool = True, port: int = 0, max_model_len: int = 512
    ) -> None:
        self.policy, self.processed, self.dev, self.max_model_len = policy, processed, dev, max_model_len
        self.version = "default"
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self.acts: list[Act | None] = []  # of completions, in order; None: as it should
        self.bodies: list[dict[str, Any]] = []
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._answer(self, self.path, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake._answer(self, self.path.partition("?")[0], body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        with self.lock:
            self.asked[path] += 1
            self.keys.add(handler.headers.get("Authorization"))
            act = None
            if path == "/v1/completions":
                act = self.acts.pop(0) if self.acts else None
                self.bodies.append(body)
            try:
                if act is not None:
                    act(self, handler, body)
                else:
                    send(handler, *self._said(path, body))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up

    def _said(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            names = ["served", *self.adapters]
            return 200, {"data": [{"id": name, "max_model_len": self.max_model_len} for name in names]}
        if path == "/v1/completions":
            return self.completion(body)
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
            return 200, "loaded"
        if not self.dev or path in ("/pause", "/resume", "/reset_prefix_cache"):
            return (200, {}) if self.dev else (404, {"detail": "Not Found"})
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            for file in Path(body["kwargs"]["weights_path"]).glob("*.safetensors"):
                self.policy.model.load_state_dict(load_file(file), strict=False)
            return 200, {}
        return 404, {"detail": "Not Found"}

    def completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        """What vLLM would answer; its bits are not the exact engine's, as a prompt is read whole."""
        if body["model"] != "served" and body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        model: Any = self.policy.model
        if body["model"] in self.adapters:
            for name, value in self.adapters[body["model"]].items():
                model.get_parameter(name.replace(".weight", ".default.weight")).data.copy_(value)
        how = Sampling(
            temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"], min_p=body["min_p"]
        )  # fmt: skip
        rng = np.random.default_rng(body["seed"])
        ids, logps = list(body["prompt"]), []
        while len(logps) < body["max_tokens"]:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:].float()
            token, logp = draw(how.kept(logits), torch.tensor([rng.random()], dtype=torch.float64))
            ids.append(int(token))
            logps.append(float(logp if self.processed else logits.log_softmax(-1)[0, token]))
            if ids[-1] in body.get("stop_token_ids", []):
                break
            said = self.policy.tokenizer.decode(ids[len(body["prompt"]) :])
            if any(text in said for text in body.get("stop", [])):
                break
        new = ids[len(body["prompt"]) :]
        choice = {"token_ids": new, "logprobs": {"token_logprobs": logps}, "text": "", "finish_reason": "stop"}
        return 200, {"model": body["model"], "choices": [choice | {"prompt_token_ids": body["prompt"]}]}


def send(handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def fail(status: int, text: str = "busy", **headers: str) -> Act:
    return lambda fake, handler, body: send(handler, status, text.encode(), **headers)


def hang_up(fake: FakeVllm, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


def changed(change: Callable[[dict[str, Any]], object]) -> Act:
    """The right answer, changed."""

    def act(fake: FakeVllm, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        status, content = fake.completion(body)
        change(content)
        send(handler, status, content)

    return act

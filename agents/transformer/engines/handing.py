"""A policy's weights as servers are given them: written once to a folder, loaded from there, compared afterwards."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from polyturn.agents.transformer.adapters import has_adapters
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.scoring import acting
from polyturn.envs.trajectory import Logps, TokenIds

# Folders of weights, by the folder they stand in, in the order in which this process wrote them.
_WRITTEN: dict[Path, list[Path]] = {}
# The newest, and the one before it: what a previous policy acts with, or a slow server is still reading.
_KEPT = 2
_HEAD = "head.safetensors"
_PROBE = "How much is 37 + 5? Think, then answer."
_PROBE_TOKENS = 8


def adapter_of(policy: Policy) -> str | None:
    """The name of the one adapter that acts; None for a policy without adapters.

    Raises:
        ValueError: Several act, which servers do not add up.
    """
    if not has_adapters(policy.model):
        return None
    active = list(cast("Any", policy.model).active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"engine: expected one adapter to hand over, got {len(active)} that act together ({', '.join(active)}); "
            "merge the lower ones into the base (existing='merge'; on the command line --adapter merge)"
        )
    return str(active[0])


def written(policy: Policy, fingerprint: str, folder: str | None) -> Path:
    """A folder with the policy's weights: of one with an adapter the adapter, else the whole model.

    Written under another name first, so that what has the name is whole. Of those that this process wrote the last two
    are kept.

    Args:
        policy: The policy.
        fingerprint: Of its weights.
        folder: Where to; None: a temporary folder, which is removed when the process ends.
    """
    place = Path(_temporary() if folder is None else folder).expanduser().resolve()
    target = place / f"polyturn-{fingerprint}"
    if not target.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        with _without_bars(), tempfile.TemporaryDirectory(dir=place, prefix="part-") as made:
            part = Path(made) / "weights"
            adapter = adapter_of(policy)
            if adapter is None:
                policy.model.save_pretrained(part)
                _add_tied_head(policy.model, part)
            else:
                _save_adapter(policy, adapter, part)
            part.chmod(0o755)  # servers may be other users
            try:
                part.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster, with the same weights
                    raise
    mine = _WRITTEN.setdefault(place, [])
    if target in mine:
        mine.remove(target)
    mine.append(target)
    while len(mine) > _KEPT:
        shutil.rmtree(mine.pop(0), ignore_errors=True)
    return target


def _add_tied_head(model: PreTrainedModel, part: Path) -> None:
    """Writes an output head that is the embedding once more, under its own name.

    vLLM 0.32 on a CPU keeps a packed copy of such a head, and packs it anew only where the head is among the weights.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    name = next(name for name, module in model.named_modules() if module is head) + ".weight"
    save_file({name: embedding.weight.detach().cpu().clone()}, part / _HEAD, metadata={"format": "pt"})
    index = part / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text("utf-8"))
        listed["weight_map"][name] = _HEAD
        index.write_text(json.dumps(listed), "utf-8")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bar for every update of a run."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _save_adapter(policy: Policy, adapter: str, part: Path) -> None:
    cast("Any", policy.model).save_pretrained(str(part), selected_adapters=[adapter], save_embedding_layers=False)
    if adapter != "default":  # peft puts those into a folder of their own name
        for file in (part / adapter).iterdir():
            file.rename(part / file.name)
        (part / adapter).rmdir()


_TEMPORARY: list[str] = []


def _temporary() -> str:
    if not _TEMPORARY:
        _TEMPORARY.append(tempfile.mkdtemp(prefix="polyturn-weights-"))
        atexit.register(shutil.rmtree, _TEMPORARY[0], ignore_errors=True)
    return _TEMPORARY[0]


def probe(policy: Policy, capacity: int) -> tuple[list[int], int]:
    """A short prompt, and how many tokens to sample after it, for `disagreement`."""
    prompt = policy.chat.context(_PROBE, None).tolist()[: max(1, capacity - _PROBE_TOKENS)]
    return prompt, min(_PROBE_TOKENS, capacity - len(prompt))


def disagreement(policy: Policy, sampling: Sampling, prompt: Sequence[int], ids: TokenIds, logps: Logps) -> float:
    """How far the log-probabilities of another sampler's tokens are from the policy's own.

    Args:
        policy: The policy whose weights should have sampled.
        sampling: How the tokens were drawn; of temperature 0 the tokens are compared, by how far each is from the most
            likely one.
        prompt: What was read.
        ids: `[A]` what was sampled.
        logps: `[A]` what their log-probabilities are said to be.

    Returns:
        The largest difference in nats.
    """
    row = torch.tensor([[*prompt, *ids.tolist()]], device=policy.device)
    chosen = row[0, len(prompt) :, None]
    with torch.inference_mode(), acting(policy.model):
        logits = policy.model(input_ids=row[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].float()
        if sampling.temperature == 0:
            return float((logits.amax(-1) - logits.gather(1, chosen)[:, 0]).max())
        found = sampling.log_probs(logits).gather(1, chosen)[:, 0]
    kept = torch.isfinite(found)
    # Rounding may move a token across the border of what top_k, top_p or min_p keep: seldom more than one.
    if int(kept.sum()) < len(ids) - 1:
        return float("inf")
    return float((found - torch.from_numpy(logps).to(found)).abs()[kept].max())

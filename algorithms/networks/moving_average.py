"""A moving average of a policy's weights, updated as it trains: the opponent of Nash-EMA-PG."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.networks.compound import Compound

_FOLDER = "average"
_NOTE = "average.json"


class MovingAverage:
    """A policy that keeps an exponential moving average of its weights (arXiv 2312.00886, Nash-EMA-PG).

    Give it to `train` in the policy's place, so that the average is saved and resumed with it, and to `online` as the
    opponent: `online(tracked.policy, env, opponent=tracked, ...)`.

    Args:
        policy: What is trained and acts. The average is kept in float32, also of a policy in another type.
        decay: Share of the average that stays at each update.

    Raises:
        ValueError: A decay outside [0, 1].
    """

    def __init__(self, policy: Policy, *, decay: float = 0.999) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"MovingAverage.decay: expected a number in [0, 1], got {decay}")
        self.policy, self.decay = policy, decay
        self.average = policy.copy(version=f"{policy.version}+average")
        # In half precision a thousandth of the way rounds to no step at all, and the average would never move.
        self.average.model.float()
        self._clock = _Clock().to(policy.device)
        self.model = Compound(policy.model, average=self.average.model, clock=self._clock)
        self.scorer = policy.scorer

    @torch.no_grad()
    def update(self, draw: int) -> None:
        """Moves the average towards the present weights, once for every draw: a repeated or resumed one does nothing.

        Args:
            draw: How often groups were collected before; nothing happens before the first, when both are equal.
        """
        if draw <= int(self._clock.draw):
            return
        self._clock.draw.fill_(draw)
        mine = dict(self.policy.model.named_parameters())
        for name, parameter in self.average.model.named_parameters():
            parameter.lerp_(mine[name].detach().to(parameter.dtype), 1.0 - self.decay)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy, loadable on its own, and the average in a folder inside."""
        self.policy.save_pretrained(folder)
        self.average.save_pretrained(Path(folder) / _FOLDER)
        note = {"draw": int(self._clock.draw), "decay": self.decay}
        (Path(folder) / _FOLDER / _NOTE).write_text(json.dumps(note) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> MovingAverage:
        """Reads both back.

        Raises:
            PolicyLoadError: No policy, or no average, there.
        """
        average = Policy.from_pretrained(Path(source) / _FOLDER, device=device)
        note = json.loads((Path(source) / _FOLDER / _NOTE).read_text("utf-8"))
        tracked = cls(Policy.from_pretrained(source, device=device), decay=note["decay"])
        tracked.average.model.load_state_dict(average.model.state_dict())
        tracked._clock.draw.fill_(note["draw"])
        return tracked


class _Clock(nn.Module):
    """How often the average was moved: saved with the weights, so that a resumed run does not move it twice."""

    draw: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("draw", torch.zeros((), dtype=torch.int64))

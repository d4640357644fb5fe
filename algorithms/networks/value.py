"""Values of prefixes: how much a conversation is going to be worth, before each token the agent writes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.prediction import Prediction
from polyturn.agents.transformer.reading import Reader
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, TokenScorer
from polyturn.algorithms.estimators import policy_mask
from polyturn.algorithms.networks.compound import Compound, widened

_FILE = "value.safetensors"


class ValueNetwork(nn.Module):
    """A transformer's body with a linear head of one number, which starts at 0 everywhere.

    Args:
        body: A transformers decoder; None where the head reads the policy's own hidden states.
        width: Size of the hidden states.
    """

    def __init__(self, body: nn.Module | None, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Rows, states: Tensor | None = None) -> Tensor:
        """`[P]` float32: the value of what stands BEFORE each packed token, 0 at the first of a row.

        Args:
            rows: The rows.
            states: `[P, D]` the policy's hidden states, where there is no body.
        """
        if self.body is not None:
            states = self.reader()(rows)
        assert states is not None
        after = self.head(states.to(self.head.weight.dtype))[..., 0].float()
        return torch.where(rows.parent >= 0, after[rows.parent.clamp(min=0)], torch.zeros_like(after))

    def reader(self) -> Reader:
        """The body as it reads rows."""
        assert self.body is not None
        return Reader(self.body, "last_hidden_state")


class _ActorCriticScorer(TokenScorer):
    """What the policy's scorer predicts, and values."""

    def __init__(self, scorer: ModelScorer, value: ValueNetwork) -> None:
        super().__init__()
        self.scorer, self.value = scorer, value

    def predict(self, rows: Rows) -> Prediction:
        return self.scorer.predict(rows)

    def outputs(self, rows: Rows, prediction: Prediction) -> Mapping[str, Tensor]:
        return {"values": self.value(rows, prediction.states if self.value.body is None else None)}

    @contextmanager
    def engaged(self) -> Iterator[None]:
        with self.scorer.engaged(), nullcontext() if self.value.body is None else self.value.reader().attending():
            yield


class ActorCritic:
    """A policy and a value network that `train` trains, saves and resumes together.

    Acting and references need only the policy: `TransformerAgent(both.policy)`, `both.policy.copy()`.

    Args:
        policy: What acts. What is trained beside one in half precision is in float32, as half precision loses updates.
        shared: The head reads the policy's own hidden states, which costs little and lets the value's loss move the
            policy's body. Otherwise the value has a separate body, a copy of the policy's as it is now (DRO-V needs
            that, and measured better so).
        lr_scale: The value's learning rate over the policy's.

    Raises:
        ValueError: `shared` with an architecture whose logits are not the projection of its last hidden states; a
            policy of which nothing is trained, as a copy that is made to be a reference.
    """

    def __init__(self, policy: Policy, *, shared: bool = False, lr_scale: float = 1.0) -> None:
        if not any(parameter.requires_grad for parameter in policy.model.parameters()):
            raise ValueError(
                "ActorCritic: expected a policy to train, got one whose parameters are all frozen; "
                "a copy to be trained is policy.copy(trainable=True)"
            )
        self.policy, self.shared, self.lr_scale = policy, shared, lr_scale
        inner = cast("Any", getattr(policy.model, "get_base_model", lambda: policy.model)())
        body = None if shared else widened(copy.deepcopy(inner.get_decoder())).requires_grad_(True)
        self.value = ValueNetwork(body, int(inner.config.get_text_config().hidden_size)).to(policy.device)
        self.model = Compound(policy.model, value=self.value)
        self.scorer = _ActorCriticScorer(policy.scorer, self.value)
        if shared:
            ids = torch.ones((1, 2), dtype=torch.int64, device=policy.device)
            with torch.no_grad():
                direct = policy.scorer.predict(Rows.of(ids, ids > 0)).weight is not None
            if not direct:
                raise ValueError(
                    f"ActorCritic: expected logits that are a projection of hidden states to share them, got "
                    f"{type(inner).__name__}; use shared=False"
                )

    @property
    def lr_scales(self) -> dict[str, float]:
        """Learning rates by prefixes of parameter names, relative to the policy's."""
        return {"value.": self.lr_scale}

    def values(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`[N, T]` value of the tokens before each token, 0 at t = 0 and beyond a row's length."""
        rows = Rows.of(ids, mask)
        states = self.policy.scorer.predict(rows).states if self.shared else None
        return rows.to_rows(self.value(rows, states))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy, loadable by itself, and the value network next to it."""
        self.policy.save_pretrained(folder)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.value.state_dict().items()}
        note = {"shared": str(int(self.shared)), "lr_scale": repr(self.lr_scale)}
        save_file(tensors, Path(folder) / _FILE, metadata=note)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> ActorCritic:
        """Reads them back.

        Raises:
            PolicyLoadError: No policy there.
            FileNotFoundError: No value network there.
        """
        from safetensors import safe_open

        policy = Policy.from_pretrained(source, device=device)
        path = Path(source) / _FILE
        with safe_open(path, "pt") as file:
            note = file.metadata()
        both = cls(policy, shared=note["shared"] == "1", lr_scale=float(note["lr_scale"]))
        both.value.load_state_dict(load_file(path))
        return both


def token_slots(turn_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The agent's tokens of every row moved to its front, for recursions over them.

    Args:
        turn_ids: `[N, T]` int, -1 where the agent did not write the token.

    Returns:
        `column [N, K]`: where each row's k-th agent token stands, K that of the row with most; `mask [N, K]`: the first
        n_i entries of each row.
    """
    mask = policy_mask(turn_ids)
    count = mask.sum(1)
    width = int(count.max()) if len(count) else 0
    column = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :width]
    return column, torch.arange(width, device=turn_ids.device)[None] < count[:, None]


def turn_slots(turn_ids: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_slots` for whole turns: where each row's h-th turn begins, and which turns there are.

    Returns:
        `column [N, H]` of a turn's first token; `mask [N, H]`.
    """
    # Tokens that the agent did not write may stand inside a turn too; turns only rise.
    before = torch.cat([torch.full_like(turn_ids[:, :1], -1), turn_ids[:, :-1].cummax(1).values], 1)
    opens = torch.where(turn_ids > before, torch.zeros_like(turn_ids), torch.full_like(turn_ids, -1))
    return token_slots(opens)

"""Small policies over a fixed list of actions, as policies like any other: a softmax table, and an MLP over contexts.

An action is a text of one token, its number in the list. What the environment said is one token too: the number of its
state, after the actions'. So `collect`, every method and `train` treat them as they treat a language model, while all
of their probabilities can be read off at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyturn.agents.agent import Action, Episode
from polyturn.agents.transformer.policy import PolicyLoadError
from polyturn.agents.transformer.prediction import Prediction
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import TokenScorer
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Trajectory

_WEIGHTS, _NOTE = "model.safetensors", "tabular.json"


class Table(nn.Module):
    """A row of numbers for each state, 0 at first.

    Args:
        states: Number of states S.
        width: Numbers a row.
    """

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(states, width))

    def forward(self, state: Tensor) -> Tensor:
        """`[M]` int64 states to `[M, width]`."""
        return self.rows[state]


class ContextMLP(nn.Module):
    """Features of the state through Linear, LayerNorm, ReLU, then Linear and ReLU for each further hidden width.

    Args:
        features: `[S, D]`; known, not trained.
        width: Outputs.
        hidden: Hidden widths; 50, 256, 256 in arXiv 2404.14367 (with D = 100 and 100 outputs).
    """

    features: Tensor

    def __init__(self, features: Tensor, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.register_buffer("features", features.clone())
        sizes = [features.shape[1], *hidden]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if place == 0 else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], width))

    def forward(self, state: Tensor) -> Tensor:
        """`[M]` int64 states to `[M, width]`."""
        return cast("Tensor", self.layers(self.features[state]))


class TabularModel(nn.Module):
    """What is trained: logits for every state, and with a critic its value too, from a separate network."""

    def __init__(self, policy: Table | ContextMLP, value: Table | ContextMLP | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.value = value


class TabularScorer(TokenScorer):
    """A table as a scorer.

    A token is predicted from the state just before it; what follows an action within a row is not predicted, and is
    never asked for. With a critic it also says "values" `[N, T]`, the value of the state before each token.
    """

    def __init__(self, model: TabularModel, actions: int) -> None:
        super().__init__()
        self.model, self._actions = model, actions

    def predict(self, rows: Rows) -> Prediction:
        """Logits after every packed token."""
        return Prediction(self._every(self.model.policy, rows.ids))

    def outputs(self, rows: Rows, prediction: Prediction) -> Mapping[str, Tensor]:
        """The critic's values, where there is a critic."""
        if self.model.value is None:
            return {}
        after = self._every(self.model.value, rows.ids)[..., 0]
        return {"values": torch.where(rows.parent >= 0, after[rows.parent.clamp(min=0)], torch.zeros_like(after))}

    def _every(self, network: nn.Module, ids: Tensor) -> Tensor:
        """The network's outputs after each token; each state is computed once."""
        states, place = torch.unique((ids - self._actions).clamp(min=0), return_inverse=True)
        return cast("Tensor", network(states)[place])


class TabularPolicy:
    """A distribution over a fixed list of actions for each state, and an agent that draws from it.

    The state is what the environment said last: a table over contexts in a bandit, over positions in a game. `train`
    takes it as it takes any policy, `collect` and `online` take it as the agent that it is, at temperature 1.

    Args:
        model: Logits of `[S, A]`, with or without a critic; `table_policy` and `mlp_policy` make one.
        actions: The A texts it may say.
        states: The S observations it knows; None: one state for every observation.
        version: Name of the weights, recorded in every trajectory.

    Raises:
        ValueError: Actions or states that are not different, or fewer than two actions.
    """

    blocking = False

    def __init__(
        self, model: TabularModel, actions: Sequence[str], states: Sequence[str] | None = None, *, version: str = ""
    ) -> None:
        for what, names in (("actions", actions), ("states", states or ("",))):
            if len(set(names)) != len(names):
                raise ValueError(f"TabularPolicy.{what}: expected different texts, got some twice")
        if len(actions) < 2:
            raise ValueError(f"TabularPolicy.actions: expected at least two, got {len(actions)}")
        self.model = model
        self.actions, self.states = tuple(actions), None if states is None else tuple(states)
        self.version = version
        self.scorer = TabularScorer(model, len(self.actions))
        self._action_of = {text: number for number, text in enumerate(self.actions)}
        self._state_of = {text: number for number, text in enumerate(self.states or ())}

    @property
    def name(self) -> str:
        """Recorded in trajectories: the kind of network and its sizes."""
        count = 1 if self.states is None else len(self.states)
        return f"{type(self.model.policy).__name__}(states={count}, actions={len(self.actions)})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def state(self, observation: str) -> int:
        """The number of the state that an observation stands for.

        Raises:
            ValueError: It is none of the states.
        """
        if self.states is None:
            return 0
        if observation not in self._state_of:
            raise ValueError(
                f"TabularPolicy: expected one of its {len(self.states)} observations, got {observation[:200]!r}."
                f"{did_you_mean(observation, self._state_of)}"
            )
        return self._state_of[observation]

    @torch.no_grad()
    def act(self, episode: Episode) -> Action:
        """Draws an action with one number of the episode's generator.

        Raises:
            ValueError: The observation is none of the states.
        """
        state = self.state(episode.observation)
        # One state at a time: its numbers must not depend on which other episodes are under way.
        logits = self.model.policy(torch.tensor([state], device=self.device))[0]
        logps = torch.log_softmax(logits.double(), -1).cpu().numpy()
        mass = np.exp(logps).cumsum()
        drawn = int(np.searchsorted(mass, episode.rng.random() * mass[-1], side="right"))
        action = min(drawn, int(np.flatnonzero(logps > -np.inf)[-1]))
        return Action(self.actions[action], self._context(state), np.array([action], np.int32), logps[[action]])

    def written(self, trajectory: Trajectory) -> Trajectory:
        """The same trajectory with this policy's tokens, for episodes that something else played; log-probs stay.

        Raises:
            ValueError: An observation or action that it does not know, or a turn with tokens of another kind.
        """
        turns = []
        for turn in trajectory.turns:
            if turn.action not in self._action_of:
                raise ValueError(
                    f"TabularPolicy.written: expected one of its {len(self.actions)} actions, got "
                    f"{turn.action[:200]!r}.{did_you_mean(turn.action, self._action_of)}"
                )
            action = np.array([self._action_of[turn.action]], np.int32)
            context = self._context(self.state(turn.observation))
            for what, own, found in (("context", context, turn.context_ids), ("action", action, turn.action_ids)):
                if len(found) and found.tolist() != own.tolist():
                    raise ValueError(
                        f"TabularPolicy.written: expected a turn without tokens or with {what} {own.tolist()}, got "
                        f"{found.tolist()[:8]}; what another policy sampled is not rewritten"
                    )
            turns.append(replace(turn, context_ids=context, action_ids=action))
        return replace(trajectory, turns=tuple(turns))

    @torch.no_grad()
    def probabilities(self) -> NDArray[np.float64]:
        """`[S, A]` probability of every action in every state."""
        return torch.softmax(self._logits().double(), -1).cpu().numpy()

    def fit(
        self, target: ArrayLike, *, states: Sequence[int] | None = None, steps: int = 100, lr: float = 0.01
    ) -> float:
        """Draws the policy to given probabilities: Adam on the mean of KL(target || policy) over states.

        Args:
            target: `[A]` for all states, or a row for each of them.
            states: Which states; default all.
            steps: Updates; 100 at .01 in arXiv 2404.14367.
            lr: Learning rate.

        Returns:
            The mean KL in nats before the last update.

        Raises:
            ValueError: Rows that are no probabilities, or of another shape.
        """
        rows = list(range(1 if self.states is None else len(self.states))) if states is None else list(states)
        given = np.asarray(target, np.float64)
        if given.shape not in ((len(self.actions),), (len(rows), len(self.actions))):
            raise ValueError(
                f"TabularPolicy.fit: expected [{len(self.actions)}] or [{len(rows)}, {len(self.actions)}] "
                f"probabilities, got shape {given.shape}"
            )
        if np.any(given < 0) or not np.allclose(given.sum(-1), 1.0, atol=1e-6):
            raise ValueError("TabularPolicy.fit: expected probabilities >= 0 that add to 1 in every state")
        wanted = torch.as_tensor(given, dtype=self._logits().dtype, device=self.device)
        index = torch.tensor(rows, device=self.device)
        optimizer = torch.optim.Adam(self.model.policy.parameters(), lr=lr)
        kl = 0.0
        for _ in range(steps):
            logps = torch.log_softmax(self.model.policy(index), -1)
            loss = (torch.special.xlogy(wanted, wanted) - wanted * logps).sum(-1).mean()
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
            kl = float(loss.detach())
        return kl

    def logps(self, ids: Tensor, mask: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Log-probabilities `[N, T]` of given tokens; see `TokenScorer.forward`."""
        return cast("Tensor", self.scorer(Rows.of(ids, mask), token_mask)["logps"])

    def copy(self, *, version: str | None = None) -> TabularPolicy:
        """An independent, frozen copy, for use as a reference or an opponent."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        return TabularPolicy(model, self.actions, self.states, version=self.version if version is None else version)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes safetensors weights, and actions, states and version as JSON in the same folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(tensors, path / _WEIGHTS)
        note = {
            "hidden": getattr(self.model.policy, "hidden", None),
            "actions": self.actions,
            "states": self.states,
            "version": self.version,
        }
        (path / _NOTE).write_text(json.dumps(note, indent=1) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> TabularPolicy:
        """Reads what `save_pretrained` wrote.

        Raises:
            PolicyLoadError: No such policy there.
        """
        try:
            note = json.loads((Path(source) / _NOTE).read_text("utf-8"))
            tensors = load_file(Path(source) / _WEIGHTS)
            policy = cls(_rebuilt(note["hidden"], tensors), note["actions"], note["states"], version=note["version"])
            policy.model.load_state_dict(tensors)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise PolicyLoadError(
                f"expected a folder with a tabular policy's {_NOTE} and {_WEIGHTS}, got {str(source)!r}: {error}"
            ) from error
        policy.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return policy

    def _context(self, state: int) -> NDArray[np.int32]:
        return np.array([len(self.actions) + state], np.int32)

    def _logits(self) -> Tensor:
        count = 1 if self.states is None else len(self.states)
        return cast("Tensor", self.model.policy(torch.arange(count, device=self.device)))


def table_policy(
    actions: Sequence[str] | int,
    states: Sequence[str] | None = None,
    *,
    probabilities: ArrayLike | None = None,
    critic: bool = False,
    version: str = "table",
) -> TabularPolicy:
    """A softmax table: separate logits for every state and action.

    Args:
        actions: The texts it may say; or how many, for the texts "0", "1", ...
        states: The observations it knows, each with a row; None: one row for every observation.
        probabilities: `[A]` or `[S, A]` to begin with, all positive; default uniform.
        critic: Whether each state has a value too, 0 at first: for methods with a value network (PPO, DRO-V).
        version: Name of the weights.

    Raises:
        ValueError: Probabilities of another shape, or one that is not positive.
    """
    texts = [str(number) for number in range(actions)] if isinstance(actions, int) else actions
    count = 1 if states is None else len(states)
    table = Table(count, len(texts))
    if probabilities is not None:
        start = np.asarray(probabilities, np.float64)
        if start.shape not in ((len(texts),), (count, len(texts))) or not bool(np.all(start > 0)):
            raise ValueError(
                f"table_policy: expected positive probabilities [{len(texts)}] or [{count}, {len(texts)}], got shape "
                f"{start.shape} with smallest {start.min() if start.size else 'none'}"
            )
        with torch.no_grad():
            table.rows.copy_(torch.from_numpy(np.broadcast_to(np.log(start), (count, len(texts))).copy()))
    model = TabularModel(table, Table(count, 1) if critic else None)
    return TabularPolicy(model, texts, states, version=version)


def mlp_policy(
    actions: Sequence[str] | int,
    states: Sequence[str],
    features: ArrayLike,
    *,
    seed: int,
    hidden: Sequence[int] = (50, 256, 256),
    critic: bool = False,
    version: str = "random",
) -> TabularPolicy:
    """A network from features of the state to logits: what it learns in some states reaches others.

    The same seed gives the same weights; no global generator is touched.

    Args:
        actions: The texts it may say; or how many, for the texts "0", "1", ...
        states: The observations it knows, those kept for evaluation included.
        features: `[S, D]` a row for each state (`polyturn.envs.games.bandits.context_features`).
        seed: Of the first weights.
        hidden: Hidden widths; as in arXiv 2404.14367 by default.
        critic: Whether there is a value too, from a network of the same shape: for PPO and DRO-V.
        version: Name of the weights.

    Raises:
        ValueError: Not one row of features a state.
    """
    texts = [str(number) for number in range(actions)] if isinstance(actions, int) else actions
    given = torch.as_tensor(np.asarray(features, np.float32))
    if given.ndim != 2 or len(given) != len(states):
        raise ValueError(f"mlp_policy: expected features [{len(states)}, D], got shape {tuple(given.shape)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ContextMLP(given, len(texts), hidden)
        value = ContextMLP(given, 1, hidden) if critic else None
    return TabularPolicy(TabularModel(network, value), texts, states, version=version)


def _rebuilt(hidden: Sequence[int] | None, tensors: dict[str, Tensor]) -> TabularModel:
    """A model of the shape that saved tensors have: a table, or an MLP of the given hidden widths."""

    def build(part: str) -> Table | ContextMLP:
        if hidden is None:
            states, width = tensors[f"{part}.rows"].shape
            return Table(states, width)
        features = tensors[f"{part}.features"]
        output = f"{part}.layers.{2 * len(hidden) + 1}.weight"
        return ContextMLP(features, len(tensors[output]), hidden)

    critic = any(name.startswith("value.") for name in tensors)
    return TabularModel(build("policy"), build("value") if critic else None)

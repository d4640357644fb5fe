"""Two-turn games with more or less noise in the replies, and the policies that training methods reach in expectation.

The losses are the library's own (`polyturn.algorithms`), summed over every play of a game with its probability. So
there is no sampling noise: the remaining distance to the optimum is bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from polyturn.algorithms.exact import tabular_games
from polyturn.algorithms.exact.closed_forms import log_of, logsumexp, softmax
from polyturn.algorithms.exact.tabular_games import TurnPolicy, occupancy, turn_kl
from polyturn.envs.games.tabular_env import TabularGameEnv
from polyturn.envs.games.tabular_games import Array, TabularGame, random_game, random_preference
from polyturn.envs.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.batch import Batch
    from polyturn.algorithms.methods.base import Method

Where = Literal["both", "first", "last"]

ROOMS = (("start",), ("safe", "lucky", "unlucky"))
"""Names of the gamble's states before each turn."""


@dataclass(frozen=True, eq=False)
class PaidGame:
    """A game whose endings may have a reward.

    Attributes:
        game: Its preference is Bradley-Terry in the reward, if there is a reward.
        reward: `[S_H]`, or None.
    """

    game: TabularGame
    reward: Array | None = None


def bradley_terry(reward: Array) -> Array:
    """P(i beats j) = sigmoid(r_i - r_j)."""
    return np.asarray(1.0 / (1.0 + np.exp(reward[None, :] - reward[:, None])), np.float64)


def gamble(spread: float) -> PaidGame:
    """A safe answer or a gamble with the same mean reward at every spread, then a better and a worse end in each room.

    The gamble leads to the lucky room with probability 1/5, otherwise to the unlucky room. The safe room pays 0, the
    lucky room 1/2 + 6 spread, the unlucky room 1/2 - 3/2 spread: 1/2 on average. The better end of a room pays 1/2
    more, the worse end 1/2 less. At spread 0 both rooms of the gamble pay the same. At spread 1 they pay 6.5 and -1,
    and with equal ends the gamble beats the safe answer with probability sigmoid(6.5) / 5 + 4 sigmoid(-1) / 5 = 0.415.
    """
    first = np.array([[[1.0, 0.0, 0.0], [0.0, 0.2, 0.8]]])
    second = np.eye(6).reshape(3, 2, 6)
    rooms = np.array([0.0, 0.5 + 6.0 * spread, 0.5 - 1.5 * spread])
    # The better answer differs between rooms, so no answer is better regardless of the room.
    ends = np.array([[-0.5, 0.5], [0.5, -0.5], [0.5, -0.5]])
    reward = (rooms[:, None] + ends).reshape(-1)
    return PaidGame(TabularGame((first, second), bradley_terry(reward)), reward)


def noisy_game(
    seed: int,
    *,
    noise: float,
    where: Where = "both",
    transitive: bool = True,
    states: tuple[int, int] = (3, 4),
    answers: int = 3,
    scale: float = 3.0,
) -> PaidGame:
    """A random game with certain replies, each replaced by a uniformly random one with probability `noise`.

    Args:
        seed: Seed of the replies and of the preference, which depend on nothing else.
        noise: From 0, where replies are certain, to 1, where no answer matters.
        where: Which of the two replies are random.
        transitive: Bradley-Terry on normal rewards; otherwise a random preference that no reward explains.
        states: States after each turn.
        answers: Answers in every state.
        scale: Standard deviation of the rewards.
    """
    rng = np.random.default_rng([seed, 0])
    certain = random_game(rng, states=states, actions=answers, concentration=0.0).transitions
    noise_levels = (noise if where != "last" else 0.0, noise if where != "first" else 0.0)
    layers = tuple(
        (1 - share) * layer + share / layer.shape[2] for share, layer in zip(noise_levels, certain, strict=True)
    )
    if not transitive:
        return PaidGame(TabularGame(layers, random_preference(states[1], rng)))
    reward = scale * rng.standard_normal(states[1])
    return PaidGame(TabularGame(layers, bradley_terry(reward)), reward)


def by_history(game: TabularGame) -> TabularGame:
    """The same two-turn game for policies with memory: before turn 2 the state is (first answer, reply)."""
    first, second = game.transitions
    _, answers, states = first.shape
    remembered = np.zeros((1, answers, answers * states))
    for answer in range(answers):
        remembered[0, answer, answer * states : (answer + 1) * states] = first[0, answer]
    return TabularGame((remembered, np.tile(second, (answers, 1, 1))), game.preference)


def reward_optimum(
    game: TabularGame, reward: Array, reference: Sequence[Array], *, beta: float
) -> tuple[TurnPolicy, float]:
    """argmax and maximum of E[r(ending)] - beta KL(pi || reference), by soft backward induction."""
    value = reward
    policy: list[Array] = []
    for layer, anchor in reversed(list(zip(game.transitions, reference, strict=True))):
        scores = log_of(anchor) + layer @ value / beta
        policy.insert(0, softmax(scores))
        value = beta * logsumexp(scores)
    return tuple(policy), float(value[0])


def reward_regret(
    paid: PaidGame, policy: Sequence[Array], reference: Sequence[Array], *, beta: float
) -> tuple[float, float]:
    """The largest E[r] - beta KL minus the policy's, and KL(optimum || policy)."""
    assert paid.reward is not None
    best, value = reward_optimum(paid.game, paid.reward, reference, beta=beta)
    earned = float(occupancy(paid.game, policy)[-1] @ paid.reward) - beta * turn_kl(paid.game, policy, reference)
    return value - earned, turn_kl(paid.game, best, policy)


def preference_regret(
    paid: PaidGame, policy: Sequence[Array], reference: Sequence[Array], *, alpha: float
) -> tuple[float, float]:
    """The gain of the best response with its KL penalty, and KL(regularised equilibrium || policy)."""
    best = tabular_games.regularised_nash(paid.game, reference, alpha=alpha)
    gain = tabular_games.regularised_exploitability(paid.game, policy, reference, alpha=alpha)
    return gain, turn_kl(paid.game, best, policy)


def response_regret(
    paid: PaidGame, policy: Sequence[Array], reference: Sequence[Array], *, alpha: float
) -> tuple[float, float]:
    """The largest P(beats the reference) - alpha KL minus the policy's, and KL(optimum || policy)."""
    best, value = tabular_games.regularised_best_response(paid.game, reference, reference, alpha=alpha)
    won = tabular_games.win_probability(paid.game, policy, reference)
    return value - won + alpha * turn_kl(paid.game, policy, reference), turn_kl(paid.game, best, policy)


class Plays:
    """All plays of several two-turn games of one shape, for expected losses under uniform references.

    A row is (game, first answer, reply, second answer). Labels are expectations over the noise of the ending.

    Args:
        games: With equal numbers of states and answers.
    """

    def __init__(self, games: Sequence[PaidGame]) -> None:
        import torch

        from polyturn.algorithms.batch import collate
        from polyturn.algorithms.pairing import Example

        # Transitions, preferences and rewards of all games.
        self.games = list(games)
        first = torch.tensor(np.array([paid.game.transitions[0][0] for paid in games]))
        second = torch.tensor(np.array([paid.game.transitions[1] for paid in games]))
        self._preference = torch.tensor(np.array([paid.game.preference for paid in games]))
        self._rewards = torch.tensor(np.array([paid.reward for paid in games if paid.reward is not None]))
        count, answers, states = first.shape
        # One row for each play: the chance of its reply, and the distribution of its ending.
        grid = torch.cartesian_prod(*map(torch.arange, (count, answers, states, second.shape[2])))
        self._g, self._a, self._s, self._b = grid.unbind(1)
        self._per_game = len(grid) // count
        self._chance = first[self._g, self._a, self._s]
        self._ends = second[self._g, self._s, self._b].reshape(count, self._per_game, -1)
        self._shapes = (count, 1, answers), (count, states, second.shape[2])
        # A batch with the shape of the plays; its log-probabilities are computed in `_logps`.
        token = np.zeros(1, np.int32)
        turn = Turn("", "", 0.0, token, token, np.zeros(1, np.float32))
        row = Example((Trajectory("Plays", 0, (turn, turn), terminated=True),))
        self._batch = collate([row] * len(grid))

    def descend(
        self,
        method: Method,
        *,
        pairs: Literal["own", "reference"] = "own",
        ties: bool = True,
        steps: int = 1500,
        lr: float = 0.05,
    ) -> tuple[list[TurnPolicy], float]:
        """Minimises the expected loss over tables of logits with Adam, from the uniform reference, for all games.

        Args:
            method: `GPO` or `IPO` on pairs; `PPO` with the reward, or `MTPO` with the probability to beat the policy
                itself. PPO and MTPO need whitening off and lambda 1, so that the value network, which is 0 here, has
                no effect.
            pairs: Compared pairs come from the current policy or always from the reference.
            ties: Pairs with the same ending are compared, with probability 1/2.
            steps: Steps of Adam.
            lr: First learning rate; it falls to 0 linearly.

        Returns:
            A policy for each game, and the largest entry of the last gradient.
        """
        import torch

        from polyturn.algorithms.methods.actor_critic import MTPO, PPO

        logits = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in self._shapes]
        anchor = self._logps(logits).detach()
        optimizer = torch.optim.Adam(logits, lr=lr, eps=1e-12)
        graded = isinstance(method, PPO)
        batch = self._batch if graded else self._compared(ties)
        for step in range(steps + 1):
            own = self._logps(logits)
            # The probability of each play under the policy whose samples are compared.
            weight = self._chance * (anchor if pairs == "reference" else own.detach()).sum(1).exp()
            if graded:
                scores = self._win_rates(weight) if isinstance(method, MTPO) else self._expected_rewards()
                batch = replace(
                    batch, scores=scores, behaviour_logps=own.detach(), outputs={"values": torch.zeros_like(own)}
                )
                loss = (method.loss(own, anchor, batch).values * weight).sum()
            else:
                both = self._asked * weight[batch.pairs[:, 0]] * weight[batch.pairs[:, 1]]
                loss = method.loss(own, anchor, replace(batch, weight=both)).values.sum()
            grads = torch.autograd.grad(loss, logits)
            if step == steps:
                break
            optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
            for layer, grad in zip(logits, grads, strict=True):
                layer.grad = grad
            optimizer.step()
        found = [layer.detach().softmax(-1).numpy() for layer in logits]
        return list(zip(*found, strict=True)), max(float(grad.abs().max()) for grad in grads)

    def _logps(self, logits: Sequence[Tensor]) -> Tensor:
        """`[N, 4]`: context, answer, reply, answer."""
        import torch

        one, two = (layer.log_softmax(-1) for layer in logits)
        zero = torch.zeros(len(self._g), dtype=one.dtype)
        return torch.stack([zero, one[self._g, 0, self._a], zero, two[self._g, self._s, self._b]], 1)

    def _compared(self, ties: bool) -> Batch:
        """The batch with every ordered pair of plays of a game, and the probability that the first beats the second."""
        import torch

        count, size = len(self.games), self._per_game
        won = torch.einsum("gie,gef,gjf->gij", self._ends, self._preference, self._ends)
        even = torch.einsum("gie,gje->gij", self._ends, self._ends) * (not ties)
        self._asked = (1.0 - even).reshape(-1)
        # A pair that always has the same ending is never compared, so its probability has no effect.
        probability = torch.where(even < 1.0, (won - even / 2) / (1.0 - even).clamp(min=1e-12), 0.5)
        local = torch.cartesian_prod(torch.arange(size), torch.arange(size))
        pairs = (torch.arange(count)[:, None, None] * size + local).reshape(-1, 2)
        return replace(self._batch, pairs=pairs, probability=probability.reshape(-1).clamp(0.0, 1.0))

    def _win_rates(self, weight: Tensor) -> Tensor:
        """`[N]` the probability that each play beats a random play with the probabilities `weight`."""
        import torch

        reached = torch.einsum("gi,gie->ge", weight.reshape(len(self.games), -1), self._ends)
        return torch.einsum("gie,gef,gf->gi", self._ends, self._preference, reached).reshape(-1)

    def _expected_rewards(self) -> Tensor:
        """`[N]` expected reward of each play."""
        import torch

        return torch.einsum("gie,ge->gi", self._ends, self._rewards).reshape(-1)


class GambleEnv(TabularGameEnv):
    """`polyturn/TabularGame-v0` with the names of the gamble's rooms as observations."""

    def _question(self, turn: int) -> str:
        return ROOMS[turn][self._state]

    def question(self, turn: int, state: int) -> str:
        """The observation of a state."""
        self.restore({"game": 0, "state": state, "draws": [0.0] * (self.games[0].turns - turn)})
        return self._question(turn)


def exact_policy(policy: Policy, game: PaidGame) -> tuple[TurnPolicy, float]:
    """A transformer's exact answer probabilities in every history of a two-turn game.

    Returns:
        A policy of `by_history(game.game)`, normalised over valid answers, and the smallest total probability of valid
        answers in any history.
    """
    import torch

    from polyturn.algorithms.batch import collate
    from polyturn.algorithms.pairing import Example

    env, (first, second) = GambleEnv(games=game.game), game.game.transitions
    size = (first.shape[1], first.shape[2], second.shape[1])
    # One row for each history and second answer.
    rows = []
    for answer, state, last in np.ndindex(*size):
        turns = (Turn(env.question(0, 0), str(answer)), Turn(env.question(1, state), str(last)))
        rows.append(Example((policy.chat.written(Trajectory("read", 0, turns, terminated=True)),)))
    batch = collate(rows)
    with torch.no_grad():
        logps = policy.logps(batch.ids, batch.mask, batch.turn_ids >= 0).double()
    one = (logps * (batch.turn_ids == 0)).sum(1).reshape(size)[:, 0, 0].exp()[None].numpy()
    two = (logps * (batch.turn_ids == 1)).sum(1).reshape(-1, size[2]).exp().numpy()
    sums = one.sum(1, keepdims=True), two.sum(1, keepdims=True)
    return (one / sums[0], two / sums[1]), float(min(each.min() for each in sums))

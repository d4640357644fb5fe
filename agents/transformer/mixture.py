"""Acting from the geometric mixture of two policies, token by token: the opponent of Nash-MD, the sampler of IPO-MD."""

from __future__ import annotations

from pathlib import Path

from polyturn.agents.shipping import Ticket
from polyturn.agents.transformer.agent import TransformerAgent, longest, shipped
from polyturn.agents.transformer.engines.exact import ExactEngine
from polyturn.agents.transformer.engines.settings import EngineChoice
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy


class MixtureAgent(TransformerAgent):
    """Samples each token from softmax((1 - beta) log pi + beta log pi_ref) (arXiv 2312.00886, 2403.08635).

    Both models read the whole conversation. Their logits are mixed after soft-capping and before the temperature;
    recorded log-probabilities are those of the mixture, which is what sampled. Mixing token by token is not the
    geometric mixture of whole answers: that would need a sum over all continuations.

    Args:
        policy: The trained policy; its present weights are used.
        reference: The policy it is mixed with, of the same tokenizer.
        beta: The reference's share in [0, 1]; 0 samples from the policy only.
        sampling: How tokens are drawn.
        max_tokens: Tokens a whole episode may have; then it is truncated.
        slots: Episodes held at once; changes speed and memory, never a result.
        engine: "exact": no other mixes two models.

    Raises:
        ValueError: A beta outside [0, 1], tokenizers or vocabularies that differ, or another engine.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        *,
        beta: float,
        sampling: Sampling | None = None,
        max_tokens: int = 2048,
        slots: int = 64,
        engine: EngineChoice = "exact",
    ) -> None:
        if engine != "exact":
            raise ValueError(
                f"MixtureAgent.engine: expected 'exact', got {engine!r:.120}: mixing token by token needs both models' "
                "logits at every step, which no other engine gives"
            )
        if not 0 <= beta <= 1:
            raise ValueError(f"MixtureAgent.beta: expected a number in [0, 1], got {beta}")
        super().__init__(policy, sampling=sampling, max_tokens=max_tokens, slots=slots)
        self.reference, self.beta = reference, beta
        sizes = [int(p.model.config.get_text_config().vocab_size) for p in (policy, reference)]
        mine, theirs = policy.tokenizer, reference.tokenizer
        if sizes[0] != sizes[1] or not (mine is theirs or mine.get_vocab() == theirs.get_vocab()):
            raise ValueError(
                "MixtureAgent: expected two policies with one tokenizer, got others: "
                f"{sizes[0]} and {sizes[1]} logits, whose tokens differ"
            )
        self._engine = ExactEngine(
            policy.model,
            policy.chat.stop_ids,
            self.sampling,
            slots=slots,
            capacity=min(self._engine.capacity, longest(reference, max_tokens)),
            beside=reference.model,
            mix=lambda own, other: (1.0 - beta) * own + beta * other,
        )

    def ship(self, root: Path) -> Ticket:
        """What makes this agent, with the weights of now, in another process; see `Shipped`."""
        policies = {"policy": self.policy, "reference": self.reference}
        return shipped(MixtureAgent, policies, root, beta=self.beta, **self._settings())

    def fingerprint(self) -> str:
        """A digest of both policies' weights."""
        return f"{super().fingerprint()} {self.reference.fingerprint()}"

    @property
    def name(self) -> str:
        """Recorded in trajectories, with the mixture's share and the reference's weights."""
        return f"{super().name} mixed {self.beta:g} with {self.reference.version or 'reference'}"

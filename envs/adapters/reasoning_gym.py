"""`polyturn/ReasoningGym-v0`: the generated puzzles of reasoning-gym (arXiv 2505.24760), one turn each."""

from __future__ import annotations

from typing import Any

from polyturn.envs.adapters.replayed import Replayed, global_numbers_kept
from polyturn.envs.extras import how_to_install
from polyturn.envs.suggest import did_you_mean


class ReasoningGym(Replayed):
    """A puzzle of a reasoning-gym data set; the reward is its own score of the answer, 0 to 1.

    The answer is what stands in the last <answer> tags, or the whole turn where there are none. Some sets depend on
    Python's hash seed, so that another process draws other puzzles: `info` holds the puzzle's question, and `restore`
    refuses a snapshot whose puzzle is another one here.

    Args:
        dataset: Name of the data set, such as "chain_sum".
        size: How many puzzles there are.
        dataset_seed: Seed of the data set.
        config: Further settings of the data set.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: There is no such data set, or its settings do not fit.
    """

    other_side = "reasoning-gym"
    success_return = 1.0

    def __init__(
        self,
        dataset: str = "chain_sum",
        *,
        size: int = 500,
        dataset_seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(1, (0.0, 1.0))
        try:
            with global_numbers_kept():
                from reasoning_gym import create_dataset
                from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise ImportError(f"ReasoningGym needs reasoning-gym: {how_to_install('adapters')}") from error
        if dataset not in DATASETS:
            raise ValueError(
                f"ReasoningGym: expected the name of a data set, got {dataset!r}.{did_you_mean(dataset, DATASETS)}"
            )
        self.dataset = dataset
        with global_numbers_kept():
            self._puzzles = create_dataset(dataset, seed=dataset_seed, size=size, **(config or {}))
        self._entry: Any = None

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        index = seed % len(self._puzzles)
        self._entry = self._puzzles[index]
        return str(self._entry["question"]), {"task_id": f"{self.dataset}/{index}"}

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        from reasoning_gym.utils import extract_answer

        answer = extract_answer(action) or action.strip()
        score = min(1.0, max(0.0, float(self._puzzles.score_answer(answer=answer, entry=self._entry))))
        return "", score, True, {"answer": answer}

    def _stop(self) -> None:
        self._entry = None

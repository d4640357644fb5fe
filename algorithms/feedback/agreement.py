"""How far an annotator can be trusted: accuracy and calibration against another's preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyturn.envs.preference import Annotator, Preference
from polyturn.envs.trajectory import Group


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities held against labels.

    Attributes:
        accuracy: Share of pairs, labelled ties left out, whose likelier winner was predicted; 1/2 counts half.
        ece: Expected calibration error: mean over bins, by their pairs, of |mean prediction - mean label|. Both orders
            of every pair are counted, so it does not depend on which is called the first.
        log_loss: Mean cross-entropy in nats; ln 2 for a model that always says 1/2.
        brier: Mean squared difference of prediction and label.
        pairs: How many were compared.
        bins: Mean prediction, mean label and number of (ordered) pairs of every bin that has some.
    """

    accuracy: float
    ece: float
    log_loss: float
    brier: float
    pairs: int
    bins: tuple[tuple[float, float, int], ...]


def calibration(annotator: Annotator, labelled: Sequence[tuple[Group, Preference]], *, bins: int = 10) -> Calibration:
    """Asks an annotator about groups whose preferences are known.

    Args:
        annotator: What is tested: a learned model, a judge.
        labelled: Groups and the preferences to hold it against, soft or hard.
        bins: Equal widths of [0, 1].

    Raises:
        ValueError: No pair that both have judged.
    """
    predicted, label = [], []
    for group, preference in labelled:
        guess, truth = _completed(annotator(group)), _completed(preference)
        known = ~np.isnan(guess) & ~np.isnan(truth) & ~np.eye(len(group), dtype=bool)
        predicted.append(guess[known])
        label.append(truth[known])
    p, q = (np.concatenate([*parts, np.zeros(0)]) for parts in (predicted, label))
    if not len(p):
        raise ValueError("calibration: expected pairs that both the annotator and the labels judged, got none")
    decided = q != 0.5
    credit = np.where(p == 0.5, 0.5, (p > 0.5) == (q > 0.5))[decided]
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    cells = [(float(p[place == b].mean()), float(q[place == b].mean()), int((place == b).sum())) for b in set(place)]
    safe = np.clip(p, 1e-12, 1.0 - 1e-12)
    return Calibration(
        accuracy=float(credit.mean()) if len(credit) else float("nan"),
        ece=sum(abs(guess - truth) * count for guess, truth, count in cells) / len(p),
        log_loss=float(-(q * np.log(safe) + (1.0 - q) * np.log(1.0 - safe)).mean()),
        brier=float(np.square(p - q).mean()),
        pairs=len(p) // 2,
        bins=tuple(sorted(cells)),
    )


def _completed(preference: Preference) -> np.ndarray:
    return np.where(np.isnan(preference.matrix), 1.0 - preference.matrix.T, preference.matrix)

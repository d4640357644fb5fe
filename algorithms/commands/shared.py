"""Arguments that several commands of this floor take."""

from __future__ import annotations

import argparse

PRECISION = ("mixed_precision", "gradient_checkpointing", "tokens_per_micro_batch")
"""Fields of `TrainOptions` that say how a model is computed with."""


def add_preference_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how trajectories are compared."""
    parser.add_argument(
        "--preference",
        default="return",
        metavar="KIND",
        help="return, education, reward_model:FOLDER, preference_model:FOLDER, judge:MODEL, server:MODEL (at "
        "OPENAI_BASE_URL) or module:attribute (default return)",
    )
    parser.add_argument("--question", help="what judge:MODEL or server:MODEL is asked to judge by")

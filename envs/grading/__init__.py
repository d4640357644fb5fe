"""Mathematical answers: whether one equals another, decided without running anything; usable by itself."""

from polyturn.envs.grading.boxed import extract_answer as extract_answer
from polyturn.envs.grading.grade import grade as grade, unreadable as unreadable

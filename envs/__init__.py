"""Floor 1: environments, trajectories, preferences. Importing it registers the environments with Gymnasium."""

from turnwise.envs.checker import CheckReport, check_text_env
from turnwise.envs.contract import ContractViolation
from turnwise.envs.export import export_dpo, export_parquet, export_sft
from turnwise.envs.preference import Annotator, Preference, by_return, by_score
from turnwise.envs.registration import EnvOptionError, UnknownEnv, make, register_built_in, registered
from turnwise.envs.spaces import UnicodeText
from turnwise.envs.store import (
    CorruptRecord,
    Entry,
    NotAStore,
    Store,
    StoreError,
    StoreLocked,
    StoreWriteError,
    UnknownSchema,
    index,
    read,
    read_groups,
)
from turnwise.envs.text_env import TextEnv
from turnwise.envs.trajectory import Group, GroupError, Trajectory, Turn, group_by_start
from turnwise.envs.wrappers import TurnLimit

__all__ = [
    "Annotator",
    "CheckReport",
    "ContractViolation",
    "CorruptRecord",
    "Entry",
    "EnvOptionError",
    "Group",
    "GroupError",
    "NotAStore",
    "Preference",
    "Store",
    "StoreError",
    "StoreLocked",
    "StoreWriteError",
    "TextEnv",
    "Trajectory",
    "Turn",
    "TurnLimit",
    "UnicodeText",
    "UnknownEnv",
    "UnknownSchema",
    "by_return",
    "by_score",
    "check_text_env",
    "export_dpo",
    "export_parquet",
    "export_sft",
    "group_by_start",
    "index",
    "make",
    "read",
    "read_groups",
    "registered",
]

register_built_in()

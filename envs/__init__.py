"""Floor 1: environments, trajectories, preferences. Importing it registers the environments with Gymnasium.

Names of single environments and their companions are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyturn.envs.checker import CheckReport, check_text_env
from polyturn.envs.contract import ContractViolation
from polyturn.envs.export import export_dpo, export_parquet, export_sft
from polyturn.envs.preference import Annotator, Preference, by_return, by_score
from polyturn.envs.registration import EnvOptionError, UnknownEnv, make, register_built_in, registered
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import (
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
from polyturn.envs.text_env import TextEnv
from polyturn.envs.trajectory import Group, GroupError, Trajectory, Turn, group_by_start
from polyturn.envs.wrappers import TurnLimit

if TYPE_CHECKING:
    from polyturn.envs.car_buyers import ScriptedBuyer
    from polyturn.envs.car_dealer import CarDealer
    from polyturn.envs.conversation import Partner, PartnerFull, Scene, Spoken
    from polyturn.envs.education import EducationDialogue
    from polyturn.envs.education_data import (
        Dialogue,
        DialogueFormatError,
        dialogue_of,
        load_dialogues,
        read_dialogues,
        write_dialogues,
    )
    from polyturn.envs.education_oracle import EducationOracle
    from polyturn.envs.education_student import ScriptedStudent
    from polyturn.envs.judging import Judged, PairJudge

_HOME = {
    "car_buyers": ("ScriptedBuyer",),
    "car_dealer": ("CarDealer",),
    "conversation": ("Partner", "PartnerFull", "Scene", "Spoken"),
    "education": ("EducationDialogue",),
    "education_data": (
        "Dialogue",
        "DialogueFormatError",
        "dialogue_of",
        "load_dialogues",
        "read_dialogues",
        "write_dialogues",
    ),
    "education_oracle": ("EducationOracle",),
    "education_student": ("ScriptedStudent",),
    "judging": ("Judged", "PairJudge"),
}

__all__ = [
    "Annotator",
    "CarDealer",
    "CheckReport",
    "ContractViolation",
    "CorruptRecord",
    "Dialogue",
    "DialogueFormatError",
    "EducationDialogue",
    "EducationOracle",
    "Entry",
    "EnvOptionError",
    "Group",
    "GroupError",
    "Judged",
    "NotAStore",
    "PairJudge",
    "Partner",
    "PartnerFull",
    "Preference",
    "Scene",
    "ScriptedBuyer",
    "ScriptedStudent",
    "Spoken",
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
    "dialogue_of",
    "export_dpo",
    "export_parquet",
    "export_sft",
    "group_by_start",
    "index",
    "load_dialogues",
    "make",
    "read",
    "read_dialogues",
    "read_groups",
    "registered",
    "write_dialogues",
]

register_built_in()


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

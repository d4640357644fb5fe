"""The public names of this floor, each with the module it is loaded from when first used."""

from .adapters.gem import Gem as Gem, as_gem as as_gem
from .adapters.numbered import GymnasiumText as GymnasiumText, PettingZoo as PettingZoo
from .adapters.openenv import OpenEnv as OpenEnv
from .adapters.openenv_server import EnvServer as EnvServer
from .adapters.reasoning_gym import ReasoningGym as ReasoningGym
from .adapters.textarena import TextArena as TextArena
from .adapters.trl import as_trl as as_trl
from .car_dealer.buyers import ScriptedBuyer as ScriptedBuyer
from .car_dealer.env import CarDealer as CarDealer
from .checking.checker import CheckReport as CheckReport, check_text_env as check_text_env
from .checking.contract import ContractViolation as ContractViolation
from .conversation import (
    Line as Line,
    Partner as Partner,
    PartnerFull as PartnerFull,
    Scene as Scene,
    Spoken as Spoken,
)
from .education.data import (
    Dialogue as Dialogue,
    DialogueFormatError as DialogueFormatError,
    dialogue_of as dialogue_of,
    load_dialogues as load_dialogues,
    read_dialogues as read_dialogues,
    write_dialogues as write_dialogues,
)
from .education.env import EducationDialogue as EducationDialogue
from .education.oracle import EducationOracle as EducationOracle
from .education.student import ScriptedStudent as ScriptedStudent
from .export import (
    ExportError as ExportError,
    export_dpo as export_dpo,
    export_parquet as export_parquet,
    export_sft as export_sft,
)
from .games.bandits import Bandit as Bandit
from .games.guess import Guess as Guess
from .games.matrix_games import MatrixGame as MatrixGame
from .games.paired_bandit import PairedBandit as PairedBandit
from .games.tabular_env import TabularGameEnv as TabularGameEnv
from .games.tabular_games import TabularGame as TabularGame
from .games.token_tasks import TokenBandit as TokenBandit, TokenLength as TokenLength
from .games.vector_bandit import BanditVector as BanditVector
from .grading.boxed import extract_answer as extract_answer
from .grading.grade import grade as grade
from .outcomes import Estimate as Estimate, Proportion as Proportion, success_of as success_of
from .plugins import PluginError as PluginError
from .preference import (
    Annotator as Annotator,
    AtBranches as AtBranches,
    Judged as Judged,
    PairJudge as PairJudge,
    Preference as Preference,
    by_return as by_return,
    by_score as by_score,
)
from .recorded import DataError as DataError, Recorded as Recorded, read_recorded as read_recorded
from .registration import (
    EnvOptionError as EnvOptionError,
    UnknownEnv as UnknownEnv,
    make as make,
    registered as registered,
)
from .spaces import UnicodeText as UnicodeText
from .starting.new import new_package as new_package
from .store import (
    CorruptRecord as CorruptRecord,
    Entry as Entry,
    NotAStore as NotAStore,
    Store as Store,
    StoreError as StoreError,
    StoreLocked as StoreLocked,
    StoreWriteError as StoreWriteError,
    UnknownSchema as UnknownSchema,
    index as index,
    read as read,
    read_groups as read_groups,
)
from .text_env import TextEnv as TextEnv
from .tool_math.env import ToolMath as ToolMath
from .tool_math.problem_set import Problem as Problem, ProblemFileError as ProblemFileError, Problems as Problems
from .tool_math.problems import load_problems as load_problems
from .tools.calls import Call as Call, CallFormat as CallFormat
from .tools.env import NotRepeatable as NotRepeatable, ToolEnv as ToolEnv
from .tools.kits import Kept as Kept, Opened as Opened, PerEpisode as PerEpisode, Toolkit as Toolkit
from .tools.mcp_server import McpServer as McpServer
from .tools.scoring import Outcome as Outcome
from .tools.search import search_tool as search_tool
from .tools.tool import (
    Tool as Tool,
    ToolError as ToolError,
    ToolUnavailable as ToolUnavailable,
    function_tool as function_tool,
)
from .trajectory import (
    Group as Group,
    GroupError as GroupError,
    Trajectory as Trajectory,
    Turn as Turn,
    group_by_start as group_by_start,
)
from .wrappers import TurnLimit as TurnLimit

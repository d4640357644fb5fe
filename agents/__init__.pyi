"""The public names of this floor, each with the module it is loaded from when first used."""

from .agent import (
    Action as Action,
    Agent as Agent,
    AgentFailed as AgentFailed,
    ContextFull as ContextFull,
    Episode as Episode,
    HumanAgent as HumanAgent,
    RandomAgent as RandomAgent,
    ScriptedAgent as ScriptedAgent,
)
from .api import ServerAgent as ServerAgent, ServerChooser as ServerChooser
from .collecting.cluster import RayCluster as RayCluster
from .collecting.collect import GroupSource as GroupSource, collect as collect
from .collecting.options import CollectOptions as CollectOptions
from .collecting.roles import AgentPartner as AgentPartner, other_side as other_side, other_sides as other_sides
from .collecting.running import CollectError as CollectError
from .http_client import (
    BadAnswer as BadAnswer,
    ServerError as ServerError,
    ServerRefused as ServerRefused,
    ServerUnreachable as ServerUnreachable,
)
from .judging import (
    JudgeFailed as JudgeFailed,
    PromptedJudge as PromptedJudge,
    agent_judge as agent_judge,
    human_judge as human_judge,
)
from .scripted.demonstrator import Demonstrator as Demonstrator, Habits as Habits
from .scripted.gold import GoldAgent as GoldAgent
from .scripted.sellers import ScriptedSeller as ScriptedSeller, SellingHabits as SellingHabits
from .scripted.teachers import ScriptedTeacher as ScriptedTeacher, TeachingHabits as TeachingHabits
from .serving.episode import Start as Start
from .serving.programs import (
    AgentProgram as AgentProgram,
    Endpoint as Endpoint,
    ProgramError as ProgramError,
    ProgramOutcome as ProgramOutcome,
    collect_program as collect_program,
    read_tasks as read_tasks,
)
from .serving.sandboxed import SandboxedProgram as SandboxedProgram
from .serving.server import AgentServer as AgentServer
from .serving.verifiers import verifiers_program as verifiers_program
from .serving.wire import ServerLimits as ServerLimits
from .shipping import Ticket as Ticket
from .tabular import TabularPolicy as TabularPolicy, mlp_policy as mlp_policy, table_policy as table_policy
from .transformer.adapters import AdapterError as AdapterError
from .transformer.agent import TransformerAgent as TransformerAgent
from .transformer.choosing import PolicyChooser as PolicyChooser
from .transformer.engines.settings import TokenServers as TokenServers
from .transformer.generation import GenerationError as GenerationError, Sampling as Sampling
from .transformer.mixture import MixtureAgent as MixtureAgent
from .transformer.policy import Policy as Policy, PolicyLoadError as PolicyLoadError
from .transformer.rows import Rows as Rows
from .transformer.tiny import tiny_policy as tiny_policy
from .transformer.tokens import (
    ChatFormat as ChatFormat,
    ChatTemplateError as ChatTemplateError,
    HistoryRewrittenWarning as HistoryRewrittenWarning,
    VocabularyError as VocabularyError,
)

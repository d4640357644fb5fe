"""The public names of this package, each with the module it is loaded from when first used."""

__version__: str

from . import agents as agents, algorithms as algorithms, benchmarks as benchmarks, envs as envs, sandbox as sandbox
from .agents import Policy as Policy, TransformerAgent as TransformerAgent, collect as collect
from .algorithms import (
    MDPO as MDPO,
    MKTO as MKTO,
    RAFT as RAFT,
    SFT as SFT,
    TrainOptions as TrainOptions,
    evaluate as evaluate,
    iterate as iterate,
    online as online,
    train as train,
)
from .envs import (
    Group as Group,
    Preference as Preference,
    Store as Store,
    Trajectory as Trajectory,
    Turn as Turn,
    by_return as by_return,
    by_score as by_score,
    check_text_env as check_text_env,
    make as make,
    read as read,
    read_groups as read_groups,
    registered as registered,
)

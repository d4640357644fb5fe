"""The public names of this floor, each with the module it is loaded from when first used."""

from . import estimators as estimators, losses as losses
from .actor_critic import MTPO as MTPO, PPO as PPO
from .batch import Batch as Batch, TooLongWarning as TooLongWarning, collate as collate, drop_long as drop_long
from .distillation import Distillation as Distillation
from .feedback.agreement import Calibration as Calibration, calibration as calibration
from .feedback.ai_feedback import ai_feedback as ai_feedback, position_bias as position_bias
from .feedback.dueling import Duels as Duels, Rivals as Rivals, duel as duel
from .feedback.reward_models import (
    BradleyTerry as BradleyTerry,
    PreferenceModel as PreferenceModel,
    RewardModel as RewardModel,
    fit as fit,
)
from .feedback.single_turns import turn_feedback as turn_feedback, upto as upto
from .method_table import METHODS as METHODS
from .methods import MDPO as MDPO, MKTO as MKTO, RAFT as RAFT, SFT as SFT, Loss as Loss, Method as Method
from .networks.moving_average import MovingAverage as MovingAverage
from .networks.value import ActorCritic as ActorCritic
from .offline_methods import (
    DROV as DROV,
    GPO as GPO,
    IPO as IPO,
    PMPO as PMPO,
    RWR as RWR,
    BestOfN as BestOfN,
    standardised as standardised,
)
from .online_methods import GRPO as GRPO, REINFORCE as REINFORCE, RLOO as RLOO, NashPG as NashPG
from .pairing import Example as Example, ExampleError as ExampleError, pairs_by_outcome as pairs_by_outcome
from .protocols.online import Online as Online, online as online
from .training.checkpoint import CheckpointError as CheckpointError, latest as latest
from .training.feed import AnnotatedGroup as AnnotatedGroup, minibatches as minibatches
from .training.learner import NonFiniteError as NonFiniteError
from .training.loop import ResumeWarning as ResumeWarning, TrainResult as TrainResult, train as train
from .training.signals import Interrupted as Interrupted

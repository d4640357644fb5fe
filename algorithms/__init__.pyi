"""The public names of this floor, each with the module it is loaded from when first used."""

from . import estimators as estimators, losses as losses
from .batch import Batch as Batch, TooLongWarning as TooLongWarning, collate as collate, drop_long as drop_long
from .feedback.agreement import Calibration as Calibration, calibration as calibration
from .feedback.ai_feedback import ai_feedback as ai_feedback, position_bias as position_bias
from .feedback.dueling import Duels as Duels, Rivals as Rivals, duel as duel
from .feedback.reward_models import (
    BradleyTerry as BradleyTerry,
    Fit as Fit,
    PreferenceModel as PreferenceModel,
    RewardModel as RewardModel,
    fit as fit,
)
from .feedback.single_turns import turn_feedback as turn_feedback, upto as upto
from .methods.actor_critic import MTPO as MTPO, PPO as PPO
from .methods.base import GroupMethod as GroupMethod, Loss as Loss, Method as Method, Needs as Needs
from .methods.distillation import Distillation as Distillation
from .methods.imitation import RAFT as RAFT, RWR as RWR, SFT as SFT, BestOfN as BestOfN
from .methods.pairwise import GPO as GPO, IPO as IPO, MDPO as MDPO
from .methods.policy_gradient import GRPO as GRPO, REINFORCE as REINFORCE, RLOO as RLOO, NashPG as NashPG
from .methods.table import METHODS as METHODS
from .methods.unpaired import DROV as DROV, MKTO as MKTO, PMPO as PMPO, standardised as standardised
from .networks.moving_average import MovingAverage as MovingAverage
from .networks.value import ActorCritic as ActorCritic
from .pairing import Example as Example, ExampleError as ExampleError, pairs_by_outcome as pairs_by_outcome
from .protocols.evaluate import Report as Report, evaluate as evaluate, report as report
from .protocols.iterate import Iteration as Iteration, NothingToLearn as NothingToLearn, iterate as iterate
from .protocols.offline import (
    LeftOutWarning as LeftOutWarning,
    offline_examples as offline_examples,
    stored_examples as stored_examples,
)
from .protocols.online import Online as Online, online as online
from .protocols.warmup import (
    demonstrations as demonstrations,
    imitation_options as imitation_options,
    warm_start as warm_start,
)
from .protocols.weigh import TokenWeights as TokenWeights, token_weights as token_weights, weigh as weigh
from .training.checkpoint import (
    CheckpointError as CheckpointError,
    DamagedCheckpointWarning as DamagedCheckpointWarning,
    latest as latest,
)
from .training.data_source import AnnotatedGroup as AnnotatedGroup, minibatches as minibatches
from .training.failures import NonFiniteError as NonFiniteError, OutOfMemoryError as OutOfMemoryError
from .training.kernels import KernelError as KernelError
from .training.loop import (
    ResumeWarning as ResumeWarning,
    Trainable as Trainable,
    TrainResult as TrainResult,
    train as train,
)
from .training.options import TrainOptions as TrainOptions
from .training.scoring import Scorable as Scorable
from .training.signals import Interrupted as Interrupted

"""Training: loss, optimizer, state, step and loop."""

from jaxrecipes.train.causal_loss import batch_loss
from jaxrecipes.train.flops import count_flops
from jaxrecipes.train.loop import LoopSettings, run_steps
from jaxrecipes.train.loss import chunked_cross_entropy, next_token_targets, token_losses
from jaxrecipes.train.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from jaxrecipes.train.state import TrainState, create_state
from jaxrecipes.train.step import make_train_step

__all__ = [
    "LoopSettings",
    "OptimizerSettings",
    "TrainState",
    "batch_loss",
    "chunked_cross_entropy",
    "count_flops",
    "create_state",
    "learning_rate_schedule",
    "make_optimizer",
    "make_train_step",
    "next_token_targets",
    "run_steps",
    "token_losses",
]

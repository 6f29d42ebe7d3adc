"""Training: the loop, checkpoints, precision, and several processes.

The parts know no model and no data: a loop trains whatever a loss function is given::

    from mmlib.training import TrainConfig, fit

    history = fit(model, loss_fn, batches, TrainConfig(steps=500, learning_rate=3e-3))
"""

import warnings

with warnings.catch_warnings():
    # accelerate imports tqdm's notebook bars, which complain where there are no widgets. Ours are
    # plain text.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import accelerate  # noqa: F401

from mmlib.training.checkpoint import load_weights, save_weights
from mmlib.training.config import History, TrainConfig
from mmlib.training.loop import fit
from mmlib.training.precision import choose_precision

__all__ = ["History", "TrainConfig", "choose_precision", "fit", "load_weights", "save_weights"]

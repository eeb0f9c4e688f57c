"""A reflow of configs/flow/digits.py, trained on the couples that its flow makes: straighter, for few steps.

python main.py --config configs/flow/digits.py --mode train
python main.py --config configs/flow/digits.py --mode couple
python main.py --config configs/flow/digits_reflow.py --mode train --init-from runs/flow/digits
"""

from ml_collections import ConfigDict

from configs.flow import digits


def get_config() -> ConfigDict:
    """The same network, which answers a flow and no posterior means: it has the exact likelihood alone."""
    config = digits.get_config()
    config.data.couples = "runs/flow/digits/couples"
    config.model.answers = "flow"
    config.training.loss = "reflow"
    config.sampling.num_steps = 2
    return config

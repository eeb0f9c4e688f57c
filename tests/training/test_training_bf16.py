"""Training in bfloat16 ends where training in float32 ends."""

import pytest

from benchmarks import precision


@pytest.mark.slow
def test_bf16_reaches_the_loss_of_fp32_within_the_spread_of_seeds():
    found = precision.compare(5, num_steps=200, channels=32, batch_size=32)
    losses, spread = found["losses"], found["stds"]["fp32"]
    # it has learned: a network that says nothing of the noise has loss 1
    assert max(losses["fp32"] + losses["bf16"]) < 0.5
    assert losses["fp32"] != losses["bf16"]
    assert abs(found["means"]["bf16"] - found["means"]["fp32"]) < spread
    assert abs(found["stds"]["bf16"] / spread - 1) < 1

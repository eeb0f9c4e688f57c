"""Dynamic thresholding under every sampler."""

import pytest
import torch
from sampler_oracles import SDES, GaussianModel
from score_samplers import OF_SCORES
from thinning import only

from models import ClippedScoreModel, ThresholdedScoreModel
from samplers import make_sampler, registry
from sde_lib import NoiseStreams

OPTIONS = {"annealed_langevin": {"steps_per_level": 2}, "probability_flow": {"solver": "heun"}}
OURS = [name for name in OF_SCORES if registry.SAMPLERS.get(name).__module__.startswith("samplers.")]


@pytest.mark.parametrize("dtype", only((torch.float32,), [torch.float32, torch.float64]))
@pytest.mark.parametrize("sde", only(("vp",), ["vp", "ve", "ddpm"]))
@pytest.mark.parametrize("name", OURS)
def test_samples_lie_in_range_and_do_not_depend_on_their_batch_mates(name, sde, dtype):
    # data of standard deviation 3, far wider than the range
    model = GaussianModel(SDES[sde], var=9.0)
    sampler = make_sampler(name, num_steps=6, grid="log_snr", **OPTIONS.get(name, {}))

    def draw(of, indices):
        noise = NoiseStreams(3, indices)
        return sampler.sample(of, of.sde.prior_sample((40,), noise).to(dtype), noise=noise).x0

    assert float(draw(model, range(4)).abs().max()) > 2
    bounded = ThresholdedScoreModel(model, quantile=0.9)
    together = draw(bounded, range(4))
    assert together.dtype == dtype and float(together.abs().max()) <= 1
    assert not torch.equal(together, draw(ClippedScoreModel(model), range(4)))
    for indices in ([2], [3, 0]):
        assert torch.equal(draw(bounded, indices), together[indices])

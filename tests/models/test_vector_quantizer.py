"""Vector quantization: nearest codes, gradients in closed form, means of clusters, and codes that are restarted."""

import pytest
import torch

from models.first_stage import VectorQuantizer


def quantizer(codebook: list[list[float]], **options: float) -> VectorQuantizer:
    """A quantizer of these codes, all of which were just chosen."""
    values = torch.tensor(codebook, dtype=torch.float64)
    made = VectorQuantizer(*values.shape, **options).double()  # pyright: ignore[reportArgumentType]
    made.codebook.data.copy_(values)
    made.idle.zero_()
    return made


def test_each_vector_is_replaced_by_the_nearest_code():
    torch.manual_seed(0)
    one = VectorQuantizer(50, 3)
    one.codebook.data.normal_()
    h = torch.randn(2, 3, 4, 5)
    found = one(h)
    distance = (h.movedim(1, -1)[..., None, :].double() - one.codebook.double()).square().sum(-1)
    assert torch.equal(found.codes, distance.argmin(-1)) and found.codes.shape == (2, 4, 5)
    # exactly the code, whatever was added to pass the gradient on
    assert torch.equal(found.z, one.codebook[found.codes].movedim(-1, 1))
    assert torch.equal(one.vectors(found.codes), found.z)
    # codes are their own nearest
    assert torch.equal(one.nearest(one.codebook.detach()), torch.arange(50))


def test_so_many_vectors_that_they_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch):
    one, h = quantizer([[0.0], [1.0], [3.0]]), torch.linspace(-1, 4, 101, dtype=torch.float64)[:, None]
    whole = one.nearest(h)
    monkeypatch.setattr("models.first_stage.vector_quantizer._AT_ONCE", 21)
    assert torch.equal(one.nearest(h), whole)


def test_gradients_are_those_of_equation_3():
    # one code e = (1, 2), one vector h = (3, 1): h - e = (2, -1)
    one = quantizer([[1.0, 2.0]], commitment=0.3)
    h = torch.tensor([[3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    found = one(h)
    assert float(found.codebook_loss.detach()) == 5.0
    assert float(found.commitment_loss.detach()) == pytest.approx(0.3 * 5, rel=1e-15)

    def gradients(value: torch.Tensor) -> list[list[float] | None]:
        both = torch.autograd.grad(value.sum(), (h, one.codebook), retain_graph=True, allow_unused=True)
        return [None if grad is None else grad.flatten().tolist() for grad in both]

    # d/de |sg(h) - e|^2 = 2 (e - h), and nothing for the encoder
    assert gradients(found.codebook_loss) == [None, [-4.0, 2.0]]
    # d/dh beta |h - sg(e)|^2 = 2 beta (h - e), and nothing for the codebook
    of_encoder, of_codebook = gradients(found.commitment_loss)
    assert of_encoder == pytest.approx([1.2, -0.6], rel=1e-15) and of_codebook is None
    # the decoder's gradient goes to the encoder as it is
    assert gradients(found.z * torch.tensor([7.0, 11.0])) == [[7.0, 11.0], None]


CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)


def clusters(size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (CENTRES[:, None] + torch.randn(3, size, 2, dtype=torch.float64, generator=generator)).flatten(0, 1)


def fit(one: VectorQuantizer, h: torch.Tensor, steps: int, rate: float) -> list[int]:
    """Gradient steps on the codebook's loss alone; the number of codes that were restarted in each."""
    restarts = []
    for _ in range(steps):
        one.forget()
        (one(h).codebook_loss.sum() / len(h)).backward()
        assert one.codebook.grad is not None
        with torch.no_grad():
            one.codebook -= rate * one.codebook.grad
        one.codebook.grad = None
        codes, vectors = one.end_step()
        one.codebook.data[codes] = vectors
        restarts.append(len(codes))
    return restarts


def test_codes_reach_the_means_of_what_they_are_chosen_for():
    h = clusters()
    one = quantizer((CENTRES + 3).tolist())
    assert fit(one, h, 100, 0.5) == [0] * 100
    means = h.unflatten(0, (3, -1)).mean(1)
    torch.testing.assert_close(one.codebook.detach(), means, rtol=0, atol=1e-10)


def test_dead_codes_come_alive():
    # far from all, two of three codes are never chosen
    torch.manual_seed(0)
    h, one = clusters(), quantizer([[5.0, 5.0], [900.0, 0.0], [0.0, 900.0]], restart_after=3)
    # in proportion to the squared distance from the first code, so that each cluster has one in the end
    assert fit(one, h, 3, 0.5) == [0, 0, 2]
    assert (one.codebook.detach().norm(dim=1) < 20).all() and one.idle.tolist() == [0, 0, 0]
    fit(one, h, 200, 0.5)
    codes = one.nearest(h)
    assert sorted(codes.unique().tolist()) == [0, 1, 2]
    for code in range(3):
        torch.testing.assert_close(one.codebook[code].detach(), h[codes == code].mean(0), rtol=0, atol=1e-9)


def test_a_new_codebook_begins_with_what_the_encoder_gives():
    torch.manual_seed(0)
    one, h = VectorQuantizer(16, 2).double(), clusters()
    chosen = set(one(h).codes.tolist())
    codes, vectors = one.end_step()
    # all but the codes that were chosen, which lie around zero
    assert set(codes.tolist()) == set(range(16)) - chosen and 10 <= len(codes) < 16
    # at vectors of the encoder, each at another one
    assert len(vectors.unique(dim=0)) == len(codes)
    assert (vectors[:, None] == h).all(-1).any(1).all()


def test_restarts_are_drawn_in_proportion_to_the_squared_distance():
    # one code at 0, vectors at 1 and 2, and one that is the code: weights 1, 4 and 0
    h, drawn = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64), []
    one = quantizer([[0.0], [99.0]], restart_after=1)
    torch.manual_seed(0)
    for _ in range(1000):
        one.idle.zero_()
        one.forget()
        one(h)
        codes, vectors = one.end_step()
        assert codes.tolist() == [1]
        drawn.append(float(vectors))
    share = sum(value == 2 for value in drawn) / 1000
    # four standard errors of a share of 4 / 5
    assert set(drawn) == {1.0, 2.0} and abs(share - 0.8) < 4 * (0.8 * 0.2 / 1000) ** 0.5


def test_where_all_vectors_are_codes_nothing_is_restarted():
    one = quantizer([[0.0], [1.0], [5.0]], restart_after=1)
    one(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert len(one.end_step()[0]) == 0
    assert one.idle.tolist() == [0, 0, 1]


def noted(parts: tuple[torch.Tensor, ...], seed: int = 0) -> VectorQuantizer:
    """A quantizer that has seen micro-batches, drawing for each by the number of its first vector."""
    one, first = quantizer([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], restart_after=1), seed
    for part in parts:
        torch.manual_seed(first)
        one(part)
        first += len(part)
    return one


def test_a_step_counts_as_a_whole_over_micro_batches_and_processes():
    h = clusters(8)
    apart = noted(h.split(6))
    codes, vectors = apart.end_step()
    # two processes of two micro-batches each do as one of four, in each of them
    ranks = [noted(h.split(6)[:2]), noted(h.split(6)[2:], seed=12)]
    seen = [rank._seen for rank in ranks]
    total = sum(one.chosen for one in seen if one is not None)

    def gather(mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([one.keys if mine.ndim == 1 else one.vectors for one in seen if one is not None])

    for rank in ranks:
        found = rank.end_step(add=lambda _: total, gather=gather)
        assert torch.equal(found[0], codes) and torch.equal(found[1], vectors)
        assert torch.equal(rank.idle, apart.idle)
    # other micro-batches choose the same codes, and restart the same ones, from other draws
    whole = noted((h,))
    assert torch.equal(whole.end_step()[0], codes) and torch.equal(whole.idle, apart.idle)


def test_only_training_counts_and_a_step_that_is_forgotten_does_not():
    h, one = clusters(), quantizer([[0.0, 0.0], [90.0, 0.0]], restart_after=1)
    with torch.no_grad():
        one(h)
    one.eval()(h)
    assert len(one.end_step()[0]) == 0 and one.idle.tolist() == [0, 0]
    one.train()(h)
    one.forget()
    assert len(one.end_step()[0]) == 0 and one.idle.tolist() == [0, 0]


def test_neighbours_are_told_apart_in_bfloat16_too():
    one = quantizer([[1.0], [1.001]]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one(torch.tensor([[1.0], [1.001]]))
    assert found.codes.tolist() == [0, 1] and found.z.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_size": 0}, "codebook_size must be at least 1, a whole number, got 0"),
        ({"restart_after": 0}, "restart_after must be at least 1, a whole number, got 0"),
        ({"commitment": -1.0}, "commitment must be at least 0 and finite, got -1.0; try 0.25"),
    ],
)
def test_options_that_cannot_be_are_one_line(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"codebook_size": 2, "channels": 1, **options})  # pyright: ignore[reportArgumentType]

"""The four losses against a second hand: the paper's formulas in numpy, bounds, closed-form gradients, extreme
numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from macular.model.losses import adversarial_loss, discriminator_loss, kl_s, task_loss

torch.set_num_threads(1)
many = settings(max_examples=200, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 5))
numbers = st.floats(-30, 30, allow_nan=False, width=32)


@st.composite
def cases(draw, logits=1):
    "Logits of one shape, and a class number for every row"
    shape = draw(sizes)
    z = [draw(hnp.arrays(np.float64, shape, elements=numbers)) for _ in range(logits)]
    return *z, draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))


# ------------------------------------------------------------------ the paper, one number at a time
def softmax(row):
    "σ of Eqs. 2 and 9"
    e = [np.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


def log_softmax(row):
    return [v - max(row) - np.log(sum(np.exp(u - max(row)) for u in row)) for v in row]


def cross_entropy(row, target):
    "CE of a prediction, given as logits, against a distribution"
    return -sum(t * v for t, v in zip(target, log_softmax(row)) if t)


def one_hot(i, k):
    return [float(c == i) for c in range(k)]


def mean(values):
    return sum(values) / len(values)


def eq_3(z, y):
    return mean([cross_entropy(row, one_hot(i, len(row))) for row, i in zip(z, y)])


def eq_6(z):
    return mean([cross_entropy(row, [1 / len(row)] * len(row)) for row in z])


def divergence(p, q):
    "KL(p || q) of two rows of logits"
    return sum(a * (u - v) for a, u, v in zip(softmax(p), log_softmax(p), log_softmax(q)))


def eq_11(p, q, as_printed=False):
    "Stopping a gradient changes no value: as printed it is twice KL(p || q)"
    return mean([divergence(a, b) + (divergence(a, b) if as_printed else divergence(b, a)) for a, b in zip(p, q)])


def agree(found, wanted, z):
    "In float64 to 1e-9 of the value, in float32 to 1e-5 of the largest number that took part"
    for dtype, rel, scale in ((torch.float64, 1e-9, 1.0), (torch.float32, 1e-5, max(1.0, np.abs(z).max()))):
        value = found(dtype)
        assert value.ndim == 0 and value.dtype == dtype
        assert value.item() == pytest.approx(wanted, rel=rel, abs=rel * scale if dtype == torch.float32 else 1e-12)


def tensor(z, dtype=torch.float64, grad=False):
    return torch.tensor(np.asarray(z), dtype=dtype, requires_grad=grad)


# ------------------------------------------------------------------ values
@many
@given(cases())
def test_task_and_discriminator_loss(case):
    z, y = case
    for loss in (task_loss, discriminator_loss):
        agree(lambda dtype, loss=loss: loss(tensor(z, dtype), torch.from_numpy(y)), eq_3(z, y), z)
        assert loss(tensor(z), torch.from_numpy(y)) >= 0


@many
@given(cases())
def test_adversarial_loss(case):
    z = case[0]
    agree(lambda dtype: adversarial_loss(tensor(z, dtype)), eq_6(z), z)
    floor, spread = np.log(z.shape[1]), np.ptp(z, axis=1).max()
    value = adversarial_loss(tensor(z)).item()
    assert value >= floor - 1e-12
    assert spread < 1e-3 or value > floor + 1e-9  # only an undecided discriminator reaches log k
    assert adversarial_loss(torch.full_like(tensor(z), z[0, 0])).item() == pytest.approx(floor, abs=1e-12)


@many
@given(cases(logits=2), st.booleans())
def test_kl_s(case, as_printed):
    p, q, _ = case
    agree(
        lambda dtype: kl_s(tensor(p, dtype), tensor(q, dtype), as_printed),
        eq_11(p, q, as_printed),
        np.abs(p) + np.abs(q),
    )
    value = kl_s(tensor(p), tensor(q), as_printed).item()
    apart = max(np.abs(np.subtract(softmax(a), softmax(b))).max() for a, b in zip(p, q))
    assert value >= -1e-12 and (apart < 1e-5 or value > 1e-12)
    assert kl_s(tensor(p), tensor(p + 3.0), as_printed).item() == pytest.approx(0, abs=1e-12)  # the same prediction


def test_the_two_readings_differ():
    p, q = tensor([[2.0, 0.0, -1.0]]), tensor([[0.0, 0.5, 0.0]])
    assert abs(kl_s(p, q).item() - kl_s(p, q, True).item()) > 0.01
    assert kl_s(p, q).item() == pytest.approx(eq_11(p.numpy(), q.numpy()))
    assert kl_s(p, q, True).item() == pytest.approx(2 * divergence(p.numpy()[0], q.numpy()[0]))


def test_negative_control():
    "The comparison sees a wrong reduction, a wrong sign and swapped arguments"
    z, y = np.array([[1.0, -1.0, 0.3], [0.2, 0.9, -2.0]]), np.array([0, 2])
    wrong = {
        "sum": lambda d: task_loss(tensor(z, d), torch.from_numpy(y)) * 2,
        "sign": lambda d: -task_loss(tensor(z, d), torch.from_numpy(y)),
        "labels": lambda d: task_loss(tensor(z, d), torch.from_numpy(y[::-1].copy())),
    }
    for found in wrong.values():
        with pytest.raises(AssertionError):
            agree(found, eq_3(z, y), z)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_means_over_items_not_over_classes(rows):
    "Items repeated change nothing; a mean over classes would divide kl_s by their number"
    p, q, y = tensor([[1.0, 0.0, -1.0]]), tensor([[0.0, 0.4, 0.1]]), torch.tensor([1])
    for one, more in (
        (task_loss(p, y), task_loss(p.repeat(rows, 1), y.repeat(rows))),
        (adversarial_loss(p), adversarial_loss(p.repeat(rows, 1))),
        (kl_s(p, q), kl_s(p.repeat(rows, 1), q.repeat(rows, 1))),
        (kl_s(p, q, True), kl_s(p.repeat(rows, 1), q.repeat(rows, 1), True)),
    ):
        assert more.item() == pytest.approx(one.item(), rel=1e-14)
    batchmean = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    assert kl_s(p, q, True).item() == pytest.approx(2 * batchmean.item()) != pytest.approx(2 * batchmean.item() / 3)


def test_normalised_by_all_items():
    "1/Σn of Eqs. 3-6: a pass over the data has one loss, however it is cut into batches"
    z, y = torch.randn(71, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(71) % 3
    for loss in (lambda r: task_loss(z[r], y[r]), lambda r: adversarial_loss(z[r]), lambda r: kl_s(z[r], z.flip(0)[r])):
        whole = loss(torch.arange(71))
        for size in (1, 3, 7, 32):
            parts = [(len(r), loss(r)) for r in torch.arange(71).split(size)]
            assert (sum(n * part for n, part in parts) / 71 - whole).abs() < 1e-12


# ------------------------------------------------------------------ gradients
def gradients(loss, *z):
    return torch.autograd.grad(loss, z, allow_unused=True)


@many
@given(cases(logits=2))
def test_gradient_of_kl_s(case):
    "Symmetric: the difference of the two distributions, at either side. As printed: plain KL(p || q)'s"
    p, q = (tensor(z, grad=True) for z in case[:2])
    b, P, Q = len(p), p.softmax(-1).detach(), q.softmax(-1).detach()
    dp, dq = gradients(kl_s(p, q), p, q)
    assert (dp - (P - Q) / b).abs().max() < 1e-12 and (dq - (Q - P) / b).abs().max() < 1e-12
    log = (p.log_softmax(-1) - q.log_softmax(-1)).detach()
    dp, dq = gradients(kl_s(p, q, True), p, q)
    assert (dp - P * (log - (P * log).sum(-1, keepdim=True)) / b).abs().max() < 1e-10
    assert (dq - (Q - P) / b).abs().max() < 1e-12


@many
@given(cases(logits=2))
def test_swapping_the_sides(case):
    "The symmetric form does not know which side is which, in value or in gradient"
    p, q = (tensor(z, grad=True) for z in case[:2])
    one, other = kl_s(p, q), kl_s(q, p)
    assert one.item() == pytest.approx(other.item(), rel=1e-12, abs=1e-14)
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(gradients(one, p, q), gradients(other, p, q)))


def test_stopped_branches():
    """Each term has one live side: with the other side held fixed its gradient stays, with its own side held fixed it
    is gone"""
    p, q = tensor([[1.0, 0.0, -1.0]], grad=True), tensor([[0.2, 0.4, 0.1]], grad=True)
    for as_printed in (False, True):
        whole = gradients(kl_s(p, q, as_printed), p, q)
        assert torch.equal(gradients(kl_s(p, q.detach(), as_printed), p)[0], whole[0])
        assert torch.equal(gradients(kl_s(p.detach(), q, as_printed), q)[0], whole[1])
        assert not kl_s(p.detach(), q.detach(), as_printed).requires_grad
    unstopped = (
        p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))
        + q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))
    ).sum()
    assert unstopped.item() == pytest.approx(kl_s(p, q).item())
    assert (gradients(unstopped, p)[0] - gradients(kl_s(p, q), p)[0]).abs().max() > 0.1


@many
@given(cases())
def test_gradients_of_the_game(case):
    z, y = tensor(case[0], grad=True), torch.from_numpy(case[1])
    b, k = z.shape
    P = z.softmax(-1).detach()
    for loss in (task_loss, discriminator_loss):
        assert (gradients(loss(z, y), z)[0] - (P - torch.nn.functional.one_hot(y, k)) / b).abs().max() < 1e-12
    assert (gradients(adversarial_loss(z), z)[0] - (P - 1 / k) / b).abs().max() < 1e-12


@many
@given(st.lists(numbers, min_size=1, max_size=6), st.data())
def test_two_logits_are_a_sigmoid(margins, data):
    "Eq. 2's sigmoid for two classes: softmax over [0, m] is the sigmoid of m, in every loss"
    m = tensor(margins)
    z, y = torch.stack([torch.zeros_like(m), m], 1), torch.tensor([data.draw(st.integers(0, 1)) for _ in margins])

    def bernoulli(target):
        return torch.nn.functional.binary_cross_entropy_with_logits(m, target)

    assert (task_loss(z, y) - bernoulli(y.double())).abs() < 1e-12
    assert (adversarial_loss(z) - bernoulli(torch.full_like(m, 0.5))).abs() < 1e-12
    known = np.log(0.3 / 0.7)
    other = torch.tensor([[0.0, known]], dtype=torch.float64).expand(len(m), 2)
    assert (kl_s(z, other) - ((m.sigmoid() - 0.3) * (m - known)).mean()).abs() < 1e-12


# ------------------------------------------------------------------ extreme numbers
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(size, dtype):
    z, y = (
        torch.tensor([[size, -size, 0.0], [-size, size, size]], dtype=dtype, requires_grad=True),
        torch.tensor([1, 0]),
    )
    other = -z.detach()
    for loss in (
        task_loss(z, y),
        discriminator_loss(z, y),
        adversarial_loss(z),
        kl_s(z, other),
        kl_s(z, other, True),
        kl_s(other, z, True),
    ):
        assert torch.isfinite(loss) and torch.isfinite(gradients(loss, z)[0]).all()
        assert loss > size / 10


@pytest.mark.parametrize("dtype,largest", [(torch.float16, 65504.0), (torch.bfloat16, 70000.0)])
def test_half_precision_is_computed_in_single(dtype, largest):
    "Two such logits are further apart than half precision can hold; as float32 they are"
    z = torch.tensor([[largest, -largest, 1.0]] * 2, dtype=dtype, requires_grad=True)
    y, other = torch.tensor([1, 0]), (z.detach() / 2).flip(1)
    losses = {
        "task": (task_loss(z, y), task_loss(z.float(), y)),
        "disc": (discriminator_loss(z, y), discriminator_loss(z.float(), y)),
        "adv": (adversarial_loss(z), adversarial_loss(z.float())),
        "kl": (kl_s(z, other), kl_s(z.float(), other.float())),
        "printed": (kl_s(z, other, True), kl_s(z.float(), other.float(), True)),
    }
    for name, (found, wanted) in losses.items():
        assert found.dtype == torch.float32 and torch.isfinite(found) and torch.equal(found, wanted), name
        assert torch.isfinite(gradients(found, z)[0]).all(), name
    assert losses["task"][0] > 60000 and not torch.isfinite(torch.tensor(2 * 65504.0, dtype=torch.float16))
    small = torch.tensor([[0.1, 0.2, 0.3]], dtype=dtype)
    assert (
        adversarial_loss(small) == adversarial_loss(small.float()) != adversarial_loss(small.double()).to(dtype).float()
    )


# ------------------------------------------------------------------ columns a task does not have
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_columns_take_no_part(dtype):
    "A task with two classes in a batch four wide has exactly the losses it has alone, and pushes nothing into the rest"
    make = torch.Generator().manual_seed(0)
    own, other = (torch.randn(5, 2, generator=make).to(dtype).requires_grad_() for _ in range(2))
    y, lowest = torch.tensor([0, 1, 1, 0, 1]), torch.finfo(dtype).min

    def wide(z):
        return torch.cat([z, torch.full((5, 2), lowest, dtype=dtype)], 1).detach().requires_grad_()

    p, q = wide(own), wide(other)
    assert (p.float().softmax(-1)[:, 2:] == 0).all()
    losses = {"task": lambda a, b: task_loss(a, y), "kl": kl_s, "printed": lambda a, b: kl_s(a, b, True)}
    for name, loss in losses.items():
        alone, beside = loss(own, other), loss(p, q)
        assert torch.equal(alone, beside), name
        for small, large in zip(gradients(alone, own, other), gradients(beside, p, q)):
            if small is not None:
                assert torch.equal(small, large[:, :2]) and (large[:, 2:] == 0).all(), name
    narrow = torch.cat([own.detach(), torch.full((5, 2), -3.0, dtype=dtype)], 1)
    assert task_loss(narrow, y) != task_loss(own, y)  # a column that is merely low does take part

"""The arithmetic of stage 2 against numbers worked by hand and brute force."""
import math
from dataclasses import replace

import pytest
import torch

from nanoverify import ppo
from nanoverify.evaluate import metrics
from nanoverify.problems import Problem
from nanoverify.trajectory import Action, Trajectory

torch.set_num_threads(1)
PROBLEM = Problem("p", "?", "6", "linear", 1)


def made(signs: str, finished=True, tokens=2, no_verdict=()) -> Trajectory:
    """'+-+' -> solve, verify, solve whose REWARDS have these signs, each of `tokens` tokens."""
    actions, right = [], False
    for i, sign in enumerate(signs):
        if i % 2 == 0:
            right = sign == "+"
            actions.append(Action("solve", i * tokens, (i + 1) * tokens, "", right=right))
        else:
            verdict = None if i in no_verdict else right if sign == "+" else not right
            actions.append(Action("verify", i * tokens, (i + 1) * tokens, "", right=right,
                                  verdict=verdict))
    ids = list(range(3, 3 + tokens * len(signs)))
    return Trajectory(PROBLEM, ids, finished, actions, [-0.25] * len(ids))


FOUR = [made(signs) for signs in ("++", "-+++", "--", "+--+")]  # method.md, section 6


# ---- rewards -----------------------------------------------------------------------------------

def test_rewards():
    """Bug: a sign is flipped, a missing verdict earns something, a cut response keeps its last."""
    rewards = [[1, 1], [-1, 1, 1, 1], [-1, -1], [1, -1, -1, 1]]
    assert [ppo.action_rewards(t) for t in FOUR] == rewards
    assert [ppo.outcome_reward(t) for t in FOUR] == [1, 1, -1, -1]
    assert ppo.action_rewards(made("-+++", no_verdict=(1, 3))) == [-1, -1, 1, -1]
    assert ppo.action_rewards(made("++", no_verdict=(1,))) == [1, -1]
    cut = made("++", finished=False)
    assert ppo.action_rewards(cut) == [1, -1] and ppo.outcome_reward(cut) == -1
    assert ppo.action_rewards(made("-++", finished=False)) == [-1, 1, -1]


def test_a_check_of_a_check_earns_nothing():
    """Bug: check after check is rewarded, which pays better than another solve: follows_verdict
    fell from 98 to 16% in ten steps."""
    twice = made("-+-+")
    twice.actions[2] = replace(twice.actions[2], kind="verify", verdict=False)
    assert ppo.action_rewards(twice) == [-1, 1, -1, -1]
    again = made("+++")
    again.actions[1] = replace(again.actions[1], kind="solve")
    assert ppo.action_rewards(again) == [1, -1, -1]


@pytest.mark.parametrize("reward, at_end, expected", [
    ("outcome", False, [[8, 8], [-8]]), ("outcome", True, [[0, 8], [-8]]),
    ("process", False, [[1, 2], [3]]), ("process", True, [[1, 2], [3]]),
    ("both", False, [[9, 10], [-5]]), ("both", True, [[1, 10], [-5]])])
def test_which_rewards_count(reward, at_end, expected):
    """Bug: --reward lets the other reward in, too, or GAE gets the outcome once for each action."""
    process = [[1.0, 2.0], [3.0]]
    assert ppo.combine([8.0, -8.0], process, reward, at_end) == expected
    assert process == [[1, 2], [3]]  # not written over


def test_metrics_of_the_four():
    """Bug: a metric of method.md section 5 counts other verifications or responses than it says."""
    found = metrics(FOUR)
    expected = {"verification_accuracy": 4 / 6, "error_recall": 2 / 3, "correct_precision": 2 / 3,
                "incorrect_to_correct": 0.5, "correct_to_incorrect": 0.5}
    assert {key: found[key] for key in expected} == pytest.approx(expected)


# ---- advantages --------------------------------------------------------------------------------

def test_leave_one_out():
    """Bug: the baseline contains the sample itself, or other questions; equal rewards give no 0."""
    found = ppo.leave_one_out(torch.tensor([[1.0, 1, -1, -1]]))
    torch.testing.assert_close(found, torch.tensor([[4, 4, -4, -4]]) / 3)
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = [[row[i] - sum(row[j] for j in range(4) if j != i) / 3 for i in range(4)]
                for row in rewards.tolist()]
    torch.testing.assert_close(ppo.leave_one_out(rewards), torch.tensor(expected))
    for M in range(2, 12):  # a rounding error would count as a lesson
        assert not ppo.leave_one_out(torch.full((2, M), -1.0)).any()


def test_contexts():
    """Bug: the context holds the action itself, only the last reward, or the position."""
    assert ppo.contexts([1.0, -1.0, -1.0]) == [(), (1,), (1, -1)]


def test_process_advantages():
    """Bug: the baseline is one for each response, or leaves the action itself out."""
    rewards = [ppo.action_rewards(t) for t in FOUR]
    found = ppo.centred(rewards, [ppo.contexts(row) for row in rewards])
    assert found == [[1, 1], [-1, 1, 0, 0], [-1, -1], [1, -1, 0, 0]]
    # rewards minus advantages are the baselines: () 0, (+) 0, (-) 0, (-,+) 1, (+,-) -1,
    # (-,+,+) 1, (+,-,-) 1
    baselines = [[r - a for r, a in zip(*rows)] for rows in zip(rewards, found)]
    assert baselines == [[0, 0], [0, 0, 1, 1], [0, 0], [0, 0, -1, 1]]


def test_centred_by_hand():
    """Bug: keys are mixed up, or a mean is taken over rows."""
    values, keys = [[3.0, 1.0], [6.0], [0.0, 5.0]], [["a", "b"], ["a"], ["a", "c"]]
    assert ppo.centred(values, keys) == [[0, 0], [3], [-3, 0]]


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_gae(gamma, lam, count):
    """Bug: the recursion is off by one, gamma and lambda change places, a value follows the end."""
    rewards, values = torch.randn(2, count, generator=torch.Generator().manual_seed(count)).tolist()
    following = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(count)]
    expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, count))
                for t in range(count)]
    assert ppo.gae(rewards, values, gamma, lam) == pytest.approx(expected)


def test_gae_with_lambda_1_is_the_return_minus_the_value():
    """Bug: a reward at the end does not reach the actions before it."""
    assert ppo.gae([0.0, 0.0, 1.0], [0.5, 0.25, 0.0], 1.0, 1.0) == [0.5, 0.75, 1.0]


def test_action_numbers_land_on_their_tokens():
    """Bug: a number lands a token early or late, on another action, or after the response."""
    t = made("+-+")
    t.actions[0].stop = t.actions[1].start = 3
    t.actions[1].stop = t.actions[2].start = 4  # 3, 1 and 2 tokens
    found = ppo.spread([[1.0, 2.0, 3.0], [4.0, 5.0]], [t, made("+-")], 8)
    assert found.tolist() == [[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 5, 5, 0, 0, 0, 0]]
    # an action without tokens leaves those of its neighbours alone
    t.actions[0].stop = t.actions[1].start = 0
    assert ppo.spread([[1.0, 2.0, 3.0]], [t], 8).tolist() == [[2] * 4 + [3] * 2 + [0, 0]]


def test_normalise():
    """Bug: padding counts, or its NaN spreads; a mean is taken off, so that 0 becomes a lesson."""
    x = torch.tensor([[3.0, 0.0, 0.0], [-4.0, 5.0, 0.0]])
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    size = math.sqrt((9 + 0 + 16) / 3)
    for padding in (5.0, math.nan, math.inf):
        x[mask == 0] = padding
        expected = torch.tensor([[3 / size, 0, 0], [-4 / size, 0, 0]])
        torch.testing.assert_close(ppo.normalise(x, mask), expected)
    assert ppo.normalise(torch.zeros(2, 3), mask).tolist() == [[0] * 3] * 2  # and not NaN


def test_explained_variance():
    """Bug: perfect values do not give 1, constant ones 0; no variance divides by 0."""
    returns = torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert ppo.explained_variance(returns, returns) == 1.0
    assert ppo.explained_variance(returns + 2, returns) == pytest.approx(1.0, abs=1e-6)
    assert ppo.explained_variance(torch.full((4,), 7.0), returns) == pytest.approx(0.0, abs=1e-6)
    assert ppo.explained_variance(-returns, returns) == pytest.approx(-3.0, abs=1e-5)
    assert ppo.explained_variance(0.5 * returns, returns) == pytest.approx(0.75)
    assert ppo.explained_variance(returns, torch.ones(4)) == 0.0
    assert ppo.explained_variance(returns[:1], returns[:1]) == 0.0


# ---- losses ------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_one_step_moves_the_log_prob_as_the_advantage_says(A, seed):
    """Bug: the sign of the loss, the fault of the released code: good responses are pushed down."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    ids = torch.randint(0, 9, (6, 1), generator=torch.Generator().manual_seed(seed))
    before = logits.log_softmax(-1).gather(1, ids)[:, 0]
    ppo.ppo_loss(before, before.detach(), torch.full((6,), A), 0.2)[0].backward()
    after = (logits - 0.1 * logits.grad).log_softmax(-1).gather(1, ids)[:, 0]
    assert ((after - before) * A > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_gradient_on_a_toy_policy(seed):
    """Bug: the gradient is not that of the clipped objective, or reaches the old log-probs.

    Worked out: d(-r A)/d logits = -r A (onehot - p) where the clip leaves it, 0 where it cuts.
    """
    generator = torch.Generator().manual_seed(seed)
    logits, start = torch.randn(2, 200, 7, generator=generator, dtype=torch.double)
    ids = torch.randint(0, 7, (200, 1), generator=generator)
    A = torch.randn(200, generator=generator)
    logits, start = (0.3 * logits).requires_grad_(), (0.3 * start).requires_grad_()
    new, old = (x.log_softmax(-1).gather(1, ids)[:, 0] for x in (logits, start))
    loss, signs = ppo.ppo_loss(new, old.detach(), A, 0.1)
    loss.backward()
    p, r = logits.detach().softmax(-1), (new - old).detach().exp()
    onehot = torch.zeros(200, 7, dtype=torch.double).scatter_(1, ids, 1.0)
    cut = ((A > 0) & (r > 1.1)) | ((A < 0) & (r < 0.9))
    expected = torch.where(cut, 0.0, -r * A)[:, None] * (onehot - p)
    torch.testing.assert_close(logits.grad, expected)
    assert 20 < cut.sum() < 180 and signs["clipped_low"] + signs["clipped_high"] == cut.sum()


@pytest.mark.parametrize("A", [1.5, -1.5])
@pytest.mark.parametrize("ratio", [0.3, 0.69, 0.71, 1.0, 1.29, 1.31, 2.0, 50.0])
def test_clipping(ratio, A):
    """Bug: max for min, or the wrong end of the band.

    The gradient is 0 exactly where the move has gone far enough in A's direction.
    """
    old = torch.tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, signs = ppo.ppo_loss(new, old, torch.tensor([A]), 0.3)
    loss.backward()
    enough = ratio > 1.3 if A > 0 else ratio < 0.7
    assert new.grad.item() == pytest.approx(0.0 if enough else -ratio * A, rel=1e-5)
    assert loss.item() == pytest.approx(-min(ratio * A, min(max(ratio, 0.7), 1.3) * A), rel=1e-5)
    assert signs["clipped_low"] == (A < 0 and enough)
    assert signs["clipped_high"] == (A > 0 and enough)
    near = min(max(ratio, 1 / math.e), math.e)
    assert signs["approx_kl"] == pytest.approx(near - 1 - math.log(near), abs=1e-5)
    assert signs["mismatch"] == pytest.approx(abs(math.log(ratio)), abs=1e-5)
    assert signs["ratio_min"] == signs["ratio_max"] == pytest.approx(ratio, rel=1e-5)


def test_ratio_1():
    """Bug: the vital signs show movement where nothing has moved; the loss is no plain sum."""
    new, A = torch.randn(50).requires_grad_(), torch.randn(50)
    loss, signs = ppo.ppo_loss(new, new.detach().clone(), A, 0.2)
    assert signs == {"approx_kl": 0, "mismatch": 0, "clipped_low": 0, "clipped_high": 0,
                     "ratio_min": 1, "ratio_max": 1}
    assert loss.item() == pytest.approx(-A.sum().item(), abs=1e-4)


def test_far_ratios_stay_finite():
    """Bug: exp overflows, and one token makes the whole step NaN, or is all of the logged KL."""
    new = torch.tensor([0.0, -500.0]).requires_grad_()
    loss, signs = ppo.ppo_loss(new, torch.tensor([-500.0, 0.0]), torch.tensor([-1.0, 1.0]), 0.2)
    loss.backward()
    assert loss.isfinite() and new.grad.isfinite().all()
    assert signs["approx_kl"] == pytest.approx(math.e - 2 + 1 / math.e)


def test_value_loss():
    """Bug: min for max, or clipping about the new values.

    A value that has gone far enough towards the return gets no gradient.
    """
    old, returns = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.1])
    new = torch.tensor([0.1, 0.5, -0.5, 0.5]).requires_grad_()
    loss = ppo.value_loss(new, old, returns, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.9 ** 2 + 0.8 ** 2 + 1.5 ** 2 + 0.4 ** 2))
    assert new.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.4])

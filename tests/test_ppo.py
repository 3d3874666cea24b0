"""The arithmetic of stage 2 against numbers worked by hand and brute force, and train_rl's steps on a tiny random model."""
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

import train_rl
from nanoverify import ppo, scoring
from nanoverify.checkpoint import load_model
from nanoverify.evaluate import metrics
from nanoverify.files import InputError
from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import Action, Trajectory
from nanoverify.verifier import Verification
from test_sampler import save_policy, tiny_model

torch.set_num_threads(1)
PROBLEM = Problem("p", "?", "6", "linear", 1)


def made(signs: str, finished=True, tokens=2, no_verdict=()) -> Trajectory:
    """'+-+' -> solve, verify, solve whose REWARDS have these signs, as in method.md section 6; each of `tokens` tokens."""
    actions, right = [], False
    for i, sign in enumerate(signs):
        if i % 2 == 0:
            right = sign == "+"
        verdict = None if i in no_verdict else right if sign == "+" else not right
        actions.append(Action("verify" if i % 2 else "solve", i * tokens, (i + 1) * tokens, "", right=right, verdict=verdict if i % 2 else None))
    return Trajectory(PROBLEM, list(range(3, 3 + tokens * len(signs))), finished, actions)


FOUR = [made(signs) for signs in ("++", "-+++", "--", "+--+")]


# ---- rewards and advantages: the vectors of method.md, section 6 -----------------------------------------------------

def test_rewards():
    """Bug: a sign is flipped, a missing verdict earns something, or a cut response keeps its last reward."""
    assert [ppo.action_rewards(t) for t in FOUR] == [[1, 1], [-1, 1, 1, 1], [-1, -1], [1, -1, -1, 1]]
    assert [ppo.outcome_reward(t) for t in FOUR] == [1, 1, -1, -1]
    assert ppo.action_rewards(made("-+++", no_verdict=(1, 3))) == [-1, -1, 1, -1]
    assert ppo.action_rewards(made("++", no_verdict=(1,))) == [1, -1]
    assert ppo.action_rewards(made("++", finished=False)) == [1, -1] and ppo.outcome_reward(made("++", finished=False)) == -1
    assert ppo.action_rewards(made("-++", finished=False)) == [-1, 1, -1]


def test_giving_up():
    """Bug: RL learns to stop behind "incorrect": a right verdict, +1, and no risk of another wrong answer."""
    assert ppo.action_rewards(FOUR[3], may_give_up=False) == [1, -1, -1, -1]
    assert [ppo.action_rewards(t, may_give_up=False) for t in FOUR[:3]] == [ppo.action_rewards(t) for t in FOUR[:3]]
    cut = made("-+", finished=False)  # it did not stop there of its own accord
    assert ppo.action_rewards(cut, punish_cut=False, may_give_up=False) == [-1]


def test_repeats():
    """Bug: copies of checks behind a repeated answer are rewarded, and copying grows; or an answer wrongly rejected may not come back."""
    def trajectory(*pairs):
        actions = [action for i, (answer, said) in enumerate(pairs) for action in (
            Action("solve", 4 * i, 4 * i + 2, "", answer, right=answer == "6"), Action("verify", 4 * i + 2, 4 * i + 4, "", right=answer == "6", verdict=said))]
        return Trajectory(PROBLEM, list(range(4 * len(pairs))), True, actions)
    again = trajectory(("7", False), ("5", False), ("7", False), ("6", True))
    assert ppo.action_rewards(again) == [-1, 1, -1, 1, -1, 1, 1, 1] and ppo.action_rewards(again, may_repeat=False) == [-1, 1, -1, 1, -1]
    for pairs in ([("7", False), ("5", False), ("6", True)], [("6", False), ("6", True)], [("7", True), ("7", True)], [("7", None), ("7", None)]):
        assert ppo.action_rewards(trajectory(*pairs), may_repeat=False) == ppo.action_rewards(trajectory(*pairs))


def test_gae_pays_the_outcome_at_the_end():
    """Bug: where rewards end at a repeated answer, that answer gets the outcome, or the success that follows is lost."""
    actions = [Action("verify" if i % 2 else "solve", 2 * i, 2 * i + 2, "", answer, right=answer == "6", verdict=said) for i, (answer, said) in enumerate(
        [("7", None), ("", False), ("7", None), ("", False), ("6", None), ("", True)])]
    t, args = Trajectory(PROBLEM, list(range(12)), True, actions), settings(reward="outcome", advantage="gae", may_repeat=False, lam=1.0)
    for i in (1, 3, 5):
        actions[i].right = actions[i - 1].right
    returns = train_rl.advantages_of([t], torch.zeros(1, 12), torch.zeros(1, 12), torch.ones(1, 12), {}, args, random.Random(0))[1]
    assert returns.tolist() == [[1.0] * 12]


def test_out_of_turn():
    """Bug: verifying the same wrong answer again earns +1 each time: RL stops trying, and pads its responses with checks."""
    def trajectory(*actions):
        return Trajectory(PROBLEM, list(range(len(actions))), True, [Action(kind, i, i + 1, "", right=right, verdict=verdict)
                                                                     for i, (kind, right, verdict) in enumerate(actions)])
    wrong, right, rejected, accepted = ("solve", False, None), ("solve", True, None), ("verify", False, False), ("verify", True, True)
    assert ppo.action_rewards(trajectory(wrong, rejected, rejected, rejected, right, accepted)) == [-1, 1, -1, -1, 1, 1]
    assert ppo.action_rewards(trajectory(right, right, accepted, right, accepted)) == [1, -1, 1, -1, 1]


def test_a_cut_action_without_punishment():
    """Bug: the cut action still gets a number, takes part in the baselines, or a finished response loses its last reward."""
    cut, whole = made("-++", finished=False), made("-+++")
    assert ppo.action_rewards(cut, punish_cut=False) == [-1, 1] and ppo.action_rewards(whole, punish_cut=False) == [-1, 1, 1, 1]
    totals = {}
    advantages = ppo.context_advantages([ppo.action_rewards(t, punish_cut=False) for t in (cut, whole)], totals, min_count=1)
    assert totals[(-1, 1)] == [1, 1]  # the third action counts once, from the finished response
    assert ppo.spread([[5, 7]], [cut], 8).tolist() == [[5, 5, 7, 7, 0, 0, 0, 0]] and len(advantages[0]) == 2


def test_context_baselines_and_advantages():
    """Bug: the context holds the action itself, only the last reward, or the position; the baseline is per response."""
    totals = {}
    advantages = ppo.context_advantages([ppo.action_rewards(t) for t in FOUR], totals, min_count=1)
    assert {context: total / count for context, (total, count) in totals.items()} == {
        (): 0, (1,): 0, (-1,): 0, (-1, 1): 1, (1, -1): -1, (-1, 1, 1): 1, (1, -1, -1): 1}
    assert advantages == [[1, 1], [-1, 1, 0, 0], [-1, -1], [1, -1, 0, 0]]


def test_context_totals_run_on():
    """Bug: earlier pools are forgotten, counted twice, or a rare context gets a noisy baseline instead of 0."""
    totals = {}
    assert ppo.context_advantages([[1.0], [1.0]], totals, min_count=3) == [[1], [1]]  # seen twice: baseline 0
    assert ppo.context_advantages([[-1.0, 1.0]], totals, min_count=3) == [[pytest.approx(-4 / 3), 1]]
    assert totals == {(): [1, 3], (-1,): [1, 1]}
    assert ppo.context_advantages([[1.0]], totals, min_count=4) == [[0.5]]
    assert ppo.context_advantages([[1.0]], {}, min_count=1) == [[0]]


def test_context_totals_fade():
    """Bug: the newest pool fades too, or sums fade and counts do not."""
    totals = {(): [4.0, 8]}
    assert ppo.context_advantages([[1.0], [1.0]], totals, min_count=1, decay=0.5) == [[pytest.approx(1 - 4 / 6)]] * 2
    assert totals == {(): [4, 6]}
    assert ppo.context_advantages([[1.0], [-1.0]], totals, min_count=1, decay=0) == [[1], [-1]]  # this pool alone


def test_centred_by_context():
    """Bug: late actions, which only failing responses have, all get negative advantages; a cut response loses its last action."""
    values, rewards = [2.0, -1.0, -1.0], [[1.0, 1.0], [-1.0, 1.0, -1.0], [-1.0, 1.0]]
    found = ppo.centre_by_context(values, rewards, [2, 3, 3])  # the last response was cut in its third action
    assert found == [[2, 0], [-1, 0, 0], [-1, 0, 0]]
    assert ppo.centre_by_context([1.0, -2.0], [[-1.0, 1.0], [-1.0, 1.0]], [2, 2]) == [[1.5, 1.5], [-1.5, -1.5]]
    # the last two answer a question that is always solved: they learn nothing, and the others are centred without them
    assert ppo.centre_by_context([1.0, -2.0, 0.0, 0.0], [[-1.0, 1.0]] * 4, [2] * 4) == [[1.5, 1.5], [-1.5, -1.5], [0, 0], [0, 0]]


def test_leave_one_out():
    """Bug: the baseline contains the sample itself, or runs over the samples of other prompts; equal rewards do not give exactly 0."""
    torch.testing.assert_close(ppo.leave_one_out(torch.tensor([[1.0, 1, -1, -1]])), torch.tensor([[4, 4, -4, -4]]) / 3)
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = [[row[i] - sum(row[j] for j in range(4) if j != i) / 3 for i in range(4)] for row in rewards.tolist()]
    torch.testing.assert_close(ppo.leave_one_out(rewards), torch.tensor(expected))
    for M in range(2, 12):  # a rounding error would count as a lesson
        assert not ppo.leave_one_out(torch.full((1, M), 0.9)).any()


def test_metrics_of_the_four():
    """Bug: a metric of method.md section 5 counts other verifications or responses than it says."""
    found = metrics(FOUR)
    assert {key: found[key] for key in ("verification_accuracy", "error_recall", "correct_precision", "incorrect_to_correct",
                                        "correct_to_incorrect")} == pytest.approx(
        {"verification_accuracy": 4 / 6, "error_recall": 2 / 3, "correct_precision": 2 / 3, "incorrect_to_correct": 0.5, "correct_to_incorrect": 0.5})


# ---- from actions to tokens -----------------------------------------------------------------------------------------

def test_action_numbers_land_on_their_tokens():
    """Bug: a reward lands a token early or late, on another action, or behind the response."""
    t = made("+-+")
    t.actions[0].stop, t.actions[1].start, t.actions[1].stop, t.actions[2].start = 3, 3, 4, 4  # 3, 1 and 2 tokens
    trajectories, numbers = [t, made("+-")], [[1.0, 2.0, 3.0], [4.0, 5.0]]
    assert ppo.spread(numbers, trajectories, 8).tolist() == [[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 5, 5, 0, 0, 0, 0]]
    assert ppo.at_action_ends(numbers, trajectories, 8).tolist() == [[0, 0, 1, 2, 0, 3, 0, 0], [0, 4, 0, 5, 0, 0, 0, 0]]


def test_action_without_tokens():
    """Bug: an empty action overwrites the reward of its neighbour, or writes to the last column through index -1."""
    t = made("+-+")
    t.actions[0].stop = t.actions[1].start = 0
    t.actions[1].stop = t.actions[2].start = t.actions[2].stop = 6
    out = ppo.at_action_ends([[1.0, 2.0, 3.0]], [t], 8)
    assert out.tolist() == [[1, 0, 0, 0, 0, 5, 0, 0]]  # no reward is lost
    assert ppo.spread([[1.0, 2.0, 3.0]], [t], 8).tolist() == [[2] * 6 + [0, 0]]


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae(gamma, lam):
    """Bug: the recursion is off by one, the value behind the end is not 0, or padding (here NaN) leaks in."""
    generator, lengths, T = torch.Generator().manual_seed(0), [7, 4, 1], 7
    rewards, values = torch.randn(2, 3, T, generator=generator)
    mask = torch.tensor([[float(t < n) for t in range(T)] for n in lengths])
    expected = torch.zeros(3, T)
    for b, n in enumerate(lengths):
        value = values[b].tolist()[:n] + [0.0]
        delta = [rewards[b, t].item() + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(n):
            expected[b, t] = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
    rewards[mask == 0] = values[mask == 0] = math.nan
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)
    keep = mask > 0
    torch.testing.assert_close(returns[keep], (expected + values)[keep], atol=1e-5, rtol=0)


def test_gae_with_lambda_1_is_the_return_minus_the_value():
    """Bug: with lambda 1 and no discount, a reward at an action's end does not reach every token before it."""
    rewards = ppo.at_action_ends([[1.0, -1.0, 1.0]], [made("+-+")], 6)
    advantages, _ = ppo.gae(rewards, torch.zeros(1, 6), torch.ones(1, 6), 1.0, 1.0)
    assert advantages.tolist() == [[1, 1, 0, 0, 1, 1]]


def test_whiten():
    """Bug: padding counts in the mean or the variance, gets a value, or its NaN spreads over the batch."""
    x, mask = 5 + 3 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), torch.ones(4, 9)
    mask[0, 5:] = mask[2, 1:] = 0
    keep = mask > 0
    expected = (x[keep] - x[keep].mean()) / x[keep].std(correction=0)
    for padding in (100.0, math.nan, math.inf):
        x[~keep] = padding
        out = ppo.whiten(x, mask)
        torch.testing.assert_close(out[keep], expected, atol=1e-4, rtol=0)
        assert (out[~keep] == 0).all()
    assert torch.isfinite(ppo.whiten(torch.ones(2, 3), torch.ones(2, 3))).all()


def test_explained_variance():
    """Bug: perfect values do not give 1, constant ones 0; padding counts; no variance divides by 0."""
    returns, mask = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.ones(3, 6)
    mask[1, 2:] = 0
    values = returns.clone()
    values[mask == 0] = math.nan
    assert ppo.explained_variance(values, returns, mask) == 1.0
    assert ppo.explained_variance(torch.full((3, 6), 7.0), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert ppo.explained_variance(returns + 2, returns, mask) == pytest.approx(1.0, abs=1e-6)
    assert ppo.explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-5)
    assert ppo.explained_variance(values, torch.ones(3, 6), mask) == 0.0


def test_binned_advantages():
    """Bug: the offline baseline mixes easy and hard questions, or first and second actions."""
    values = [[1.0, 1.0], [-1.0], [1.0, -1.0], [1.0]]
    assert ppo.binned_advantages(values, [0.25, 0.25, 0.3, 0.29]) == [[pytest.approx(2 / 3), 0], [pytest.approx(-4 / 3)], [0, 0], [pytest.approx(2 / 3)]]


def test_offline_pool(monkeypatch):
    """Bug: questions outside 10 to 70% stay; cut responses, which are most of the failures, go; a response gets another one's advantage."""
    broken = Trajectory(PROBLEM, [3, 4], True, [Action("solve", 0, 1, "", right=True), Action("solve", 1, 2, "", right=True)])
    rows = [[made("++")] * 4, [made("--", finished=False)] * 4, [made("++"), made("-+"), made("-+", finished=False), broken]]
    monkeypatch.setattr(train_rl, "respond", lambda *rest: rows)
    args = SimpleNamespace(samples=4, max_new_tokens=9, temperature=1.0, seed=0, batch_size=9, reward="outcome", punish_cut=True, may_give_up=True, may_repeat=False,
                           offline_accuracy=[0.1, 0.7], pay_first=True)
    pool = train_rl.offline_pool(None, None, [PROBLEM] * 3, args)
    assert [[t for t, _ in row] for row in pool] == [rows[2][:3]] and [values for _, values in pool[0]] == [[pytest.approx(4 / 3)] * 2, [pytest.approx(-2 / 3)] * 2, [pytest.approx(-2 / 3)] * 2]
    args.offline_accuracy = [0.0, 1.0]
    assert [len(row) for row in train_rl.offline_pool(None, None, [PROBLEM] * 3, args)] == [4, 4, 3]
    args.offline_accuracy = [0.1, 0.7]
    args.reward = "both"
    assert train_rl.offline_pool(None, None, [PROBLEM] * 3, args)[0][0][1] == [pytest.approx(2 - (2 - 2 - 2) / 3), pytest.approx(2 - (2 + 0 - 2) / 3)]
    args.pay_first = False
    assert train_rl.offline_pool(None, None, [PROBLEM] * 3, args)[0][0][1] == [pytest.approx(1 - (1 - 1 - 1) / 3), pytest.approx(2 - (2 + 0 - 2) / 3)]
    args.pay_first, args.reward, args.may_give_up = True, "process", False
    monkeypatch.setattr(train_rl, "respond", lambda *rest: [[made("++"), made("-+"), made("++"), made("-+")]])
    [row] = train_rl.offline_pool(None, None, [PROBLEM], args)
    assert [values for _, values in row] == [[1, 1], [-1, -1]] * 2  # to give up is punished, as online
    args.may_give_up = True
    assert train_rl.offline_pool(None, None, [PROBLEM], args)[0][1][1] == [-1, 0]


# ---- losses ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_one_step_moves_the_log_prob_as_the_advantage_says(A, seed):
    """Bug: the sign of the loss, the fault of the released code: good responses are pushed down."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    ids = torch.randint(0, 9, (6, 1), generator=torch.Generator().manual_seed(seed))
    before = logits.log_softmax(-1).gather(1, ids)[:, 0]
    ppo.ppo_loss(before, before.detach(), torch.full((6,), A), 0.2, 0.2)[0].backward()
    after = (logits - 0.1 * logits.grad).log_softmax(-1).gather(1, ids)[:, 0]
    assert ((after - before) * A > 0).all()


@pytest.mark.parametrize("A", [1.5, -1.5])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.29, 1.31, 2.0, 2.9, 3.1, 50.0])
def test_clipping(ratio, A):
    """Bug: max for min, or the wrong end of the band: the gradient is 0 exactly where the move has gone far enough in A's direction,
    or (dual clip) so far against a negative A that it would outweigh everything else."""
    old = torch.tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, signs = ppo.ppo_loss(new, old, torch.tensor([A]), 0.2, 0.3, dual_clip=3.0)
    loss.backward()
    enough = ratio > 1.3 if A > 0 else ratio < 0.8
    far = A < 0 and ratio > 3
    assert new.grad.item() == pytest.approx(0.0 if enough or far else -ratio * A, rel=1e-5)
    assert loss.item() == pytest.approx(-3 * A if far else -min(ratio * A, min(max(ratio, 0.8), 1.3) * A), rel=1e-5)
    assert (signs["clipped_low"], signs["clipped_high"]) == (int(A < 0 and enough), int(A > 0 and enough))
    assert signs["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)
    assert signs["ratio_min"] == signs["ratio_max"] == pytest.approx(ratio, rel=1e-5)


def test_first_pass_has_ratio_1():
    """Bug: the vital signs show movement where nothing has moved; the loss is not a plain sum over the tokens."""
    new, A = torch.randn(50).requires_grad_(), torch.randn(50)
    loss, signs = ppo.ppo_loss(new, new.detach().clone(), A, 0.2, 0.2)
    assert signs == {"approx_kl": 0, "clipped_low": 0, "clipped_high": 0, "ratio_min": 1, "ratio_max": 1}
    assert loss.item() == pytest.approx(-A.sum().item(), abs=1e-4)


def test_far_ratios_stay_finite():
    """Bug: exp overflows, and one token makes the whole step NaN."""
    new = torch.tensor([0.0, -500.0]).requires_grad_()
    loss, _ = ppo.ppo_loss(new, torch.tensor([-500.0, 0.0]), torch.tensor([-1.0, 1.0]), 0.2, 0.2)
    loss.backward()
    assert loss.isfinite() and new.grad.isfinite().all()


def test_value_loss():
    """Bug: min for max, or clipping about the new values; a value that has gone far enough towards the return still gets a gradient."""
    old, returns = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.1])
    new = torch.tensor([0.1, 0.5, -0.5, 0.5]).requires_grad_()
    loss = ppo.value_loss(new, old, returns, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.9 ** 2 + 0.8 ** 2 + 1.5 ** 2 + 0.4 ** 2))
    assert new.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.4])


def test_ratio_by_action():
    """Bug: the ratio of an action is that of its sum, so that long actions are always clipped; or actions share their means."""
    x = torch.tensor([0.1, 0.3, 0.9, -0.3, 0.0, 0.3])
    torch.testing.assert_close(ppo.mean_by_action(x, [2, 1, 0, 3]), torch.tensor([0.2, 0.2, 0.9, 0.0, 0.0, 0.0]))
    new, A = x.clone().requires_grad_(), torch.tensor([1.0, 1, 1, 1, 1, 1])
    loss, signs = ppo.ppo_loss(new, torch.zeros(6), A, 0.2, 0.25, lengths=[2, 1, 0, 3])
    loss.backward()
    assert loss.item() == pytest.approx(-(2 * math.exp(0.2) + 1.25 + 3)) and signs["clipped_high"] == 1  # exp(0.2) is below 1.25, exp(0.9) above
    assert new.grad.tolist() == pytest.approx([-math.exp(0.2)] * 2 + [0] + [-1] * 3)
    torch.testing.assert_close(ppo.ppo_loss(x, x - 0.1, A, 0.2, 0.25, lengths=[1] * 6)[0], ppo.ppo_loss(x, x - 0.1, A, 0.2, 0.25)[0])


# ---- train_rl -------------------------------------------------------------------------------------------------------

def settings(**changes):
    """Fields of train_rl's arguments that its steps use."""
    return SimpleNamespace(**{**dict(device="cpu", micro_tokens=8192, temperature=0.8, clip_low=0.2, clip_high=0.2, dual_clip=3.0, minibatches=1, epochs=1,
                                     reward="both", advantage="group", min_count=1, decay=1.0, beta=0.0, gamma=1.0, lam=0.95, shuffle_rewards=False, punish_cut=True, may_give_up=True, may_repeat=True, plain_outcome=True,
                                     samples=2, ratio="token", offline=None, offline_accuracy=[0.1, 0.7], kl="reward", reward_from=None, pay_first=True), **changes})


@pytest.fixture
def fp32(monkeypatch):
    """The same arithmetic on processors with and without bf16."""
    monkeypatch.setattr(train_rl, "autocast", lambda device: torch.autocast("cpu", enabled=False))


class Rollout:
    """Eight made-up responses to prompts of different lengths, and a model to train on them."""

    def __init__(self, lr, args, advantages=None, value_head=None, seed=0):
        rng = random.Random(seed)
        self.model, self.args, self.tokenizer, self.value_head = tiny_model(vocab_size=64, seed=seed), args, SimpleNamespace(vocab_size=61), value_head
        self.trajectories = [made("+-+-"[: rng.randint(1, 4)], tokens=rng.randint(1, 6)) for _ in range(8)]
        for t in self.trajectories:
            t.ids[:] = [rng.randrange(61) for _ in t.ids]
        self.prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 9))] for _ in range(8)]
        self.old = self.score()
        self.mask = torch.tensor([[float(t < len(x.ids)) for t in range(self.old.shape[2])] for x in self.trajectories])
        self.advantages = self.mask * (torch.ones(8, 1) if advantages is None else advantages)
        parameters = [*self.model.parameters(), *(value_head.parameters() if value_head else ())]
        self.optimizer = torch.optim.SGD(parameters, lr=lr)

    def score(self):
        return train_rl.score(self.model, self.tokenizer, self.prompts, self.trajectories, range(len(self.trajectories)), self.args, self.value_head)

    def update(self, returns=None):
        return train_rl.update(self.model, self.value_head, self.optimizer, self.tokenizer, self.prompts, self.trajectories, self.advantages,
                               self.old, returns, self.args, random.Random(1), "step 1")


def test_score_equals_each_response_alone(fp32):
    """Bug: score puts a log-prob, entropy or value into another row or column, takes T = 1, or counts ids the tokenizer lacks."""
    head = torch.nn.Linear(32, 1)
    r = Rollout(0.0, settings(micro_tokens=3 * scoring.ROUND), value_head=head)
    for b, (prompt, t) in enumerate(zip(r.prompts, r.trajectories)):
        with torch.no_grad():
            hidden = r.model.hidden(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1]
            log_probs = (r.model.lm_head(hidden)[:, :61] / 0.8).log_softmax(-1)
            n = len(t.ids)
            expected = torch.stack([log_probs[range(n), t.ids], -(log_probs.exp() * log_probs).sum(-1), head(hidden)[:, 0]])
        torch.testing.assert_close(r.old[:, b, :n], expected, atol=1e-4, rtol=0)
        assert (r.old[:, b, n:] == 0).all()


def test_score_of_some_responses(fp32):
    """Bug: the log-probs of one response land in another's row where not all are scored."""
    r = Rollout(0.0, settings(micro_tokens=3 * scoring.ROUND))
    some = train_rl.score(r.model, r.tokenizer, r.prompts, r.trajectories, [5, 0, 6], r.args)
    for b in range(8):
        torch.testing.assert_close(some[:2, b], r.old[:2, b] * (b in (0, 5, 6)), atol=1e-5, rtol=0)
    assert not train_rl.score(r.model, r.tokenizer, r.prompts, r.trajectories, [], r.args).any()


@pytest.mark.parametrize("changes, expected", [
    ({"plain_outcome": False}, [0, 1, 4, 5]), ({"plain_outcome": True}, [0, 1, 4, 5]), ({"reward": "both"}, range(6)), ({"reward": "process"}, range(6)),
    ({"beta": 0.1}, range(6)), ({"advantage": "gae"}, range(6)), ({"offline": 3}, range(6)), ({"shuffle_rewards": True}, range(6))])
def test_all_responses_with_an_advantage_are_scored(changes, expected):
    """Bug: a response without log-probs gets an advantage, so that its ratio is measured from a log-prob of 0."""
    trajectories = [made(signs) for signs in ("++", "--", "+", "-+++", "--", "++")]
    args = settings(**{"reward": "outcome", **changes})
    assert train_rl.scored(trajectories, args) == list(expected)
    if not changes.get("offline"):
        width = max(len(t.ids) for t in trajectories)
        mask, zeros = torch.tensor([[float(i < len(t.ids)) for i in range(width)] for t in trajectories]), torch.zeros(6, width)
        found = train_rl.advantages_of(trajectories, zeros + 0.1 * mask, zeros, mask, {}, args, random.Random(0))[0]
        assert {b for b in range(6) if found[b].any()} <= set(expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_before_the_first_update_the_ratio_is_exactly_1(bf16, monkeypatch):
    """Bug: old and new log-probs come from different functions, dtypes, modes or temperatures."""
    monkeypatch.setattr(train_rl, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    signs = Rollout(0.1, settings()).update()
    assert signs["ratio_min"] == signs["ratio_max"] == 1 and signs["approx_kl"] == 0 and signs["grad_norm"] > 0


def test_learning_rate_0_moves_nothing(fp32):
    """Bug: with several minibatches and epochs, something other than the optimizer changes the policy or pairs the wrong rows."""
    r = Rollout(0.0, settings(minibatches=3, epochs=2, micro_tokens=3 * scoring.ROUND))
    signs = r.update()
    assert signs["approx_kl"] == pytest.approx(0, abs=1e-6) and signs["clipped_low"] == signs["clipped_high"] == 0
    assert signs["ratio_min"] == pytest.approx(1, abs=1e-4) and signs["ratio_max"] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(r.score(), r.old)


def test_every_response_is_used_once_per_epoch(fp32, monkeypatch):
    """Bug: with several minibatches, indices within a part are taken for indices of the rollout; all epochs have one order."""
    r, used, steps, forward = Rollout(0.0, settings(minibatches=3, epochs=4, micro_tokens=3 * scoring.ROUND)), [], [], train_rl.forward
    number = {id(t): i for i, t in enumerate(r.trajectories)}
    monkeypatch.setattr(train_rl, "forward", lambda model, prompts, trajectories, *rest: used.extend(
        number[id(t)] for t in trajectories) or forward(model, prompts, trajectories, *rest))
    monkeypatch.setattr(r.optimizer, "step", lambda: steps.append(len(used)))
    r.update()
    assert steps == [8 * epoch + n for epoch in range(4) for n in (3, 6, 8)]
    epochs = [used[i: i + 8] for i in range(0, 32, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({frozenset(epoch[:3]) for epoch in epochs}) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_an_update_moves_the_log_probs_as_the_advantages_say(A, seed, fp32):
    """Bug: the sign, or advantages that meet the tokens of other responses: half of the responses have A, the others 0."""
    chosen = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0])[:, None]
    r = Rollout(0.02, settings(micro_tokens=3 * scoring.ROUND), advantages=A * chosen, seed=seed)
    r.update()
    change = ((r.score() - r.old)[0] * r.mask).sum(1)
    assert (A * change[chosen[:, 0] > 0]).sum() > 0 and (A * change[chosen[:, 0] > 0]).min() > 0


def test_responses_without_advantage_cost_nothing_and_change_nothing(fp32, monkeypatch):
    """Bug: leaving them out changes the gradient's denominator, or a rollout in which all are left out fails."""
    gradient, seen, forward = {}, [], train_rl.forward
    monkeypatch.setattr(train_rl, "forward", lambda model, prompts, trajectories, *rest: seen.append(
        len(trajectories)) or forward(model, prompts, trajectories, *rest))
    for tiny in (0.0, 1e-30):  # 1e-30 is not left out and has no gradient to speak of
        r = Rollout(0.1, settings(), advantages=torch.tensor([1.0, -1, 1, -1, tiny, tiny, tiny, tiny])[:, None])
        seen.clear()
        gradient[tiny] = r.update()["grad_norm"]
        assert sum(seen) == (4 if tiny == 0 else 8)
    assert gradient[0.0] == pytest.approx(gradient[1e-30], rel=1e-5)
    assert Rollout(0.1, settings(), advantages=torch.zeros(8, 1)).update()["grad_norm"] == 0


def test_gradient_does_not_depend_on_the_micro_batch(fp32):
    """Bug: losses are means of means: responses in small or short micro-batches weigh more; gradients are not summed."""
    norms, weights = [], []
    for micro_tokens in (1, 3 * scoring.ROUND, 8192):
        r = Rollout(0.1, settings(micro_tokens=micro_tokens), advantages=torch.linspace(-1, 2, 8)[:, None])
        norms.append(r.update()["grad_norm"])
        weights.append(torch.cat([p.detach().flatten() for p in r.model.parameters()]))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[2], weights[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [False, True])
def test_workers_change_nothing(value, fp32, monkeypatch):
    """Bug: a worker's scores, gradients or vital signs are lost, land elsewhere or leave out the value head."""
    after, signs = [], []
    for count in (1, 3):
        for module in (scoring, train_rl):
            monkeypatch.setattr(module, "workers", lambda model: count)
        torch.manual_seed(0)
        head = torch.nn.Linear(32, 1) if value else None
        r = Rollout(0.1, settings(micro_tokens=3 * scoring.ROUND, minibatches=2), advantages=torch.linspace(-1, 2, 8)[:, None], value_head=head)
        signs.append(r.update(r.old[2] + 0.3 * r.mask))
        after.append([r.old, r.score(), *r.model.parameters(), *(head.parameters() if head else ())])
    for one, several in zip(*after, strict=True):
        torch.testing.assert_close(several, one, atol=1e-5, rtol=1e-4)
    assert signs[1] == pytest.approx(signs[0], abs=1e-5)


def test_kl_loss_by_hand():
    """Bug: q is turned round; the sum is a mean. k3, q = 2 and 1/2: 2 - 1 - log 2 and 1/2 - 1 + log 2, together 1/2; slopes 1 - q. k2: slopes -log q."""
    for estimator, total, slopes in (("k3", 0.5, [-1.0, 0.5]), ("k2", math.log(2) ** 2, [-math.log(2), math.log(2)])):
        new = torch.tensor([0.0, 0.0], requires_grad=True)
        loss = ppo.kl_loss(new, torch.tensor([2.0, 0.5]).log(), estimator)
        loss.backward()
        assert loss.item() == pytest.approx(total) and new.grad.tolist() == pytest.approx(slopes)


def test_kl_estimators_have_the_gradients_they_say():
    """Bug: the docstring mixes up the two directions of the KL: the exact mean gradient over a distribution of six tokens."""
    reference = torch.randn(6, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    for estimator in ("k2", "k3"):
        logits = torch.randn(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        new = logits.log_softmax(0)
        weights = new.detach().exp()
        [found] = torch.autograd.grad(sum(w * ppo.kl_loss(n[None], r[None], estimator) for w, n, r in zip(weights, new, reference)), logits, retain_graph=True)
        p, q = (new, reference) if estimator == "k2" else (reference, new)
        [expected] = torch.autograd.grad((p.exp() * (p - q)).sum(), logits)
        torch.testing.assert_close(found, expected)


def test_value_head_learns_the_returns(fp32):
    """Bug: values are compared with the returns of other tokens, the value loss pushes away from them, or it changes the policy, too."""
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 1)
    r = Rollout(0.05, settings(epochs=8), advantages=torch.zeros(8, 1), value_head=head)
    policy = [parameter.detach().clone() for parameter in r.model.parameters()]
    returns = r.old[2] + 0.15 * torch.randn(r.old[2].shape, generator=torch.Generator().manual_seed(0)) * r.mask + 0.1 * r.mask
    before = ((r.old[2] - returns) * r.mask).pow(2).sum()
    signs = r.update(returns)
    assert ((r.score()[2] - returns) * r.mask).pow(2).sum() < before and signs["value_loss"] > 0
    assert all(torch.equal(now, then) for now, then in zip(r.model.parameters(), policy))


def test_advantages_of_outcome_and_process():
    """Bug: outcome advantages mix prompts, process advantages land on other actions, or `both` is not their sum."""
    trajectories, width = [made("++"), made("--"), made("-+++"), made("+--+")], 8
    mask = torch.tensor([[float(t < len(x.ids)) for t in range(width)] for x in trajectories])
    kl = 0.5 * torch.ones(4, width)
    found = {reward: train_rl.advantages_of(trajectories, kl, None, mask, {}, settings(reward=reward, beta=0.1), random.Random(0))[0] for reward in
             ("outcome", "process", "both")}
    two = lambda *values: [v for v in values for _ in range(2)] + [0] * (width - 2 * len(values))
    outcome = torch.tensor([two(2, 2), two(-2, -2), two(2, 2, 2, 2), two(-2, -2, -2, -2)], dtype=torch.float)
    process = torch.tensor([two(1, 1), two(-1, -1), two(-1, 1, 0, 0), two(1, -1, 0, 0)], dtype=torch.float)
    torch.testing.assert_close(found["outcome"], (outcome - 0.05) * mask)  # beta pulls towards the reference: minus
    torch.testing.assert_close(found["process"], (process - 0.05) * mask)
    torch.testing.assert_close(found["both"], (outcome + process - 0.05) * mask)


def test_the_first_solve_is_not_paid():
    """Bug: without --pay-first, process rewards still reach the first solve, no longer reach the next ones, or the outcome goes with them."""
    trajectories, width = [made("++"), made("--"), made("-+++"), made("+--+")], 8
    mask = torch.tensor([[float(t < len(x.ids)) for t in range(width)] for x in trajectories])
    for reward in ("process", "both", "outcome"):
        with_first, without = (train_rl.advantages_of(trajectories, torch.zeros(4, width), None, mask, {}, settings(reward=reward, pay_first=paid), random.Random(0))[0]
                               for paid in (True, False))
        torch.testing.assert_close(without[:, 2:], with_first[:, 2:])
        process = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None] * (reward != "outcome")
        torch.testing.assert_close(without[:, :2], with_first[:, :2] - process * torch.ones(1, 2))


def test_flags_reach_the_arithmetic(monkeypatch):
    """Bug: --decay or --dual-clip is parsed and then forgotten."""
    found = train_rl.advantages_of(FOUR[:1], torch.zeros(1, 4), None, torch.ones(1, 4), {(): [4.0, 8]}, settings(reward="process", decay=0.5), random.Random(0))[0]
    assert found[0, 0].item() == pytest.approx(1 - 3 / 5)
    seen, real = [], ppo.ppo_loss
    monkeypatch.setattr(ppo, "ppo_loss", lambda *args: seen.append(args[-2:]) or real(*args))
    Rollout(0.02, settings(dual_clip=7.0), advantages=torch.ones(8, 1)).update()
    assert set(seen) == {(7.0, None)}
    seen.clear()
    r = Rollout(0.02, settings(ratio="action"), advantages=torch.ones(8, 1))
    r.update()
    assert sorted(n for _, lengths in seen for n in lengths) == sorted(a.stop - a.start for t in r.trajectories for a in t.actions)


def test_ratio_by_action_in_micro_batches(fp32):
    """Bug: the actions' lengths are those of another order of the responses."""
    found = []
    for micro_tokens in (1, 8192):
        r = Rollout(0.1, settings(ratio="action", micro_tokens=micro_tokens), advantages=torch.ones(8, 1))
        r.old[0] += 0.2 * torch.randn(r.old[0].shape, generator=torch.Generator().manual_seed(0))
        r.update()
        found.append(torch.cat([p.detach().flatten() for p in r.model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("beta", ["0.1", "0"])
def test_offline_ratio_and_kl_are_to_the_reference(beta, tmp_path, monkeypatch):
    """Bug: the offline ratio is that to the policy of each step; the KL pushes away from the reference, or is forgotten."""
    folder = save_policy(tmp_path / "policy")
    pool = [[(made(signs), [1.0 + i, -0.5, 0.25, 2.0][: len(signs)]) for i, signs in enumerate(("++", "-+++"))] for _ in range(2)]
    monkeypatch.setattr(train_rl, "offline_pool", lambda *rest: pool)
    real, steps = train_rl.update, []

    def update(model, head, optimizer, tokenizer, prompts, trajectories, advantages, old, returns, args, *rest):
        now, start = (train_rl.score(m, tokenizer, prompts, trajectories, range(len(trajectories)), args)[0] for m in (model, load_model(folder)))
        by_actions = train_rl.ppo.spread([[1.0, -0.5] if len(t.actions) == 2 else [2.0, -0.5, 0.25, 2.0] for t in trajectories], trajectories, now.shape[1])
        steps.append((now - start).abs().max().item())
        torch.testing.assert_close(old[0], start)
        torch.testing.assert_close(advantages, by_actions - float(beta) * (now - start))
        return real(model, head, optimizer, tokenizer, prompts, trajectories, advantages, old, returns, args, *rest)
    monkeypatch.setattr(train_rl, "update", update)
    train_rl.main(["--model", folder, "--out", str(tmp_path / "out"), "--steps", "2", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6",
                   "--test-count", "2", "--count", "5", "--lr", "0.05", "--device", "cpu", "--offline", "2", "--beta", beta])
    assert steps[0] == 0 and steps[1] > 0.01


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_kl_in_the_loss_pulls_every_response_to_the_reference(kl, fp32):
    """Bug: the KL in the loss has the wrong sign, is taken of other tokens, or misses responses without an advantage."""
    r = Rollout(0.02, settings(beta=5.0, kl=kl, epochs=4, minibatches=2), advantages=torch.zeros(8, 1))
    reference = r.old[0] + 0.3 * torch.randn(r.old[0].shape, generator=torch.Generator().manual_seed(0)) * r.mask
    gap = lambda: ((r.score()[0] - reference) * r.mask).pow(2).sum(1)
    before = gap()
    train_rl.update(r.model, None, r.optimizer, r.tokenizer, r.prompts, r.trajectories, r.advantages, r.old, None, r.args, random.Random(1), "step 1", reference)
    assert (gap() < before).sum() >= 7 and gap().sum() < 0.5 * before.sum()


def test_kl_counts_in_the_reward_or_in_the_loss(tmp_path, monkeypatch):
    """Bug: with --kl k3 the KL counts twice, or nowhere; in the reward it gets into the loss, too."""
    folder, real, seen = save_policy(tmp_path / "policy"), train_rl.update, []

    def update(model, head, optimizer, tokenizer, prompts, trajectories, advantages, old, returns, args, rng, where, reference=None):
        start = train_rl.score(load_model(folder), tokenizer, prompts, trajectories, range(len(trajectories)), args)[0]
        now = train_rl.score(model, tokenizer, prompts, trajectories, range(len(trajectories)), args)[0]
        seen.append((advantages, now - start, reference is not None and torch.allclose(reference, start, atol=1e-4)))
        return real(model, head, optimizer, tokenizer, prompts, trajectories, advantages + 0.5 * (old[0] != 0), old, returns, args, rng, where, reference)
    monkeypatch.setattr(train_rl, "update", update)
    for place in ("reward", "k3"):
        train_rl.main(["--model", folder, "--out", str(tmp_path / place), "--steps", "2", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6",
                       "--test-count", "2", "--count", "5", "--lr", "0.05", "--device", "cpu", "--beta", "0.1", "--kl", place])
    (_, _, a), (charged, gap, b), (_, _, c), (free, _, d) = seen
    assert (a, b, c, d) == (False, False, True, True) and gap.abs().max() > 0.01
    torch.testing.assert_close(charged, -0.1 * gap, atol=1e-4, rtol=0)  # all outcomes are -1: the KL is all there is
    assert not free.any()


def test_rewards_from_a_judge(monkeypatch, tmp_path):
    """Bug: the gold answer leaks into rewards, a missing answer is judged, a verify keeps the rule's mark, or metrics follow the judge."""
    asked = []

    def verify(judge, tokenizer, claims, style, *rest, **named):
        asked.append((claims, style))
        return [[Verification("", {"1": True, "2": False, "3": None}[answer], True)] for _, answer in claims]
    monkeypatch.setattr(train_rl, "verify", verify)
    solve, check = lambda answer, right: Action("solve", 0, 1, "", answer=answer, right=right), lambda said, right: Action("verify", 1, 2, "", right=right, verdict=said)
    plain = [Trajectory(PROBLEM, [1, 2, 3, 4], True, [solve("2", True), check(False, True), solve("1", False), check(True, False)]),
             Trajectory(PROBLEM, [1, 2], True, [solve("3", True), check(True, True)]), Trajectory(PROBLEM, [1], True, [solve("", True)])]
    marked = train_rl.judged(plain, None, None, SimpleNamespace(max_new_tokens=9, batch_size=9))
    assert asked == [([(PROBLEM.question, answer) for answer in "123"], "confirmative")]
    assert [[action.right for action in t.actions] for t in marked] == [[False, False, True, True], [False, False], [False]]
    assert [[action.right for action in t.actions] for t in plain] == [[True, True, False, False], [True, True], [True]]

    folder = save_policy(tmp_path / "policy")
    agreed = Trajectory(PROBLEM, [1, 2], True, [solve("1", True), check(True, True)])  # for the rule, both responses to the second question are right
    monkeypatch.setattr(train_rl, "respond", lambda *rest: [[plain[0], plain[1]], [agreed, plain[1]]])
    monkeypatch.setattr(train_rl, "evaluate", lambda *rest: [made("++")])
    train_rl.main(["--model", folder, "--out", str(tmp_path / "out"), "--steps", "1", "--prompts", "2", "--samples", "2", "--test-count", "1", "--count", "2",
                   "--lr", "0", "--device", "cpu", "--reward-from", folder])
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert line["reward"] == 0 and line["final_accuracy"] == 0.75 and line["first_accuracy"] == 1
    rows = [json.loads(row) for row in (tmp_path / "out" / "rollouts.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == [1, -1] * 2


@pytest.mark.parametrize("flags", [["--pay-first"], ["--kl", "k2", "--beta", "-1"], ["--reward-from", "x", "--filter", "2"], ["--reward-from", "x", "--offline", "2"], ["--kl", "k2"], ["--kl", "k3", "--beta", "0.1", "--offline", "2"],
                                   ["--offline-accuracy", "0", "1"], ["--offline", "2", "--offline-accuracy", "0.7", "0.1"]])
def test_flags_that_would_do_nothing_are_refused(flags):
    """Bug: a flag is accepted and has no effect."""
    with pytest.raises(InputError, match=f"^{flags[0] if flags[0] != '--offline' else '--offline-accuracy'}"):
        train_rl.flags(flags)


def test_offline_without_questions_is_refused(tmp_path, monkeypatch):
    """Bug: where no question is kept, the run goes on online."""
    monkeypatch.setattr(train_rl, "offline_pool", lambda *rest: [])
    with pytest.raises(InputError, match="only 0 training questions"):
        train_rl.main(["--model", save_policy(tmp_path / "policy"), "--out", str(tmp_path / "out"), "--steps", "1", "--prompts", "2", "--samples", "2",
                       "--max-new-tokens", "6", "--test-count", "2", "--count", "5", "--device", "cpu", "--offline", "4"])
    assert not (tmp_path / "out").exists()


def test_outcome_is_centred_by_default():
    """Bug: the default path forgets the contexts, or the action that was cut."""
    trajectories, width = [made("++"), made("-++", finished=False)], 6
    mask = torch.tensor([[float(t < len(x.ids)) for t in range(width)] for x in trajectories])
    found = train_rl.advantages_of(trajectories, torch.zeros(2, width), None, mask, {},
                                   settings(reward="outcome", plain_outcome=False, punish_cut=False), random.Random(0))[0]
    assert found.tolist() == [[2, 2, 0, 0, 0, 0], [-2, -2, 0, 0, 0, 0]]


@pytest.mark.parametrize("reward, last", [("outcome", [0, 1.0]), ("process", [1.0, -1.0]), ("both", [1.0, 0.0])])
def test_rewards_for_gae(reward, last, monkeypatch):
    """Bug: the outcome does not go to the last action's last token, or the KL is added instead of taken away."""
    seen = []
    monkeypatch.setattr(ppo, "gae", lambda rewards, *rest: seen.append(rewards) or (rewards, rewards))
    train_rl.advantages_of([made("+-")], torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 4), {},
                           settings(reward=reward, advantage="gae", beta=0.25), random.Random(0))
    torch.testing.assert_close(seen[0], torch.tensor([[0, last[0], 0, last[1]]]) - 0.25)
    train_rl.advantages_of([made("+-")], torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 4), {},
                           settings(reward=reward, advantage="gae", beta=0.25, pay_first=False), random.Random(0))
    torch.testing.assert_close(seen[1], torch.tensor([[0, 0, 0, last[1]]]) - 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rewards_keep_their_multiset(seed, monkeypatch):
    """Bug: the control loses, repeats or invents rewards, leaves them in place, or changes the number per response."""
    trajectories, seen = FOUR * 5, {}
    plain = [ppo.action_rewards(t) for t in trajectories]
    monkeypatch.setattr(ppo, "context_advantages", lambda actions, *rest: seen.setdefault("process", actions))
    monkeypatch.setattr(ppo, "leave_one_out", lambda outcomes: seen.setdefault("outcome", outcomes))
    train_rl.advantages_of(trajectories, torch.zeros(20, 8), None, torch.ones(20, 8), {}, settings(shuffle_rewards=True), random.Random(seed))
    assert [len(row) for row in seen["process"]] == [len(row) for row in plain] and seen["process"] != plain
    assert sorted(sum(seen["process"], [])) == sorted(sum(plain, []))
    outcomes = [ppo.outcome_reward(t) for t in trajectories]
    shuffled = seen["outcome"].flatten().tolist()
    assert sorted(shuffled) == pytest.approx(sorted(outcomes)) and shuffled != pytest.approx(outcomes)


@pytest.mark.parametrize("decay, expected", [("0.9", 2.0), ("0.5", 2.25), ("0", 3.0)])
def test_average_of_the_weights(decay, expected, tmp_path, monkeypatch):
    """Bug: the average keeps the start, weighs new and old the wrong way round, or is not what is saved."""
    save_policy(tmp_path / "policy")

    def update(model, *rest):
        with torch.no_grad():
            model.model["norm"].weight += 1  # 1, 2 and 3 above the start: the plain mean is 2, (1.5 + 3) / 2 is 2.25
        return {"approx_kl": 0.0}
    monkeypatch.setattr(train_rl, "update", update)
    train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / "out"), "--steps", "3", "--prompts", "2", "--samples", "2",
                   "--max-new-tokens", "4", "--test-count", "2", "--count", "5", "--device", "cpu", "--average", decay])
    before, after = (load_model(tmp_path / name).model["norm"].weight for name in ("policy", "out"))
    torch.testing.assert_close(after - before, torch.full_like(before, expected))


def test_filter_keeps_what_is_sometimes_solved(tmp_path, monkeypatch, capsys):
    """Bug: questions always or never solved stay, or the others go."""
    save_policy(tmp_path / "policy")
    answers = [["++", "+-"], ["--", "-+"], ["-+++", "--"], ["--", "-+++"]]  # always, never, sometimes, sometimes
    asked = []

    def respond(model, tokenizer, problems, *rest, **named):
        asked.append(problems)
        return [[made(signs) for signs in row] for row in answers] if len(asked) == 1 else 1 / 0

    monkeypatch.setattr(train_rl, "respond", respond)
    monkeypatch.setattr(train_rl, "evaluate", lambda *rest: [made("++")])
    with pytest.raises(ZeroDivisionError):
        train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / "out"), "--prompts", "2", "--count", "4", "--filter", "2"])
    assert len(asked[1]) == 2 and set(asked[1]) == set(asked[0][2:]) and "2 of 4 questions" in capsys.readouterr().out


@pytest.mark.parametrize("groups", [[["++", "--"], ["-+++", "++"]], [["++", "++"], ["--", "--"]]])
def test_a_step_scores_questions_with_both_outcomes(groups, tmp_path, monkeypatch):
    """Bug: responses that are learned from have no old log-probs, so that ratios are far from 1; entropy is a mean over the others, too, or
    0 where nothing is scored."""
    save_policy(tmp_path / "policy")
    rows = [[made(signs, tokens=2 + i) for i, signs in enumerate(row)] for row in groups]
    monkeypatch.setattr(train_rl, "respond", lambda *rest: rows)
    monkeypatch.setattr(train_rl, "evaluate", lambda *rest: [made("++")])
    train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / "out"), "--steps", "1", "--prompts", "2", "--samples", "2",
                   "--test-count", "1", "--count", "2", "--lr", "0", "--device", "cpu"])
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert line["ratio_min"] == pytest.approx(1, abs=1e-3) and line["ratio_max"] == pytest.approx(1, abs=1e-3)
    if groups[1][0] == "--":
        assert line["entropy"] is None and line["grad_norm"] == 0
        return
    model, tokenizer = load_model(tmp_path / "policy"), Tokenizer.load(tmp_path / "policy")
    prompt, entropies = tokenizer.prompt(SOLVE_PROMPT.format(question=PROBLEM.question)), []
    for t in rows[0]:
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1, : tokenizer.vocab_size].log_softmax(-1)
        entropies += (-(log_probs.exp() * log_probs).sum(-1)).tolist()
    assert line["entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-3) and line["grad_norm"] > 0


@pytest.mark.parametrize("flags", [["--reward", "both", "--min-count", "99"], ["--advantage", "gae", "--beta", "0.1", "--reward", "outcome"],
                                   ["--ratio", "action", "--offline", "4", "--beta", "0.1"]])
def test_whole_run_with_learning_rate_0(flags, tmp_path, capsys, monkeypatch):
    """Bug: the parts do not fit together; a run that must move nothing saves other weights; the log lacks its vital signs."""
    save_policy(tmp_path / "policy", vocab_padding=5)
    monkeypatch.setattr(train_rl, "offline_pool", lambda *rest: [[(made("--", finished=False), [1.0, -0.5])] * n for n in (1, 2, 1)])
    train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / "out"), "--steps", "2", "--prompts", "2", "--samples", "2",
                   "--max-new-tokens", "6", "--test-count", "2", "--count", "5", "--lr", "0", "--device", "cpu", *flags])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["approx_kl"] == pytest.approx(0, abs=1e-3) and line["clipped_low"] == line["clipped_high"] == 0
        assert line["reward"] == -1 and line["truncated"] > 0.5 and line["kl_to_reference"] == pytest.approx(0, abs=1e-3)
        assert {"entropy", "grad_norm", "groups_without_spread", "tokens", "first_accuracy", "seconds_rollout"} <= line.keys()
    before, after = (dict(load_model(tmp_path / name).named_parameters()) for name in ("policy", "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    start, end = json.loads((tmp_path / "out" / "evaluation.json").read_text())["columns"].values()
    assert start == end and start["count"] == 2  # evaluation is repeatable

"""The steps of train_rl.py on a tiny random model, and whole runs on made-up responses."""
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_ppo import FOUR, PROBLEM, made
from test_sampler import byte_tokenizer, save_policy, tiny_model

import train_rl
from nanoverify import evaluate, ppo, rollout, scoring
from nanoverify.checkpoint import load_model
from nanoverify.evaluate import respond
from nanoverify.problems import Problem
from nanoverify.rollout import PPO, Rollout, action_values, log_probs, rollout_of
from nanoverify.sampler import Sampling
from nanoverify.scoring import ROUND
from nanoverify.study import arms
from nanoverify.support.files import InputError
from nanoverify.support.state import Learner
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools.report import definitions
from nanoverify.trajectory import Action, Trajectory

torch.set_num_threads(1)
TOKENIZER = SimpleNamespace(prompt=lambda text: [1, 2])
about = pytest.approx


@pytest.fixture
def fp32(monkeypatch):
    """The same arithmetic on processors with and without bf16, in sampler and trainer."""
    for module in (rollout, evaluate):
        monkeypatch.setattr(module, "autocast", lambda device: torch.autocast("cpu", enabled=False))


def settings(**changes) -> PPO:
    usual = {"vocab_size": 61, "temperature": 0.8, "minibatches": 1, "micro_tokens": 8192}
    return PPO(**{**usual, **changes})


class Small:
    """Eight made-up responses to prompts of different lengths, and a model to train on them."""

    def __init__(self, lr, settings, advantages=1.0, value_head=None, seed=0):
        rng = random.Random(seed)
        self.model, self.settings = tiny_model(vocab_size=64, seed=seed), settings
        self.value_head = value_head
        made_up = []
        for _ in range(8):
            made_up.append(made("+-+-"[: rng.randint(1, 4)], tokens=rng.randint(1, 6)))
            made_up[-1].ids[:] = [rng.randrange(61) for _ in made_up[-1].ids]
        self.rollout = r = rollout_of([made_up[i: i + 2] for i in range(0, 8, 2)], TOKENIZER)
        r.prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 9))] for _ in range(8)]
        r.old = self.log_probs()
        r.advantages = torch.as_tensor(advantages).reshape(-1, 1) * r.mask
        if value_head:
            r.values = self.values()
            r.returns = [[value + 0.3 for value in row] for row in r.values]
        self.optimizer = torch.optim.SGD(self.parameters(), lr=lr)

    def parameters(self):
        head = self.value_head.parameters() if self.value_head else ()
        return [*self.model.parameters(), *head]

    def log_probs(self):
        return log_probs(self.model, self.rollout, self.settings)

    def values(self):
        return action_values(self.model, self.value_head, self.rollout, self.settings)

    def update(self):
        learner = Learner(self.model, self.optimizer, self.value_head)
        return train_rl.update(learner, self.rollout, self.settings, random.Random(1), "step 1")


def head() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(32, 1)


def noted(monkeypatch) -> list[int]:
    """The rows of all forward passes of the update, from now on."""
    used, forward = [], train_rl.forward

    def noting(model, record, rows):
        used.extend(rows)
        return forward(model, record, rows)
    monkeypatch.setattr(train_rl, "forward", noting)
    return used


# ---- 5. sample and mark ------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_responses_keep_the_log_probs_they_were_drawn_with(temperature, fp32):
    """Bug: log-probs are lost on the way, are another response's, or are taken at T = 1."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer.vocab_size, context=512)
    problems = [Problem(str(n), "why " * n, "6", "f", None) for n in (3, 1, 8, 2)]
    sampling = Sampling(12, temperature, samples=3, seed=5)
    record = rollout_of(respond(model, tokenizer, problems, sampling), tokenizer)
    assert record.sizes == [3] * 4 and len({t.problem.id for t in record.trajectories}) == 4
    assert record.old.isfinite().all()
    for i, t in enumerate(record.trajectories):
        prompt, n = record.prompts[i], len(t.ids)
        assert "why " * int(t.problem.id) in tokenizer.decode(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1]
        every = (logits[:, : tokenizer.vocab_size] / temperature).log_softmax(-1)
        expected = every[range(n), t.ids]
        torch.testing.assert_close(record.old[i, :n], expected, atol=1e-4, rtol=0)
        assert record.mask[i].sum() == record.mask[i, :n].sum() == n
        assert not record.old[i, n:].any()


FOUR_SAMPLES = Sampling(9, 0.7, samples=4, seed=3, batch_size=9)


def test_offline_pool(monkeypatch, capsys):
    """Bug: questions outside 10 to 70% stay, "solved" is not the reward's, advantages mix."""
    actions = [Action("solve", i, i + 1, "", right=True) for i in (0, 1)]
    broken = Trajectory(PROBLEM, [3, 4], True, actions, [0.0, 0.0])
    cut = made("+", finished=False)  # right, but cut: not solved
    rows = [[made("++")] * 4, [made("--", finished=False)] * 4, [cut] * 4,
            [made("++"), made("-+"), made("-+", finished=False), broken]]
    asked = []
    monkeypatch.setattr(arms, "respond", lambda *rest: asked.append(rest[3:]) or rows)

    def pool(reward):
        return arms.offline_pool(None, None, [PROBLEM] * 4, FOUR_SAMPLES, reward)
    assert [[t for t, _ in row] for row in pool("outcome")] == [rows[3][:3]]
    assert asked == [(FOUR_SAMPLES, "offline")]
    assert "1 of 4 questions and 3 of 16 responses" in capsys.readouterr().out
    # outcomes 1, -1, -1; process rewards (1, 1), (-1, 1), (-1, -1)

    def advantages(reward):
        return [values for _, values in pool(reward)[0]]
    assert advantages("outcome") == [about([4 / 3, 4 / 3])] + [about([-2 / 3, -2 / 3])] * 2
    process = [[4 / 3, 2 / 3], [-2 / 3, 2 / 3], [-2 / 3, -4 / 3]]
    assert advantages("process") == [about(row) for row in process]
    assert advantages("both") == [about(row) for row in ([8 / 3, 2], [-4 / 3, 0], [-4 / 3, -2])]


def test_offline_baselines_are_those_of_like_questions(monkeypatch):
    """Bug: easy and hard questions share a baseline, or two of like accuracy do not."""
    rows = [[made("++")] * a + [made("--")] * (10 - a) for a in (1, 5, 5, 7)]
    monkeypatch.setattr(arms, "respond", lambda *rest: rows)
    pool = arms.offline_pool(None, None, [PROBLEM] * 4, FOUR_SAMPLES, "outcome")
    assert [row[0][1] for row in pool] == [about([2 * (1 - a / 10)] * 2) for a in (1, 5, 5, 7)]


def test_offline_accuracy_counts_rewards_of_all_samples(monkeypatch):
    """Bug: it counts right answers that were cut, or leaves out responses that are not kept."""
    actions = [Action("solve", i, i + 1, "", right=True) for i in (0, 1)]
    broken = Trajectory(PROBLEM, [3, 4], True, actions, [0.0, 0.0])
    cut = made("+", finished=False)
    rows = [[made("++"), cut, cut, cut], [broken, made("--"), made("--"), made("--")]]
    monkeypatch.setattr(arms, "respond", lambda *rest: rows)
    pool = arms.offline_pool(None, None, [PROBLEM] * 2, FOUR_SAMPLES, "outcome")
    assert [[t for t, _ in row] for row in pool] == [rows[0], rows[1][1:]]  # 1 of 4 right in both


def test_filter_keeps_what_is_sometimes_solved(monkeypatch, capsys):
    """Bug: questions always or never solved stay, or "solved" is not the reward's."""
    cut = made("++", finished=False)
    rows = [[made("++"), made("+-")], [made("--"), made("-+")], [made("-+++"), made("--")],
            [made("++"), cut], [made("--"), cut]]
    asked = []
    monkeypatch.setattr(arms, "respond", lambda *rest: asked.append(rest[3:]) or rows)
    kept = arms.sometimes_solved(None, None, list("abcde"), FOUR_SAMPLES)
    tries = replace(FOUR_SAMPLES, samples=arms.TRIES)
    assert kept == ["c", "d"] and asked == [(tries, "filter")]
    assert "2 of 5 questions" in capsys.readouterr().out


# ---- 6. advantages -----------------------------------------------------------------------------

def test_log_probs_equal_each_response_alone(fp32):
    """Bug: a log-prob gets into another row or column, or counts ids the tokenizer lacks."""
    s = Small(0.0, settings(micro_tokens=3 * ROUND))
    for i, (prompt, t) in enumerate(zip(s.rollout.prompts, s.rollout.trajectories)):
        with torch.no_grad():
            logits = s.model(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1, :61]
        expected, n = (logits / 0.8).log_softmax(-1)[range(len(t.ids)), t.ids], len(t.ids)
        torch.testing.assert_close(s.rollout.old[i, :n], expected, atol=1e-4, rtol=0)
        assert not s.rollout.old[i, n:].any()


def test_values_are_read_before_the_action_begins(fp32):
    """Bug: the value knows the action it is the baseline of, or is another response's."""
    s = Small(0.0, settings(micro_tokens=3 * ROUND), value_head=head())
    for prompt, t, values in zip(s.rollout.prompts, s.rollout.trajectories, s.rollout.values):
        for action, value in zip(t.actions, values, strict=True):
            with torch.no_grad():
                state = s.model.hidden(torch.tensor([prompt + t.ids[: action.start]]))[0, -1]
            assert value == about(s.value_head(state).item(), abs=1e-4)
    # an action without tokens, at the very end, takes the last state there is
    for prompt, t, values in zip(s.rollout.prompts, s.rollout.trajectories, s.rollout.values):
        t.actions.append(Action("solve", len(t.ids), len(t.ids), ""))
        with torch.no_grad():
            state = s.model.hidden(torch.tensor([prompt + t.ids[:-1]]))[0, -1]
        values.append(s.value_head(state).item())
    for found, expected in zip(s.values(), s.rollout.values, strict=True):
        assert found == about(expected, abs=1e-4)


def weighed(groups, kl=0.0, values=None, mark=train_rl.mark, **rules) -> Rollout:
    r = rollout_of(groups, TOKENIZER)
    r.kl, r.values = kl * r.mask, values
    mark(r)
    train_rl.weigh(r, train_rl.RewardRules(**rules))
    return r


def tokens(*rows, width=8):
    """Numbers of actions of two tokens each -> (B, T)."""
    wide = [[number for number in row for _ in range(2)] for row in rows]
    return torch.tensor([row + [0.0] * (width - len(row)) for row in wide])


def test_advantages_of_outcome_and_process():
    """Bug: outcomes of other questions count, `both` is no sum, or the KL is added."""
    groups = [[made("++"), made("--")], [made("-+++"), made("+--+")]]
    outcome = tokens([2, 2], [-2, -2], [2, 2, 2, 2], [-2, -2, -2, -2])
    process = tokens([1, 1], [-1, -1], [-1, 1, 0, 0], [1, -1, 0, 0])
    sums = {"outcome": outcome, "process": process, "both": outcome + process}
    for reward, spread in sums.items():
        plain = weighed(groups, kl=0.5, reward=reward, beta=0.1, plain=True)
        expected = (spread - 0.05) * plain.mask
        torch.testing.assert_close(plain.advantages, expected)
        normal = weighed(groups, kl=0.5, reward=reward, beta=0.1)
        torch.testing.assert_close(normal.raw, expected)
        size = (expected.square().sum() / normal.mask.sum()).sqrt()
        torch.testing.assert_close(normal.advantages, expected / size)
    found = weighed([FOUR], reward="outcome", plain=True)  # method.md, section 6
    expected = torch.tensor([4.0, 4, -4, -4])[:, None] / 3
    torch.testing.assert_close(found.raw, expected * found.mask)


def test_no_baseline_is_taken_off_twice():
    """Bug: advantages are centred once more over the rollout, where long responses weigh more."""
    found = weighed([[made("++++"), made("--")]], reward="outcome", plain=True)
    torch.testing.assert_close(found.raw, tokens([2, 2, 2, 2], [-2, -2]))


@pytest.mark.parametrize("reward, rewards", [
    ("outcome", [[0, 1], [0, 0, 0, -1]]),
    ("process", [[1, 1], [1, -1, -1, 1]]),
    ("both", [[1, 2], [1, -1, -1, 0]])])
def test_advantages_of_gae(reward, rewards):
    """Bug: the outcome misses the last action, gamma and lambda change places, the KL is added."""
    groups, values = [[made("++"), made("+--+")]], [[0.5, -0.25], [1.0, 0.5, 0.25, -0.5]]
    found = weighed(groups, kl=0.5, values=values, reward=reward, gae=True, beta=0.1)
    expected = []
    for own, value in zip(rewards, values):
        delta = [r + later - v for r, later, v in zip(own, [*value[1:], 0.0], value)]
        n = len(own)
        expected.append([sum(0.95 ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)])
    assert found.rewards == rewards
    torch.testing.assert_close(found.raw, (tokens(*expected) - 0.05) * found.mask)
    torch.testing.assert_close(found.advantages, ppo.normalise(found.raw, found.mask))
    for row, own, value in zip(found.returns, expected, values, strict=True):
        assert row == about([a + v for a, v in zip(own, value)])


@pytest.mark.parametrize("n", range(3, 6))
def test_shuffled_rewards_keep_their_multiset(n):
    """Bug: the control loses, repeats or invents rewards, or leaves them in place."""
    groups, flat = [FOUR] * n, lambda rows: sorted(number for row in rows for number in row)
    plain, found, again = weighed(groups), *(weighed(groups, mark=arms.shuffled) for _ in "ab")
    assert found.process != plain.process and flat(found.process) == flat(plain.process)
    assert [len(row) for row in found.process] == [len(row) for row in plain.process]
    assert found.outcomes != plain.outcomes and sorted(found.outcomes) == sorted(plain.outcomes)
    torch.testing.assert_close(found.advantages, again.advantages)
    assert not torch.equal(found.advantages, plain.advantages)


def test_summary():
    """Bug: padding counts in a mean, or groups without spread are those with."""
    r = rollout_of([[made("++", tokens=10), made("--", tokens=1)], [made("--"), made("--")],
                    [made("++"), made("++")]], TOKENIZER)  # 20, 2 and four times 4 tokens
    r.old = -0.5 * r.mask
    r.old[0] *= 3
    r.kl = 0.25 * r.mask
    r.kl[1] *= -4
    r.outcomes = [ppo.outcome_reward(t) for t in r.trajectories]
    r.raw = torch.zeros_like(r.old)
    r.raw[0], r.raw[1] = 0.5 * r.mask[0], -2 * r.mask[1]
    expected = {"reward": 0.0, "groups_without_spread": 2 / 3, "longest": 20, "tokens": 38,
                "kl_to_reference": (36 * 0.25 - 2 * 1.0) / 38,
                "entropy": (20 * 1.5 + 18 * 0.5) / 38, "advantage_abs": (20 * 0.5 + 2 * 2) / 38}
    assert train_rl.summary(r, beta=0.1) == about(expected)
    assert train_rl.summary(r, beta=0.0)["kl_to_reference"] is None
    r.returns = [[2.0, -1.0], [0.5, 1.0], [3.0, 0.0], [1.0, -2.0], [0.0, 0.5], [1.0, 1.0]]
    r.values = [[value / 2 for value in row] for row in r.returns]
    assert train_rl.summary(r, beta=0.1)["explained_variance"] == about(0.75)


# ---- 7. update ---------------------------------------------------------------------------------

@pytest.mark.parametrize("bf16", [False, True])
def test_the_ratio_to_the_trainers_own_log_probs_is_exactly_1(bf16, monkeypatch):
    """Bug: log-probs come from different functions, dtypes, modes or temperatures."""
    def mixed(device):
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    monkeypatch.setattr(rollout, "autocast", mixed)
    signs = Small(0.1, settings()).update()
    assert signs["ratio_min"] == signs["ratio_max"] == 1
    assert signs["mismatch"] == signs["approx_kl"] == 0 and signs["grad_norm"] > 0


def test_vital_signs_by_hand(fp32):
    """Bug: the ratio is not that to the stored log-probs, --clip is lost, means are others."""
    advantages = [1.0, 1, 1, 1, -1, -1, 0, 0]
    s = Small(0.0, settings(clip=0.3, minibatches=2), advantages)
    r = s.rollout
    # the policy likes them more, or less, than the sampler did; 2 and 5 stay within 0.7 and 1.3
    moves = {0: 0.4, 1: 0.4, 2: 0.24, 4: -0.7, 5: -0.3}
    for i, move in moves.items():
        r.old[i] -= move * r.mask[i]
    signs, n = s.update(), [r.length(i) for i in range(8)]
    learned = sum(n[:6])  # responses without an advantage are left out

    def k3(x):
        return math.exp(x) - 1 - x
    expected = {"ratio_max": math.exp(0.4), "ratio_min": math.exp(-0.7),
                "clipped_high": sum(n[:2]) / learned, "clipped_low": n[4] / learned,
                "approx_kl": sum(n[i] * k3(move) for i, move in moves.items()) / learned}
    assert {key: signs[key] for key in expected} == about(expected, rel=1e-3)
    # the first of the two optimizer steps
    first = [i for i in random.Random(1).sample(range(8), 8)[:4] if i < 6]
    moved = sum(n[i] * abs(moves.get(i, 0)) for i in first)
    assert moved and signs["mismatch"] == about(moved / sum(n[i] for i in first), rel=1e-3)


def test_mismatch_is_that_before_the_first_update(fp32):
    """Bug: what the updates change counts as a difference between sampler and trainer."""
    signs = Small(0.1, settings(minibatches=4)).update()
    assert signs["mismatch"] == about(0, abs=1e-6) and signs["approx_kl"] > 1e-4


def test_learning_rate_0_moves_nothing(fp32):
    """Bug: something other than the optimizer changes the policy, or the wrong rows are paired."""
    s = Small(0.0, settings(minibatches=3, micro_tokens=3 * ROUND))
    signs = s.update()
    assert signs["approx_kl"] == about(0, abs=1e-6)
    assert signs["clipped_low"] == signs["clipped_high"] == 0
    assert [signs["ratio_min"], signs["ratio_max"]] == about([1, 1], abs=1e-4)
    torch.testing.assert_close(s.log_probs(), s.rollout.old)


def test_every_response_is_used_once(fp32, monkeypatch):
    """Bug: indices within a part are taken for those of the rollout; the order is that of asking,
    where the samples of a question are together in a minibatch."""
    s = Small(0.0, settings(minibatches=3, micro_tokens=3 * ROUND))
    used, steps = noted(monkeypatch), []
    monkeypatch.setattr(s.optimizer, "step", lambda: steps.append(len(used)))
    s.update()
    assert steps == [3, 6, 8] and sorted(used) == list(range(8))
    assert set(used[:3]) == set(random.Random(1).sample(range(8), 8)[:3]) != {0, 1, 2}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_an_update_moves_the_log_probs_as_the_advantages_say(A, seed, fp32):
    """Bug: the sign, or advantages that meet the tokens of other responses."""
    chosen = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0])
    s = Small(0.02, settings(micro_tokens=3 * ROUND), A * chosen, seed=seed)
    s.update()
    change = (s.log_probs() - s.rollout.old).sum(1)
    assert (A * change[chosen > 0]).min() > 0


def test_responses_without_advantage_cost_nothing_and_change_nothing(fp32, monkeypatch):
    """Bug: leaving them out changes the denominator, or one fails where all are left out."""
    gradient, used = {}, noted(monkeypatch)
    for tiny in (0.0, 1e-30):  # 1e-30 is not left out and has no gradient to speak of
        used.clear()
        s = Small(0.1, settings(), [1.0, -1, 1, -1, tiny, tiny, tiny, tiny])
        gradient[tiny] = s.update()["grad_norm"]
        assert len(used) == (4 if tiny == 0 else 8)
    assert gradient[0.0] == about(gradient[1e-30], rel=1e-5)
    signs = Small(0.1, settings(), 0.0).update()
    assert signs["grad_norm"] == 0 and signs["mismatch"] is None and signs["ratio_max"] == 1


@pytest.mark.parametrize("value", [False, True])
def test_gradient_does_not_depend_on_the_micro_batch(value, fp32):
    """Bug: losses are means of means: responses in small micro-batches weigh more."""
    signs, weights = [], []
    for micro_tokens in (1, 3 * ROUND, 8192):
        s = Small(0.1, settings(micro_tokens=micro_tokens), torch.linspace(-1, 2, 8),
                  head() if value else None)
        found = s.update()
        signs.append([found["grad_norm"], found.get("value_loss", 0)])
        weights.append(torch.cat([p.detach().flatten() for p in s.parameters()]))
    for i in (1, 2):
        assert signs[i] == about(signs[0], rel=1e-4)
        torch.testing.assert_close(weights[i], weights[0], atol=1e-5, rtol=0)


def test_the_gradient_is_clipped_once_after_all_micro_batches(fp32):
    """Bug: no clip, one for each micro-batch, or the step before still in the gradient."""
    moves = []
    for micro_tokens in (1, 8192):
        s = Small(0.1, settings(micro_tokens=micro_tokens), 1000 * torch.linspace(-1, 2, 8))
        before = [p.detach().clone() for p in s.parameters()]
        assert s.update()["grad_norm"] > 10
        moves.append(torch.cat([(p.detach() - b).flatten()
                                for p, b in zip(s.parameters(), before)]))
        assert moves[-1].norm().item() == about(0.1, rel=1e-3)  # the learning rate times 1
        assert not any(p.grad is not None and p.grad.any() for p in s.parameters())
    torch.testing.assert_close(*moves, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [False, True])
def test_workers_change_nothing(value, fp32, monkeypatch):
    """Bug: a worker's scores, gradients or vital signs are lost, or leave out the value head."""
    after, signs = [], []
    for count in (1, 3):
        for module in (scoring, rollout):
            monkeypatch.setattr(module, "workers", lambda model, count=count: count)
        s = Small(0.1, settings(micro_tokens=3 * ROUND, minibatches=2), torch.linspace(-1, 2, 8),
                  head() if value else None)
        signs.append(s.update())
        values = [torch.tensor(row) for row in s.values()] if value else []
        after.append([s.rollout.old, s.log_probs(), *values, *s.parameters()])
    for one, several in zip(*after, strict=True):
        torch.testing.assert_close(several, one, atol=1e-5, rtol=1e-4)
    assert signs[1] == about(signs[0], abs=1e-5)


def test_value_head_learns_the_returns_and_not_the_policy(fp32):
    """Bug: values meet the returns of other actions, are pushed away, or change the policy, too."""
    s = Small(0.02, settings(minibatches=8), 0.0, head())
    policy, rng = [p.detach().clone() for p in s.model.parameters()], random.Random(0)
    returns = [[value + rng.uniform(-0.1, 0.3) for value in row] for row in s.rollout.values]
    s.rollout.returns = returns

    def gap(values):
        return sum((v - r) ** 2 for rows in zip(values, returns) for v, r in zip(*rows))
    assert s.update()["value_loss"] > 0
    assert gap(s.values()) < gap(s.rollout.values)
    assert all(torch.equal(now, then) for now, then in zip(s.model.parameters(), policy))


def test_one_step_of_the_value_head_by_hand(fp32):
    """Bug: the weight of the value loss is lost, or it is a sum or a mean over tokens."""
    s = Small(0.5, settings(), 0.0, head())
    bias = s.value_head.bias.item()
    signs = s.update()
    # returns are 0.3 above the values: the mean over actions of d/db 0.5 * (v - r)^2 is -0.3
    assert s.value_head.bias.item() - bias == about(0.5 * 0.5 * 0.3, rel=1e-3)  # lr, weight
    assert signs["value_loss"] == about(0.5 * 0.3 ** 2, rel=1e-3)


# ---- whole runs on made-up responses -----------------------------------------------------------

def small_run(folder, *flags, out="out", **calls):
    """train_rl.main on folder/policy. -> metrics.jsonl."""
    train_rl.main(["--model", str(folder / "policy"), "--out", str(folder / out), "--prompts", "2",
                   "--samples", "2", "--max-new-tokens", "6", "--test-count", "2",
                   "--device", "cpu", "--overwrite", *map(str, flags)], **calls)
    return [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


class Stub:
    """Stands in for sampling, evaluation and update, and notes what they are given."""

    def __init__(self, monkeypatch, groups):
        self.groups, self.asked, self.seen, self.evaluated = groups, [], [], []
        for name in ("respond", "evaluate", "update"):
            monkeypatch.setattr(train_rl, name, getattr(self, name))

    def respond(self, model, tokenizer, problems, sampling):
        self.asked.append((len(problems), sampling.samples, sampling.temperature, sampling.seed))
        return self.groups

    def evaluate(self, model, *rest):
        self.evaluated.append(model.model["norm"].weight.detach().clone())
        return [made("++")]

    def update(self, learner, record, settings, rng, where):
        model, optimizer, value_head = learner
        self.seen.append(SimpleNamespace(
            record=record, settings=settings, order=tuple(rng.sample(range(50), 50)),
            groups=[{**group, "params": None} for group in optimizer.param_groups],
            head=[p.detach().clone() for p in value_head.parameters()] if value_head else []))
        with torch.no_grad():
            model.model["norm"].weight += 1
        return {"approx_kl": 0.0}


@pytest.fixture
def stub(tmp_path, monkeypatch, capsys):
    save_policy(tmp_path / "policy")
    return Stub(monkeypatch, [[made("++"), made("--")], [made("-+++"), made("+--+")]])


def test_flags_reach_what_they_are_for(tmp_path, stub):
    """Bug: a flag is parsed and forgotten; steps or seeds share random numbers; weights decay."""
    flags = ["--steps", 10, "--temperature", 0.7, "--clip", 0.1, "--minibatches", 5,
             "--micro-tokens", 999, "--lr", 0.5, "--advantage", "gae"]
    lines = small_run(tmp_path, *flags, "--seed", 3)
    expected = PPO(Tokenizer.load(tmp_path / "policy").vocab_size, temperature=0.7,
                   minibatches=5, clip=0.1, micro_tokens=999)
    assert {step.settings for step in stub.seen} == {expected}
    assert {asked[:3] for asked in stub.asked} == {(2, 2, 0.7)}
    seeds, orders = {asked[3] for asked in stub.asked}, {step.order for step in stub.seen}
    assert len(seeds) == len(orders) == 10
    # five steps of warm-up to 0.5, and a line from 0.5 to 0
    rates = [0.1, 0.2, 0.3, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05]
    assert [line["lr"] for line in lines] == about(rates)
    for step, rate in zip(stub.seen, rates):
        policy, value = step.groups
        assert policy["lr"] == about(rate) and value["lr"] == 3e-3
        for group in step.groups:
            assert group["weight_decay"] == 0 and group["betas"] == (0.9, 0.95)
        assert len(step.head) == 2 and not any(p.any() for p in step.head)  # it begins at 0
        assert step.record.values == [[0] * len(t.actions) for t in step.record.trajectories]
    small_run(tmp_path, *flags, "--seed", 4)
    assert not seeds & {asked[3] for asked in stub.asked[10:]}
    assert not orders & {step.order for step in stub.seen[10:]}


def test_what_is_evaluated_is_what_is_saved_and_logged(tmp_path, stub):
    """Bug: the figures, or those in the log, are of other weights than the saved ones."""
    lines = small_run(tmp_path, "--steps", 3, "--eval-every", 2)
    start, end = (load_model(tmp_path / name).model["norm"].weight for name in ("policy", "out"))
    for found, moved in zip(stub.evaluated, (0, 2, 3), strict=True):  # before, on the way, after
        torch.testing.assert_close(found, start + moved)
    torch.testing.assert_close(end, start + 3)
    assert [("eval" in line) for line in lines] == [False, True, False]


def test_rules_reach_the_advantages(tmp_path, stub):
    """Bug: --reward or --plain has no effect."""
    for reward in ("outcome", "process", "both"):
        for plain in (False, True):
            small_run(tmp_path, "--steps", 1, "--reward", reward, "--beta", 0,
                      *["--plain"] * plain)
            expected = weighed(stub.groups, reward=reward, plain=plain)
            torch.testing.assert_close(stub.seen[-1].record.advantages, expected.advantages)


def test_kl_is_that_of_the_sampler_to_the_start(tmp_path, stub):
    """Bug: --beta has no effect, the reference moves with the policy, or the KL is turned round."""
    small_run(tmp_path, "--steps", 2, "--beta", 0.25, "--plain")
    plain, start = weighed(stub.groups, plain=True), load_model(tmp_path / "policy")
    for step in stub.seen:
        reference = log_probs(start, step.record, step.settings)
        kl = step.record.old - reference
        torch.testing.assert_close(step.record.kl, kl, atol=1e-5, rtol=0)
        torch.testing.assert_close(step.record.advantages, plain.advantages - 0.25 * kl)


def test_offline_learns_from_the_pool(tmp_path, monkeypatch, stub):
    """Bug: offline, the ratio is to each step's policy, or the KL is not that of the policy."""
    numbers = {"++": [1.0, -0.5], "-+++": [2.0, -0.5, 0.25, 2.0]}
    pool = [[(made(signs), row) for signs, row in numbers.items()] for _ in range(2)]
    monkeypatch.setattr(train_rl, "respond", None)
    start, kls = load_model(tmp_path / "policy"), []

    def update(learner, record, settings, *rest):
        now = log_probs(learner.model, record, settings)
        torch.testing.assert_close(record.old, -0.25 * record.mask)
        torch.testing.assert_close(record.kl, now - log_probs(start, record, settings))
        expected = tokens(*numbers.values(), *numbers.values()) - 0.1 * record.kl
        torch.testing.assert_close(record.raw, expected)
        kls.append(record.kl.abs().max().item())
        return stub.update(learner, record, settings, *rest)
    monkeypatch.setattr(train_rl, "update", update)
    small_run(tmp_path, "--steps", 2, "--beta", 0.1, choose=lambda *rest: pool,
              collect=arms.from_pool)
    assert kls[0] == 0 and kls[1] > 0.01


def test_too_few_questions_are_refused(tmp_path, stub):
    """Bug: where `choose` leaves no question, the run continues with none."""
    with pytest.raises(InputError, match="only 0 training questions"):
        small_run(tmp_path, "--steps", 1, choose=lambda *rest: [])
    assert not (tmp_path / "out").exists()


def test_each_arm_reaches_its_run(tmp_path, monkeypatch, capsys):
    """Bug: an arm is the plain run under another name, or loses the flags that follow its name."""
    seen = []
    monkeypatch.setattr(train_rl, "main", lambda argv, **calls: seen.append((argv, calls)))
    for name in arms.ARMS:
        arms.main([name, "--beta", "0.1", "--reward", "outcome"])
    assert [argv for argv, _ in seen] == [["--beta", "0.1", "--reward", "outcome"]] * 3
    (_, filtered), (_, offline), (_, shuffled) = seen
    assert filtered == {"choose": arms.sometimes_solved} and shuffled == {"mark": arms.shuffled}
    assert offline["collect"] is arms.from_pool
    monkeypatch.setattr(arms, "offline_pool", lambda *rest: rest)
    assert offline["choose"](1, 2, 3, 4) == (1, 2, 3, 4, "outcome")
    for flags in (["no-such-arm"], ["offline", "--advantage", "gae"]):
        with pytest.raises(InputError):
            arms.main(flags)


def test_a_run_does_not_resume_with_other_calls(tmp_path, stub):
    """Bug: half a run learns from shuffled rewards."""
    small_run(tmp_path, "--steps", 1)
    with pytest.raises(InputError, match="calls was .*'mark'.*, is .*'shuffled'"):
        train_rl.main(["--model", str(tmp_path / "policy"), "--out", str(tmp_path / "out"),
                       "--prompts", "2", "--samples", "2", "--max-new-tokens", "6", "--test-count",
                       "2", "--device", "cpu", "--steps", "2", "--resume"], mark=arms.shuffled)


def test_a_negative_beta_is_refused(capsys):
    """Bug: the policy is paid for leaving the reference."""
    with pytest.raises(SystemExit):
        train_rl.flags(["--beta", "-1"])
    assert "--beta: -1 is not a number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--beta", "0"], ["--advantage", "gae", "--beta", "0.1"],
                                   ["--beta", "0", "--plain", "--temperature", "0.7"]])
def test_whole_run_with_learning_rate_0(flags, tmp_path, capsys, fp32):
    """Bug: the parts do not fit together, other weights are saved, the log lacks signs."""
    save_policy(tmp_path / "policy", vocab_padding=5)
    lines = small_run(tmp_path, "--steps", 2, "--lr", 0, *flags)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["approx_kl"] == about(0, abs=1e-6)
        assert line["clipped_low"] == line["clipped_high"] == 0
        assert line["kl_to_reference"] == (about(0, abs=1e-5) if "0.1" in flags else None)
        assert line["reward"] == -1 and line["truncated"] > 0.5
        assert {"advantage_abs", "entropy", "first_accuracy", "grad_norm", "groups_without_spread",
                "longest", "lr", "mismatch", "ratio_max", "seconds_rollout", "tokens"} <= set(line)
        assert ("explained_variance" in line) == ("value_loss" in line) == ("gae" in flags)
        assert set(line) - {"step"} <= set(definitions())  # every figure is explained on the page
    names = [name for name, _ in load_model(tmp_path / "policy").named_parameters()]
    before, after = (load_model(tmp_path / name).state_dict() for name in ("policy", "out"))
    assert all(torch.equal(before[name], after[name]) for name in names)
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    start, end = evaluation["columns"].values()
    assert start == end and start["count"] == 2  # evaluation is repeatable


def test_evaluations_do_not_sample_as_rollouts_do(tmp_path, monkeypatch, capsys, fp32):
    """Bug: evaluations take the temperature, the seed or the number of samples of the rollouts."""
    save_policy(tmp_path / "policy")
    real, seen = train_rl.evaluate, []

    def evaluate(model, tokenizer, problems, sampling):
        seen.append((sampling.temperature, sampling.seed, sampling.samples))
        return real(model, tokenizer, problems, sampling)
    monkeypatch.setattr(train_rl, "evaluate", evaluate)
    small_run(tmp_path, "--steps", 1, "--eval-every", 1, "--seed", 5, "--temperature", 0.9,
              "--test-temperature", 0.3)
    assert seen == [(0.3, 0, 1)] * 3  # before, in between, after


def test_the_sampler_agrees_with_the_trainer(tmp_path, monkeypatch, capsys, fp32):
    """Bug: old log-probs are those of other tokens, another temperature or another policy."""
    save_policy(tmp_path / "policy", vocab_padding=5)

    def odd(trajectory):
        # so that something moves
        return 1.0 if sum(trajectory.ids) % 2 else -1.0
    monkeypatch.setattr(ppo, "outcome_reward", odd)
    lines = small_run(tmp_path, "--steps", 3, "--lr", 0.01, "--temperature", 0.7, "--beta", 0.1)
    for line in lines:
        assert line["mismatch"] < 1e-4 and line["entropy"] > 0 and line["grad_norm"] > 0
    assert lines[0]["kl_to_reference"] == about(0, abs=1e-5)
    assert abs(lines[2]["kl_to_reference"]) > 1e-4

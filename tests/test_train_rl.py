"""The steps of train_rl.py on a tiny random model, and whole runs of its `main` on made-up responses."""
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

import train_rl
from nanoverify import evaluate, ppo, rollout, scoring
from nanoverify.checkpoint import load_model
from nanoverify.evaluate import metrics, respond
from nanoverify.files import InputError
from nanoverify.problems import Problem
from nanoverify.report import definitions
from nanoverify.rollout import PPO, Rollout, action_values, log_probs, rollout_of
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import Action, Trajectory
from test_ppo import FOUR, PROBLEM, made
from test_sampler import byte_tokenizer, save_policy, tiny_model

torch.set_num_threads(1)
TOKENIZER = SimpleNamespace(prompt=lambda text: [1, 2])


def settings(**changes) -> PPO:
    return PPO(**{**dict(vocab_size=61, temperature=0.8, minibatches=1, micro_tokens=8192), **changes})


@pytest.fixture
def fp32(monkeypatch):
    """The same arithmetic on processors with and without bf16, in sampler and trainer."""
    for module in (rollout, evaluate):
        monkeypatch.setattr(module, "autocast", lambda device: torch.autocast("cpu", enabled=False))


class Small:
    """Eight made-up responses to prompts of different lengths, and a model to train on them."""

    def __init__(self, lr, settings, advantages=1.0, value_head=None, seed=0):
        rng = random.Random(seed)
        self.model, self.settings, self.value_head = tiny_model(vocab_size=64, seed=seed), settings, value_head
        trajectories = [made("+-+-"[: rng.randint(1, 4)], tokens=rng.randint(1, 6)) for _ in range(8)]
        for t in trajectories:
            t.ids[:] = [rng.randrange(61) for _ in t.ids]
        self.rollout = r = rollout_of([trajectories[i: i + 2] for i in range(0, 8, 2)], TOKENIZER)
        r.prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 9))] for _ in range(8)]
        r.old = self.log_probs()
        r.advantages = torch.as_tensor(advantages).reshape(-1, 1) * r.mask
        if value_head:
            r.values = self.values()
            r.returns = [[value + 0.3 for value in row] for row in r.values]
        parameters = [*self.model.parameters(), *(value_head.parameters() if value_head else ())]
        self.optimizer = torch.optim.SGD(parameters, lr=lr)

    def log_probs(self):
        return log_probs(self.model, self.rollout, self.settings)

    def values(self):
        return action_values(self.model, self.value_head, self.rollout, self.settings)

    def update(self):
        return train_rl.update(self.model, self.value_head, self.optimizer, self.rollout, self.settings,
                               random.Random(1), "step 1")


def head() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(32, 1)


# ---- 5. sample and mark -----------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_responses_keep_the_log_probs_they_were_drawn_with(temperature, fp32):
    """Bug: log-probs are lost on the way, belong to another response, are taken at T = 1, or are not finite."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer.vocab_size, context=512)
    problems = [Problem(str(n), "why " * n, "6", "f", None) for n in (3, 1, 8, 2)]
    groups = respond(model, tokenizer, problems, 3, 12, temperature, seed=5)
    record = rollout_of(groups, tokenizer)
    assert record.sizes == [3] * 4 and len({t.problem.id for t in record.trajectories}) == 4
    for i, t in enumerate(record.trajectories):
        prompt = record.prompts[i]
        assert "why " * int(t.problem.id) in tokenizer.decode(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1, : tokenizer.vocab_size]
        expected = (logits / temperature).log_softmax(-1)[range(len(t.ids)), t.ids]
        assert record.old.isfinite().all()
        torch.testing.assert_close(record.old[i, : len(t.ids)], expected, atol=1e-4, rtol=0)
        assert record.mask[i].tolist() == [1] * len(t.ids) + [0] * (record.mask.shape[1] - len(t.ids))


def test_offline_pool(monkeypatch, capsys):
    """Bug: questions outside 10 to 70% stay, or "solved" is not the reward's; a response gets another one's advantage."""
    broken = Trajectory(PROBLEM, [3, 4], True, [Action("solve", i, i + 1, "", right=True) for i in (0, 1)], [0.0] * 2)
    cut = made("+", finished=False)  # right, but cut: not solved
    rows = [[made("++")] * 4, [made("--", finished=False)] * 4, [cut] * 4,
            [made("++"), made("-+"), made("-+", finished=False), broken]]
    asked = []
    monkeypatch.setattr(train_rl, "respond", lambda *rest: asked.append(rest[3:]) or rows)
    args = SimpleNamespace(samples=4, max_new_tokens=9, temperature=0.7, seed=3, batch_size=9, reward="outcome")
    pool = train_rl.offline_pool(None, None, [PROBLEM] * 4, args)
    assert asked == [(4, 9, 0.7, 3, 9, "offline")] and "1 of 4 questions and 3 of 16 responses" in capsys.readouterr().out
    assert [[t for t, _ in row] for row in pool] == [rows[3][:3]]
    advantages = lambda: [values for _, values in train_rl.offline_pool(None, None, [PROBLEM] * 4, args)[0]]
    assert advantages() == [pytest.approx([4 / 3] * 2), pytest.approx([-2 / 3] * 2), pytest.approx([-2 / 3] * 2)]
    args.reward = "process"  # (1, 1), (-1, 1), (-1, -1): means -1/3 and 1/3
    assert advantages() == [pytest.approx([4 / 3, 2 / 3]), pytest.approx([-2 / 3, 2 / 3]), pytest.approx([-2 / 3, -4 / 3])]
    args.reward = "both"
    assert advantages() == [pytest.approx([8 / 3, 2]), pytest.approx([-4 / 3, 0]), pytest.approx([-4 / 3, -2])]


def test_offline_baselines_are_those_of_like_questions(monkeypatch):
    """Bug: easy and hard questions share a baseline, or two of like accuracy do not."""
    rows = [[made("++")] * a + [made("--")] * (10 - a) for a in (1, 5, 5, 7)]
    monkeypatch.setattr(train_rl, "respond", lambda *rest: rows)
    args = SimpleNamespace(samples=10, max_new_tokens=9, temperature=1.0, seed=0, batch_size=9, reward="outcome")
    pool = train_rl.offline_pool(None, None, [PROBLEM] * 4, args)
    assert [row[0][1] for row in pool] == [pytest.approx([2 * (1 - a / 10)] * 2) for a in (1, 5, 5, 7)]


def test_filter_keeps_what_is_sometimes_solved(monkeypatch, capsys):
    """Bug: questions always or never solved stay, or the others go; "solved" is not the reward's."""
    rows = [[made("++"), made("+-")], [made("--"), made("-+")], [made("-+++"), made("--")],
            [made("++"), made("++", finished=False)], [made("--"), made("++", finished=False)]]
    asked = []
    monkeypatch.setattr(train_rl, "respond", lambda *rest: asked.append(rest[3:]) or rows)
    args = SimpleNamespace(filter=2, max_new_tokens=9, temperature=0.7, seed=3, batch_size=9)
    assert train_rl.sometimes_solved(None, None, list("abcde"), args) == ["c", "d"]
    assert asked == [(2, 9, 0.7, 3, 9, "filter")] and "2 of 5 questions" in capsys.readouterr().out


# ---- 6. advantages ----------------------------------------------------------------------------

def test_log_probs_equal_each_response_alone(fp32):
    """Bug: a log-prob gets into another row or column, is taken at T = 1, or counts ids the tokenizer lacks."""
    s = Small(0.0, settings(micro_tokens=3 * scoring.ROUND))
    for i, (prompt, t) in enumerate(zip(s.rollout.prompts, s.rollout.trajectories)):
        with torch.no_grad():
            logits = s.model(torch.tensor([prompt + t.ids]))[0, len(prompt) - 1: -1, :61]
        expected, n = (logits / 0.8).log_softmax(-1)[range(len(t.ids)), t.ids], len(t.ids)
        torch.testing.assert_close(s.rollout.old[i, :n], expected, atol=1e-4, rtol=0)
        assert (s.rollout.old[i, n:] == 0).all()


def test_values_are_read_before_the_action_begins(fp32):
    """Bug: the value knows the action it is the baseline of, belongs to another response, or an empty action has none."""
    s = Small(0.0, settings(micro_tokens=3 * scoring.ROUND), value_head=head())
    for prompt, t, values in zip(s.rollout.prompts, s.rollout.trajectories, s.rollout.values):
        for action, value in zip(t.actions, values, strict=True):
            with torch.no_grad():
                state = s.model.hidden(torch.tensor([prompt + t.ids[: action.start]]))[0, -1]
            assert value == pytest.approx(s.value_head(state).item(), abs=1e-4)
    last = s.rollout.trajectories[3]
    last.actions.append(Action("solve", len(last.ids), len(last.ids), ""))
    assert len(s.values()[3]) == len(last.actions) and s.values()[4] == pytest.approx(s.rollout.values[4], abs=1e-5)


def weighed(groups, kl=0.0, values=None, shuffle_seed=0, **rules) -> Rollout:
    r = rollout_of(groups, TOKENIZER)
    r.kl, r.values = kl * r.mask, values
    train_rl.weigh(r, train_rl.Rules(**rules), random.Random(shuffle_seed))
    return r


def tokens(*rows, width=8):
    """Action numbers, two tokens each -> (B, T)."""
    return torch.tensor([[v for v in row for _ in range(2)] + [0.0] * (width - 2 * len(row)) for row in rows])


def test_advantages_of_outcome_and_process():
    """Bug: outcome advantages mix questions, process advantages land on other actions, `both` is not their sum, or the KL is added."""
    groups = [[made("++"), made("--")], [made("-+++"), made("+--+")]]
    outcome = tokens([2, 2], [-2, -2], [2, 2, 2, 2], [-2, -2, -2, -2])
    process = tokens([1, 1], [-1, -1], [-1, 1, 0, 0], [1, -1, 0, 0])
    for reward, expected in (("outcome", outcome), ("process", process), ("both", outcome + process)):
        found = weighed(groups, kl=0.5, reward=reward, beta=0.1, plain=True)
        expected = (expected - 0.05) * found.mask
        torch.testing.assert_close(found.advantages, expected)
        normal = weighed(groups, kl=0.5, reward=reward, beta=0.1)
        torch.testing.assert_close(normal.raw, expected)
        size = (expected.square().sum() / found.mask.sum()).sqrt()
        torch.testing.assert_close(normal.advantages, expected / size)
    found = weighed([FOUR], reward="outcome", plain=True)  # method.md, section 6
    torch.testing.assert_close(found.raw, 4 / 3 * torch.tensor([1.0, 1, -1, -1])[:, None] * found.mask)


@pytest.mark.parametrize("reward, rewards", [
    ("outcome", [[0, 1], [0, 0, 0, -1]]), ("process", [[1, 1], [1, -1, -1, 1]]), ("both", [[1, 2], [1, -1, -1, 0]])])
def test_advantages_of_gae(reward, rewards):
    """Bug: the outcome does not go to the last action, gamma and lambda change places, an advantage is not its action's, the KL is added."""
    values = [[0.5, -0.25], [1.0, 0.5, 0.25, -0.5]]
    found = weighed([[made("++"), made("+--+")]], kl=0.5, values=values, reward=reward, gae=True, beta=0.1)
    expected = []
    for own, value in zip(rewards, values):
        following = [*value[1:], 0.0]
        delta = [r + f - v for r, f, v in zip(own, following, value)]
        expected.append([sum(0.95 ** (k - t) * delta[k] for k in range(t, len(own))) for t in range(len(own))])
    assert found.rewards == rewards
    torch.testing.assert_close(found.raw, (tokens(*expected) - 0.05) * found.mask)
    torch.testing.assert_close(found.advantages, ppo.normalise(found.raw, found.mask))
    for row, own, value in zip(found.returns, expected, values, strict=True):
        assert row == pytest.approx([a + v for a, v in zip(own, value)])


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rewards_keep_their_multiset(seed):
    """Bug: the control loses, repeats or invents rewards, leaves them in place, or changes the number of a response's."""
    groups, flat = [FOUR] * 5, lambda rows: sorted(x for row in rows for x in row)
    plain, found = weighed(groups), weighed(groups, shuffle=True, shuffle_seed=seed)
    assert [len(row) for row in found.process] == [len(row) for row in plain.process] and found.process != plain.process
    assert flat(found.process) == flat(plain.process)
    assert sorted(found.outcomes) == sorted(plain.outcomes) and found.outcomes != plain.outcomes
    again = weighed(groups, shuffle=True, shuffle_seed=seed)
    torch.testing.assert_close(found.advantages, again.advantages)
    assert not torch.equal(found.advantages, plain.advantages)


@pytest.mark.parametrize("gae", [False, True])
def test_summary(gae):
    """Bug: padding counts in a mean, groups without spread are those with, values and returns change places, signs are turned round."""
    r = rollout_of([[made("++", tokens=10), made("--", tokens=1)], [made("--"), made("--")], [made("++"), made("++")]], TOKENIZER)
    r.old = -0.5 * r.mask
    r.old[0] *= 3
    r.kl = 0.25 * r.mask
    r.kl[1] *= -4
    r.outcomes = [ppo.outcome_reward(t) for t in r.trajectories]
    r.raw = torch.zeros_like(r.old)
    r.raw[0], r.raw[1] = 0.5 * r.mask[0], -2 * r.mask[1]
    if gae:
        r.returns = [[2.0, -1.0], [0.5, 1.0], [3.0, 0.0], [1.0, -2.0], [0.0, 0.5], [1.0, 1.0]]
        r.values = [[value / 2 for value in row] for row in r.returns]
    found = train_rl.summary(r, beta=0.1)
    assert found.pop("explained_variance", None) == (pytest.approx(0.75) if gae else None)
    expected = {"reward": 0.0, "groups_without_spread": 2 / 3, "kl_to_reference": (36 * 0.25 - 2 * 1.0) / 38,
                "entropy": (20 * 1.5 + 18 * 0.5) / 38, "advantage_abs": (20 * 0.5 + 2 * 2) / 38, "longest": 20, "tokens": 38}
    assert found == pytest.approx(expected) and train_rl.summary(r, beta=0)["kl_to_reference"] is None


# ---- 7. update --------------------------------------------------------------------------------

@pytest.mark.parametrize("bf16", [False, True])
def test_the_ratio_to_the_trainers_own_log_probs_is_exactly_1(bf16, monkeypatch):
    """Bug: log-probs come from different functions, dtypes, modes or temperatures."""
    monkeypatch.setattr(rollout, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    signs = Small(0.1, settings()).update()
    assert signs["ratio_min"] == signs["ratio_max"] == 1 and signs["mismatch"] == signs["approx_kl"] == 0
    assert signs["grad_norm"] > 0


def test_vital_signs_by_hand(fp32):
    """Bug: the ratio is not that to the stored log-probs, --clip is lost, signs are means over other tokens; mismatch is taken after updates."""
    s = Small(0.0, settings(clip=0.3, epochs=2, minibatches=2), advantages=[1.0, 1, 1, 1, -1, -1, 0, 0])
    r = s.rollout
    r.old[:2] -= 0.4 * r.mask[:2]  # the policy likes them more than the sampler did
    r.old[4] += 0.7 * r.mask[4]
    signs, n = s.update(), [r.length(i) for i in range(8)]
    learned = sum(n[:6])  # responses without an advantage are left out
    k3 = lambda x: math.exp(x) - 1 - x
    assert signs["ratio_max"] == pytest.approx(math.exp(0.4), rel=1e-3) and signs["ratio_min"] == pytest.approx(math.exp(-0.7), rel=1e-3)
    assert signs["clipped_high"] == pytest.approx(sum(n[:2]) / learned) and signs["clipped_low"] == pytest.approx(n[4] / learned)
    assert signs["approx_kl"] == pytest.approx((sum(n[:2]) * k3(0.4) + n[4] * k3(-0.7)) / learned, rel=1e-3)
    first = [i for i in random.Random(1).sample(range(8), 8)[:4] if i < 6]
    moved = sum(n[i] * (0.4 * (i < 2) + 0.7 * (i == 4)) for i in first)
    assert signs["mismatch"] == pytest.approx(moved / sum(n[i] for i in first), rel=1e-3) and moved


def test_learning_rate_0_moves_nothing(fp32):
    """Bug: with several minibatches and epochs, something other than the optimizer changes the policy, or pairs the wrong rows."""
    s = Small(0.0, settings(minibatches=3, epochs=2, micro_tokens=3 * scoring.ROUND))
    signs = s.update()
    assert signs["approx_kl"] == pytest.approx(0, abs=1e-6) and signs["clipped_low"] == signs["clipped_high"] == 0
    assert signs["ratio_min"] == pytest.approx(1, abs=1e-4) and signs["ratio_max"] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(s.log_probs(), s.rollout.old)


def test_every_response_is_used_once_per_epoch(fp32, monkeypatch):
    """Bug: with several minibatches, indices within a part are taken for indices of the rollout; all epochs have one order."""
    s, used, steps, forward = Small(0.0, settings(minibatches=3, epochs=4, micro_tokens=3 * scoring.ROUND)), [], [], train_rl.forward
    monkeypatch.setattr(train_rl, "forward", lambda model, record, rows: used.extend(rows) or forward(model, record, rows))
    monkeypatch.setattr(s.optimizer, "step", lambda: steps.append(len(used)))
    s.update()
    assert steps == [8 * epoch + n for epoch in range(4) for n in (3, 6, 8)]
    epochs = [used[i: i + 8] for i in range(0, 32, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({frozenset(epoch[:3]) for epoch in epochs}) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_an_update_moves_the_log_probs_as_the_advantages_say(A, seed, fp32):
    """Bug: the sign, or advantages that meet the tokens of other responses: half of the responses have A, the others 0."""
    chosen = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0])
    s = Small(0.02, settings(micro_tokens=3 * scoring.ROUND), advantages=A * chosen, seed=seed)
    s.update()
    change = (s.log_probs() - s.rollout.old).sum(1)
    assert (A * change[chosen > 0]).min() > 0


def test_responses_without_advantage_cost_nothing_and_change_nothing(fp32, monkeypatch):
    """Bug: leaving them out changes the gradient's denominator, or a rollout in which all are left out fails."""
    gradient, seen, forward = {}, [], train_rl.forward
    monkeypatch.setattr(train_rl, "forward", lambda model, record, rows: seen.extend(rows) or forward(model, record, rows))
    for tiny in (0.0, 1e-30):  # 1e-30 is not left out and has no gradient to speak of
        seen.clear()
        gradient[tiny] = Small(0.1, settings(), advantages=[1.0, -1, 1, -1, tiny, tiny, tiny, tiny]).update()["grad_norm"]
        assert len(seen) == (4 if tiny == 0 else 8)
    assert gradient[0.0] == pytest.approx(gradient[1e-30], rel=1e-5)
    signs = Small(0.1, settings(), advantages=0.0).update()
    assert signs["grad_norm"] == 0 and signs["mismatch"] is None and signs["ratio_max"] == 1


@pytest.mark.parametrize("value", [False, True])
def test_gradient_does_not_depend_on_the_micro_batch(value, fp32):
    """Bug: losses are means of means: responses in small or short micro-batches weigh more; gradients are not summed."""
    after = []
    for micro_tokens in (1, 3 * scoring.ROUND, 8192):
        s = Small(0.1, settings(micro_tokens=micro_tokens), torch.linspace(-1, 2, 8), head() if value else None)
        signs = s.update()
        after.append([signs["grad_norm"], signs.get("value_loss", 0), *s.model.parameters(), *(s.value_head.parameters() if value else ())])
    for other in after[1:]:
        assert other[:2] == pytest.approx(after[0][:2], rel=1e-4)
        for found, expected in zip(other[2:], after[0][2:], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [False, True])
def test_workers_change_nothing(value, fp32, monkeypatch):
    """Bug: a worker's scores, gradients or vital signs are lost, land elsewhere or leave out the value head."""
    after, signs = [], []
    for count in (1, 3):
        for module in (scoring, rollout):
            monkeypatch.setattr(module, "workers", lambda model: count)
        s = Small(0.1, settings(micro_tokens=3 * scoring.ROUND, minibatches=2), torch.linspace(-1, 2, 8), head() if value else None)
        signs.append(s.update())
        values = [torch.tensor(row) for row in s.values()] if value else []
        after.append([s.rollout.old, s.log_probs(), *values, *s.model.parameters(), *(s.value_head.parameters() if value else ())])
    for one, several in zip(*after, strict=True):
        torch.testing.assert_close(several, one, atol=1e-5, rtol=1e-4)
    assert signs[1] == pytest.approx(signs[0], abs=1e-5)


def test_value_head_learns_the_returns_and_not_the_policy(fp32):
    """Bug: values are compared with the returns of other actions, the loss pushes away from them, or it changes the policy, too."""
    s = Small(0.02, settings(epochs=8), advantages=0.0, value_head=head())
    policy = [parameter.detach().clone() for parameter in s.model.parameters()]
    generator = random.Random(0)
    s.rollout.returns = [[value + generator.uniform(-0.1, 0.3) for value in row] for row in s.rollout.values]
    gap = lambda values: sum((v - r) ** 2 for rows in zip(values, s.rollout.returns) for v, r in zip(*rows))
    before = gap(s.rollout.values)
    assert s.update()["value_loss"] > 0
    assert gap(s.values()) < before
    assert all(torch.equal(now, then) for now, then in zip(s.model.parameters(), policy))


def test_one_step_of_the_value_head_by_hand(fp32):
    """Bug: the weight of the value loss is lost, it is a sum, or a mean over tokens: all returns are 0.3 above the values."""
    s = Small(0.5, settings(), advantages=0.0, value_head=head())
    bias = s.value_head.bias.item()
    signs = s.update()
    # the mean over actions of d/db 0.5 * (v - r)^2 is -0.3; weight 0.5, learning rate 0.5
    assert s.value_head.bias.item() - bias == pytest.approx(0.5 * 0.5 * 0.3, rel=1e-3)
    assert signs["value_loss"] == pytest.approx(0.5 * 0.3 ** 2, rel=1e-3)


# ---- whole runs on made-up responses ----------------------------------------------------------

def small_run(policy, out, *flags):
    train_rl.main(["--model", str(policy), "--out", str(out), "--prompts", "2", "--samples", "2", "--count", "6", "--max-new-tokens", "6",
                   "--test-count", "2", "--device", "cpu", *map(str, flags)])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Stub:
    """Stands in for sampling, evaluation and update, and notes what they are given."""

    def __init__(self, monkeypatch, groups, update=True):
        self.asked, self.seen, self.evaluated = [], [], []
        self.groups = groups
        monkeypatch.setattr(train_rl, "respond", self.respond)
        monkeypatch.setattr(train_rl, "evaluate", self.evaluate)
        if update:
            monkeypatch.setattr(train_rl, "update", self.update)

    def respond(self, model, tokenizer, problems, samples, longest, temperature, seed, batch_size):
        self.asked.append(SimpleNamespace(problems=problems, samples=samples, temperature=temperature, seed=seed))
        return self.groups

    def evaluate(self, model, *rest):
        self.evaluated.append(model.model["norm"].weight.detach().clone())
        return [made("++")]

    def update(self, model, value_head, optimizer, record, settings, rng, where):
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        head = [p.detach().clone() for p in value_head.parameters()] if value_head else None
        self.seen.append(SimpleNamespace(record=record, settings=settings, order=rng.sample(range(50), 50), groups=groups, head=head))
        with torch.no_grad():
            model.model["norm"].weight += 1
        return {"approx_kl": 0.0}


def test_flags_reach_what_they_are_for(tmp_path, monkeypatch, capsys):
    """Bug: a flag is parsed and forgotten, steps or seeds share their random numbers, the head has the policy's rate, weights decay."""
    save_policy(tmp_path / "policy")
    stub = Stub(monkeypatch, [[made("++"), made("--")], [made("-+++"), made("--")]])
    flags = ["--steps", 10, "--temperature", 0.7, "--clip", 0.1, "--epochs", 3, "--minibatches", 5, "--micro-tokens", 999, "--lr", 0.5,
             "--advantage", "gae", "--seed"]
    lines = small_run(tmp_path / "policy", tmp_path / "out", *flags, 3)
    size = Tokenizer.load(tmp_path / "policy").vocab_size
    assert {step.settings for step in stub.seen} == {PPO(size, temperature=0.7, epochs=3, minibatches=5, clip=0.1, micro_tokens=999)}
    assert {(a.samples, a.temperature, len(a.problems)) for a in stub.asked} == {(2, 0.7, 2)}
    seeds, orders = [a.seed for a in stub.asked], [step.order for step in stub.seen]
    assert len(set(seeds)) == 10 and len(set(map(tuple, orders))) == 10
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5 * 5 / 10, 0.5 * 4 / 10, 0.5 * 3 / 10, 0.5 * 2 / 10, 0.5 / 10]
    assert [line["lr"] for line in lines] == pytest.approx([min(rate, 0.5 * (10 - i) / 10) for i, rate in enumerate(rates)])
    for step, line in zip(stub.seen, lines):
        policy, value = step.groups
        assert policy["lr"] == pytest.approx(line["lr"]) and value["lr"] == 3e-3
        assert all(group["weight_decay"] == 0 and group["betas"] == (0.9, 0.95) for group in step.groups)
        assert all(not p.any() for p in step.head)  # nothing has moved it, and it begins at 0
        assert step.record.values == [[0] * len(t.actions) for t in step.record.trajectories] and step.record.returns
    small_run(tmp_path / "policy", tmp_path / "other", *flags, 4)
    assert not {a.seed for a in stub.asked[10:]} & set(seeds) and stub.seen[10].order != orders[0]


def test_what_is_evaluated_is_what_is_saved_and_logged(tmp_path, monkeypatch, capsys):
    """Bug: the figures are those of other weights than the saved ones, or the log's evaluation is."""
    save_policy(tmp_path / "policy")
    stub = Stub(monkeypatch, [[made("++"), made("--")]] * 2)
    lines = small_run(tmp_path / "policy", tmp_path / "out", "--steps", 3, "--eval-every", 2)
    start, end = (load_model(tmp_path / name).model["norm"].weight for name in ("policy", "out"))
    for found, moved in zip(stub.evaluated, (0, 2, 3), strict=True):  # before, after step 2, at the end
        torch.testing.assert_close(found, start + moved)
    torch.testing.assert_close(end, start + 3)
    assert [("eval" in line) for line in lines] == [False, True, False]


def test_rules_reach_the_advantages(tmp_path, monkeypatch, capsys):
    """Bug: --reward, --beta, --plain or --shuffle-rewards has no effect, or every step shuffles alike."""
    save_policy(tmp_path / "policy")
    groups = [[made("++"), made("--")], [made("-+++"), made("+--+")]]
    stub = Stub(monkeypatch, groups)
    for reward in ("outcome", "process", "both"):
        for plain in ([], ["--plain"]):
            small_run(tmp_path / "policy", tmp_path / "out", "--steps", 1, "--reward", reward, "--overwrite", *plain)
            found, expected = stub.seen[-1].record, weighed(groups, reward=reward, plain=bool(plain))
            torch.testing.assert_close(found.advantages, expected.advantages)
    small_run(tmp_path / "policy", tmp_path / "out", "--steps", 6, "--shuffle-rewards", "--overwrite")
    assert len({tuple(step.record.outcomes) for step in stub.seen[-6:]}) > 1
    small_run(tmp_path / "policy", tmp_path / "out", "--steps", 2, "--beta", 0.25, "--plain", "--overwrite")
    for record in (step.record for step in stub.seen[-2:]):
        plain = weighed(groups, plain=True)
        reference = log_probs(load_model(tmp_path / "policy"), record, stub.seen[-1].settings)
        torch.testing.assert_close(record.kl, record.old - reference, atol=1e-5, rtol=0)  # in step 2 the policy has moved
        torch.testing.assert_close(record.advantages, plain.advantages - 0.25 * record.kl)


def test_offline_learns_from_the_pool(tmp_path, monkeypatch, capsys):
    """Bug: the offline ratio is that to the policy of each step; the KL is forgotten, or is not the policy's; advantages are others'."""
    folder = save_policy(tmp_path / "policy")
    pool = [[(made(signs), [1.0 + i, -0.5, 0.25, 2.0][: len(signs)]) for i, signs in enumerate(("++", "-+++"))] for _ in range(2)]
    monkeypatch.setattr(train_rl, "offline_pool", lambda model, tokenizer, problems, args: pool if len(problems) == 5 else None)
    monkeypatch.setattr(train_rl, "respond", None)
    monkeypatch.setattr(train_rl, "evaluate", lambda *rest: [made("++")])
    real, kls = train_rl.update, []

    def update(model, value_head, optimizer, record, *rest):
        now, start = (log_probs(m, record, rest[0]) for m in (model, load_model(folder)))
        torch.testing.assert_close(record.old, -0.25 * record.mask)
        torch.testing.assert_close(record.kl, now - start)
        numbers = [[1.0, -0.5] if len(t.actions) == 2 else [2.0, -0.5, 0.25, 2.0] for t in record.trajectories]
        torch.testing.assert_close(record.raw, tokens(*numbers) - 0.1 * record.kl)
        kls.append(record.kl.abs().max().item())
        return real(model, value_head, optimizer, record, *rest)
    monkeypatch.setattr(train_rl, "update", update)
    small_run(folder, tmp_path / "out", "--steps", 2, "--lr", 0.05, "--offline", 5, "--beta", 0.1)
    assert kls[0] == 0 and kls[1] > 0.01


def test_offline_without_questions_is_refused(tmp_path, monkeypatch):
    """Bug: where no question is kept, the run goes on online."""
    monkeypatch.setattr(train_rl, "offline_pool", lambda *rest: [])
    with pytest.raises(InputError, match="only 0 training questions"):
        small_run(save_policy(tmp_path / "policy"), tmp_path / "out", "--steps", 1, "--offline", 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags, named", [(["--beta", "-1"], "--beta"), (["--offline", "2", "--advantage", "gae"], "--offline"),
                                          (["--offline", "2", "--shuffle-rewards"], "--offline")])
def test_flags_that_make_no_sense_are_refused(flags, named):
    """Bug: a flag is accepted and has no effect, or the opposite one."""
    with pytest.raises(InputError, match=f"^{named}"):
        train_rl.flags(flags)


@pytest.mark.parametrize("flags", [[], ["--advantage", "gae", "--beta", "0.1", "--reward", "outcome"], ["--plain", "--temperature", "0.7"]])
def test_whole_run_with_learning_rate_0(flags, tmp_path, capsys, fp32):
    """Bug: the parts do not fit together; a run that must move nothing saves other weights; the log lacks its vital signs."""
    save_policy(tmp_path / "policy", vocab_padding=5)
    lines = small_run(tmp_path / "policy", tmp_path / "out", "--steps", 2, "--lr", 0, *flags)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["approx_kl"] == pytest.approx(0, abs=1e-6) and line["clipped_low"] == line["clipped_high"] == 0
        assert line["kl_to_reference"] == (pytest.approx(0, abs=1e-5) if "--beta" in flags else None)
        assert line["reward"] == -1 and line["truncated"] > 0.5
        assert {"step", *line} - {"step", "eval"} <= definitions().keys()
        assert {"entropy", "grad_norm", "groups_without_spread", "tokens", "first_accuracy", "seconds_rollout", "advantage_abs", "lr",
                "mismatch", "longest", "ratio_max"} <= line.keys()
        assert ("explained_variance" in line) == ("value_loss" in line) == ("gae" in flags)
    before, after = (dict(load_model(tmp_path / name).named_parameters()) for name in ("policy", "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    start, end = json.loads((tmp_path / "out" / "evaluation.json").read_text())["columns"].values()
    assert start == end and start["count"] == 2  # evaluation is repeatable


def test_the_sampler_agrees_with_the_trainer(tmp_path, capsys, fp32):
    """Bug: old log-probs are those of other tokens, another temperature or another policy than the one that wrote the responses."""
    save_policy(tmp_path / "policy", vocab_padding=5)
    lines = small_run(tmp_path / "policy", tmp_path / "out", "--steps", 3, "--lr", 0.01, "--temperature", 0.7, "--beta", 0.1)
    assert all(line["mismatch"] < 1e-4 and line["entropy"] > 0 for line in lines)
    assert lines[0]["kl_to_reference"] == pytest.approx(0, abs=1e-5) and abs(lines[2]["kl_to_reference"]) > 1e-4
    assert metrics(FOUR).keys() <= lines[0].keys()

"""The arithmetic of stage 2: rewards -> advantages -> losses. Tensors and lists in, tensors and lists out; no model.

What differs from the paper's released code: the sign of the outcome loss (theirs pushes good responses down), a token-level
ratio (theirs is length-normalised per action), phrases and the end token belong to actions and are trained, log-probs are
taken at the sampling temperature, and a verification without a verdict counts as wrong.

Shapes: B responses, T tokens; `mask` (B, T) is 1 on response tokens. Signs in the tests are worked by hand.
"""
import torch

from nanoverify.trajectory import Trajectory


# ---- rewards -------------------------------------------------------------------------------------------------------

def outcome_reward(trajectory: Trajectory) -> float:
    """+1 if the last solve is right, else -1; a response cut by the token limit gets -1."""
    return 1.0 if trajectory.finished and trajectory.solves[-1].right else -1.0


def action_rewards(trajectory: Trajectory, punish_cut: bool = True, may_give_up: bool = True,
                   may_repeat: bool = True) -> list[float]:
    """+1 or -1 for each action: a right solve; a verdict that agrees with the rule (none: -1).

    An action out of turn gets -1 whatever it says: a verify after a verify, a solve after a solve or after the verdict
    "correct"; and, unless it `may_give_up`, a verify that ends the response with "incorrect" (the end token is part of it).
    Without this, RL soon learns to verify the same wrong answer again and again, +1 each time, or to give up, instead of
    trying another one.
    Unless it `may_repeat`: behind a wrong solve that repeats an answer called incorrect before, nothing gets a reward: the list ends there. What
    follows is mostly a copy of what was said, and rewarding right copies strengthens copying, so that repeats grow.
    The last action of a response cut by the token limit gets -1 or, without `punish_cut`, no reward at all: the list is
    one shorter. It was cut for its place, not for what it says, and where many are cut, -1 unlearns good checks.
    """
    rewards, rejected = [], set()
    for i, action in enumerate(trajectory.actions):
        before = trajectory.actions[i - 1] if i else None
        if action.kind == "solve":
            if not may_repeat and action.answer in rejected and not action.right:
                return [*rewards, -1.0]
            good = action.right and (before is None or before.kind == "verify" and before.verdict is not True)
        else:
            gives_up = not may_give_up and action.verdict is False and i == len(trajectory.actions) - 1
            good = action.verdict is action.right and before.kind == "solve" and not gives_up
            if before.kind == "solve" and action.verdict is False:
                rejected.add(before.answer)
        rewards.append(1.0 if good else -1.0)
    if not trajectory.finished:
        rewards[-1:] = [-1.0] if punish_cut else []
    return rewards


# ---- advantages ----------------------------------------------------------------------------------------------------

def leave_one_out(rewards):
    """Each reward minus the mean of the OTHER samples of its prompt (RLOO, Ahmadian et al. 2024). (P, M) -> (P, M)."""
    M = rewards.shape[1]
    rewards = rewards - rewards[:, :1]  # so that equal rewards give exactly 0, whatever they are: `centre_by_context` asks for that
    return (rewards - rewards.mean(1, keepdim=True)) * M / (M - 1)


def contexts(rewards: list[float]) -> list[tuple[float, ...]]:
    """The reward context of each action: the rewards of the actions before it."""
    return [tuple(rewards[:i]) for i in range(len(rewards))]


def context_advantages(responses: list[list[float]], totals: dict, min_count: int, decay: float = 1.0) -> list[list[float]]:
    """Action reward minus the mean reward of all actions with the same context (method of the paper, section 3.3).

    responses: action rewards of each response of the pool. totals: context -> [sum, count] over earlier pools, updated here.
    Earlier pools weigh `decay` for each pool since: 1 is a running mean over all, 0 is this pool alone. A context seen
    fewer than `min_count` times (weighted) has baseline 0.
    """
    for entry in totals.values():
        entry[:] = entry[0] * decay, entry[1] * decay
    for rewards in responses:
        for context, reward in zip(contexts(rewards), rewards):
            entry = totals.setdefault(context, [0.0, 0])
            entry[0] += reward
            entry[1] += 1
    baseline = lambda context: totals[context][0] / totals[context][1] if totals[context][1] >= min_count else 0.0
    return [[reward - baseline(context) for context, reward in zip(contexts(rewards), rewards)] for rewards in responses]


def centre_by_context(values: list[float], responses: list[list[float]], lengths: list[int]) -> list[list[float]]:
    """A value of each response, at each of its actions, minus its mean over all actions of the pool with the same context.

    responses: action rewards; lengths: the number of actions, which a cut response has one more of than rewards. A context
    is known before its action. Without the mean all late tokens get negative outcome advantages, since only failing responses
    are long; on tokens that are nearly certain, Adam turns that into noise, and good checks are unlearned.
    A value of exactly 0 says that all responses to the question got the same reward: they teach nothing, stay 0 and count nowhere.
    Since that depends on the response itself, too, the mean is a baseline up to a factor: behind failed attempts easy questions
    count less and hard ones more (by factors of 0.57 to 1.43 at most in two rollouts looked at); no sign changes.
    """
    keys = [contexts([*rewards, 0.0])[:length] for rewards, length in zip(responses, lengths)]
    groups = {}
    for value, row in zip(values, keys):
        for context in row if value else ():
            groups.setdefault(context, []).append(value)
    means = {context: sum(found) / len(found) for context, found in groups.items()}
    return [[value - means[context] if value else 0.0 for context in row] for value, row in zip(values, keys)]


def binned_advantages(values: list[list[float]], accuracies: list[float]) -> list[list[float]]:
    """Each action's value minus the mean over all actions at the same position, of responses to questions of like accuracy (bins
    of 0.1): the baseline of the paper's offline variant. values: a row for each response; accuracies: of its question, 0 to 1."""
    groups = {}
    keys = [[(int(10 * accuracy + 1e-9), i) for i in range(len(row))] for row, accuracy in zip(values, accuracies)]
    for row, found in zip(values, keys):
        for value, key in zip(row, found):
            groups.setdefault(key, []).append(value)
    return [[value - sum(groups[key]) / len(groups[key]) for value, key in zip(row, found)] for row, found in zip(values, keys)]


def spread(per_action: list[list[float]], trajectories: list[Trajectory], width: int):
    """Give each token its action's number. -> (B, T), 0 behind the response."""
    out = torch.zeros(len(trajectories), width)
    for row, values, trajectory in zip(out, per_action, trajectories):
        for value, action in zip(values, trajectory.actions):
            row[action.start: action.stop] = value
    return out


def at_action_ends(per_action: list[list[float]], trajectories: list[Trajectory], width: int):
    """Put each action's number on its last token, for GAE. -> (B, T). An action without tokens gives it to the token before."""
    out = torch.zeros(len(trajectories), width)
    for row, values, trajectory in zip(out, per_action, trajectories):
        for value, action in zip(values, trajectory.actions):
            row[max(action.stop - 1, 0)] += value
    return out


def gae(rewards, values, mask, gamma: float, lam: float):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16). All (B, T) -> advantages and returns, (B, T).

    The value behind the last token is 0: a finished response is over, and a cut one has been punished for it.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros(rewards.shape[0])
    following = torch.zeros(rewards.shape[0])  # value of the next token
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t] > 0, delta + gamma * lam * running, torch.zeros(()))
        advantages[:, t] = running
        following = torch.where(mask[:, t] > 0, values[:, t], torch.zeros(()))
    return advantages, (advantages + values) * mask


def whiten(x, mask):
    """Zero mean and unit variance over the masked tokens; 0 elsewhere, whatever stands there."""
    kept = x[mask > 0]
    return torch.where(mask > 0, (x - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt(), 0.0)


# ---- losses: sums over tokens, to be divided by the tokens of the whole optimizer step --------------------------------

def mean_by_action(x, lengths: list[int]):
    """Each action's mean at each of its tokens: log-ratios so averaged make the released code's ratio, one for each action and
    independent of its length. x (N,); lengths: the actions' tokens, N in all. -> (N,)."""
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(x.device)  # (N,): which action
    sums = torch.zeros(len(lengths), device=x.device).index_add(0, of, x)
    return (sums / torch.tensor(lengths, device=x.device).clamp(min=1))[of]


def ppo_loss(new, old, advantages, clip_low: float, clip_high: float, dual_clip: float = 3.0, lengths: list[int] | None = None):
    """-sum min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(new - old) (Schulman et al. 2017, eq. 7). All (N,).

    With the actions' `lengths`, r is one for each action (`mean_by_action`).
    Where A < 0, a large r is unbounded; there the term is at least dual_clip * A (Ye et al. 2020, eq. 5).
    Also the vital signs, as sums: approx_kl = r - 1 - log r; tokens clipped below and above.
    """
    log_ratio = (new - old).clamp(-20, 20)
    if lengths:
        log_ratio = mean_by_action(log_ratio, lengths)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    term = torch.min(ratio * advantages, clipped * advantages)
    loss = -torch.where(advantages < 0, torch.max(term, dual_clip * advantages), term).sum()
    with torch.no_grad():
        signs = {"approx_kl": (ratio - 1 - log_ratio).sum().item(),
                 "clipped_low": ((ratio < 1 - clip_low) & (advantages < 0)).sum().item(),
                 "clipped_high": ((ratio > 1 + clip_high) & (advantages > 0)).sum().item(),
                 "ratio_min": ratio.min().item(), "ratio_max": ratio.max().item()}
    return loss, signs


def kl_loss(new, reference, estimator: str):
    """Sum of estimates of KL(new || reference), never negative, from tokens that the policy `new` sampled: q = exp(reference - new), and

    k2   (log q)^2 / 2: biased, but its gradient is that of KL(new || reference), as is that of -(new - reference) in the reward
    k3   q - 1 - log q: unbiased, but its gradient is that of KL(reference || new)
    (Schulman 2020, "Approximating KL divergence"). Log-probs, both (N,)."""
    log_q = (reference - new).clamp(-20, 20)
    return (log_q.square() / 2 if estimator == "k2" else log_q.exp() - 1 - log_q).sum()


def value_loss(new, old, returns, clip: float):
    """Half the squared error, the larger of plain and clipped about the old values (Schulman's baselines). All (N,)."""
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns).pow(2), (clipped - returns).pow(2)).sum()


def explained_variance(values, returns, mask) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; 0 where returns do not vary."""
    keep = mask > 0
    spread_of = returns[keep].var()
    return float(1 - (returns - values)[keep].var() / spread_of) if spread_of > 0 else 0.0

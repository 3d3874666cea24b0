"""The arithmetic of stage 2: rewards -> advantages -> losses. Numbers in, numbers out; no model.

Different from the paper's released code:
  * the sign of the outcome loss (theirs pushes good responses down)
  * a ratio for each token (theirs: one for each action, length-normalised)
  * a baseline over this rollout, as the paper's text has it (theirs: a running mean over all)
  * phrases and the end token belong to actions and are trained
  * a verification without a verdict counts as wrong, and so does a check of a check

Numbers of actions are lists, one row for each response. Numbers of tokens are tensors (B, T):
B responses, T tokens in the longest; `mask` (B, T) is 1 on response tokens.
"""
import torch

from nanoverify.trajectory import Trajectory

Rows = list[list[float]]  # a number for each action of each response


# ---- rewards -----------------------------------------------------------------------------------

def outcome_reward(trajectory: Trajectory) -> float:
    """+1 if the last solve is right, else -1; a response cut by the token limit gets -1."""
    return 1.0 if trajectory.finished and trajectory.solves[-1].right else -1.0


def action_rewards(trajectory: Trajectory) -> list[float]:
    """+1 or -1 for each action: a right solve; a verdict that agrees with the rule (none: -1).

    An action of the same kind as the one before it gets -1. Else a second check is an easy +1
    where another solve is due. So does the last action of a response cut by the token limit.
    """
    rewards, before = [], None
    for action in trajectory.actions:
        good = action.right if action.kind == "solve" else action.verdict is action.right
        rewards.append(1.0 if good and action.kind != before else -1.0)
        before = action.kind
    if not trajectory.finished:
        rewards[-1] = -1.0
    return rewards


def combine(outcomes: list[float], process: Rows, reward: str, at_end: bool = False) -> Rows:
    """Which numbers count for each action: the response's ("outcome"), its own ("process"), both.

    The numbers are rewards or advantages. at_end: only the last action gets the response's number,
    for GAE, which hands it on to the actions before.
    """
    rows = []
    for outcome, own in zip(outcomes, process):
        shared = [outcome * (not at_end or i == len(own) - 1) for i in range(len(own))]
        rows.append({"outcome": shared, "process": list(own),
                     "both": [a + b for a, b in zip(shared, own)]}[reward])
    return rows


# ---- advantages --------------------------------------------------------------------------------

def leave_one_out(rewards):
    """Each reward minus the mean of the OTHER samples of its question. (P, M) -> (P, M).

    RLOO, Ahmadian et al. 2024.
    """
    M = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * M / (M - 1)


def contexts(rewards: list[float]) -> list[tuple[float, ...]]:
    """The reward context of each action: the rewards of the actions before it."""
    return [tuple(rewards[:i]) for i in range(len(rewards))]


def centred(values: Rows, keys: list[list]) -> Rows:
    """Each number minus the mean of all numbers with the same key.

    With `contexts` as keys it is the process advantage of the paper's section 3.3. A number is in
    its own mean: seen n times, it shrinks by the factor 1 - 1/n; with a key of its own, to 0.
    """
    groups = {}
    for row, its_keys in zip(values, keys):
        for value, key in zip(row, its_keys):
            groups.setdefault(key, []).append(value)
    means = {key: sum(group) / len(group) for key, group in groups.items()}
    return [[value - means[key] for value, key in zip(row, its_keys)]
            for row, its_keys in zip(values, keys)]


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimation over the actions of ONE response.

    Schulman et al. 2016, eq. 16. The value after the last action is 0: a finished response is over,
    and a cut one has been punished for it.
    """
    advantages, advantage, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values)):
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * advantage
        advantages.append(advantage)
        next_value = value
    return advantages[::-1]


def spread(per_action: Rows, trajectories: list[Trajectory], width: int):
    """Give each token its action's number. -> (B, T), 0 after the response."""
    out = torch.zeros(len(trajectories), width)
    for row, values, trajectory in zip(out, per_action, trajectories):
        for value, action in zip(values, trajectory.actions):
            row[action.start: action.stop] = value
    return out


def normalise(x, mask):
    """Divide by the root mean square over the masked tokens; 0 elsewhere. (B, T) -> (B, T).

    Nothing is subtracted, so no sign changes, and what is 0 stays 0.
    """
    size = x[mask > 0].square().mean().sqrt()
    return torch.where(mask > 0, x, 0.0) / (size if size > 0 else 1.0)


# ---- losses: sums, to be divided by the tokens or actions of the whole optimizer step ----------

def ppo_loss(new, old, advantages, clip: float):
    """-sum min(r A, clip(r, 1 - clip, 1 + clip) A), r = exp(new - old). All (N,).

    Schulman et al. 2017, eq. 7. old: the log-probs with which the sampler drew the tokens, so r is
    also the weight of importance sampling that corrects for the sampler's rounding.
    Also the vital signs, as sums over tokens: tokens clipped below and above; mismatch, |log r|;
    approx_kl, r - 1 - log r (Schulman 2020, k3). In approx_kl log r is clamped to [-1, 1], or one
    rare token would be all of it; the loss knows no such clamp.
    """
    log_ratio = (new - old).clamp(-20, 20)  # exp stays finite
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).sum()
    with torch.no_grad():
        near = log_ratio.clamp(-1, 1)
        signs = {"approx_kl": (near.exp() - 1 - near).sum(),
                 "mismatch": log_ratio.abs().sum(),
                 "clipped_low": ((ratio < 1 - clip) & (advantages < 0)).sum(),
                 "clipped_high": ((ratio > 1 + clip) & (advantages > 0)).sum(),
                 "ratio_min": ratio.min(), "ratio_max": ratio.max()}
    return loss, signs


def value_loss(new, old, returns, clip: float):
    """Half the squared error, the larger of plain and clipped about the old values. All (N,).

    As in OpenAI's baselines.
    """
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns).pow(2), (clipped - returns).pow(2)).sum()


def explained_variance(values, returns) -> float:
    """1 - Var(returns - values) / Var(returns), both (N,); 0 where returns do not vary."""
    total = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / total) if total > 0 else 0.0

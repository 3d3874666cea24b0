"""Variants of stage 2 that only the study needs: other functions for the calls of `train_rl.main`.

    python -m nanoverify.study.arms shuffled --out out/shuffled

What follows the name are flags of train_rl.py.

    filter      without questions that are always or never solved in 4 tries
    offline     2,000 questions are sampled once, and all steps learn from these responses;
                the paper has --beta 0.1 with it
    shuffled    control: responses get each other's rewards; nothing may rise
"""
import random
import sys
from dataclasses import replace

import train_rl
from nanoverify import ppo
from nanoverify.evaluate import respond, share
from nanoverify.rollout import Rollout, rollout_of
from nanoverify.sampler import Sampling
from nanoverify.support.files import InputError, run
from nanoverify.trajectory import Trajectory, in_turn

TRIES, TRIED = 4, 3000  # answers to each of so many questions, for `filter`
POOL = 2000  # questions of `offline`
OFFLINE_ACCURACY = 0.1, 0.7  # those of which such a share of the samples is right


def solved(trajectory: Trajectory) -> bool:
    return ppo.outcome_reward(trajectory) > 0


def sometimes_solved(model, tokenizer, problems, sampling: Sampling) -> list:
    """The questions that the model neither always nor never solves."""
    tries = replace(sampling, samples=TRIES)
    rows = respond(model, tokenizer, problems[:TRIED], tries, "filter")
    kept = [problem for problem, row in zip(problems, rows) if 0 < share(map(solved, row)) < 1]
    print(f"{len(kept)} of {len(rows)} questions are sometimes solved and sometimes not")
    return kept


def offline_pool(model, tokenizer, problems, sampling: Sampling,
                 reward: str) -> list[list[tuple[Trajectory, list[float]]]]:
    """(response, advantage of each action), a row for each question: the paper's offline variant.

    Kept are questions of which 10 to 70% of the samples are right, and responses whose actions are
    in turn. The baseline of an action is the mean at the same position over questions of like
    accuracy, in bins of 0.1.
    """
    rows = respond(model, tokenizer, problems[:POOL], sampling, "offline")
    low, high = OFFLINE_ACCURACY
    kept, bins = [], []
    for row in rows:
        right = sum(map(solved, row))
        usable = [t for t in row if in_turn(t)]
        if low <= right / len(row) <= high and usable:
            kept.append(usable)
            bins += [10 * right // len(row)] * len(usable)
    pool = [t for row in kept for t in row]
    values = ppo.combine([ppo.outcome_reward(t) for t in pool],
                         [ppo.action_rewards(t) for t in pool], reward)
    keys = [[(bin, i) for i in range(len(row))] for bin, row in zip(bins, values)]
    advantages = iter(ppo.centred(values, keys))
    print(f"{len(kept)} of {len(rows)} questions and {len(pool)} of {len(rows) * sampling.samples} "
          "responses are kept")
    return [[(t, next(advantages)) for t in row] for row in kept]


def from_pool(model, tokenizer, asked, sampling: Sampling) -> Rollout:
    """The rollout of a step, from rows of `offline_pool`."""
    rollout = rollout_of([[t for t, _ in row] for row in asked], tokenizer)
    rollout.known = [advantages for row in asked for _, advantages in row]
    return rollout


def shuffled(rollout: Rollout):
    """Mark the responses, then permute outcomes among them and process rewards among the actions.

    The order depends on the rollout alone, so a resumed run draws the same.
    """
    train_rl.mark(rollout)
    rng = random.Random(repr([t.ids for t in rollout.trajectories]))
    rollout.outcomes = rng.sample(rollout.outcomes, len(rollout.outcomes))
    pool = [reward for row in rollout.process for reward in row]
    rng.shuffle(pool)
    rollout.process = [[pool.pop() for _ in row] for row in rollout.process]


def offline(argv):
    args = train_rl.flags(argv)
    if args.advantage == "gae":
        raise InputError("--advantage gae: not offline, where advantages are known beforehand")

    def choose_offline(model, tokenizer, problems, sampling):
        return offline_pool(model, tokenizer, problems, sampling, args.reward)
    train_rl.main(argv, choose=choose_offline, collect=from_pool)


ARMS = {"filter": lambda argv: train_rl.main(argv, choose=sometimes_solved),
        "offline": offline,
        "shuffled": lambda argv: train_rl.main(argv, mark=shuffled)}


def main(argv=None):
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        train_rl.flags(["--help"])
    if name not in ARMS:
        raise InputError(f"{name}: choose one of {', '.join(ARMS)}")
    ARMS[name](flags)


if __name__ == "__main__":
    run(main)

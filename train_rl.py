"""Stage 2: reinforcement learning of verification and correction with PPO, written out by hand.

    5. sample and mark  M responses to each of P questions; the rule marks the last solve (outcome)
                        and every action (process)
    6. advantages       how much better than expected was each action? leave-one-out (outcome),
                        reward contexts (process), their sum (both), or GAE with a value head
    7. update           clipped policy gradient, four optimizer steps a rollout

(Numbers as in the README's method: 1 to 3 are in build_data.py, 4 in train_sft.py.)

The old log-probs are those with which the sampler drew the tokens, so PPO's ratio also corrects for
the difference between sampler and trainer. The KL to the frozen SFT model is subtracted from the
advantage of each token, as beta * (logp - ref_logp). A response cut by the token limit has the
outcome -1, and its last action the reward -1. Not in the paper: advantages are divided by their
root mean square (--plain does without).

    python train_rl.py                                                      # out/sft -> out/rl
    python train_rl.py --recipe paper                                       # as in the paper
"""
from nanoverify.support.start import run  # isort: skip  (before torch)

import copy
import random
import time
from dataclasses import dataclass, replace

import torch

from nanoverify import ppo
from nanoverify.checkpoint import checkpoint_files
from nanoverify.evaluate import correction, evaluate, metrics, report, respond, share, table
from nanoverify.rollout import (
    PPO,
    Rollout,
    action_states,
    action_values,
    forward,
    log_probs,
    rollout_of,
    rollout_rows,
    sizes,
)
from nanoverify.sampler import Sampling
from nanoverify.scoring import backward, token_log_probs
from nanoverify.support.alarms import say_of_step
from nanoverify.support.files import InputError, output_folder, write_jsonl
from nanoverify.support.flags import above_0, at_least_0, positive
from nanoverify.support.stage import (
    add_model_flags,
    add_output_flags,
    add_question_flags,
    add_training_flags,
    batch_of,
    clipped_step,
    earlier_evaluations,
    load,
    new_parser,
    parse_with_recipe,
    print_memory,
    print_rl_plan,
    save_result,
    steps_left,
    test_problems,
    test_sampling,
    train_problems,
)
from nanoverify.support.state import (
    Learner,
    Saving,
    go_on,
    identity,
    save_step,
    signals,
    state_bytes,
)
from nanoverify.trajectory import Trajectory

PAPER = {"reward": "outcome", "plain": True, "lr": 5e-7, "beta": 0.05, "temperature": 0.7,
         "prompts": 64, "samples": 4, "steps": 500}
WARM_UP = 5  # steps
GAMMA, LAMBDA = 1.0, 0.95  # of GAE, for each action
VALUE_LR, VALUE_WEIGHT, VALUE_CLIP = 3e-3, 0.5, 0.2


def flags(argv):
    parser = new_parser(__doc__)
    add_output_flags(parser, "out/rl")
    add_model_flags(parser, default="out/sft")
    add_question_flags(parser)
    group = parser.add_argument_group("rollout")
    add = group.add_argument
    add("--steps", type=positive, default=24,
        help="rollouts; the learning rate falls to 0 over them, so a run resumed with other "
             "--steps takes the rates of the new number (default: %(default)s)")
    add("--prompts", type=positive, default=32, metavar="P",
        help="questions per step (default: %(default)s)")
    add("--samples", type=int, default=8, metavar="M",
        help="responses per question (default: %(default)s)")
    add("--temperature", type=above_0, default=0.7,
        help="of rollouts and log-probs (default: %(default)s)")
    group = parser.add_argument_group("reward and advantage")
    add = group.add_argument
    add("--reward", choices=("outcome", "process", "both"), default="both",
        help="which rewards count (default: %(default)s)")
    add("--advantage", choices=("group", "gae"), default="group",
        help="group: leave-one-out and reward contexts; gae: a value head, which reads the "
             "policy's states and does not train them (default: %(default)s)")
    add("--beta", type=at_least_0, default=0.05,
        help="weight of the KL to the SFT model (default: %(default)s)")
    add("--plain", action="store_true", help="advantages are not normalised")
    group = parser.add_argument_group("update")
    add = group.add_argument
    add("--lr", type=at_least_0, default=5e-4,
        help="highest learning rate; 5 steps of warm-up, then linear to 0 over --steps "
             "(default: %(default)s)")
    add("--minibatches", type=positive, default=4,
        help="optimizer steps on a rollout (default: %(default)s)")
    add("--clip", type=above_0, default=0.2,
        help="the ratio counts between 1 - this and 1 + this (default: %(default)s)")
    add_training_flags(group, save_every=10)
    args = parse_with_recipe(parser, argv, PAPER)
    if args.samples < 2:
        raise InputError(f"--samples {args.samples}: leave-one-out needs at least 2 per question")
    return args


# ---- 5. sample and mark ------------------------------------------------------------------------

def every_question(model, tokenizer, problems, sampling: Sampling) -> list:
    """What the steps draw from: all training questions."""
    return problems


def enough(pool: list, prompts: int) -> list:
    """The pool. InputError: it is smaller than a step."""
    if len(pool) < prompts:
        raise InputError(f"--prompts {prompts}: only {len(pool)} training questions")
    return pool


def collect(model, tokenizer, asked, sampling: Sampling) -> Rollout:
    """The rollout of a step: the responses to its questions."""
    return rollout_of(respond(model, tokenizer, asked, sampling), tokenizer)


def mark(rollout: Rollout):
    """Fill in the rewards of responses and actions."""
    rollout.outcomes = [ppo.outcome_reward(t) for t in rollout.trajectories]
    rollout.process = [ppo.action_rewards(t) for t in rollout.trajectories]


# ---- 6. advantages -----------------------------------------------------------------------------

def score(rollout: Rollout, model, reference, value_head, settings: PPO):
    """Fill in what models say of the responses, where it is needed: KL to the reference, values."""
    if reference:
        # the responses may be older than the policy; `known` says so
        policy = log_probs(model, rollout, settings) if rollout.known else rollout.old
        rollout.kl = policy - log_probs(reference, rollout, settings)
    if value_head:
        rollout.values = action_values(model, value_head, rollout, settings)


@dataclass(frozen=True)
class RewardRules:
    """Which rewards count, and what they are compared with."""
    reward: str = "both"
    gae: bool = False
    beta: float = 0.0
    plain: bool = False


def weigh(rollout: Rollout, rules: RewardRules):
    """Fill in the advantages of the tokens. The rollout is marked."""
    rollout.rewards = ppo.combine(rollout.outcomes, rollout.process, rules.reward, at_end=rules.gae)
    if rules.gae:
        per_action = [ppo.gae(rewards, values, GAMMA, LAMBDA)
                      for rewards, values in zip(rollout.rewards, rollout.values)]
        rollout.returns = [[advantage + value for advantage, value in zip(*rows)]
                           for rows in zip(per_action, rollout.values)]
    else:
        per_action = rollout.known or group_advantages(rollout, rules.reward)
    spread = ppo.spread(per_action, rollout.trajectories, rollout.mask.shape[1])
    rollout.raw = spread - rules.beta * rollout.kl  # (B, T), both 0 after the response
    rollout.advantages = rollout.raw if rules.plain else ppo.normalise(rollout.raw, rollout.mask)


def group_advantages(rollout: Rollout, reward: str) -> ppo.Rows:
    """Outcomes against the question's other samples, actions against those in the same context."""
    outcomes = torch.tensor(rollout.by_question(rollout.outcomes))  # (P, M)
    outcome = ppo.leave_one_out(outcomes).flatten().tolist()
    process = ppo.centred(rollout.process, [ppo.contexts(row) for row in rollout.process])
    return ppo.combine(outcome, process, reward)


# ---- 7. update ---------------------------------------------------------------------------------

def update(learner: Learner, rollout: Rollout, settings: PPO, rng, where: str) -> dict:
    """Several optimizer steps on one rollout, each over a fresh part of it. -> vital signs."""
    size, steps = -(-len(rollout) // settings.minibatches), []
    order = rng.sample(range(len(rollout)), len(rollout))
    for start in range(0, len(rollout), size):
        batch = order[start: start + size]
        steps.append(optimizer_step(learner, rollout, batch, settings, where))
    # means over the tokens that were learned from
    tokens = max(sum(step["tokens"] for step in steps), 1)
    signs = {key: sum(step[key] for step in steps) / tokens
             for key in ("approx_kl", "clipped_low", "clipped_high")}
    signs["ratio_min"] = min(step["ratio_min"] for step in steps)
    signs["ratio_max"] = max(step["ratio_max"] for step in steps)
    signs["grad_norm"] = sum(step["grad_norm"] for step in steps) / len(steps)
    # at the first of them trainer and sampler have the same weights, and differ only by rounding
    signs["mismatch"] = steps[0]["mismatch"] / steps[0]["tokens"] if steps[0]["tokens"] else None
    if learner.value_head:
        signs["value_loss"] = sum(step["value_loss"] for step in steps) / len(steps)
    return signs


def optimizer_step(learner, rollout, rows: list[int], settings: PPO, where: str) -> dict:
    """One step on these rows of the rollout. -> sums and extremes over its tokens."""
    model, optimizer, value_head = learner
    # the denominators are counted once, so that gradients do not depend on the micro-batches
    tokens = sum(rollout.length(i) for i in rows)
    actions = sum(len(rollout.trajectories[i].actions) for i in rows)
    if not value_head:
        rows = [i for i in rows if rollout.advantages[i].any()]  # the others have no gradient

    def work(part):
        part = [rows[i] for i in part]
        hidden, ids = forward(model, rollout, part)
        new = token_log_probs(hidden, model.lm_head.weight, ids, settings.vocab_size,
                              settings.temperature)
        old, advantages = (rollout.flat(numbers, part).to(new.device, non_blocking=True)
                           for numbers in (rollout.old, rollout.advantages))
        loss, signs = ppo.ppo_loss(new, old, advantages, settings.clip)
        loss = loss / tokens
        if value_head:
            # detached: the head reads the states and does not shape them
            values = value_head(action_states(hidden.detach(), rollout, part))[:, 0]
            expected, returns = (of_actions(numbers, part).to(values.device, non_blocking=True)
                                 for numbers in (rollout.values, rollout.returns))
            error = ppo.value_loss(values, expected, returns, VALUE_CLIP) / actions
            loss, signs["value_loss"] = loss + VALUE_WEIGHT * error, error.detach()
        return loss, signs

    parameters = [*model.parameters(), *(value_head.parameters() if value_head else ())]
    parts = backward(model, sizes(rollout, rows), settings.micro_tokens, work, parameters)
    asked = sorted({rollout.trajectories[i].problem.id for i in rows})
    norm = clipped_step(model, optimizer, f"{where}, questions {asked}")
    learned = sum(rollout.length(i) for i in rows)
    return {**merged(parts), "tokens": learned, "grad_norm": norm}


def merged(parts: list[dict]) -> dict:
    """The vital signs of the micro-batches of one step: sums and extremes."""
    sums = ("approx_kl", "clipped_low", "clipped_high", "mismatch", "value_loss")
    return {**{key: sum(part.get(key, 0.0) for part in parts) for key in sums},
            "ratio_min": min((part["ratio_min"] for part in parts), default=1.0),
            "ratio_max": max((part["ratio_max"] for part in parts), default=1.0)}


def of_actions(numbers: ppo.Rows, rows):
    """The numbers of the actions of these rows, (A,)."""
    return torch.tensor([number for i in rows for number in numbers[i]])


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Warm-up, then linear to 0: the last step has 1 / steps of the highest rate."""
    return highest * min(step / WARM_UP, 1 - (step - 1) / steps)


# ---- the run -----------------------------------------------------------------------------------

def new_learner(model, gae: bool, lr: float) -> Learner:
    """The model, with gae a value head, and the optimizer of both."""
    value_head, groups = None, [{"params": model.parameters(), "lr": lr}]
    if gae:
        head = torch.nn.Linear(model.config.hidden_size, 1)
        value_head = head.to(model.lm_head.weight.device)
        torch.nn.init.zeros_(value_head.weight)
        torch.nn.init.zeros_(value_head.bias)
        groups.append({"params": value_head.parameters(), "lr": VALUE_LR})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    return Learner(model, optimizer, value_head)


def summary(rollout: Rollout, beta: float) -> dict:
    """What is logged of a rollout, apart from `metrics`."""
    tokens = rollout.mask.sum()
    groups = rollout.by_question(rollout.outcomes)
    logged = {"reward": share(rollout.outcomes),
              "groups_without_spread": share(len(set(group)) == 1 for group in groups),
              "kl_to_reference": (rollout.kl.sum() / tokens).item() if beta else None,
              # an unbiased estimate, since the tokens were drawn with these log-probs
              "entropy": -(rollout.old.sum() / tokens).item(),
              "advantage_abs": (rollout.raw.abs().sum() / tokens).item(),
              "longest": rollout.mask.shape[1], "tokens": int(tokens)}
    if rollout.returns:
        values, returns = (of_actions(numbers, range(len(rollout)))
                           for numbers in (rollout.values, rollout.returns))
        logged["explained_variance"] = ppo.explained_variance(values, returns)
    return logged


def log_line(step: int, rollout: Rollout, beta: float, signs: dict, lr: float, clock: list) -> dict:
    """The line of metrics.jsonl. clock: times at the start, after sampling, scoring, updating."""
    line = {"step": step, **summary(rollout, beta), **metrics(rollout.trajectories), **signs,
            "lr": lr,
            "seconds_rollout": clock[1] - clock[0],
            "seconds_score": clock[2] - clock[1],
            "seconds_update": clock[3] - clock[2]}
    return line


def shown(line: dict) -> dict:
    """What the progress bar says of a step."""
    return {"first": f"{100 * line['first_accuracy']:.0f}%",
            "final": f"{100 * line['final_accuracy']:.0f}%",
            "tokens": f"{line['tokens_per_response']:.0f}", "kl": f"{line['approx_kl']:.4f}"}


def print_example(answers: list[Trajectory], tokenizer):
    """A correction, if there is one."""
    example = correction(answers)
    if example:
        print(f"\n{example.problem.question}   (gold answer: {example.problem.answer})\n\n"
              f"{tokenizer.decode(example.ids)}\n")


# nanoverify/study/arms.py has other functions for the three calls that are arguments here
def main(argv=None, choose=every_question, collect=collect, mark=mark):
    args = flags(argv)
    rules = RewardRules(args.reward, args.advantage == "gae", args.beta, args.plain)
    print_memory(args, frozen=int(args.beta > 0))
    model, tokenizer = load(args)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.samples, args.seed,
                        args.batch_size)
    settings = PPO(tokenizer.vocab_size, args.temperature, args.minibatches, args.clip,
                   args.micro_tokens)
    testing = test_sampling(args)
    reference = copy.deepcopy(model).requires_grad_(False) if args.beta else None
    held_out = test_problems(args)
    print_rl_plan(model, tokenizer, held_out, args)
    pool = enough(choose(model, tokenizer, train_problems(args), sampling), args.prompts)
    learner = new_learner(model, rules.gae, args.lr)
    saving = Saving(args.steps, args.save_every)
    calls = [choose.__name__, collect.__name__, mark.__name__]
    this_run = identity(args, *checkpoint_files(args.model)) | {"calls": calls}

    with output_folder(args.out, args.resume, args.overwrite, state_bytes(model)) as folder:
        state = go_on(folder, this_run, learner, args.allow_changes)
        columns = (state.get("columns") or earlier_evaluations(args)
                   or {"start": report(evaluate(model, tokenizer, held_out, testing))})
        bar = steps_left(state["step"], args.steps, "RL")
        with signals() as caught:
            for step in bar:
                clock = [time.time()]
                # 5. a rollout and its rewards
                asked = batch_of(pool, args.prompts, step, args.seed)
                own = replace(sampling, seed=args.seed * 1_000_003 + step)
                rollout = collect(model, tokenizer, asked, own)
                mark(rollout)
                clock.append(time.time())
                # 6. KL to the reference, values, rewards: how much better than expected?
                score(rollout, model, reference, learner.value_head, settings)
                weigh(rollout, rules)
                clock.append(time.time())
                # 7. clipped policy gradient
                lr = learning_rate(step, args.steps, args.lr)
                learner.optimizer.param_groups[0]["lr"] = lr
                rng = random.Random(f"minibatches {args.seed} {step}")
                signs = update(learner, rollout, settings, rng, f"step {step}")
                clock.append(time.time())

                line = log_line(step, rollout, args.beta, signs, lr, clock)
                if args.eval_every and step % args.eval_every == 0:
                    line["eval"] = metrics(evaluate(model, tokenizer, held_out, testing))
                rows = rollout_rows(rollout, args.beta, rules.gae, tokenizer)
                write_jsonl(folder / "rollouts.jsonl", ({"step": step, **row} for row in rows))
                bar.set_postfix(shown(line), refresh=False)
                saved = {"run": this_run, "columns": columns}
                save_step(folder, line, saved, learner, saving, caught)
                say_of_step(folder)
        answers = evaluate(model, tokenizer, held_out, testing)
        columns["RL"] = report(answers)
        save_result(folder, model, tokenizer, answers, columns, args)
    print(table(columns))
    print_example(answers, tokenizer)
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)

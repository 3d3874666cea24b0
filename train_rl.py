"""Stage 2: reinforcement learning of verification and correction with PPO, written out by hand.

    5. reward        M responses for each of P prompts, at one temperature; the rule marks the last solve (outcome) and every
                     action (process)
    6. advantage     leave-one-out, centred in each reward context (outcome), reward context (process), their sum (both),
                     or GAE with a value head
    7. update        clipped policy gradient in several minibatches

(Numbers as in the README's method: 1 to 3 are in build_data.py, 4 in train_sft.py.)

KL to the frozen SFT model goes into the reward, as -beta * (logp - ref_logp) of each token, at the rollout policy
(--kl k2 or k3: into the loss, at the policy that is being updated; `ppo.kl_loss` says how they differ).
A response cut by the token limit has the outcome -1; its last action, which is incomplete, gets no process reward
(--punish-cut: -1, as in the released code). The share of cut responses is logged.

    python train_rl.py                                                          # out/sft -> out/rl
    python train_rl.py --plain-outcome --lr 5e-7 --beta 0.05 --temperature 0.7 --samples 4 --average 0   # as in the paper
"""
import copy
import random
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from nanoverify import ppo
from nanoverify.checkpoint import checkpoint_files, load_model, save_model
from nanoverify.evaluate import correction, evaluate, metrics, report, respond, share, table
from nanoverify.files import InputError, output_folder, run, write_json, write_jsonl
from nanoverify.model import autocast
from nanoverify.parallel import in_parallel, workers
from nanoverify.problems import SOLVE_PROMPT
from nanoverify.scoring import backward, join, log_probs_and_entropy, micro_batches, room, token_log_probs
from nanoverify.stage import (add_model_flags, add_output_flags, add_question_flags, add_training_flags, batch_of, clipped_step, earlier_evaluations,
                              load, new_parser, positive, print_memory, print_time, save_evaluations, test_problems, train_problems)
from nanoverify.state import go_on, identity, save_step, signals, state_bytes
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import Trajectory, as_row, in_turn
from nanoverify.verifier import verify


def flags(argv):
    parser = new_parser(__doc__)
    add_output_flags(parser, "out/rl")
    add_model_flags(parser, default="out/sft")
    add_question_flags(parser)
    group = parser.add_argument_group("rollout")
    group.add_argument("--steps", type=positive, default=40, help="rollouts (default: %(default)s)")
    group.add_argument("--prompts", type=positive, default=64, metavar="P", help="questions per step, as in the paper (default: %(default)s)")
    group.add_argument("--samples", type=int, default=8, metavar="M", help="responses per question; paper: 4 (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=1.0, help="of rollouts and log-probs; paper: 0.7 (default: %(default)s)")
    group.add_argument("--count", type=positive, default=6000, help="training questions to draw from (default: %(default)s)")
    group.add_argument("--filter", type=positive, default=0, metavar="N",
                       help="answer each question N times first and drop those always or never solved; 0: keep all (default: %(default)s)")
    group = parser.add_argument_group("reward and advantage")
    group.add_argument("--reward", choices=("outcome", "process", "both"), default="outcome", help="default: %(default)s")
    group.add_argument("--advantage", choices=("group", "gae"), default="group",
                       help="group: leave-one-out and reward contexts; gae: value head, which reads the policy's states and does not train them (default: %(default)s)")
    group.add_argument("--min-count", type=positive, default=1, help="process rewards: a context seen less often has baseline 0; released code: 10 (default: %(default)s)")
    group.add_argument("--decay", type=float, default=0.9, help="process rewards: weight of earlier rollouts in a context's baseline, per step; 1: running mean, as in the released code; 0: this rollout alone (default: %(default)s)")
    group.add_argument("--reward-from", metavar="DIR", help="no gold answers: this model's confirmative verification of an answer says whether it is right; the metrics still tell by the rule")
    group.add_argument("--beta", type=float, default=0.0, help="weight of the KL to the SFT model; paper: 0.05 (default: %(default)s)")
    group.add_argument("--kl", choices=("reward", "k2", "k3"), default="reward", help="where --beta counts: in the reward, as in the paper, or in the loss, by one of two estimators (default: %(default)s)")
    group.add_argument("--gamma", type=float, default=1.0, help="discount per token, gae only (default: %(default)s)")
    group.add_argument("--lam", type=float, default=0.95, help="lambda, gae only (default: %(default)s)")
    group.add_argument("--plain-outcome", action="store_true", help="outcome advantages as in the paper, not centred in each reward context")
    group.add_argument("--pay-first", action="store_true", help="process rewards for the first solve, too, as in the paper; where it is a guess, as in the built-in puzzles, they are mostly noise")
    group.add_argument("--punish-cut", action="store_true", help="process reward -1 for an action cut by the token limit, instead of none; gae always does")
    group.add_argument("--may-give-up", action="store_true", help="process reward +1 as in the paper, not -1, for a right 'incorrect' that ends the response")
    group.add_argument("--may-repeat", action="store_true", help="learn behind a repeated rejected answer, too, as in the paper, whatever the reward")
    group.add_argument("--offline", type=positive, metavar="N", help="sample N questions once and learn from that alone; paper: --beta 0.1 (default: a rollout per step)")
    group.add_argument("--offline-accuracy", type=float, nargs=2, default=[0.1, 0.7], metavar=("LOW", "HIGH"), help="offline, keep questions of which such a share of the samples is right (default: 0.1 0.7, as in the paper)")
    group.add_argument("--shuffle-rewards", action="store_true", help="control: responses get each other's rewards; nothing may rise")
    group = parser.add_argument_group("update")
    group.add_argument("--lr", type=float, default=3e-4, help="constant after 5 steps of warm-up; paper: 5e-7 (default: %(default)s)")
    group.add_argument("--value-lr", type=float, default=3e-3, help="of the value head (default: %(default)s)")
    group.add_argument("--minibatches", type=positive, default=2, help="optimizer steps per pass over a rollout (default: %(default)s)")
    group.add_argument("--average", type=float, default=0.9, help="the result is the moving average of the weights over steps, with this decay; 0: the last weights (default: %(default)s)")
    group.add_argument("--epochs", type=positive, default=1, help="passes over a rollout (default: %(default)s)")
    group.add_argument("--ratio", choices=("token", "action"), default="token", help="new to old probability of each token, or, as in the released code, of each action, its tokens' geometric mean (default: %(default)s)")
    group.add_argument("--clip-low", type=float, default=0.2, help="ratio stays above 1 - this (default: %(default)s)")
    group.add_argument("--clip-high", type=float, default=0.2, help="ratio stays below 1 + this (default: %(default)s)")
    group.add_argument("--dual-clip", type=float, default=3.0, help="ratio counts at most this much where the advantage is negative (default: %(default)s)")
    add_training_flags(group, save_every=10)
    args = parser.parse_args(argv)
    if args.samples < 2:
        raise InputError(f"--samples {args.samples}: leave-one-out needs at least 2 responses per question")
    if args.temperature <= 0:
        raise InputError(f"--temperature {args.temperature}: must be above 0 to explore")
    if args.offline and (args.advantage == "gae" or args.shuffle_rewards):
        raise InputError("--offline: its advantages are its own, for --advantage group without --shuffle-rewards")
    if args.offline_accuracy != [0.1, 0.7] and not args.offline or args.offline_accuracy[0] > args.offline_accuracy[1]:
        raise InputError("--offline-accuracy: needs --offline, and LOW at most HIGH")
    if args.reward_from and (args.offline or args.filter):
        raise InputError("--reward-from: without gold answers there is no --offline and no --filter")
    if args.pay_first and args.reward == "outcome":
        raise InputError("--pay-first: there are process rewards with --reward process or both alone")
    if args.kl != "reward" and (args.beta <= 0 or args.offline):
        raise InputError(f"--kl {args.kl}: needs a --beta above 0, and responses of the policy itself, not --offline")
    return args


def offline_pool(model, tokenizer, problems, args) -> list[list[tuple[Trajectory, list[float]]]]:
    """Rows of (response, advantage of each action), a row for each question kept. As in the paper's offline variant: questions of
    which 10 to 70% (--offline-accuracy) of the samples are right; responses whose actions are in turn; baselines by accuracy of the question and position."""
    rows = respond(model, tokenizer, problems, args.samples, args.max_new_tokens, args.temperature, args.seed, args.batch_size, "offline")
    low, high = args.offline_accuracy
    accuracies = [share(ppo.outcome_reward(t) > 0 for t in row) for row in rows]
    kept = [(accuracy, [t for t in row if in_turn(t)]) for accuracy, row in zip(accuracies, rows) if low <= accuracy <= high]
    kept = [(accuracy, row) for accuracy, row in kept if row]
    pool = [t for _, row in kept for t in row]
    values = []
    for t in pool:
        actions = ppo.action_rewards(t, args.punish_cut, args.may_give_up, args.may_repeat)
        paid = actions if args.reward == "process" else [*actions, 0.0][: len(t.actions)]  # the next action has an outcome, too
        values.append([(args.reward != "process") * ppo.outcome_reward(t) + (args.reward != "outcome") * (i > 0 or args.pay_first) * reward for i, reward in enumerate(paid)])
    advantages = iter(ppo.binned_advantages(values, [accuracy for accuracy, row in kept for _ in row]))
    print(f"{len(kept)} of {len(rows)} questions and {len(pool)} of {len(rows) * args.samples} responses are kept")
    return [[(t, next(advantages)) for t in row] for _, row in kept]


def judged(trajectories: list[Trajectory], judge, tokenizer, args) -> list[Trajectory]:
    """The same responses, where a solve is right if the judge's greedy verification of its answer says correct. No gold answer is looked at."""
    claims = sorted({(t.problem.question, solve.answer) for t in trajectories for solve in t.solves if solve.answer})
    written = verify(judge, tokenizer, claims, "confirmative", 1, args.max_new_tokens, 0.0, batch_size=args.batch_size)
    right = {claim: row[0].verdict is True for claim, row in zip(claims, written)}
    marked = []
    for t in trajectories:
        actions, last = [], False
        for action in t.actions:
            if action.kind == "solve":
                last = right.get((t.problem.question, action.answer), False)
            actions.append(replace(action, right=last))
        marked.append(replace(t, actions=actions))
    return marked


def scored(trajectories, args) -> list[int]:
    """The responses whose log-probs are needed: with outcome rewards alone, those to questions that were not always or never solved; the
    others have no advantage."""
    if args.reward != "outcome" or args.advantage == "gae" or args.beta or args.offline or args.shuffle_rewards:
        return list(range(len(trajectories)))
    outcomes = torch.tensor([ppo.outcome_reward(t) for t in trajectories]).view(-1, args.samples)  # (P, M)
    return ppo.leave_one_out(outcomes).flatten().nonzero()[:, 0].tolist()


def score(model, tokenizer, prompts, trajectories, rows, args, value_head=None):
    """Log-probs, entropies and values of all response tokens of these rows, three tensors (B, T) on the CPU, without gradient; 0 elsewhere."""
    width = max(len(t.ids) for t in trajectories)
    out = torch.zeros(3, len(trajectories), width)

    @torch.no_grad()
    def work(part):
        part = [rows[i] for i in part]
        hidden, ids = forward(model, [prompts[i] for i in part], [trajectories[i] for i in part], args)
        log_probs, entropy = log_probs_and_entropy(hidden, model.lm_head.weight, ids, tokenizer.vocab_size, args.temperature)
        values = value_head(hidden.float())[:, 0] if value_head else torch.zeros_like(log_probs)
        index = torch.repeat_interleave(torch.tensor(part), torch.tensor([len(trajectories[i].ids) for i in part]))
        columns = torch.cat([torch.arange(len(trajectories[i].ids)) for i in part])
        out[:, index, columns] = torch.stack([log_probs, entropy, values]).cpu()
    count = workers(model)
    in_parallel(work, micro_batches([room(prompts[i], trajectories[i].ids) for i in rows], args.micro_tokens, count), count)
    return out


def forward(model, prompts, trajectories, args):
    """The final states before all response tokens, (N, D), and the tokens, (N,), responses one after the other."""
    rows = [(prompt, t.ids) for prompt, t in zip(prompts, trajectories)]
    ids, targets, select, lengths = join(rows, [[1] * len(t.ids) for t in trajectories], args.device)
    with autocast(args.device):
        return model.hidden(ids, lengths=lengths)[select], targets[select]


def advantages_of(trajectories, kl, values, mask, totals, args, rng, offline=None):
    """Advantages (B, T) on response tokens; for GAE, returns; the rewards dealt out: one a response, one an action.
    kl (B, T): logp - ref_logp of each token. offline: the advantages of the actions, where they are known already."""
    outcomes = [ppo.outcome_reward(t) for t in trajectories]
    actions = [ppo.action_rewards(t, args.punish_cut or args.advantage == "gae", args.may_give_up, args.may_repeat) for t in trajectories]
    if args.shuffle_rewards:
        outcomes = rng.sample(outcomes, len(outcomes))
        pool = [reward for row in actions for reward in row]
        rng.shuffle(pool)
        actions = [[pool.pop() for _ in row] for row in actions]
    width = mask.shape[1]
    if args.advantage == "gae":
        per_action = [[process * (args.reward != "outcome") * (i > 0 or args.pay_first) + outcome * (args.reward != "process") * (i == len(t.actions) - 1)
                       for i, process in enumerate([*row, *[0.0] * (len(t.actions) - len(row))])]
                      for t, row, outcome in zip(trajectories, actions, outcomes)]  # behind a repeated answer: the outcome alone
        rewards = ppo.at_action_ends(per_action, trajectories, width) - args.beta * kl
        advantages, returns = ppo.gae(rewards, values, mask, args.gamma, args.lam)
        return ppo.whiten(advantages, mask), returns, (outcomes, actions)
    advantages = -args.beta * kl
    if offline:
        return (advantages + ppo.spread(offline, trajectories, width)) * mask, None, (outcomes, actions)
    if args.reward in ("outcome", "both"):
        per_response = ppo.leave_one_out(torch.tensor(outcomes).view(-1, args.samples))  # (P, M)
        if args.plain_outcome:
            advantages = advantages + per_response.view(-1, 1)
        else:
            per_action = ppo.centre_by_context(per_response.flatten().tolist(), actions, [len(t.actions) for t in trajectories])
            advantages = advantages + ppo.spread(per_action, trajectories, width)
    if args.reward in ("process", "both"):
        per_action = ppo.context_advantages(actions, totals, args.min_count, args.decay)
        advantages = advantages + ppo.spread([[row[0] * args.pay_first, *row[1:]] if row else row for row in per_action], trajectories, width)
    return advantages * mask, None, (outcomes, actions)


def rollout_rows(trajectories, rewards, kl, advantages, args, tokenizer):
    """A rollout as readable rows: as_row (`right` is the rule's word, whoever the rewards are from), `outcome`, and for each action
    process    its process reward; None for an action cut by the token limit
    reward     outcome and process, as far as --reward and --pay-first count them (for GAE, the outcome on the last action only)
    advantage  mean over its tokens of what the update uses = reward - baseline - kl
    kl         mean over its tokens of beta * (logp - ref_logp), as far as it is in the reward
    baseline   what was subtracted; None for GAE, whose advantages are discounted sums, whitened"""
    mean = lambda x: x.mean().item() if len(x) else 0.0
    for t, outcome, process, kl_row, advantage_row in zip(trajectories, *rewards, kl, advantages):
        row = {**as_row(t, tokenizer), "outcome": outcome}
        for i, action in enumerate(row["actions"]):
            own, span, gae = process[i] if i < len(process) else None, slice(action["start"], action["stop"]), args.advantage == "gae"
            reward = (args.reward != "process" and (not gae or i == len(t.actions) - 1)) * outcome + (args.reward != "outcome") * (i > 0 or args.pay_first) * (own or 0.0)
            penalty, advantage = args.beta * mean(kl_row[span]), mean(advantage_row[span])
            numbers = {"reward": reward, "kl": penalty, "advantage": advantage, "baseline": None if gae else reward - penalty - advantage}
            action.update(process=own, **{key: value if value is None else round(value, 5) for key, value in numbers.items()})
        yield row


def update(model, value_head, optimizer, tokenizer, prompts, trajectories, advantages, old, returns, args, rng, where, reference=None):
    """Several optimizer steps on one rollout, each over a fresh part of it. -> vital signs. reference (B, T): the reference's log-probs,
    where the KL is part of the loss."""
    signs = {"approx_kl": 0.0, "clipped_low": 0, "clipped_high": 0, "ratio_min": 1.0, "ratio_max": 1.0, "value_loss": 0.0, "grad_norm": 0.0}
    parameters = [*model.parameters(), *(value_head.parameters() if value_head else ())]
    tokens = steps = 0
    for _ in range(args.epochs):
        order = rng.sample(range(len(trajectories)), len(trajectories))
        size = -(-len(order) // args.minibatches)
        for start in range(0, len(order), size):
            batch = order[start: start + size]
            count = sum(len(trajectories[i].ids) for i in batch)  # all losses are means over the tokens of the optimizer step
            if not value_head and reference is None:
                batch = [i for i in batch if advantages[i].any()]  # the others have no gradient; where none is left, Adam takes no step
            def work(part):
                part = [batch[i] for i in part]
                hidden, ids = forward(model, [prompts[i] for i in part], [trajectories[i] for i in part], args)
                new = token_log_probs(hidden, model.lm_head.weight, ids, tokenizer.vocab_size, args.temperature)
                flat = lambda x: torch.cat([x[i, : len(trajectories[i].ids)] for i in part]).to(new.device)
                loss, found = ppo.ppo_loss(new, flat(old[0]), flat(advantages), args.clip_low, args.clip_high, args.dual_clip,
                                           [a.stop - a.start for i in part for a in trajectories[i].actions] if args.ratio == "action" else None)
                if reference is not None:
                    loss = loss + args.beta * ppo.kl_loss(new, flat(reference), args.kl)
                if value_head:
                    # the head reads the states and does not shape them: with its gradient in the policy, last answers got worse on three of three seeds
                    wrong = ppo.value_loss(value_head(hidden.detach().float())[:, 0], flat(old[2]), flat(returns), clip=0.2)
                    loss, found["value_loss"] = loss + 0.5 * wrong, wrong.item()
                return loss / count, found
            for found in backward(model, [room(prompts[i], trajectories[i].ids) for i in batch], args.micro_tokens, work, parameters):
                for key in found.keys() - {"ratio_min", "ratio_max"}:
                    signs[key] += found[key]
                signs["ratio_min"] = min(signs["ratio_min"], found["ratio_min"])
                signs["ratio_max"] = max(signs["ratio_max"], found["ratio_max"])
            signs["grad_norm"] += clipped_step(model, optimizer, f"{where}, questions {sorted({trajectories[i].problem.id for i in batch})}")
            tokens, steps = tokens + sum(len(trajectories[i].ids) for i in batch), steps + 1
    per_token = {key: signs[key] / max(tokens, 1) for key in ("approx_kl", "clipped_low", "clipped_high", "value_loss")}
    return {**signs, **per_token, "grad_norm": signs["grad_norm"] / steps}


def main(argv=None):
    args = flags(argv)
    print_memory(args, frozen=bool(args.beta or args.offline) + bool(args.reward_from))
    model, tokenizer = load(args)
    reference = copy.deepcopy(model).requires_grad_(False) if args.beta or args.offline else None
    problems, held_out = train_problems(args, args.count), test_problems(args)
    prompt = share(len(tokenizer.prompt(SOLVE_PROMPT.format(question=problem.question))) for problem in problems[:100]) or 0  # mean length
    responses, passes = args.steps * args.prompts * args.samples, args.epochs + (2 if reference else 1) / 3  # scoring is a forward pass alone
    sampled = (min(args.offline, len(problems)) * args.samples if args.offline else responses) + args.filter * len(problems) + len(held_out)
    print_time(model, args, tokenizer.vocab_size, sampled, args.max_new_tokens + round(prompt), responses * passes * prompt, responses * passes)
    if args.filter:
        rows = respond(model, tokenizer, problems, args.filter, args.max_new_tokens, args.temperature, args.seed, args.batch_size, "filter")
        problems = [problem for problem, row in zip(problems, rows) if 0 < share(t.solves[-1].right for t in row) < 1]
        print(f"{len(problems)} of {len(rows)} questions are sometimes solved and sometimes not")
    pool = offline_pool(reference, tokenizer, problems[:args.offline], args) if args.offline else None
    drawn = problems if pool is None else pool
    if len(drawn) < args.prompts:
        raise InputError(f"--prompts {args.prompts}: only {len(drawn)} training questions")
    value_head = None
    groups = [{"params": model.parameters(), "lr": args.lr, "peak": args.lr}]
    if args.advantage == "gae":
        value_head = torch.nn.Linear(model.config.hidden_size, 1).to(args.device)
        torch.nn.init.zeros_(value_head.weight)
        torch.nn.init.zeros_(value_head.bias)
        groups.append({"params": value_head.parameters(), "lr": args.value_lr, "peak": args.value_lr})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, fused=True)
    judge, judge_tokenizer = (load_model(args.reward_from, args.device), Tokenizer.load(args.reward_from)) if args.reward_from else (None, None)
    this_run = identity(args, *checkpoint_files(args.model), *(checkpoint_files(args.reward_from) if judge else ()))
    print(f"{args.prompts} prompts x {args.samples} samples = {args.prompts * args.samples} responses per step{', at most' if pool else ''}, {args.minibatches * args.epochs} "
          f"optimizer steps each, {args.steps} steps, {len(drawn)} training questions")

    with output_folder(args.out, args.resume, args.overwrite, state_bytes(model, args.keep)) as folder:
        state = go_on(folder, this_run, args, model, optimizer, value_head)
        columns = state.get("columns") or earlier_evaluations(args) or {"start": report(evaluate(model, tokenizer, held_out, args))}
        # on the CPU, for a GPU has no room to spare
        average = state["average"] if "average" in state else [parameter.detach().to("cpu", copy=True) for parameter in model.parameters()]
        totals = {tuple(context): entry for context, entry in state.get("totals", [])}  # of the context baselines
        bar = tqdm(range(state["step"] + 1, args.steps + 1), desc="RL", initial=state["step"], total=args.steps)
        with signals() as caught:
            for step in bar:
                clock = [time.time()]
                # 5. a rollout, whose actions the rule marks as it is parsed
                asked = batch_of(drawn, args.prompts, step, args.seed)
                rows = [[t for t, _ in row] for row in asked] if pool else respond(
                    model, tokenizer, asked, args.samples, args.max_new_tokens, args.temperature, args.seed * 1_000_003 + step, args.batch_size)
                trajectories = [t for row in rows for t in row]  # B = P * M, samples of one prompt side by side
                paid = judged(trajectories, judge, judge_tokenizer, args) if judge else trajectories  # as the rewards see them
                prompts = [tokenizer.prompt(SOLVE_PROMPT.format(question=t.problem.question)) for t in trajectories]
                clock.append(time.time())
                # 6. old and reference log-probs; rewards -> advantages
                needed = scored(paid, args)
                old = score(model, tokenizer, prompts, trajectories, needed, args, value_head)  # log-probs, entropies, values
                mask = torch.tensor([[float(t < len(x.ids)) for t in range(old.shape[2])] for x in trajectories])
                before = score(reference, tokenizer, prompts, trajectories, needed, args)[0] if reference else old[0]
                kl = (old[0] - before) * mask
                charged = kl if args.kl == "reward" else torch.zeros_like(kl)
                advantages, returns, rewards = advantages_of(paid, charged, old[2], mask, totals, args, random.Random(f"rewards {args.seed} {step}"),
                                                             [values for row in asked for _, values in row] if pool else None)
                if pool:
                    old[0] = before  # the reference wrote the responses
                assert set(advantages.any(1).nonzero()[:, 0].tolist()) <= set(needed), "`scored` leaves out responses with an advantage"
                clock.append(time.time())
                # 7. update
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * min(step / 5, 1)
                signs = update(model, value_head, optimizer, tokenizer, prompts, trajectories, advantages, old, returns, args,
                               random.Random(f"minibatches {args.seed} {step}"), f"step {step}", None if args.kl == "reward" else before)
                for mean, parameter in zip(average, model.parameters()):
                    mean.lerp_(parameter.detach().cpu(), 1 - min(args.average, (step - 1) / step))  # a plain mean at first
                clock.append(time.time())

                found = metrics(trajectories)
                outcomes = iter(ppo.outcome_reward(t) for t in paid)
                outcomes = [[next(outcomes) for _ in row] for row in rows]
                line = {"step": step, "reward": share(r for row in outcomes for r in row),
                        "groups_without_spread": share(len(set(row)) == 1 for row in outcomes), **found, **signs,
                        "kl_to_reference": (kl.sum() / mask.sum()).item(), "entropy": (old[1].sum() / mask[needed].sum()).item() if needed else None,
                        "advantage_abs": (advantages.abs().sum() / mask.sum()).item(), "advantage_max": advantages.abs().max().item(),
                        "longest": max(len(t.ids) for t in trajectories), "lr": optimizer.param_groups[0]["lr"],
                        "tokens": int(mask.sum()), "seconds_rollout": clock[1] - clock[0], "seconds_score": clock[2] - clock[1],
                        "seconds_update": clock[3] - clock[2]}
                if value_head:
                    line["explained_variance"] = ppo.explained_variance(old[2], returns, mask)
                if args.eval_every and step % args.eval_every == 0:
                    line["eval"] = metrics(evaluate(model, tokenizer, held_out, args))
                state = {"run": this_run, "columns": columns, "totals": [[context, entry] for context, entry in totals.items()]}
                write_jsonl(folder / "rollouts.jsonl", ({"step": step, **row} for row in rollout_rows(trajectories, rewards, charged, advantages, args, tokenizer)))
                bar.set_postfix(first=f"{100 * found['first_accuracy']:.0f}%", final=f"{100 * found['final_accuracy']:.0f}%",
                                tokens=f"{found['tokens_per_response']:.0f}", kl=f"{signs['approx_kl']:.4f}")
                save_step(folder, line, args.steps, state, args, caught, model, optimizer, value_head, average)
        with torch.no_grad():
            for mean, parameter in zip(average, model.parameters()):
                parameter.copy_(mean)
        answers = evaluate(model, tokenizer, held_out, args)
        columns["RL"] = report(answers)
        save_model(model, folder, args.model)
        save_evaluations(folder, columns, args)
        write_jsonl(folder / "responses.jsonl", (as_row(t, tokenizer) for t in answers))
        write_json(folder / "arguments.json", vars(args))
    print(table(columns))
    example = correction(answers)
    if example:
        print(f"\n{example.problem.question}   (gold answer: {example.problem.answer})\n\n{tokenizer.decode(example.ids)}\n")
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)

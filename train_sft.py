"""Stage 1: teach the format. Masked cross-entropy on the trajectories of stage 0.

    4. imitate    every verification and the last solution are learned; the wrong solutions before
                  it are read but not learned: the mask of solve, verify, solve, verify is 0 1 1 1

Differs from the paper: --kl, the divergence from the base model on the same tokens, is off by
default.

    python train_sft.py              # out/data/trajectories.jsonl + shipped policy -> out/sft
    python train_sft.py --recipe paper --model DIR --data FILE       # as in the paper
"""
from nanoverify.support.start import run  # isort: skip  (before torch)

import time
from dataclasses import dataclass

import torch

from nanoverify.checkpoint import checkpoint_files, load_model
from nanoverify.evaluate import evaluate, metrics, report, table
from nanoverify.scoring import Packed, backward, join, kl_divergence, room, token_log_probs
from nanoverify.support.files import (
    InputError,
    output_folder,
    print_skipped,
    read_jsonl,
    refuse,
)
from nanoverify.support.flags import at_least_0, positive
from nanoverify.support.kernels import autocast
from nanoverify.support.stage import (
    add_model_flags,
    add_output_flags,
    add_question_flags,
    add_training_flags,
    bad_lines,
    batch_of,
    clipped_step,
    earlier_evaluations,
    load,
    new_parser,
    parse_with_recipe,
    print_memory,
    print_time,
    save_result,
    steps_left,
    test_problems,
    test_sampling,
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
from nanoverify.trajectory import training_ids

PAPER = {"lr": 5e-6, "batch": 32, "epochs": 3, "kl": 0.1}
WARM_UP = 0.15  # of the schedule


@dataclass(frozen=True)
class SFT:
    """Settings of a gradient."""
    micro_tokens: int  # in one forward pass
    kl: float = 0.0  # weight of KL(policy || base) on the learned tokens


def flags(argv):
    parser = new_parser(__doc__)
    parser.add_argument("--data", default="out/data/trajectories.jsonl", metavar="FILE",
                        help="from stage 0 (default: %(default)s)")
    add_output_flags(parser, "out/sft")
    add_model_flags(parser)
    add_question_flags(parser)
    group = parser.add_argument_group("stage 1")
    add = group.add_argument
    add("--lr", type=at_least_0, default=1e-3,
        help="highest learning rate; linear to 0 after 15%% warm-up (default: %(default)s)")
    add("--epochs", type=positive, default=2, help="default: %(default)s")
    add("--steps", type=positive,
        help="stop after this many optimizer steps; the learning rates stay those of --epochs "
             "(default: all)")
    add("--batch", type=positive, default=8,
        help="trajectories per optimizer step (default: %(default)s)")
    add("--kl", type=at_least_0, default=0.0,
        help="weight of KL(policy || base) on the learned tokens (default: %(default)s)")
    add("--max-length", type=positive, default=1024,
        help="longer trajectories are dropped and counted, in tokens with the prompt "
             "(default: %(default)s)")
    add_training_flags(group, save_every=200)
    return parse_with_recipe(parser, argv, PAPER)


# ---- the trajectories --------------------------------------------------------------------------

def read_rows(path: str, tokenizer, longest: int, bad: list | None) -> tuple[list, int]:
    """[(prompt ids, response ids, loss mask, line)], and how many are longer than `longest` tokens.

    The spans of actions are found by parsing the text again. bad: collects the reasons why lines
    cannot be used; None: the first such line is an InputError.
    """
    rows, too_long = [], 0
    for number, row in read_jsonl(path, bad=bad):
        needed = ("id", "question", "answer", "response")
        missing = [key for key in needed if not isinstance(row.get(key), str)]
        if missing:
            refuse(f"{path}:{number}: no text in {missing[0]!r}", bad)
            continue
        prompt, ids, mask = training_ids(row, tokenizer)
        if len(prompt) + len(ids) > longest:
            too_long += 1
            continue
        rows.append((prompt, ids, mask, number))
    print_skipped(bad)
    if not rows:
        raise InputError(f"{path}: no trajectory of at most {longest} tokens in it "
                         f"({too_long} are longer)")
    if not any(sum(mask) for _, _, mask, _ in rows):
        raise InputError(f"{path}: the loss mask selects no token")
    return rows, too_long


def print_rows(rows: list, too_long: int, steps: int):
    tokens = sum(len(prompt) + len(ids) for prompt, ids, *_ in rows)
    learned = sum(sum(mask) for _, _, mask, _ in rows)
    print(f"{len(rows)} trajectories ({too_long} longer than the limit dropped), mean length "
          f"{tokens // len(rows)} tokens, {learned:,} learned tokens per epoch, {steps} steps")


# ---- 4. imitate --------------------------------------------------------------------------------

def masked_loss(model, packed: Packed, vocab_size: int):
    """-log-prob of all wanted tokens, summed, and the final states before them, (N, D)."""
    hidden = model.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
    return -token_log_probs(hidden, model.lm_head.weight, packed.targets, vocab_size).sum(), hidden


def accumulate(model, base, batch, vocab_size: int, settings: SFT):
    """The gradient of one optimizer step, part after part of the batch.

    -> loss, KL to `base` (None: 0), learned tokens
    """
    device, head = model.lm_head.weight.device, model.lm_head.weight
    learned = sum(sum(mask) for _, _, mask, _ in batch)  # counted once, for all parts

    def work(part):
        packed = join([batch[i][:2] for i in part], [batch[i][2] for i in part], device)
        with autocast(device):
            loss, hidden = masked_loss(model, packed, vocab_size)
        loss = loss / learned
        signs = {"loss": loss.detach()}
        if base:
            with torch.no_grad(), autocast(device):
                theirs = base.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
            kl = kl_divergence(hidden, head, theirs, base.lm_head.weight, vocab_size)
            kl = kl.sum() / learned
            loss, signs["kl"] = loss + settings.kl * kl, kl.detach()
        return loss, signs

    lengths = [room(prompt, ids) for prompt, ids, *_ in batch]
    parts = backward(model, lengths, settings.micro_tokens, work, list(model.parameters()))
    loss, kl = (sum(part.get(name, 0.0) for part in parts) for name in ("loss", "kl"))
    return loss, kl, learned


def learning_rate(step: int, total: int, highest: float) -> float:
    """Warm-up, then linear to 0 at the end of the schedule, `total` steps."""
    return highest * min(step / max(WARM_UP * total, 1), 1 - (step - 1) / total)


# ---- the run -----------------------------------------------------------------------------------

def main(argv=None):
    args = flags(argv)
    print_memory(args, frozen=int(args.kl > 0))
    model, tokenizer = load(args)
    longest = min(args.max_length, model.config.max_position_embeddings)
    rows, too_long = read_rows(args.data, tokenizer, longest, bad_lines(args))
    base = load_model(args.model, args.device).requires_grad_(False) if args.kl else None
    problems = test_problems(args)
    total = args.epochs * -(-len(rows) // args.batch)  # the length of the schedule
    steps = min(args.steps or total, total)
    print_rows(rows, too_long, steps)
    lengths = [len(prompt) + len(ids) for prompt, ids, *_ in rows]
    print_time(model, args, tokenizer.vocab_size, 2 * len(problems), max(lengths),
               tokens=steps * args.batch * sum(lengths) / len(rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99),
                                  weight_decay=0.0, fused=True)
    learner, saving = Learner(model, optimizer), Saving(steps, args.save_every)
    settings = SFT(args.micro_tokens, args.kl)
    testing = test_sampling(args)
    this_run = identity(args, args.data, *checkpoint_files(args.model))

    room_on_disk = state_bytes(model)
    with output_folder(args.out, args.resume, args.overwrite, room_on_disk) as folder:
        state = go_on(folder, this_run, learner, args.allow_changes)
        columns = (state.get("columns") or earlier_evaluations(args)
                   or {"base": report(evaluate(model, tokenizer, problems, testing))})
        bar = steps_left(state["step"], steps, "SFT")
        with signals() as caught:
            for step in bar:
                began = time.time()
                batch = batch_of(rows, args.batch, step, args.seed)
                # 4. imitate: one step down the gradient of the masked cross-entropy
                loss, kl, learned = accumulate(model, base, batch, tokenizer.vocab_size, settings)
                lr = learning_rate(step, total, args.lr)
                optimizer.param_groups[0]["lr"] = lr
                where = f"step {step}, trajectories {[row[3] for row in batch]}"
                norm = clipped_step(model, optimizer, where)

                line = {"step": step, "epoch": (step - 1) // (total // args.epochs), "loss": loss,
                        "kl": kl, "grad_norm": norm, "lr": lr, "learned_tokens": learned,
                        "seconds": time.time() - began}
                if args.eval_every and step % args.eval_every == 0:
                    line["eval"] = metrics(evaluate(model, tokenizer, problems, testing))
                bar.set_postfix(loss=f"{loss:.3f}", grad=f"{norm:.2f}", refresh=False)
                saved = {"run": this_run, "columns": columns}
                save_step(folder, line, saved, learner, saving, caught)
        answers = evaluate(model, tokenizer, problems, testing)
        columns["SFT"] = report(answers)
        save_result(folder, model, tokenizer, answers, columns, args,
                    trajectories=len(rows), dropped_too_long=too_long)
    print(table(columns))
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)

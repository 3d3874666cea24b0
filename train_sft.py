"""Stage 1: teach the format. Masked cross-entropy on the trajectories of stage 0.

Learned are every verification and the last solution; wrong solutions are read but not learned (mask {0, 1, 0, 1, 1, 1}).
Differs from the paper: --kl, the divergence from the base model on the same tokens, is off by default.

    python train_sft.py                                   # out/data/trajectories.jsonl + shipped policy -> out/sft
    python train_sft.py --model DIR --data FILE --lr 5e-6 --epochs 3 --batch 32 --kl 0.1       # as in the paper
"""
import time

import torch
from tqdm import tqdm

from nanoverify.checkpoint import checkpoint_files, load_model, save_model
from nanoverify.evaluate import evaluate, metrics, report, table
from nanoverify.scoring import Packed, backward, join, kl_divergence, room, token_log_probs
from nanoverify.support.files import (
    InputError,
    output_folder,
    print_skipped,
    read_jsonl,
    refuse,
    run,
    write_json,
    write_jsonl,
)
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
    positive,
    print_memory,
    print_time,
    save_evaluations,
    test_problems,
)
from nanoverify.support.state import go_on, identity, save_step, signals, state_bytes
from nanoverify.trajectory import as_row, training_ids


def flags(argv):
    parser = new_parser(__doc__)
    parser.add_argument("--data", default="out/data/trajectories.jsonl", metavar="FILE", help="from stage 0 (default: %(default)s)")
    add_output_flags(parser, "out/sft")
    add_model_flags(parser)
    add_question_flags(parser)
    group = parser.add_argument_group("stage 1")
    group.add_argument("--lr", type=float, default=1e-3, help="peak learning rate; linear to 0 after 15%% warm-up; paper: 5e-6 (default: %(default)s)")
    group.add_argument("--epochs", type=positive, default=2, help="paper: 3 (default: %(default)s)")
    group.add_argument("--steps", type=positive, help="stop after so many optimizer steps in all; the schedule stays that of --epochs (default: all)")
    group.add_argument("--batch", type=positive, default=8, help="trajectories per optimizer step (default: %(default)s)")
    group.add_argument("--kl", type=float, default=0.0, help="weight of KL(policy || base) on the learned tokens; paper: 0.1 (default: %(default)s)")
    group.add_argument("--max-length", type=positive, default=1024, help="longer trajectories are dropped and counted, in tokens with the prompt (default: %(default)s)")
    add_training_flags(group, save_every=200)
    return parser.parse_args(argv)


def read_rows(args, tokenizer, context: int):
    """[(prompt ids, response ids, loss mask, line)] from the trajectories' text; its spans are found anew by `parse`."""
    rows, too_long, bad = [], 0, bad_lines(args)
    for number, row in read_jsonl(args.data, bad=bad):
        missing = [key for key in ("id", "question", "answer", "response") if not isinstance(row.get(key), str)]
        if missing:
            refuse(f"{args.data}:{number}: no text in {missing[0]!r}", bad)
            continue
        prompt, ids, mask = training_ids(row, tokenizer)
        if len(prompt) + len(ids) > min(args.max_length, context):
            too_long += 1
            continue
        rows.append((prompt, ids, mask, number))
    print_skipped(bad)
    if not rows:
        raise InputError(f"{args.data}: no trajectory of at most {min(args.max_length, context)} tokens in it ({too_long} are longer)")
    if not any(sum(mask) for _, _, mask, _ in rows):
        raise InputError(f"{args.data}: the loss mask selects no token")
    return rows, too_long


def masked_loss(model, packed: Packed, vocab_size: int):
    """-log-prob of all wanted tokens, summed, and the final states before them, (N, D)."""
    hidden = model.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
    return -token_log_probs(hidden, model.lm_head.weight, packed.targets, vocab_size).sum(), hidden


def accumulate(model, base, batch, vocab_size: int, args):
    """The gradient of one optimizer step, part after part of the batch. -> loss, KL to `base` (None: 0), learned tokens."""
    learned = sum(sum(mask) for _, _, mask, _ in batch)  # counted once, over the whole optimizer step

    def work(part):
        packed = join([batch[i][:2] for i in part], [batch[i][2] for i in part], args.device)
        with autocast(args.device):
            loss, hidden = masked_loss(model, packed, vocab_size)
        loss = loss / learned
        signs = {"loss": loss.detach()}
        if base:
            with torch.no_grad(), autocast(args.device):
                base_hidden = base.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
            kl = kl_divergence(hidden, model.lm_head.weight, base_hidden, base.lm_head.weight, vocab_size).sum() / learned
            loss, signs["kl"] = loss + args.kl * kl, kl.detach()
        return loss, signs
    parts = backward(model, [room(p, r) for p, r, *_ in batch], args.micro_tokens, work, list(model.parameters()))
    return sum(part["loss"] for part in parts), sum(part.get("kl", 0.0) for part in parts), learned


def main(argv=None):
    args = flags(argv)
    print_memory(args, frozen=int(args.kl > 0))
    model, tokenizer = load(args)
    rows, too_long = read_rows(args, tokenizer, model.config.max_position_embeddings)
    base = load_model(args.model, args.device).requires_grad_(False) if args.kl else None
    problems = test_problems(args)
    total = args.epochs * -(-len(rows) // args.batch)  # the length of the schedule
    steps = min(args.steps or total, total)
    print(f"{len(rows)} trajectories ({too_long} longer than the limit dropped), mean length {sum(len(p) + len(r) for p, r, *_ in rows) // len(rows)} "
          f"tokens, {sum(sum(m) for _, _, m, _ in rows):,} learned tokens per epoch, {steps} steps")
    lengths = [len(prompt) + len(ids) for prompt, ids, *_ in rows]
    print_time(model, args, tokenizer.vocab_size, 2 * len(problems), max(lengths), tokens=steps * args.batch * sum(lengths) / len(rows))

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    this_run = identity(args, args.data, *checkpoint_files(args.model))
    with output_folder(args.out, args.resume, args.overwrite, state_bytes(model, args.keep)) as folder:
        state = go_on(folder, this_run, args, model, optimizer)
        columns = state.get("columns") or earlier_evaluations(args) or {"base": report(evaluate(model, tokenizer, problems, args))}
        bar = tqdm(range(state["step"] + 1, steps + 1), desc="SFT", initial=state["step"], total=steps)
        with signals() as caught:
            for step in bar:
                began = time.time()
                batch = batch_of(rows, args.batch, step, args.seed)
                # 4. imitate: the gradient of the masked cross-entropy
                loss, kl, learned = accumulate(model, base, batch, tokenizer.vocab_size, args)
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * min(step / max(0.15 * total, 1), 1 - (step - 1) / total)
                norm = clipped_step(model, optimizer, f"step {step}, trajectories {[row[3] for row in batch]}")
                line = {"step": step, "epoch": (step - 1) // (total // args.epochs), "loss": loss, "kl": kl, "grad_norm": norm,
                        "lr": optimizer.param_groups[0]["lr"], "learned_tokens": learned, "seconds": time.time() - began}
                if args.eval_every and step % args.eval_every == 0:
                    line["eval"] = metrics(evaluate(model, tokenizer, problems, args))
                bar.set_postfix(loss=f"{loss:.3f}", grad=f"{norm:.2f}")
                save_step(folder, line, steps, {"run": this_run, "columns": columns}, args, caught, model, optimizer)
        answers = evaluate(model, tokenizer, problems, args)
        columns["SFT"] = report(answers)
        save_model(model, folder, args.model)
        save_evaluations(folder, columns, args)
        write_jsonl(folder / "responses.jsonl", (as_row(t, tokenizer) for t in answers))
        write_json(folder / "arguments.json", {**vars(args), "trajectories": len(rows), "dropped_too_long": too_long})
    print(table(columns))
    print(f"-> {args.out}")


if __name__ == "__main__":
    run(main)

"""Stage 0: from a policy and questions to trial-and-error trajectories.

    sample K answers -> grade by rule -> difficulty -> verify by model, keep what the rule confirms -> compose

Differs from the paper: the policy itself writes the verifications (or --verifier-model; the paper asks a larger model),
and easy questions are thinned by --keep-easy only.

    python build_data.py                                             # built-in puzzles and policy -> out/data
    python build_data.py --model DIR --questions gsm8k_train.jsonl   # a real checkpoint, real questions
"""
import collections
import random
import shutil
from pathlib import Path

from nanoverify.answers import extract
from nanoverify.checkpoint import checkpoint_files, load_model
from nanoverify.evaluate import respond, share
from nanoverify.support.files import InputError, output_folder, run, write_json, write_jsonl
from nanoverify.support.stage import (
    add_model_flags,
    add_output_flags,
    add_question_flags,
    load,
    new_parser,
    positive,
    print_memory,
    print_time,
    prompt_check,
    train_problems,
)
from nanoverify.support.state import identity, parts, same_run
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import (
    as_row,
    attempts_for,
    choose_attempts,
    compose,
    loss_mask,
    parse,
    usable,
    well_formed,
)
from nanoverify.verifier import VERIFY_PROMPTS, Verification, agreement, verify

MEASURED = 500  # answers on which a style is measured that does not go into the trajectories
PART = 1000  # questions between two saves


def flags(argv):
    parser = new_parser(__doc__)
    add_output_flags(parser, "out/data")
    add_model_flags(parser)
    add_question_flags(parser)
    group = parser.add_argument_group("stage 0")
    group.add_argument("--count", type=positive, default=4000, help="questions (default: %(default)s)")
    group.add_argument("--samples", type=int, default=8, metavar="K", help="answers per question; paper: 5 (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=1.0, help="of answers; paper: 0.7 (default: %(default)s)")
    group.add_argument("--verify-temperature", type=float, default=0.5, help="of verifications; 0 is greedy (default: %(default)s)")
    group.add_argument("--verifier-model", metavar="DIR", help="model that writes the verifications (default: --model)")
    group.add_argument("--verifications", type=positive, default=1, help="tries per answer and style (default: %(default)s)")
    group.add_argument("--styles", nargs="+", choices=tuple(VERIFY_PROMPTS), default=["confirmative"],
                       help="styles that go into the trajectories; all are measured (default: %(default)s)")
    group.add_argument("--attempts", type=int, default=4, metavar="N", help="of the longest trajectories, for the hardest questions (default: %(default)s)")
    group.add_argument("--keep-easy", type=float, default=0.1, help="share kept of questions never answered wrong; paper's code: 0.24 (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.samples < 2:
        raise InputError(f"--samples {args.samples}: difficulty needs at least 2 answers per question")
    if args.attempts < 2:
        raise InputError(f"--attempts {args.attempts}: a correction needs at least 2")
    if args.temperature <= 0:
        raise InputError(f"--temperature {args.temperature}: must be above 0, or all answers are the same")
    return args


def main(argv=None):
    args = flags(argv)
    print_memory(args)
    model, tokenizer = load(args)
    problems = train_problems(args, args.count)
    print(f"{len(problems)} questions x {args.samples} answers; at most {args.attempts} of each are verified, {args.verifications} times in each style")
    print_time(model, args, tokenizer.vocab_size, len(problems) * (args.samples + args.attempts * args.verifications * len(args.styles)))
    rng = random.Random(args.seed)
    read = [*checkpoint_files(args.model), *(checkpoint_files(args.verifier_model) if args.verifier_model else ())]
    with output_folder(args.out, args.resume, args.overwrite) as folder:
        same_run(folder / "state", identity(args, *read), args.allow_changes)
        # 1. answer each question K times; the rule marks them; the share of wrong ones is the difficulty
        def answer(number, part):
            rows = respond(model, tokenizer, part, args.samples, args.max_new_tokens, args.temperature, 3 * args.seed * 1_000_003 + number,
                           args.batch_size, "answer")
            return [[(t.ids, t.finished) for t in row] for row in rows]

        rows = parts(folder / "state", "answers", problems, PART, answer)
        answers = [[parse(problem, ids, finished, tokenizer) for ids, finished in row] for problem, row in zip(problems, rows)]
        dropped = collections.Counter()
        chosen = {}  # index of the problem -> the solutions of its trajectory
        for i, row in enumerate(answers):
            difficulty = share(not t.solves[-1].right for t in row)
            usable_rows = [t for t in row if t.finished and len(t.actions) == 1 and t.actions[0].answer]
            solves = choose_attempts([t.actions[0].text for t in usable_rows], [t.actions[0].right for t in usable_rows],
                                     attempts_for(difficulty, args.attempts), rng)
            if not solves:
                dropped["no right answer among the samples"] += 1
            elif difficulty == 0 and rng.random() > args.keep_easy:
                dropped["easy, thinned by --keep-easy"] += 1
            else:
                chosen[i] = solves

        # 2. a model verifies each distinct answer in every style; kept where the rule agrees
        judge = load_model(args.verifier_model, args.device) if args.verifier_model else model
        judge_tokenizer = Tokenizer.load(args.verifier_model) if args.verifier_model else tokenizer
        misfit = prompt_check(args)  # a sampled answer can be far longer than the gold one
        claims = [(i, j) for i in chosen for j in range(len(chosen[i]))
                  if not misfit(problems[i].question, extract(chosen[i][j]))]
        pairs = [(problems[i].question, extract(chosen[i][j])) for i, j in claims]
        rights = [j == len(chosen[i]) - 1 for i, j in claims]
        kept, agreements = collections.defaultdict(list), {}
        for number, style in enumerate(VERIFY_PROMPTS):
            def check(part_number, part):
                rows = verify(judge, judge_tokenizer, part, style, args.verifications, args.max_new_tokens, args.verify_temperature,
                              (3 * args.seed + number + 1) * 1_000_003 + part_number, args.batch_size, style)
                return [[(v.text, v.verdict, v.finished) for v in row] for row in rows]

            asked = pairs if style in args.styles else pairs[:MEASURED]
            written = [[Verification(*v) for v in row] for row in parts(folder / "state", style, asked, 4 * PART, check)]
            agreements[style] = agreement([(v.verdict, right) for row, right in zip(written, rights) for v in row])
            for claim, right, row in zip(claims, rights, written):
                if style in args.styles:
                    kept[claim] += [v for v in row if usable(v, right)]

        # 3. compose: wrong attempts first, the right one last, each with a verification the rule confirms
        rows, attempts = [], collections.Counter()
        for i, solves in chosen.items():
            if not kept[i, len(solves) - 1]:
                dropped["no verification of the right answer was kept"] += 1
                continue
            usable_attempts = [j for j in range(len(solves)) if kept[i, j]]
            dropped["wrong attempts without a kept verification"] += len(solves) - len(usable_attempts)
            text = compose([solves[j] for j in usable_attempts], [rng.choice(kept[i, j]) for j in usable_attempts])
            trajectory = parse(problems[i], tokenizer.encode(text) + [tokenizer.end_id], True, tokenizer)
            if not well_formed(trajectory):
                dropped["not well-formed after composing"] += 1
                continue
            attempts[len(usable_attempts)] += 1
            row = as_row(trajectory, tokenizer)
            for action, trained in zip(row["actions"], [loss_mask(trajectory)[a.start] for a in trajectory.actions]):
                action["trained"] = bool(trained)
            rows.append({**row, "difficulty": share(not t.solves[-1].right for t in answers[i])})
        if not rows:
            shutil.rmtree(folder / "state")  # other flags are needed
            raise InputError(f"no trajectory could be composed: {dict(dropped)}; try more --samples, more --count or another --model")
        rng.shuffle(rows)

        wrong = collections.Counter(sum(not t.solves[-1].right for t in row) for row in answers)
        statistics = {
            "questions": len(problems), "trajectories": len(rows),
            "first_accuracy": share(t.solves[-1].right for row in answers for t in row),
            "wrong_answers_histogram": {w: wrong[w] for w in range(args.samples + 1)},
            "verifier": agreements, "attempts": dict(sorted(attempts.items())), "dropped": dict(dropped)}
        write_jsonl(folder / "trajectories.jsonl", rows)
        write_jsonl(folder / "samples.jsonl", (as_row(t, tokenizer) for row in answers for t in row))
        write_json(folder / "statistics.json", statistics)
        write_json(folder / "arguments.json", vars(args))
    shutil.rmtree(Path(args.out) / "state")  # all of it is in samples.jsonl and trajectories.jsonl now
    report(args, statistics)


def report(args, s):
    print(f"{s['questions']} questions, {args.samples} answers each, {100 * s['first_accuracy']:.1f}% right")
    print("difficulty    " + "  ".join(f"{w} wrong: {n}" for w, n in s["wrong_answers_histogram"].items()))
    for style, a in s["verifier"].items():
        cells = "  ".join(f"{key} " + ("-" if a[key] is None else f"{100 * a[key]:.1f}%") for key in ("accuracy", "tpr", "tnr"))
        print(f"{style:16}  {cells}  of {a['count']} verifications")
    print(f"{s['trajectories']} trajectories; attempts: " + "  ".join(f"{k}: {n}" for k, n in s["attempts"].items()))
    print("dropped: " + ("; ".join(f"{n} {why}" for why, n in s["dropped"].items() if n) or "nothing"))
    print(f"-> {args.out}/trajectories.jsonl, samples.jsonl, statistics.json")


if __name__ == "__main__":
    run(main)

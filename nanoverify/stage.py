"""What the three scripts and the evaluation share: flags, device and seed, the model, and who may see which question."""
import argparse
import contextlib
import hashlib
import io
import math
import os
import random
from pathlib import Path

import numpy as np
import torch

from nanoverify import cost
from nanoverify.checkpoint import load_config, load_model
from nanoverify.files import InputError, print_skipped, read_json, read_jsonl, refuse, write_json
from nanoverify.problems import SOLVE_PROMPT, Problem, read_problems, split_of
from nanoverify.puzzles import make_puzzles
from nanoverify.tokenizer import Tokenizer
from nanoverify.verifier import VERIFY_PROMPTS

TEST_DRAW = 1  # the seed with which the puzzles of evaluations are drawn, whatever --seed
POLICY = str(Path(__file__).parent / "policy")  # the shipped initial policy


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


class Help(argparse.RawDescriptionHelpFormatter):
    """A flag and its meaning on one line, so that --help stays short."""
    def __init__(self, prog):
        super().__init__(prog, max_help_position=31)

    def _get_default_metavar_for_optional(self, action):
        return "N" if action.type in (int, positive) else "X"


def new_parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, usage="%(prog)s [flags]", formatter_class=Help)


def add_model_flags(parser, default=POLICY):
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, metavar="DIR",
                       help="Hugging Face folder, or hf:ORG/NAME (hub) (default: %(default)s)")
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: CUDA where there is one")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--max-new-tokens", type=positive, default=320, help="longest response, in tokens (default: %(default)s)")
    group.add_argument("--batch-size", type=positive, default=512, help="responses sampled together (default: %(default)s)")


def add_question_flags(parser):
    group = parser.add_argument_group("questions")
    group.add_argument("--questions", nargs="+", metavar="FILE", help="JSONL: GSM8K, MATH or plain (default: the built-in puzzles)")
    group.add_argument("--test-questions", nargs="+", metavar="FILE",
                       help="JSONL to evaluate on (default: 15%% of --questions, chosen by hash; test puzzles)")
    group.add_argument("--split", choices=("test", "valid"), default="test",
                       help="built-in puzzles to evaluate on: test, once, or valid, to choose by (default: test)")
    group.add_argument("--skip-bad-lines", action="store_true",
                       help="leave out and count lines and questions that cannot be used, "
                            "instead of stopping at the first")
    group.add_argument("--test-count", type=positive, default=1000, help="questions evaluated (default: %(default)s)")


def add_training_flags(group, save_every: int):
    group.add_argument("--micro-tokens", type=positive, 
                       help="tokens per forward pass of a worker; lower it if memory runs out (default: 4096 to 16384 on CUDA, "
                            "by its memory; 2048 on a CPU)")
    group.add_argument("--recompute", action="store_true", help="keep only layer inputs for the backward pass: far less memory, a third more time")
    group.add_argument("--eval-every", type=int, default=0, metavar="STEPS", help="evaluate on the way; 0: only at the end")
    group.add_argument("--save-every", type=positive, metavar="STEPS", default=save_every, help="save the state of the run in OUT.part/state (default: %(default)s)")
    group.add_argument("--keep", type=positive, default=1, metavar="N", help="newest states kept (default: %(default)s)")


def add_output_flags(parser, default: str):
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=default, metavar="DIR", help="folder; work goes on in OUT.part (default: %(default)s)")
    group.add_argument("--resume", action="store_true", help="go on with an interrupted run in OUT.part, or with a finished one in OUT up to --steps")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    group.add_argument("--allow-changes", action="store_true", help="--resume even with other arguments or files than before")


def set_up(args):
    """Seed everything, and check the device."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}")
    if torch.device(args.device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for the products that stay in fp32, those with lm_head
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), 8))  # small matrices do not feed more


def load(args):
    """(model in fp32, tokenizer) of --model on --device."""
    set_up(args)
    model = load_model(args.model, args.device)
    model.recompute = getattr(args, "recompute", False)
    return model, Tokenizer.load(args.model)


def clipped_step(model, optimizer, where: str) -> float:
    """One optimizer step, the gradient clipped to norm 1. -> its norm before. InputError if it is not finite: such a step is never taken."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    if not math.isfinite(norm):
        raise InputError(f"{where}: the gradient is not finite; lower --lr and go on from the last saved state with --resume --allow-changes")
    optimizer.step()
    optimizer.zero_grad()
    return norm


def print_memory(args, frozen: int = 0):
    """The computed memory of a stage, before its model is loaded. Prompts are taken to have at most 256 tokens.

    A stage that trains without --micro-tokens gets as many as fit into nine tenths of the GPU's memory.
    """
    config, training = load_config(args.model), hasattr(args, "micro_tokens")
    estimate = lambda tokens: cost.estimate(config, args.batch_size, args.max_new_tokens + 256, tokens,
                                            training and args.recompute, frozen, torch.device(args.device).type)
    if training and args.micro_tokens is None:
        memory = 0.9 * cost.device_memory(args.device)
        args.micro_tokens = next((tokens for tokens in cost.MICRO_TOKENS if estimate(tokens)["peak"] <= memory),
                                 cost.MICRO_TOKENS[-1]) if torch.device(args.device).type == "cuda" else 2048
    print(cost.memory_line(estimate(args.micro_tokens if training else 0)))


def print_time(model, args, vocab_size: int, responses: int, longest: int = 0, tokens: float = 0, trained: float = 0):
    """How long the stage will take, from one step of each kind at its largest. responses: how many are sampled; longest: tokens of the
    longest sequence trained on, 0: no training; tokens: what is known now to be trained on; trained: forward and backward passes over responses, all in all."""
    context = model.config.max_position_embeddings
    moments = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)] if longest else []  # Adam's memory is taken
    rows = max(min(args.batch_size, responses), 1)
    per_token = responses * cost.decoding_step(model, rows, min(args.max_new_tokens + 256, context)) / rows
    fixed = 0.0
    if longest:
        longest = min(longest, context)
        rows = max(args.micro_tokens // longest, 1)
        seconds = cost.training_pass(model, rows, longest, vocab_size) / (rows * longest)
        fixed, per_token = tokens * seconds, per_token + trained * seconds
    del moments
    print(cost.time_line(fixed, per_token))


def bad_lines(args) -> list | None:
    """Where reasons of skipped lines go; None: the first bad line is an error."""
    return [] if getattr(args, "skip_bad_lines", False) else None


def quiet():
    """What was said on stderr before is not said again within such a block."""
    return contextlib.redirect_stderr(io.StringIO())


def prompt_check(args):
    """A function (question, answer) -> why a prompt this stage makes of them is too long, or ''.

    Stage 0 also asks, in longer prompts, if an answer is right.
    """
    asked = [(args.model, SOLVE_PROMPT)]
    if hasattr(args, "verifications"):
        judge = args.verifier_model or args.model
        asked += [(judge, prompt) for prompt in VERIFY_PROMPTS.values()]
    with quiet():  # the stage loads them, too
        tokenizers = {name: Tokenizer.load(name) for name, _ in asked}
    contexts = {name: load_config(name).max_position_embeddings for name in tokenizers}

    def reason(question: str, answer: str) -> str:
        for name, prompt in asked:
            text = prompt.format(question=question, answer=answer)
            length = len(tokenizers[name].prompt(text))
            if length + args.max_new_tokens > contexts[name]:
                kind = "prompt" if prompt == SOLVE_PROMPT else "verification prompt"
                return (f"its {kind} has {length} tokens; with --max-new-tokens "
                        f"{args.max_new_tokens} it does not fit into the model's context of "
                        f"{contexts[name]}")
        return ""
    return reason


def fitting(args, problems: list[Problem]) -> list[Problem]:
    """The questions whose prompts fit, so that none stops a run halfway.

    InputError: one does not fit; with --skip-bad-lines such questions are left out and counted.
    """
    reason, bad = prompt_check(args), bad_lines(args)
    todo = "; lower that flag, or leave such questions out with --skip-bad-lines" * (bad is None)
    kept = []
    for problem in problems:
        if why := reason(problem.question, problem.answer):
            refuse(f"question {problem.id!r}: {why}{todo}", bad)
        else:
            kept.append(problem)
    print_skipped(bad)
    if bad and not kept:
        raise InputError(f"no question is left; the first: {bad[0]}")
    return kept


def say_overlap(learned: list[str], held_out: list[Problem]):
    """Count the test questions that are trained on, whatever their white space and capitals."""
    plain = lambda question: " ".join(question.casefold().split())
    learned = set(map(plain, learned))
    if count := sum(plain(problem.question) in learned for problem in held_out):
        print(f"{count} of {len(held_out)} test questions are training questions, too: their "
              "answers may be memory; take them out of one of the files")


def train_problems(args, count: int) -> list[Problem]:
    """At most `count` questions to learn from."""
    if not args.questions:
        return fitting(args, make_puzzles("train", count, args.seed))
    problems = read_problems(args.questions, bad_lines(args))
    if args.test_questions:
        with quiet():  # `test_problems` says what is left out
            held_out = read_problems(args.test_questions, bad_lines(args))
    else:
        held_out = [problem for problem in problems if split_of(problem.question) == "test"]
        problems = [problem for problem in problems if split_of(problem.question) == "train"]
    if not problems:
        raise InputError(f"{', '.join(args.questions)}: no question falls into the 80% for "
                         "training, chosen by hash; give --test-questions, then all are trained on")
    say_overlap([problem.question for problem in problems], held_out)
    return fitting(args, random.Random(args.seed).sample(problems, min(count, len(problems))))


def batch_of(items: list, size: int, step: int, seed: int) -> list:
    """Batch number `step`, from 1: the items in rounds, shuffled anew for each; the last batch of a round may be smaller.
    Nothing is remembered from one step to the next, so a run can go on anywhere."""
    number, place = divmod(step - 1, -(-len(items) // size))
    return random.Random(f"{seed} {number}").sample(items, len(items))[place * size: (place + 1) * size]


def test_problems(args) -> list[Problem]:
    """Questions no stage learns from; the same for every seed. InputError: none is left, or one
    does not fit."""
    problems = held_out_problems(args)
    if hasattr(args, "data"):  # stage 1 learns from trajectories
        rows = [row for _, row in read_jsonl(args.data, bad=[])]
        texts = [row.get("question") for row in rows]
        say_overlap([text for text in texts if isinstance(text, str)], problems)
    return fitting(args, problems)


def held_out_problems(args) -> list[Problem]:
    """`test_problems`, without a look at overlap and length."""
    if args.test_questions:
        problems = read_problems(args.test_questions, bad_lines(args))
    elif args.questions:
        problems = [problem for problem in read_problems(args.questions, bad_lines(args)) if split_of(problem.question) == "test"]
        if not problems:
            raise InputError(f"{', '.join(args.questions)}: no question falls into the 15% kept for testing; give --test-questions")
    else:
        return make_puzzles(args.split, args.test_count, TEST_DRAW, fewer=True)
    return random.Random(0).sample(problems, min(args.test_count, len(problems)))


# ---- evaluations travel from stage to stage, so that the last one can print base, SFT and RL side by side ------------

def asked(args) -> dict:
    """What makes two evaluations comparable."""
    with quiet():
        texts = "\n".join(problem.question for problem in held_out_problems(args))
    questions = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()
    return {"questions": args.questions, "test_questions": args.test_questions,
            "split": args.split, "test_count": args.test_count,
            "max_new_tokens": args.max_new_tokens, "sha256": questions}


def earlier_evaluations(args) -> dict[str, dict]:
    """{"base": report, ...} that the stage before saved beside --model; {} if there is none or it asked something else."""
    path = Path(args.model) / "evaluation.json"
    saved = read_json(path) if path.exists() else {}
    columns = saved.get("columns")
    if saved and not (isinstance(columns, dict) and all(isinstance(column, dict) for column in columns.values())):
        raise InputError(f"{path}: holds no columns; remove it, then the model is evaluated anew")
    return columns if saved.get("asked") == asked(args) else {}


def save_evaluations(folder, columns: dict, args):
    write_json(Path(folder) / "evaluation.json", {"asked": asked(args), "columns": columns})

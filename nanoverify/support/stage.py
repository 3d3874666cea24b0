"""Shared by the three scripts and the evaluation: flags, device and seed, the model, and the split
of the questions.
"""
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

from nanoverify.checkpoint import load_config, load_model, save_model
from nanoverify.problems import SOLVE_PROMPT, Problem, read_problems, split_of
from nanoverify.puzzles import make_puzzles
from nanoverify.sampler import Sampling
from nanoverify.support import cost
from nanoverify.support.files import (
    InputError,
    print_skipped,
    read_json,
    read_jsonl,
    refuse,
    write_json,
    write_jsonl,
)
from nanoverify.support.flags import Parser, at_least_0, positive
from nanoverify.support.progress import bar
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import Trajectory, as_row
from nanoverify.verifier import VERIFY_PROMPTS

PUZZLES = 6000  # built-in ones that stage 2 draws from
TEST_TEMPERATURE = 0.7  # of the responses of evaluations
TEST_DRAW = 1  # the seed of the puzzles of evaluations, independent of --seed
POLICY = str(Path(__file__).parents[1] / "policy")  # the shipped initial policy
TRAINED = str(Path(__file__).parents[1] / "trained")  # and what the three stages made of it


class Help(argparse.RawDescriptionHelpFormatter):
    """A flag and its meaning on one line, so that --help stays short."""
    def __init__(self, prog):
        super().__init__(prog, max_help_position=31)

    def _get_default_metavar_for_optional(self, action):
        return "N" if action.type in (int, positive) else "X"


def new_parser(description: str) -> Parser:
    return Parser(description, usage="%(prog)s [flags]", formatter_class=Help)


def parse_with_recipe(parser, argv, paper: dict):
    """The flags. --recipe paper changes the defaults of those in `paper`, {its name: value}."""
    content = " ".join(f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}"
                       for name, value in paper.items())
    parser.add_argument("--recipe", choices=("paper",),
                        help=f"the paper's settings, {content}; other flags still count")
    args = parser.parse_args(argv)
    if args.recipe:
        parser.set_defaults(**paper)
        args = parser.parse_args(argv)
    return args


def latest_model() -> str:
    """out/rl, or the shipped trained model as long as there is none."""
    return "out/rl" if Path("out/rl").is_dir() else TRAINED


def add_model_flags(parser, default=POLICY):
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, metavar="DIR",
                       help="Hugging Face folder, or hf:ORG/NAME (hub) (default: %(default)s)")
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                       help="default: CUDA if there is one")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--max-new-tokens", type=positive, default=400,
                       help="longest response, in tokens (default: %(default)s)")
    group.add_argument("--batch-size", type=positive, default=512,
                       help="responses sampled together (default: %(default)s)")


def add_question_flags(parser):
    group = parser.add_argument_group("questions")
    group.add_argument("--questions", nargs="+", metavar="FILE",
                       help="JSONL: GSM8K, MATH or plain (default: the built-in puzzles)")
    group.add_argument("--test-questions", nargs="+", metavar="FILE",
                       help="JSONL to evaluate on (default: 15%% of --questions, chosen by hash; "
                            "test puzzles)")
    group.add_argument("--split", choices=("test", "valid"), default="test",
                       help="built-in puzzles to evaluate on: test, once, or valid, to choose by "
                            "(default: test)")
    group.add_argument("--skip-bad-lines", action="store_true",
                       help="leave out and count lines and questions that cannot be used, "
                            "instead of stopping at the first")
    group.add_argument("--test-count", type=positive, default=1000,
                       help="questions evaluated (default: %(default)s)")
    group.add_argument("--test-temperature", type=at_least_0, default=TEST_TEMPERATURE,
                       help="of their responses; 0 is greedy (default: %(default)s)")


def add_training_flags(group, save_every: int):
    group.add_argument("--micro-tokens", type=positive,
                       help="tokens per forward pass of a worker; lower it if memory runs out "
                            "(default: 4096 to 16384 on CUDA, by its memory; 2048 on a CPU)")
    group.add_argument("--recompute", action="store_true",
                       help="keep only layer inputs for the backward pass: far less memory, "
                            "a third more time")
    group.add_argument("--eval-every", type=int, default=0, metavar="STEPS",
                       help="evaluate every STEPS steps; 0: only at the end")
    group.add_argument("--save-every", type=positive, metavar="STEPS", default=save_every,
                       help="save the state of the run in OUT.part/state (default: %(default)s)")


def add_output_flags(parser, default: str):
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=default, metavar="DIR",
                       help="folder; a run works in OUT.part (default: %(default)s)")
    group.add_argument("--resume", action="store_true",
                       help="continue an interrupted run in OUT.part, or a finished one in OUT up "
                            "to --steps")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    group.add_argument("--allow-changes", action="store_true",
                       help="--resume with other arguments or files than before")


def on_cuda(device: str) -> bool:
    """Whether this device is a CUDA GPU. InputError: there is no such device."""
    try:
        return torch.zeros(1, device=device).device.type == "cuda"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # a list of 20 words follows
            reason = "there is no such kind of device; give cpu or cuda"
        raise InputError(f"--device {device}: {reason}")


def set_up(args):
    """Seed everything, and check the device."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    if on_cuda(args.device):
        torch.set_float32_matmul_precision("high")  # TF32 for the fp32 products, those with lm_head
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), 8))  # small matrices occupy no more


def load(args):
    """(model in fp32, tokenizer) of --model on --device."""
    set_up(args)
    model = load_model(args.model, args.device)
    model.recompute = getattr(args, "recompute", False)
    return model, Tokenizer.load(args.model)


def clipped_step(model, optimizer, where: str) -> float:
    """One optimizer step with the gradient clipped to norm 1; returns its norm before that.
    InputError: it is not finite; no step is taken.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    if not math.isfinite(norm):
        raise InputError(f"{where}: the gradient is not finite; lower --lr and continue "
                         "from the last saved state with --resume --allow-changes")
    optimizer.step()
    optimizer.zero_grad()
    return norm


def print_memory(args, frozen: int = 0):
    """Print the estimated memory of a stage, before its model is loaded. Prompts are assumed to
    have at most 256 tokens.

    A stage that trains without --micro-tokens gets as many as fit into nine tenths of the GPU's
    memory.
    """
    config, training = load_config(args.model), hasattr(args, "micro_tokens")
    kind = "cuda" if on_cuda(args.device) else "cpu"

    def estimate(tokens):
        return cost.estimate(config, args.batch_size, args.max_new_tokens + 256, tokens,
                             training and args.recompute, frozen, kind)
    if training and args.micro_tokens is None:
        args.micro_tokens = 2048
        if kind == "cuda":
            memory = 0.9 * cost.device_memory(args.device)
            enough = (n for n in cost.MICRO_TOKENS if estimate(n)["peak"] <= memory)
            args.micro_tokens = next(enough, cost.MICRO_TOKENS[-1])
    print(cost.memory_line(estimate(args.micro_tokens if training else 0)))


def print_time(model, args, vocab_size: int, responses: int, longest: int = 0, tokens: float = 0,
               trained: float = 0):
    """Print the estimated time of a stage, from one step of each kind at its largest.

    responses    number of responses sampled
    longest      tokens of the longest training sequence; 0: no training
    tokens       training tokens that are known beforehand
    trained      forward and backward passes over responses, in total
    """
    # 1. sampling
    context = model.config.max_position_embeddings
    moments = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)] \
        if longest else []  # as much memory as Adam's
    rows = max(min(args.batch_size, responses), 1)
    step = cost.decoding_step(model, rows, min(args.max_new_tokens + 256, context))
    fixed, per_token = 0.0, responses * step / rows

    # 2. training
    if longest:
        longest = min(longest, context)
        rows = max(args.micro_tokens // longest, 1)
        seconds = cost.training_pass(model, rows, longest, vocab_size) / (rows * longest)
        fixed, per_token = tokens * seconds, per_token + trained * seconds
    del moments
    print(cost.time_line(fixed, per_token))


def print_rl_plan(model, tokenizer, held_out: list[Problem], args):
    """How long stage 2 will take, and what a step of it is. held_out: questions evaluated."""
    some = held_out[:100]
    lengths = [len(tokenizer.prompt(SOLVE_PROMPT.format(question=p.question))) for p in some]
    prompt = sum(lengths) / len(lengths) if lengths else 0  # mean length
    responses = args.steps * args.prompts * args.samples
    # a forward pass is a third of a pass with its gradient
    passes = 1 + ((args.beta > 0) + (args.advantage == "gae")) / 3
    print_time(model, args, tokenizer.vocab_size, responses + len(held_out),
               args.max_new_tokens + round(prompt), responses * passes * prompt, responses * passes)
    print(f"{args.prompts} questions x {args.samples} samples = {args.prompts * args.samples} "
          f"responses per step, {args.minibatches} optimizer steps each, {args.steps} steps")


def bad_lines(args) -> list | None:
    """A list for the reasons of skipped lines; None: the first bad line is an error."""
    return [] if getattr(args, "skip_bad_lines", False) else None


def quiet():
    """A block whose messages on stderr would repeat earlier ones: they are dropped."""
    return contextlib.redirect_stderr(io.StringIO())


def prompt_check(args):
    """A function (question, answer) -> the reason why a prompt of this stage is too long, or ''.

    Stage 0 has longer prompts as well, which ask whether an answer is right.
    """
    prompts = [(args.model, SOLVE_PROMPT)]
    if hasattr(args, "verifications"):
        judge = args.verifier_model or args.model
        prompts += [(judge, prompt) for prompt in VERIFY_PROMPTS.values()]
    with quiet():  # the stage loads them as well
        tokenizers = {name: Tokenizer.load(name) for name, _ in prompts}
    contexts = {name: load_config(name).max_position_embeddings for name in tokenizers}

    def reason(question: str, answer: str) -> str:
        for name, prompt in prompts:
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
    """The questions whose prompts fit into the model's context.

    InputError: one does not fit. With --skip-bad-lines such questions are left out and counted.
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
    """Report the number of test questions that are trained on, except for spaces and capitals."""
    def plain(question):
        return " ".join(question.casefold().split())
    learned = set(map(plain, learned))
    if count := sum(plain(problem.question) in learned for problem in held_out):
        print(f"{count} of {len(held_out)} test questions are training questions, too: their "
              "answers may be memory; take them out of one of the files")


def train_problems(args, count: int | None = None) -> list[Problem]:
    """At most `count` questions to learn from; None: all of --questions, or PUZZLES puzzles."""
    if not args.questions:
        return fitting(args, make_puzzles("train", count or PUZZLES, args.seed))
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
    count = min(count or len(problems), len(problems))
    return fitting(args, random.Random(args.seed).sample(problems, count))


def steps_left(done: int, last: int, label: str):
    """Steps done + 1 to `last`, as a progress bar. InputError: more are done already."""
    if done > last:
        raise InputError(f"--resume: {done} steps are done already, more than the {last} of "
                         "this command; give a larger --steps")
    return bar(range(done + 1, last + 1), desc=label, initial=done, total=last)


def batch_of(items: list, size: int, step: int, seed: int) -> list:
    """Batch number `step`, from 1. Each round over the items has a new order; its last batch may be
    smaller. The batch depends on the seed and the step only, so a run can resume at any step.
    """
    batches = -(-len(items) // size)  # of a round
    number, place = divmod(step - 1, batches)
    shuffled = random.Random(f"{seed} {number}").sample(items, len(items))
    return shuffled[place * size: (place + 1) * size]


def test_sampling(args) -> Sampling:
    """How evaluations sample: one response for each question, the same one for every --seed."""
    return Sampling(args.max_new_tokens, args.test_temperature, seed=0, batch_size=args.batch_size)


def test_problems(args) -> list[Problem]:
    """Questions that no stage learns from; the same for every seed. InputError: none is left, or
    one does not fit.
    """
    problems = held_out_problems(args)
    if hasattr(args, "data"):  # stage 1 learns from trajectories
        rows = [row for _, row in read_jsonl(args.data, bad=[])]
        texts = [row.get("question") for row in rows]
        say_overlap([text for text in texts if isinstance(text, str)], problems)
    return fitting(args, problems)


def held_out_problems(args) -> list[Problem]:
    """`test_problems`, without the checks of overlap and length."""
    if args.test_questions:
        problems = read_problems(args.test_questions, bad_lines(args))
    elif args.questions:
        problems = [problem for problem in read_problems(args.questions, bad_lines(args))
                    if split_of(problem.question) == "test"]
        if not problems:
            raise InputError(f"{', '.join(args.questions)}: no question falls into the 15% kept "
                             "for testing; give --test-questions")
    else:
        return make_puzzles(args.split, args.test_count, TEST_DRAW, fewer=True)
    return random.Random(0).sample(problems, min(args.test_count, len(problems)))


# ---- evaluations of earlier stages: the last stage prints base, SFT and RL side by side ----------

def asked(args) -> dict:
    """What must be equal for two evaluations to be comparable."""
    with quiet():
        texts = "\n".join(problem.question for problem in held_out_problems(args))
    questions = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()
    return {"questions": args.questions, "test_questions": args.test_questions,
            "split": args.split, "test_count": args.test_count,
            "max_new_tokens": args.max_new_tokens, "temperature": args.test_temperature,
            "sha256": questions}


def earlier_evaluations(args) -> dict[str, dict]:
    """{"base": report, ...}, which the earlier stage saved beside --model; {} if there is none, or
    if it is not comparable.
    """
    path = Path(args.model) / "evaluation.json"
    saved = read_json(path) if path.exists() else {}
    columns = saved.get("columns")
    usable = isinstance(columns, dict) and all(isinstance(c, dict) for c in columns.values())
    if saved and not usable:
        raise InputError(f"{path}: holds no columns; remove it, then the model is evaluated again")
    return columns if saved.get("asked") == asked(args) else {}


def save_evaluations(folder, columns: dict, args):
    write_json(Path(folder) / "evaluation.json", {"asked": asked(args), "columns": columns})


def save_result(folder, model, tokenizer, answers: list[Trajectory], columns: dict, args, **more):
    """What a training stage leaves: the model, its evaluation with all responses, its arguments."""
    folder = Path(folder)
    save_model(model, folder, args.model)
    save_evaluations(folder, columns, args)
    write_jsonl(folder / "responses.jsonl", (as_row(t, tokenizer) for t in answers))
    write_json(folder / "arguments.json", {**vars(args), **more})

"""Ask a model one question and watch it solve, check and try again.

    python -m nanoverify.ask --model out/rl "27 increased by 2 times a number is 39. What is it?"
    python -m nanoverify.ask --model out/rl --gold 6 "27 increased by ..."  # and the rule's verdict
    python -m nanoverify.ask --model out/rl               # asks for questions until an empty line

Checks are blue. After each verdict follows its answer: green if accepted, red and struck through if
rejected. Without a terminal the output is plain text.
"""
import argparse
import functools
import sys

import torch

from nanoverify.problems import SOLVE_PROMPT, Problem
from nanoverify.sampler import next_token, prefill, uniform
from nanoverify.support.decoding import decode, fuse
from nanoverify.support.files import InputError, run
from nanoverify.support.kernels import autocast
from nanoverify.support.stage import add_model_flags, load
from nanoverify.trajectory import parse
from nanoverify.verifier import VERDICTS

BLUE, GREEN, RED, PLAIN = "\033[34m", "\033[32m", "\033[31;9m", "\033[0m"


@torch.inference_mode()
def stream(model, tokenizer, prompt: list[int], max_new_tokens: int, temperature: float, seed: int):
    """Yield the ids of one response as they are sampled."""
    context, device = model.config.max_position_embeddings, model.lm_head.weight.device
    if len(prompt) >= context:
        raise InputError(f"the question has {len(prompt)} tokens; the model's context is {context}")
    numbers = uniform(seed, 0, 1, min(max_new_tokens, context - len(prompt)))[0].to(device)
    fused = fuse(model, tokenizer.vocab_size)
    cache, logits = prefill(model, [prompt], tokenizer.vocab_size)
    for u in numbers:
        ids, _ = next_token(logits, temperature, 0, 1.0, u[None])
        yield ids.item()
        if ids.item() in tokenizer.stop_ids:
            return
        cache.reserve(1)
        logits = decode(fused, ids, cache)


def show(tokenizer, problem: Problem, ids, write, colour: bool):
    """Write a response token by token; returns its Trajectory. ids: an iterable of token ids."""
    def paint(text, code):
        return f"{code}{text}{PLAIN}" if colour else text

    def write_verdicts(actions, start):
        """From number `start` on; returns the number of verdicts."""
        checks = list(zip(actions[::2], actions[1::2]))
        for solve, verify in checks[start:]:
            verdict = {True: "accepted", False: "rejected", None: "no verdict"}[verify.verdict]
            right = "right" if solve.right else "wrong"
            rule = f"; the rule says {right}" if problem.answer else ""
            write(paint(f" [{verdict}: {solve.answer or 'no answer'}{rule}]",
                        GREEN if verify.verdict else RED))
        return len(checks)

    kept, shown, verdicts = [], 0, 0  # ids, characters written, verdicts written
    for id in ids:
        kept.append(id)
        trajectory = parse(problem, kept, id in tokenizer.stop_ids, tokenizer)
        text = tokenizer.decode(kept)
        if not text.endswith("\ufffd"):  # a character cut in the middle waits for its other bytes
            checking = trajectory.actions[-1].kind == "verify"
            write(paint(text[shown:], BLUE) if checking else text[shown:])
            shown = len(text)
        if trajectory.actions[-1].text.endswith(tuple(VERDICTS.values())):
            verdicts = write_verdicts(trajectory.actions, verdicts)
    write_verdicts(trajectory.actions, verdicts)
    write("\n" if trajectory.finished else "\n(cut by --max-new-tokens)\n")
    return trajectory


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?",
                        help="without it: lines of standard input, until an empty one")
    add_model_flags(parser, default="out/rl")
    parser.add_argument("--gold", default="", metavar="ANSWER",
                        help="the right answer, to see the rule's verdict as well")
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="0 is greedy (default: %(default)s)")
    args = parser.parse_args(argv)
    model, tokenizer = load(args)
    write = functools.partial(print, end="", flush=True)
    question = args.question
    while question or (args.question is None and (question := ask_line())):
        problem = Problem("asked", question, args.gold, "asked", None)
        prompt = tokenizer.prompt(SOLVE_PROMPT.format(question=question))
        with autocast(args.device):
            ids = stream(model, tokenizer, prompt, args.max_new_tokens, args.temperature, args.seed)
            show(tokenizer, problem, ids, write, sys.stdout.isatty())
        question = None


def ask_line() -> str:
    try:
        return input("question: " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    run(main)

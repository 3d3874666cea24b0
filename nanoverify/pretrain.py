"""Train the small chat model that is shipped in nanoverify/policy: a stand-in for the base model of the paper.

From worked examples of the training split it learns what a base model can do before the three stages:

    solve        steps written; in most families the last one is done in the head, so many answers are near misses
    check        put a given answer back into the question; or, less often, solve it again and compare
    chat         find the answer it gave some lines above when asked to check it, and give another one when told to;
                 after a third of the run most wrong answers in these conversations are its own
    guess        a game: another number than those that were wrong
    drills       the arithmetic below all that

It never checks or retries unasked, and the phrases that open these actions never come in use: that is what the stages
teach. It is trained for a short time only, so its solutions and its checks are often wrong.

    python -m nanoverify.pretrain --out policy
"""
import argparse
import collections
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from nanoverify.evaluate import respond
from nanoverify.model import Config, Transformer
from nanoverify.problems import SOLVE_PROMPT
from nanoverify.puzzles import (
    FAMILIES,
    LEVELS,
    NAMES,
    UNKNOWN,
    add,
    compare,
    expression,
    minus,
    puzzle,
    steps_of,
    times,
)
from nanoverify.sampler import Sampling
from nanoverify.scoring import backward
from nanoverify.support.cpu import workers
from nanoverify.support.files import InputError, output_folder, run, write_json
from nanoverify.support.kernels import autocast
from nanoverify.tokenizer import Tokenizer as OurTokenizer
from nanoverify.verifier import VERDICTS, VERIFY_PROMPTS

KNOWN = tuple(family for family in FAMILIES if family != "tickets")
SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
# The words of the phrases, so that they are tokens the base has met; it meets them only where it is asked to say them.
PHRASES = ("Wait, let me recheck my solution.", "Let me try again.", *VERDICTS.values())
ASK_CHECK = ("Check it.", "Is that right? Put it back into the question.", "Check that answer.")
ASK_AGAIN = ("That is wrong. Give another answer.", "No. What else can it be?", "That is not it. Solve it once more.")

Piece = tuple[str, bool]  # a text, and whether it is learned

# ---- worked examples -------------------------------------------------------------------------------------------------


def solve_text(family: str, numbers: dict, x) -> str:
    return " ".join([*FAMILIES[family].solve(numbers, x), f"The answer is {x}."])


def check_text(family: str, numbers: dict, given) -> str:
    steps = FAMILIES[family].check(numbers, given)
    right = steps[-1].endswith("as it is.")
    return " ".join([f"Put in {given}:", *steps, VERDICTS[right]])


def again_text(family: str, numbers: dict, given) -> str:
    x, steps = numbers["x"], FAMILIES[family].solve(numbers, numbers["x"])
    same = "the same." if given == x else "not the same."
    return " ".join(["Solving again:", *steps, f"It is {x}. The answer above is {given}, {same}", VERDICTS[given == x]])


def near_miss(rng, numbers: dict, level: int, known=()):
    """A wrong answer that a hasty solver could give, none of those `known`."""
    x = numbers["x"]
    while True:
        if "target" in numbers:
            tries = [expression(rng, numbers["numbers"]) for _ in range(rng.randint(1, 5))]
            wrong, value = min(tries, key=lambda one: (one[1] == numbers["target"], abs(one[1] - numbers["target"])))
            if value == numbers["target"]:
                continue
            if rng.random() < 0.1:  # one number twice, or none of the list
                digit = str(rng.choice(numbers["numbers"]))
                wrong = wrong.replace(digit, str(rng.randint(2, 12)), 1)
        elif rng.random() < 0.7:
            size = 1
            while rng.random() < 0.5:
                size += 1
            wrong = x + rng.choice((-size, size))
        elif rng.random() < 0.5:
            wrong = x + rng.choice((-10, 10))
        else:
            wrong = rng.randint(1, UNKNOWN[level][1] + 5)
        if wrong != x and wrong not in known and (isinstance(wrong, str) or wrong > 0):
            return wrong


def chat(rng, family: str, numbers: dict, question: str, wrongs: list[tuple[str, object]]) -> list[Piece]:
    """A conversation about one question: an answer, its check on demand, another answer on demand, and so on.

    wrongs: (solution, its answer), which come before the right one. They are only read; checks and the right solution
    are learned.
    """
    pieces = [(f"<|user|>{SOLVE_PROMPT.format(question=question)}", False)]
    for text, answer in [*wrongs, (solve_text(family, numbers, numbers["x"]), numbers["x"])]:
        right = answer == numbers["x"]
        pieces += [("<|assistant|>", False), (text + "<|end|>", right)]
        if rng.random() < 0.6:
            pieces += [(f"<|user|>{rng.choice(ASK_CHECK)}<|assistant|>", False),
                       (check_text(family, numbers, answer) + "<|end|>", True)]
        if not right:
            pieces.append((f"<|user|>{rng.choice(ASK_AGAIN)}", False))
    return pieces


def near_misses(rng, family: str, numbers: dict, level: int, count: int) -> list[tuple[str, object]]:
    """Wrong solutions that somebody else could have written, with different answers."""
    known = []
    for _ in range(count):
        known.append(near_miss(rng, numbers, level, known))
    return [(solve_text(family, numbers, answer), answer) for answer in known]


def guess(rng) -> list[Piece]:
    """A guessing game, in which no answer comes twice."""
    low = rng.randint(1, 10)
    numbers = rng.sample(range(low, low + rng.randint(6, 14)), rng.randint(3, 6))
    pieces = [("<|user|>Guess my number.", False)]
    for number in numbers:
        pieces += [("<|assistant|>", False), (f"The answer is {number}.<|end|>", True),
                   (f"<|user|>{rng.choice(ASK_AGAIN)}", False)]
    return pieces[:-1]


def drill(rng) -> list[Piece]:
    """One exercise. Only its result is learned, for nobody can foresee what is asked."""
    kind = rng.choice(("add", "add", "minus", "minus", "times", "times", "compare", "divide"))
    big, small = rng.choice((20, 50, 99, 200, 360)), rng.choice((10, 20, 40, 40))
    a, b = rng.randint(1, big), rng.randint(1, small)
    if kind == "compare":
        b = abs(rng.choice((a, a, a + rng.randint(-12, 12), a + rng.choice((-100, -10, 10, 100)), rng.randint(1, big))))
        left, right = compare(a, b).split(", ", 1)
        return [(f" The result is {a}. {left},", False), (f" {right} {VERDICTS[a == b]}", True)]
    if kind == "divide":
        a, b = rng.randint(2, rng.choice((9, 18))), rng.randint(2, 9)
        return [(f" {a * b} / {b} =", False), (f" {a}.", True)]
    if kind == "times":
        text = times(rng.randint(2, rng.choice((9, 18))), rng.randint(2, rng.choice((9, 9, 9, 28))))
    else:
        text = add(*rng.choice(((a, b), (b, a)))) if kind == "add" else minus(max(a, b), min(a, b))
    statement, result = text.split(" = ")
    return [(f" {statement} =", False), (f" {result}", True)]


WEIGHTS = {"drills": 8, "guess": 8, "solve": 24, "check": 15, "again": 4, "chat": 40, "phrase": 1}


def train_puzzle(rng):
    """(family, level, numbers, problem) of the training split. Countdown, the hardest, comes three times as often."""
    while True:
        family, level = rng.choice((*KNOWN, "countdown", "countdown")), rng.choice(LEVELS)
        split, numbers, problem = puzzle(rng, family, level)
        if split == "train":
            return family, level, numbers, problem


def example(rng, weights=WEIGHTS, own=()) -> list[Piece]:
    """One document as (text, is it learned?) pieces. own: see `own_mistakes`."""
    kind = rng.choices(list(weights), list(weights.values()))[0]
    if kind == "drills":
        exercises = [piece for _ in range(rng.randint(4, 12)) for piece in drill(rng)]
        return [("<|user|>Calculate.<|assistant|>", False), *exercises, ("<|end|>", True)]
    if kind == "guess":
        return guess(rng)
    if kind == "phrase":
        phrase = rng.choice(PHRASES)
        return [(f"<|user|>Say: {phrase}<|assistant|>", False), (phrase + "<|end|>", True)]
    family, level, numbers, problem = train_puzzle(rng)
    if kind == "chat":
        if rng.random() < 0.25:
            wrongs = []
        elif own and rng.random() < 0.85:
            family, numbers, problem, mistakes = rng.choice(own)
            wrongs = mistakes[:rng.randint(1, 3)]
        else:
            wrongs = near_misses(rng, family, numbers, level, rng.randint(1, 3))
        return chat(rng, family, numbers, problem.question, wrongs)
    if kind == "solve":
        prompt, response = SOLVE_PROMPT.format(question=problem.question), solve_text(family, numbers, numbers["x"])
    else:
        given = numbers["x"] if rng.random() < 0.5 else near_miss(rng, numbers, level)
        style, write = (("confirmative", check_text), ("problem-solving", again_text))[kind == "again"]
        prompt = VERIFY_PROMPTS[style].format(question=problem.question, answer=given)
        response = write(family, numbers, given)
    return [(f"<|user|>{prompt}<|assistant|>", False), (response + "<|end|>", True)]


def own_mistakes(model, tokenizer: OurTokenizer, rng, count: int) -> list:
    """(family, numbers, problem, its wrong solutions, the most frequent first) of training puzzles it gets wrong now.

    A model that has only met other people's mistakes repeats its own when it is told of them: it believes in them.
    """
    drawn = [train_puzzle(rng) for _ in range(count)]
    rows = respond(model, tokenizer, [problem for *_, problem in drawn], Sampling(64, 1.0, samples=4, seed=rng.randrange(2 ** 31)))
    found = []
    for (family, _, numbers, problem), row in zip(drawn, rows):
        mistakes = collections.defaultdict(list)
        for t in row:
            answer = readable(t.solves[-1].answer, family)
            if t.finished and len(t.actions) == 1 and answer is not None and not t.solves[-1].right:
                mistakes[answer].append(t.solves[-1].text)
        if mistakes:
            by_frequency = sorted(mistakes.items(), key=lambda item: -len(item[1]))
            found.append((family, numbers, problem, [(texts[0], answer) for answer, texts in by_frequency]))
    return found


def readable(answer: str, family: str):
    """The answer as `check_text` takes it, None where it is no number or no expression."""
    if family != "countdown":
        return int(answer) if answer.isdecimal() and len(answer) < 5 else None
    try:
        return answer if steps_of(answer) else None
    except (IndexError, ValueError):
        return None


# ---- tokenizer and rows ----------------------------------------------------------------------------------------------

def train_tokenizer(rng, vocab_size: int) -> Tokenizer:
    """Byte-level BPE over whole words and whole numbers: a small model learns facts about tokens faster than about digits,
    and not to repeat an answer is easy where an answer is one token. Rare numbers are of several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+|\n+| ?[^\s\p{L}\p{N}]|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["".join(text for text, _ in example(rng)) for _ in range(20000)]
    corpus += [f"{phrase}\n\n{name}" for phrase in PHRASES for name in NAMES] * 20
    corpus += [f" {number}" for number in range(400)] * 40
    tokenizer.train_from_iterator((text.replace("<|", " <|") for text in corpus), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


def batches(tokenizer, rng, rows: int, tokens: int, weights, own=()):
    """Endless (ids, learned), each (rows, tokens + 1): documents end to end, cut at the row's end. own: a list that may
    change on the way."""
    ids, learned, need = [], [], rows * (tokens + 1)
    while True:
        while len(ids) < need:
            pieces = [piece for _ in range(50) for piece in example(rng, weights, own)]
            for encoding, (_, learn) in zip(tokenizer.encode_batch([text for text, _ in pieces]), pieces):
                ids += encoding.ids
                learned += [learn] * len(encoding.ids)
        yield torch.tensor(ids[:need]).view(rows, -1), torch.tensor(learned[:need]).view(rows, -1)
        ids, learned = ids[need:], learned[need:]


def new_model(tokenizer, hidden: int, layers: int) -> tuple[Transformer, dict]:
    """A model of the Llama layout with random weights, and its config.json."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 64, "head_dim": 32,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "attention_bias": False, "bos_token_id": None, "torch_dtype": "bfloat16",
        "eos_token_id": tokenizer.token_to_id("<|end|>"), "pad_token_id": tokenizer.token_to_id("<|pad|>")}
    model = Transformer(Config.from_dict(config))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02 if "embed" in name else parameter.shape[1] ** -0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data /= (2 * layers) ** 0.5
    return model, config


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before the step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Small models learn much faster with it than with AdamW. PyTorch's own computes in bf16, which many CPUs emulate.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))  # Nesterov: one step ahead
                matrix.sub_(update, alpha=group["lr"] * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5)


def orthogonal(x, steps: int = 5):
    """A matrix with the singular vectors of x (A, B), and singular values near 1: Newton-Schulz iterations."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3600,
                        help="optimizer steps; the first eighth are drills, the last fifth has long rows")
    parser.add_argument("--tokens-per-step", type=int, default=3200)
    parser.add_argument("--lr", type=float, default=3e-3,
                        help="peak of AdamW; Muon's is 7 times that; linear to 0 over the last 90%%")
    parser.add_argument("--hidden", type=int, default=128, help="width D")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between saves")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if not args.overwrite and out.is_dir() and any(out.iterdir()):  # later each save replaces the one before
        raise InputError(f"--out {out}: exists; --overwrite replaces it")

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = train_tokenizer(rng, 1400)
    model, config = new_model(tokenizer, args.hidden, args.layers)
    matrices = [p for p in model.model["layers"].parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2 or p is model.lm_head.weight]
    optimizers = [Muon(matrices, 7 * args.lr), torch.optim.AdamW(others, args.lr, (0.9, 0.98), weight_decay=0.0)]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens in the vocabulary")

    log, start, seen, own = [], time.time(), 0, []
    reader = OurTokenizer(tokenizer, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}, {}, {}, CHAT_TEMPLATE)
    drills = batches(tokenizer, rng, args.tokens_per_step // 256, 256, {"drills": 3, "guess": 1})
    short = batches(tokenizer, rng, args.tokens_per_step // 320, 320, WEIGHTS, own)
    long = batches(tokenizer, rng, args.tokens_per_step // 640, 640, WEIGHTS, own)  # as long as responses become
    bar = tqdm(range(1, args.steps + 1), desc="pretrain", mininterval=10)
    for step in bar:
        if step > 0.3 * args.steps and step % 100 == 0:
            own[:] = own_mistakes(model, reader, rng, 800)
        rows, learned = next(drills if step <= args.steps / 8 else short if step <= args.steps * 0.8 else long)
        inputs, targets, mask = rows[:, :-1], rows[:, 1:], learned[:, 1:]
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * min(step / 200, (args.steps + 1 - step) / (0.9 * args.steps), 1)

        def work(part):  # a worker's rows; the loss is the mean over the learned tokens of all rows
            with autocast("cpu"):
                logits = model.lm_head(model.hidden(inputs[part])[mask[part]])  # (N, V): only where something is learned
            loss = F.cross_entropy(logits.float(), targets[part][mask[part]], reduction="sum") / mask.sum()
            return loss, {"loss": loss.detach()}

        sizes = [inputs.shape[1]] * len(inputs)
        parts = backward(model, sizes, -(-sum(sizes) // workers(model)), work, list(model.parameters()))
        loss = sum(part["loss"] for part in parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += rows.numel()
        if step % 20 == 0:
            log.append({"step": step, "loss": round(loss, 4), "tokens": seen, "seconds": round(time.time() - start)})
            bar.set_postfix(loss=f"{loss:.3f}", tok_s=int(seen / (time.time() - start)))
        if step % args.save_every == 0 or step == args.steps:
            save(model, tokenizer, config, args, log)


def save(model, tokenizer, config, args, log):
    """An ordinary Hugging Face folder, in bf16, with the recipe beside it."""
    from safetensors.torch import save_file
    with output_folder(args.out, overwrite=True) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json",
                   {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]})
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
            "eos_token": "<|end|>", "pad_token": "<|pad|>", "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE})
        weights = {name: w.to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "arguments.json", {**vars(args), "log": log[-1:]})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


if __name__ == "__main__":
    run(main)

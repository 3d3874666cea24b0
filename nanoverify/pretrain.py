"""Train the small policy that is shipped in nanoverify/policy: a stand-in for the base model of the paper.

It learns three kinds of prompt from worked examples of the training split (solve; verify by solving again; verify by
putting the answer back) and what lies below them from drills: arithmetic, comparing, and picking from a list what was not
excluded. A solution writes down its first steps and then the number, found in the head: hardly more than a guess among
the answers to choose from. A check is written out step by step; one that fails ends with what it leaves to choose from.
Some questions to solve carry notes, other people's wrong answers and the checks that refute them. The policy never sees a
second attempt of its own, nor an answer, its check and another answer in one response: that is left to the three stages.

    python -m nanoverify.pretrain --out policy                                              # from scratch
    python -m nanoverify.pretrain --model OLD --steps 1800 --lr 1.5e-3 --out policy         # go on, 11 minutes

The shipped policy was made in two runs: the first command at commit d946763 (5,500 steps; each level had one number of answers to
choose from, 2 to 4, and notes were fewer), then the second, on its result, with the code as it is. One run from scratch
that does as well was not found: in three tries of 5,000 to 6,500 steps (47 minutes), each a little different, checks far from the question, or lists, were
worse. The first command, as it stands, has not been run to its end.
"""
import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from nanoverify.checkpoint import load_model
from nanoverify.files import InputError, output_folder, read_json, run, write_json
from nanoverify.model import Config, Transformer
from nanoverify import problems
from nanoverify.problems import LEVELS, NAMES, SOLVE_PROMPT, choices, puzzle
from nanoverify.tokenizer import Tokenizer as OurTokenizer
from nanoverify.verifier import VERDICTS, VERIFY_PROMPTS

FAMILIES = tuple(family for family in problems.FAMILIES if family != "tickets")
MOST = {1: 2, 2: 3, 3: 4, 4: 4, 5: 4}  # answers to choose from, by level: 2 to as many, so that it meets lists of every length
SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
PHRASES = ("Wait, let me recheck my solution.", "Let me try again.", "Wait, let me try again.", "Let me recheck.",
           *VERDICTS.values())
EXCLUSIONS = ("Not {}.", "It is not {}.", "{} is wrong.", "The answer is not {}.", "The answer is {}. " + VERDICTS[False])

# ---- worked examples -----------------------------------------------------------------------------------------------

def add(a, b):
    return f"{a} + {b} = {a + b}."


def minus(a, b):
    return f"{a} - {b} = {a - b}."


def times(a, b):
    """'17 * 8 = 136.'; of two factors, one with two digits comes first."""
    if a < 10:
        a, b = b, a
    return f"{a} * {b} = {a * b}."


def compare(found, wanted):
    """The end of a check: 'It should be 39, as it is.' or 'It should be 39, 2 less.'"""
    return f"It should be {wanted}, " + ("as it is." if found == wanted else f"{abs(wanted - found)} {'more' if wanted > found else 'less'}.")


def two_kinds(x, heads, p, q, total):
    """x things at p and the rest of `heads` at q come to `total`."""
    if x > heads:
        return [f"{x} is more than {heads}."]
    y = heads - x
    return [minus(heads, x), times(p, x), times(q, y), add(p * x, q * y), compare(p * x + q * y, total)]


def check_steps(family: str, n: dict, x: int) -> list[str]:
    """The calculation that puts x back into the question, sentence by sentence. n: the numbers of the question."""
    if family == "linear":
        return [times(n["b"], x), add(n["a"], n["b"] * x), compare(n["a"] + n["b"] * x, n["c"])]
    if family == "both_sides":
        left, right = n["b"] * x - n["a"], n["d"] * x + n["e"]
        return [times(n["b"], x), minus(n["b"] * x, n["a"]), times(n["d"], x), add(n["d"] * x, n["e"]), compare(right, left)]
    if family in ("rabbits", "stamps"):
        return two_kinds(x, n["n"], n["p"], n["q"], n["v"])
    if family == "ages":
        younger, older = x + n["t"], x + n["d"] + n["t"]
        return [add(x, n["d"]), add(x, n["t"]), add(x + n["d"], n["t"]), add(younger, older), compare(younger + older, n["s"])]
    if family == "sum_product":
        y = n["s"] - x
        if y < 0:
            return [f"{x} is more than {n['s']}."]
        if y > x:
            return [minus(n["s"], x), f"{y} is more than {x}."]
        return [minus(n["s"], x), times(x, y), add(x * y, n["b"]), compare(x * y + n["b"], n["p"])]
    if family == "rectangle":
        area = x * (x + n["d"])
        return [add(x, n["d"]), times(x + n["d"], x), add(area, n["b"]), compare(area + n["b"], n["a"])]
    if family == "square":
        return [times(x, x), add(x * x, n["b"]), compare(x * x + n["b"], n["c"])]
    if family == "consecutive":
        return [f"The numbers are {x}, {x + 1}, {x + 2}.", add(x, x + 1), add(2 * x + 1, x + 2), add(3 * x + 3, n["b"]),
                compare(3 * x + 3 + n["b"], n["c"])]
    if family != "shopping":
        raise NotImplementedError(f"{family}: check_steps does not know how to check it")
    pen, book = n["a"] * x, n["b"] * (x + n["d"])
    return [add(x, n["d"]), times(n["a"], x), times(n["b"], x + n["d"]), add(pen, book), compare(pen + book, n["c"])]


def first_steps(family: str, n: dict) -> str:
    """The part of a solution that is written down; the rest of it is done in the head, and often goes wrong."""
    if family == "both_sides":
        return add(n["a"], n["e"])
    if family in ("rabbits", "stamps"):
        return f"{times(n['q'], n['n'])} {minus(n['v'], n['q'] * n['n'])}"
    if family == "shopping":
        return times(n["b"], n["d"])
    if family == "ages":
        return f"{add(n['t'], n['t'])} {minus(n['s'], 2 * n['t'])}"
    if family == "square":
        return f"x * x + {n['b']} = {n['c']}."
    if family == "consecutive":
        return f"x + x + x + 3 + {n['b']} = {n['c']}."
    total, part = {"linear": "ca", "sum_product": "pb", "rectangle": "ab"}[family]
    return minus(n[total], n[part])


def solve_text(family, numbers, x):
    return f"{first_steps(family, numbers)} The answer is {x}."


def choose(given):
    return f"Choose from {', '.join(map(str, given))}."


def check_pieces(family, numbers, given, x):
    """A check of `given` where x is right, in two parts: the calculation; how far off it is, what that leaves to choose from, and the verdict."""
    *steps, last = check_steps(family, numbers, given)
    left = [y for y in numbers["choices"] if (y > given) == (x > given) and y != given]  # too small or too large: in all families one side is out
    return " ".join([f"Put in {given}:", *steps]), " ".join([last, *([] if given == x else [choose(left)]), VERDICTS[given == x]])


def check_text(family, numbers, given, x):
    return " ".join(check_pieces(family, numbers, given, x))


def refuted(rng, family, numbers, y, x):
    """Pieces of a note: somebody's wrong answer y and the check that refutes it. Its end is not learned: here checks always
    refute, and that is no habit to take along."""
    says = rng.choice(("", "It is not {y}. ", "{name} says {y}. ", "The answer is {y}. ")).format(name=rng.choice(NAMES), y=y)
    steps, end = check_pieces(family, numbers, y, x)
    return [(f" {says}{steps[:9]}", False), (steps[9:], True), (f" {end}", False)]


def again_text(family, numbers, x, given):
    same = "the same." if x == given else "not the same."
    return f"Solving again: {first_steps(family, numbers)} It is {x}. The given answer is {given}, {same} {VERDICTS[x == given]}"


ARITHMETIC = ("add", "add", "minus", "minus", "times", "times", "compare", "compare", "more")


def drill(rng, kinds=(*ARITHMETIC, "choose", "choose")):
    """One exercise: (its statement, its result). Only results are learned, for nobody can foresee a statement."""
    kind = rng.choice(kinds)
    big, small = rng.choice((20, 50, 99, 99, 250)), rng.choice((20, 50, 99))
    a, b = rng.randint(1, big), rng.randint(1, small)
    if kind == "add":
        a, b = rng.choice(((a, b), (b, a), (a, rng.randint(1, big))))
        return f"{a} + {b} =", f" {a + b}."
    if kind == "minus":
        return f"{max(a, b)} - {min(a, b)} =", f" {abs(a - b)}."
    if kind == "times":
        a, b = rng.randint(2, rng.choice((9, 29))), rng.randint(2, 9)
        return times(a, b).replace(f" {a * b}.", ""), f" {a * b}."
    if kind == "compare":
        b = abs(rng.choice((a, a, a + rng.randint(-12, 12), a + rng.choice((-100, -10, 10, 100)), rng.randint(1, big))))
        left, right = compare(a, b).split(", ", 1)
        return f"The result is {a}. {left},", f" {right} {VERDICTS[a == b]}"
    if kind == "choose":  # what is excluded cannot be the answer
        level = rng.choice(LEVELS)
        given = choices(rng, level, rng.randint(2, MOST[level]))
        no = rng.sample(given, rng.randint(1, len(given) - 1))
        text = choose(given)
        for y in no:
            if rng.random() < 0.3:  # something else may stand between
                text += " " + "".join(drill(rng, ARITHMETIC))
            text += " " + rng.choice(EXCLUSIONS).format(y)
        return f"{text} The answer is", f" {rng.choice([y for y in given if y not in no])}."
    return f"{a} is", f" {'more' if a > b else 'not more'} than {b}."


def example(rng, drills: float, notes: int) -> list[tuple[str, bool]]:
    """One document as (text, is it learned?) pieces. drills: the weight of documents that only drill, against 0.87 of the others.
    Up to `notes` drills stand between question and instruction in one document of four, so that the distance to the question varies."""
    kind = rng.choices(("drills", "solve", "refuted", "again", "check", "phrase"), (100 * drills, 8, 12, 5, 61, 1))[0]
    exercises = [drill(rng) for _ in range(rng.randint(4, 12) if kind == "drills" else rng.choice((0, 0, 0, rng.randint(0, notes))))]
    pieces = [piece for question, result in exercises for piece in ((" " + question, False), (result, True))]
    if kind == "drills":
        return [("<|user|>Calculate.<|assistant|>", False), *pieces, ("<|end|>", True)]
    if kind == "phrase":
        phrase = rng.choice(PHRASES)
        return [(f"<|user|>Say: {phrase}<|assistant|>", False), (phrase + "<|end|>", True)]
    family, level = rng.choice(FAMILIES), rng.choice(LEVELS)
    split = None
    while split != "train":
        split, numbers, problem = puzzle(rng, family, level, rng.randint(2, MOST[level]))
    x = int(problem.answer)
    wrong = [y for y in numbers["choices"] if y != x]
    if kind in ("solve", "refuted"):
        prompt, response = SOLVE_PROMPT, solve_text(family, numbers, x)
        given = x
        others = [*wrong, *rng.sample([y for y in range(2, 13) if y != x and y not in wrong], 3 - min(len(wrong), 3))]
        for y in rng.sample(others, rng.randint(1, 3)) if kind == "refuted" else ():
            pieces += refuted(rng, family, numbers, y, x)
    else:
        if rng.random() < 0.1:  # not every guess is one of the choices
            wrong = [y for y in range(2, 13) if y != x]
        given = x if rng.random() < 0.5 else rng.choice(wrong)
        style = "confirmative" if kind == "check" else "problem-solving"
        prompt = VERIFY_PROMPTS[style]
        response = check_text(family, numbers, given, x) if kind == "check" else again_text(family, numbers, x, given)
    question, instruction = prompt.format(question=problem.question, answer=given).split("\n", 1)
    return [(f"<|user|>{question}", False), *pieces, (f"\n{instruction}<|assistant|>", False), (response + "<|end|>", True)]


# ---- tokenizer and rows --------------------------------------------------------------------------------------------

def train_tokenizer(rng, vocab_size: int) -> Tokenizer:
    """Byte-level BPE over whole words, with every digit a token of its own (with or without the space before it)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}|\n+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["".join(text for text, _ in example(rng, 0.3, 0)) for _ in range(20000)]
    corpus += [f"{phrase} {name}" for phrase in PHRASES for name in NAMES] * 20
    tokenizer.train_from_iterator((text.replace("<|", " <|") for text in corpus), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


def batches(tokenizer, rng, rows: int, tokens: int, drills: float, notes: int):
    """Endless (ids, learned), each (rows, tokens): documents end to end, cut at the row's end."""
    ids, learned, need = [], [], rows * (tokens + 1)
    while True:
        while len(ids) < need:
            pieces = [piece for _ in range(200) for piece in example(rng, drills, notes)]
            for encoding, (_, learn) in zip(tokenizer.encode_batch([text for text, _ in pieces]), pieces):
                ids += encoding.ids
                learned += [learn] * len(encoding.ids)
        yield torch.tensor(ids[:need]).view(rows, tokens + 1), torch.tensor(learned[:need]).view(rows, tokens + 1)
        ids, learned = ids[need:], learned[need:]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument("--model", metavar="DIR", help="go on from this policy (its size, not --hidden and --layers), with rows of the last kind alone")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6500, help="optimizer steps; the first eighth drills alone, the last fifth rows with questions far away")
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of AdamW; Muon's is 7 times that; linear to 0 over the last 90%%")
    parser.add_argument("--hidden", type=int, default=128, help="width D")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between saves")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if not args.overwrite and out.is_dir() and any(out.iterdir()):  # later each save replaces the one before
        raise InputError(f"--out {out}: exists; --overwrite replaces it")

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    if args.model:
        model, config = load_model(args.model), read_json(f"{args.model}/config.json")
        OurTokenizer.load(args.model)  # refuses a bad one in one line
        tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
    else:
        tokenizer = train_tokenizer(rng, 1024)
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": args.hidden, "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers,
            "num_attention_heads": args.hidden // 32, "num_key_value_heads": args.hidden // 64, "head_dim": 32,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": True, "attention_bias": False, "bos_token_id": None, "torch_dtype": "bfloat16",
            "eos_token_id": tokenizer.token_to_id("<|end|>"), "pad_token_id": tokenizer.token_to_id("<|pad|>")}
        model = Transformer(Config.from_dict(config))
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.02 if "embed" in name else parameter.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data /= (2 * args.layers) ** 0.5
    # Muon for the matrices of the layers: after 480 steps a loss of 0.46 against AdamW's 0.57. It came with torch 2.9.
    matrices = [p for p in model.model["layers"].parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2 or p is model.lm_head.weight]
    optimizers = [torch.optim.Muon(matrices, lr=7 * args.lr, momentum=0.95, weight_decay=0.0),
                  torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens in the vocabulary")

    log, start, seen = [], time.time(), 0
    first = batches(tokenizer, rng, args.tokens_per_step // 256, 256, drills=1.0, notes=0)
    second = batches(tokenizer, rng, args.tokens_per_step // 256, 256, drills=0.3, notes=0)
    third = batches(tokenizer, rng, args.tokens_per_step // 512, 512, drills=0.2, notes=16)  # questions far away, for long responses
    bar = tqdm(range(1, args.steps + 1), desc="pretrain")
    for step in bar:
        rows, learned = next(third if args.model or step > 0.8 * args.steps else first if step <= 0.12 * args.steps else second)
        inputs, targets, mask = rows[:, :-1], rows[:, 1:], learned[:, 1:]
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * min(step / 200, (args.steps + 1 - step) / (0.9 * args.steps), 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.lm_head(model.hidden(inputs)[mask])  # (N, V): only where something is learned
        loss = F.cross_entropy(logits.float(), targets[mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += rows.numel()
        if step % 20 == 0:
            log.append({"step": step, "loss": round(loss.item(), 4), "tokens": seen, "seconds": round(time.time() - start)})
            bar.set_postfix(loss=f"{loss.item():.3f}", tok_s=int(seen / (time.time() - start)))
        if step % args.save_every == 0 or step == args.steps:
            save(model, tokenizer, config, args, log)


def save(model, tokenizer, config, args, log):
    """An ordinary Hugging Face folder, in bf16, with the recipe beside it."""
    from safetensors.torch import save_file
    with output_folder(args.out, overwrite=True) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]})
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
            "eos_token": "<|end|>", "pad_token": "<|pad|>", "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE})
        weights = {name: w.to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "arguments.json", {**vars(args), "log": log[-1:]})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


if __name__ == "__main__":
    run(main)

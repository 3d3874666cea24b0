"""Beside the path: how fast is it? Ours and the usual peers, transformers and TRL, side by side, and how far from what the machine allows.

    python -m nanoverify.bench                                 # out/sft and out/data -> one table; pip install -e '.[test,handover]' for the peers
    python -m nanoverify.bench --large DIR                     # also the sampling with a larger model, such as SmolLM2-135M-Instruct
    OMP_NUM_THREADS=1 python -m nanoverify.bench --parts sample sft limit --repeat 9

One process, the same weights, questions and work; ours and the peer take turns, `--repeat` rounds behind one that is not counted. The table
has medians, the median of ours / peer over the rounds and in brackets its lowest and highest. Above 1 ours is faster in tokens/s, slower in s.
Where the peer runs in several ways (fp32, bf16), all take part in every round; the peer is the one with the best median per token.
Before anything is timed, both must write the same greedy text and find the same masked loss, in fp32.

    sample        64 puzzles x 8 samples at temperature 1, each as long as it is; tokens up to and including the end token. ours:
                  `generate` as `evaluate.respond` calls it; peer: transformers' `generate`, left padded, batches of as many rows
    sample-large  8 prompts of 64 tokens x 4 samples, up to 128 tokens
    rl            one step of train_rl.py with its defaults on 32 questions x 8: rollout, advantages, 4 optimizer steps; without its log
                  and saves. As in training, responses whose advantages are all 0 are not learned from.
                  peer: one rollout of trl.GRPOTrainer (transformers' generation, outcome reward) and its 4 optimizer steps, which learn
                  all of it; from the beginning of the first step to the end of the last
    sft           10 optimizer steps on 8 trajectories each, as train_sft.py takes them; tokens without padding. peer: the loss of
                  transformers on the right padded batch, clipping, fused AdamW
    limit         memory bandwidth (the sum of 512 MB, or a copy) and matrix products (square, bf16 or fp32), the best of 5. Of the limit:
                  the time that the work needs at least at these rates, at the slower of the two, over the time that ours took.
                  Decoding: all weights once per step (lm_head in fp32, steps as if the batch were always full), keys and values of all
                  tokens looked at; 2 operations per weight and token. SFT: 6 per weight and token, lm_head for learned tokens alone,
                  no bytes. Attention: each token looks at those before it and itself. The embedding is a look-up and not counted.
                  Small models stay in the processor's cache: for them the bandwidth is no limit

Learning rates are 0: all work is done, but the weights stay, so that each round does the same.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import math
import random
import tempfile
from statistics import median

import torch

import train_rl
import train_sft
from nanoverify.checkpoint import find_folder, load_model
from nanoverify.problems import SOLVE_PROMPT
from nanoverify.puzzles import make_puzzles
from nanoverify.sampler import Sampling, generate
from nanoverify.scoring import join
from nanoverify.support.cost import now
from nanoverify.support.files import InputError, run
from nanoverify.support.kernels import autocast
from nanoverify.support.stage import add_model_flags, batch_of, clipped_step, load, positive
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools.export import outcome_rewards, question_row

PARTS = ("sample", "sample-large", "rl", "sft", "limit")
SFT_STEPS = 10  # optimizer steps in one timed run
TRL_ROWS = 16  # responses in one of TRL's micro-batches, which are padded to the longest response of the rollout


# ---- the least work, computed -------------------------------------------------------------------------------------------

def sizes(config) -> tuple[int, int, int]:
    """Numbers in the matrices of all layers, in lm_head, and operations, forward, for one token that looks at one token: at its key and its value."""
    D, L, HE, KE = config.hidden_size, config.num_hidden_layers, config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return L * D * (2 * HE + 2 * KE + 3 * config.intermediate_size), D * config.vocab_size, 4 * L * HE


def decoding_work(config, prompts: list[int], responses: list[list[int]], rows: int, size: int, head_size: int = 4) -> tuple[int, int]:
    """(bytes, operations) of sampling. Lengths of prompts and of each one's responses, rows decoded together, bytes of a number in layers
    and cache, and in lm_head. The first token of a response comes from reading its prompt, which is read once for all of them."""
    layers, head, pair = sizes(config)
    fed = [(p, n - 1) for p, row in zip(prompts, responses) for n in row]
    decoded, looks = sum(n for _, n in fed), sum(n * p + n * (n + 1) // 2 for p, n in fed)  # tokens fed; tokens they look at
    steps = max(max(n for _, n in fed), -(-decoded // rows))
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size  # bytes of one token's keys and values
    operations = 2 * layers * (sum(prompts) + decoded) + 2 * head * sum(map(sum, responses)) + pair * (looks + sum(p * (p + 1) // 2 for p in prompts))
    return steps * (layers * size + head_size * head) + looks * cached, operations


def training_operations(config, lengths: list[int], learned: int) -> int:
    """Forward and twice as much backward, for sequences of these lengths with so many learned tokens in all."""
    layers, head, pair = sizes(config)
    return 3 * (2 * layers * sum(lengths) + 2 * head * learned + pair * sum(n * (n + 1) // 2 for n in lengths))


# ---- the clock ----------------------------------------------------------------------------------------------------------

def take_turns(contestants: dict, repeat: int) -> dict[str, list]:
    """{name: function of the round's number} -> {name: what it returned in rounds 1, 2, ...}; round 0 pays for what is set up once."""
    rounds = [{name: work(number) for name, work in contestants.items()} for number in range(repeat + 1)]
    return {name: [results[name] for results in rounds[1:]] for name in contestants}


def machine(device) -> tuple[float, float]:
    """(bytes, floating point operations) per second."""
    def least(work):
        def timed(_):
            began = now(device)
            work()
            return now(device) - began
        return min(take_turns({"": timed}, 5)[""])
    x = torch.ones(2 ** 27, device=device)  # 512 MB, larger than most caches
    y = torch.empty_like(x)
    N = 8192 if torch.device(device).type == "cuda" else 2048
    squares = [torch.ones(N, N, device=device, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    return (max(x.nbytes / least(x.sum), 2 * x.nbytes / least(lambda: y.copy_(x))),  # a copy reads and writes
            max(2 * N ** 3 / least(lambda: square @ square) for square in squares))


# ---- the peers ----------------------------------------------------------------------------------------------------------

def installed(package: str, extra: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    print(f"{package} {importlib.metadata.version(package)}" if found else f"{package} is not installed, its columns stay empty: pip install -e '.[{extra}]'")
    return found


def load_peer(folder, device, dtype=torch.float32):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    peer = transformers.AutoModelForCausalLM.from_pretrained(find_folder(folder), dtype=dtype).to(device)
    peer.generation_config = transformers.GenerationConfig()  # the folder's own could change the distribution
    return peer


@torch.inference_mode()
def peer_responses(peer, tokenizer, prompts, samples: int, max_new_tokens: int, batch_size: int, **sampling) -> list[list[int]]:
    """ids up to and including the end token, samples of one prompt side by side."""
    found, size = [], max(batch_size // samples, 1)
    for group in (prompts[i: i + size] for i in range(0, len(prompts), size)):
        width = max(map(len, group))
        ids = torch.tensor([[tokenizer.pad_id] * (width - len(prompt)) + prompt for prompt in group], device=peer.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in group], device=peer.device)
        out = peer.generate(input_ids=ids, attention_mask=mask, num_return_sequences=samples, max_new_tokens=max_new_tokens,
                            eos_token_id=sorted(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id, **sampling)[:, width:].tolist()
        found += [row[: next((t + 1 for t, id in enumerate(row) if id in tokenizer.stop_ids), len(row))] for row in out]
    return found


def peer_loss(peer, batch, device):
    """Mean cross-entropy of the learned tokens, by transformers: the batch padded on the right."""
    lengths = [len(prompt) + len(response) for prompt, response, *_ in batch]
    fill = lambda row, value: row + [value] * (max(lengths) - len(row))
    ids = torch.tensor([fill(prompt + response, 0) for prompt, response, *_ in batch], device=device)
    labels = torch.tensor([fill([-100] * len(prompt) + [id if flag else -100 for id, flag in zip(response, mask)], -100) for prompt, response, mask, *_ in batch], device=device)
    seen = torch.tensor([fill([1] * length, 0) for length in lengths], device=device)
    return peer(input_ids=ids, attention_mask=seen, labels=labels).loss


def compare(model, tokenizer, peer, prompts, max_new_tokens: int, batch=()):
    """InputError unless ours and transformers, both in fp32, write the same text greedily and find the same loss on a batch of trajectories."""
    ours = generate(model, prompts, Sampling(max_new_tokens, 0.0, stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.vocab_size))
    theirs = peer_responses(peer, tokenizer, prompts, 1, max_new_tokens, len(prompts), do_sample=False)
    different = [i + 1 for i, ([sample], ids) in enumerate(zip(ours, theirs, strict=True)) if sample.ids != ids]
    if different:
        raise InputError(f"the greedy texts of ours and of transformers differ for prompts {different} of {len(prompts)}; nothing is timed")
    if batch:
        with torch.no_grad():
            packed = join([row[:2] for row in batch], [row[2] for row in batch], peer.device)
            mine = train_sft.masked_loss(model, packed, tokenizer.vocab_size)[0].item() / len(packed.places)
            other = peer_loss(peer, batch, peer.device).item()
        if not abs(mine - other) < 1e-4:
            raise InputError(f"the masked loss is {mine:.6f} by ours and {other:.6f} by transformers; nothing is timed")


# ---- the parts: {name: work}; work(round) -> (seconds, tokens, bytes and operations needed at least, 0 where not counted) ----

def sampling(model, tokenizer, peers, prompts, samples: int, max_new_tokens: int, args) -> dict:
    def ours(number):
        began = now(args.device)
        with autocast(args.device):
            rows = generate(model, prompts, Sampling(max_new_tokens, samples=samples, stop_ids=tokenizer.stop_ids, vocab_size=tokenizer.vocab_size, seed=number, batch_size=args.batch_size))
            size = 2 if torch.is_autocast_enabled(torch.device(args.device).type) else 4
        seconds, lengths = now(args.device) - began, [[len(sample.ids) for sample in row] for row in rows]
        return seconds, sum(map(sum, lengths)), *decoding_work(model.config, [len(p) for p in prompts], lengths, args.batch_size, size)

    def theirs(number, peer):
        torch.manual_seed(number)
        began = now(args.device)
        rows = peer_responses(peer, tokenizer, prompts, samples, max_new_tokens, args.batch_size, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        return now(args.device) - began, sum(map(len, rows)), 0, 0
    return {"ours": ours, **{name: lambda number, peer=peer: theirs(number, peer) for name, peer in peers.items()}}


def sft(model, tokenizer, peer, rows, args) -> dict:
    batches = [batch_of(rows, args.batch, step + 1, args.seed) for step in range(SFT_STEPS)]
    lengths = [len(prompt) + len(ids) for batch in batches for prompt, ids, *_ in batch]
    operations = training_operations(model.config, lengths, sum(sum(mask) for batch in batches for _, _, mask, _ in batch))

    def steps(trained, backward):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

        def work(_):
            began = now(args.device)
            for batch in batches:
                backward(batch)
                clipped_step(trained, optimizer, "sft")
            return now(args.device) - began, sum(lengths), 0, operations
        return work

    def theirs(batch, precision):
        with precision:
            loss = peer_loss(peer, batch, args.device)
        loss.backward()
    works = {"ours": steps(model, lambda batch: train_sft.accumulate(model, None, batch, tokenizer.vocab_size, args))}
    if peer is not None:
        works["transformers, bf16 autocast"] = steps(peer, lambda batch: theirs(batch, autocast(args.device)))
        works["transformers, fp32"] = steps(peer, lambda batch: theirs(batch, contextlib.nullcontext()))
    return works


def rl(model, tokenizer, trl: bool, args) -> dict:
    problems = make_puzzles("train", args.prompts, args.seed)
    settings = train_rl.PPO(tokenizer.vocab_size, minibatches=args.minibatches, micro_tokens=args.micro_tokens)

    def ours(number):  # as in train_rl.main
        _, optimizer = train_rl.learner(model, gae=False, lr=args.lr)
        began = now(args.device)
        rollout = train_rl.sample(model, tokenizer, problems, number, args)
        train_rl.weigh(rollout, train_rl.Rules(), random.Random(number))
        train_rl.update(model, None, optimizer, rollout, settings, random.Random(number), "rl")
        return now(args.device) - began, int(rollout.mask.sum()), 0, 0
    theirs = {f"TRL, {name}": lambda number, bf16=name == "bf16": trl_step(problems, args, bf16, number) for name in ("bf16", "fp32")}
    return {"ours": ours, **(theirs if trl else {})}


def trl_step(problems, args, bf16: bool, seed: int):
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    clock, lengths = [], []

    def reward(completions, completion_ids, **others):
        lengths.extend(map(len, completion_ids))
        return outcome_rewards(completions, **others)
    tick = TrainerCallback()
    tick.on_step_begin = tick.on_step_end = lambda *_, **__: clock.append(now(args.device))
    rows = len(problems) * args.samples // args.minibatches  # responses of one optimizer step
    parts = rows // math.gcd(rows, TRL_ROWS)
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(out, max_steps=args.minibatches, per_device_train_batch_size=rows // parts, gradient_accumulation_steps=parts,
                            steps_per_generation=args.minibatches * parts, num_generations=args.samples, num_iterations=1, beta=0.0,
                            max_completion_length=args.max_new_tokens, temperature=args.temperature, learning_rate=0.0, bf16=bf16, seed=seed,
                            gradient_checkpointing=False, use_cpu=torch.device(args.device).type == "cpu", report_to=[], save_strategy="no",
                            logging_strategy="no", disable_tqdm=True)
        trainer = GRPOTrainer(load_peer(args.model, args.device), reward_funcs=reward, args=config, callbacks=[tick],
                              train_dataset=Dataset.from_list([question_row(problem) for problem in problems]))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert len(clock) == 2 * args.minibatches and len(lengths) == len(problems) * args.samples, "one rollout and its optimizer steps"
    return clock[-1] - clock[0], sum(lengths), 0, 0


# ---- the table ----------------------------------------------------------------------------------------------------------

def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2f}"


def table_rows(part: str, runs: dict, limits, units: dict) -> list[str]:
    """units: {name: function of seconds and tokens}."""
    peer = min(runs.keys() - {"ours"}, key=lambda name: median(run[0] / run[1] for run in runs[name]), default=None)
    rows, share = [], "-"
    if limits and any(runs["ours"][0][2:]):
        memory, products = (median(run[2 + i] / limits[i] / run[0] for run in runs["ours"]) for i in (0, 1))
        share = f"{100 * max(memory, products):.0f}%"
        print(f"{part}, of the limit: memory {100 * memory:.1f}%, matrix products {100 * products:.1f}%")
    for unit, value in units.items():
        values = {name: [value(*run[:2]) for run in found] for name, found in runs.items()}
        for name, found in values.items():
            print(f"{part}, {name}: {number(median(found))} {unit} ({number(min(found))} to {number(max(found))})")
        ratios = [mine / other for mine, other in zip(values["ours"], values[peer])] if peer else []
        theirs = f"{number(median(values[peer]))} ({peer}) | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if peer else "- | -"
        rows.append(f"| {part} ({unit}) | {number(median(values['ours']))} | {theirs} | {share} |")
    return rows


def flags(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeat", type=positive, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--prompts", type=positive, default=64, metavar="P", help="questions of sample; rl takes half as many, sample-large an eighth (default: %(default)s)")
    parser.add_argument("--data", default="out/data/trajectories.jsonl", metavar="FILE", help="for sft, from stage 0 (default: %(default)s)")
    parser.add_argument("--large", metavar="DIR", help="checkpoint for sample-large (default: that part is skipped)")
    add_model_flags(parser, default="out/sft")
    args = parser.parse_args(argv)
    if args.prompts % 8:
        raise InputError(f"--prompts {args.prompts}: must be a multiple of 8")
    return args


def main(argv=None):
    args = flags(argv)
    parts = [part for part in args.parts if part != "sample-large" or args.large]
    if len(parts) < len(args.parts):
        print("sample-large is skipped: give --large DIR")
    model, tokenizer = load(args)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {args.device}, {torch.backends.cpu.get_cpu_capability()}")
    transformers = installed("transformers", "test")
    trl = "rl" in parts and installed("trl", "handover") and transformers

    def peers_of(folder):
        precisions = {"transformers, fp32": torch.float32, "transformers, bf16": torch.bfloat16} if transformers else {}
        return {name: load_peer(folder, args.device, dtype) for name, dtype in precisions.items()}
    training = ["--model", args.model, "--device", args.device, "--seed", str(args.seed), "--batch-size", str(args.batch_size),
                "--max-new-tokens", str(args.max_new_tokens), "--micro-tokens", str(train_rl.PPO.micro_tokens)]
    sft_args, rl_args = train_sft.flags([*training, "--data", args.data]), train_rl.flags([*training, "--prompts", str(args.prompts // 2), "--lr", "0"])
    rows = train_sft.read_rows(sft_args, tokenizer, model.config.max_position_embeddings)[0] if "sft" in parts else []
    questions = [SOLVE_PROMPT.format(question=problem.question) for problem in make_puzzles("test", max(args.prompts, 64), seed=0)]
    cases = {"sample": (model, tokenizer, peers_of(args.model), [tokenizer.prompt(question) for question in questions[: args.prompts]], 8, args.max_new_tokens)}
    if "sample-large" in parts:
        large = Tokenizer.load(args.large)
        ids = large.encode(" ".join(questions))
        cases["sample-large"] = (load_model(args.large, args.device), large, peers_of(args.large),
                                 [ids[64 * i: 64 * (i + 1)] for i in range(args.prompts // 8)], 4, min(args.max_new_tokens, 128))
    if transformers:
        for part, (own, own_tokenizer, peers, prompts, _, longest) in cases.items():
            compare(own, own_tokenizer, peers["transformers, fp32"], prompts[:8], longest, rows[:8] if part == "sample" else ())
        print("ours and transformers write the same greedy text" + (" and find the same loss" if rows else ""))

    limits, table, speed = None, [], {"tokens/s": lambda seconds, tokens: tokens / seconds}
    if "limit" in parts:
        limits = machine(args.device)
        print(f"memory {limits[0] / 1e9:.1f} GB/s, matrix products {limits[1] / 1e9:,.0f} GFLOP/s")
    for part in parts:
        if part in cases:
            table += table_rows(part, take_turns(sampling(*cases[part], args), args.repeat), limits, speed)
        elif part == "sft":
            works = sft(model, tokenizer, cases["sample"][2].get("transformers, fp32"), rows, sft_args)
            table += table_rows(part, take_turns(works, args.repeat), limits, speed)
        elif part == "rl":
            table += table_rows(part, take_turns(rl(model, tokenizer, trl, rl_args), args.repeat), limits,
                                {"s a step": lambda seconds, tokens: seconds, "s for 1,000 tokens": lambda seconds, tokens: 1000 * seconds / tokens})
    print("\n| part | ours | peer | ours / peer | of the limit |\n|---|---|---|---|---|", *table, sep="\n")


if __name__ == "__main__":
    run(main)

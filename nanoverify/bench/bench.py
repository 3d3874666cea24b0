"""How fast is it? Ours beside transformers and TRL, and beside the machine's limit.

    python -m nanoverify.bench                # out/sft and out/data -> one table
    python -m nanoverify.bench --large DIR    # also the sampling with a larger model, such as
                                              # SmolLM2-135M-Instruct
    OMP_NUM_THREADS=1 python -m nanoverify.bench --parts sample sft limit --repeat 9

One process, the same weights, questions and work. Ours and the peer take turns for `--repeat`
rounds, after one that is not counted. The table has medians, the median of ours / peer over the
rounds, and in brackets its lowest and highest. Above 1 ours is faster in tokens/s, slower in s. If
the peer runs in several ways (fp32, bf16), all take part in every round, and the table shows the
one with the best median per token. Before anything is timed, both must write the same greedy text
and find the same masked loss, in fp32. pip install -e '.[test,handover]' installs the peers.

    sample        64 puzzles x 8 samples at temperature 1, each as long as it is; tokens up to and
                  including the end token. ours: `generate` as `evaluate.respond` calls it; peer:
                  transformers' `generate`, left padded, batches of as many rows
    sample-large  8 prompts of 64 tokens x 4 samples, up to 128 tokens
    rl            one step of train_rl.py with its defaults on 32 questions x 8: rollout,
                  advantages, 4 optimizer steps; without its log and saves. As in training,
                  responses whose advantages are all 0 are not learned from. peer: one rollout of
                  trl.GRPOTrainer (transformers' generation, outcome reward) and its 4 optimizer
                  steps, which learn all of it; from the beginning of the first step to the end of
                  the last
    sft           10 optimizer steps on 8 trajectories each, as train_sft.py takes them; tokens
                  without padding. peer: the loss of transformers on the right padded batch,
                  clipping, fused AdamW
    limit         memory bandwidth (the sum of 512 MB, or a copy) and matrix products (square, bf16
                  or fp32), the best of 5. Of the limit: the least time that the work needs at
                  these rates, at the slower of the two, over the time that ours took. Decoding: all
                  weights once per step (lm_head in fp32, steps as if the batch were always full),
                  keys and values of all tokens looked at; 2 operations per weight and token. SFT: 6
                  per weight and token, lm_head for learned tokens only, no bytes. Attention: each
                  token looks at those before it and itself. The embedding is a look-up and not
                  counted. Small models stay in the processor's cache: for them the bandwidth is no
                  limit

Learning rates are 0: all work is done, but the weights stay, so that each round does the same.
"""
import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import random
import tempfile
from dataclasses import replace
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
from nanoverify.support.flags import Parser, positive
from nanoverify.support.kernels import autocast
from nanoverify.support.stage import add_model_flags, batch_of, clipped_step, load
from nanoverify.tokenizer import Tokenizer
from nanoverify.tools.export import outcome_rewards, question_row

PARTS = ("sample", "sample-large", "rl", "sft", "limit")
SFT_STEPS = 10  # optimizer steps in one timed run
# responses in one of TRL's micro-batches, which are padded to the longest of the rollout
TRL_ROWS = 16


# ---- the least work, computed ------------------------------------------------------------------

def sizes(config) -> tuple[int, int, int]:
    """Numbers in the matrices of all layers, numbers in lm_head, and operations of one look.

    A look is one token's at the key and the value of one token, in all layers, forward.
    """
    D, L = config.hidden_size, config.num_hidden_layers
    HE = config.num_attention_heads * config.head_dim
    KE = config.num_key_value_heads * config.head_dim
    layers = L * D * (2 * HE + 2 * KE + 3 * config.intermediate_size)
    return layers, D * config.vocab_size, 4 * L * HE


def decoding_work(config, prompts: list[int], responses: list[list[int]], rows: int, size: int,
                  head_size: int = 4) -> tuple[int, int]:
    """(bytes, operations) of sampling.

    prompts, responses  their lengths; the first token of a response comes from reading its prompt,
                        which is read once for all of its responses
    rows                decoded together
    size, head_size     bytes of a number in layers and cache, and in lm_head
    """
    layers, head, look = sizes(config)
    fed = [(p, n - 1) for p, row in zip(prompts, responses) for n in row]
    decoded = sum(n for _, n in fed)
    looks = sum(n * p + n * (n + 1) // 2 for p, n in fed)
    steps = max(max(n for _, n in fed), -(-decoded // rows))
    # keys and values of one token
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    in_prompts = sum(p * (p + 1) // 2 for p in prompts)
    operations = (2 * layers * (sum(prompts) + decoded) + 2 * head * sum(map(sum, responses))
                  + look * (looks + in_prompts))
    return steps * (layers * size + head_size * head) + looks * cached, operations


def training_operations(config, lengths: list[int], learned: int) -> int:
    """Forward and twice as much backward: sequences of these lengths, `learned` tokens in all."""
    layers, head, look = sizes(config)
    looks = sum(n * (n + 1) // 2 for n in lengths)
    return 3 * (2 * layers * sum(lengths) + 2 * head * learned + look * looks)


# ---- the clock ---------------------------------------------------------------------------------

def take_turns(contestants: dict, repeat: int) -> dict[str, list]:
    """{name: function of the round's number} -> {name: what it returned in rounds 1, 2, ...}.

    Round 0 pays for what is set up once.
    """
    rounds = []
    for number in range(repeat + 1):
        rounds.append({name: work(number) for name, work in contestants.items()})
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
    # a copy reads and writes
    bandwidth = max(x.nbytes / least(x.sum), 2 * x.nbytes / least(lambda: y.copy_(x)))
    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        square = torch.ones(N, N, device=device, dtype=dtype)
        rates.append(2 * N ** 3 / least(functools.partial(torch.matmul, square, square)))
    return bandwidth, max(rates)


# ---- the peers ---------------------------------------------------------------------------------

def installed(package: str, extra: str) -> bool:
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed, its columns stay empty: pip install -e '.[{extra}]'")
        return False
    print(f"{package} {importlib.metadata.version(package)}")
    return True


def load_peer(folder, device, dtype=torch.float32):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.AutoModelForCausalLM
    peer = kind.from_pretrained(find_folder(folder), dtype=dtype).to(device)
    # the folder's own could change the distribution
    peer.generation_config = transformers.GenerationConfig()
    return peer


def peers_of(folder, device) -> dict:
    """transformers' model in two precisions; none if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    return {"transformers, fp32": load_peer(folder, device, torch.float32),
            "transformers, bf16": load_peer(folder, device, torch.bfloat16)}


@torch.inference_mode()
def peer_responses(peer, tokenizer, prompts, own: Sampling) -> list[list[int]]:
    """ids up to and including the end token, samples of one prompt side by side."""
    if own.temperature:
        drawing = dict(do_sample=True, temperature=own.temperature, top_k=0, top_p=1.0)
    else:
        drawing = dict(do_sample=False)
    responses, size = [], max(own.batch_size // own.samples, 1)
    for start in range(0, len(prompts), size):
        group = prompts[start: start + size]
        width = max(map(len, group))
        pads = [width - len(prompt) for prompt in group]
        ids = [[tokenizer.pad_id] * pad + prompt for pad, prompt in zip(pads, group)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        out = peer.generate(
            input_ids=torch.tensor(ids, device=peer.device),
            attention_mask=torch.tensor(mask, device=peer.device),
            num_return_sequences=own.samples, max_new_tokens=own.max_new_tokens,
            eos_token_id=sorted(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id, **drawing)
        for row in out[:, width:].tolist():
            ends = (t + 1 for t, id in enumerate(row) if id in tokenizer.stop_ids)
            responses.append(row[: next(ends, len(row))])
    return responses


def peer_loss(peer, batch, device):
    """Mean cross-entropy of the learned tokens, by transformers: the batch padded on the right."""
    longest = max(len(prompt) + len(response) for prompt, response, *_ in batch)

    def filled(row, value):
        return row + [value] * (longest - len(row))
    ids, labels, seen = [], [], []
    for prompt, response, mask, *_ in batch:
        learned = [id if flag else -100 for id, flag in zip(response, mask)]
        ids.append(filled(prompt + response, 0))
        labels.append(filled([-100] * len(prompt) + learned, -100))
        seen.append(filled([1] * len(prompt + response), 0))
    ids, labels, seen = (torch.tensor(rows, device=device) for rows in (ids, labels, seen))
    return peer(input_ids=ids, attention_mask=seen, labels=labels).loss


def compare(model, tokenizer, peer, prompts, max_new_tokens: int, batch=()):
    """Both, in fp32, must write the same text greedily and find the same loss on a batch.

    InputError: they do not.
    """
    greedy = Sampling(max_new_tokens, 0.0, batch_size=max(len(prompts), 1))
    ours = generate(model, prompts, greedy.with_tokenizer(tokenizer))
    theirs = peer_responses(peer, tokenizer, prompts, greedy)
    pairs = zip(ours, theirs, strict=True)
    different = [i for i, ([sample], ids) in enumerate(pairs, 1) if sample.ids != ids]
    if different:
        raise InputError("the greedy texts of ours and of transformers differ for prompts "
                         f"{different} of {len(prompts)}; nothing is timed")
    if batch:
        with torch.no_grad():
            packed = join([row[:2] for row in batch], [row[2] for row in batch], peer.device)
            total, _ = train_sft.masked_loss(model, packed, tokenizer.vocab_size)
            mine = total.item() / len(packed.places)
            other = peer_loss(peer, batch, peer.device).item()
        if not abs(mine - other) < 1e-4:
            raise InputError(f"the masked loss is {mine:.6f} by ours and {other:.6f} by "
                             "transformers; nothing is timed")


# ---- the parts ---------------------------------------------------------------------------------
# {name: work}; work(round) -> (seconds, tokens, bytes and operations needed at least, 0 where they
# are not counted)

def sampling(model, tokenizer, peers, prompts, own: Sampling) -> dict:
    device = model.lm_head.weight.device

    def ours(number):
        began = now(device)
        with autocast(device):
            drawing = replace(own.with_tokenizer(tokenizer), seed=number)
            rows = generate(model, prompts, drawing)
            size = 2 if torch.is_autocast_enabled(device.type) else 4
        seconds = now(device) - began
        lengths = [[len(sample.ids) for sample in row] for row in rows]
        work = decoding_work(model.config, list(map(len, prompts)), lengths, own.batch_size, size)
        return seconds, sum(map(sum, lengths)), *work

    def theirs(peer, number):
        torch.manual_seed(number)
        began = now(device)
        rows = peer_responses(peer, tokenizer, prompts, own)
        return now(device) - began, sum(map(len, rows)), 0, 0
    works = {name: functools.partial(theirs, peer) for name, peer in peers.items()}
    return {"ours": ours, **works}


def sft(model, tokenizer, peer, rows: list, seed: int) -> dict:
    device, size = model.lm_head.weight.device, train_sft.flags([]).batch
    batches = [batch_of(rows, size, step, seed) for step in range(1, SFT_STEPS + 1)]
    every = [row for batch in batches for row in batch]
    lengths = [len(prompt) + len(ids) for prompt, ids, *_ in every]
    learned = sum(sum(mask) for _, _, mask, _ in every)
    operations = training_operations(model.config, lengths, learned)
    settings = train_sft.SFT(train_rl.PPO.micro_tokens)

    def steps(trained, backward):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.0, betas=(0.9, 0.99),
                                      weight_decay=0.0, fused=True)

        def work(_):
            began = now(device)
            for batch in batches:
                backward(batch)
                clipped_step(trained, optimizer, "sft")
            return now(device) - began, sum(lengths), 0, operations
        return work

    def ours(batch):
        train_sft.accumulate(model, None, batch, tokenizer.vocab_size, settings)

    def theirs(precision):
        def backward(batch):
            with precision():
                loss = peer_loss(peer, batch, device)
            loss.backward()
        return backward
    works = {"ours": steps(model, ours)}
    if peer is not None:
        bf16 = functools.partial(autocast, device)
        works["transformers, bf16 autocast"] = steps(peer, theirs(bf16))
        works["transformers, fp32"] = steps(peer, theirs(contextlib.nullcontext))
    return works


def rl(model, tokenizer, prompts: int, own: Sampling, trl_model: str | None) -> dict:
    """A step on `prompts` questions. trl_model: folder of the model that TRL trains (None: no TRL).

    own: the responses' longest length, batch size and seed; the rest are train_rl.py's defaults.
    """
    device, defaults = model.lm_head.weight.device, train_rl.flags([])
    problems = make_puzzles("train", prompts, own.seed)
    drawing = replace(own, temperature=defaults.temperature, samples=defaults.samples,
                      seed=own.seed * 1_000_003)
    settings = train_rl.PPO(tokenizer.vocab_size, minibatches=defaults.minibatches)

    def ours(number):  # as in train_rl.main
        learner = train_rl.new_learner(model, gae=False, lr=0.0)
        began = now(device)
        this = replace(drawing, seed=drawing.seed + number)
        rollout = train_rl.collect(model, tokenizer, problems, this)
        train_rl.mark(rollout)
        train_rl.weigh(rollout, train_rl.RewardRules())
        train_rl.update(learner, rollout, settings, random.Random(number), "rl")
        return now(device) - began, int(rollout.mask.sum()), 0, 0
    works = {"ours": ours}
    if trl_model:
        for name, bf16 in (("TRL, bf16", True), ("TRL, fp32", False)):
            works[name] = functools.partial(trl_step, problems, trl_model, device, drawing,
                                            settings.minibatches, bf16)
    return works


def trl_step(problems, folder: str, device, drawing: Sampling, minibatches: int, bf16: bool,
             seed: int):
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    clock, lengths = [], []

    def reward(completions, completion_ids, **others):
        lengths.extend(map(len, completion_ids))
        return outcome_rewards(completions, **others)
    tick = TrainerCallback()
    tick.on_step_begin = tick.on_step_end = lambda *_, **__: clock.append(now(device))
    rows = len(problems) * drawing.samples // minibatches  # responses of one optimizer step
    parts = rows // math.gcd(rows, TRL_ROWS)
    questions = Dataset.from_list([question_row(problem) for problem in problems])
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            out, max_steps=minibatches, per_device_train_batch_size=rows // parts,
            gradient_accumulation_steps=parts, steps_per_generation=minibatches * parts,
            num_generations=drawing.samples, num_iterations=1, beta=0.0, learning_rate=0.0,
            max_completion_length=drawing.max_new_tokens, temperature=drawing.temperature,
            bf16=bf16, seed=seed, gradient_checkpointing=False, report_to=[], save_strategy="no",
            use_cpu=torch.device(device).type == "cpu", logging_strategy="no",
            disable_tqdm=True)
        trainer = GRPOTrainer(load_peer(folder, device), reward_funcs=reward, args=config,
                              callbacks=[tick], train_dataset=questions)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # one rollout and its optimizer steps
    assert len(clock) == 2 * minibatches and len(lengths) == len(problems) * drawing.samples
    return clock[-1] - clock[0], sum(lengths), 0, 0


# ---- the table ---------------------------------------------------------------------------------

def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2f}"


def table_rows(part: str, runs: dict, limits, units: dict) -> list[str]:
    """units: {name: function of seconds and tokens}."""
    def per_token(name):
        return median(run[0] / run[1] for run in runs[name])
    peer = min(runs.keys() - {"ours"}, key=per_token, default=None)
    rows, of_limit = [], "-"
    if limits and any(runs["ours"][0][2:]):
        memory, products = (median(run[2 + i] / limits[i] / run[0] for run in runs["ours"])
                            for i in (0, 1))
        of_limit = f"{100 * max(memory, products):.0f}%"
        print(f"{part}, of the limit: memory {100 * memory:.1f}%, "
              f"matrix products {100 * products:.1f}%")
    for unit, value in units.items():
        values = {name: [value(*run[:2]) for run in results] for name, results in runs.items()}
        for name, numbers in values.items():
            print(f"{part}, {name}: {number(median(numbers))} {unit} "
                  f"({number(min(numbers))} to {number(max(numbers))})")
        theirs = "- | -"
        if peer:
            ratios = [mine / other for mine, other in zip(values["ours"], values[peer])]
            theirs = (f"{number(median(values[peer]))} ({peer}) | {median(ratios):.2f} "
                      f"({min(ratios):.2f} to {max(ratios):.2f})")
        mine = number(median(values["ours"]))
        rows.append(f"| {part} ({unit}) | {mine} | {theirs} | {of_limit} |")
    return rows


def tokens_a_second(seconds: float, tokens: int) -> float:
    return tokens / seconds


STEP_UNITS = {"s a step": lambda seconds, tokens: seconds,
              "s for 1,000 tokens": lambda seconds, tokens: 1000 * seconds / tokens}


def flags(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)} (default: all)")
    add("--repeat", type=positive, default=5, help="timed rounds (default: %(default)s)")
    add("--prompts", type=positive, default=64, metavar="P",
        help="questions of sample; rl takes half as many, sample-large an eighth "
             "(default: %(default)s)")
    add("--data", default="out/data/trajectories.jsonl", metavar="FILE",
        help="for sft, from stage 0 (default: %(default)s)")
    add("--large", metavar="DIR",
        help="checkpoint for sample-large (default: that part is skipped)")
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
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {args.device}, "
          f"{torch.backends.cpu.get_cpu_capability()}")
    transformers = installed("transformers", "test")
    trl = "rl" in parts and installed("trl", "handover") and transformers

    # 1. the work
    rows = []
    if "sft" in parts:
        longest = min(train_sft.flags([]).max_length, model.config.max_position_embeddings)
        rows, _ = train_sft.read_rows(args.data, tokenizer, longest, None)
    puzzles = make_puzzles("test", max(args.prompts, 64), seed=0)
    questions = [SOLVE_PROMPT.format(question=problem.question) for problem in puzzles]
    prompts = [tokenizer.prompt(question) for question in questions[: args.prompts]]
    own = Sampling(args.max_new_tokens, samples=8, batch_size=args.batch_size)
    cases = {"sample": (model, tokenizer, peers_of(args.model, args.device), prompts, own)}
    if "sample-large" in parts:
        large_model, large = load_model(args.large, args.device), Tokenizer.load(args.large)
        ids = large.encode(" ".join(questions))
        prompts = [ids[64 * i: 64 * (i + 1)] for i in range(args.prompts // 8)]
        own = replace(own, samples=4, max_new_tokens=min(args.max_new_tokens, 128))
        peers = peers_of(args.large, args.device)
        cases["sample-large"] = (large_model, large, peers, prompts, own)

    # 2. both must compute the same
    if transformers:
        for part, (ours, its_tokenizer, peers, prompts, own) in cases.items():
            compare(ours, its_tokenizer, peers["transformers, fp32"], prompts[:8],
                    own.max_new_tokens, rows[:8] if part == "sample" else ())
        print("ours and transformers write the same greedy text"
              + (" and find the same loss" if rows else ""))

    # 3. time
    limits, table, speed = None, [], {"tokens/s": tokens_a_second}
    if "limit" in parts:
        limits = machine(args.device)
        print(f"memory {limits[0] / 1e9:.1f} GB/s, matrix products {limits[1] / 1e9:,.0f} GFLOP/s")
    for part in parts:
        if part in cases:
            works, units = sampling(*cases[part]), speed
        elif part == "sft":
            peer = cases["sample"][2].get("transformers, fp32")
            works, units = sft(model, tokenizer, peer, rows, args.seed), speed
        elif part == "rl":
            own = Sampling(args.max_new_tokens, seed=args.seed, batch_size=args.batch_size)
            trl_model = args.model if trl else None
            works = rl(model, tokenizer, args.prompts // 2, own, trl_model)
            units = STEP_UNITS
        else:
            continue
        table += table_rows(part, take_turns(works, args.repeat), limits, units)
    print("\n| part | ours | peer | ours / peer | of the limit |\n|---|---|---|---|---|", *table,
          sep="\n")


if __name__ == "__main__":
    run(main)

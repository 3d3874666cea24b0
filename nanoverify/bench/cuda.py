"""How fast is a GPU used? Models of known layouts with random weights.

Compared with what the card allows, and with transformers.

    python -m nanoverify.bench.cuda                      # about 3 minutes on an H100
    python -m nanoverify.bench.cuda --parts decode sft   # of decode, sft, rl, repeat, computed

    decode   Qwen2.5-0.5B, 256 rows: prompts of 256 tokens, 512 new ones in each; then single steps
             at 768 tokens. Peer: transformers' generate in bf16, 128 new tokens. Of the limit: the
             bytes that must be read (layers and lm_head in bf16, keys and values so far) at the
             card's measured bandwidth, over the time taken
    sft      Qwen2.5-0.5B, an optimizer step on 16 sequences of 1,024 tokens, of which 896 are
             learned. Of the limit: the operations of forward and backward at the card's measured
             rate of bf16 products, over the time taken
    rl       SmolLM2-135M, a step of train_rl.py on 32 questions x 8 responses of up to 256 tokens,
             4 optimizer steps
    repeat   are text and weights the same, bit for bit, when the same is done twice?
    computed without a GPU: memory by the flags of training, bytes and operations of a step

Each part on a GPU also prints the most memory that PyTorch held, beside what `cost.estimate`
computes. pip install -e '.[test]' installs transformers.
"""
import random
from dataclasses import replace
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_rl
import train_sft
from nanoverify.bench.bench import decoding_work, installed, machine, training_operations
from nanoverify.model import Config, Transformer
from nanoverify.puzzles import make_puzzles
from nanoverify.sampler import Batch, Sample, Sampling, generate
from nanoverify.support import cost
from nanoverify.support.cost import now
from nanoverify.support.files import InputError, run
from nanoverify.support.flags import Parser
from nanoverify.support.kernels import autocast, compiles
from nanoverify.support.stage import POLICY, clipped_step
from nanoverify.tokenizer import Tokenizer

PARTS = ("decode", "sft", "rl", "repeat", "computed")
COMMON = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
          "hidden_act": "silu"}
QWEN = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "rope_theta": 1e6}
SMOLLM = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
          "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
          "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
          "rope_theta": 1e5}
QWEN_LARGE = {**QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
              "num_attention_heads": 12}
LAYOUTS = {"SmolLM2-135M": SMOLLM, "Qwen2.5-0.5B": QWEN, "Qwen2.5-1.5B": QWEN_LARGE}
ROWS, PROMPT, NEW, PEER_NEW = 256, 256, 512, 128  # of decode


def new_model(layout: dict, device) -> Transformer:
    """Random weights, such that texts are varied."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(Config.from_dict(layout))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.02)
    return model


def prompts_of(model, rows: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator).tolist()


def held(device) -> float:
    """GB that PyTorch held at most since the last call."""
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def show(name: str, text: str):
    print(f"{name:8} {text}", flush=True)


# ---- the parts ---------------------------------------------------------------------------------

def decode(device, limits):
    model = new_model(QWEN, device)
    prompts, V = prompts_of(model, ROWS, PROMPT), model.config.vocab_size

    def sample(new: int) -> float:
        began = now(device)
        with autocast(device):
            generate(model, prompts, Sampling(new, vocab_size=V, batch_size=ROWS))
        return now(device) - began
    sample(NEW)  # small operations are compiled, once for shapes like these
    held(device)
    reading, seconds = sample(1), sample(NEW)
    computed = cost.estimate(model.config, ROWS, PROMPT + NEW)["peak"] / 1e9
    show("decode", f"memory held {held(device):.2f} GB, computed {computed:.2f}")
    memory, _ = decoding_work(model.config, [PROMPT] * ROWS, [[NEW]] * ROWS, ROWS, 2, head_size=2)
    show("decode", f"{ROWS * NEW / seconds:,.0f} tokens/s, {seconds:.2f} s, of them {reading:.2f} "
                   f"for the prompts; {100 * memory / limits[0] / seconds:.0f}% of the limit")
    step = steps(model, device)
    layers, head, cached = step_bytes(model, PROMPT + NEW)
    show("decode", f"{1000 * step:.2f} ms a step of {ROWS} rows at {PROMPT + NEW} tokens: "
                   f"{100 * (layers + head + cached) / limits[0] / step:.0f}% of the limit")
    if installed("transformers", "test"):
        peer = peer_tokens(model, prompts, device)
        sample(PEER_NEW)  # another length: what depends on it is compiled once more
        ours = ROWS * PEER_NEW / sample(PEER_NEW)
        show("decode", f"transformers {peer:,.0f} tokens/s at {PEER_NEW} new tokens; "
                       f"ours {ours / peer:.1f} times as fast at as many")


def step_bytes(model, length: int) -> tuple[int, int, int]:
    """Bytes in bf16 that a step must read.

    Layers, lm_head, and keys and values of `length` tokens in each row.
    """
    c = model.config
    cached = 2 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * ROWS * length
    layers = sum(p.numel() for p in model.model["layers"].parameters())
    return 2 * layers, 2 * model.lm_head.weight.numel(), cached


@torch.inference_mode()
def steps(model, device, count: int = 50) -> float:
    """Seconds of one step at full length, the median of 5 times `count`."""
    sampling = Sampling(count, vocab_size=model.config.vocab_size)
    with autocast(device):
        batch = Batch(model, ROWS, PROMPT + NEW - count, sampling)
    batch.active = [Sample()] * ROWS
    batch.cache.resize(ROWS)
    times = []
    for _ in range(6):
        batch.cache.lengths[:], batch.counts[:] = PROMPT + NEW - count, 0
        began = now(device)
        for _ in range(count):
            batch.step()
        times.append((now(device) - began) / count)
    return median(times[1:])


def peer_tokens(model, prompts, device) -> float:
    """tokens/s of transformers' generate with the same weights."""
    import transformers
    config = transformers.Qwen2Config(**QWEN)
    peer = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)
    weights = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    peer.load_state_dict(weights, strict=False)
    ids = torch.tensor(prompts, device=device)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
                "pad_token_id": 0, "eos_token_id": None}
    for new in (8, PEER_NEW):
        began = now(device)
        peer.generate(input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=new,
                      max_new_tokens=new, **sampling)
    return ROWS * PEER_NEW / (now(device) - began)


def trajectories(model, rows: int, prompt: int, response: int) -> list:
    """Rows as `train_sft.read_rows` makes them, all of the response learned."""
    texts = prompts_of(model, rows, prompt + response)
    return [(text[:prompt], text[prompt:], [1] * response, i) for i, text in enumerate(texts)]


def sft(device, limits):
    model = new_model(QWEN, device)
    batch, settings = trajectories(model, 16, 128, 896), train_sft.SFT(micro_tokens=16384)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times = []
    for _ in range(5):
        began = now(device)
        train_sft.accumulate(model, None, batch, model.config.vocab_size, settings)
        clipped_step(model, optimizer, "sft")
        times.append(now(device) - began)
    seconds = median(times[2:])
    rate = training_operations(model.config, [1023] * 16, 16 * 896) / seconds
    computed = cost.estimate(model.config, 1, 1024, settings.micro_tokens)["peak"] / 1e9
    show("sft", f"memory held {held(device):.2f} GB, computed {computed:.2f}")
    show("sft", f"{16 * 1024 / seconds:,.0f} tokens/s, {seconds:.3f} s a step, "
                f"{rate / 1e12:.0f} TFLOP/s: {100 * rate / limits[1]:.0f}% of the limit, "
                f"{100 * rate / 989e12:.0f}% of the H100's data sheet")


def rl(device, limits):
    model, tokenizer = new_model(SMOLLM, device), Tokenizer.load(POLICY)
    settings = train_rl.PPO(tokenizer.vocab_size, minibatches=4, micro_tokens=16384)
    sampling = Sampling(256, samples=8)
    learner = train_rl.new_learner(model, gae=False, lr=1e-6)
    problems = make_puzzles("train", 32, seed=0)
    for number in range(3):
        began = now(device)
        own = replace(sampling, seed=number)
        rollout = train_rl.collect(model, tokenizer, problems, own)
        sampled = now(device)
        train_rl.mark(rollout)
        train_rl.weigh(rollout, train_rl.RewardRules())
        # random weights answer nothing right, so nothing would be learned
        rollout.advantages = rollout.mask * torch.randn(rollout.mask.shape)
        train_rl.update(learner, rollout, settings, random.Random(number), "rl")
        ended = now(device)
    show("rl", f"{ended - began:.2f} s a step: rollout {sampled - began:.2f}, "
               f"update {ended - sampled:.2f}; {int(rollout.mask.sum()):,} tokens; "
               f"memory held {held(device):.2f} GB")


def repeat(device, limits):
    texts, weights = [], []
    for _ in range(2):
        model = new_model(SMOLLM, device)
        V = model.config.vocab_size
        sampling = Sampling(128, samples=4, stop_ids=frozenset({0, 1, 2}), vocab_size=V)
        with autocast(device):
            rows = generate(model, prompts_of(model, 64, 64), sampling)
        texts.append([sample.ids + sample.logprobs for row in rows for sample in row])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        batch, settings = trajectories(model, 16, 64, 400), train_sft.SFT(micro_tokens=4096)
        for _ in range(2):
            train_sft.accumulate(model, None, batch, V, settings)
            clipped_step(model, optimizer, "repeat")
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    same = sum(a == b for a, b in zip(*texts))
    equal = sum(torch.equal(a, b) for a, b in zip(*weights))
    show("repeat", f"{same} of {len(texts[0])} texts with their log-probs are the same bit for "
                   f"bit; {equal} of {len(weights[0])} tensors of weights after two steps")


# ---- what can be computed ----------------------------------------------------------------------

class Operations(TorchDispatchMode):
    """Counts what is computed; a view of other numbers is not."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = [result.alias_info for result in function._schema.returns]
        self.count += not any(alias and not alias.is_write for alias in results)
        return function(*args, **(kwargs or {}))


def operations(layers: int) -> tuple[int, int]:
    """Operations of a step of decoding, and of forward and backward passes over 4 sequences.

    Nothing is compiled. They are counted on small models of one and two layers: each further layer
    has as many as the second.
    """
    torch.set_num_threads(1)  # what other threads compute is not counted
    decoding, training = [], []
    for number in (1, 2):
        small = {"hidden_size": 18, "vocab_size": 64, "num_hidden_layers": number}
        model = new_model({**SMOLLM, **small}, "cpu")
        with torch.inference_mode():
            batch = Batch(model, 4, 8, Sampling(8, vocab_size=64))
            batch.admit([0], [[1] * 8], [[Sample()] * 4])
            with Operations() as seen:
                batch.step()
        decoding.append(seen.count)
        settings = train_sft.SFT(micro_tokens=1024)
        with Operations() as seen:
            train_sft.accumulate(model, None, trajectories(model, 4, 4, 20), 64, settings)
        training.append(seen.count)
    return tuple(one + (layers - 1) * (two - one) for one, two in (decoding, training))


def computed(device, limits):
    for name, layout in LAYOUTS.items():
        config = Config.from_dict(layout)
        for tokens, recompute in ((16384, False), (4096, False), (16384, True), (4096, True)):
            flags = f"--micro-tokens {tokens}{' --recompute' * recompute}"
            parts = cost.estimate(config, ROWS, 1280, tokens, recompute)
            line = cost.memory_line(parts).split(": ")[1]
            show("computed", f"{name} {flags}, 256 rows of 1,280 tokens: {line}")
        with torch.device("meta"):
            model = Transformer(config)
        layers, head, cached = step_bytes(model, PROMPT + NEW)
        decoding, training = operations(config.num_hidden_layers)
        show("computed", f"{name}: a step of {ROWS} rows at {PROMPT + NEW} tokens reads "
                         f"{layers / 1e9:.2f} GB of layers, {head / 1e9:.2f} of lm_head, "
                         f"{cached / 1e9:.2f} of keys and values; {decoding} operations if nothing "
                         f"is compiled, and {training:,} in forward and backward passes over 4 "
                         "sequences")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help="(default: all)")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--matmul", choices=("highest", "high"), default="high",
                        help="precision of fp32 products, as the scripts set it: high is TF32 "
                             "(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.parts == ["computed"]:
        return computed(args.device, None)
    if not torch.cuda.is_available():
        raise InputError("--device: there is no CUDA GPU here")
    torch.set_float32_matmul_precision(args.matmul)
    show("card", f"{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}")
    limits = machine(args.device)
    compiled = "" if compiles() else "; no Triton or no C compiler: nothing is compiled"
    show("card", f"memory {limits[0] / 1e12:.2f} TB/s, "
                 f"matrix products {limits[1] / 1e12:.0f} TFLOP/s{compiled}")
    functions = {"decode": decode, "sft": sft, "rl": rl, "repeat": repeat, "computed": computed}
    for part in args.parts:
        torch.cuda.empty_cache()
        held(args.device)
        functions[part](args.device, limits)


if __name__ == "__main__":
    run(main)

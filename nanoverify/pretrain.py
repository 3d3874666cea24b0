"""Train the small chat model that is shipped in nanoverify/policy: a stand-in for the paper's base.

It reads the documents of lessons.py, which hold all that a base can do before the three stages. It
is trained for a short time only, so its solutions and its checks are often wrong.

    python -m nanoverify.pretrain --out policy
"""
import argparse
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from nanoverify.lessons import PHRASES, WEIGHTS, document
from nanoverify.model import Config, Transformer
from nanoverify.puzzles import NAMES
from nanoverify.scoring import backward, join, room, token_log_probs
from nanoverify.support.cpu import workers
from nanoverify.support.files import InputError, output_folder, run, write_json, write_jsonl
from nanoverify.support.kernels import autocast

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
VOCABULARY = 1400
DRILLS = 1 / 8  # of the steps, at the start, are drills only
MUON_LR = 7  # times that of AdamW


def flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", required=True, help="folder of the checkpoint")
    add("--overwrite", action="store_true", help="replace an earlier output")
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=2200,
        help="optimizer steps; in the first eighth there are only drills (default: %(default)s)")
    add("--tokens-per-step", type=int, default=3200, help="default: %(default)s")
    add("--lr", type=float, default=3e-3,
        help="highest of AdamW, a seventh of Muon's; linear to 0 over the last 90%% "
             "(default: %(default)s)")
    add("--hidden", type=int, default=128, help="width D (default: %(default)s)")
    add("--layers", type=int, default=4, help="default: %(default)s")
    add("--save-every", type=int, default=1000,
        help="steps between saves (default: %(default)s)")
    return parser.parse_args(argv)


# ---- tokenizer and documents -------------------------------------------------------------------

def train_tokenizer(rng, vocab_size: int) -> Tokenizer:
    """Byte-level BPE over whole words and whole numbers; rare numbers are of several tokens.

    A small model learns facts about tokens faster than about digits.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+|\n+| ?[^\s\p{L}\p{N}]|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["".join(text for text, _ in document(rng)) for _ in range(20000)]
    corpus += [f"{phrase}\n\n{name}" for phrase in PHRASES for name in NAMES] * 20
    corpus += [f" {number}" for number in range(400)] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((text.replace("<|", " <|") for text in corpus), trainer)
    return tokenizer


def encode(tokenizer, pieces) -> tuple[list[int], list[int]]:
    """A document as ids, and for each id whether it is learned."""
    ids, learned = [], []
    for encoding, (_, learn) in zip(tokenizer.encode_batch([text for text, _ in pieces]), pieces):
        ids += encoding.ids
        learned += [int(learn)] * len(encoding.ids)
    return ids, learned


def batches(tokenizer, rng, tokens: int, weights):
    """Endless lists of encoded documents, each list of about this many tokens."""
    while True:
        batch, filled = [], 0
        while filled < tokens:
            batch.append(encode(tokenizer, document(rng, weights)))
            filled += len(batch[-1][0])
        yield batch


# ---- model and optimizers ----------------------------------------------------------------------

def new_model(tokenizer, hidden: int, layers: int) -> tuple[Transformer, dict]:
    """A model of the Llama layout with random weights, and its config.json."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(), "hidden_size": hidden,
        "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 64, "head_dim": 32,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True, "attention_bias": False, "torch_dtype": "bfloat16",
        "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|end|>"),
        "pad_token_id": tokenizer.token_to_id("<|pad|>")}
    model = Transformer(Config.from_dict(config))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data /= (2 * layers) ** 0.5
    return model, config


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before the step.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon. Small models learn much faster with it
    than with AdamW. PyTorch's own computes in bf16, which many CPUs emulate.
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(mean, group["momentum"])  # Nesterov: one step ahead
                rows, columns = matrix.shape
                size = group["lr"] * max(1, rows / columns) ** 0.5
                matrix.sub_(orthogonal(ahead), alpha=size)


def orthogonal(x, steps: int = 5):
    """A matrix with the singular vectors of x (A, B), and singular values near 1.

    By Newton-Schulz iterations.
    """
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


def new_optimizers(model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embeddings and the norms."""
    matrices = [p for p in model.model["layers"].parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2 or p is model.lm_head.weight]
    return [Muon(matrices, MUON_LR * lr),
            torch.optim.AdamW(others, lr, (0.9, 0.98), weight_decay=0.0)]


# ---- the run -----------------------------------------------------------------------------------

def learn(model, optimizers, batch) -> float:
    """One step down the gradient of the cross-entropy of the learned tokens. -> their mean loss"""
    rows = [(ids[:1], ids[1:]) for ids, _ in batch]
    masks = [learned[1:] for _, learned in batch]
    count = sum(map(sum, masks))
    head = model.lm_head.weight

    def work(part):
        packed = join([rows[i] for i in part], [masks[i] for i in part], head.device)
        with autocast(head.device):
            hidden = model.hidden(packed.ids, lengths=packed.lengths)[0, packed.places]
        logprobs = token_log_probs(hidden, head, packed.targets, len(head))
        loss = -logprobs.sum() / count
        return loss, {"loss": loss.detach()}

    lengths = [room(*row) for row in rows]
    budget = -(-sum(lengths) // workers(model))
    parts = backward(model, lengths, budget, work, list(model.parameters()))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return sum(part["loss"] for part in parts)


def main(argv=None):
    args = flags(argv)
    out = Path(args.out)
    # later each save replaces the one before
    if not args.overwrite and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: exists; --overwrite replaces it")
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = train_tokenizer(rng, VOCABULARY)
    model, config = new_model(tokenizer, args.hidden, args.layers)
    optimizers = new_optimizers(model, args.lr)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{tokenizer.get_vocab_size()} tokens in the vocabulary")

    drills = batches(tokenizer, rng, args.tokens_per_step, {"drills": 1})
    documents = batches(tokenizer, rng, args.tokens_per_step, WEIGHTS)
    log, start, seen = [], time.time(), 0
    bar = tqdm(range(1, args.steps + 1), desc="pretrain", mininterval=10)
    for step in bar:
        batch = next(drills if step <= DRILLS * args.steps else documents)
        rate = min(step / 200, (args.steps + 1 - step) / (0.9 * args.steps), 1)
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * rate
        loss = learn(model, optimizers, batch)
        seen += sum(len(ids) for ids, _ in batch)
        if step % 20 == 0:
            seconds = time.time() - start
            log.append({"step": step, "loss": round(loss, 4), "tokens": seen,
                        "seconds": round(seconds)})
            bar.set_postfix(loss=f"{loss:.3f}", tok_s=int(seen / seconds))
        if step % args.save_every == 0 or step == args.steps:
            save(model, tokenizer, config, args, log)


def save(model, tokenizer, config, args, log):
    """An ordinary Hugging Face folder, in bf16, with the recipe beside it."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()
               if name != "lm_head.weight"}
    with output_folder(args.out, overwrite=True) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json",
                   {"eos_token_id": config["eos_token_id"],
                    "pad_token_id": config["pad_token_id"]})
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "eos_token": "<|end|>", "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE})
        write_json(folder / "arguments.json", {**vars(args), "log": log[-1:]})
        write_jsonl(folder / "metrics.jsonl", log)


if __name__ == "__main__":
    run(main)

"""Sampling against the plain way: the whole text through the model for every token, one row at a
time; and against transformers."""
import math
import random
import threading

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, pre_tokenizers

from nanoverify import pretrain, sampler
from nanoverify.checkpoint import load_model, save_model
from nanoverify.model import Config, Transformer
from nanoverify.sampler import (
    SLOTS,
    KVCache,
    Sampling,
    draw,
    generate,
    keep_top,
    next_token,
    prefill,
    scaled_log_probs,
)
from nanoverify.scoring import token_log_probs
from nanoverify.support.decoding import decode, fuse
from nanoverify.support.files import InputError, write_json
from nanoverify.tokenizer import Tokenizer

torch.set_num_threads(1)


# ---- tiny stand-ins, used by the other test files too ------------------------------------------

def tiny_model(vocab_size=61, context=96, seed=0, tied=False) -> Transformer:
    """Random weights large enough that its texts are varied."""
    torch.manual_seed(seed)
    model = Transformer(Config(architecture="LlamaForCausalLM", vocab_size=vocab_size,
                               hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                               max_position_embeddings=context, rms_norm_eps=1e-5,
                               rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=tied))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (0 if parameter.dim() > 1 else 0.7)
    return model.eval()


def byte_tokenizer(merges=()) -> Tokenizer:
    """Every byte a token, and then what `merges` joins."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in merges]
    raw = Raw(models.BPE({piece: id for id, piece in enumerate(pieces)}, list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(pretrain.SPECIAL))
    return Tokenizer(raw, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}, {}, {},
                     pretrain.CHAT_TEMPLATE)


def save_policy(folder, vocab_padding=0, seed=0):
    """A random checkpoint with that tokenizer, as an ordinary folder."""
    raw = byte_tokenizer().raw
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>", "pad_token": "<|pad|>",
                                                  "chat_template": pretrain.CHAT_TEMPLATE})
    model = tiny_model(raw.get_vocab_size() + vocab_padding, 1024, seed, tied=True)
    write_json(folder / "config.json",
               {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                "eos_token_id": raw.token_to_id("<|end|>"), "dtype": "float32",
                **{field: value for field, value in vars(model.config).items()
                   if field not in ("architecture", "qkv_bias", "qk_norm")}})
    save_file({name: parameter.detach() for name, parameter in model.named_parameters()},
              folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


PROMPTS = [[random.Random(n).randrange(61) for _ in range(n)] for n in (9, 1, 4, 12, 6, 4, 2)]


def plain_greedy(model, prompt, max_new_tokens, stop_ids):
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt):]


# ---- the cache and the batch -------------------------------------------------------------------

@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory holds NaN, so that a slot which is read before it is written shows."""
    monkeypatch.setattr(torch.Tensor, "new_empty",
                        lambda tensor, *shape: tensor.new_full(shape, float("nan")))


def copy_rows(cache, source, rows, to):
    cache.copy_rows(source, torch.tensor(rows), torch.tensor(to), max(to))


def one_more(model, ids, cache):
    """The logits of the tuned step, which must be those of the plain model with the same cache."""
    cache.reserve(1)
    idle = torch.zeros(cache.rows - len(ids), dtype=torch.long)
    plain = model(torch.cat([ids, idle])[:, None], cache=cache)[: len(ids), 0]
    found = decode(fuse(model), ids, cache)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
    return found


@torch.no_grad()
def test_cached_logits_equal_the_full_forward(poisoned):
    """Bug: a row's new key goes into another row's slot, stale slots are seen, or positions count
    the padding."""
    model, prompts = tiny_model(), PROMPTS[:3]
    texts = torch.randint(0, 61, (3, 6), generator=torch.Generator().manual_seed(1)).tolist()
    read, logits = prefill(model, prompts)
    cache = KVCache(model.config, 3, "cpu", torch.float32)
    cache.reserve(24)
    for tensor in cache.k + cache.v:
        tensor.fill_(1e3)  # what an earlier row left
    copy_rows(cache, read, [2, 0, 1], [0, 1, 2])
    cache.resize(3)
    order = [2, 0, 1]
    prompts, texts = [prompts[i] for i in order], [texts[i] for i in order]
    logits = logits[order]
    for t in range(6):
        expected = torch.stack([model(torch.tensor([prompt + text[:t]]))[0, -1]
                                for prompt, text in zip(prompts, texts)])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        logits = one_more(model, torch.tensor([text[t] for text in texts]), cache)


@torch.no_grad()
def test_cache_follows_the_longest_row(poisoned, monkeypatch):
    """Bug: tokens are lost or shifted when the cache grows beyond its slots or shrinks after a long
    row has left; fresh slots or rows are not zeroed; rows that left are carried along."""
    monkeypatch.setattr("nanoverify.sampler.ROWS", 1)
    model, cache = tiny_model(context=4 * SLOTS), None
    prompts = [[i % 61 for i in range(3 * SLOTS - 2)], [5, 6, 7]]
    cache, logits = prefill(model, prompts)
    texts, sizes = [list(prompt) for prompt in prompts], []
    for _ in range(5):
        ids = logits.argmax(-1)
        texts = [text + [id] for text, id in zip(texts, ids.tolist())]
        logits = one_more(model, ids, cache)
        sizes.append(cache.k[0].shape[2])
        expected = torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    copy_rows(cache, cache, [1], [0])
    cache.resize(1)
    for _ in range(SLOTS):
        id = logits[-1:].argmax(-1)
        texts[1].append(id.item())
        logits = one_more(model, id, cache)
        sizes.append(cache.k[0].shape[2])
        torch.testing.assert_close(logits[0], model(torch.tensor([texts[1]]))[0, -1], atol=1e-4,
                                   rtol=0)
    assert sizes[0] == 3 * SLOTS and 4 * SLOTS in sizes and sizes[-1] == 2 * SLOTS
    assert cache.k[0].shape[0] == 1
    read, _ = prefill(model, [[7, 8], [9]])
    copy_rows(cache, read, [0], [1])  # a row comes back
    cache.resize(2)
    ids, texts = torch.tensor([3, 5]), [texts[1] + [3], [7, 8, 5]]
    expected = torch.stack([model(torch.tensor([text]))[0, -1] for text in texts])
    torch.testing.assert_close(one_more(model, ids, cache), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def plain_texts():
    """(model, stop ids, greedy texts of PROMPTS) with stops chosen such that the texts end at
    different times."""
    model = tiny_model()
    with torch.no_grad():
        whole = [plain_greedy(model, prompt, 15, ()) for prompt in PROMPTS]
        stops = {whole[0][3], whole[2][8], whole[4][0], whole[5][11]}
        texts = [plain_greedy(model, prompt, 15, stops) for prompt in PROMPTS]
    assert len({len(text) for text in texts}) > 3 and max(map(len, texts)) == 15
    return model, stops, texts


@pytest.mark.parametrize("slots, idle", [(4, 1), (4, 2), (SLOTS, 32), ("fixed", 1), ("fixed", 4)])
# on a GPU ended rows are looked for only every few steps
@pytest.mark.parametrize("count, check", [(1, 1), (3, 1), (1, 4)])
@pytest.mark.parametrize("samples, batch_size",
                         [(1, 100), (1, 16), (1, 7), (1, 5), (1, 4), (1, 3), (1, 2), (1, 1),
                          (3, 100), (3, 9), (3, 7), (3, 3), (3, 1)])
@pytest.mark.parametrize("times", [1, 3])
def test_batch_equals_each_prompt_alone(times, samples, batch_size, count, check, slots, idle,
                                        plain_texts, poisoned, monkeypatch):
    """Bug: rows that end early, move or are refilled take the text, length or place in the result
    of another, also while the cache grows and shrinks; a small batch stalls; rows that wait for the
    next look after their end write into their text, or run out of room."""
    if slots == "fixed":  # as on a GPU
        monkeypatch.setattr("nanoverify.sampler.FIXED", {"cpu"})
    else:
        monkeypatch.setattr("nanoverify.sampler.SLOTS", slots)
    monkeypatch.setattr("nanoverify.sampler.ROWS", idle)
    monkeypatch.setattr("nanoverify.sampler.workers", lambda model: count)
    monkeypatch.setattr("nanoverify.sampler.CHECK", {"cpu": check})
    model, stops, expected = plain_texts
    found = generate(model, PROMPTS * times, Sampling(15, 0, samples=samples, stop_ids=stops,
                                                      vocab_size=61, batch_size=batch_size))
    for text, row in zip(expected * times, found, strict=True):
        assert [sample.ids for sample in row] == [text] * samples
        assert all(sample.finished == (text[-1] in stops) for sample in row)


def test_greedy_equals_transformers(tmp_path):
    """Bug: what generate writes is not what the saved checkpoint writes elsewhere."""
    import transformers  # here, since other tests take their stand-ins from this file
    model, stop = tiny_model(), 40
    (tmp_path / "source").mkdir(), (tmp_path / "saved").mkdir()
    transformers.LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48,
                             num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                             max_position_embeddings=96, rms_norm_eps=1e-5, eos_token_id=stop,
                             pad_token_id=None, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path / "source")
    save_model(model, tmp_path / "saved", tmp_path / "source")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    found = generate(load_model(tmp_path / "saved"), PROMPTS,
                     Sampling(20, 0, stop_ids={stop}, vocab_size=61))
    for prompt, (sample,) in zip(PROMPTS, found):
        ids = torch.tensor([prompt])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                   max_new_tokens=20, pad_token_id=0)
        assert sample.ids == expected[0, len(prompt):].tolist()


# ---- what a sample is --------------------------------------------------------------------------

def test_seeds():
    """Bug: the seed is not used, or sampling draws from, or reseeds, the global generator that
    training relies on."""
    model = tiny_model()

    def run(seed, **more):
        sampling = Sampling(12, samples=2, stop_ids={3}, vocab_size=61, seed=seed, **more)
        return [[s.ids for s in row] for row in generate(model, PROMPTS, sampling)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert run(0) == first != run(1)
    assert run(0, batch_size=4) == run(0, batch_size=4)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.5])
def test_log_probs_equal_the_trainers(temperature):
    """Bug: log-probs are of another token, another temperature or another vocabulary than those the
    trainer computes."""
    model, vocab_size = tiny_model(vocab_size=64), 60
    rows = generate(model, PROMPTS, Sampling(14, temperature, samples=3, stop_ids={3},
                                             vocab_size=vocab_size, batch_size=6))
    for prompt, row in zip(PROMPTS, rows):
        for sample in row:
            with torch.no_grad():
                hidden = model.hidden(torch.tensor([prompt + sample.ids]))[0, len(prompt) - 1: -1]
                expected = token_log_probs(hidden, model.lm_head.weight, torch.tensor(sample.ids),
                                           vocab_size, temperature)
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_autocast(count, monkeypatch):
    """Bug: under autocast the cache stays in fp32, that of a worker, too, or logits and log-probs
    are rounded; sampler and trainer drift apart."""
    model, dtypes, make = tiny_model(), set(), KVCache.__init__
    monkeypatch.setattr("nanoverify.sampler.workers", lambda model: count)
    monkeypatch.setattr(KVCache, "__init__",
                        lambda cache, config, rows, device, dtype, slots=0: dtypes.add(dtype)
                        or make(cache, config, rows, device, dtype, slots))
    with torch.autocast("cpu", torch.bfloat16):
        cache, logits = prefill(model, PROMPTS)
        assert cache.k[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
        rows = generate(model, PROMPTS,
                        Sampling(40, samples=3, stop_ids={3}, vocab_size=61, batch_size=6))
        differences = []
        for prompt, row in zip(PROMPTS, rows):
            for sample in row:
                with torch.no_grad():
                    hidden = model.hidden(torch.tensor([prompt + sample.ids]))[
                        0, len(prompt) - 1: -1]
                    expected = token_log_probs(hidden, model.lm_head.weight,
                                               torch.tensor(sample.ids), 61)
                differences += (torch.tensor(sample.logprobs) - expected).abs().tolist()
    assert dtypes == {torch.bfloat16}
    assert sum(differences) / len(differences) < 0.03


def test_stop_and_truncation():
    """Bug: the stop id is dropped, something is written after it, or a cut response counts as
    finished."""
    samples = [s for row in generate(tiny_model(), PROMPTS,
                                     Sampling(12, samples=30, stop_ids={3, 17}, vocab_size=61,
                                              batch_size=40)) for s in row]
    finished = [s for s in samples if s.finished]
    cut = [s for s in samples if not s.finished]
    assert len(finished) > 20 and len(cut) > 20
    for sample in samples:
        assert len(sample.logprobs) == len(sample.ids) and not {3, 17} & set(sample.ids[:-1])
    assert all(sample.ids[-1] in (3, 17) and len(sample.ids) <= 12 for sample in finished)
    assert all(sample.ids[-1] not in (3, 17) and len(sample.ids) == 12 for sample in cut)
    assert any(len(sample.ids) == 12 for sample in finished)  # a stop at the limit is still a stop


def test_place_and_neighbours_do_not_matter(monkeypatch):
    """Bug: what is drawn for one sample depends on which rows are in the batch, on the worker or on
    when rows are looked at."""
    model = tiny_model()

    def run(**more):
        sampling = Sampling(12, samples=4, stop_ids={3, 17}, vocab_size=61, seed=2, **more)
        rows = generate(model, PROMPTS, sampling)
        return [[(s.ids, s.finished) for s in row] for row in rows]
    expected = run()
    assert all(run(batch_size=size) == expected for size in (4, 7, 9))
    monkeypatch.setattr("nanoverify.sampler.CHECK", {"cpu": 5})
    assert run(batch_size=9) == expected
    monkeypatch.setattr("nanoverify.sampler.workers", lambda model: 2)
    assert run() == expected == run(batch_size=16)


def test_prompts_are_read_in_parts(monkeypatch):
    """Bug: all prompts of a batch are read at once, whatever memory that takes."""
    model, real, sizes = tiny_model(), sampler.prefill, []

    def prefill(model, prompts, *rest):
        sizes.append((len(prompts), max(map(len, prompts))))
        return real(model, prompts, *rest)

    def texts():
        return [[s.ids for s in row]
                for row in generate(model, PROMPTS,
                                    Sampling(12, samples=4, stop_ids={3, 17}, vocab_size=61))]

    whole = texts()
    monkeypatch.setattr(sampler, "prefill", prefill)
    longest = max(map(len, PROMPTS))
    monkeypatch.setattr(sampler, "READ", 2 * longest + 1)
    assert texts() == whole
    assert max(rows for rows, _ in sizes) == 2 and sum(rows for rows, _ in sizes) == len(PROMPTS)
    monkeypatch.setattr(sampler, "READ", 1)  # one prompt at least
    assert texts() == whole


@pytest.mark.parametrize("batch_size", [64, 8])
def test_every_token_has_its_own_random_number(batch_size):
    """Bug: a sample's tokens, the samples of a prompt, different prompts or rows that take
    another's place share random numbers, which the model's own variety hides: here all tokens are
    equally likely."""
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    texts = [tuple(sample.ids)
             for row in generate(model, PROMPTS,
                                 Sampling(20, samples=4, vocab_size=61, batch_size=batch_size))
             for sample in row]
    assert len(texts) == 28 and min(len(set(text)) for text in texts) > 10 and len(set(texts)) == 28
    assert all(len(set(column)) > 14 for column in zip(*texts))


def test_an_error_stops_all_workers(monkeypatch):
    """Bug: Ctrl-C, or a lack of memory in one worker, shows only when the others have written all
    of their texts."""
    monkeypatch.setattr("nanoverify.sampler.workers", lambda model: 2)
    fed, plain = [], decode

    def broken(fused, ids, cache):
        fed.append(threading.get_ident())
        if len(set(fed)) == 2 and fed[0] != fed[-1]:
            raise KeyboardInterrupt
        return plain(fused, ids, cache)
    monkeypatch.setattr("nanoverify.sampler.decode", broken)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny_model(context=4000), [PROMPTS[0], PROMPTS[3]], Sampling(3000, vocab_size=61))
    assert len(fed) < 3000


def test_samples_of_one_prompt_are_independent():
    """Bug: the prompt's first token is drawn once and copied, so the K samples share it."""
    for batch_size in (64, 8):
        row = generate(tiny_model(), [PROMPTS[0], PROMPTS[2]],
                       Sampling(6, 1.5, samples=8, stop_ids={3}, vocab_size=61,
                                batch_size=batch_size))[0]
        assert len({sample.ids[0] for sample in row}) > 3
        assert len({tuple(sample.ids) for sample in row}) == 8


# ---- logits -> log-probs -> token --------------------------------------------------------------

def test_draw_follows_the_probabilities():
    """Bug: sampling is biased (clocks not inverted, random numbers ignored), or draws what has no
    probability."""
    probs = torch.tensor([0.5, 0.25, 0.2, 0.05, 0.0])
    ids = draw(probs.log().expand(40_000, 5).contiguous(),
               torch.rand(40_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(ids, minlength=5) / 40_000
    assert ((share - probs).abs() <= 4.5 * (probs * (1 - probs) / 40_000).sqrt()).all()
    assert share[4] == 0


@pytest.mark.parametrize("V", [8193, 9216, 50_000])
def test_draw_from_a_large_vocabulary(V):
    """Bug: an id of another block, the mass before it counted twice or not, or an id without
    mass."""
    probs = torch.rand(2000, V, generator=torch.Generator().manual_seed(0)) ** 40
    probs[:, V // 3: V // 2] = 0
    u = torch.linspace(0, 1, 2000)
    found = draw((probs / probs.sum(-1, keepdim=True)).log(), u)
    cumulative = probs.double().cumsum(-1)
    total, after = cumulative[:, -1], cumulative.gather(-1, found[:, None])[:, 0]
    mass = probs.gather(-1, found[:, None])[:, 0]
    assert (mass > 0).all()
    # u lies in the part of the line that belongs to the id
    assert (after / total >= u - 1e-5).all() and ((after - mass) / total <= u + 1e-5).all()


@pytest.mark.parametrize("top_k", [0, 1, 5, 60, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_keep_top(top_k, top_p):
    """Bug: one token too many or too few is kept, the order is not undone, or what is kept is not
    renormalised."""
    log_probs = (3
                 * torch.randn(50, 60, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    for before, after in zip(log_probs, keep_top(log_probs, top_k, top_p)):
        order = sorted(range(60), key=lambda i: -before[i].item())[: top_k or 60]
        total, mass, kept = sum(before[i].exp().item() for i in order), 0.0, []
        for i in order:
            kept.append(i)
            mass += before[i].exp().item() / total
            if mass >= top_p:
                break
        assert set(after.isfinite().nonzero()[:, 0].tolist()) == set(kept)
        torch.testing.assert_close(after[kept], before[kept].log_softmax(-1), atol=1e-5, rtol=0)


def test_keep_top_by_hand():
    """Bug: top_p keeps the largest set UNDER p; top_p is taken before top_k."""
    log_probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()

    def kept(k, p):
        return keep_top(log_probs, k, p).exp()[0].round(decimals=3).tolist()
    assert kept(0, 0.7) == [0, 0.625, 0, 0.375]
    assert kept(0, 0.4) == [0, 1, 0, 0]
    assert kept(0, 0.9) == pytest.approx([0.158, 0.526, 0, 0.316], abs=1e-3)
    assert kept(2, 0.6) == [0, 1, 0, 0]  # 0.625 of the two left is enough


def test_log_softmax_of_half_precision_is_fp32():
    """Bug: log-probs of bf16 logits have three digits."""
    logits = 9 * torch.randn(5, 61, generator=torch.Generator().manual_seed(0)).bfloat16()
    for temperature in (1.0, 0.7):
        found = scaled_log_probs(logits, temperature)
        torch.testing.assert_close(found, (logits.float() / temperature).log_softmax(-1))


def test_log_probs_under_top_k_and_top_p():
    """Bug: with top-k or top-p the log-prob is that of the whole distribution, not of the one
    sampled from."""
    logits = 2 * torch.randn(200, 36, generator=torch.Generator().manual_seed(0))
    ids, logprobs = next_token(logits, 0.8, 5, 0.9,
                               torch.rand(200, generator=torch.Generator().manual_seed(1)))
    expected = keep_top(scaled_log_probs(logits, 0.8), 5, 0.9)
    torch.testing.assert_close(logprobs, expected[torch.arange(200), ids])
    assert (logprobs > (logits / 0.8).log_softmax(-1)[torch.arange(200), ids]).all()


def test_temperature():
    """Bug: logits are multiplied by the temperature, or temperature 0 divides by it."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    ids, log_probs = next_token(logits, 0, 0, 1.0, None)
    assert ids.tolist() == [1] and log_probs.tolist() == [0.0]
    log_probs = scaled_log_probs(logits, 0.5)[0]
    assert (log_probs[1] - log_probs[0]).item() == pytest.approx(4.0)
    assert math.fsum(log_probs.exp().tolist()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("temperature, top_k, top_p",
                         [(0, 0, 1.0), (1.0, 0, 1.0), (5.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.3)])
def test_padding_of_the_vocabulary_is_never_sampled(temperature, top_k, top_p):
    """Bug: ids that the tokenizer does not know, likely in an untrained row of the weights, get
    out."""
    model = tiny_model()
    model.lm_head.weight.data[50:] = 30 * model.lm_head.weight.data[:11]
    rows = generate(model, PROMPTS, Sampling(10, temperature, samples=4, stop_ids={3},
                                             vocab_size=50, top_k=top_k, top_p=top_p))
    assert max(id for row in rows for sample in row for id in sample.ids) < 50


def test_prompts_that_do_not_fit():
    """Bug: positions beyond the context are used silently, an empty prompt reads another row, or
    the limit is off by one."""
    model = tiny_model(context=16)
    assert len(generate(model, [[1] * 10],
                        Sampling(6, 0, stop_ids=set([60]), vocab_size=61))[0][0].ids) <= 6
    with pytest.raises(InputError, match="prompt 2 of 2 has 11 tokens.*16"):
        generate(model, [[1], [1] * 11], Sampling(6, stop_ids={60}, vocab_size=61))
    with pytest.raises(InputError, match="prompt 1"):
        generate(model, [[]], Sampling(6, stop_ids={60}, vocab_size=61))
    assert generate(model, [], Sampling(6, samples=2, stop_ids={60}, vocab_size=61)) == []

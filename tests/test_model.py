"""The model against transformers, an independent implementation: logits, padding, gradients, for
each family."""
import pytest
import torch
import torch.nn.functional as F
import transformers

from nanoverify.checkpoint import load_config, load_model
from nanoverify.sampler import Sampling, generate
from nanoverify.support.files import InputError, read_json, write_json
from nanoverify.support.kernels import chunked_attention

torch.set_num_threads(1)

SIZES = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
             bos_token_id=1, eos_token_id=2)
# so short that all three bands of wavelengths occur
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": ("Llama", dict(num_key_value_heads=4)),
    "llama-grouped": ("Llama", dict()),
    "llama-one-kv-head": ("Llama", dict(num_key_value_heads=1)),
    "llama-tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama-head-dim": ("Llama", dict(head_dim=20)),
    "llama-theta": ("Llama", dict(rope_scaling={"rope_type": "default", "rope_theta": 500000.0})),
    "llama-llama3-rope": ("Llama", dict(rope_scaling={**LLAMA3, "rope_theta": 10000.0})),
    "llama-linear-rope": ("Llama", dict(rope_scaling={"rope_type": "linear", "factor": 4.0,
                                                      "rope_theta": 10000.0})),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=16)),
    "mistral-whole-window": ("Mistral", dict(sliding_window=512)),
    "qwen2-whole-window": ("Qwen2", dict(
        sliding_window=512, use_sliding_window=True, max_window_layers=0)),
    "qwen2-no-windowed-layer": ("Qwen2", dict(
        sliding_window=64, use_sliding_window=True, max_window_layers=3)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(ours, theirs): one random checkpoint, written by transformers, opened by both."""
    name, settings = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**{**SIZES, **settings}))
    # biases start at 0 and norms at 1, which would hide their absence
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (0 if parameter.dim() > 1 else 0.5)
    theirs.save_pretrained(folder)
    return load_model(folder), theirs.eval()


def random_ids(*shape):
    return torch.randint(3, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


def test_logits(pair):
    """Bug: rotary order, norm, bias or head grouping differs from the checkpoint's family. 300
    positions, so that scaled angles matter."""
    ours, theirs = pair
    ids = random_ids(2, 300)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_right_padding_needs_no_mask(pair):
    """Bug: a row's logits depend on what follows it."""
    ours, _ = pair
    ids = random_ids(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(F.pad(ids, (0, 5)))[:, :12], ours(ids), atol=1e-5, rtol=0)


def test_left_padded_batch(pair):
    """Bug: padding is attended to, shifts the positions, or makes NaN; each row must also equal
    only itself."""
    ours, theirs = pair
    lengths = [11, 4, 1]
    ids, mask = random_ids(3, 11), torch.tensor([[0] * (11 - n) + [1] * n for n in lengths])
    with torch.no_grad():
        found, expected = ours(ids, attention_mask=mask), theirs(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)
        assert torch.isfinite(found).all()
        for row, n in enumerate(lengths):
            torch.testing.assert_close(found[row, -n:], ours(ids[row:row + 1, -n:])[0], atol=1e-4,
                                       rtol=0)


class GrowingCache:
    """The plainest object that meets the model's cache protocol."""

    def __init__(self):
        self.length, self.stored = 0, {}

    def positions(self, T):
        return torch.arange(self.length, self.length + T)[None]

    def mask(self, T):
        return torch.full((1, 1, T, self.length + T), float("-inf")).triu(self.length + 1)

    def append(self, layer, *new):
        self.stored[layer] = [torch.cat(pair, dim=2)
                              for pair in zip(self.stored[layer],
                                              new)] if layer in self.stored else new
        return self.stored[layer]


def test_cached_equals_full(pair):
    """Bug: a cached key lacks its rotation, positions start again, or what a cache holds is not
    seen."""
    ours, theirs = pair
    ids, cache, parts = random_ids(2, 12), GrowingCache(), []
    with torch.no_grad():
        for part in ids.split([5, 1, 1, 4, 1], dim=1):
            parts.append(ours(part, cache=cache))
            cache.length += part.shape[1]
        torch.testing.assert_close(torch.cat(parts, dim=1), theirs(ids).logits, atol=1e-4, rtol=0)


def test_greedy_text_equals_transformers(pair):
    """Bug: a family's own parts (norms of q and k, biases, scaled angles) are right in the full
    forward but not when decoding from the cache."""
    ours, theirs = pair
    prompts = [random_ids(n).tolist() for n in (5, 17, 9)]
    found = generate(ours, prompts, Sampling(64, 0, stop_ids={SIZES["vocab_size"]},
                                             vocab_size=SIZES["vocab_size"]))
    for prompt, (sample,) in zip(prompts, found):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False,
                                   eos_token_id=None, pad_token_id=0)
        assert sample.ids == expected[0, len(prompt):].tolist()


def test_gradients(pair):
    """Bug: something is detached, tied weights get half their gradient, or padding leaks into the
    loss."""
    losses = []
    ids = random_ids(2, 10)
    trained = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0, 0]]).bool()
    for model in pair:
        model.zero_grad()
        out = model(ids)
        logits = out if torch.is_tensor(out) else out.logits
        losses.append(F.cross_entropy(logits[:, :-1][trained], ids[:, 1:][trained]))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=0)
    ours, theirs = (dict(model.named_parameters()) for model in pair)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-4, rtol=1e-4,
                                   msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("T", [1, 7, 8, 9, 37])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_chunked_attention(T, kv_heads):
    """Bug: a chunk sees its future, loses keys of earlier chunks, or reads another head's keys; in
    values or in gradients."""
    torch.manual_seed(T)
    q, k, v = (torch.randn(3, heads, T, 16, requires_grad=True)
               for heads in (4, kv_heads, kv_heads))
    weights = torch.randn(3, 4, T, 16)
    found = chunked_attention(q, k, v, size=8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), (q, k, v))
                              for y in (found, expected))):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_bf16_stays_near_fp32(pair):
    """Bug: what bf16 training on a CPU computes differs from the fp32 model by more than rounding
    (another mask or scale)."""
    ours, _ = pair
    ids = random_ids(2, 150)
    with torch.no_grad():
        exact = ours(ids).log_softmax(-1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = ours(ids).float().log_softmax(-1)
    assert (exact - rounded).abs().mean() < 0.02 * exact.std() + 0.01


MISTRAL = {"architectures": ["MistralForCausalLM"]}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}


@pytest.mark.parametrize("settings, named", [
    ({"architectures": ["GemmaForCausalLM"]},
     ["GemmaForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
    ({"architectures": None, "model_type": "gpt2"}, ["None", "LlamaForCausalLM"]),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling", "yarn", "llama3"]),
    ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
     ["rope_scaling", "dynamic"]),
    ({**MISTRAL, "sliding_window": 511}, ["sliding_window", "511", "MistralForCausalLM"]),
    ({**MISTRAL, "max_position_embeddings": 8192}, ["sliding_window", "4096"]),
    ({**MISTRAL, "sliding_window": "long"}, ["sliding_window", "long"]),
    ({**QWEN2, "sliding_window": 64}, ["sliding_window"]),
    ({**QWEN2, "sliding_window": 64, "max_window_layers": 2}, ["sliding_window"]),
    ({**QWEN2, "max_position_embeddings": 8192}, ["sliding_window", "4096"]),
    ({**QWEN2, "sliding_window": 64, "max_window_layers": 3,
      "layer_types": ["full_attention", "sliding_attention"]}, ["sliding_window"]),
    ({"attention_bias": True}, ["attention_bias"]),
    ({"mlp_bias": True}, ["mlp_bias"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
    ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    ({"hidden_size": None}, ["config.json"]),
])
def test_refused_by_name(settings, named, tmp_path):
    """Bug: a setting that changes the result is passed over, and the model is silently another
    one."""
    transformers.LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **settings})
    with pytest.raises(InputError) as error:
        load_config(tmp_path)
    assert all(word in str(error.value) for word in ["config.json", *named])


@pytest.mark.parametrize("settings", [
    {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096, "use_sliding_window": False},
    {"attention_dropout": 0.1, "use_cache": False, "made_up": 1},
    {"architectures": None}, {"architectures": []},  # model_type says llama
    {"rope_parameters": None, "rope_scaling": None, "rope_theta": 10000},
])
def test_settings_that_do_not_matter_are_ignored(settings, tmp_path):
    """Bug: real Qwen2 folders name a sliding window that they do not use, and are refused."""
    transformers.LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **settings})
    assert load_config(tmp_path).rope_theta == 10000.0


def test_transformers_4_spelling_of_rope(tmp_path):
    """Bug: rope_theta beside rope_scaling, as every released folder has it, is read as the
    default."""
    transformers.LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    raw = read_json(tmp_path / "config.json")
    del raw["rope_parameters"]
    write_json(tmp_path / "config.json",
               {**raw, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}})
    config = load_config(tmp_path)
    assert config.rope_theta == 5e5 and config.rope_scaling["rope_type"] == "llama3"
    assert config.rope_scaling["factor"] == 8.0

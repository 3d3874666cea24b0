"""Prompts against transformers, for stand-ins of ten families' chat templates; and which ids stop,
end and pad."""
import jinja2
import pytest
import tokenizers
import transformers

from nanoverify.support.files import InputError, read_json, write_json
from nanoverify.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
           "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<bos>",
           "<eos>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|endoftext|>"]
ID = {token: id for id, token in enumerate(SPECIAL)}

# name -> (BOS, EOS, what ends an assistant message, template); written for this test with the
# constructs of the originals
TEMPLATES = {
    "smollm2": ("<|im_start|>", "<|im_end|>", "<|im_end|>", """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
Be helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""),
    "qwen2.5": (None, "<|im_end|>", "<|im_end|>", """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""),
    "qwen3": (None, "<|im_end|>", "<|im_end|>", """\
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string and \
not message.content.startswith('<tool>') %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == "assistant" and loop.index0 > ns.last %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""),
    "llama-2": ("<s>", "</s>", "</s>", """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system != false %}\
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}\
{% endif %}{% endfor %}"""),
    "llama-3.2": ("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- the system message, if any, moves into the header #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'\
+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""),
    "mistral-v3": ("<s>", "</s>", "</s>", """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages if message.role != "tool" %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS]" + tools | tojson }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""),
    "zephyr": ("<s>", "</s>", "</s>", """\
{% for message in messages %}
  {% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
  {% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""),
    "gemma": ("<bos>", "<eos>", "<end_of_turn>", """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""),
    "phi-3": ("<s>", "<|endoftext|>", "<|end|>", """\
{% for message in messages %}{% if message['role'] == 'system' %}\
{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}\
{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}\
{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""),
    "generation-tag": (None, "<|im_end|>", "<|im_end|>", """\
{% for message in messages %}
    {%- if message.role == "assistant" %}
        {%- generation %}
{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""),
}
TEXT = "  What is \"27\" + 1,5 < 3 & é 😀?\n"
USER = {"role": "user", "content": TEXT}
SYSTEM = {"role": "system", "content": " Answer briefly. "}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n It is 28.5 \n"}


def write_tokenizer(folder, bos=None, eos="</s>", template=None, generation=None, adds_bos=False,
                    **config):
    """A byte-level BPE tokenizer folder; adds_bos: as Llama's, which puts BOS before whatever is
    encoded with special tokens."""
    folder.mkdir(exist_ok=True)
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator([TEXT] * 3, trainer)
    if adds_bos:
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ID[bos])])
    raw.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json",
               {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
                "chat_template": template, **config})
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    return folder


@pytest.fixture(params=TEMPLATES)
def family(request, tmp_path):
    """(ours, theirs, end token) for one family's template."""
    bos, eos, end, template = TEMPLATES[request.param]
    write_tokenizer(tmp_path, bos, eos, template, {"eos_token_id": sorted({ID[eos], ID[end]})},
                    adds_bos=bos is not None)
    return Tokenizer.load(tmp_path), transformers.PreTrainedTokenizerFast.from_pretrained(
        tmp_path), end


def test_rendered_as_transformers_does(family):
    """Bug: whitespace control, filters or variables differ, and the model sees prompts that it was
    never trained on."""
    ours, theirs, _ = family
    conversations = [[USER], [SYSTEM, USER], [USER, ASSISTANT], [USER, ASSISTANT, USER],
                     [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], [USER, USER]]
    rendered = 0
    for messages in conversations:
        for settings in ({"add_generation_prompt": True}, {"add_generation_prompt": False},
                         {"add_generation_prompt": True, "enable_thinking": False}):
            try:
                expected = theirs.apply_chat_template(messages, tokenize=False, **settings)
            except jinja2.TemplateError:
                with pytest.raises(InputError, match="chat template"):
                    ours.render(messages, **settings)
                continue
            assert ours.render(messages, **settings) == expected
            rendered += 1
    assert rendered >= 9


def test_prompt_ids(family):
    """Bug: BOS twice, once from the template and once from the tokenizer; or special tokens split
    into characters."""
    ours, theirs, _ = family
    ids = ours.prompt(TEXT)
    assert ids == theirs.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    bos = ours.special_id("bos_token")
    assert ids[:2].count(bos) <= 1


def test_end_id(family):
    """Bug: training ends responses with one id while the template, and so the model's habit, ends
    them with another."""
    ours, _, end = family
    assert ours.end_id == ID[end]
    assert ours.end_id in ours.stop_ids


def test_end_id_is_looked_for_after_the_assistant(tmp_path):
    """Bug: the first stop id in the conversation is taken, which ends the user's message."""
    template = ("{% for m in messages %}"
                "{{ m.content + ('<|end|>' if m.role == 'user' else '<|eot_id|>') }}{% endfor %}")
    stops = {"eos_token_id": [ID["<|end|>"], ID["<|eot_id|>"]]}
    assert Tokenizer.load(write_tokenizer(tmp_path, template=template,
                                          generation=stops)).end_id == ID["<|eot_id|>"]


def test_text_round_trip(tmp_path):
    """Bug: encode adds BOS or EOS into the middle of a response; decode tidies spaces or shows
    special tokens."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, "<s>", adds_bos=True))
    text = " 1 , 2 . don 't\n\n\té 😀 "
    ids = tokenizer.encode(text)
    assert tokenizer.decode([ID["<s>"], *ids, ID["</s>"]]) == text
    assert not {ID["<s>"], ID["</s>"]} & set(ids)
    assert tokenizer.encode("a</s>b")[1] == ID["</s>"]  # as in transformers, and documented


def test_stop_ids_are_a_union(tmp_path):
    """Bug: only one of several ends is known, and generation runs on through the others."""
    folder = write_tokenizer(tmp_path, eos="<eos>",
                             generation={"eos_token_id": [ID["<|eot_id|>"], ID["<|end|>"]]})
    write_json(folder / "config.json", {"eos_token_id": ID["</s>"], "vocab_size": 320})
    assert Tokenizer.load(folder).stop_ids == {
        ID[token] for token in ("<eos>", "<|eot_id|>", "<|end|>", "</s>")}
    write_json(folder / "generation_config.json", {"eos_token_id": ID["<|end|>"]})
    write_json(folder / "tokenizer_config.json",
               {"eos_token": {"content": "<eos>", "__type": "AddedToken"}})
    write_json(folder / "config.json", {})
    assert Tokenizer.load(folder).stop_ids == {ID["<|end|>"], ID["<eos>"]}


def test_no_stop_id_is_refused(tmp_path):
    """Bug: a model that can never stop is sampled to its limit each time."""
    with pytest.raises(InputError, match="end-of-sequence"):
        Tokenizer.load(write_tokenizer(tmp_path, eos=None))


def test_end_id_without_a_hint_from_the_template(tmp_path):
    """Bug: a template without end marker, or one that takes no assistant message, leaves no end id
    or the wrong one."""
    for template in (None, "{{ messages[-1].content }}", "<|im_end|>{{ messages[0].content }}",
                     "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}"):
        assert Tokenizer.load(write_tokenizer(tmp_path, eos="</s>",
                                              template=template)).end_id == ID["</s>"]


def test_an_end_that_no_file_names(tmp_path, capsys):
    """Bug: Qwen2.5's base model names <|endoftext|> only, its template ends turns with
    <|im_end|>: stage 1 trains an end that the template never writes, and sampling runs on
    through the one that it does."""
    template = TEMPLATES["smollm2"][3]
    tokenizer = Tokenizer.load(write_tokenizer(
        tmp_path, eos="<|endoftext|>", template=template, pad_token="<|im_end|>"))
    assert tokenizer.end_id == ID["<|im_end|>"]
    assert tokenizer.stop_ids == {ID["<|im_end|>"], ID["<|endoftext|>"]}
    assert tokenizer.pad_id not in tokenizer.stop_ids
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ends turns with '<|im_end|>'" in said
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, eos="<|im_end|>", template=template))
    assert tokenizer.stop_ids == {ID["<|im_end|>"]} and capsys.readouterr().err == ""


def test_white_space_ends_no_turn(tmp_path):
    """Bug: a run of spaces or line ends that is an added token, as in Gemma, is taken for the
    end of a turn."""
    template = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}"
    folder = write_tokenizer(tmp_path, template=template)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_tokens(["\n\n"])
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.end_id == ID["</s>"] and tokenizer.stop_ids == {ID["</s>"]}


def test_stop_ids_are_not_decoded(tmp_path):
    """Bug: an end that tokenizer.json does not mark as special stays in the text: no trajectory
    is well-formed, and nothing says why."""
    folder = write_tokenizer(tmp_path, eos="<|end|>")
    raw = read_json(folder / "tokenizer.json")
    for token in raw["added_tokens"]:
        token["special"] = False
    write_json(folder / "tokenizer.json", raw)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode([*tokenizer.encode("It is 4."), tokenizer.end_id]) == "It is 4."
    # what ends nothing is text
    assert tokenizer.decode(tokenizer.encode("<|im_start|>a")) == "<|im_start|>a"


@pytest.mark.parametrize("pad, generation, expected", [
    ("<pad>", None, ID["<pad>"]),
    ("</s>", None, 0),
    (None, None, 0),
    (None, {"pad_token_id": ID["<pad>"]}, ID["<pad>"]),
    ("</s>", {"pad_token_id": ID["</s>"], "eos_token_id": [0, 1]}, 3),
    (None, {"pad_token_id": -1}, 0),
    (None, {"pad_token_id": 10 ** 6}, 0),
])
def test_pad_is_no_stop_id(pad, generation, expected, tmp_path):
    """Bug: SmolLM2 and many others pad with EOS, so that a search for EOS finds padding and a mask
    of padding hides EOS."""
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, eos="</s>", pad_token=pad,
                                               generation=generation))
    assert tokenizer.pad_id == expected and tokenizer.pad_id not in tokenizer.stop_ids


@pytest.mark.parametrize("adds_bos, setting, expected", [
    (True, None, [ID["<s>"]]), (False, None, []), (False, True, [ID["<s>"]]), (True, False, [])])
def test_base_model_prompt(adds_bos, setting, expected, tmp_path):
    """Bug: a base model, which has no template, is refused or gets no BOS although it was trained
    with one."""
    config = {} if setting is None else {"add_bos_token": setting}
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, "<s>", adds_bos=adds_bos, **config))
    assert tokenizer.prompt("What?") == expected + tokenizer.encode("What?\n")
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.render([USER])


def test_where_the_template_is_found(tmp_path):
    """Bug: the template of a newer or older folder layout is overlooked, and a chat model is
    prompted like a base model."""
    named = [{"name": "tool_use", "template": "tools"},
             {"name": "default", "template": "list {{ eos_token }}"}]
    folder = write_tokenizer(tmp_path, template=named)
    assert Tokenizer.load(folder).render([USER]) == "list </s>"
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(folder).render([USER]) == "file"
    (folder / "chat_template.jinja").unlink()
    write_json(folder / "tokenizer_config.json",
               {"chat_template": "{{ bos_token }}{{ eos_token }}"})
    write_json(folder / "special_tokens_map.json",
               {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    write_json(folder / "generation_config.json", {"eos_token_id": 2})
    assert Tokenizer.load(folder).render([USER]) == "<s></s>"


def test_an_older_file_of_the_template(tmp_path, capsys):
    """Bug: chat_template.json is overlooked, and a chat model is prompted like a base model; or
    it overrides a newer file."""
    folder = write_tokenizer(tmp_path)
    write_json(folder / "chat_template.json", {"chat_template": "older {{ messages[0].content }}"})
    assert Tokenizer.load(folder).render([USER]) == f"older {TEXT}"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "chat_template.json: used" in said
    (folder / "chat_template.jinja").write_text("newer")
    assert Tokenizer.load(folder).render([USER]) == "newer" and capsys.readouterr().err == ""


def test_named_templates(tmp_path, capsys):
    """Bug: which of several templates is used is not said; without a default one a chat model
    is prompted like a base model."""
    named = [{"name": name, "template": f"{name} {{{{ messages[0].content }}}}"}
             for name in ("rag", "default")]
    Tokenizer.load(write_tokenizer(tmp_path, template=named))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "['default', 'rag'], 'default' is used" in said
    refused = "none of the named templates .'rag'. is called 'default'.*chat_template.jinja"
    with pytest.raises(InputError, match=refused):
        Tokenizer.load(write_tokenizer(tmp_path, template=named[:1]))


def test_a_template_that_loses_the_question(tmp_path):
    """Bug: a template that looks for content of another form renders without the question, and
    the model is asked nothing."""
    template = ("{% for m in messages %}{% for part in m.content if part.text %}{{ part.text }}"
                "{% endfor %}{% endfor %}Assistant:")
    with pytest.raises(InputError, match="chat template loses the question"):
        Tokenizer.load(write_tokenizer(tmp_path, template=template)).prompt("What?")


def test_template_is_sandboxed(tmp_path):
    """Bug: a template from a download reaches Python's internals, or changes the messages for those
    who come after."""
    for attack in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}",
                   "{{ ''.__class__.__base__.__subclasses__() }}",
                   "{% for i in range(10 ** 9) %}{% endfor %}"):
        with pytest.raises(InputError, match="chat template"):
            Tokenizer.load(write_tokenizer(tmp_path, template=attack
                                           + "{{ raise_exception('reached') if false }}")).prompt(
                "?")


def test_padded_vocabulary(tmp_path):
    """Bug: Qwen2.5's weights have rows for ids that no token has; sampled, they decode to
    nothing."""
    folder = write_tokenizer(tmp_path)
    size = len(read_json(folder / "tokenizer.json")["model"]["vocab"])
    write_json(folder / "config.json", {"vocab_size": size + 50})
    assert Tokenizer.load(folder).vocab_size == size
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens(["<more>"])
    raw.save(str(folder / "tokenizer.json"))
    assert Tokenizer.load(folder).vocab_size == size + 1
    write_json(folder / "config.json", {"vocab_size": size})
    assert Tokenizer.load(folder).vocab_size == size


def test_truncation_and_padding_in_the_file_are_off(tmp_path):
    """Bug: a tokenizer.json saved in the middle of someone's training cuts every prompt at their
    limit."""
    folder = write_tokenizer(tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=50)
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [("tokenizer.json", None, "tokenizer.json: not found"),
     ("tokenizer.json", "{", "tokenizer.json: not a readable"),
     ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"),
     ("generation_config.json", "[]", "generation_config.json: expected a JSON object"),
     ("chat_template.jinja", "{% if %}", "chat template"),
     ("chat_template.jinja", b"\xff\xfe", "chat template"),
     ("tokenizer_config.json", '{"eos_token": {}}', "tokenizer_config.json"),
     ("tokenizer_config.json", '{"eos_token": "</s>", "chat_template": [1]}',
      "tokenizer_config.json"), ("config.json", '{"vocab_size": "many"}', "config.json"),])
def test_unreadable_files(name, content, message, tmp_path):
    """Bug: a broken download ends in a traceback that names no file."""
    folder = write_tokenizer(tmp_path / "a")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        Tokenizer.load(folder)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such folder"):
        Tokenizer.load(tmp_path / "absent")

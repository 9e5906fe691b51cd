"""Any template with any conversation: the trained text is the asked text, whole, and ends once."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune import InputError
from paretune.data.encoding import Encoder, Wanted
from paretune.data.tokenization import tokenize_pairs, tokenize_responses
from paretune.evaluation.generation import encode_prompt

# Chat templates in the manner of well-known families.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA = (  # Llama 3: trims
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

MISTRAL = (  # 7B Instruct v0.3: system prompt and tools stand in the last message, if the user's
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for m in turns %}{%- if m['role'] == 'user' %}"
    "{%- if tools and loop.last %}{{- '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + m['content'] }}"
    "{%- else %}{{- '[INST] ' + m['content'] }}{%- endif %}{{- '[/INST]' }}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)

GEMMA = (  # refuses a system message, has another name for the assistant, trims
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

QWEN = (  # Qwen3: strips the thoughts of earlier answers, gives the last one an empty thought
    "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}"
    "{%- set content = m['content'] %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['role'] == 'assistant' %}{%- set thought = m.reasoning_content or '' %}"
    "{%- if not thought and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- content }}{%- endif %}{%- else %}{{- content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)

DEEPSEEK = (  # R1: the generation prompt opens a thought, thoughts are stripped from answers
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}"
    "<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)

PHI = (  # the end of a turn and then that of a text, which is another
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

HARMONY = (  # gpt-oss: names a channel before the answer
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final"
    "<|message|>{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

BARE = (  # no end of a turn
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template, the special tokens it needs, and what it does to a response.

    `end` is the token that ends a turn; `before` what stands before a response's words.
    """

    template: str
    end: str
    special: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = ""
    before: str = ""
    trims: bool = False


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "llama": Family(
        LLAMA,
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        trims=True,
    ),
    "mistral": Family(
        MISTRAL,
        "</s>",
        ("[INST]", "[/INST]", "[TOOLS]", "[/TOOLS]"),
        bos="<s>",
        before=" ",
        trims=True,
    ),
    "gemma": Family(
        GEMMA,
        "<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        trims=True,
    ),
    "qwen": Family(QWEN, "<|im_end|>", eos="<|im_end|>", before="<think>\n\n</think>\n\n"),
    "deepseek": Family(DEEPSEEK, "<eos>", ("<|User|>", "<|Assistant|>"), bos="<bos>"),
    "phi": Family(
        PHI,
        "<|end|>",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    "harmony": Family(
        HARMONY,
        "<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        before="<|channel|>final<|message|>",
    ),
    "bare": Family(BARE, "</s>"),
}

_TEXT = [
    "the quick brown fox jumps over the lazy dog, system user assistant tool think model final",
    "What is the capital of France? It is Paris.\n\nHuman: Hello\n\nAssistant: Hi",
]


def make(family: Family, adds_eos: bool = False) -> Any:
    """A byte-level BPE tokenizer made here, which puts a BOS before texts if there is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    eos = family.eos or family.end
    special = ["<pad>", family.bos, eos, family.end, "<|im_start|>", "<|im_end|>", *family.special]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(dict.fromkeys(token for token in special if token)),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(_TEXT * 3, trainer)
    around = f"{family.bos or ''} $A {eos if adds_eos else ''}".strip()
    backend.post_processor = processors.TemplateProcessing(
        single=around,
        special_tokens=[
            (token, backend.token_to_id(token)) for token in (family.bos, eos) if token
        ],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=eos,
        pad_token="<pad>",
        chat_template=family.template,
        name_or_path="tiny",
    )


WORDS = [
    "the",
    " fox",
    "\n\n",
    " ",
    "<|im_end|>",
    "</s>",
    "<eos>",
    "[/INST]",
    "<|end|>",
    "é",
    "日本",
]
WORDS += ["<think>", "</think>", "Hi.", "  indented", "\t", "{{ x }}", "<|im_start|>user\n", "<s>"]


@cache
def tokenizer(name: str) -> Any:
    return make(FAMILIES[name])


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@st.composite
def conversations(draw: Any) -> tuple[list[dict[str, str]], str]:
    """A prompt that may have a system message and earlier turns, and a response."""
    free = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), max_size=12)
    text = st.lists(st.one_of(st.sampled_from(WORDS), free), min_size=1, max_size=4).map("".join)
    spoken = text.filter(str.strip)
    prompt = [say("system", draw(spoken))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [say("user", draw(spoken)), say("assistant", draw(spoken))]
    return [*prompt, say("user", draw(spoken))], draw(text)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_any_template_with_any_conversation(
    name: str, conversation: tuple[list[dict[str, str]], str]
) -> None:
    (prompt, response), tok, family = conversation, tokenizer(name), FAMILIES[name]
    refused = None
    try:
        before, after = Encoder(tok).response(prompt, [say("assistant", response)], "row 1")
    except InputError as error:
        refused = str(error)
    if refused is not None:
        assert "row 1" in refused
        # The others take whatever it is; thoughts in odd places are refused.
        assert name == "gemma" or "think>" in response + prompt[-1]["content"], refused
        assert name != "gemma" or prompt[0]["role"] == "system"
        return
    assert before == encode_prompt(tok, prompt)
    rendered = tok.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert tok.decode(before) == rendered
    end = tok.convert_tokens_to_ids(family.end)
    assert after[-1] == end
    assert after.count(end) == 1  # also where the words name that token
    words = tok.decode(after[:-1])
    if "think>" in response:
        assert "".join(response.split()).removeprefix("<think>") in "".join(words.split())
        return
    assert words.startswith(family.before)
    words = words.removeprefix(family.before)
    # Qwen's template takes line feeds from the start.
    expected = response.lstrip("\n") if name == "qwen" else response
    if words != expected:
        assert family.trims
        assert words == response.strip()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma"])
def test_only_the_template_writes_special_tokens(name: str) -> None:
    tok, words = tokenizer(name), "Say <|im_end|> and </s> and <eos> and [/INST] and <bos>."
    clean, plain = (
        Encoder(tok).prompt([say("system", "Be kind."), say("user", text)], "it")
        for text in ("Say it.", words)
    )
    special = set(tok.all_special_ids) | set(tok.added_tokens_decoder)
    assert [i for i in plain if i in special] == [i for i in clean if i in special]
    assert words in tok.decode(plain)


def test_a_system_prompt_in_the_last_message() -> None:
    prompt = [say("system", "Be kind."), say("user", "a?"), say("assistant", "b"), say("user", "c")]
    tok = tokenizer("mistral")
    before, after = Encoder(tok).response(prompt, [say("assistant", "It is Paris.")], "it")
    assert tok.decode(before) == "<s>[INST] a?[/INST] b</s>[INST] Be kind.\n\nc[/INST]"
    assert tok.decode(after) == " It is Paris.</s>"


def test_a_prompt_that_opens_a_thought(caplog: pytest.LogCaptureFixture) -> None:
    tok, prompt = tokenizer("deepseek"), [say("user", "Why?")]
    encoder = Encoder(tok)
    for answer, written in {
        "<think>\nBecause.\n</think>\n\nSo.": "Because.\n</think>\n\nSo.",
        "Because.\n</think>\n\nSo.": "Because.\n</think>\n\nSo.",
        "So.": "So.",
    }.items():
        assert ("do not close it" in caplog.text) is False
        before, after = encoder.response(prompt, [say("assistant", answer)], "row 7")
        assert tok.decode(before) == "<bos><|User|>Why?<|Assistant|><think>\n"
        assert tok.decode(after) == written + "<eos>"
    assert "opens a thought, and responses such as row 7 do not close it" in caplog.text


def test_thoughts_are_not_left_out() -> None:
    answer = say("assistant", "So.") | {"reasoning_content": "Because."}
    tok = tokenizer("qwen")
    _, after = Encoder(tok).response([say("user", "Why?")], [answer], "it")
    assert tok.decode(after) == "<think>\nBecause.\n</think>\n\nSo.<|im_end|>"
    with pytest.raises(InputError, match=r"row 3, .*'tiny' leaves out .* 'reasoning_content'"):
        Encoder(tokenizer("chatml")).response([say("user", "Why?")], [answer], "row 3")


def test_tools_and_options_of_the_template() -> None:
    tok = tokenizer("qwen")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row: dict[str, Any] = {
        "prompt": [say("user", "Rain?")],
        "chosen": [say("assistant", "Let me see.")],
        "rejected": [say("assistant", "No.")],
        "tools": tools,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (first, _) = tokenize_pairs({"a": [row]}, tok).sequences
    expected = tok.apply_chat_template(
        row["prompt"],
        tools=tools,
        enable_thinking=False,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert tok.decode(first.input_ids[: first.prompt_length]) == expected
    assert tok.decode(first.input_ids[first.prompt_length :]) == "Let me see.<|im_end|>"
    with pytest.raises(InputError, match=r"row 1 of the 'a' pairs, .* does not write the tools"):
        tokenize_pairs({"a": [row | {"chat_template_kwargs": None}]}, tokenizer("chatml"))
    with pytest.raises(InputError, match="has no option 'enable_thinking'"):
        tokenize_pairs({"a": [row | {"tools": None}]}, tokenizer("chatml"))
    with pytest.raises(InputError, match="'tools' needs prompts that are messages"):
        tokenize_pairs({"a": [row | {"prompt": "Rain?"}]}, tok)


def test_a_template_without_an_end_token(caplog: pytest.LogCaptureFixture) -> None:
    tok = tokenizer("bare")
    _, after = Encoder(tok).response([say("user", "Hi")], [say("assistant", "Hello.")], "it")
    assert tok.decode(after) == "Hello.</s>"
    assert "writes no token that ends a response, so the tokenizer's is added" in caplog.text
    endless = make(FAMILIES["bare"])
    endless.eos_token = None
    with pytest.raises(InputError, match=r"No token ends a response: .*'tiny'"):
        Encoder(endless).response([say("user", "Hi")], [say("assistant", "Hello.")], "it")


def variant(name: str, *changes: tuple[str, str]) -> Any:
    """A tokenizer whose template differs from that of a family."""
    tok = make(FAMILIES[name])
    for old, new in changes:
        assert old in tok.chat_template
        tok.chat_template = tok.chat_template.replace(old, new)
    return tok


def test_a_thought_that_the_template_opens_again() -> None:
    """Nemotron 3: the prompt opens a thought, and an answer without one gets an empty one."""
    tok = variant(
        "chatml",
        ("\n{{ m['content'] }}", "\n{{ '<think></think>' if m.role[0] == 'a' }}{{ m.content }}"),
        ("assistant\n{% endif", "assistant\n<think>\n{% endif"),
    )
    _, after = Encoder(tok).response([say("user", "Why?")], [say("assistant", "So.")], "it")
    assert tok.decode(after) == "</think>So.<|im_end|>"


def test_what_opens_the_next_turn_ends_none(caplog: pytest.LogCaptureFixture) -> None:
    """GLM-Edge: no end of a turn, and a generation prompt whether asked for or not."""
    tok = variant(
        "phi",
        ("<|end|>", ""),
        ("{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}", "X"),
        ("X", "<|assistant|>\n"),
    )
    _, after = Encoder(tok).response([say("user", "Why?")], [say("assistant", "So.")], "it")
    assert tok.decode(after) == "\nSo.<|endoftext|>"
    assert "writes no token that ends a response" in caplog.text


def test_templates_that_drop_a_message_are_refused() -> None:
    deaf = make(FAMILIES["chatml"])
    deaf.chat_template = FAMILIES["chatml"].template.replace(
        "%}<|im_start|>{{ m",
        "%}{% if m['role'] == 'system' %}{% continue %}{% endif %}<|im_start|>{{ m",
    )
    with pytest.raises(InputError, match=r"row 2, .* does not write the system message 'Be kind.'"):
        Encoder(deaf).prompt([say("system", "Be kind."), say("user", "Hi")], "row 2")
    with pytest.raises(InputError, match="does not write the system message"):
        Encoder(deaf).prompt([say("system", "Be kind."), say("user", "Be kind. Hi")], "row 2")


@pytest.mark.parametrize(
    ("prompt", "response", "complaint"),
    [
        ([], "a", "empty list of messages"),
        ([say("user", "a"), say("assistant", "b")], "c", "ends with an assistant message"),
        ([{"content": "a"}], "b", "needs a role"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "b", "must be text, not"),
        ([say("user", "\ufdd0")], "b", "U\\+FDD0"),
        ([say("user", "a")], "\ud800", "half of a character"),
    ],
)
def test_conversations_that_cannot_be_read(prompt: Any, response: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Encoder(tokenizer("chatml")).response(prompt, [say("assistant", response)], "it")
    with pytest.raises(InputError, match="one assistant message"):
        Encoder(tokenizer("chatml")).response([say("user", "a")], [say("user", "b")], "it")


BOTH = Family(FAMILIES["mistral"].template, "<s>", bos="<s>", eos="<s>")


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("family", [FAMILIES["mistral"], FAMILIES["chatml"], BOTH])
@pytest.mark.parametrize("prompt", ["Human: Hi\n\nAssistant:", "<s>Human: Hi ", "a</s>", "fo"])
def test_plain_prompts(family: Family, adds_eos: bool, prompt: str) -> None:
    tok = make(family, adds_eos)
    for response in (" Hello.", "x jumps", "\n\n", "Hi</s>"):
        before, after = Encoder(tok).response(prompt, response, "it")
        assert before == encode_prompt(tok, prompt)
        start = family.bos if family.bos and not prompt.startswith(family.bos) else ""
        assert tok.decode(before) == (start or "") + prompt
        assert tok.decode(after) == response.removesuffix(tok.eos_token) + tok.eos_token
        [same], _ = tokenize_responses([{"prompt": prompt, "completion": response}], tok, "rows")
        assert (*before, *after) == same.input_ids


def test_words_that_go_over_the_border_with_a_space_before_texts() -> None:
    """SentencePiece's way: a text that is tokenised by itself gets a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    texts = ["Answer: Yes it is. Answer: No", "one\ntwo\nthree . ] <s> |im_end|> im end < >"]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(special_tokens=special, show_progress=False)
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=FAMILIES["chatml"].template,
    )
    before, after = Encoder(tok).response("Answer: ", "Yes it is.", "it")
    assert before == encode_prompt(tok, "Answer: ")
    assert tok.decode([*before, *after]) == "Answer: Yes it is.<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(conversations(), min_size=1, max_size=6), plain=st.booleans())
def test_many_at_once_are_as_each_alone(
    name: str, rows: list[tuple[list[dict[str, str]], str]], plain: bool
) -> None:
    tok = tokenizer(name)
    wanted: list[Wanted] = []
    alone: list[tuple[list[int], list[int]]] = []
    complaint = None
    for number, (prompt, response) in enumerate([*rows, *rows]):
        asked, answer = (
            (prompt[-1]["content"], response) if plain else (prompt, [say("assistant", response)])
        )
        wanted.append(Wanted(asked, answer, f"row {number}"))
        one_text = Encoder(tok)
        one_text._batch = lambda texts: [tok(t, add_special_tokens=False).input_ids for t in texts]
        try:
            alone.append(one_text.response(*wanted[-1]))
        except InputError as error:
            complaint = str(error)
            break
    found = Encoder(tok).responses(
        [*wanted, Wanted("never", [], "reached")] if complaint else wanted
    )
    assert [next(found) for _ in alone] == alone
    if complaint is None:
        assert next(found, None) is None
        return
    with pytest.raises(InputError) as caught:
        next(found)
    assert str(caught.value) == complaint

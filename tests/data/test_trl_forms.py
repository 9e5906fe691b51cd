"""Rows as TRL's users have them: families of templates by forms of data, and forms of tables."""

from functools import cache
from importlib.resources import files
from typing import Any

import pandas
import pytest
from datasets import Dataset, IterableDataset

from paretune import InputError
from paretune.data import local
from paretune.data.messages import with_prompt
from paretune.data.objectives import by_objective
from paretune.data.tokenization import tokenize_pairs

MISTRAL = (  # 7B Instruct v0.3: system prompt and tools stand in the last message of the user
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}{%- for m in turns %}{%- if m['role'] == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{{- bos_token }}{%- for m in turns %}{%- if m['role'] == 'user' %}"
    "{%- if tools and loop.index0 == ns.last %}"
    "{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST] ' }}{%- if loop.index0 == ns.last and system is defined %}"
    "{{- system + '\n\n' }}{%- endif %}{{- m['content'] + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS]' }}"
    "{%- for c in m.tool_calls %}{{- c.function | tojson }}{%- endfor %}{{- eos_token }}"
    "{%- elif m['role'] == 'tool' %}{{- '[TOOL_RESULTS]' + m['content'] + '[/TOOL_RESULTS]' }}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)

FAMILIES = {  # of TRL's copies of the published templates: the file, and the end of a turn
    "llama": ("llama3_1.jinja", "<|eot_id|>"),
    "qwen3": ("qwen3.jinja", "<|im_end|>"),
    "gemma": ("gemma.jinja", "<end_of_turn>"),
    "mistral": (None, "</s>"),
}


@cache
def tokenizer(name: str) -> Any:
    """A tokenizer of bytes with a family's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    file, end = FAMILIES[name]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", end, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    folder = files("trl") / "chat_templates"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=end,
        pad_token="<pad>",
        chat_template=MISTRAL if file is None else (folder / file).read_text(),
        name_or_path=name,
    )


def say(text: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    ],
}
ASKED, EARLIER = say("Rain?", "user"), [say("Hello.", "user"), say("Hi.")]
ANSWERS = {"chosen": [say("It rains.")], "rejected": [say("No.")]}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Rain? ", "chosen": "It rains.", "rejected": "No."},
    "chat": {"prompt": [ASKED], **ANSWERS},
    "turns": {"prompt": [*EARLIER, ASKED], **ANSWERS},
    "system": {"prompt": [say("Be kind.", "system"), ASKED], **ANSWERS},
    "tools": {
        "prompt": [ASKED],
        "chosen": [CALL, say("rain", "tool"), say("It rains.")],
        "rejected": [say("No.")],
        "tools": TOOLS,
    },
}
REFUSED = {
    ("gemma", "system"): r"row 1 of the 'a' pairs, .*'gemma' refuses.*System role not supported.*"
    r"system='merge' of the loader \(data\.system in a recipe\)",
    ("gemma", "tools"): "row 1 of the 'a' pairs, .*'gemma' does not write the tools: leave them",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_templates_with_every_form_of_data(family: str, form: str) -> None:
    row, tok = FORMS[form], tokenizer(family)
    if (family, form) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[family, form]):
            tokenize_pairs({"a": [row]}, tok)
        return
    chosen, rejected = tokenize_pairs({"a": [row]}, tok).sequences
    prompt = row["prompt"]
    if form == "plain":
        expected = "<s>Rain? "
    else:
        expected = tok.apply_chat_template(
            prompt, tools=row.get("tools"), add_generation_prompt=True, tokenize=False
        )
    for sequence, words in ((chosen, "It rains."), (rejected, "No.")):
        before = tok.decode(sequence.input_ids[: sequence.prompt_length])
        after = tok.decode(sequence.input_ids[sequence.prompt_length :])
        if form == "plain":
            before = tok.bos_token + before.removeprefix(tok.bos_token)
        assert before == expected
        assert after.endswith(words + tok.eos_token)
        assert "Rain?" not in after
    if form == "tools":
        text = tok.decode(chosen.input_ids)
        assert "Rome" in text
        assert "rain" in text.split("Rome")[1]


@pytest.mark.parametrize(
    ("system", "prompt"),
    [
        ("merge", [say("Be kind.\n\nRain?", "user")]),
        ("drop", [ASKED]),
        ("error", [say("Be kind.", "system"), ASKED]),
    ],
)
def test_system_messages_are_merged_or_dropped(system: Any, prompt: Any) -> None:
    data = local.load_pairs({"a": [FORMS["system"]]}, system=system)
    assert data.pairs["a"][0]["prompt"] == prompt
    if system != "error":
        assert tokenize_pairs(data.pairs, tokenizer("gemma")).sequences


def test_a_system_message_alone_is_a_bad_row() -> None:
    row = {**FORMS["chat"], "prompt": [say("Be kind.", "system")]}
    with pytest.raises(InputError, match=r"row 1 .*nothing but a system message"):
        local.load_pairs({"a": [row]}, system="drop")


def test_a_template_that_writes_a_text_of_its_own_says_so(caplog: Any) -> None:
    tokenize_pairs({"a": [FORMS["chat"]]}, tokenizer("gemma"))
    assert "of its own" not in caplog.text
    tokenize_pairs({"a": [FORMS["chat"]] * 2}, tokenizer("qwen3"))
    assert caplog.text.count("begins every response with text of its own") == 1
    assert r"<think>\n\n</think>" in caplog.text


IMPLICIT: dict[str, dict[str, Any]] = {
    form: {
        "chosen": [*row["prompt"], *row["chosen"]],
        "rejected": [*row["prompt"], *row["rejected"]],
        **({"tools": TOOLS} if form == "tools" else {}),
    }
    for form, row in FORMS.items()
    if form != "plain"
}


@pytest.mark.parametrize("form", IMPLICIT)
@pytest.mark.parametrize("given", [None, "text", "messages"])
def test_implicit_prompts(form: str, given: str | None) -> None:
    row, explicit = dict(IMPLICIT[form]), FORMS[form]
    if given is not None:
        row["prompt"] = "Rain?" if given == "text" else explicit["prompt"]
    assert {**with_prompt(row), "tools": None} == {**explicit, "tools": None}
    loaded = [local.load_pairs({"a": [each]}).pairs["a"][0] for each in (row, explicit)]
    assert loaded[0] == loaded[1]
    tokens = [tokenize_pairs({"a": [each]}, tokenizer("qwen3")) for each in (row, explicit)]
    first, second = ([list(s.input_ids) for s in each.sequences] for each in tokens)
    assert first == second


def test_what_both_responses_begin_with_is_the_prompt() -> None:
    shared = [CALL, say("rain", "tool")]
    row = {key: [ASKED, *shared, say(text)] for key, text in (("chosen", "a"), ("rejected", "b"))}
    found = with_prompt(row)
    assert found["prompt"] == [ASKED, *shared]
    assert found["chosen"] == [say("a")]
    assert with_prompt({**row, "prompt": "Snow?"}) == {**row, "prompt": "Snow?"}


def test_implicit_prompts_of_plain_texts() -> None:
    start = "\n\nHuman: Rain?\n\nAssistant:"
    row = {"chosen": f"{start} It rains.", "rejected": f"{start} It does not."}
    found = with_prompt(row)
    assert found["prompt"] == f"{start} It"
    assert (found["chosen"], found["rejected"]) == (" rains.", " does not.")
    assert local.load_pairs({"a": [row]}).pairs["a"][0] == found
    (pair,) = local.load_pairs({"a": [row]}, style="dialogue").pairs["a"]
    assert pair["prompt"] == [ASKED]
    assert pair["chosen"] == [say("It rains.")]
    # Two answers that begin alike by chance have no prompt in them.
    chance = {"chosen": "The cat sat.", "rejected": "The cat ran."}
    assert with_prompt(chance) == chance
    with pytest.raises(InputError, match="'prompt': is missing"):
        local.load_pairs({"a": [chance]})
    with pytest.raises(InputError, match="'prompt' is missing"):
        tokenize_pairs({"a": [chance]}, tokenizer("llama"))


ROWS = [{"objective": name, **FORMS["chat"]} for name in ("a", "b", "a")]


def _stream() -> Any:
    yield from ROWS


@pytest.mark.parametrize(
    "table",
    [
        ROWS,
        Dataset.from_list(ROWS),
        IterableDataset.from_generator(_stream),
        _stream(),
        pandas.DataFrame(ROWS),
        Dataset.from_list(ROWS).to_pandas(),
    ],
    ids=["list", "dataset", "stream", "generator", "frame", "arrays"],
)
def test_one_table_with_a_column_of_objectives(table: Any) -> None:
    found = by_objective(table)
    assert list(found) == ["a", "b"]
    for _ in range(2):  # an evaluation reads it again
        rows = {name: list(rows) for name, rows in found.items()}
        assert [len(each) for each in rows.values()] == [2, 1]
        assert tokenize_pairs(rows, tokenizer("llama")).counts["a"].unread == {}
    assert by_objective(found) == found


def test_rows_are_not_kept_while_they_are_read() -> None:
    alive = 0

    class Row(dict):  # type: ignore[type-arg]
        def __init__(self) -> None:
            nonlocal alive
            alive += 1
            super().__init__(FORMS["chat"])

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Any:
        for _ in range(1000):
            assert alive <= 600  # two batches of the tokenizer
            yield Row()

    tokenize_pairs(by_objective({"a": rows()}), tokenizer("llama"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"train": ROWS, "test": ROWS}, r"mapping of splits \(train, test\).*data\['train'\]"),
        ([FORMS["chat"]], "row 1 does not say in 'objective'"),
        (None, "must be a mapping .* not a NoneType"),
        ({"a": 3}, "must be rows, not a int"),
    ],
)
def test_what_is_no_data(data: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        by_objective(data)


def test_cells_of_a_frame_that_are_empty() -> None:
    rows = [
        dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in ("abc", "def")
    ]
    frame = pandas.DataFrame([{**rows[0], "weight": 2}, rows[1]])
    pairs = local.load_pairs({"a": frame}).pairs["a"]
    assert pairs["weight"] == [2.0, 1.0]
    assert tokenize_pairs(by_objective({"a": frame}), tokenizer("llama")).pairs["a"].weight == [
        2,
        1,
    ]


def test_revisions_are_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, *_: Any, revision: str | None = None, **__: Any) -> Any:
        asked.append((path, revision))
        return [{"prompt": "a", "chosen": "b", "rejected": "c", "objective": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    local.load_pairs("me/pairs", revision="v2")
    local.load_pairs({"x": "me/pairs"}, revision="v3")
    assert asked == [("me/pairs", "v2"), ("me/pairs", "v3")]
    with pytest.raises(InputError, match="A revision is of a data set on the hub"):
        local.load_pairs("rows.jsonl", revision="v2")

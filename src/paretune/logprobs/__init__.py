"""Log-probabilities of responses: with logits at response tokens only, without padding."""

from paretune.logprobs.attention import current_stage
from paretune.logprobs.head import output_embeddings
from paretune.logprobs.packing import Packing, PackingMode
from paretune.logprobs.passes import PackedPass, sequence_logps
from paretune.logprobs.score import by_prompt, score_sequences

__all__ = [
    "PackedPass",
    "Packing",
    "PackingMode",
    "by_prompt",
    "current_stage",
    "output_embeddings",
    "score_sequences",
    "sequence_logps",
]

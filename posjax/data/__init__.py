"""Batches of tokens. Text: embedded corpus, own files or TFDS -> token cache -> Grain. Or tasks
generated from a seed -> Grain.

    tokenizer = make_tokenizer(config.data.tokenizer)
    documents = load(config.data, config.data.split, tokenizer)
    stream = Stream(documents, length=256, batch=16, seed=0)
    batch = next(stream)  # tokens, targets, positions, segments: int32 [16, 256]
"""

from posjax.data.documents import Documents, load
from posjax.data.pipeline import Stream
from posjax.data.tasks import Examples
from posjax.data.tokenizers import load as load_tokenizer
from posjax.data.tokenizers import make as make_tokenizer

__all__ = ['Documents', 'Examples', 'Stream', 'load', 'load_tokenizer', 'make_tokenizer']

"""A config.json, read key by key: what nobody reads is refused, not ignored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Keys that change no logits of a decoder at evaluation.
NAMES = """
  _name_or_path architectures auto_map model_type transformers_version torch_dtype dtype
  bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
  decoder_start_token_id forced_bos_token_id forced_eos_token_id prefix
  initializer_range initializer_factor init_method init_std use_cache is_decoder is_encoder_decoder
  output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
  use_return_dict torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward
  cross_attention_hidden_size add_cross_attention tie_encoder_decoder
  finetuning_task id2label label2id num_labels problem_type task_specific_params tokenizer_class
  attention_dropout hidden_dropout attn_pdrop embd_pdrop emb_pdrop resid_pdrop dropout layerdrop
  embedding_dropout embed_dropout attention_probs_dropout_prob hidden_dropout_prob
  activation_dropout classifier_dropout classifier_dropout_prob embed_pdrop resid_dropout
  gradient_checkpointing output_router_logits router_aux_loss_coef aux_loss_alpha seq_aux
  attn_implementation _attn_implementation _attn_implementation_autoset is_llama_config
  max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
  temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids num_return_sequences exponential_decay_length_penalty
  suppress_tokens begin_suppress_tokens remove_invalid_values
  summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
  transformers.js_config model_max_length
"""
IGNORED = frozenset(NAMES.split())
REQUIRED = object()


class Keys:
  """The keys of a config.json, or of a dictionary within it.

  `take` and its kin mark a key as read; `check_all_read` refuses what is left and asks for
  something: a value that is None or False does not.
  """

  def __init__(self, content: Mapping[str, Any], where: str, ignored=IGNORED):
    self.content, self.where, self._read = dict(content), where, set(ignored)

  def __contains__(self, name: str) -> bool:
    return self.content.get(name) is not None

  def take(self, name: str, default: Any = REQUIRED) -> Any:
    """The value; the default where it is absent or null. Raises ValueError if there is none."""
    self._read.add(name)
    value = self.content.get(name)
    if value is not None:
      return value
    if default is REQUIRED:
      raise ValueError(f"{self.where} has no '{name}', without which its weights have no meaning.")
    return default

  def nullable(self, name: str, default: Any) -> Any:
    """As `take` for a key whose null says something: None then, the default where it is absent."""
    value = self.take(name, None)
    return value if value is not None or name in self.content else default

  def whole(self, name: str, default: Any = REQUIRED) -> Any:
    """A whole number above 0, or the default."""
    value = self.take(name, default)
    if value is not default and (not isinstance(value, int) or value is True or value < 1):
      raise self.refuse(name, value, 'Sizes are whole numbers >= 1.')
    return value

  def number(self, name: str, default: Any = REQUIRED) -> Any:
    """A number that is neither infinite nor NaN, or the default."""
    value = self.take(name, default)
    if value is not default and not _is_number(value):
      raise self.refuse(name, value, 'It must be a number.')
    return value

  def numbers(self, name: str) -> tuple[float, ...]:
    value = self.take(name)
    if not isinstance(value, list) or not all(map(_is_number, value)):
      raise self.refuse(name, value, 'It must be a list of numbers.')
    return tuple(map(float, value))

  def flag(self, name: str, default: bool) -> bool:
    """The value; the default where it is absent, False where it is null."""
    value = self.take(name, False if name in self.content else default)
    if not isinstance(value, bool):
      raise self.refuse(name, value, 'It must be true or false.')
    return value

  def one_of(self, name: str, allowed: Mapping[str, Any] | Sequence[Any], default: Any) -> Any:
    """The value if posjax can do it; where `allowed` is a mapping, what it says of the value."""
    value = self.take(name, default)
    known = isinstance(value, (str, int, float, bool, type(None))) and value in allowed
    if not known or (isinstance(value, bool) and not any(value is x for x in allowed)):
      raise self.refuse(name, value, f'It can do: {", ".join(map(str, allowed))}.')
    return allowed[value] if isinstance(allowed, Mapping) else value

  def same(self, name: str, value: Any) -> None:
    """For keys that say again what others do: `name` must be `value` if it is there."""
    found = self.take(name, value)
    if found != value:
      raise self.refuse(name, found, f'By its other keys it is {value}.')

  def within(self, name: str) -> 'Keys':
    """The keys of a dictionary; empty where it is absent."""
    value = self.take(name, {})
    if not isinstance(value, dict):
      raise self.refuse(name, value, 'It must be an object.')
    return Keys(value, f'{self.where}, {name},')

  def check_all_read(self) -> None:
    """Raises ValueError for a key that asks for something nobody has read."""
    for name, value in self.content.items():
      if name not in self._read and value is not None and value is not False:
        raise self.refuse(
          name, value, 'It is none of the keys that posjax knows of this family. Remove it only if '
          'the logits do not depend on it.',
        )  # fmt: skip

  def refuse(self, name: str, value: Any, way_out: str) -> ValueError:
    text = repr(value)
    text = text if len(text) < 80 else text[:77] + '...'
    return ValueError(f'{self.where} has {name} = {text}, which posjax cannot do. {way_out}')


def _is_number(value: Any) -> bool:
  known = isinstance(value, (int, float)) and not isinstance(value, bool)
  return known and math.isfinite(value)


ACTIVATIONS = {
  'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh', 'gelu_fast': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_accurate': 'gelu_tanh', 'gelu_python_tanh': 'gelu_tanh', 'relu': 'relu', 'relu2': 'relu2',
  'quick_gelu': 'gelu_sigmoid',
}  # fmt: skip

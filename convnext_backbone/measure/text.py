"""Puts a small text encoder with random weights in the place of one that would be loaded from a hub."""

import contextlib
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

from mmengine.config import Config
from torch import Tensor, nn

from ..config.keys import dicts
from ..registry import type_name

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
LAYERS = 2  # of the encoder; its width, which heads count on, is that of BERT


@contextlib.contextmanager
def made_up_encoders(cfg: Config) -> Iterator[None]:
    """Let transformers build BERT and its tokenizer from nothing, whatever name it is asked for.

    Detectors that read text (GLIP, Grounding DINO) load both when they are built.
    """
    reads = any(type_name(node) == 'BertModel' for node in dicts(cfg.model))
    if not reads or importlib.util.find_spec('transformers') is None:
        yield
        return
    import transformers

    def settings(*args, **kwargs):
        return transformers.BertConfig(num_hidden_layers=LAYERS, vocab_size=len(_vocabulary()))

    def model(*args, **kwargs):
        return _Encoder(settings())

    made = (
        (transformers.AutoTokenizer, lambda *args, **kwargs: _tokenizer()),
        (transformers.BertConfig, settings),
        (transformers.BertModel, model),
    )
    with contextlib.ExitStack() as stack:
        for kind, function in made:
            stack.enter_context(mock.patch.object(kind, 'from_pretrained', function))
        yield


class _Encoder(nn.Module):
    """Embeds tokens, and changes them once for each layer."""

    def __init__(self, config):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, **_) -> SimpleNamespace:
        states = [self.words(input_ids)]
        for layer in self.layers:
            states.append(layer(states[-1]).tanh())
        return SimpleNamespace(hidden_states=tuple(states), last_hidden_state=states[-1])


def _vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = [*SPECIAL, *letters, *(f'##{letter}' for letter in letters)]
    return {word: number for number, word in enumerate(words)}


def _tokenizer():
    """Return a tokenizer of letters that frames a text as BERT's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(_vocabulary(), unk_token='[UNK]'))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = (('[CLS]', SPECIAL.index('[CLS]')), ('[SEP]', SPECIAL.index('[SEP]')))
    made.post_processor = processors.BertProcessing(sep, cls)
    names = dict(zip(('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token'), SPECIAL))
    inputs = ['input_ids', 'token_type_ids', 'attention_mask']
    found = PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names)
    found.batch_encode_plus = found.__call__  # as mmdet calls it; transformers 5 does not have it any more
    return found

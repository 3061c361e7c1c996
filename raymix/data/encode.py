"""From rendered text to token ids and loss masks, many rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymix.core.errors import DataError
from raymix.data.chat import Rendered
from raymix.data.spans import Span

Ids = NDArray[np.int32]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Encoder:
    """A fast tokenizer of transformers, and where rows are cut."""

    tokenizer: Any
    max_length: int

    def encode(self, texts: Sequence[Rendered]) -> list[tuple[Ids, Mask, bool]]:
        """Ids, loss mask and whether the row was cut, for each text.

        A row's first token never bears loss: nothing stands before it to predict it from.
        """
        encoded: list[tuple[Ids, Mask, bool]] = [(_NO_IDS, _NO_MASK, False)] * len(texts)
        for whole in (False, True):
            places = [i for i, text in enumerate(texts) if text.whole is whole]
            for place, encoding in zip(places, self._call(texts, places, whole), strict=True):
                encoded[place] = self._row(texts[place], encoding)
        return encoded

    def _call(self, texts: Sequence[Rendered], places: list[int], whole: bool) -> Iterable[Any]:
        if not places:
            return ()
        batch = self.tokenizer(
            [texts[place].text for place in places],
            # A chat template writes the begin token itself.
            add_special_tokens=whole,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return tuple(batch.encodings)

    def _row(self, text: Rendered, encoding: Any) -> tuple[Ids, Mask, bool]:
        ids = np.array(encoding.ids, dtype=np.int32)
        if text.spans is None:
            mask = np.ones(len(ids), dtype=np.uint8)
        else:
            mask = span_mask(np.array(encoding.offsets, dtype=np.int64), text.spans)
        end = self.tokenizer.eos_token_id
        if text.whole and end is not None and (not len(ids) or ids[-1] != end):
            ids = np.append(ids, np.int32(end))
            mask = np.append(mask, np.uint8(1))
        mask[:1] = 0
        cut = len(ids) > self.max_length
        return ids[: self.max_length], mask[: self.max_length], cut


_NO_IDS = np.zeros(0, dtype=np.int32)
_NO_MASK = np.zeros(0, dtype=np.uint8)


def span_mask(offsets: NDArray[np.int64], spans: Sequence[Span]) -> Mask:
    """Mask [T] of the tokens that lie in `spans`; `offsets` [T, 2]: characters of each token.

    A token counts when it has a character of a span. Tokens without characters (tokenizers that
    trim white space off their offsets, or put in a space of their own) count when the gap in which
    they stand lies in a span.
    """
    starts, stops = offsets.reshape(-1, 2).T
    bare = starts >= stops
    behind = np.maximum.accumulate(np.where(bare, 0, stops)) if len(stops) else stops
    far = np.iinfo(np.int64).max
    ahead = np.minimum.accumulate(np.where(bare, far, starts)[::-1])[::-1]
    mask = np.zeros(len(starts), dtype=np.uint8)
    for first, end in spans:
        inside = (stops > first) & (starts < end)
        gap = (behind >= first) & (behind < end) & (np.minimum(ahead, end + 1) <= end)
        mask[np.where(bare, gap, inside)] = 1
    return mask


def load_tokenizer(name: str, *, trust_remote_code: bool) -> Any:
    """The fast tokenizer of a folder or hub id.

    Raises:
        DataError: It cannot be loaded, or has no fast form.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        # Of many kinds, from the hub's to a tokenizer's own code; the user must hear which it was.
        raise DataError(f"cannot load the tokenizer '{name}': {error}") from error
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer '{name}' ({type(tokenizer).__name__}) has no fast form "
            "(tokenizer.json), which raymix needs to tell which tokens are the assistant's"
        )
    return tokenizer

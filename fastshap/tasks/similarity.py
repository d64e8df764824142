"""Similarity of sentence embeddings: a text against other texts, or two texts that are both explained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call
from fastshap.engine.run import device_of
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    NonFiniteError,
    UnsupportedModelError,
    raise_first,
)
from fastshap.models.embedder import SentenceEmbedder
from fastshap.tasks.base import Prepared, Shown, Task
from fastshap.tasks.pooling import Pooling, pooling_of
from fastshap.tasks.sequences import joined, of_each
from fastshap.tasks.tokens import unknown
from fastshap.tasks.trial import Judge, Ran, ToLogits
from fastshap.text.encode import EXTRA, Encoded
from fastshap.text.inputs import Pair, Refused, sources
from fastshap.types import InferenceModes

# What outputs keep of the texts that a text is compared with: their tokens side by side, and where each begins and ends.
_IDS, _OFFSETS = "target_input_ids", "target_offsets"


class _Read(NamedTuple):
    """A text, and what it is compared with: other texts or embeddings; nothing for two texts in one row."""

    encoded: Encoded
    first: Encoded  # the text alone
    others: list[Encoded | Tensor]
    names: list[str]


@dataclass(frozen=True, slots=True)
class _Compared(Prepared):
    others: Sequence[Encoded | Tensor] = ()


class SimilarityTask(Task):
    """The cosine of two texts' embeddings: (R, E) of a model that gives hidden states, or of a SentenceTransformer.

    A target is another text or its embedding (E,), whose vector is computed once, without gradients. Of a pair of texts both
    are explained. Two embeddings of length 1 have the same dot product as cosine; for the dot product of others there is the
    task dot_similarity, so that an output's task says which of the two it explains.

    Attributes:
        pooling: "mean", "cls" or "lasttoken" for models whose files do not say it. None: the mean, of a decoder the last token.
    """

    name = "similarity"
    class_endings = ("Model",)
    explains = "models that give hidden states, whose sentence embeddings are compared (*Model, SentenceTransformer)"
    shown = Shown(targets="similar to", score="cosine")
    takes_pairs = True
    unread = ("pooler.",)
    pooling: str | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        mode: Any = self.inference_mode
        if isinstance(mode, InferenceModes) and mode is not InferenceModes.LOGITS:
            raise InvalidArgumentError(
                f"inference_mode={mode.name} makes probabilities of classes, and a similarity is a single number; use LOGITS, "
                "which explains the similarity itself."
            )

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        return super().is_named(architecture) and not architecture.endswith("HeadsModel")

    @classmethod
    def fits(cls, model: Any) -> bool:
        if isinstance(model, SentenceEmbedder):
            return True
        return cls.is_named(type(model).__name__)

    # The embeddings

    def _pooling(self) -> Pooling:
        if self.pooling is not None:
            return Pooling(self.pooling)
        found = self.found("pooling", lambda: pooling_of(self.model))
        assert found is not None
        return found

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(R, E): the embeddings."""
        if isinstance(model, SentenceEmbedder):
            return model(**inputs)  # type: ignore[no-any-return]
        return self._pooling()(self.outputs_of(model, inputs).last_hidden_state, inputs.get("attention_mask"))

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        if plain.logits.ndim != 2:
            raise UnsupportedModelError(
                f"{self.model_name} gives an embedding of shape {tuple(plain.logits.shape)} for a text, and not one vector."
            )

    def max_length(self) -> int | None:
        own = getattr(self.model, "max_seq_length", None)
        return min((limit for limit in (super().max_length(), own) if limit is not None), default=None)

    def compared(self, first: Tensor, second: Tensor) -> Tensor:
        """(...) the similarity of embeddings (..., E)."""
        return torch.nn.functional.cosine_similarity(first, second, dim=-1)

    def scores(self, model: Any, call: Call) -> Tensor:
        if call.sequences is not None:
            first, second = of_each(lambda inputs: self.logits_of(model, inputs), call).float().unbind(1)
            return self.transformed(self.compared(first, second)[:, None])
        own = self.logits_of(model, self.given(call).inputs).float()
        assert call.vectors is not None
        return self.transformed(self.compared(own[:, None], call.vectors.to(own.device)))

    # Targets

    def serves_all(self, targets: Any) -> bool:
        """Another text, or one embedding (E,)."""
        return isinstance(targets, str) or _is_vectors(targets, 1)

    def split_targets(self, targets: Any, count: int) -> list[list[Any] | None] | None:
        """None, one text or embedding for every text, or a list of these (or of lists of these). A pair of texts has None."""
        if targets is None:
            return None
        if self.serves_all(targets):
            return [[_as_tensor(targets)]] * count
        if isinstance(targets, bytes | Mapping) or not isinstance(targets, Iterable):
            raise _unsuited(targets)
        each = [_row(target) for target in targets]
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'text')} but {counted(len(each), 'target')}; give one for each text, or one text for all. "
                "Several targets of one text stand in a list of their own, as in [['first', 'second']]."
            )
        return each

    def entries(self, targets: Any) -> Iterator[Any]:
        if isinstance(targets, bytes | Mapping) or not isinstance(targets, Iterable):
            raise _unsuited(targets)
        return iter(targets)

    def paired(self, model_inputs: Any, targets: Any) -> Iterator[Any]:
        others = itertools.repeat(targets) if self.serves_all(targets) else self.entries(targets)
        texts = sources(model_inputs)
        for count, text in enumerate(texts):
            if (other := next(others, None)) is None:
                raise InvalidArgumentError(f"{there_are(count, 'target')} for more texts; give one for each text.")
            if isinstance(other, list | tuple) and len(other) == 1:
                (other,) = other
            if not isinstance(other, str):
                raise InvalidTypeError(
                    "both=True explains a text and its target, which must be a text too, one for each text; got "
                    f"{type(other).__name__}."
                )
            if isinstance(text, FastshapError):
                yield Refused(text)
            elif isinstance(text, str):
                yield Pair(text, other)
            else:
                yield Refused(InvalidTypeError("both=True makes a pair of a text and its target, both strings."))
        if not self.serves_all(targets) and next(others, None) is not None:
            raise InvalidArgumentError("There are more targets than texts; give one for each text.")

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        return texts, texts[0]

    # From texts to what is explained

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        wanted = [None] * len(sources) if targets is None else targets
        texts = [[*source] if isinstance(source, Pair) else [source] for source in sources]
        others = [[one for one in row or () if isinstance(one, str)] for row in wanted]
        flat = [text for own, row in zip(texts, others, strict=True) for text in (*own, *row)]
        found = iter(self.encode(flat, max_length=self.max_length()))
        return [
            _read([next(found) for _ in own], [next(found) for _ in row], given)
            for own, row, given in zip(texts, others, wanted, strict=True)
        ]

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        return (one.first for one in tokenised if isinstance(one, _Read))

    def prepare(self, tokenised: Any, *_: Any) -> list[Prepared | FastshapError]:
        known: dict[Any, Tensor | FastshapError] = {}

        def vector(other: Encoded | Tensor) -> Tensor | FastshapError:
            key = id(other) if isinstance(other, Tensor) else other.key(None)
            if key not in known:
                known[key] = self._given(other) if isinstance(other, Tensor) else self._vector(other)
            return known[key]

        return [
            _prepared(one, [vector(other) for other in one.others]) if isinstance(one, _Read) else one
            for one in tokenised
        ]

    def _given(self, vector: Tensor) -> Tensor | FastshapError:
        """An embedding as the user gave it, if the model's are as long."""
        size = self.found("embedding size", self._size)
        if size is not None and len(vector) != size:
            return InvalidArgumentError(
                f"The embedding has {counted(len(vector), 'number')}, and those of {self.model_name} have {size}."
            )
        return _sound(vector.detach().float().cpu())

    @torch.no_grad()
    def _size(self) -> int:
        ids = torch.tensor([self.ordinary_tokens()[:1]], device=device_of(self.model))
        return self.raw_logits(input_ids=ids, attention_mask=torch.ones_like(ids)).shape[-1]

    @torch.no_grad()
    def _vector(self, encoded: Encoded) -> Tensor | FastshapError:
        """(E,) float32 on the CPU. The text runs alone, so that nothing depends on what other texts there are."""
        ids, inputs = self.alone(encoded)
        try:
            return _sound(self.raw_logits(input_ids=ids, **inputs)[0].float().cpu())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return ModelFailedError.caused_by(error)

    def kept(self, prepared: Prepared) -> dict[str, Tensor]:
        """The other texts' tokens; none of an embedding."""
        if not isinstance(prepared, _Compared):
            return {}
        rows = [other.input_ids if isinstance(other, Encoded) else [] for other in prepared.others]
        offsets = torch.tensor([*itertools.accumulate(map(len, rows), initial=0)])
        kept = {_IDS: torch.tensor([*itertools.chain(*rows)], dtype=torch.int64), _OFFSETS: offsets}
        texts = [other for other in prepared.others if isinstance(other, Encoded)]
        for name in EXTRA if texts else ():
            if name in texts[0].extra:
                kept[f"target_{name}"] = torch.tensor([*itertools.chain(*(text.extra[name] for text in texts))])
        return kept

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if saved.encoded.sequences:
            return saved
        others = _others(kept, len(saved.targets))
        raise_first([unknown(self, other.input_ids) for other in others], 0)
        read = _Read(saved.encoded, saved.encoded, [*others], saved.target_names)
        found = _prepared(read, [self._vector(other) for other in others])
        if isinstance(found, FastshapError):
            raise found
        return found


class DotSimilarityTask(SimilarityTask):
    """The dot product of two texts' embeddings."""

    name = "dot_similarity"
    shown = Shown(targets="similar to", score="dot product")

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        return False

    @classmethod
    def fits(cls, model: Any) -> bool:
        return False

    @classmethod
    def serves(cls, model: Any) -> bool:
        return SimilarityTask.fits(model)

    def compared(self, first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(-1)


def _read(own: list[Any], others: list[Any], given: list[Any] | None) -> _Read | FastshapError:
    """One text with its targets, or two that are compared with each other."""
    if error := _first_error(own):
        return type(error)(f"Of a pair, one text cannot be used. {error}") if len(own) > 1 else error
    if error := _first_error(others):
        return _of_target(error)
    if len(own) > 1:
        if given is not None:
            return InvalidArgumentError(
                "The two texts of a pair are compared with each other, so a pair takes no target; leave it out, or pass None."
            )
        return _Read(joined(own, [[0], [1]]), own[0], [], ["similarity"])
    if given is None:
        return InvalidArgumentError(
            "There is nothing to compare the text with. Pass another text, or its embedding, as its target. To explain both "
            "texts, pass them as a pair, (first, second)."
        )
    texts = iter(others)
    compared = [next(texts) if isinstance(one, str) else one for one in given]
    names = [one if isinstance(one, str) else f"embedding {number}" for number, one in enumerate(given)]
    (encoded,) = own
    if any(other.truncated for other in others):
        encoded = dataclasses.replace(encoded, truncated=True)
    return _Read(encoded, encoded, compared, names)


def _prepared(one: _Read, vectors: Sequence[Tensor | FastshapError]) -> Prepared | FastshapError:
    if one.encoded.sequences:
        return Prepared(one.encoded, torch.zeros(1, dtype=torch.int64), one.names)
    if error := _first_error(vectors):
        return _of_target(error)
    stacked = torch.stack([vector for vector in vectors if isinstance(vector, Tensor)])
    return _Compared(one.encoded, torch.arange(len(stacked)), one.names, vectors=stacked, others=one.others)


def _others(kept: Mapping[str, Tensor], count: int) -> list[Encoded]:
    """The texts that an output was compared with, as far as the model reads them."""
    given = {name.removeprefix("target_"): value.tolist() for name, value in kept.items()}
    ids, offsets = given.get("input_ids", []), given.get("offsets", [])
    if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != len(ids) or sorted(offsets) != offsets:
        raise InvalidArgumentError(
            "The output does not hold the texts that it was compared with; explain its text again."
        )
    found = []
    for number, (lo, hi) in enumerate(itertools.pairwise(offsets)):
        if lo == hi:
            raise InvalidArgumentError(
                f"Target {number} was given as an embedding, which outputs do not hold; explain the text again, with that "
                "embedding as its target."
            )
        size = hi - lo
        extra = {name: given[name][lo:hi] for name in EXTRA if len(given.get(name, ())) == len(ids)}
        found.append(
            Encoded(
                "",
                ids[lo:hi],
                [False] * size,
                [(0, 0)] * size,
                [""] * size,
                [None] * size,
                truncated=False,
                extra=extra,
            )
        )
    return found


def _first_error(entries: Iterable[Any]) -> FastshapError | None:
    return next((one for one in entries if isinstance(one, FastshapError)), None)


def _of_target(error: FastshapError) -> FastshapError:
    return type(error)(f"The target cannot be used. {error}")


def _sound(vector: Tensor) -> Tensor | FastshapError:
    if not bool(vector.isfinite().all()):
        return NonFiniteError("The embedding holds NaN or infinite values.")
    if not bool(vector.any()):
        return InvalidArgumentError("The embedding is zero in all dimensions, so it has no direction to compare with.")
    return vector


def _row(target: Any) -> list[Any] | None:
    """The targets of one text: one, or several as a list or a tensor of two dimensions; None for a pair."""
    if target is None:
        return None
    if isinstance(target, str) or _is_vectors(target, 1):
        return [_as_tensor(target)]
    if not (isinstance(target, list | tuple) or _is_vectors(target, 2)):
        raise _unsuited(target)
    each = [*target]
    if not each:
        raise InvalidArgumentError("A text has no target; give at least one text or embedding to compare it with.")
    if bad := [one for one in each if not (isinstance(one, str) or _is_vectors(one, 1))]:
        raise _unsuited(bad[0])
    return [_as_tensor(one) for one in each]


def _as_tensor(target: Any) -> Any:
    return torch.from_numpy(target) if isinstance(target, np.ndarray) else target


def _is_vectors(value: Any, ndim: int) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.ndim == ndim
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == ndim


def _unsuited(targets: Any) -> InvalidTypeError:
    shape = f" of shape {tuple(targets.shape)}" if isinstance(targets, Tensor | np.ndarray) else ""
    return InvalidTypeError(
        "What a text is compared with is another text or its embedding, a float tensor (E,); or a list with one of these, or a "
        f"list of several, for each text; got {type(targets).__name__}{shape}."
    )

"""Sequence to sequence: an encoder reads the input, a decoder writes the target; both are attributed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError, UnsupportedModelError
from fastshap.tasks.base import POSITIONS, Prepared, Shown
from fastshap.tasks.continuations import Continued, Continuing, sums_of
from fastshap.tasks.heads import output_layer
from fastshap.tasks.layout import Sharing
from fastshap.tasks.sequences import one_of
from fastshap.tasks.subject import takes
from fastshap.tasks.trial import Judge, Ran, ToLogits, leaks, ran
from fastshap.text.encode import Encoded, join, until, without_ending

_ENCODER, _DECODER = 0, 1
_TRIED = 4  # tokens of the decoder on which a model is tried


class Seq2SeqTask(Continuing):
    """Encoders with a decoder that writes: logits (R, W, V), each of the next token of the target.

    A row holds the input, the token that the decoder starts with, and the target. The decoder reads all but the target's last.
    """

    name = "seq2seq"
    class_endings = ("ForConditionalGeneration", "MTModel")
    auto_class = "AutoModelForSeq2SeqLM"
    explains = "encoders with a decoder, which write a text for a text (T5, BART, Marian)"
    shown = Shown(targets="generated", segments=("input", "generated"), map_axes=("generated", "drew on"))
    writes_targets = True
    takes_spans = True
    steadiest_mode = "softmax"

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

        return architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()

    @classmethod
    def fits(cls, model: Any) -> bool:
        both = takes(model, "inputs_embeds") and takes(model, "decoder_inputs_embeds")
        writes = getattr(model, "can_generate", bool)() and output_layer(model) is not None
        return bool(getattr(model.config, "is_encoder_decoder", False)) and both and writes

    # The model

    @property
    def start(self) -> int:
        """The token that the decoder begins with."""
        own: Any = getattr(self.model, "generation_config", None)
        for one in (own, self.model.config, self.model.config.get_text_config()):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if isinstance(token := getattr(one, name, None), int):
                    return token
        raise UnsupportedModelError(
            f"{self.model_name} does not say which token its decoder begins with; set model.config.decoder_start_token_id."
        )

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """(R, V): where the model is tried, its last logits behind a few fixed tokens of the decoder."""
        rows = inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]
        ids = self._fixed(rows.device).expand(len(rows), -1)
        logits: Tensor = model(**self._scaled(inputs), decoder_input_ids=ids, use_cache=False).logits
        return logits[:, -1]

    def _fixed(self, device: torch.device) -> Tensor:
        ordinary = self.ordinary_tokens()
        some = [ordinary[(7919 * i + 13) % len(ordinary)] for i in range(_TRIED - 1)]
        return torch.tensor([[self.start, *some]], device=device)

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        """The decoder computes the same from embeddings of the input's table as from ids, and no logits see later tokens."""
        ids = self._fixed(z.device)
        y = self.model.get_input_embeddings()(ids).detach()

        source = self._scaled({"inputs_embeds": z, **inputs})

        def decoder(given: Mapping[str, Any]) -> Tensor:
            logits: Tensor = self.model(**source, decoder_inputs_embeds=given["inputs_embeds"], use_cache=False).logits
            return logits

        whole = ran(decoder, y, {})
        if not judge.agree(whole._replace(logits=whole.logits[:, -1], gradients=plain.gradients), plain):
            raise UnsupportedModelError(
                f"The decoder of {self.model_name} computes something else from decoder_inputs_embeds than from ids, or has a "
                "table of embeddings of its own; models are explained whose encoder and decoder share one."
            )
        before = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        before[:, -1] = False
        earlier = ran(decoder, y, {}, before).gradients
        if leaks(earlier[:, -1], earlier):
            raise UnsupportedModelError(
                f"{self.model_name}'s decoder is not causal: its logits depend on later tokens."
            )

    def reads_twice(self) -> bool:
        """The decoder reads the target."""
        return False

    def layout(self, texts: Iterable[Encoded]) -> Sharing | None:
        """A decoder counts its positions from the first column, so nothing is padded on the left."""
        found = super().layout(texts)
        return found._replace(padding_side=None) if found is not None and found.padding_side == "left" else found

    def scores(self, model: Any, call: Call) -> Tensor:
        given = self.given(call)
        encoder, decoder = one_of(given, _ENCODER), one_of(given, _DECODER)
        # What pads a decoder stands behind what is read.
        behind = decoder["inputs_embeds"]
        logits = model(**self._scaled(encoder), decoder_inputs_embeds=behind, use_cache=False).logits
        row, column = call.places
        first = _first_columns(call) - call.inputs["inputs_embeds"].shape[1]
        picked = self.transformed(logits[row, column - first])  # (R, T, V)
        return picked.to(call.targets.device).gather(2, call.targets[..., None]).squeeze(2)

    def _scaled(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Marian's encoder multiplies what it looks up in its table, and takes embeddings as they are; its decoder does not."""
        model = self.model
        scale = getattr(model.get_encoder(), "embed_scale", None)
        if not isinstance(scale, float) or scale == 1 or hasattr(model.get_input_embeddings(), "embed_scale"):
            return dict(inputs)
        return {name: value * scale if name == "inputs_embeds" else value for name, value in inputs.items()}

    # Texts

    def prompts(self, sources: Sequence[Any], max_length: int | None = None) -> list[Encoded | FastshapError]:
        """The inputs as the tokenizer reads any text, cut to what the encoder takes."""
        return self.encode(sources, max_length=self.max_length())

    def with_room(
        self, sources: Sequence[Any], prompts: list[Encoded | FastshapError], options: Mapping[str, Any]
    ) -> list[Encoded | FastshapError]:
        return prompts  # the decoder has room of its own

    def with_targets(self, sources: Sequence[Any], targets: Sequence[Any]) -> list[Continued | FastshapError]:
        with _as_targets(self.tokenizer):
            endings = self.encode(targets, max_length=None)
        found = []
        for source, prompt, ending in zip(sources, self.prompts(sources), endings, strict=True):
            if isinstance(ending, FastshapError):
                ending = type(ending)(f"The target cannot be used. {ending}")
            found.append(self.fitted(source, prompt, ending))
        return found

    def fitted(
        self, source: Any, prompt: Encoded | FastshapError, ending: Encoded | FastshapError
    ) -> Continued | FastshapError:
        if isinstance(prompt, FastshapError):
            return prompt
        if isinstance(ending, FastshapError):
            return ending
        limit, bare = self.max_length(), without_ending(ending)
        if limit is not None and len(bare) > limit:
            return InvalidArgumentError(
                f"The target is {len(bare)} tokens long and the decoder takes {limit}; shorten it."
            )
        return Continued(prompt, bare)

    def written_before(self, prompt: Any) -> int:
        """The token that the decoder starts with."""
        return 1

    def row(self, prompt: Encoded, ending: Encoded) -> tuple[Encoded, int]:
        start = self._starting(ending)
        whole = join(prompt, join(start, ending), "\n")
        whole = dataclasses.replace(whole, parts=(len(prompt),))
        length = len(whole)
        return whole.with_sequences(([*range(len(prompt))], [*range(len(prompt), length - 1)])), len(prompt) + 1

    def _starting(self, like: Encoded) -> Encoded:
        """The token that the decoder starts with, as a text of its own."""
        name = str(self.tokenizer.convert_ids_to_tokens(self.start))
        alone: dict[str, Any] = {"special": [True], "offsets": [(0, 0)], "tokens": [name], "words": [None], "text": ""}
        extra = {name: [0] for name in like.extra}
        return dataclasses.replace(until(like, 1), input_ids=[self.start], parts=(), extra=extra, **alone)

    def explained(self, read: Sequence[Continued | FastshapError]) -> Prepared | FastshapError:
        found = super().explained(read)
        return found if isinstance(found, FastshapError) or found.scope.own is None else self._without_template(found)

    @staticmethod
    def _without_template(prepared: Prepared) -> Prepared:
        """The text's tokens; a template's, such as a language, are given and not explained."""
        special = prepared.encoded.special
        kept = [i for i, place in enumerate(prepared.scope.own or ()) if not special[place]]
        positions, hidden = prepared.scope.positions, prepared.scope.hidden
        assert positions is not None
        assert hidden is not None
        own = [place for place in prepared.scope.own or () if not special[place]]
        scope = dataclasses.replace(prepared.scope, positions=positions[kept], hidden=hidden[kept], own=own)
        names = [prepared.target_names[i] for i in kept]
        return dataclasses.replace(prepared, targets=prepared.targets[kept], target_names=names, scope=scope)

    def kept(self, prepared: Prepared) -> dict[str, Tensor]:
        positions = prepared.scope.positions
        return {} if positions is None else {POSITIONS: positions}

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        if saved.scope.joined is not None:
            return sums_of(saved)
        own = (kept[POSITIONS] + 1).tolist()
        hidden = torch.arange(len(saved.encoded), device="cpu") >= torch.tensor(own, device="cpu")[:, None]
        scope = dataclasses.replace(saved.scope, hidden=hidden, own=own)
        return dataclasses.replace(saved, scope=scope)


def _first_columns(call: Call) -> Tensor:
    """(R, 1): the column of each row at which the decoder's tokens begin."""
    assert call.sequences is not None
    columns = call.sequences[:, _DECODER]
    return columns.where(columns >= 0, columns.amax() + 1).amin(1, keepdim=True)


@contextlib.contextmanager
def _as_targets(tokenizer: Any) -> Iterator[None]:
    """Tokenizers with a vocabulary or a template for each side read the target's."""
    switch, back = (getattr(tokenizer, f"_switch_to_{side}_mode", None) for side in ("target", "input"))
    if switch is None or back is None:
        yield
        return
    switch()
    try:
        yield
    finally:
        back()

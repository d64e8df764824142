"""What a task is: which scores of a model are explained, for which targets, and what those depend on.

A new task is a subclass of :class:`Task` in one file, registered with :func:`fastshap.tasks.register`. The trial of a model is
in :mod:`fastshap.tasks.layout`. What is known of a model is in :mod:`fastshap.tasks.subject`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fastshap.checks import counted, there_are
from fastshap.engine.packing import Call, Item
from fastshap.engine.run import Forward
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.settings import Settings
from fastshap.tasks import layout, tokens
from fastshap.tasks.layout import Sharing
from fastshap.tasks.subject import Subject, unwrapped
from fastshap.tasks.unfit import refuse_unfit
from fastshap.text.encode import Encoded, as_bytes
from fastshap.text.groups import TEXT, Scope
from fastshap.types import InferenceModes, ModelTask, model_task_of
from fastshap.types.targets import Contrast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Prediction(NamedTuple):
    """What a classifier with two or more classes predicts for the text itself."""

    label: str | None  # of the largest logit
    probability: float | None  # of that class
    of_targets: Tensor | None  # (t,) the targets' probabilities


NO_PREDICTION = Prediction(None, None, None)
POSITIONS = "target_positions"  # (T,) the targets' places, among what outputs keep


@dataclass(frozen=True, slots=True)
class Prepared:
    """One text ready to be explained."""

    encoded: Encoded  # all tokens the model sees
    targets: Tensor  # (T,) int64
    target_names: list[str]  # a label each, or a token each; t where ``scope.joined`` says so
    prediction: Prediction = NO_PREDICTION
    scope: Scope = TEXT
    vectors: Tensor | None = None  # (T, E) float32: what each target is, where that is no number

    def item(self, joined: Tensor | None) -> Item:
        """The text as the engine takes it; ``joined`` (t, T) as an item has it."""
        return Item.of(self.encoded, self.targets, self.scope.positions, joined, self.vectors)

    def key(self, members: list[list[int]]) -> bytes:
        """What decides a text's scores, apart from the model and the settings. ``members``: the tokens of each element."""
        its, given = self.encoded, (self.scope.joined, self.vectors)
        further = [None if one is None else (*one.shape, one.numpy().tobytes()) for one in given]
        return as_bytes(its.key(self.scope.positions), its.special, its.parts, self.targets.tolist(), members, *further)


@dataclass(frozen=True)
class Shown:
    """How outputs of a task are shown. Showing a saved output needs no model.

    Attributes:
        targets: the name of the switch between an output's targets.
        segments: the names of the parts of a text, where it has several; the last goes for all further ones.
        score: what the score is that the model itself gives.
        sequences: what the sequences are that the model reads, if that is to be said: "windows".
        map_axes: the names of the rows and columns of a picture of all targets. None: a picture shows one target, as bars.
        reads_on: whether the parts of a text are shown as one text, in which each goes on where the one before ends.
    """

    targets: str = "target"
    segments: tuple[str, ...] = ("first text", "second text")
    score: str = "logit"
    sequences: str = ""
    map_axes: tuple[str, str] | None = None
    reads_on: bool = False


class Riding(NamedTuple):
    """One text whose own row is the last one of each call. Targets that the model chooses are open until that row has run."""

    prepared: Prepared
    # As :meth:`Task.scores`; targets that are open are -1. It depends on nothing but the model, the settings and the call, and
    # keeps further tensors of a call in its list ``aside``: so a recorded call can fill both.
    scores: Forward
    complete: Callable[[], Prepared | FastshapError]  # after a call: with targets and prediction


class Predict(Protocol):
    """Runs the model on texts as they are, without noise or gradients."""

    def __call__(
        self,
        encoded: Sequence[Encoded],
        forward: Forward,
        positions: Sequence[Tensor] | None = None,
    ) -> list[Tensor | FastshapError]:
        """For each text, its row of what ``forward`` gives, on the CPU. If the model fails on a text, the error instead.

        Args:
            forward: takes a model and a call, as :meth:`Task.scores` does, and gives any result (R, ...).
            positions: (P,) int64 for each text: the positions for ``call.places``. None: the call has none.
        """


class Task(Subject, ABC):
    """Turns texts and targets into what the engine works on, and model outputs into scores (R, T).

    Attributes:
        name: the task's name in outputs and files: small letters, digits and underscores.
        class_endings: how the class names of the task's models end.
        auto_class: the class of transformers that loads such a model.
        explains: what models these are, for messages.
        shown: how outputs are shown.
        targets_are_classes: whether targets are classes of the text, one for each name. Outputs repeat them in ``classes``.
        writes_targets: whether the model can write a target itself, so that ``generation_kwargs`` make sense.
        steadiest_mode: the score that few samples tell most about. The command line explains it unless it is told otherwise
            (docs/adr/0025).
        takes_spans: whether ``span`` makes sense.
        takes_windows: whether a long text can be read in windows.
        takes_hypotheses: whether labels are put into ``hypothesis_template``.
        keeps_positions: whether outputs hold the positions of targets: if these do not follow from tokens and targets.
        takes_pairs, takes_words, takes_chats: whether a text may be a pair, words already split, or a conversation.
        measurable: whether :mod:`fastshap.metrics` may leave elements of a text out: its targets stay what they are then.
        unread: how the names of weights begin that the task does not use.
    """

    name: ClassVar[str]
    class_endings: ClassVar[tuple[str, ...]]
    auto_class: ClassVar[str] = "AutoModel"
    explains: ClassVar[str]
    shown: ClassVar[Shown] = Shown()
    targets_are_classes: ClassVar[bool] = False
    steadiest_mode: ClassVar[str] = "logits"
    takes_spans: ClassVar[bool] = False
    takes_hypotheses: ClassVar[bool] = False
    keeps_positions: ClassVar[bool] = True
    measurable: ClassVar[bool] = False
    unread: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        super().__init__(model, tokenizer, settings)
        self._refreshed_for: Any = None  # the model's state then
        refuse_unfit(self)

    @property
    def inference_mode(self) -> Callable[[Tensor], Tensor]:
        """That of the settings."""
        return self.settings.inference_mode

    # Which models

    @classmethod
    def is_named(cls, architecture: str) -> bool:
        """Called with the name of a model's class when a model is loaded or its task is chosen: is the model this task's?"""
        return architecture.endswith(cls.class_endings)

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Called with a model, unwrapped from torch.compile, before an instance is made: is the model this task's?"""
        return cls.is_named(type(model).__name__)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Called with a model, unwrapped, if the user asks for this task: can it do that? By default, if it :meth:`fits`."""
        return cls.fits(model)

    @classmethod
    def read_of(cls, weights: Iterable[str]) -> set[str]:
        """Those of some weights, by name, that the task uses."""
        return {name for name in weights if not name.startswith(cls.unread)}

    @classmethod
    def mode_named(cls, score: str, model: Any) -> InferenceModes:
        """Called with one of the names that ``score`` takes, and a model: the inference mode that it stands for.

        Raises:
            InvalidArgumentError: it makes no sense for this model.
        """
        return {"logit": InferenceModes.LOGITS, "probability": InferenceModes.SOFTMAX}.get(
            score, InferenceModes.LOG_SOFTMAX
        )

    # Targets as users give them

    def serves_all(self, targets: Any) -> bool:
        """Called with a call's ``targets``: are they one target for every text, and not a list with an entry for each?"""
        return False

    def entries(self, targets: Any) -> Iterator[Any]:
        """Called by ``iter_explain``: yields the targets of one text after the other, as they are needed."""
        try:
            if not isinstance(targets, str | bytes | Mapping):
                return iter(targets)
        except TypeError:
            pass
        of_one = f" For one text write [{targets!r}]." if isinstance(targets, str | Contrast) else ""
        raise InvalidTypeError(
            f"Targets are None (the task chooses), or a list with an entry for each text; got {type(targets).__name__}.{of_one}"
        )

    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """Called with the targets of ``count`` texts: returns one entry for each text, or None if the task chooses them all.

        Raises:
            InvalidArgumentError, InvalidTypeError: the task does not take such targets.
        """
        if targets is None:
            return None
        each = list(self.entries(targets))
        if len(each) != count:
            raise InvalidArgumentError(
                f"{there_are(count, 'text')} but {counted(len(each), 'target')}; give one entry for each text."
            )
        return each

    def spelled_targets(self, words: Sequence[str | int] | None, count: int) -> Any:
        """Called by the command line and batch jobs with the user's words: returns the targets of ``count`` texts.

        Raises:
            InvalidArgumentError: no text could have such a target.
        """
        return [list(words)] * count if words else None

    def check_options(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Called with ``generation_kwargs`` if the model may have to write targets: returns them with the task's defaults."""
        if options:
            raise InvalidArgumentError(
                f"generation_kwargs are for causal language models; this model is a {type(unwrapped(self.model)).__name__}."
            )
        return {}

    def expected_scores(self, options: Mapping[str, Any]) -> int:
        """Called with checked options before texts are read: about how many scores a text will have. Sets windows' sizes."""
        return 1

    def paired(self, model_inputs: Any, targets: Any) -> Iterable[Any]:
        """Called where a call says ``both=True``: returns each text with its target as a pair, which needs no target.

        Raises:
            InvalidArgumentError: targets are no texts that the model reads.
        """
        raise InvalidArgumentError(
            "both=True is for similarity, where the target is a text too; this task has no such target."
        )

    def examples(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Called by ``warm_up``: texts of no meaning as inputs that this task takes, and targets for them."""
        return texts, None

    # From texts to what is explained, in the order of the calls

    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        """The first step before :meth:`prepare`. It does not run the model, and may run in another thread.

        Args:
            sources: one entry per text, from :func:`fastshap.text.inputs.sources`.
            targets: one entry per text, from :meth:`split_targets`, or None if the task chooses them all.
            options: from :meth:`check_options`.
        """
        return self.encode(sources, max_length=self.max_length())

    def readable(self, tokenised: Any) -> Iterator[Encoded]:
        """What the model is tried on: yields those ``tokenised`` texts that the model should be able to read."""
        return (one for one in tokenised if isinstance(one, Encoded))

    @abstractmethod
    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        """Gives tokenised texts their targets. If a text cannot be used, an error takes its place. The model has been tried.

        Args:
            tokenised: from :meth:`tokenised`, of the same targets and options.
            predict: runs the model on the texts themselves.
            generated: call this after each text that the model has written a target for.
        """

    def riding(self, tokenised: Any, targets: Sequence[Any] | None) -> Riding | None:
        """One text whose own row rides in the calls with gradients; None where it cannot: use :meth:`prepare`.

        Args:
            tokenised: one text, from :meth:`tokenised`.
            targets: of this text, as for :meth:`prepare`.
        """
        return None

    def kept(self, prepared: Prepared) -> dict[str, Tensor]:
        """What else an output keeps of its targets, for :meth:`again`: int64, by names that begin with target_."""
        positions = prepared.scope.positions
        return {} if positions is None or not self.keeps_positions else {POSITIONS: positions}

    def again(self, saved: Prepared, kept: Mapping[str, Tensor]) -> Prepared:
        """Called by ``reproduce``: makes again what :meth:`prepare` made of a text whose output was saved.

        Args:
            saved: its tokens, as one part with its sequences; targets, their names and the prediction; of the scope,
                ``joined`` and, if the output keeps them, the positions.
            kept: what :meth:`kept` gave.

        Raises:
            InvalidArgumentError: the model has no such target.
        """
        return saved

    def names_now(self, targets: Tensor) -> list[str] | None:
        """Called by ``reproduce``: the model's names for saved targets (T,). None if the names do not depend on the model."""
        return None

    def cut_end(self) -> str:
        """The end that a text loses if it is too long."""
        return "beginning" if self.tokenizer.truncation_side == "left" else "end"

    def of_truncated_texts(self) -> str:
        """The warning about texts that were too long."""
        return (
            f"Texts of more than {self.max_length()} tokens lost their {self.cut_end()}, as the model takes no more; their "
            "outputs have truncated=True. Split long texts to explain all of them."
        )

    # The model at work

    @abstractmethod
    def scores(self, model: Any, call: Call) -> Tensor:
        """The targets' scores (R, T) of one call of the model, or of a copy of it, after the inference mode.

        ``call.targets`` (R, T) are the targets. A text with fewer targets than others in its call repeats its last one.
        ``logits[call.places]`` are the rows (R, T, ...) at their positions.
        """

    def find_shortcuts(self) -> None:
        """Called before the first call of a window if the model has changed: finds what calls can leave out."""

    # What every task has

    @property
    def model_task(self) -> ModelTask | str:
        """How outputs name the task: by its member, or by its name if it was registered from outside."""
        return model_task_of(self.name)

    def layout(self, texts: Iterable[Encoded]) -> Sharing | None:
        """See :func:`fastshap.tasks.layout.find_layout`."""
        return layout.find_layout(self, texts)

    def refresh(self) -> None:
        """Runs before the first call of a window. If the model has changed, finds anew what calls can leave out."""
        if self._refreshed_for != self.state():
            self.find_shortcuts()
            self._refreshed_for = self.state()

    def background(self, text: str) -> Encoded | FastshapError:
        """A text of a :class:`fastshap.BaselineSet`."""
        return self.encode([text], max_length=self.max_length())[0]

    def encode(self, sources: Sequence[Any], **options: Any) -> list[Encoded | FastshapError]:
        """See :func:`fastshap.tasks.tokens.encode_for`."""
        return tokens.encode_for(self, sources, **options)

    def transformed(self, logits: Tensor) -> Tensor:
        """The scores that the inference mode makes of logits (..., classes). They have the same shape."""
        scores = self.inference_mode(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InvalidArgumentError(
                f"inference_mode must return scores of the logits' shape, {tuple(logits.shape)}; it returned {shape}."
            )
        if logits.requires_grad and not scores.requires_grad:
            raise InvalidArgumentError(
                "inference_mode returned scores without a gradient; it must be differentiable (no .detach(), .item(), argmax)."
            )
        return scores

    def untried(self) -> Task:
        """The same task, before it knows anything about the model."""
        return type(self)(self._model, self.tokenizer, self.settings)

    def with_settings(self, settings: Settings) -> Task:
        """The same task with other settings, but the same inference mode. It keeps what this one knows about the model."""
        own = copy.copy(self)
        own.settings, own._running, own._at_work, own._state = settings, self._model, False, None
        return own

"""The command line: ``fastshap explain TEXT…``."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from tqdm import tqdm

from fastshap.version import __version__

if TYPE_CHECKING:
    from fastshap.output import AttributionOutput

app = typer.Typer(
    help="What a Hugging Face text model looks at, with GradientSHAP.", no_args_is_help=True, add_completion=False
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastshap {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What a Hugging Face text model looks at, with GradientSHAP."""


@app.command()
def explain(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="One or more texts, each in quotes.")],
    model: Annotated[
        str | None, typer.Option(help="A directory or hub id; by default the sentiment model in the package.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="A class number or label, by default the predicted class; for a language model the text that follows."
        ),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="all_tokens, token, word, part_sentence or sentence.", case_sensitive=False)
    ] = "word",
    n_perturbations: Annotated[int, typer.Option(help="Samples a text: more are slower and steadier.")] = 10,
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a text, and nothing else.")] = False,
) -> None:
    """Explains texts: each word with what it adds to the score of the predicted label (or of --target).

    Exit code: 0 all explained, 1 some text could not be, 2 wrong usage.
    """
    import torch
    from transformers.utils import logging

    from fastshap.errors import FastshapError, TruncationWarning
    from fastshap.explainer import GradientShap
    from fastshap.types import ModelTask

    logging.disable_progress_bar()
    loaded, tokenizer = _load(model)
    try:
        explainer = GradientShap(
            loaded,
            tokenizer,
            batch_size="auto",
            granularity=granularity,
            n_perturbations=n_perturbations,
            seed=seed,
            on_error="record",
        )
        wanted: Any = target
        if explainer.task.model_task is ModelTask.GENERATION:
            if target is None:
                _fail("a language model is explained for a text that follows the input: give it with --target.")
            wanted = [target] * len(texts)
        elif target is not None and target.lstrip("-").isdigit():
            wanted = int(target)
        bar = tqdm(explainer.iter_explain(texts, wanted), total=len(texts), delay=1, leave=False, disable=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # each result says so itself
            outputs = list(bar)
    except FastshapError as error:
        _fail(str(error))
    with torch.no_grad():
        predictions = [None if output.error is not None else _prediction(explainer, output) for output in outputs]
    for text, output, prediction in zip(texts, outputs, predictions, strict=True):
        if as_json:
            typer.echo(json.dumps({"text": text, "prediction": prediction} | output.to_dict(), ensure_ascii=False))
        else:
            _print(text, output, prediction)
    if any(output.error is not None for output in outputs):
        raise typer.Exit(1)


def _load(model: str | None) -> tuple[Any, Any]:
    """The model and tokenizer to explain; a causal language model unless the configuration names a classifier."""
    if model is None:
        from fastshap.default_model import load_default_model

        return load_default_model()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(model)
        named = (config.architectures or ["unknown"])[0]
        if not named.endswith(("ForSequenceClassification", "ForCausalLM", "LMHeadModel")):
            _fail(
                f"{model!r} holds a {named}; models for sequence classification and causal language models are explained."
            )
        kind = AutoModelForSequenceClassification if named.endswith("Classification") else AutoModelForCausalLM
        return kind.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        _fail(f"the model {model!r} could not be loaded: {error}")


def _prediction(explainer: Any, output: AttributionOutput) -> dict[str, Any] | None:
    """The most probable label and its probability, for a classifier of two classes or more."""
    labels = getattr(explainer.task, "labels", [])
    if len(labels) < 2:
        return None
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: output.model_inputs_to_explain[name] for name in names if name in output.model_inputs_to_explain}
    logits = explainer.model(**inputs).logits[0]
    independent = explainer.model.config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if independent else logits.softmax(-1)
    best = int(probabilities.argmax())
    return {"label": labels[best], "probability": float(probabilities[best])}


def _print(text: str, output: AttributionOutput, prediction: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from fastshap.render.terminal import printable, show

    console = Console(highlight=False)
    console.print(Text(printable(text), style="italic"))
    if prediction is not None:
        console.print(Text(f"predicted {prediction['label']}, probability {prediction['probability']:.3f}"))
    show(output, console)
    console.print()


def _fail(message: str) -> NoReturn:
    typer.echo(f"fastshap: {message}", err=True)
    raise typer.Exit(2)

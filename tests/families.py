"""Families of models, each with every task that transformers has a class for: built small, with random weights, and explained.

``python tests/families.py`` runs them all and writes the table in docs/tasks.md.
"""

import itertools
import os
import re
import sys
import traceback
import warnings
from datetime import date
from pathlib import Path

import every_class
import torch
import transformers
from tokenizers import processors
from transformers.models.auto import modeling_auto as auto

import fastshap
from fastshap.engine.packing import Layout

PAGE = Path(__file__).parent.parent / "docs" / "tasks.md"
BEGIN, END = "<!-- Written by tests/families.py. -->", "<!-- End. -->"
FAMILIES = {
    "BERT": "bert",
    "RoBERTa": "roberta",
    "DeBERTa-v2": "deberta-v2",
    "DistilBERT": "distilbert",
    "ELECTRA": "electra",
    "ALBERT": "albert",
    "XLNet": "xlnet",
    "ModernBERT": "modernbert",
    "GPT-2": "gpt2",
    "Llama": "llama",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Gemma 2": "gemma2",
    "Gemma 3 (text)": "gemma3_text",
    "Mistral": "mistral",
    "Phi": "phi",
    "OPT": "opt",
    "BLOOM": "bloom",
    "Mamba": "mamba",
    "Mixtral (experts)": "mixtral",
    "T5": "t5",
    "BART": "bart",
}
# The classes of each task, and how outputs call it.
TASKS = {
    "classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "pairs": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "zero_shot": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token_classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question_answering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "masked_lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "multiple_choice": auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "similarity": auto.MODEL_MAPPING_NAMES,
    "generation": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
HEADINGS = {
    "pairs": "pair",
    "zero_shot": "zero-shot",
    "token_classification": "tokens",
    "question_answering": "answers",
}
HEADINGS |= {"masked_lm": "masks", "multiple_choice": "choices", "seq2seq": "seq2seq"}
ENCODERS = ("bert", "roberta", "deberta-v2", "distilbert", "electra", "albert", "xlnet", "modernbert")
SAMPLES = 8
MANY = 60  # samples of the completeness
TOLERANCE = 1e-5  # of the largest score
ERRORS = 6  # standard errors that a residual may have
TEXTS = [
    "the film was not good at all",
    "superb",
    "a dull ending while nobody knew why it began to end so late and why",
]
_MASKED = ["the film was not <mask> at all", "<mask>", "a dull ending while nobody <mask> why it began to end so late"]


def name_of(task, kind):
    """The class of a family's model; None where transformers has none."""
    if (task, kind) == ("similarity", "t5"):
        return "T5EncoderModel"  # the decoder of T5Model reads a text of its own
    found = TASKS[task].get(kind)
    name = found[0] if isinstance(found, tuple | list) else found
    return None if task == "masked_lm" and not str(name).endswith("MaskedLM") else name  # BART's writes the whole text


def cases():
    """(task, family, class name)."""
    return [
        (task, family, name)
        for (family, kind), task in itertools.product(FAMILIES.items(), TASKS)
        if (name := name_of(task, kind)) is not None
    ]


def tokenizer(task, encoder, decodes):
    """A token a word, with a template around the texts of an encoder, and an end for those with a decoder."""
    own = every_class.tokenizer()
    if encoder:
        names = [("<s>", 1), ("</s>", 2)]
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=names
        )
    if task == "seq2seq" or decodes:
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
        )
    return own


def asked(task):
    """Texts, targets and parameters."""
    pairs = [(one, other) for one, other in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)]
    return {
        "classification": (TEXTS, [[0, 2]] * 3, {}),
        "pairs": (pairs, [[0, 2]] * 3, {}),
        "zero_shot": (TEXTS, ["film", "acting"], {"task": "zero_shot"}),
        "token_classification": (TEXTS, None, {}),
        "question_answering": (pairs, None, {}),
        "masked_lm": (_MASKED, None, {}),
        "multiple_choice": ([{"text": one, "choices": ["good at all", "dull", "so late"]} for one in TEXTS], None, {}),
        "similarity": (pairs, None, {}),
        "generation": (TEXTS, ["superb and dull"] * 3, {}),
        "seq2seq": (TEXTS, ["superb and dull"] * 3, {}),
    }[task]


def as_long_as(task, text):
    """Further texts with as many tokens, of the same task's form."""
    swap = lambda words: words.replace("film", "ending").replace("not", "so")  # noqa: E731
    if isinstance(text, str):
        return [swap(text)]
    if isinstance(text, tuple):
        return [(swap(text[0]), text[1])]
    return [{**text, "text": swap(text["text"])}]


def made(task, family, name):
    """The model and its tokenizer."""
    kind = FAMILIES[family]
    words = tokenizer(task, kind in ENCODERS, kind in ("t5", "bart"))
    model = every_class.built(task, kind, name, len(words), labels=2 if task == "question_answering" else 3)
    if task == "zero_shot":
        model.config.id2label = {0: "contradiction", 1: "neutral", 2: "entailment"}
    if task == "seq2seq":
        model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = 0
    return model, words


def apart(ours, theirs):
    """The largest difference, as a share of the largest score."""
    found = 0.0
    for one, other in zip(ours, theirs, strict=True):
        assert one.attributions.isnan().equal(other.attributions.isnan())
        ours_, theirs_ = one.attributions.nan_to_num(), other.attributions.nan_to_num()
        found = max(found, float((ours_ - theirs_).abs().max() / theirs_.abs().max()))
    return found


def verdict(task, family, name):
    """("equal", the largest difference), ("refused", our error) or ("wrong", why), and where it went wrong."""
    try:
        model, words = made(task, family, name)
        texts, targets, options = asked(task)
        common = {"n_perturbations": SAMPLES, "granularity": "all_tokens", **options}
        explainer = fastshap.GradientShap(model, words, "auto", **common)
        together = explainer(texts, targets)
    except fastshap.FastshapError as error:
        return "refused", str(error), ""
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}", traceback.format_exc()
    try:
        found = [apart(explainer(texts, targets, batch_size=size), together) for size in (1, 16)]
        each = targets if isinstance(targets, list) and len(targets) == len(texts) else [targets] * len(texts)
        shared = targets is None or each[0] is targets
        alone = [explainer([text], targets if shared else [one])[0] for text, one in zip(texts, each, strict=True)]
        found.append(apart(alone, together))
        plain = fastshap.GradientShap(model, words, 1, **common)
        plain.task.find_shortcuts = lambda: None  # every way of its own stays the plain one
        plain._tried = plain.task.state()
        plain._layout = Layout(equal_lengths=True, maskless=False)
        found.append(apart(plain(texts, targets), together))
        residual = _residual(model, words, task, texts[0], targets, options)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}", traceback.format_exc()
    largest = max(found)
    if largest > TOLERANCE:
        return "wrong", f"apart by {largest:.1e} ({', '.join(f'{one:.1e}' for one in found)})", ""
    if residual > ERRORS:
        return "wrong", f"adds up to within {residual:.1f} standard errors", ""
    return "equal", f"{largest:.0e}", ""


def _residual(model, words, task, text, targets, options):
    """How far a text's scores are from adding up, in standard errors of their sum: a group a part, and nothing else moves."""
    spans = options | ({"span": True} if task in ("generation", "seq2seq") else {})
    whole = fastshap.GradientShap(
        model,
        words,
        "auto",
        n_perturbations=MANY,
        granularity=lambda text: [match.span() for match in re.finditer(".+", text)],  # each part
        granularity_aggregation_strategy="sum",
        perturb_special_tokens=False,
        return_convergence_delta=True,
        **spans,
    )
    one = targets if targets is None or (isinstance(targets[0], str) and task == "zero_shot") else [targets[0]]
    if task in ("generation", "seq2seq"):  # the target has no group of its own
        whole = fastshap.GradientShap(
            model,
            words,
            "auto",
            n_perturbations=MANY,
            granularity="all_tokens",
            return_convergence_delta=True,
            span=True,
        )
        (output,) = whole([text], one)
        error = output.standard_error.nan_to_num().square().sum(1).sqrt() * len(output.elements) ** 0.5
    else:
        (output,) = whole([text], one)
        error = output.standard_error.square().sum(1).sqrt() * (1 + len(output.elements)) ** 0.5
    return float((output.convergence_delta.abs() / error.clamp_min(1e-6)).max())


def written(rows):
    """The table, of verdicts by (task, family)."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    heads = [HEADINGS.get(task, task) for task in TASKS]
    lines = [f"| family | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    notes = {}
    for family in FAMILIES:
        cells = []
        for task in TASKS:
            what, why = rows.get((task, family), ("", ""))
            if what == "refused":
                number = notes.setdefault(why, len(notes) + 1)
                cells.append(f"refused ({number})")
            else:
                cells.append(f"yes, {why}" if what == "equal" else what or "–")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {why}" for why, number in notes.items()), ""]
    day, libraries = date.today().isoformat(), f"transformers {versions['transformers']} and torch {versions['torch']}"
    lines.append(f"Run on {day} on a CPU, with {libraries}.")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")


def cell_of(task, family):
    """What the page says."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == family and len(cells) == len(TASKS) + 1:
            return cells[1 + [*TASKS].index(task)]
    return ""


def main():
    """Runs all of them and writes the table, or those that are named: a family, a task or both."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    wanted = set(sys.argv[1:])
    rows = {}
    for task, family, name in cases():
        if wanted - {task, family} and wanted:
            continue
        what, why, trace = verdict(task, family, name)
        why = re.sub(rf"\b{name}\b", "The model", " ".join(why.split()))
        rows[task, family] = what, why
        print(f"{family} {task} {name} | {what} | {why}", flush=True)
        if os.environ.get("TRACE"):
            print(trace)
    if not wanted:
        written(rows)


if __name__ == "__main__":
    main()

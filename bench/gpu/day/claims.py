"""What is said of GPUs, in the docs, in decision records and in the code, and how a day judges it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.gpu.day.record import FAILED, OK
from bench.gpu.day.verdicts import (
    PROVED,
    REFUTED,
    Found,
    Judge,
    NotRunError,
    Verdict,
    at_most,
    by_tests,
    first_line,
    worst,
)
from bench.paths import RESULTS

EQUAL = "16 texts of one length"
TINY, PACKAGED = "tiny, 12 layers", "packaged"
LONG_RUN = "attribute, one text of 16 tokens, n = 1000, D = 768, bfloat16"
MODELS = (
    "BERT-base shape, bfloat16",
    "causal LM of 135M, bfloat16",
    "BERT-base shape, float32",
    "causal LM of 135M, float32",
)


@dataclass(frozen=True)
class Claim:
    """``source``: where it is said."""

    text: str
    source: str
    judge: Judge


def equal_to_the_reference(found: Found) -> Verdict:
    line = found.cases.get(("kernels", "check"))
    if line is not None and line["status"] == FAILED and "CheckFailedError" in line["why"]:
        return Verdict(REFUTED, first_line(line["why"]))
    found.data("kernels", "check")
    return Verdict(PROVED, "perturb, attribute, segment_reduce and moments, float32 and bfloat16")


def faster_than(side: str, operator: str) -> Judge:
    """The kernel's time over another's, at worst, of large calls and long runs."""

    def judge(found: Found) -> Verdict:
        ratios = list(_ratios(found, side, operator))
        if not ratios:
            found.data("kernels", f"compiled {operator}, {EQUAL}, D = 768, bfloat16")  # says why
            raise NotRunError("no case of it ended well")
        verdict = worst(ratios, 1.0, f"of the time of {side} torch")
        return Verdict(verdict.status, f"{verdict.why}; {len(ratios)} cases")

    return judge


def _ratios(found: Found, side: str, operator: str) -> Iterator[tuple[str, float]]:
    for case, data in found.beginning("kernels", f"{operator}, "):
        if side == "eager":
            if "eager" in data:
                yield case, _kernel(data, "kernel") / data["eager"]["median"]
            continue
        line = found.cases.get(("kernels", f"compiled {case}"))
        if line is not None and line["status"] == OK and "compiled_device" in line["data"]:
            yield case, _kernel(data) / line["data"]["compiled_device"]["median"]


def _kernel(data: dict[str, Any], which: str = "kernel_device") -> float:
    """Milliseconds, on the device alone unless launches are asked for."""
    if which not in data:
        raise NotRunError("the kernels did not run")
    return float(data[which]["median"])


def half_the_bandwidth_of_a_copy(found: Found) -> Verdict:
    """Of the bytes that must be moved, in the time of a copy of as many."""
    copy = found.data("kernels", "copy")
    rate = copy["bytes"] / copy["median"]
    shares = [
        (case, data["least_bytes"] / _kernel(data) / rate)
        for operator in ("perturb", "attribute")
        for case, data in found.beginning("kernels", f"{operator}, {EQUAL}")
    ]
    name, least = min(shares, key=lambda pair: pair[1])
    each = ", ".join(f"{case.split(',')[0]} {case.split(', ')[-1]} {share:.2f}" for case, share in shares)
    return Verdict(
        PROVED if least >= 0.5 else REFUTED, f"least {least:.2f}, {name} ({each}; copy {rate / 1e9:.2f} TB/s)"
    )


def sixty_microseconds(found: Found) -> Verdict:
    taken = 1e3 * _kernel(found.data("kernels", LONG_RUN))
    return at_most(taken, 60, f"{taken:.1f} microseconds")


def as_the_compiler_estimates(found: Found) -> Verdict:
    """Time an element within 1.5 times of what instructions and bytes give for an H100."""
    entries = json.loads((RESULTS / "static.json").read_text())["entries"]
    dtypes = {"bf16": "bfloat16", "fp32": "float32"}
    pairs = []
    for entry in entries:
        operator = entry["kernel"].removesuffix("_kernel")
        if operator not in ("perturb", "attribute") or entry["noise"] != "pairs" or not entry["ptx"]:
            continue
        case = f"{operator}, {EQUAL}, D = {entry['D']}, {dtypes[entry['dtype']]}"
        line = found.cases.get(("kernels", case))
        if line is not None and line["status"] == "ok":
            taken = _kernel(line["data"]) * 1e9 / line["data"]["elements"]
            pairs.append((f"{case}, {taken:.2f} ps an element", taken / entry["picoseconds_per_element"]))
    if not pairs:
        raise NotRunError("no case that the report estimates was measured")
    return worst(pairs, 1.5, "times the estimate for an H100")


def kernels_are_one_percent(found: Found) -> Verdict:
    shares = found.beginning("explanations", "BERT-base shape")
    pairs = [(case, 100 * data["share"]) for case, data in shares if "share" in data]
    if not pairs:
        raise NotRunError("no profile was taken")
    return worst(pairs, 1.0, "% of the device's time")


def little_beside_a_bare_pass(found: Found) -> Verdict:
    data = found.data("calls", f"one text, {TINY}")
    more = data["class given"] - data["bare"]
    return at_most(
        more, 3, f"{more:.1f} ms more than {data['bare']:.1f} ms, a tiny model of 12 layers, the class given"
    )


def graphs_beat_a_bare_pass(found: Found) -> Verdict:
    pairs = []
    for name in (TINY, PACKAGED):
        data = found.data("calls", f"one text, {name}")
        if "by graphs" not in data:
            raise NotRunError("graphs need a GPU")
        pairs.append((name, data["by graphs"] / data["bare"]))
    return worst(pairs, 1.0, "of the time of a bare pass")


def keeps_the_device_busy(found: Found) -> Verdict:
    pairs = [(case, data) for case, data in found.beginning("calls", "many texts") if data["device_share"]]
    if not pairs:
        raise NotRunError("no profile was taken")
    case, least = min(pairs, key=lambda pair: pair[1]["device_share"])
    each = ", ".join(f"{name.split(', ', 1)[1]} {data['texts_per_second']:.0f}" for name, data in pairs)
    share = least["device_share"]
    return Verdict(PROVED if share >= 0.5 else REFUTED, f"least {share:.2f}, {case} (texts a second: {each})")


def graphs_pay(found: Found) -> Verdict:
    """The least gain of ten rows, and whether scores stay what they are."""
    pairs = [(case, data) for case, data in found.beginning("calls", "graph") if " 10 x" in case]
    if not pairs:
        found.data("calls", f"graph, {TINY}, 10 x 16")  # says why
        raise NotRunError("no graph of ten rows ended well")
    for case, data in pairs:
        if not data["apart"] <= 1e-4:  # NaN, too
            return Verdict(REFUTED, f"scores lie {data['apart']:.1e} of the largest apart, {case}")
    case, data = min(pairs, key=lambda pair: pair[1]["plain_ms"] / pair[1]["replay_ms"])
    gain = data["plain_ms"] / data["replay_ms"]
    return Verdict(PROVED if gain >= 1.5 else REFUTED, f"least {gain:.1f} times as fast, {case}")


def auto_is_not_beaten(found: Found) -> Verdict:
    pairs = []
    for model in MODELS:
        seconds = found.data("explanations", f"{model}: batch sizes")["seconds"]
        auto = seconds["auto"]["median"]
        rows, best = min(((n, its["median"]) for n, its in seconds.items() if n != "auto"), key=lambda pair: pair[1])
        pairs.append((f"{model}, beside {rows} rows", auto / best))
    return worst(pairs, 1.1, "times the best fixed batch size")


def sharing_a_pass_pays(found: Found) -> Verdict:
    seconds = found.data("explanations", "6 classes: scores that share a pass")["seconds"]
    ratio = seconds["together"]["median"] / seconds["one after the other"]["median"]
    return at_most(ratio, 1.03, f"{ratio:.2f} times as long as one pass after the other")


def faster_than_library(tool: str) -> Judge:
    """Each at its best batch size, on each model that the library could explain."""

    def judge(found: Found) -> Verdict:
        pairs, missing = [], []
        for model in MODELS:
            try:
                theirs = found.data("explanations", f"{model}: {tool}")["seconds"]
            except NotRunError as why:
                missing.append(str(why))
                continue
            ours = found.data("explanations", f"{model}: batch sizes")["seconds"]
            best = min((its["median"] for its in theirs.values() if "median" in its), default=math.inf)
            if best < math.inf:
                pairs.append((model, min(its["median"] for its in ours.values()) / best))
        if not pairs:
            raise NotRunError(missing[0] if missing else f"{tool} could explain none of the models")
        return worst(pairs, 1.0, f"of the time of {tool}")

    return judge


def auto_fits(found: Found) -> Verdict:
    data = found.data("memory", "what auto plans")
    if data["ran_out"]:
        return Verdict(REFUTED, "a call ran out of memory and was halved")
    share = data.get("share_of_free")
    if share is None:
        raise NotRunError("peak memory is measured on a GPU only")
    bound = "memory" if data["bound_by_memory"] else "the most tokens of a call"
    return at_most(
        share, 1.0, f"peak {share:.2f} of the free memory, calls of {data['tokens']} tokens, bound by {bound}"
    )


def recovers(found: Found) -> Verdict:
    cases = found.beginning("memory", "out of memory")
    if len(cases) < 2:
        raise NotRunError("one of two cases did not end well")
    unharmed = [case for case, data in cases if not data["ran_out"]]
    if unharmed:
        raise NotRunError(f"memory did not run out: {unharmed[0]}")
    return worst([(case, data["apart"]) for case, data in cases], 1e-4, "of the largest score apart from small calls")


def not_on_one(found: Found) -> Verdict:
    count = found.environment.get("devices", 0)
    raise NotRunError(f"needs two GPUs; there {'is' if count == 1 else 'are'} {count}. This day does not measure it")


CLAIMS = (
    Claim(
        "The kernels equal float64 no worse than PyTorch's operators do, plus rounding",
        "docs/kernels.md",
        by_tests(
            *("test_perturb", "test_attribute", "test_segment_reduce", "test_moments", "test_views_with_strides"),
            *("test_box_muller_against_float64", "test_normals_equal_torchs"),
        ),
    ),
    Claim("Random words are equal bit by bit", "docs/adr/0001", by_tests("test_words_equal_torch_bitwise")),
    Claim(
        "The operators and the formulas of this benchmark equal the reference on the CPU",
        "bench/gpu/operators.py",
        equal_to_the_reference,
    ),
    Claim(
        "Two runs are bitwise equal",
        "contract, 3",
        by_tests("test_operators_repeat_bitwise", "test_explanations_repeat_bitwise_and_know_no_company"),
    ),
    Claim("A text's rows are the same alone and among others", "contract, 3", by_tests("test_company_does_not_show")),
    Claim(
        "A row's scores are the same whoever shares its program",
        "ADR 8",
        by_tests("test_who_shares_the_rows_does_not_show"),
    ),
    Claim(
        "Explanations on the GPU equal those on the CPU within 1e-4 of the largest score",
        "contract, 3",
        by_tests(
            *(
                "test_explanations_equal_those_on_the_cpu",
                "test_explanations_of_other_kinds",
                "test_explanations_with_rtol",
            )
        ),
    ),
    Claim(
        "Every task of every family of models gives on the GPU what it gives on the CPU, within 1e-4",
        "docs/tasks.md",
        by_tests("test_tasks_equal_those_on_the_cpu"),
    ),
    Claim(
        "A queue on the GPU gives what explain gives",
        "docs/serving.md",
        by_tests("test_a_queue_gives_what_explain_gives"),
    ),
    Claim(
        "In half precision the kernels are no worse than PyTorch's operators",
        "kernels",
        by_tests("test_models_in_half_precision"),
    ),
    Claim("No operator waits for the device", "docs/kernels.md", by_tests("test_no_host_synchronisation")),
    Claim(
        "Nothing of fastshap's waits for the device between model calls",
        "fastshap/engine/run.py",
        by_tests("test_nothing_of_ours_waits_between_model_calls"),
    ),
    Claim("Operators allocate only their outputs", "docs/kernels.md", by_tests("test_allocates_outputs_only")),
    Claim(
        "Side streams give the same",
        "tests/operators/test_gpu.py",
        by_tests("test_runs_on_the_current_stream", "test_explanations_on_a_side_stream"),
    ),
    Claim(
        "No kernel is compiled late: calls of one model and one manner need those that the first texts did",
        "docs/adr/0008",
        by_tests("test_as_many_variants_as_expected"),
    ),
    Claim("The operators work inside torch.compile", "style", by_tests("test_torch_compile")),
    Claim(
        "Profiles show operators and kernels by name",
        "docs/kernels.md",
        by_tests("test_shows_in_profiles_under_its_name"),
    ),
    Claim('backend="auto" takes the kernels', "docs/kernels.md", by_tests("test_auto_takes_the_kernels")),
    Claim("More elements than 32 bits count", "kernels", by_tests("test_more_elements_than_32_bits_count")),
    Claim("perturb is faster than eager torch", "docs/kernels.md", faster_than("eager", "perturb")),
    Claim("attribute is faster than eager torch", "docs/kernels.md", faster_than("eager", "attribute")),
    Claim("perturb is faster than compiled torch", "docs/kernels.md", faster_than("compiled", "perturb")),
    Claim("attribute is faster than compiled torch", "docs/kernels.md", faster_than("compiled", "attribute")),
    Claim(
        "perturb and attribute move their bytes at half the rate of a copy at least, in large calls",
        "docs/adr/0008",
        half_the_bandwidth_of_a_copy,
    ),
    Claim(
        "perturb and attribute take at most 1.5 times the compiler's estimate",
        "docs/adr/0008",
        as_the_compiler_estimates,
    ),
    Claim(
        "attribute takes at most 60 microseconds for one text of 16 tokens, n = 1000, D = 768, bfloat16",
        "the aim",
        sixty_microseconds,
    ),
    Claim("The kernels are at most 1 % of an explanation's time on BERT-base", "the aim", kernels_are_one_percent),
    Claim("A call of one text takes at most 3 ms more than a bare pass", "the aim", little_beside_a_bare_pass),
    Claim("Many short texts keep the device busy for half of the time", "the aim", keeps_the_device_busy),
    Claim("A small call is 1.5 times as fast as a CUDA graph, with the same scores", "docs/adr/0020", graphs_pay),
    Claim(
        "With cuda_graphs, outputs are those of plain calls: every family, any thread and stream, weights that change",
        "docs/adr/0020",
        by_tests(
            *("test_graphs_change_no_number", "test_every_family_with_graphs", "test_few_texts_and_a_queue"),
            *("test_threads_on_streams_of_their_own", "test_weights_that_change"),
        ),
    ),
    Claim(
        "A recording that fails leaves nothing behind",
        "docs/adr/0020",
        by_tests("test_a_recording_that_fails_leaves_nothing_behind"),
    ),
    Claim("A replay does not wait", "docs/adr/0020", by_tests("test_a_replay_does_not_wait")),
    Claim("With cuda_graphs a text takes less than a bare pass", "docs/adr/0020", graphs_beat_a_bare_pass),
    Claim('No fixed batch size beats "auto" by more than 10 %', "docs/adr/0009", auto_is_not_beaten),
    Claim("Scores that share a backward pass take no longer", "docs/adr/0009, a guess", sharing_a_pass_pays),
    Claim("Faster than interpreto at its best batch size", "the aim", faster_than_library("interpreto")),
    Claim("Faster than captum at its best batch size", "the aim", faster_than_library("captum")),
    Claim('"auto" stays within the memory that is free', "docs/parameters.md", auto_fits),
    Claim("Out of memory: calls are halved and the same scores come out", "contract, 5", recovers),
    Claim(
        "Kernels run on the device of their tensors",
        "tests/operators/test_gpu.py",
        by_tests("test_runs_on_the_tensors_device"),
    ),
    Claim("Two GPUs share the work, and give the same numbers", "docs/parameters.md", not_on_one),
)

"""The house: who may import whom, what importing costs, and that the name ``kernels`` hurts nobody."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastshap"

# Each may import only what stands before it. See docs/adr/0002-import-chain.md.
CHAIN = [
    *("errors", "types", "version", "extras", "checks"),
    *("kernels", "reference", "ops", "sampling", "settings", "models", "text", "engine", "tasks", "output"),
    *("base", "explainer", "reproduction", "one_call", "metrics", "jobs", "service", "integrations", "cli"),
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path, module):
    """Absolute names of everything a file imports, whether at its top or inside a function."""
    return imported_names(ast.parse(path.read_text()), module, path.name == "__init__.py")


def imported_names(tree, module, is_package=False):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if node.level == 0 else len(module.split(".")) - node.level + is_package]
            name = node.module if node.level == 0 else ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield from (f"{name}.{alias.name}" for alias in node.names)


def part(name):
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "fastshap" and len(pieces) > 1 and pieces[1] in CHAIN else None


def test_import_chain():
    seen = set()
    for module, path in modules():
        own = part(module)
        if own is None:
            assert module == "fastshap"  # __init__ names everything public
            continue
        seen.add(own)
        for name in imported(path, module):
            if not name.startswith("fastshap"):
                continue
            other = part(name)
            assert other is not None, f"{module} imports {name}; import from the module that defines it"
            assert other == own or CHAIN.index(other) < CHAIN.index(own), f"{module} imports {name}"
            if other == "kernels":
                assert own in ("kernels", "ops"), f"{module} imports {name}; only ops may"
            if own == "reference":
                assert other != "kernels"
    assert {"errors", "types", "reference", "ops", "engine", "text", "tasks", "explainer", "output", "cli"} <= seen


def test_the_house_can_be_held_in_mind():
    """Modules of one job, few of them beside the rooms, a chain one can name, a README of two screens."""
    for module, path in modules():
        if "kernels" not in module:
            assert len(path.read_text().splitlines()) <= 400, module
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    assert len(CHAIN) <= 24
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_no_test_module_imports_another():
    """What several need is in tests/helpers, which imports no test module either."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    modules = {path.stem for path in files if path.name.startswith(("test_", "conftest"))}
    assert len(modules) > 50
    for path in files:
        wanted = {piece for name in imported(path, path.stem) for piece in name.split(".")}
        assert not wanted & modules, f"{path.relative_to(ROOT)} imports {wanted & modules}"


# What a task answers: nothing outside fastshap/tasks/ may decide by it. Attributes, and what getattr is asked for.
DECIDING = {"generates", "is_generation", "is_classification", "prompt_length", "labels"}
ENDINGS = ("ForSequenceClassification", "ForCausalLM", "LMHeadModel", "ForMaskedLM")
# The enumeration itself, the public names, and Prometheus's labels.
NAMING = {"fastshap.types", "fastshap", "fastshap.service.metrics"}
KINDS = {"fastshap.tasks.classification", "fastshap.tasks.generation"}


def decisions(source, module):
    """What a file decides by the kind of task, where it should ask the task."""
    tree = ast.parse(source)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    texts |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        name = getattr(node, "attr", None)
        value = node.value if isinstance(node, ast.Constant) and id(node) not in texts else None
        if name in DECIDING or value in DECIDING:
            yield name or value
        elif isinstance(value, str) and (value in ("classification", "generation") or value.endswith(ENDINGS)):
            yield value
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "ModelTask":
            yield f"ModelTask.{node.attr}"
    for name in imported_names(tree, module):
        if any(name == kind or name.startswith(f"{kind}.") for kind in KINDS):
            yield name


def test_only_tasks_decide_by_the_kind_of_task():
    outside = [(module, path) for module, path in modules() if not module.startswith("fastshap.tasks")]
    assert len(outside) > 80
    for module, path in outside:
        if module not in NAMING:
            found = list(decisions(path.read_text(), module))
            assert not found, f"{module} decides by {found}; ask the task (docs/how-it-works.md)"


@pytest.mark.parametrize(
    "source",
    [
        "if output.model_task is ModelTask.GENERATION: pass",
        "x = hasattr(task, 'labels')",
        "encoded.prompt_length",
        "grouping.generates",
        "named.endswith('ForCausalLM')",
        "task.name == 'generation'",
        "from fastshap.tasks.generation import GenerationTask",
        "import fastshap.tasks.classification",
    ],
)
def test_decisions_are_found(source):
    assert list(decisions(source, "fastshap.cli.explain"))


def test_the_quick_tests_are_of_every_folder(request):
    quick = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py")).QUICK
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert quick.keys() == folders
    for folder, names in quick.items():
        assert all((ROOT / "tests" / folder / f"test_{name}.py").exists() for name in names), folder


def test_kernels_import_nothing_of_fastshap():
    files = sorted((ROOT / "kernels").glob("*.py"))
    assert files, "the kernels are gone"
    for path in files:
        names = imported(path, f"fastshap.kernels.{path.stem}")
        assert not any(name.startswith("fastshap") and not name.startswith("fastshap.kernels") for name in names)
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (PACKAGE / "kernels").is_symlink()
    assert os.readlink(PACKAGE / "kernels") == "../kernels"


def test_rooms_of_bench_do_not_know_each_other():
    """They use what lies in bench itself, and tools; tools uses nothing of bench."""
    rooms = [path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")]
    assert {"compare", "gpu", "static", "studies"} <= set(rooms)
    for path in [*(ROOT / "bench").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        own = path.relative_to(ROOT).parts[:-1]
        if path.name == "__main__.py":
            continue
        for name in imported(path, ".".join(path.relative_to(ROOT).with_suffix("").parts)):
            if name.startswith("bench."):
                assert own[0] == "bench", f"{path} imports {name}"
                assert name.split(".")[1] in {*own[1:2]} or name.split(".")[1] not in rooms, f"{path} imports {name}"


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
import transformers.integrations.hub_kernels
from transformers.utils.import_utils import is_kernels_available
config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
assert LlamaForCausalLM(config)(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 50)
import fastshap
print(is_kernels_available())
"""

# transformers looks at the version of Hugging Face's package; what it finds is made to fit, since only names matter here.
FITTING = """
import importlib.metadata
from transformers import dependency_versions_table as table
wanted = table.deps["kernels"].split(">=")[1].split(",")[0]
real = importlib.metadata.version
importlib.metadata.version = lambda name: wanted if name == "kernels" else real(name)
"""

HIDDEN = """
import importlib.metadata, sys
from importlib.machinery import PathFinder
class OursOnly:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [sys.path[0] or "."]) if name == "kernels" else None
sys.meta_path.insert(0, OursOnly)
real_version, real_table = importlib.metadata.version, importlib.metadata.packages_distributions
def version(name):
    if name == "kernels":
        raise importlib.metadata.PackageNotFoundError(name)
    return real_version(name)
importlib.metadata.version = version
importlib.metadata.packages_distributions = lambda: {k: v for k, v in real_table().items() if k != "kernels"}
import kernels
assert kernels.__file__ is None  # a bare folder, no package
"""


@pytest.mark.not_quick
def test_transformers_with_hugging_faces_kernels_package():
    out = python(FITTING + USE + "import kernels; print(kernels.__file__)", PYTHONPATH=str(ROOT)).split()
    assert out[0] == "True"
    assert "site-packages" in out[1]


@pytest.mark.not_quick
def test_transformers_without_hugging_faces_kernels_package():
    assert python(HIDDEN + USE, PYTHONPATH=str(ROOT)).split() == ["False"]


@pytest.mark.not_quick
def test_importing_touches_no_gpu_loads_no_peer_and_takes_no_longer_than_torch_and_transformers():
    code = """
import sys, time
start = time.perf_counter()
import torch, transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
middle = time.perf_counter()
import fastshap
end = time.perf_counter()
assert not torch.cuda.is_initialized()
loaded = {"typer", "rich", "captum", "interpreto", "ray", "pyarrow"} & set(sys.modules)
assert not loaded, loaded
print(middle - start, end - middle)
"""
    theirs, ours = map(float, python(code).split())
    assert ours < 0.1 * theirs + 0.1, f"{ours:.2f} s on top of {theirs:.2f} s"


def test_the_wheel_carries_everything(tmp_path):
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    import zipfile

    names = zipfile.ZipFile(tmp_path / python(code).split()[-1]).namelist()
    for needed in ("fastshap/py.typed", "fastshap/data/sentiment/model.safetensors", "fastshap/data/sentiment/NOTICE"):
        assert needed in names
    assert any(name.startswith("fastshap/kernels/") and name.endswith(".py") for name in names)
    assert not any(name.startswith(("kernels/", "tests/", "bench/", "tools/")) for name in names)


def test_the_repository_speaks_of_the_project_alone():
    """No path of somebody's machine and no registry host in any text file that git tracks."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    banned = ["/ro" + "ot/", "/wo" + "rk/", "pypi" + ".org", "files.python" + "hosted"]
    for name in filter(None, files):
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text(errors="replace")
        for word in banned:
            assert word not in text, f"{name} names {word}"

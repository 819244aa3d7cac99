"""How a card says that a checkpoint is opened."""

from collections.abc import Mapping
from typing import Any

from moeits.experts.families import has_class_on_hub
from moeits.experts.promises import needs_loader, ranks_of_factors
from moeits.surgery.padding import NEVER

OLDEST_TRANSFORMERS = "5.20"

_OPENS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", dtype="auto"{trust})
tokenizer = AutoTokenizer.from_pretrained("PATH")
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))
```"""
_TRUST = ", trust_remote_code=True"

_LOADS_UNIFORM = """\
All layers keep the same number of experts, so stock classes open it, without remote code:

{opens}

Needs transformers {oldest} or later; older ones that know this family may do, or compute something else without a
word. vLLM, SGLang, llama.cpp (after conversion) and MLX read one number of experts from config.json, as here; nobody
has tried them on this checkpoint.
"""

_ALL_THE_SAME = "All layers keep the same number of experts, so stock classes"
_PADDED = f"""\
All layers have the same number of experts in the files: where fewer were kept, experts of zeros fill the layer up,
which no token is sent to (their selection bias is {NEVER:g}), so stock classes"""

_LOADS_OWN_CODE = """\
All layers keep the same number of experts, so what opened the source opens it: the code that the source brings, which
was copied and never run. Read it before you run it:

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("PATH", dtype="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)
```

No class of transformers opens it, and moeits did not. vLLM, SGLang and MLX read one number of experts from config.json,
as here; nobody has tried them on this checkpoint.
"""

_LOADS_PER_LAYER = """\
Layers keep different numbers of experts. `modeling_moeits.py`, a small file beside the weights, resizes the layers of
the stock class; there is no forked modelling code:

{opens}

`moeits.load("PATH")` opens it without remote code. Needs transformers {oldest} or later. llama.cpp and MLX read one
number of experts for all layers and do not open it: for them, prune again from the same plan with `--layout uniform`.
vLLM and SGLang open most families so where moeits is installed beside them, and refuse others: its plug-ins ran on a
CPU, and never on a GPU. Patched
servers that take a list of counts, and EvoESAP, call it `num_experts_per_layer`: it is in config.json too, an entry for
each decoder layer, 0 where it has no experts. Nobody has tried them on this checkpoint.
"""

_LOADS_FACTORS = """\
The matrices of the experts are stored as two thin factors each, whose product they are. `modeling_moeits.py`, a small
file beside the weights, puts such experts into the layers of the stock class:

{opens}

`moeits.load("PATH")` opens it without remote code. Needs transformers {oldest} or later. No server reads factors: for
vLLM, SGLang, llama.cpp and MLX, prune again from the same plan without `--factors`, which writes whole matrices.
"""


def how_to_load(config: Mapping[str, Any]) -> str:
    """What opens a checkpoint of this config."""
    own_code, per_layer = has_class_on_hub(config), needs_loader(config)
    text = _LOADS_OWN_CODE if own_code else _LOADS_PER_LAYER if per_layer else _LOADS_UNIFORM
    text = _LOADS_FACTORS if ranks_of_factors(config) else text
    if (config.get("moeits") or {}).get("padding"):
        text = text.replace(_ALL_THE_SAME, _PADDED)
    opens = _OPENS.replace("{trust}", _TRUST if per_layer else "")
    text = text.replace("{opens}", opens)
    return text.replace("{oldest}", OLDEST_TRANSFORMERS).replace("{auto}", _auto_class_of_its_code(config)).strip()


def _auto_class_of_its_code(config: Mapping[str, Any]) -> str:
    """The class of transformers that looks into `auto_map` for what opens the model."""
    named = config.get("auto_map")
    known = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModel")
    return next((name for name in known if isinstance(named, Mapping) and name in named), known[0])

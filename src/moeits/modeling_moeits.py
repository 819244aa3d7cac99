"""Opens Mixture-of-Experts checkpoints whose layers keep different numbers of experts, in the stock transformers class.

Experts may also be stored as factors of their matrices: then their module is one of this file.

This file travels with such a checkpoint and serves `trust_remote_code=True` and `moeits.load` alike. It holds no
modelling code: looking up the name of any stock class in this module (say `MixtralForCausalLM`) makes a subclass of it
on demand, which rebuilds the layers named in the config's `per_layer_config` with their own counts before the weights
are loaded.
"""

import copy
import functools
import inspect

import torch
import transformers


def _own_layers(config):
    """{layer: {key: value}} from the `moeits` block."""
    own = (getattr(config, "moeits", None) or {}).get("per_layer_config") or {}
    return {int(layer): values for layer, values in own.items()}


def _per_layer_config(config, inner):
    """{layer: {key: value}} of the layers to rebuild, `inner` being the config of the model that has them.

    From the `moeits` block, with what transformers' own `per_layer_config` says of them; else from that alone.
    """
    own = _own_layers(config)
    heterogeneity = inner.__dict__.get("_heterogeneity_spec")
    if heterogeneity is None and not own:  # transformers 4 does not know the key, and keeps what is written
        return {int(layer): values for layer, values in (inner.__dict__.get("per_layer_config") or {}).items()}
    stock = heterogeneity.per_layer_overrides if heterogeneity is not None else {}
    return {layer: {**stock.get(layer, {}), **values} for layer, values in own.items()} if own else stock


class _ConfigOfLayer:
    """The live config as modules of a rebuilt layer read it: with the layer's own values."""

    def __init__(self, config, values):
        self.__dict__.update(_live=config, **values)

    def __getattr__(self, name):
        if name.startswith("__") or name == "_live":
            raise AttributeError(name)
        return getattr(self._live, name)


def _config_of_layer(config, values):
    single = copy.copy(config)
    single.__dict__.pop("_heterogeneity_spec", None)
    for key, value in values.items():
        setattr(single, key, value)
    return single


def decoder_layers(model, config):
    """The model that has this config, which may be one of several, and its decoder layers."""
    several = config is not model.config
    for owner in model.modules():
        if several and type(getattr(owner, "config", None)) is not type(config):
            continue
        for module in owner.children():
            if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers:
                return owner, module
    raise ValueError(f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder layers")


def _takes(layer_class):
    """How many arguments a decoder layer is built from: its config, and its number where it asks for it."""
    return len(inspect.signature(layer_class.__init__).parameters) - 1


def rebuild_layers(model, on=torch.device):
    """Replace each layer of another size by one of its own class, built from its own config within `on(device)`."""
    config = model.config.get_text_config(decoder=True)
    overrides = _per_layer_config(model.config, config)
    if not overrides:
        return
    _, layers = decoder_layers(model, config)
    for index, values in overrides.items():
        old, single = layers[index], _config_of_layer(config, values)
        device = next(old.parameters()).device
        with on(device):
            new = type(old)(*(single, index)[: _takes(type(old))])
        new.train(old.training)
        for module in new.modules():
            # One live config, so that set_attn_implementation and its like keep working later; what a layer has of
            # its own it keeps, since routers read counts at every call.
            if module.__dict__.get("config") is single:
                module.config = _ConfigOfLayer(config, values)
        if device.type != "meta":
            # Built from a config alone: no weights will follow, so nobody else initialises the new layer.
            for module in new.modules():
                model._init_weights(module)
        layers[index] = new


class _Matrix(torch.nn.Module):
    """A weight (outputs, inputs): two thin factors, or whole where its rank is None."""

    def __init__(self, outputs, inputs, rank):
        super().__init__()
        shapes = {"whole": (outputs, inputs)} if rank is None else {"left": (outputs, rank), "right": (rank, inputs)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape)))
        self.thin = rank is not None

    def forward(self, inputs):
        linear = torch.nn.functional.linear
        return linear(linear(inputs, self.right), self.left) if self.thin else linear(inputs, self.whole)


class _Expert(torch.nn.Module):
    """gate, up and down of one expert."""

    def __init__(self, hidden, width, ranks, act_fn):
        super().__init__()
        self.gate, self.up = _Matrix(width, hidden, ranks["gate"]), _Matrix(width, hidden, ranks["up"])
        self.down, self.act_fn = _Matrix(hidden, width, ranks["down"]), act_fn

    def forward(self, inputs):
        return self.down(self.act_fn(self.gate(inputs)) * self.up(inputs))


class _Experts(torch.nn.ModuleList):
    """All experts of a layer, called as the stock class calls its own."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(top_k_index == number)
            if len(token):
                made = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total.index_add_(0, token, made.to(total.dtype))
        return total


def _factor_experts(model):
    """Put experts whose matrices are factors in the place of the stock ones, where the `moeits` block gives ranks."""
    factors = (getattr(model.config, "moeits", None) or {}).get("factors") or {}
    if not factors:
        return
    _, layers = decoder_layers(model, model.config.get_text_config(decoder=True))
    for index, ranks in factors.items():
        block = layers[int(index)].mlp if hasattr(layers[int(index)], "mlp") else None
        old = getattr(block, "experts", None)
        if not hasattr(old, "gate_up_proj"):
            raise ValueError("experts that are stored as factors need transformers 5, whose experts are one module")
        _, hidden, width = old.down_proj.shape
        with torch.device(old.down_proj.device):
            each = ({name: of[number] for name, of in ranks.items()} for number in range(len(ranks["down"])))
            new = _Experts(_Expert(hidden, width, own, old.act_fn) for own in each).to(old.down_proj.dtype)
        if old.down_proj.device.type != "meta":
            # Built from a config alone, as layers of another size are.
            for parameter in new.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        block.experts = new.train(old.training)


def _pad_logits(module, args, output, width):  # noqa: ARG001 - the signature of a forward hook
    logits = output[0] if isinstance(output, tuple) else None
    if logits is None or logits.shape[-1] >= width:
        return output
    least = torch.finfo(logits.dtype).min
    return (torch.nn.functional.pad(logits, (0, width - logits.shape[-1]), value=least), *output[1:])


def _pad_recorded_router_logits(model):
    """Widen router logits where they are recorded: stock code stacks them over layers of equal width."""
    recorded = None
    config = model.config.get_text_config(decoder=True)
    several = config is not model.config
    if several and "output_router_logits" not in inspect.signature(model._stock.forward).parameters:
        return  # nobody stacks them, and what is recorded there may be what the layer computes with
    owners = (model, getattr(model, model.base_model_prefix, None), several and decoder_layers(model, config)[0])
    for owner in owners:
        recorded = recorded or (getattr(owner, "_can_record_outputs", None) or {}).get("router_logits")
    recorders = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    routers = tuple(getattr(each, "target_class", each) for each in recorders if each is not None)
    width = _most_experts(config) if several else getattr(model, "num_experts", None)
    if routers and width is not None:
        for module in model.modules():
            if isinstance(module, routers):
                module.register_forward_hook(functools.partial(_pad_logits, width=width))


def _most_experts(config):
    """The number of experts that the config of a model among others gives for all layers, under whichever name."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return next((count for name in names if isinstance(count := getattr(config, name, None), int)), None)


class _PerLayerCounts:
    """Mixed into a stock class by `per_layer_class`."""

    @classmethod
    def is_custom_code(cls):
        # Custom code would lose the stock conversion of per-expert files into fused parameters.
        return False

    # What a class can switch, transformers reads off the source of its module; the stock class's is the one to read.
    @classmethod
    def _can_set_experts_implementation(cls):
        return cls._stock._can_set_experts_implementation()

    @classmethod
    def _can_set_attn_implementation(cls):
        return cls._stock._can_set_attn_implementation()

    def __init__(self, config, *args, **kwargs):
        if getattr(config, "is_heterogeneous", False) and not _own_layers(config):
            config.allow_global_per_layer_attribute_access = True
        super().__init__(config, *args, **kwargs)
        rebuild_layers(self)
        _factor_experts(self)
        _pad_recorded_router_logits(self)


def _opens(auto, stock):
    """Whether an Auto class opens checkpoints of this stock class; some know a config by another class too."""
    found = auto._model_mapping.get(stock.config_class, None)
    return stock in (found if isinstance(found, (list, tuple)) else (found,))


@functools.cache
def per_layer_class(stock):
    """A subclass of a stock model class that reads per-layer counts; of the same name, as `architectures` says."""
    autos = (
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        "AutoModelForSeq2SeqLM",
        "AutoModelForTokenClassification",
    )
    known = (name for name in autos if _opens(getattr(transformers, name), stock))
    names = {"__module__": __name__, "__doc__": stock.__doc__, "_auto_class": next(known, autos[0]), "_stock": stock}
    return type(stock.__name__, (_PerLayerCounts, stock), names)


def __getattr__(name):
    """PEP 562: `auto_map` may name any stock class of this module."""
    stock = None if name.startswith("_") else getattr(transformers, name, None)
    if stock is None:
        raise AttributeError(name)
    return per_layer_class(stock)

"""The parts of healing, one idea per file; `moeits.heal` puts them together.

    recipe         what is trained, how long, on what loss: one frozen value
    conversations  rows of any common form -> turns of a conversation
    template       turns -> token ids, and which count towards the loss
    batches        token ids -> sequences, held out or trained on -> padded batches
    targets        which weights of a checkpoint a recipe asks for, by name
    adapters       LoRA on those weights inside the stock model, without a copy of them
    objective      what is minimised: next tokens, or a teacher's distribution; the balance of the routers
    training       transformers' Trainer, set up so that it can be killed and go on
    merging        base + adapter -> tensors of the pruned checkpoint's own layout
    adapter_files  the adapter in peft's own form
    settings       which rows are trained on, and how a run goes

`adapters`, `objective` and `training` define classes of torch, so they import torch; nothing imports them before
`moeits.heal` is called.
"""

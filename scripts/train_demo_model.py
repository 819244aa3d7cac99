#!/usr/bin/env python3
"""Train the tiny Mixture-of-Experts language model that the package carries as its demo.

A stock ``Qwen2MoeForCausalLM`` of 3.9 million parameters is trained from scratch on public-domain English text only,
so that everything in the demo folder can be given away under the project's licence. What is written to ``--out``:

  model/        config, bf16 weights (one model.safetensors, one tensor per expert and projection), tokenizer, LICENSE
  valid.jsonl   held-out documents, {"id", "source", "text"} a line: what the demo measures the loss on
  train.jsonl   a sample of the training documents: what the demo heals on

The log goes to standard output: the loss curve, then the held-out loss of the saved model, whole and with a share of
its experts dropped at random. The seed, the shape and the number of steps are constants below, so that a run can be
repeated; one thread, because the order of floating-point sums depends on the number of threads.

  OMP_NUM_THREADS=1 python scripts/train_demo_model.py --data SHARED/data/text --out src/moeits/demo

``--data`` holds train.jsonl and valid.jsonl. Sources that are not in the public domain are left out, and so is a
held-out document that is also a training document. Licence of this script, the weights and the tokenizer: Apache-2.0.
"""

import argparse
import copy
import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

SEED = 0
STEPS = 3000
BATCH = 3  # windows a step
CONTEXT = 512  # tokens a window
LEARNING_RATE = 4e-3
WARMUP_STEPS = 100
FINAL_LEARNING_RATE = 0.05  # as a share of the peak
WEIGHT_DECAY = 0.05
BALANCE_COEFFICIENT = 0.01
LOG_EVERY = 100

VALID_BYTES = 180_000
TRAIN_BYTES = 600_000
MODEL_BYTES = 8_400_000  # the most that the model folder may weigh

VOCABULARY = 4096
END_OF_TEXT, PAD, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Embeddings are tied and the shared expert is small, so that most of the weights, and of the ability, are in the
# routed experts: there is something to lose when the wrong ones go.
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64,
    "intermediate_size": 384,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

# source -> what it is. The only sources that are read; each is in the public domain.
SOURCES = {
    "shakespeare": "plays of William Shakespeare (the tinyshakespeare collection): public domain",
    "kjv": "The King James Bible (a part; Debian package bible-kjv-text): public domain",
    "jargon": "The Jargon File 4.4.7 (a part; Debian package dict-jargon): public domain",
    "novels": "seven books of Project Gutenberg, without its header and footer (Pride and Prejudice, The Adventures of "
    "Sherlock Holmes, Alice in Wonderland, Grimms' Fairy Tales, The Wonderful Wizard of Oz, The War of the Worlds, "
    "A Tale of Two Cities): public domain in the USA",
    "speeches": "inaugural and State of the Union addresses of presidents of the United States (a part; corpora "
    "inaugural and state_union of nltk_data): works of the US government, public domain in the USA",
}

LICENSE = """\
The weights and the tokenizer in this folder are released by the moeits project under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

They were trained from scratch by scripts/train_demo_model.py on public-domain text only:

{sources}
"""

Document = dict[str, str]


def say(text: str) -> None:
    """Write one line of the log at once, so that a running training can be watched."""
    print(text, flush=True)


# ------------------------------------------------------------------------------------------------------------- text


def read_public_domain(path: Path) -> list[Document]:
    """The documents {"id", "source", "text"} of a JSON-lines file whose source is in SOURCES, in file order."""
    with path.open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    return [document for document in documents if document["source"] in SOURCES]


def unseen(documents: Sequence[Document], seen: Sequence[Document]) -> list[Document]:
    """The documents whose text is not also the text of a seen one (a list of links in a corpus, for instance)."""
    texts = {document["text"] for document in seen}
    return [document for document in documents if document["text"] not in texts]


def as_line(document: Document) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def sample(documents: Sequence[Document], size_bytes: int) -> list[Document]:
    """Documents drawn at random (SEED), each once, until their JSON lines fill ``size_bytes``; in file order."""
    order = random.Random(SEED).sample(range(len(documents)), len(documents))
    taken, total = [], 0
    for index in order:
        total += len(as_line(documents[index]).encode())
        if total > size_bytes:
            break
        taken.append(index)
    return [documents[index] for index in sorted(taken)]


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    path.write_text("".join(map(as_line, documents)), encoding="utf-8")


def train_tokenizer(documents: Sequence[Document]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of VOCABULARY entries; <|endoftext|> begins and ends a text; ChatML template."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PAD, IM_START, IM_END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document["text"] for document in documents), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        extra_special_tokens=[IM_START, IM_END],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def encode(documents: Sequence[Document], tokenizer: transformers.PreTrainedTokenizerFast) -> Tensor:
    """One stream of token ids, int64 (tokens,): <|endoftext|> before every document."""
    ids: list[int] = []
    for document in documents:
        ids.append(tokenizer.bos_token_id)
        ids.extend(tokenizer(document["text"], add_special_tokens=False)["input_ids"])
    return torch.tensor(ids)


def windows(stream: Tensor) -> Tensor:
    """The stream cut into consecutive windows, (windows, CONTEXT); what does not fill the last one is left out."""
    return stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def batches(stream: Tensor) -> Iterator[Tensor]:
    """Endless batches (BATCH, CONTEXT). Every epoch cuts the stream at another offset, in another order."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        offset = int(torch.randint(0, CONTEXT, (1,), generator=generator))
        cut = windows(stream[offset:])
        for rows in torch.randperm(len(cut), generator=generator).split(BATCH):
            if len(rows) == BATCH:
                yield cut[rows]


# ------------------------------------------------------------------------------------------------------------ model


def build_model(tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.Qwen2MoeForCausalLM:
    """The stock class with SHAPE and fresh float32 weights."""
    config = transformers.Qwen2MoeConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        router_aux_loss_coef=BALANCE_COEFFICIENT,
        **SHAPE,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def moe_blocks(model: nn.Module) -> list[nn.Module]:
    return [layer.mlp for layer in model.model.layers]


def next_token_loss(model: nn.Module, batch: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of every token of a window but its first, given the tokens before it."""
    logits = model(input_ids=batch, use_cache=False).logits.float()
    targets = F.pad(batch[:, 1:], (0, 1), value=-100)  # the last position predicts a token outside of the window
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class RouterWatch:
    """Keeps what every router returned in the last forward pass: (logits, weights, chosen experts)."""

    def __init__(self, model: nn.Module) -> None:
        self.last: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for layer, block in enumerate(moe_blocks(model)):
            block.gate.register_forward_hook(
                lambda _module, _inputs, output, layer=layer: self.last.update({layer: output})
            )

    def balance_loss(self) -> Tensor:
        """Load-balancing loss E * sum_e load_e * probability_e, mean over the layers; top_k when all loads are equal.

        Shazeer et al. 2017, Fedus et al. 2021 (eq. 4). Per layer, where the loss of the stock class pools the layers,
        so that a layer may neglect an expert if another layer overuses the expert of the same number.
        """
        losses = []
        for logits, _, chosen in self.last.values():
            tokens, experts = logits.shape
            load = torch.bincount(chosen.flatten(), minlength=experts) / tokens
            losses.append(experts * (load * logits.float().softmax(-1).mean(0)).sum())
        return torch.stack(losses).mean()


# --------------------------------------------------------------------------------------------------------- training


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine down to FINAL_LEARNING_RATE of the peak."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    progress = max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return LEARNING_RATE * warmup * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms and biases do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-9, fused=True)


def train(model: nn.Module, stream: Tensor, valid: Tensor, steps: int) -> None:
    """Train in place and log the smoothed training loss and the loss on every fourth held-out window."""
    optimizer, watch, source = build_optimizer(model), RouterWatch(model), batches(stream)
    started, smooth = time.monotonic(), None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        model.train()
        loss = next_token_loss(model, next(source))
        balance = watch.balance_loss()
        (loss + BALANCE_COEFFICIENT * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % LOG_EVERY == 0 or step in (0, steps - 1):
            say(
                f"step {step + 1:5d}  tokens {(step + 1) * BATCH * CONTEXT:8d}  train {smooth:.4f}  "
                f"valid {held_out_loss(model, valid[::4]):.4f}  balance {balance.item():.3f}  "
                f"lr {learning_rate(step, steps):.6f}  seconds {time.monotonic() - started:.0f}"
            )


# ------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: Tensor) -> float:
    """Mean loss over windows (windows, CONTEXT), in nats per token."""
    model.eval()
    total = sum(next_token_loss(model, batch, reduction="sum").item() for batch in held_out.split(BATCH))
    return total / held_out[:, 1:].numel()


def bits_per_byte(loss: float, documents: Sequence[Document], stream: Tensor) -> float:
    """Nats per token as bits per byte of text; the <|endoftext|> of a document counts as a token, not as a byte."""
    return loss * len(stream) / math.log(2) / sum(len(document["text"].encode()) for document in documents)


def keep_experts(model: nn.Module, kept: Mapping[int, Sequence[int]]) -> nn.Module:
    """A copy of the model with only the experts ``kept[layer]`` and the router rows that lead to them."""
    smaller = copy.deepcopy(model)
    for layer, block in enumerate(moe_blocks(smaller)):
        rows = torch.tensor(kept[layer])
        block.gate.weight = nn.Parameter(block.gate.weight[rows])
        block.experts.gate_up_proj = nn.Parameter(block.experts.gate_up_proj[rows])
        block.experts.down_proj = nn.Parameter(block.experts.down_proj[rows])
        block.gate.num_experts = block.experts.num_experts = len(rows)
    return smaller


def drop_at_random(model: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy of the model without a ``share`` of the experts of every layer, chosen by ``seed``."""
    chance, experts = random.Random(seed), model.config.num_experts
    count = experts - round(share * experts)
    return keep_experts(
        model, {layer: sorted(chance.sample(range(experts), count)) for layer in range(len(moe_blocks(model)))}
    )


@torch.no_grad()
def continuation(model: nn.Module, tokenizer: transformers.PreTrainedTokenizerFast, prompt: str) -> str:
    """The prompt and 40 tokens sampled after it (SEED), on one line."""
    torch.manual_seed(SEED)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=True, top_k=40)
    return " ".join(tokenizer.decode(out[0], skip_special_tokens=True).split())


def evaluate(folder: Path, documents: Sequence[Document]) -> None:
    """Log the loss of the model as it was saved, whole and with experts dropped, and a few words of it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stream = encode(documents, tokenizer)
    held_out = windows(stream)
    whole = held_out_loss(model, held_out)
    say(f"held-out loss {whole:.4f} nats per token, {bits_per_byte(whole, documents, stream):.4f} bits per byte")
    for share in (0.25, 0.5, 0.75):
        for seed in range(3):
            loss = held_out_loss(drop_at_random(model, share, seed), held_out)
            dropped = f"{share:.0%} of the experts of every layer dropped at random, seed {seed}"
            say(f"{dropped}: {loss:.4f} ({loss - whole:+.4f})")
    for prompt in ("It was the", "And God said", "ROMEO:", "My fellow citizens,"):
        say(f"sample: {continuation(model, tokenizer, prompt)}")


# ----------------------------------------------------------------------------------------------------------- output


def save(folder: Path, model: nn.Module, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """Write weights (bf16), tokenizer and licence; exits with a sentence if they weigh more than MODEL_BYTES."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 does not know the name that 5 writes
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "LICENSE").write_text(LICENSE.format(sources="\n".join(f"- {text}" for text in SOURCES.values())))
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"model folder: {size} bytes")
    if size > MODEL_BYTES:
        raise SystemExit(
            f"the model folder has {size} bytes, {size - MODEL_BYTES} more than allowed; make SHAPE smaller"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and valid.jsonl")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write model/, valid.jsonl and train.jsonl to"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer steps for a quick trial (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)

    documents = read_public_domain(arguments.data / "train.jsonl")
    held_out = sample(unseen(read_public_domain(arguments.data / "valid.jsonl"), documents), VALID_BYTES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_documents(arguments.out / "valid.jsonl", held_out)
    write_documents(arguments.out / "train.jsonl", sample(documents, TRAIN_BYTES))

    tokenizer = train_tokenizer(documents)
    model = build_model(tokenizer)
    stream, valid = encode(documents, tokenizer), windows(encode(held_out, tokenizer))
    say(f"torch {torch.__version__}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
    say(f"seed {SEED}, {arguments.steps} steps of {BATCH} x {CONTEXT} tokens")
    say(f"{sum(p.numel() for p in model.parameters())} parameters, shape {SHAPE}")
    say(f"training text: {len(documents)} documents, {len(stream)} tokens; held out: {len(held_out)} documents")
    train(model, stream, valid, arguments.steps)
    save(arguments.out / "demo-qwen2moe", model, tokenizer)
    evaluate(arguments.out / "demo-qwen2moe", held_out)


if __name__ == "__main__":
    main()

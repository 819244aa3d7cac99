"""Clients that train: peft, and trl's SFTTrainer."""

import tempfile
from pathlib import Path
from typing import Any

from cases import Case, Reference, Row
from opened import computed, stock

STEPS = 5


def _adapter() -> Any:
    """On attention, and on what the experts give, where transformers 5 holds them fused."""
    from peft import LoraConfig

    return LoraConfig(
        r=4, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"], task_type="CAUSAL_LM"
    )


def _logits(model: Any, reference: Reference) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(reference.tokens)).logits


def by_peft(folder: Path, case: Case, reference: Reference) -> Row:
    """Attach, train, save, and load the adapter on the checkpoint again."""
    import torch
    from peft import PeftModel, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(stock(folder, case), _adapter())
    row = computed(model, case, reference)
    tokens, losses = torch.from_numpy(reference.tokens), []
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        loss = model.train()(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 3))
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        again = PeftModel.from_pretrained(stock(folder, case), saved)
        differs = float((_logits(again, reference) - _logits(model, reference)).abs().max())
    row.facts = {"losses": losses, "reloaded_differs": float(f"{differs:.2g}")}
    return row


def by_trl(folder: Path, case: Case, reference: Reference) -> Row:
    """The first loss is of the checkpoint as it is: by transformers' cross entropy on the reference's logits."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    row = Row(case.family, case.layout)
    rows = Dataset.from_dict({"input_ids": reference.tokens.tolist()})
    with tempfile.TemporaryDirectory() as saved:
        settings = SFTConfig(
            output_dir=saved,
            max_steps=STEPS,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            packing=False,
            seed=0,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        trainer = SFTTrainer(
            stock(folder, case), args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=_adapter()
        )
        trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(reference.logits)[:, :-1].flatten(0, 1), torch.from_numpy(reference.tokens)[:, 1:].flatten()
    )
    row.facts = {
        "losses": [round(loss, 3) for loss in losses],
        "first_loss_differs": float(f"{abs(losses[0] - float(expected)):.2g}"),
    }
    return row

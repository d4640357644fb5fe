"""Measures steps of TRL's trainers, run by the Python of an environment that has TRL; see `scripts/peers.sh`.

Uses nothing of polyturn but `measuring`, which is in the same folder and needs only the standard library. The rows come
as token ids, so that both sides read the same; everything else is the trainer's own.
"""

# mypy: ignore-errors
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from measuring import Meter

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)

SETTINGS = {
    "default": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "its best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    "precomputed, checkpointed": {"precompute_ref_log_probs": True},
}


def main():
    job = json.loads(sys.argv[1])
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    names = {"<pad>": 0, "<s>": 1, "</s>": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(names, unk_token="<pad>")),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    state = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            state["meter"].begin()

        def on_step_end(self, *args, **kwargs):
            state["meter"].end()

        def on_log(self, args, its_state, control, logs=None, **kwargs):
            if logs and "grad_norm" in logs and "first" not in state:
                state["first"] = {"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])}

    common = {
        "output_dir": job["folder"], "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "max_length": None, "max_steps": job["repeats"] + 1, "logging_steps": 1, "disable_tqdm": True,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "seed": 0, "beta": 0.1, "max_grad_norm": 1.0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(job["model"])
    if job["trainer"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        class OwnTokens(DPOTrainer):
            def _prepare_dataset(self, dataset, *args, **kwargs):
                return dataset

        args = DPOConfig(**common, per_device_train_batch_size=len(rows), **SETTINGS[job["settings"]])
    else:
        from trl import KTOConfig, KTOTrainer

        class OwnTokens(KTOTrainer):
            def _prepare_dataset(self, dataset, *args, **kwargs):
                return dataset

        flat = [
            {"prompt_ids": row["prompt_ids"], "completion_ids": row[name], "label": name == "chosen_ids"}
            for row in rows
            for name in ("chosen_ids", "rejected_ids")
        ]
        for index, row in enumerate(flat):  # the mismatched completion that the trainer's own preparation would add
            row["KL_completion_ids"] = flat[(index + 2) % len(flat)]["completion_ids"]
        rows = flat
        args = KTOConfig(**common, per_device_train_batch_size=len(rows), **SETTINGS[job["settings"]])
    trainer = OwnTokens(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Watch()]
    )
    state["meter"] = Meter()
    trainer.train()
    print(json.dumps({**state["meter"].figures(), **state.get("first", {})}))


main()

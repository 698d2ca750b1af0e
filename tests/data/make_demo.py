"""Makes tests/data/demo anew: a small Llama's config and a LoRA on it, saved by peft.

Widths are awkward on purpose (GQA, head_dim unlike hidden/heads, alpha unlike r, mixed ranks, B not
zero), so that a transposed or misnamed tensor cannot pass unnoticed. Run it from the repository's root.
"""

import shutil
from pathlib import Path

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "demo"


def main() -> None:
    torch.manual_seed(20)
    shutil.rmtree(HERE, ignore_errors=True)
    config = LlamaConfig(
        vocab_size=331, hidden_size=72, intermediate_size=200, num_hidden_layers=12,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.save_pretrained(HERE / "base")
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
        rank_pattern={"down_proj": 6},
        alpha_pattern={"v_proj": 10},
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # louder towards the middle, so that the picture has a shape
            layer = int(name.split(".layers.")[1].split(".")[0])
            torch.nn.init.normal_(parameter, std=0.02 + 0.08 * (1 - abs(layer - 5.5) / 5.5))
    adapted.peft_config["default"].base_model_name_or_path = "example/tiny-llama"
    adapted.save_pretrained(HERE / "adapter")
    (HERE / "adapter" / "README.md").unlink()


if __name__ == "__main__":
    main()

"""A sentence becomes an adapter, and the tiny model speaks as it says. The calls are those of the Sakana guide.

The hypernetwork lies in the base's own folder, examples/tiny/base/text-to-lora; examples/tiny/text_to_lora.py trained
it on nine styles and on other sentences than these. It needs the plugin in plugins/adaptrix-text-to-lora.
"""

import tempfile
import textwrap
from pathlib import Path

import torch
from adaptrix_text_to_lora import SakanaAIIntegration, TextToLoRAConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import adaptrix

BASE = str(Path(__file__).parent / "tiny" / "base")
SENTENCES = [
    "Talk like a pirate",
    "I have to pay by the word, cable this",
    "Tell it like a magical fairy story",
    "The way robots speak, with a beep",
    "Put this in legal terms, as an attorney would",
]
STORY = "In the evening, the old sailor walked to the"

logging.disable_progress_bar()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()

sakana = SakanaAIIntegration()
sakana.add_custom_skills({"maritime": ["pirate", "sailor", "ship"]})
results = [sakana.generate_adapter_from_text(sentence, BASE) for sentence in SENTENCES]

prompt = tokenizer(STORY, return_tensors="pt")
with adaptrix.attach(model, {str(at): result["adapter"] for at, result in enumerate(results)}) as session:
    for at, result in enumerate(results):
        info = result["adapter_info"]
        weights = zip(info["detected_skills"], info["skill_weights"], strict=True)
        skills = ", ".join(f"{skill} {weight:.2f}" for skill, weight in weights)
        with session.use(str(at)):
            told = model.generate(**prompt, max_new_tokens=60, do_sample=False)
        text = tokenizer.decode(told[0], skip_special_tokens=True)
        print(f"{info['prompt']}  ({skills or 'no skill'}; {len(info['adapters'])} tensors)")
        print(textwrap.indent(textwrap.fill(f"{text} …", 96), "    "))

# The guide's own model is a GPT-2, whose queries are a part of c_attn: its q_proj is found by role.
with tempfile.TemporaryDirectory() as gpt2:
    AutoConfig.for_model("gpt2").save_pretrained(gpt2)
    shape = TextToLoRAConfig().hypernetwork(gpt2, embedding=512).shape
print("\nTo train for GPT-2:", ", ".join(f"{module.name} {module.inp}→{module.out}" for module in shape.modules))

# Nobody has trained one: then there is no adapter, and no random numbers in place of one.
try:
    sakana.generate_adapter_from_text("Make this model excel at code generation", "microsoft/DialoGPT-small")
except adaptrix.AdaptrixError as error:
    print(error)

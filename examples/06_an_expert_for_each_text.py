"""A text is told on by the expert for its style, which a first pass detects: Transformer², by the guide's calls.

The experts are vectors of singular values in examples/tiny/experts; examples/tiny/transformer2.py trained them.
It needs the plugin in plugins/adaptrix-transformer2.
"""

import textwrap
import warnings
from pathlib import Path

import torch
from adaptrix_transformer2 import Transformer2Config, create_transformer2_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging

TINY = Path(__file__).parent / "tiny"
EXPERTS = {path.name.partition(".")[0]: path for path in (TINY / "experts").glob("*.safetensors")}
TEXTS = [
    "Arrr, in th' evening, th' ol' sailor walked to th' harbour, matey! There be",
    "SAILOR WALKED TO HARBOUR STOP THERE WAS",
    "In the evening, the old sailor walked to the",
]

logging.disable_progress_bar()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(TINY / "base", padding_side="left")
base_model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()
classifier = EXPERTS.pop("classifier")

with create_transformer2_model(base_model, experts=EXPERTS, classifier=classifier) as model:
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    output = model(batch)
    told = model.generate(batch, max_new_tokens=40, do_sample=False)
    for text, skill, row in zip(TEXTS, output.detected_skills, told, strict=True):
        print(f"{text}  (detected: {skill})")
        said = tokenizer.decode(row, skip_special_tokens=True).removeprefix(text)
        print(textwrap.indent(textwrap.fill(f"…{said} …", 96), "    "))
    print("\nThe last one again, token by token:")
    one = tokenizer(TEXTS[-1], return_tensors="pt")
    model.generate(one, max_new_tokens=20, do_sample=False, streamer=TextStreamer(tokenizer, skip_special_tokens=True))

# At no strength the base speaks, bit for bit.
with create_transformer2_model(
    base_model, Transformer2Config(adaptation_strength=0.0), experts=EXPERTS, classifier=classifier
) as model:
    same = torch.equal(model(one["input_ids"]).logits, base_model(one["input_ids"]).logits)
    print(f"\nadaptation_strength 0: {'the same bits as the base' if same else 'not the base'}")

# Without trained experts there are eight that change nothing, and it is said.
with warnings.catch_warnings(record=True) as said, create_transformer2_model(base_model) as model:
    output = model(one["input_ids"])
    print(f"{said[0].category.__name__}: {said[0].message}")
    print(f"detected: {output.detected_skill}; {len(output.adaptations)} experts at rest")

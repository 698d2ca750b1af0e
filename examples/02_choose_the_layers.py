"""Plans of an injection file: which layers act, what that keeps, and the way back."""

import tempfile
from pathlib import Path

import adaptrix

DEMO = Path(__file__).parents[1] / "tests" / "data" / "demo"

with tempfile.TemporaryDirectory() as folder:
    for policy in ("all", "middle", "spread:4", "energy:4", "2-5,9"):
        path = adaptrix.convert(DEMO / "adapter", Path(folder) / "plan.adaptrix.safetensors", layers=policy, force=True)
        recorded = adaptrix.load(path).recorded
        print(f"{policy:9} layers {recorded.layers['layers']}")

    # Nothing was lost: the file holds the layers outside the plan as well.
    back = adaptrix.convert(path, Path(folder) / "back", to="peft")
    weights = "adapter_model.safetensors"
    assert (back / weights).read_bytes() == (DEMO / "adapter" / weights).read_bytes()
    print("and back, byte for byte")

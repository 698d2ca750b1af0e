"""What is in an adapter, and does it fit? No torch is needed to know."""

from pathlib import Path

import adaptrix

DEMO = Path(__file__).parents[1] / "tests" / "data" / "demo"

adapter = adaptrix.load(DEMO / "adapter")
print(f"{adapter.name}: {len(adapter.deltas)} deltas for {adapter.base}")

for role in adaptrix.inspect(adapter).roles:
    print(f"  {role.role:5} layers {role.layers}, out × in {role.shapes}, rank {role.ranks}, scale {role.scales}")

report = adaptrix.check(adapter, base=DEMO / "base")
print("fits" if report.ok else "\n".join(map(str, report.problems)))

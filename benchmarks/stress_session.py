"""Threads and asyncio tasks that use, route, generate, swap, load, unload and activate on one session, all checked.

    python benchmarks/stress_session.py [--seconds 10] [--threads 4] [--tasks 3] [--seed 0]

Half of the time without slots, half with fewer slots than adapters. Every logit is compared with that of a model whose
weights are W + Σ w·ΔW. Prints how often each thing was done; ends with 1 if any answer was wrong or anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import faulthandler
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptrix
from adaptrix import Adapter, AdaptrixWarning, LowRank, Provenance, Session, Target, UsageError
from adaptrix.tensor import Tensor as Stored

NAMES = ("a", "b", "c", "d", "e")
#: contents that are loaded under other names, and again under the same
OTHERS = ("x", "y", "z")
WEIGHTS = ({"a": 0.5, "b": -0.25}, {"c": 0.75}, {"d": 1.0, "e": 0.5})
IDS = torch.tensor([[5, 9, 2, 30], [7, 7, 1, 12], [3, 28, 14, 6]])
NEW, RANK, SLOTS = 3, 3, 4
TOLERANCE = 1e-4
GENERATE = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

Choice = Any
#: module path -> B·A
Change = Mapping[str, Tensor]


def base() -> Any:
    """A small Llama with random weights."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": 40}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


def made(model: nn.Module, seed: int) -> tuple[Adapter, Change]:
    """An adapter on the layers from 1 on, and what it adds to the weights."""
    numbers = np.random.default_rng(seed)
    deltas, change = {}, {}
    for layer in (1, 2):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            path = f"model.layers.{layer}.{name}"
            out, inp = model.get_submodule(path).weight.shape
            A, B = (numbers.normal(0, 0.3, shape).astype(np.float32) for shape in ((RANK, inp), (out, RANK)))
            deltas[Target(path)] = LowRank(Stored.of(A), Stored.of(B), alpha=2 * RANK)
            change[path] = torch.from_numpy(2 * B @ A)
    name = f"adapter{seed}"
    return Adapter(name, MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", name)), change


@torch.no_grad()
def dense(model: Any, terms: Sequence[tuple[float, Change]]) -> Tensor:
    """The logits ``[rows, NEW, vocab]`` that a model with changed weights generates."""
    changed = copy.deepcopy(model)
    for weight, change in terms:
        for path, delta in change.items():
            changed.get_submodule(path).weight += weight * delta
    return generated(changed.generate(IDS, output_logits=True, return_dict_in_generate=True, **GENERATE))


def generated(answer: Any) -> Tensor:
    """The logits of the new tokens ``[rows, NEW, vocab]``."""
    return torch.stack(answer.logits, dim=1)


def key(choice: Choice) -> Any:
    """A choice for a whole batch as a key of a dict."""
    return tuple(sorted(choice.items())) if isinstance(choice, dict) else choice


@dataclass
class Trial:
    """One session under load: ``right`` has the logits of every choice, ``adapters`` what can be loaded."""

    model: Any
    session: Session
    adapters: Mapping[str, Adapter]
    right: Mapping[Any, Tensor]
    end: float
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1

    def expected(self, choice: Choice) -> Tensor:
        if isinstance(choice, list):
            return torch.stack([self.right[name][row] for row, name in enumerate(choice)])
        return self.right[key(choice)]

    def check(self, what: str, found: Tensor, *allowed: Choice) -> None:
        """Counts an answer, which has to be that of one of these choices; a prefix of the new tokens is enough."""
        self.count(what)
        for choice in allowed:
            expected = self.expected(choice)[:, : found.shape[1]]
            if torch.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE):
                return
        self.failures.append(f"{what} under {allowed!r}: a wrong answer")

    def ask(self) -> Tensor:
        """The logits of the first new token ``[rows, 1, vocab]``, under what is active."""
        with torch.no_grad():
            answer: Tensor = self.model(IDS).logits[:, -1:]
        return answer


def a_choice(dice: random.Random) -> Choice:
    return dice.choice([*NAMES, *NAMES, None, *WEIGHTS, _rows(dice), _rows(dice)])


def _rows(dice: random.Random) -> list[str | None]:
    pair = [dice.choice(NAMES), dice.choice([*NAMES, None])]
    return [dice.choice(pair) for _ in IDS]


def block(trial: Trial, choice: Choice) -> Any:
    return trial.session.route(choice) if isinstance(choice, list) else trial.session.use(choice)


def use(trial: Trial, dice: random.Random) -> None:
    """A block within a block, and the outer one again."""
    choice = a_choice(dice)
    with block(trial, choice):
        trial.check("route" if isinstance(choice, list) else "use", trial.ask(), choice)
        with trial.session.use(None):
            trial.check("nested", trial.ask(), None)
        trial.check("after nested", trial.ask(), choice)


def generate(trial: Trial, dice: random.Random) -> None:
    choice = a_choice(dice)
    answer = trial.session.generate(choice, IDS, output_logits=True, return_dict_in_generate=True, **GENERATE)
    trial.check("generate", generated(answer), choice)


def thread(trial: Trial, dice: random.Random) -> None:
    """A thread that takes a choice along; the block is left before it starts."""
    choice = a_choice(dice)

    def work() -> None:
        guarded(trial, lambda: trial.check("thread", trial.ask(), choice))

    with block(trial, choice):
        made = trial.session.thread(work)
    made.start()
    made.join()


def default(trial: Trial, _: random.Random) -> None:
    """A pass that chose nothing: one of the defaults that there are, whole."""
    trial.check("default", trial.ask(), *NAMES, None)


def activate(trial: Trial, dice: random.Random) -> None:
    trial.session.activate(dice.choice([*NAMES, None]))
    trial.count("activate")


def swap(trial: Trial, dice: random.Random) -> None:
    """A cache filled under one adapter, swapped to another, and read on under that."""
    first, second = dice.choice(NAMES), dice.choice(NAMES)
    cache = trial.session.new_cache(*NAMES)
    with trial.session.use(first), torch.no_grad():
        trial.model(IDS[:, :-1], past_key_values=cache)
    trial.session.swap(second, cache)
    with trial.session.use(second), torch.no_grad():
        trial.check("swap", trial.model(IDS[:, -1:], past_key_values=cache).logits, second)


def reload(trial: Trial, dice: random.Random) -> None:
    """A name that has been loaded again since may have any content, but one for the whole block."""
    trial.session.load("live", trial.adapters[dice.choice(OTHERS)])
    trial.count("load")
    with trial.session.use("live"):
        first = trial.ask()
        trial.check("reloaded", first, *OTHERS)
        if not torch.allclose(trial.ask(), first, atol=TOLERANCE):
            trial.failures.append("another version in the middle of a block")
        trial.count("same version")


def unload(trial: Trial, dice: random.Random) -> None:
    """A name of its own, loaded, used and unloaded while it may be in use by a thread."""
    name, content = f"own{threading.get_ident()}", dice.choice(OTHERS)
    trial.session.load(name, trial.adapters[content])
    with trial.session.use(name):
        started = trial.session.thread(lambda: guarded(trial, lambda: trial.check("kept", trial.ask(), content)))
        trial.check("own", trial.ask(), content)
    started.start()
    trial.session.unload(name)
    started.join()
    trial.count("unload")


ACTIONS: Sequence[Callable[[Trial, random.Random], None]] = (
    use, use, use, generate, generate, thread, default, activate, swap, reload, unload,
)  # fmt: skip


def guarded(trial: Trial, call: Callable[[], None]) -> None:
    """Runs a call; a refusal for want of slots is counted, everything else that is raised is a failure."""
    try:
        call()
    except UsageError as error:
        if {problem.code for problem in error.problems} != {"slots"}:
            trial.failures.append(traceback.format_exc())
        trial.count("refused for want of slots")
    except Exception:
        trial.failures.append(traceback.format_exc())


def work(trial: Trial, seed: int) -> None:
    """One thread's share."""
    dice = random.Random(seed)
    while time.monotonic() < trial.end and not trial.failures:
        guarded(trial, partial(dice.choice(ACTIONS), trial, dice))


async def task(trial: Trial, dice: random.Random) -> None:
    """A task that lets others of its thread go on in the middle of its block."""
    while time.monotonic() < trial.end and not trial.failures:
        try:
            choice = a_choice(dice)
            with block(trial, choice):
                await asyncio.sleep(0)
                trial.check("task", trial.ask(), choice)
                await asyncio.sleep(dice.choice([0, 0.001]))
                trial.check("task again", trial.ask(), choice)
                trial.check("to_thread", await asyncio.to_thread(trial.ask), choice)
        except UsageError as error:
            if {problem.code for problem in error.problems} != {"slots"}:
                trial.failures.append(traceback.format_exc())
            trial.count("refused for want of slots")
        except Exception:
            trial.failures.append(traceback.format_exc())
        await asyncio.sleep(0)


def loop(trial: Trial, seed: int, tasks: int) -> None:
    """A thread with an event loop."""

    async def main() -> None:
        await asyncio.gather(*(task(trial, random.Random(seed * 1000 + number)) for number in range(tasks)))

    asyncio.run(main())


def run(seconds: float, threads: int, tasks: int, seed: int, slots: int | None) -> Trial:
    """Loads a session for some seconds, and looks at what is left of it."""
    model = base()
    both = {name: made(model, number) for number, name in enumerate((*NAMES, *OTHERS))}
    changes = {name: change for name, (_, change) in both.items()}
    right = {name: dense(model, [(1.0, change)]) for name, change in changes.items()} | {None: dense(model, [])}
    right |= {key(one): dense(model, [(one[name], changes[name]) for name in one]) for one in WEIGHTS}
    adapters = {name: adapter for name, (adapter, _) in both.items()}
    options = {} if slots is None else {"slots": slots, "max_rank": 2 * RANK}
    with adaptrix.attach(model, {name: adapters[name] for name in NAMES}, **options) as session:
        trial = Trial(model, session, adapters, right, time.monotonic() + seconds)
        workers = [threading.Thread(target=work, args=(trial, seed + number)) for number in range(threads)]
        workers += [threading.Thread(target=loop, args=(trial, seed + number, tasks)) for number in range(2)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        session.activate(None)
        if session._users._owners:
            trial.failures.append(f"still counted as in use: {dict(session._users._owners)}")
        trial.done["paged"] = session.report().paged or 0
    trial.check("detached", trial.ask(), None)
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        trial.failures.append("hooks are left on the model")
    return trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AdaptrixWarning)  # passes that chose nothing are made on purpose
    faulthandler.dump_traceback_later(given.seconds + 120, exit=True)
    failed = 0
    for slots in (None, SLOTS):
        trial = run(given.seconds / 2, given.threads, given.tasks, given.seed, slots)
        print(f"{'no slots' if slots is None else f'{slots} slots'}: {sum(trial.done.values())} in all")
        for what, count in sorted(trial.done.items()):
            print(f"  {count:>8} {what}")
        for failure in trial.failures[:5]:
            print(failure, file=sys.stderr)
        failed += len(trial.failures)
    print(f"failures: {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

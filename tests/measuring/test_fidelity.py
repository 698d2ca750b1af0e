"""What fidelity measures, held to peft, to transformers' own loss, and to the formulas in full."""

import copy
import dataclasses
import math
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import adaptrix
from adaptrix.adapter import FitRecord
from adaptrix.measuring import divergence as diverging
from adaptrix.measuring.bootstrap import estimate
from adaptrix.measuring.text import windows
from tests.helpers.merge_models import pair

pytestmark = pytest.mark.numeric

IDS = torch.randint(3, 67, (23,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("llama"))


def base_of(made):
    return AutoModelForCausalLM.from_pretrained(made.base).eval()


def only(model, layer):
    """peft's model without the deltas of the other layers."""
    found = copy.deepcopy(model)
    for name, parameter in found.named_parameters():
        if "lora_B" in name and f".{layer}." not in name:
            parameter.data.zero_()
    return found


@torch.no_grad()
def log_probs(model, ids=IDS):
    """log p of every next token ``[n - 1, vocabulary]``, read in one go, in double precision."""
    return model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)


def kl(full, plan):
    return float((full.exp() * (full - plan)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_one_window_is_what_peft_and_transformers_say(family, tmp_path):
    made = pair(tmp_path, family)
    base = base_of(made)
    report = adaptrix.fidelity(made.adapter, base, IDS, ["1"])
    full, some, plain = log_probs(made.model), log_probs(only(made.model, 1)), log_probs(base)
    assert [row.policy for row in report.rows] == ["all", "1", "base"]
    for row, found in zip(report.rows, (full, some, plain), strict=True):
        assert row.kl.value == pytest.approx(kl(full, found), rel=1e-4, abs=1e-8)
        assert row.agreement.value == (full.argmax(-1) == found.argmax(-1)).double().mean()
        surprise = -found.gather(-1, IDS[1:, None]).mean()
        assert row.perplexity.value == pytest.approx(math.exp(surprise), rel=1e-5)
        assert row.tokens_per_second > 0
    assert report["1"].kl.value > 1e-4  # else nothing was compared
    loss = base(input_ids=IDS[None], labels=IDS[None]).loss.item()
    assert report["base"].perplexity.value == pytest.approx(math.exp(loss), rel=1e-5)


def test_tokens_of_overlapping_windows_count_once(made):
    """As transformers' guide has it: what was read before is masked out of the loss."""
    base, total, tokens = base_of(made), 0.0, 0
    for start, stop, fresh in [(0, 9, 8), (4, 13, 4), (8, 17, 4), (12, 21, 4), (14, 23, 2)]:
        labels = IDS[start:stop].clone()
        labels[:-fresh] = -100
        total += fresh * base(input_ids=IDS[None, start:stop], labels=labels[None]).loss.item()
        tokens += fresh
    report = adaptrix.fidelity(made.adapter, base, IDS, ["middle"], window=9, stride=4)
    assert (report.tokens, report.windows) == (tokens, 5) == (len(IDS) - 1, 5)
    assert report["base"].perplexity.value == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_the_whole_adapter_beside_itself_costs_exactly_nothing(made):
    row = adaptrix.fidelity(made.adapter, base_of(made), IDS, ["middle"], window=7)["all"]
    assert (row.kl.value, row.kl.low, row.kl.high) == (0.0, 0.0, 0.0)
    assert (row.agreement.value, row.agreement.low, row.agreement.high) == (1.0, 1.0, 1.0)
    assert (row.retained, row.kept, row.layers) == (1.0, 3, "0-2")


def test_equal_seeds_draw_equal_intervals(made):
    def figures(seed):
        rows = adaptrix.fidelity(made.adapter, made.base, IDS, ["0", "1"], window=7, seed=seed).rows
        return [dataclasses.replace(row, tokens_per_second=0) for row in rows]

    assert figures(3) == figures(3)
    assert [row.kl.value for row in figures(3)] == [row.kl.value for row in figures(4)]
    assert [row.kl.low for row in figures(3)] != [row.kl.low for row in figures(4)]


def test_a_stored_base_and_one_in_memory_measure_alike(made):
    stored = adaptrix.fidelity(made.adapter, made.base, IDS, device="cpu")
    given_ = adaptrix.fidelity(made.adapter, base_of(made), IDS.tolist())
    assert [row.kl for row in stored.rows] == [row.kl for row in given_.rows]
    assert stored.dtype == "float32"
    rounded = adaptrix.fidelity(made.adapter, made.base, IDS, dtype="bf16", device="cpu")
    assert rounded.dtype == "bfloat16"
    assert rounded["base"].kl.value == pytest.approx(stored["base"].kl.value, rel=0.1)
    assert rounded["all"].kl.value == 0


def test_what_is_kept_and_what_a_swap_reuses(made):
    report = adaptrix.fidelity(made.adapter, base_of(made), IDS, ["2", "1-2", "middle", "energy:1"])
    assert {row.policy: row.reused for row in report.rows} == {
        "all": 0.0,
        "2": pytest.approx(2 / 3),
        "1-2": pytest.approx(1 / 3),
        "middle": pytest.approx(1 / 3),
        "energy:1": pytest.approx(int(report["energy:1"].layers) / 3),
        "base": None,
    }
    energies = adaptrix.inspect(made.adapter, made.base).bound.energies
    share = sum(energy for site, energy in energies.items() if site.layer == 2) / sum(energies.values())
    assert report["2"].retained == pytest.approx(share)
    assert report["base"].retained is None


def test_a_family_that_reads_again_reuses_nothing_and_says_so(tmp_path):
    made = pair(tmp_path, "gpt_neox")
    report = adaptrix.fidelity(made.adapter, base_of(made), IDS, ["2"])
    assert report["2"].reused == 0
    assert [problem.code for problem in report.problems] == ["measurement-limit", "measurement-limit"]


def test_a_few_plans_of_every_policy_are_the_default(made):
    report = adaptrix.fidelity(made.adapter, base_of(made), IDS)
    counted = [f"{name}:{count}" for name in ("spread", "energy") for count in (1, 2)]
    assert [row.policy for row in report.rows] == ["all", "middle", *counted, "base"]


def test_the_plan_of_a_file_is_measured_too(made, tmp_path):
    changed = adaptrix.convert(
        made.adapter, tmp_path / "a.adaptrix.safetensors", base=made.base, layers="1", redistribute="nearest"
    )
    base = base_of(made)
    report = adaptrix.fidelity(changed, base, IDS)
    assert "own" in [row.policy for row in report.rows]
    with adaptrix.attach(base, {"own": changed}) as session, session.use("own"):
        found = kl(log_probs(made.model), log_probs(base))
    assert report["own"].kl.value == pytest.approx(found, rel=1e-4)
    assert report["own"].retained is None
    assert report["all"].kl.value == 0
    adapter = adaptrix.load(changed)
    fitted = dataclasses.replace(adapter, recorded=dataclasses.replace(adapter.recorded, policy="fit:1"))
    again = adaptrix.fidelity(fitted, base, IDS)
    assert again["fit:1"].kl == report["own"].kl
    assert "own" not in [row.policy for row in again.rows]
    assert adaptrix.fidelity(fitted, base, IDS, ["fit:1", "own", "1"])["1"].kl.value != report["own"].kl.value


def test_a_plan_that_its_policy_does_not_give_here_is_the_files_own(made, tmp_path):
    """As of a file that was written where the base was taken to be of fewer layers."""
    path = adaptrix.convert(made.adapter, tmp_path / "a.adaptrix.safetensors", base=made.base, layers="middle")
    adapter = adaptrix.load(path)
    other = dataclasses.replace(adapter.recorded, layers={"layers": (0,)})
    report = adaptrix.fidelity(dataclasses.replace(adapter, recorded=other), base_of(made), IDS)
    assert (report["own"].layers, report["middle"].layers) == ("0", "1")


def test_a_plan_that_was_fitted_on_the_text_is_told_of(made, tmp_path):
    path = adaptrix.convert(made.adapter, tmp_path / "a.adaptrix.safetensors", base=made.base, layers="1")
    adapter, text = adaptrix.load(path), tmp_path / "text.txt"
    for content, codes in (
        ("one text", ["measurement-limit", "measurement-limit"]),
        ("another", ["measurement-limit"]),
    ):
        text.write_text(content)
        fit = FitRecord(sha256(b"one text").hexdigest(), 8, 1, 1, 0, 0.5, 0.2)
        fitted = dataclasses.replace(adapter.recorded, policy="fit:1", fit=fit)
        report = adaptrix.fidelity(
            dataclasses.replace(adapter, recorded=fitted), base_of(made), text, tokenizer=Letters()
        )
        assert [problem.code for problem in report.problems] == codes


@pytest.mark.parametrize("policy", ["1", "middle"])
def test_a_plan_that_a_policy_gives_has_one_row(made, tmp_path, policy):
    path = adaptrix.convert(made.adapter, tmp_path / "a.adaptrix.safetensors", base=made.base, layers=policy)
    rows = [row.policy for row in adaptrix.fidelity(path, base_of(made), IDS).rows]
    assert rows.count(policy) == 1
    assert "own" not in rows


def test_the_model_is_left_as_it_was(made):
    base = base_of(made)
    base.model.layers[1].train()
    modes = {name: module.training for name, module in base.named_modules()}
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adaptrix.fidelity(made.adapter, base, IDS, ["middle"])
    with pytest.raises(adaptrix.UsageError):
        adaptrix.fidelity(made.adapter, base, IDS, window=65)
    assert {name: module.training for name, module in base.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_dropout_does_not_count(tmp_path):
    made = pair(tmp_path, "gpt2")
    base = base_of(made).train()
    report = adaptrix.fidelity(made.adapter, base, IDS, ["1"])
    assert report["all"].kl.value == 0
    assert report["1"].kl.value == adaptrix.fidelity(made.adapter, base.eval(), IDS, ["1"])["1"].kl.value


def test_an_adapter_that_changes_the_head_too(tmp_path):
    """What lies outside the layers acts under ``all`` alone."""
    made = pair(tmp_path, targets=["q_proj", "lm_head"])
    report = adaptrix.fidelity(made.adapter, base_of(made), IDS, ["0-2"])
    without = copy.deepcopy(made.model)
    without.base_model.model.lm_head.lora_B["default"].weight.data.zero_()
    assert report["0-2"].kl.value == pytest.approx(kl(log_probs(made.model), log_probs(without)), rel=1e-4)
    assert report["0-2"].kl.value > 1e-4


def test_bits_per_byte_leave_out_what_nothing_predicts(made, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("äbc déf gh")
    report = adaptrix.fidelity(made.adapter, base_of(made), text, ["1"], tokenizer=Letters())
    size = len("äbc déf gh".encode()) - len("ä".encode())
    row = report["base"]
    assert row.bits_per_byte.value == pytest.approx(math.log2(row.perplexity.value) * report.tokens / size)
    begun = adaptrix.fidelity(made.adapter, base_of(made), text, ["1"], tokenizer=Letters(begins=[1]))["base"]
    assert begun.bits_per_byte.value == pytest.approx(math.log2(begun.perplexity.value) * 10 / (size + 2))
    assert adaptrix.fidelity(made.adapter, base_of(made), IDS, ["1"])["base"].bits_per_byte is None


class Letters:
    """A tokenizer of a token a letter."""

    all_special_ids = (1,)

    def __init__(self, begins=()):
        self.begins = list(begins)

    def __call__(self, text, **_):
        self.letters = {3 + ord(letter) % 60: letter for letter in text}
        return {"input_ids": [*self.begins, *(3 + ord(letter) % 60 for letter in text)]}

    def decode(self, ids):
        return "".join(self.letters[number] for number in ids)


@given(st.integers(2, 40), st.integers(2, 12), st.data())
def test_every_token_but_the_first_counts_once(total, length, data):
    stride = data.draw(st.integers(1, length - 1))
    found = windows(range(total), length, stride)
    counted = [int(token) for window in found for token in window.tokens[-window.counted :]]
    assert counted == list(range(1, total))
    assert {len(window.tokens) for window in found} == {min(length, total)}
    for window in found[1:]:
        assert len(window.tokens) - window.counted >= length - stride
    for window in found:
        assert window.tokens.tolist() == list(range(int(window.tokens[0]), int(window.tokens[-1]) + 1))


def test_kl_is_the_formula_whatever_is_held_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(11, 13, generator=generator) for _ in range(2))
    targets = torch.randint(13, (11,), generator=generator)
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    wanted = (float((p.exp() * (p - q)).sum()), float((p.argmax(-1) == q.argmax(-1)).sum()))
    for held in (1, 40, 1 << 20):
        monkeypatch.setattr(diverging, "_HELD", held)
        found = diverging.compared(first, second, targets)
        assert found[:2] == pytest.approx(wanted, rel=1e-5)
        assert found[2] == pytest.approx(float(-q.gather(-1, targets[:, None]).sum()), rel=1e-5)
        assert diverging.compared(first, first, targets)[:2] == (0.0, 11.0)


def test_small_divergences_are_more_than_rounding():
    generator = torch.Generator().manual_seed(0)
    first = 4 * torch.randn(64, 5000, generator=generator) + 30
    second = first + 1e-3 * torch.randn(64, 5000, generator=generator)
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1)
    rows = zip(first[:, None], second[:, None], strict=True)
    found = torch.tensor([diverging.compared(*row, torch.zeros(1, dtype=torch.long))[0] for row in rows])
    # In fp32 p and q are each within half an eps, exp included, where one token has it all: no row is off by more
    # than an eps. The sum of p (log p - log q) alone is off by five of them, and by half of what it measures.
    eps = torch.finfo(torch.float32).eps
    assert (found - wanted).abs().max() < eps < 0.4 * wanted.mean()
    assert (found - wanted).abs().mean() < 0.1 * wanted.mean()


def test_what_is_ruled_out_is_no_nan():
    first, second = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    first[:, 2] = second[:, 2] = -torch.inf
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    inner = [0, 1, 3, 4]
    wanted = float((p.exp() * (p - q))[:, inner].sum())
    targets = torch.zeros(3, dtype=torch.long)
    assert diverging.compared(first, second, targets)[0] == pytest.approx(wanted, rel=1e-5)
    first[:, 2] = 0.0
    assert diverging.compared(first, second, targets)[0] == math.inf
    assert math.isfinite(diverging.compared(second, first, targets)[0])


def test_intervals_hold_what_they_say():
    rng = np.random.default_rng(2)
    tokens, held = rng.integers(5, 15, 60).astype(float), 0
    for _ in range(100):
        sums = rng.gamma(2.0, 1.5, 60) * tokens
        found = estimate(sums, tokens, seed=1)
        held += found.low <= 3.0 <= found.high
        assert found.low < found.value < found.high
        assert found.value == sums.sum() / tokens.sum()
    assert 86 <= held <= 99
    rate = estimate(np.full(20, 3.0) + rng.normal(0, 0.2, 20), np.ones(20), seed=0)
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(20), rel=0.4)


def test_one_window_has_no_interval(made):
    assert estimate(np.array([3.0]), np.array([2.0]), 0).low is None
    assert estimate(np.array([3.0, np.inf]), np.array([2.0, 2.0]), 0).low is None
    row = adaptrix.fidelity(made.adapter, base_of(made), IDS, ["1"])["1"]
    assert (row.kl.low, row.perplexity.high, row.agreement.low) == (None, None, None)

"""LoRAs out of full fine-tunes: the fine-tune's own answers and LAPACK are the judges."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.algebra.lora_svd import best_pair, residual
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.command_line import placed
from tests.helpers.families import tiny_model
from tests.helpers.finetunes import Tuned, noise, tuned
from tests.helpers.peft_models import deltas, linear_names, load, logits, trained

pytestmark = pytest.mark.numeric

LAYERED = ("llama", "gpt2", "gpt_neox", "phi3", "qwen2", "opt", "bert")


def everything(model):
    for seed, tensor in enumerate(model.parameters()):
        tensor += noise(tensor, seed)


def merged(model, rank=3):
    """The model with a LoRA of a rank merged into it, in place."""
    names = [name for name in linear_names(model) if name not in ("lm_head",)]
    adapted = trained(peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=5, target_modules=names)))
    adapted.merge_and_unload()


def differences(case):
    """ΔW by module path, in fp32 and ``[out, in]``."""
    before, found = case.build().state_dict(), {}
    for name, after in case.model.state_dict().items():
        if name.endswith(".weight") and after.dim() == 2 and not torch.equal(after, before[name]):
            delta = (after.float() - before[name].float()).numpy()
            module = case.model.get_submodule(name.removesuffix(".weight"))
            found[name.removesuffix(".weight")] = delta.T if type(module).__name__ == "Conv1D" else delta
    return found


@pytest.mark.parametrize("solver", ["exact", "randomised"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_merged_lora_is_found_again(family, solver, tmp_path):
    case = tuned(tmp_path, family, merged)
    done = adaptrix.extract(case.folder, case.base, 3, tmp_path / "out", "peft", svd=solver)
    model = load(done.path, case.build)
    wanted, found = differences(case), deltas(model)
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        assert np.linalg.norm(found[path] - delta) < 1e-5 * np.linalg.norm(delta), path
    assert done.error < 1e-5
    assert done.kept > 1 - 1e-9
    torch.testing.assert_close(logits(model), logits(case.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", LAYERED)
def test_what_is_lost_is_what_a_truncated_svd_loses(family, tmp_path):
    case = tuned(tmp_path, family)
    done = adaptrix.extract(case.folder, case.base, 4, tmp_path / "out", "peft")
    found, lost, size = deltas(load(done.path, case.build)), 0.0, 0.0
    for path, delta in differences(case).items():
        s = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
        assert np.linalg.norm(found[path] - delta) == pytest.approx(np.linalg.norm(s[4:]), rel=1e-5)
        lost, size = lost + np.sum(s[4:] ** 2), size + np.sum(s**2)
    assert done.kept == pytest.approx(1 - lost / size, abs=1e-6)


def kept(X, pair):
    return residual(X, *(factor.astype(np.float32) for factor in pair)).kept


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_both_ways_are_within_reach_of_the_best(out, inp, rank, seed):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((out, inp)) * np.arange(1, inp + 1) ** -1.0).astype(np.float32)
    s = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    best = np.sum(s[rank:] ** 2) / np.sum(s**2)
    for solver in ("exact", "randomised"):
        pair = best_pair(X, rank, solver)
        assert pair[0].shape[0] == pair[1].shape[1] == min(rank, out, inp)
        assert 1 - kept(X, pair) == pytest.approx(best, abs=1e-4)
        np.testing.assert_allclose(
            np.linalg.norm(pair[0], axis=1), np.linalg.norm(pair[1], axis=0), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["flat", "decaying"])
def test_random_subspaces_find_nearly_all_that_lapack_finds(kind):
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, 300)))[0] for n in (300, 400))
    s = np.ones(300) if kind == "flat" else np.arange(1, 301) ** -0.5
    X = ((U * s) @ V.T).astype(np.float32)
    exact, random = (kept(X, best_pair(X, 8, solver)) for solver in ("exact", "randomised"))
    assert random <= exact + 1e-6
    assert random > 0.999 * exact
    assert np.array_equal(best_pair(X, 4, "auto")[0], best_pair(X, 4, "randomised")[0])
    assert not np.array_equal(best_pair(X, 8, "randomised", 1)[0], best_pair(X, 8, "randomised", 2)[0])
    assert np.array_equal(best_pair(X, 20, "auto")[0], best_pair(X, 20, "exact")[0])


# -- what no LoRA stands for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "opt"])
def test_everything_else_is_refused_until_somebody_decides(family, tmp_path):
    case = tuned(tmp_path, family, everything)
    with pytest.raises(RefusedError) as error:
        adaptrix.extract(case.folder, case.base, 4, tmp_path / "out", "peft")
    assert {problem.code for problem in error.value.problems} == {"decision-needed"}
    assert any("embed" in problem.where or "wte" in problem.where for problem in error.value.problems)
    assert "save=[" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_saved_whole_and_at_full_rank_the_answers_are_those_of_the_fine_tune(family, tmp_path):
    """Norms, biases, embeddings and tied heads: what peft then answers is what the fine-tune does."""
    case = tuned(tmp_path, family, everything)
    done = adaptrix.extract(case.folder, case.base, 64, tmp_path / "out", "peft", save=["*"])
    assert done.kept > 1 - 1e-9
    model = load(done.path, case.build)
    torch.testing.assert_close(logits(model), logits(case.model), rtol=1e-3, atol=1e-4)
    assert adaptrix.check(done.path, case.base).ok


def test_some_saved_and_some_ignored(tmp_path):
    case = tuned(tmp_path, "llama", everything)
    done = adaptrix.extract(case.folder, case.base, 2, tmp_path / "out", "peft", save=["*norm*"], ignore=["*"])
    said = {problem.where: problem.found for problem in done.notes}
    assert said["--save"].startswith("7 tensors")
    assert said["--ignore"].startswith("2 tensors")
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert "model.layers.2.post_attention_layernorm" in config["modules_to_save"]
    load(done.path, case.build)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_left_out_by_name_or_not_at_all(family, tmp_path):
    """No LoRA is made of them, and no model has modules that could be saved."""
    case = tuned(tmp_path, family, everything)
    experts = {"mixtral": 9 * 3, "qwen3_moe": 10 * 3}[family]  # three tensors each; one layer of qwen3's has none
    with pytest.raises(RefusedError) as error:
        adaptrix.extract(case.folder, case.base, 2, tmp_path / "out", "peft", save=["*"])
    assert {problem.code for problem in error.value.problems} == {"decision-needed"}
    assert not (tmp_path / "out").exists()
    with pytest.raises(RefusedError) as error:
        adaptrix.extract(case.folder, case.base, 2, tmp_path / "out", "peft", save=["*norm*", "*embed*", "lm_head*"])
    assert {problem.code for problem in error.value.problems} == {"decision-needed"}
    assert len(error.value.problems) == 3
    assert "save=" not in str(error.value)
    done = adaptrix.extract(case.folder, case.base, 2, tmp_path / "out", "peft", save=["*"], ignore=["*.experts.*"])
    said = next(problem.found for problem in done.notes if problem.code == "left-out")
    assert said.startswith(f"{experts} tensors that differ")
    assert "experts.*.w1.weight" in said or "experts.*.down_proj.weight" in said


def test_what_did_not_change_is_not_in_the_adapter(tmp_path):
    def one(model):
        model.model.layers[1].self_attn.k_proj.weight += noise(model.model.layers[1].self_attn.k_proj.weight, 0)

    case = tuned(tmp_path, "llama", one)
    done = adaptrix.extract(case.folder, case.base, 2, tmp_path / "x.adaptrix.safetensors")
    assert [str(site) for site in done.ranks] == ["layers.1.k"]
    again = adaptrix.load(done.path)
    assert again.provenance.uri == "extract --rank 2: tuned - base"
    assert adaptrix.check(done.path, case.base).ok


# -- how checkpoints lie -------------------------------------------------------------------------------------------


def test_shards_a_headless_base_and_other_dtypes(tmp_path):
    case = tuned(tmp_path, "gpt2", max_shard_size="20KB")
    assert len(list(case.folder.glob("*.safetensors"))) > 3
    plain = adaptrix.extract(case.folder, case.base, 3, tmp_path / "plain", "peft")
    case.build().transformer.save_pretrained(tmp_path / "headless")
    done = adaptrix.extract(case.folder, tmp_path / "headless", 3, tmp_path / "out", "peft")
    names = ("adapter_model.safetensors",)
    assert [(plain.path / n).read_bytes() for n in names] == [(done.path / n).read_bytes() for n in names]
    wide = case.build().double()
    wide.save_pretrained(tmp_path / "wide")
    done = adaptrix.extract(case.folder, tmp_path / "wide", 3, tmp_path / "out2", "peft")
    assert [(plain.path / n).read_bytes() for n in names] == [(done.path / n).read_bytes() for n in names]


def test_bf16_is_subtracted_in_fp32(tmp_path):
    case = tuned(tmp_path, "llama", dtype=torch.bfloat16)
    done = adaptrix.extract(case.folder, case.base, 64, tmp_path / "x.adaptrix.safetensors")
    assert done.error < 1e-6
    wanted = differences(case)
    plan = done.conversion.plan
    for site, delta in plan.bound.deltas.items():
        path = plan.bound.targets[site].path
        np.testing.assert_allclose(delta.dense(), wanted[path], atol=1e-6)
    half = adaptrix.extract(case.folder, case.base, 64, tmp_path / "half.adaptrix.safetensors", dtype="bf16")
    assert 1e-4 < half.error < 1e-2


def test_equal_input_gives_equal_bytes(tmp_path):
    case = tuned(tmp_path)
    for svd in ("exact", "randomised"):
        one, other = (
            adaptrix.extract(case.folder, case.base, 2, tmp_path / "x.adaptrix.safetensors", svd=svd, force=True)
            .path.read_bytes()
            for _ in range(2)
        )  # fmt: skip
        assert one == other


# -- what is refused -----------------------------------------------------------------------------------------------


def refused(case, tmp_path, **options):
    with pytest.raises(RefusedError) as error:
        adaptrix.extract(case.folder, case.base, 2, tmp_path / "out", "peft", **options)
    assert not (tmp_path / "out").exists()
    return {problem.code for problem in error.value.problems}


def test_models_that_are_not_one(tmp_path):
    case = tuned(tmp_path)
    assert refused(Tuned(case.base, case.base, None, None), tmp_path) == {"adapter-empty"}
    other = tuned(tmp_path / "other", "gpt2")
    assert refused(Tuned(case.base, other.folder, None, None), tmp_path) == {"base-mismatch"}
    wider = tiny_model("llama", variant=1)
    wider.save_pretrained(tmp_path / "wider")
    config = json.loads((tmp_path / "wider" / "config.json").read_text())
    (tmp_path / "wider" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert refused(Tuned(case.base, tmp_path / "wider", None, None), tmp_path) == {"shape"}


def test_damaged_models(tmp_path):
    case = tuned(tmp_path, max_shard_size="20KB")
    next(case.folder.glob("model-00002*")).unlink()
    assert refused(case, tmp_path) == {"base-incomplete"}
    shutil.rmtree(case.folder)

    def broken(model):
        model.model.layers[0].self_attn.q_proj.weight[1, 1] = float("nan")

    assert refused(tuned(tmp_path, change=broken), tmp_path) == {"nonfinite"}
    config = json.loads((case.base / "config.json").read_text())
    for folder in (case.base, case.folder):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody_knows"}))
    assert refused(case, tmp_path) == {"architecture-unknown"}


@pytest.mark.parametrize(
    ("options", "said"), [({"rank": 0}, "at least 1"), ({"svd": "magic"}, "one of auto"), ({"seed": -1}, "at least 0")]
)
def test_options_that_make_no_sense(options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        adaptrix.extract(tmp_path / "a", tmp_path / "b", out=tmp_path / "out", **options)


def test_the_command(tmp_path, capsys, monkeypatch):
    case = tuned(tmp_path)
    here = placed(tmp_path, capsys, monkeypatch)
    code, out, err = here.run("extract", case.folder, "--base", case.base, "--rank", 4)
    assert (code, err) == (0, "")
    assert "tuned-lora.adaptrix.safetensors" in out
    assert "of ‖ΔW‖² kept" in out
    assert "of 3, the least" in out
    assert here.run("extract", case.folder, "--base", case.base)[0] == 2  # it exists
    code, out, _ = here.run("extract", case.folder, "--base", case.base, "--json", "--to", "peft")
    told = json.loads(out)
    assert (code, told["path"]) == (0, "tuned-lora-peft")
    assert 0 < told["sites"]["layers.0.q"]["kept"] <= 1
    code, out, _ = here.run("extract", case.folder, "--base", case.base, "--force", "-v")
    assert "layers.2.down" in out
    assert here.run("extract", case.folder, "--base", tmp_path / "nowhere", "--force")[0] == 2
    assert here.run("extract", case.folder)[0] == 2
    inside = here.run("extract", case.folder, "--base", case.base, "-o", case.folder / "model.safetensors", "--force")
    assert inside[0] == 2

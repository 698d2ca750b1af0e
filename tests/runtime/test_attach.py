"""Adapters on a live model, with peft as the judge."""

import asyncio
import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch

import adaptrix
from adaptrix.attaching import attach
from adaptrix.errors import AdaptrixError, RefusedError, UsageError
from tests.helpers.attached import TARGETS, TOLERANCE, VARIANTS, hook_count, inputs, logits, saved
from tests.helpers.double import EXACT
from tests.helpers.families import FAMILIES, tiny_model
from tests.helpers.sampling import crossed

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama").eval()


@pytest.fixture(scope="module")
def pair(llama, tmp_path_factory):
    """Two adapters of unlike targets and ranks on one llama: their folders and peft models."""
    folder = tmp_path_factory.mktemp("pair")
    first = saved(llama, folder / "a", seed=1, rank=3, target_modules=["q_proj", "k_proj", "down_proj"])
    second = saved(llama, folder / "b", seed=2, rank=5, target_modules=["q_proj", "v_proj", "embed_tokens"])
    return {"a": (folder / "a", first), "b": (folder / "b", second)}


@pytest.fixture
def session(llama, pair):
    with attach(llama, {name: folder for name, (folder, _) in pair.items()}) as opened:
        yield opened


@pytest.mark.parametrize(("family", "variant"), crossed(sorted(FAMILIES), VARIANTS))
def test_every_family_and_variant_acts_as_under_peft(family, variant, tmp_path):
    model = tiny_model(family).eval()
    targets = TARGETS.get(family, ["q_proj", "v_proj", "o_proj"])
    adapted = saved(model, tmp_path, target_modules=targets, **VARIANTS[variant])
    base, wanted = logits(model), logits(adapted)
    assert (base - wanted).abs().max() > 1e-3
    before = hook_count(model)
    with attach(model, {"x": tmp_path}) as session:
        assert torch.equal(logits(model), base)
        with session.use("x"):
            assert (logits(model) - wanted).abs().max() < TOLERANCE
        counted = session.report().injections
        with session.route(["x", None, "x"]):
            mixed = logits(model)
        for row, alone in enumerate((wanted, base, wanted)):
            assert (mixed[row] - alone[row]).abs().max() < TOLERANCE, row
        assert {count for site, count in counted.items() if "vision" not in site} == {1}
    assert hook_count(model) == before
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_rounded_to_fp32_over_a_base_in_double(variant, tmp_path):
    model = tiny_model("gpt2").double()  # nothing in it goes through fp32
    adapted = saved(model, tmp_path, target_modules=TARGETS["gpt2"], **VARIANTS[variant])
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert (logits(model) - logits(adapted)).abs().max() < EXACT


def test_a_weighted_sum_is_that_of_the_deltas(llama, pair, session):
    """The oracle merges 0.7 ΔW + 0.3 ΔW' into the base."""
    merged = tiny_model("llama").eval()
    for name, weight in (("a", 0.7), ("b", 0.3)):
        for path, module in pair[name][1].base_model.model.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                delta = module.get_delta_weight("default")
                merged.get_submodule(path).weight.data += weight * delta
    with session.use({"a": 0.7, "b": 0.3}):
        assert (logits(llama) - logits(merged)).abs().max() < TOLERANCE


def test_rows_have_adapters_of_their_own(llama, pair, session):
    given = inputs(llama, 4)
    rows = ["a", None, "b", "a"]
    with session.route(rows):
        mixed = logits(llama, **given)
    alone = {None: logits(llama, **given), **{name: logits(m, **given) for name, (_, m) in pair.items()}}
    for row, name in enumerate(rows):
        assert (mixed[row] - alone[name][row]).abs().max() < TOLERANCE, (row, name)


def test_beams_count_with_their_row(llama, pair, session):
    given = {"input_ids": inputs(llama, 2)["input_ids"], "max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    given |= {"pad_token_id": 0, "eos_token_id": None}
    with session.route(["a", "b"]):
        mixed = llama.generate(**given)
    for row, name in enumerate("ab"):
        assert torch.equal(mixed[row], pair[name][1].generate(**given)[row])


def test_a_route_of_another_length_is_an_error_and_harms_nothing(llama, session):
    base = logits(llama)
    with session.route(["a", "b"]), pytest.raises(UsageError, match="one adapter a row"):
        logits(llama, **inputs(llama, 3))
    assert torch.equal(logits(llama), base)


def test_choices_nest_and_the_default_sticks(llama, pair, session):
    base = logits(llama)
    a, b = (logits(pair[name][1]) for name in "ab")
    session.activate("a")
    assert (logits(llama) - a).abs().max() < TOLERANCE
    with session.use("b"):
        assert (logits(llama) - b).abs().max() < TOLERANCE
        with session.use(None):
            assert torch.equal(logits(llama), base)
        assert (logits(llama) - b).abs().max() < TOLERANCE
    assert (logits(llama) - a).abs().max() < TOLERANCE
    session.activate(None)
    assert torch.equal(logits(llama), base)


def test_threads_that_switch_never_see_one_another(llama, pair, session):
    """8 threads, each switching by ``use`` before every forward pass, against what each does alone."""
    given = inputs(llama)
    with torch.no_grad():
        alone = {None: logits(llama, **given)}
        for name in ("a", "b"):
            with session.use(name):
                alone[name] = logits(llama, **given)
    choices = [None, "a", "b"]
    torch.set_num_threads(1)

    def work(seed):
        wrong = 0
        for step in range(150):
            name = choices[(seed + step) % 3]
            with session.use(name):
                wrong += not torch.equal(logits(llama, **given), alone[name])
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8


def test_a_default_that_changes_never_falls_into_a_forward_pass(llama, session):
    given = inputs(llama)
    alone = []
    for name in (None, "a", "b"):
        with session.use(name):
            alone.append(logits(llama, **given))
    stop = threading.Event()

    def switch():
        while not stop.is_set():
            for name in (None, "a", "b"):
                session.activate(name)

    switcher = threading.Thread(target=switch)
    switcher.start()
    try:
        seen = [logits(llama, **given) for _ in range(200)]
    finally:
        stop.set()
        switcher.join()
        session.activate(None)
    assert all(any(torch.equal(one, other) for other in alone) for one in seen)


def test_tasks_of_asyncio_have_choices_of_their_own(llama, session):
    given = inputs(llama)
    alone = {}
    for name in (None, "a", "b"):
        with session.use(name):
            alone[name] = logits(llama, **given)

    async def task(name):
        with session.use(name):
            for _ in range(20):
                await asyncio.sleep(0)
                assert torch.equal(logits(llama, **given), alone[name])

    async def everyone():
        await asyncio.gather(*(task(name) for name in [None, "a", "b"] * 4))

    asyncio.run(everyone())


def test_unloading_waits_for_its_users(llama, session):
    entered, leave, gone = threading.Event(), threading.Event(), threading.Event()

    def user():
        with session.use("a"):
            entered.set()
            leave.wait(10)

    def unloader():
        session.unload("a")
        gone.set()

    threads = [threading.Thread(target=user), threading.Thread(target=unloader)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    assert not gone.wait(0.2)
    with pytest.raises(UsageError, match="no adapter of this name"), session.use("a"):
        pass
    leave.set()
    assert gone.wait(10)
    for thread in threads:
        thread.join()


def test_a_reload_under_the_same_name_is_another_adapter(llama, pair, session):
    session.load("a", pair["b"][0])
    with session.use("a"):
        assert (logits(llama) - logits(pair["b"][1])).abs().max() < TOLERANCE


def test_a_failed_load_changes_nothing(llama, pair, session, tmp_path):
    hooks = hook_count(llama)
    saved(tiny_model("gpt2"), tmp_path, target_modules=["c_attn"])
    with pytest.raises(RefusedError):
        session.load("c", tmp_path)
    assert (hook_count(llama), session.adapters) == (hooks, ("a", "b"))


def test_adapters_that_do_not_fit_are_refused_before_the_first_hook(llama, pair, tmp_path):
    saved(tiny_model("gpt2"), tmp_path, target_modules=["c_attn"])
    before = hook_count(llama)
    with pytest.raises(RefusedError) as caught:
        attach(llama, {"a": pair["a"][0], "bad": tmp_path})
    assert "c_attn" in str(caught.value)
    assert hook_count(llama) == before


def test_an_exception_in_the_model_leaves_no_choice_behind(llama, session):
    base = logits(llama)
    session.activate("a")
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        llama(input_ids=torch.full((1, 3), 10_000))
    session.activate(None)
    assert torch.equal(logits(llama), base)


def test_two_sessions_on_one_model_add_up(llama, pair):
    base = logits(llama)
    with attach(llama, {"a": pair["a"][0]}) as outer:
        outer.activate("a")
        with attach(llama, {"b": pair["b"][0]}) as inner:
            inner.activate("b")
            both = logits(llama)
        assert (logits(llama) - logits(pair["a"][1])).abs().max() < TOLERANCE
    with attach(llama, {name: folder for name, (folder, _) in pair.items()}) as one, one.use({"a": 1.0, "b": 1.0}):
        assert (logits(llama) - both).abs().max() < TOLERANCE
    assert torch.equal(logits(llama), base)


def test_detaching_twice_is_detaching_once(llama, pair):
    before = hook_count(llama)
    session = attach(llama, {"a": pair["a"][0]})
    session.detach()
    session.detach()
    assert hook_count(llama) == before
    with pytest.raises(UsageError, match="detached"), session.use("a"):
        pass


def test_a_model_with_a_session_is_not_copied(llama, session):
    with pytest.raises(RefusedError, match="Detach first"):
        copy.deepcopy(llama)


def test_drift_is_measured_as_it_is(llama, pair):
    """The oracle hooks the modules itself, on either side of ours."""
    name = "model.layers.1.self_attn.q_proj"
    with torch.no_grad(), attach(llama, {"a": pair["a"][0]}, measure=True, layers="1") as session:
        seen = []
        module = llama.get_submodule(name)
        handle = module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
        with session.use("a"):
            logits(llama)
        handle.remove()
        shares = []
        for site in session.report().injections:
            path = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "down": "mlp.down_proj"}[site.split(".")[2]]
            peft_module = pair["a"][1].base_model.model.get_submodule(f"model.layers.1.{path}")
            if path == "self_attn.q_proj":
                x, after = seen[0]
                d = x @ peft_module.get_delta_weight("default").T
                shares.append((d.norm(dim=-1) / (after - d).norm(dim=-1)).max().item())
        report = session.report()
    assert report.max_drift >= shares[0] * (1 - 1e-4)
    assert report.mean_drift > 0
    assert report.tokens_clamped == 0


@pytest.mark.parametrize("limit", [0.0, 0.05, 1e6])
def test_drift_stays_within_its_bound(llama, pair, limit):
    base, free = logits(llama), logits(pair["a"][1])
    outputs = []
    with attach(llama, {"a": pair["a"][0]}, max_drift=limit) as session:
        handles = []
        for module in llama.modules():
            if isinstance(module, torch.nn.Linear) and module._forward_hooks:

                def watch(module, args, out):
                    plain = torch.nn.functional.linear(args[0], module.weight, module.bias)
                    outputs.append(((out - plain).norm(dim=-1) / plain.norm(dim=-1)).max().item())

                handles.append(module.register_forward_hook(watch))
        with session.use("a"):
            got = logits(llama)
        for handle in handles:
            handle.remove()
        report = session.report()
    assert max(outputs) <= limit * (1 + 1e-4) + 1e-6
    assert torch.equal(got, base) == (limit == 0)
    assert (report.tokens_clamped > 0) == (limit < 1)
    if limit > 1:
        assert (got - free).abs().max() < TOLERANCE


def test_many_sessions_leave_nothing_behind(llama, pair):
    def tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    def cycle():
        with attach(llama, {"a": pair["a"][0]}) as session, session.use("a"):
            logits(llama)

    cycle()
    before = tensors()
    for _ in range(30):
        cycle()
    assert tensors() == before


def test_an_injection_file_acts_as_its_plan_says(llama, pair, tmp_path):
    path = adaptrix.convert(pair["a"][0], tmp_path / "a.adaptrix.safetensors", layers="0")
    with attach(llama, {"a": path}) as session, session.use("a"):
        part = logits(llama)
        assert {name.split(".")[1] for name in session.report().injections} == {"0"}
    with attach(llama, {"a": path}, layers="all") as session, session.use("a"):
        assert (logits(llama) - logits(pair["a"][1])).abs().max() < TOLERANCE
    assert (part - logits(pair["a"][1])).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_near_to_fp32_as_peft_does(dtype, tmp_path):
    model = tiny_model("llama").eval()
    adapted = saved(model, tmp_path, target_modules=["q_proj", "down_proj"])
    exact = logits(adapted)
    half = copy.deepcopy(model).to(dtype)
    theirs = (logits(peft.PeftModel.from_pretrained(copy.deepcopy(half), tmp_path).eval()).float() - exact).abs().max()
    with attach(half, {"x": tmp_path}) as session, session.use("x"):
        ours = (logits(half).float() - exact).abs().max()
    assert ours < 2 * theirs


def test_gradients_reach_the_input(llama, session):
    embedded = torch.randn(1, 4, llama.config.hidden_size, requires_grad=True)
    with session.use("a"):
        llama(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert torch.isfinite(embedded.grad).all()


@pytest.mark.parametrize("wrap", ["peft", "compiled"])
def test_models_that_others_have_changed_are_refused(wrap, llama, pair):
    model = pair["a"][1] if wrap == "peft" else torch.compile(copy.deepcopy(llama))
    with pytest.raises(AdaptrixError) as caught:
        attach(model, {"a": pair["a"][0]})
    assert caught.value.problems[0].code == "model-wrapped"


@pytest.mark.parametrize("choice", ["nobody", {"a": 1.0, "nobody": 1.0}])
def test_unknown_names_are_named(session, choice):
    with pytest.raises(UsageError, match="one of a, b"), session.use(choice):
        pass


def test_an_interrupted_pass_leaves_no_choice_and_no_user_behind(tmp_path):
    """Ctrl-C ends a forward pass past every hook that comes after it."""
    model = tiny_model("llama").eval()
    for seed, name in enumerate("ab"):
        saved(model, tmp_path / name, seed=seed, target_modules=["q_proj"])
    with attach(model, {name: tmp_path / name for name in "ab"}) as session:
        session.activate("b")
        expected = model(**inputs(model)).logits
        session.activate("a")

        def interrupt(*_):
            raise KeyboardInterrupt

        handle = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs(model))
        handle.remove()
        session.activate("b")
        assert torch.equal(model(**inputs(model)).logits, expected)
        session.unload("a")
        handle = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs(model))
        handle.remove()
        session.activate(None)
        session.unload("b")
        assert session.adapters == ()

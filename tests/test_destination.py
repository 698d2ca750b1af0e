"""Where outputs go, what they may replace, and what is said of them."""

import contextlib
import importlib
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import adaptrix
from adaptrix.dtype_names import dtype_name
from adaptrix.feature_names import FEATURES
from adaptrix.formats import safetensors_file
from adaptrix.inspection import summarise
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from benchmarks.checkpoints import BAD
from benchmarks.draft import PREFIX, Q0, Draft
from tests.helpers.command_line import placed

FILES = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    """In ``out/``, with a LoRA beside it at ``../adapter`` and its base."""
    Draft().write(tmp_path)
    return placed(tmp_path, capsys, monkeypatch)


@pytest.fixture
def lora(place):
    return place.folder / "adapter"


# -- what --force may replace -----------------------------------------------------------------------------------------


def the_source(place, lora):
    os.chdir(place.folder)
    return ["./adapter", "--to", "peft", "-o", "adapter"]


def source_through_a_link(place, lora):
    Path("link").symlink_to(lora)
    return [lora, "--to", "peft", "-o", "link"]


def around_the_source(place, lora):
    return [lora, "--to", "peft", "-o", place.folder]


def inside_the_source(place, lora):
    return [lora, "-o", lora / "x.adaptrix.safetensors"]


def where_the_source_is(place, lora):
    os.chdir(lora)
    return ["."]


def a_file_onto_itself(place, lora):
    assert place.run("convert", lora)[0] == 0
    return ["adapter.adaptrix.safetensors", "--layers", "all"]


def a_file_of_the_source(place, lora):
    return [lora, "-o", lora / "adapter_model.safetensors"]


def a_model(place, lora):
    shutil.copytree(lora, "model")
    Path("model/model.safetensors").write_text("weights of weeks")
    return [lora, "--to", "peft", "-o", "model"]


OVERWRITING = [
    the_source,
    source_through_a_link,
    around_the_source,
    inside_the_source,
    where_the_source_is,
    a_file_onto_itself,
    a_file_of_the_source,
    a_model,
]


@pytest.mark.parametrize("making", OVERWRITING)
def test_force_replaces_neither_the_source_nor_what_it_would_not_write(making, place, lora):
    args = making(place, lora)
    before = place.files()
    code, out, err = place.run("convert", *args, "--force")
    assert (code, out) == (2, ""), err
    assert "error: " in err
    assert place.files() == before


def test_force_replaces_what_it_wrote(place, lora):
    for args in ([lora], [lora, "--to", "peft"]):
        assert place.run("convert", *args)[0] == 0
        assert place.run("convert", *args)[0] == 2
        assert place.run("convert", *args, "--force")[0] == 0
    assert sorted(os.listdir("adapter-peft")) == FILES


def test_a_peft_folder_does_not_take_the_name_of_its_source(place, lora):
    os.chdir(place.folder)
    assert place.run("convert", "adapter", "--to", "peft")[0] == 0
    assert sorted(os.listdir("adapter-peft")) == FILES
    assert place.run("convert", "adapter", "--to", "peft", "--name", "mine")[0] == 0
    assert sorted(os.listdir("mine-peft")) == FILES


def test_one_file_may_have_neighbours(place, lora):
    assert place.run("convert", lora)[0] == 0
    assert place.run("convert", "adapter.adaptrix.safetensors", "--layers", "all", "--name", "every")[0] == 0
    assert sorted(os.listdir()) == ["adapter.adaptrix.safetensors", "every.adaptrix.safetensors"]


# -- files and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["injection", "peft"])
def test_a_slash_at_the_end_means_a_folder(to, place, lora):
    name = "adapter.adaptrix.safetensors" if to == "injection" else "adapter-peft"
    code, out, _ = place.run("convert", lora, "--to", to, "-o", "new/outputs/")
    assert (code, f"new/outputs/{name}" in out) == (0, True)
    assert place.run("convert", lora, "--to", to, "-o", "new/outputs/", "--name", "again")[0] == 0
    assert len(os.listdir("new/outputs")) == 2


@pytest.mark.parametrize("command", ["convert", "combine", "resize"])
def test_every_command_makes_the_folder(command, place, lora):
    more = ["--rank", "2"] if command == "resize" else []
    assert place.run(command, lora, "-o", "outputs/", *more)[0] == 0
    assert len(os.listdir("outputs")) == 1


@pytest.mark.parametrize("more", [["--rank", "0"], ["--layers", "99"], ["--base", "nowhere/at/all"]])
def test_a_folder_that_was_made_for_nothing_goes_again(more, place, lora):
    assert place.run("convert", lora, "-o", "new/outputs/", *more)[0] != 0
    assert os.listdir() == []


def test_a_file_is_no_folder(place, lora):
    Path("taken").touch()
    code, _, err = place.run("convert", lora, "-o", "taken/deeper/")
    assert (code, "taken: this is no folder" in err) == (2, True)


def test_several_make_their_folder(place, lora):
    shutil.copytree(lora, place.folder / "other")
    assert place.run("convert", lora, place.folder / "other", "-o", "new/")[0] == 0
    assert len(os.listdir("new")) == 2


def test_in_python_too(place, lora):
    assert adaptrix.convert(lora, "outputs/") == Path("outputs/adapter.adaptrix.safetensors")
    assert adaptrix.convert(lora, "x") == Path("x")


def test_a_missing_folder_is_a_mistake_on_the_command_line(place, lora):
    assert place.run("convert", lora, "-o", "no/such/x")[0] == 2
    assert place.run("convert", lora, lora, "-o", "nowhere")[0] == 2


@pytest.mark.parametrize("args", [["-o", "x"], ["--name", "x"], ["-o", "x/", "--name", "y"]])
def test_what_is_there_is_told_before_anything_is_fetched(args, place, monkeypatch):
    Path("x.adaptrix.safetensors").touch()
    if args[-1] == "y":
        os.mkdir("x")
        Path("x/y.adaptrix.safetensors").touch()
    elif args[0] == "-o":
        Path("x").touch()
    monkeypatch.setattr(Pipeline, "fetch", lambda *_: pytest.fail("it was fetched"))
    code, _, err = place.run("convert", "owner/name", *args)
    assert code == 2
    assert "--force" in err


# -- several at once --------------------------------------------------------------------------------------------------


@pytest.fixture
def two(place):
    """Two adapters of one name."""
    for folder in "ab":
        shutil.copytree(place.folder / "adapter", place.folder / folder / "lo@ra")
    return [place.folder / folder / "lo@ra" for folder in "ab"]


@pytest.mark.parametrize("more", [["--force"], [], ["--to", "peft", "--force"]])
def test_a_batch_never_overwrites_itself(more, place, two):
    code, _, err = place.run("convert", *two, *more)
    assert (code, len(os.listdir())) == (2, 1)
    assert f"this run has just written it, from {two[0]}" in err
    assert os.listdir()[0].startswith("lo@ra")


def test_a_batch_spares_its_other_sources(place, lora):
    assert place.run("convert", lora, "--layers", "all")[0] == 0
    before = Path("adapter.adaptrix.safetensors").read_bytes()
    code, _, err = place.run("convert", lora, "adapter.adaptrix.safetensors", "--force")
    assert (code, "this is a source of this run" in err) == (2, True)
    assert Path("adapter.adaptrix.safetensors").read_bytes() == before


def test_one_name_is_for_one_source(place, two):
    code, _, err = place.run("convert", *two, "--name", "same", "--force")
    assert (code, os.listdir()) == (2, [])
    assert "one name for 2 sources" in err


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--layers", "0", "--prune"], ["--rank", "1"], ["--dtype", "fp16"]])
def test_what_was_written_is_counted(more, place, lora):
    code, out, _ = place.run("convert", lora, "-o", "x", *more, "--json")
    (told,) = json.loads(out)["results"]
    tensors, _ = safetensors_file.read(Path("x"))
    assert code == 0
    assert (told["tensors"], told["bytes"]) == (len(tensors), sum(tensor.nbytes for tensor in tensors.values()))


@pytest.mark.parametrize(
    ("more", "says", "silent"),
    [
        (["--rank", "1"], "--rank changes 6 deltas", "--layers"),
        (["--layers", "0"], "3 of 6 deltas are outside the plan 0", "--rank"),
        (["--layers", "0", "--redistribute", "nearest"], "--redistribute changes 3 deltas", "--rank"),
    ],
)
def test_what_a_folder_has_no_place_for_is_named(more, says, silent, place, lora):
    code, _, err = place.run("convert", lora, "--to", "peft", *more)
    assert (code, says in err, "--prune" in err, silent in err) == (2, True, True, False)


def test_no_layers_are_not_the_default_ones(place, lora):
    code, _, err = place.run("convert", lora, "--layers", "")
    assert (code, "'' is no policy" in err) == (2, True)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        *[(said, "BF16") for said in ("bf16", "BF16", "bfloat16", "torch.bfloat16", torch.bfloat16)],
        *[(said, "F16") for said in ("f16", "fp16", "float16", "half")],
        *[(said, "F32") for said in ("F32", "f32", "fp32", "float32", "float", torch.float32)],
        *[(said, "F8_E4M3") for said in ("fp8", "float8", "F8_E4M3", "float8_e4m3fn", torch.float8_e4m3fn)],
        *[("double", "F64"), ("F8_E5M2", "F8_E5M2"), ("float8_e5m2", "F8_E5M2"), ("fp8-e5m2", "F8_E5M2")],
        *[("int8", "INT8"), ("", ""), ("f", "F"), ("float8_e4m3fnuz", "FLOAT8_E4M3FNUZ")],
    ],
)
def test_dtypes_have_many_names(said, name):
    assert dtype_name(said) == name


def test_dtype_in_command_line_and_python(place, lora):
    assert place.run("convert", lora, "--dtype", "bfloat16", "-o", "x")[0] == 0
    assert adaptrix.convert(lora, "y", dtype="bf16").read_bytes() == Path("x").read_bytes()
    code, _, err = place.run("convert", lora, "--dtype", "int8")
    assert (code, "bf16" in err) == (2, True)


def test_warnings_reach_callers_in_python(place, lora):
    draft = Draft()
    draft.config["layers_to_transform"] = [0]
    draft.drop("layers.1")
    draft.write(place.folder / "half")
    with pytest.warns(adaptrix.AdaptrixWarning, match="none of its layers"):
        adaptrix.convert(place.folder / "half/adapter", "x", base=place.folder / "base", layers="1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adaptrix.convert(lora, "y", base=place.folder / "base")


def test_a_format_says_itself_what_it_carries():
    formats = {form.name: form for form in Pipeline().catalog.formats}
    assert formats["injection"].carries == FEATURES.keys()
    assert FEATURES.keys() - formats["peft"].carries == {"plan", "spectral", "mixed_dora", "reparametrised"}
    assert sorted(formats["peft"].writes) == ["README.md", *FILES]
    assert Options().layers is None


# -- check and inspect ------------------------------------------------------------------------------------------------


def test_a_base_that_is_no_model_does_not_hide_what_is_wrong_with_the_adapter(place):
    BAD["a NaN"].write(place.folder / "bad")
    (place.folder / "empty").mkdir()
    report = adaptrix.check(place.folder / "bad/adapter", base=place.folder / "empty")
    assert {problem.code for problem in report.problems} >= {"base-config", "nonfinite"}
    assert place.run("check", place.folder / "bad/adapter", "--base", place.folder / "empty")[0] == 1
    with pytest.raises(adaptrix.UsageError):
        adaptrix.check(place.folder / "bad/adapter", base="./nowhere")


def test_check_says_what_shapes_were_held_to(place, lora):
    assert "dims inferred from the tensors" in place.run("check", lora)[1]
    assert "dims of the base" in place.run("check", lora, "--base", place.folder / "base")[1]
    (place.folder / "base/config.json").write_text('{"model_type": "martian"}')
    code, out, _ = place.run("check", lora, "--base", place.folder / "base")
    assert (code, "shapes not checked against a model" in out, "inferred" in out) == (0, True, False)


def test_no_family_is_missed_where_nothing_was_read(place):
    draft = Draft()
    draft.config = {"peft_type": "OFT", "target_modules": ["q_proj"], "base_model_name_or_path": None}
    draft.tensors = {f"{PREFIX}{Q0}.ia3_l": np.ones((4, 1), np.float32)}
    draft.write(place.folder / "ia3")
    for command in ("check", "convert", "inspect"):
        code, out, err = place.run(command, place.folder / "ia3/adapter")
        assert (code, "OFT" in err, "architecture has all" in out + err) == (1, True, False)


@pytest.mark.parametrize("command", ["convert", "check", "inspect"])
def test_nothing_turns_while_the_hub_draws_its_bars(command, place, lora, monkeypatch):
    turning, fetched = [], []

    @contextlib.contextmanager
    def working(*_):
        turning.append(1)
        yield
        turning.pop()

    def watched(step):
        def call(*args):
            fetched.append(len(turning))
            return step(*args)

        return call

    monkeypatch.setattr(importlib.import_module(f"adaptrix.cli.{command}"), "working", working)
    for name in ("fetch", "base_config"):
        monkeypatch.setattr(Pipeline, name, watched(getattr(Pipeline, name)))
    assert place.run(command, lora, "--base", place.folder / "base")[0] == 0
    assert fetched == [0, 0]


def test_a_report_is_examined_once(place):
    BAD["a NaN"].write(place.folder / "bad")
    report = adaptrix.check(place.folder / "bad/adapter")
    assert report.examined().problems == report.problems
    assert "nonfinite" not in {p.code for p in Pipeline().read_and_bind(str(place.folder / "bad/adapter")).problems}


@pytest.fixture
def deep(place):
    """A delta in a layer that no model has."""
    draft = Draft()
    draft.add("other.layers.999999.self_attn.q_proj", 8, 8)
    draft.write(place.folder / "deep")
    return place.folder / "deep/adapter"


def test_a_deep_layer_takes_no_more_room_than_another(deep, place):
    _, out, _ = place.run("inspect", deep)
    assert len(out) < 10_000
    assert "999999" in out
    assert "not drawn: layers without a delta" in out


def test_nor_in_a_drawing(deep, place):
    pytest.importorskip("matplotlib")
    place.run("inspect", deep, "--plot", "x.svg", "-q")
    assert Path("x.svg").stat().st_size < 200_000


def test_a_picture_of_many_layers_and_roles_is_cut_with_a_word(place):
    draft = Draft()
    for number in range(70):
        draft.add(f"net.{number * 2}.block{number}", 4, 4)
    draft.write(place.folder / "wide")
    inspection = summarise(Pipeline().bind(Pipeline().read(str(place.folder / "wide/adapter"))))
    rows, layers, said = inspection.drawn(most_rows=5, most_layers=10)
    assert (len(rows), len(layers) <= 10, "more roles" in said) == (5, True, True)
    _, out, _ = place.run("inspect", place.folder / "wide/adapter")
    assert "more: --json has them all" in out


def test_a_drawing_that_is_there_is_told_before_anything_is_fetched(place, monkeypatch):
    pytest.importorskip("matplotlib")
    Path("x.svg").touch()
    monkeypatch.setattr(Pipeline, "fetch", lambda *_: pytest.fail("it was fetched"))
    assert place.run("inspect", "owner/name", "--plot", "x.svg")[0] == 2


# -- the rest of the surface ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["convert", "--json"], ["check", "--json", "--bas", "x"], ["convrt", "--json"], ["--jsno", "--json"]]
)
def test_misuse_is_json_too(args, place):
    code, out, err = place.run(*args)
    assert (code, err) == (2, "")
    (problem,) = json.loads(out)["problems"]
    assert (problem["code"], problem["severity"]) == ("usage", "error")


def test_json_is_inherited_from_the_group(place):
    told = json.loads(place.run("architectures", "--json", "show", "llama")[1])
    assert told["architecture"]["family"] == "llama"
    assert told == json.loads(place.run("architectures", "show", "llama", "--json")[1])


def test_derive_speaks_json(place):
    pytest.importorskip("transformers")
    code, out, _ = place.run("architectures", "derive", place.folder / "base", "--json")
    assert code == 0
    assert "[roles.q]" in json.loads(out)["toml"]


def test_everything_public_is_there_and_nothing_else():
    assert sorted(adaptrix.__all__) == adaptrix.__all__
    for name in adaptrix.__all__:
        assert getattr(adaptrix, name) is not None
    plugins_need = {"Architecture", "Bundle", "Command", "Format", "Generator", "Source", "hookimpl"}
    errors = {"AdaptrixError", "RefusedError", "UnreachableError", "UsageError", "AdaptrixWarning"}
    assert plugins_need | errors | {"Inspection", "CheckReport"} <= set(adaptrix.__all__)

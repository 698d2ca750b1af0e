"""Fits that are stopped, by Ctrl-C or by a full disk, and go on to the same bytes."""

import errno

import pytest

from adaptrix import cli
from adaptrix.errors import RefusedError, UsageError, refuse
from adaptrix.fitting import fitter as fitting
from adaptrix.fitting import refit as refitting
from adaptrix.fitting import resume as resuming
from adaptrix.fitting.fitter import Fitter
from adaptrix.formats import safetensors_file
from tests import test_fit
from tests.test_fit import fit

place, fitted = test_fit.place, test_fit.fitted


def interrupted(place, out, monkeypatch, at):
    """A fit that is stopped in a step, as by Ctrl-C; the error that ended it."""
    step = refitting.Refit._step

    def stopped(self, optimiser, number):
        if number == at:
            raise KeyboardInterrupt
        step(self, optimiser, number)

    with monkeypatch.context() as patch:
        patch.setattr(refitting.Refit, "_step", stopped)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(place, out)
    return caught.value


@pytest.mark.parametrize("at", [0, 11])
def test_a_fit_that_is_stopped_goes_on_to_the_same_bytes(place, fitted, tmp_path, monkeypatch, at):
    out = tmp_path / "x.adaptrix.safetensors"
    error = interrupted(place, out, monkeypatch, at)
    state = tmp_path / "x.adaptrix.safetensors.fitting"
    assert [state] == list(tmp_path.iterdir())
    assert any("the same command goes on" in note for note in error.__notes__)
    with monkeypatch.context() as patch:  # the layers are not chosen again
        patch.delattr(Fitter, "_chosen")
        assert fit(place, out).read_bytes() == fitted.read_bytes()
    assert [out] == list(tmp_path.iterdir())


def stopped_in_choice(place, out, monkeypatch, after, error):
    """A fit that ends while it chooses layers, one set at a time; the sets that it had measured, and the error."""
    sets, measured = [], Fitter._kl

    def limited(self, session, choices, windows):
        if len(sets) == after:
            raise error
        sets.append(choices)
        return measured(self, session, choices, windows)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_TOGETHER", 1)
        patch.setattr(Fitter, "_kl", limited)
        with pytest.raises(type(error)) as caught:
            fit(place, out, layers="fit:1")
    return sets, caught.value


@pytest.mark.parametrize("after", [2, 4])  # of 3 sets of two layers and 2 of one
def test_a_choice_that_is_stopped_goes_on_to_the_same_bytes(place, tmp_path, monkeypatch, after):
    whole = fit(place, tmp_path / "whole.adaptrix.safetensors", layers="fit:1")
    out = tmp_path / "x.adaptrix.safetensors"
    before, error = stopped_in_choice(place, out, monkeypatch, after, KeyboardInterrupt())
    assert f"x.adaptrix.safetensors.fitting keeps {after} of 5 sets" in error.__notes__[0]
    seen, measured = [], Fitter._kl

    def counted(self, session, choices, windows):
        seen.extend(choices if windows is self.corpus.choosing else [])
        return measured(self, session, choices, windows)

    monkeypatch.setattr(Fitter, "_kl", counted)
    assert fit(place, out, layers="fit:1").read_bytes() == whole.read_bytes()
    assert len(seen) == 5 - len(before)
    assert sorted(tmp_path.iterdir()) == sorted([whole, out])


def test_a_choice_of_another_fit_is_refused_and_what_is_refused_is_not_kept(place, tmp_path, monkeypatch):
    out = tmp_path / "x.adaptrix.safetensors"
    stopped_in_choice(place, out, monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(UsageError, match="the state of another fit"):
        fit(place, out, layers="fit:1", seed=7)
    stopped_in_choice(place, out, monkeypatch, 1, refuse("nonfinite", "base", "the model answers NaN"))
    assert list(tmp_path.iterdir()) == []
    _, error = stopped_in_choice(place, out, monkeypatch, 0, KeyboardInterrupt())
    assert not hasattr(error, "__notes__")  # nothing is there to go on from


def test_a_full_disk_leaves_what_was_kept_before(place, fitted, tmp_path, monkeypatch):
    out = tmp_path / "x.adaptrix.safetensors"
    write, written = safetensors_file.write, []

    def full(path, tensors, metadata):
        if len(written) == 4:  # in the midst of training
            raise OSError(errno.ENOSPC, "full", str(path))
        written.append("state" in metadata)
        write(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(resuming.safetensors_file, "write", full)
        with pytest.raises(RefusedError, match="the disk is full"):
            fit(place, out)
    assert written[-2:] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["x.adaptrix.safetensors.fitting"]
    assert fit(place, out).read_bytes() == fitted.read_bytes()


def test_the_state_of_another_fit_is_refused_and_kept(place, tmp_path, monkeypatch):
    out = tmp_path / "x.adaptrix.safetensors"
    interrupted(place, out, monkeypatch, 3)
    with pytest.raises(UsageError, match="the state of another fit"):
        fit(place, out, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["x.adaptrix.safetensors.fitting"]


def test_a_loss_that_is_no_number_is_refused_and_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(refitting, "_kl", lambda wanted, found: found.sum() * float("nan"))
    with pytest.raises(RefusedError, match="the loss of step 1 is nan"):
        fit(place, tmp_path / "x.adaptrix.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_keeps_when_it_is_stopped(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refitting.Refit, "_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    asked = ["--base", place / "base", "--layers", "fit:2", "--text", place / "text.txt", "--steps", "9"]
    code = cli.run(["convert", *map(str, [place / "lora", *asked, "-o", tmp_path / "x.adaptrix.safetensors"])])
    said = capsys.readouterr().err
    assert code == 130
    assert "x.adaptrix.safetensors.fitting keeps 0 of 9 steps: the same command goes on from there" in said

"""Sentences that say what a task does: sixteen ways for each kind of task, the last four kept for tests.

Sentences of the kept ways are never seen in training; their words are, in other sentences, for nothing here could
know a word that it never met. A digit is written as a digit, a place or a distance as a word, so that "2" is always a
digit of the list and "two" a distance.
"""

from __future__ import annotations

from benchmarks.world.operations import Affine, Cipher, Composed, Exchange, Reverse, Rotate, Sort, Task

WAYS, KEPT = 16, 4
SEEN, UNSEEN = range(WAYS - KEPT), range(WAYS - KEPT, WAYS)

_PLACES = ("first", "second", "third", "fourth", "fifth")
_COUNTS = ("no", "one", "two", "three", "four")

_AFFINE = (
    "multiply by {a} and add {b}",
    "multiply each digit by {a} , then add {b}",
    "times {a} plus {b}",
    "each digit times {a} plus {b} modulo 5",
    "scale by {a} and shift by {b}",
    "scale the digits by {a} , then shift them by {b}",
    "compute {a} x + {b}",
    "write {a} x + {b} modulo 5 for each digit x",
    "after you multiply by {a} , add {b} to each digit",
    "take {a} times the digit plus {b}",
    "please multiply the list by {a} and then add {b} to it",
    "the answer is {a} times each digit plus {b}",
    "please scale each digit by {a} and then add {b} modulo 5",
    "the answer is {a} x + {b} for the list",
    "take the digits times {a} , then shift by {b}",
    "multiply them by {a} and shift each digit by {b}",
)
_PAIR = {
    "exchange": "exchange {p} with {q}",
    "swap": "swap {p} with {q}",
    "write": "write {p} for {q}",
    "replace": "replace {p} with {q}",
}
#: what comes before the first exchange, its verb, what comes between two, and the verb of the second
_CIPHER = (
    ("", "exchange", " and ", "exchange"),
    ("", "swap", " and ", "swap"),
    ("you ", "exchange", " , then ", "exchange"),
    ("a cipher : ", "write", " , ", "write"),
    ("", "replace", " , ", "replace"),
    ("please ", "swap", " , and also ", "swap"),
    ("in the list ", "exchange", " , ", "exchange"),
    ("a cipher : ", "swap", " and ", "swap"),
    ("the code will ", "replace", " and ", "replace"),
    ("digit by digit ", "write", " , and also ", "write"),
    ("wherever you can , ", "swap", " , then ", "swap"),
    ("the code will ", "exchange", " and also ", "exchange"),
    ("please ", "exchange", " and ", "swap"),
    ("the code will ", "swap", " , then ", "exchange"),
    ("digit by digit ", "replace", " and ", "swap"),
    ("a cipher : ", "exchange", " , and also ", "write"),
)
_ROTATE = (
    "rotate by {k}",
    "rotate left by {k}",
    "move the digits {k} places to the left",
    "shift the list {k} places around",
    "turn the list {k} places left",
    "take the head of {k} and put it last",
    "please rotate the list by {k} places",
    "the list goes {k} places to the left",
    "rotate the digits {k} places",
    "move all {k} places around to the left",
    "a rotation of {k}",
    "a rotation of the list by {k} places",
    "please move the list {k} places to the left",
    "turn the digits left by {k}",
    "a rotation to the left by {k} places",
    "rotate all the digits around by {k}",
)
_EXCHANGE = (
    "exchange the {p} and the {q}",
    "swap the {p} and the {q} digit",
    "the {p} and the {q} change places",
    "swap places : {p} , {q}",
    "put the {p} where the {q} was and back",
    "please exchange the {p} digit with the {q} digit",
    "the {p} digit goes to the {q} place and back",
    "places {p} and {q} are exchanged",
    "let the {p} and {q} digit change places",
    "swap the digit in {p} place with the {q}",
    "an exchange of {p} and {q}",
    "exchange places {p} and {q}",
    "let the {p} and the {q} change",
    "please swap the {p} and {q} digit",
    "an exchange of the {p} with the {q} digit",
    "put the {p} and the {q} in change of places",
)
_REVERSE = (
    "reverse",
    "reverse the list",
    "write it backwards",
    "the list backwards",
    "turn the order around",
    "from the last to the first",
    "please reverse the digits",
    "put the digits in reverse order",
    "read from the last digit backwards",
    "the digits in reverse",
    "start with the last and go backwards",
    "give the list in reverse order",
    "please write the digits backwards",
    "the list in reverse order",
    "start with the last , reverse",
    "read the list backwards",
)
_SORT = (
    "sort {way}",
    "sort the list {way}",
    "put the digits in {way} order",
    "order them {way}",
    "the digits in {way} order",
    "arrange {way}",
    "please sort the digits {way}",
    "arrange the list in {way} order",
    "sorted {way}",
    "give the list sorted {way}",
    "make the list {way}",
    "an {way} order",
    "please arrange the digits {way}",
    "give the digits in {way} order",
    "order the list , {way}",
    "make them sorted {way}",
)
_JOINED = (
    "{first} , then {then}",
    "{first} and then {then}",
    "first {first} ; then {then}",
    "{first} ; {then}",
    "step one : {first} ; step two : {then}",
    "{first} , and after that {then}",
    "do this : {first} , then {then}",
    "{then} after this : {first}",
    "start so : {first} ; end so : {then}",
    "please {first} and after that {then}",
    "you {first} , you {then}",
    "{first} first , {then} second",
    "do this first : {first} ; after that {then}",
    "please start so : {first} , then {then}",
    "step one : {first} , and then {then}",
    "you {first} ; then {then}",
)
#: what a step of a composition is called: its parameters need not be said in sixteen ways
_SUMS = ("add {b}", "plus {b}", "add {b} to each digit", "shift by {b}")
_PRODUCTS = ("multiply by {a}", "times {a}", "multiply each digit by {a}", "scale by {a}")


def describe(task: Task, way: int) -> str:
    """The sentence of a task in one of the :data:`WAYS`."""
    match task:
        case Composed():
            return _JOINED[way].format(first=_step(task.first, way), then=_step(task.then, way))
        case Affine():
            return _AFFINE[way].format(a=task.a, b=task.b)
        case Cipher():
            return _cipher(task, _CIPHER[way])
        case Rotate():
            return _ROTATE[way].format(k=_COUNTS[task.by])
        case Exchange():
            return _EXCHANGE[way].format(p=_PLACES[task.one], q=_PLACES[task.other])
        case Reverse():
            return _REVERSE[way]
        case Sort():
            return _SORT[way].format(way="ascending" if task.up else "descending")


def _step(task: Task, way: int) -> str:
    """A step of a composition, briefly where it has one parameter."""
    match task:
        case Affine(a=1):
            return _SUMS[way % 4].format(b=task.b)
        case Affine():
            return _PRODUCTS[way % 4].format(a=task.a)
        case Cipher(pairs=((p, q),)):
            return list(_PAIR.values())[way % 4].format(p=p, q=q)
        case _:
            return describe(task, way)


def _cipher(task: Cipher, form: tuple[str, str, str, str]) -> str:
    before, verb, between, second = form
    clauses = [_PAIR[said].format(p=p, q=q) for said, (p, q) in zip((verb, second), task.pairs, strict=False)]
    return before + between.join(clauses)

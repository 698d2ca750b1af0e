"""JSON that nobody in their right mind would write, made from JSON that is right."""

import copy

from hypothesis import strategies as st

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**400, 2**63, 10**9, -(10**30), 1 << 41, 1e308, float("nan"), float("inf"), -0.0, 0.5]),
    st.sampled_from(["", "x", "../../etc/passwd", "\x1b[31m", "q" * 5000, "model.layers.0.self_attn.q_proj", "\u202e"]),
    st.sampled_from(["all", "middle", "module", "dora", "llama", "layers.1.q", "9" * 5000, "٣"]),
    st.lists(st.one_of(st.none(), st.integers(-1, 4), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=2),
)


def places(value, path=()):
    """The path of everything in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def put(value, path, odd, how="replace"):
    """A copy of a JSON value with the thing at ``path`` replaced, removed, renamed or doubled."""
    if not path:
        return odd
    value = copy.deepcopy(value)
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    if how == "replace" or isinstance(owner, list):
        owner[path[-1]] = odd
    elif how == "remove":
        del owner[path[-1]]
    else:
        owner[str(odd)[:60]] = owner[path[-1]] if how == "double" else owner.pop(path[-1])
    return value


def changed(value, draw):
    """A JSON value with one thing in it made odd, as hypothesis draws it."""
    path = draw(st.sampled_from(list(places(value))))
    return put(value, path, draw(ODD), draw(st.sampled_from(["replace", "remove", "rename", "double"])))

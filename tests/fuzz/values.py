"""JSON values of any kind, those that trip programs among them."""

from hypothesis import strategies as st

NUMBERS = st.integers(-3, 300) | st.sampled_from([2**31, 2**63, 10**400, 1.5, -0.0, 1e308])
NAMES = st.text(max_size=6) | st.sampled_from(["a\nb", "\ud800", "__class__", ""])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=6,
)

"""Random examples: the same in every run of the suite, and by night those of a seed."""

from hypothesis import given
from hypothesis import strategies as st

from tests.examples import SEED, examples


def tried(number):
    """The examples of a test that is made now."""
    found = []

    @examples(number)
    @given(st.integers())
    def test(n):
        found.append(n)

    test()
    return found


def test_by_night_a_seed_decides(monkeypatch):
    monkeypatch.delenv(SEED, raising=False)
    suite = tried(10)
    assert suite == tried(10) and len(suite) == 10
    monkeypatch.setenv(SEED, "1")
    first, again = tried(10), tried(10)
    monkeypatch.setenv(SEED, "2")
    other = tried(10)
    assert first == again and len(first) == 250 and other != first

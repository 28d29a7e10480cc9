"""Random examples: the same in every run of the suite, and by night those of a seed."""

from hypothesis import given
from hypothesis import strategies as st

from tests.examples import SEED, THOROUGH, examples


def tried(number, **options):
    """The examples of a test that is made now."""
    found = []

    @examples(number, **options)
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


def test_a_thorough_run_may_try_more(monkeypatch):
    monkeypatch.delenv(SEED, raising=False)
    monkeypatch.delenv(THOROUGH, raising=False)
    suite = tried(10, thorough=20)
    monkeypatch.setenv(THOROUGH, "1")
    assert len(suite) == len(tried(10)) == 10 and len(tried(10, thorough=20)) == 20

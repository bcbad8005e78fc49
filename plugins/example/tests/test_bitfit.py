"""BitFit is what it says it is."""

from toolkit.testing import assert_conforms


def test_it_keeps_its_contract() -> None:
    """With the norms and without."""
    assert_conforms("memory", "bitfit")
    assert_conforms("memory", "bitfit", options={"norms": False})

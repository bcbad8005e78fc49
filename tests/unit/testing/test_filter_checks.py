"""The conformance kit finds what is wrong with a filter that compares documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import PluginError
from toolkit.registry import Registry
from toolkit.testing import check_plugin

COMPARING = '''
from toolkit.api import CorpusFilter


class Comparing(CorpusFilter):
    """Compare the lengths of documents."""

    def signer(self, run):
        import numpy

        return lambda documents: SIGNATURES

    def earlier(self, signatures, run):
        import numpy

        rows = numpy.arange(len(signatures))
        return EARLIER
'''
SIGNATURES = "numpy.array([[len(one)] for one in documents], dtype='uint64').reshape(-1, 1)"
EARLIER = "numpy.full(len(rows), -1)"


def written(folder: Path, code: str, signatures: str = SIGNATURES, earlier: str = EARLIER) -> Registry:
    (folder / "filter").mkdir()
    code = code.replace("SIGNATURES", signatures).replace("EARLIER", earlier)
    (folder / "filter" / "comparing.py").write_text(code)
    return Registry.discover([folder])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"earlier": "numpy.maximum(rows - 1, -1)"}, ""),
        ({"earlier": "rows"}, "compared: for document [0] it names [0], which is not an earlier one"),
        ({"earlier": "[-1] * len(rows)"}, "compared: earlier returns [-1"),
        (
            {"signatures": "[len(one) for one in documents]"},
            "verdicts: it refuses: its signer returns None of shape ()",
        ),
        ({"signatures": SIGNATURES.replace("uint", "int")}, "verdicts: it refuses: its signer returns int64 of shape"),
        (
            {"signatures": SIGNATURES.replace("[len(one)]", "[hash(one) % 99]")},
            "elsewhere: in another process it says something else",
        ),
    ],
)
def test_what_is_wrong_with_a_filter_that_compares(change: dict[str, str], text: str, tmp_path: Path) -> None:
    checks = check_plugin("filter", "comparing", written(tmp_path, COMPARING, **change))
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    assert [one for one in failed if one.startswith(text)] if text else failed == []


def test_its_contract_is_that_of_filters_that_compare(tmp_path: Path) -> None:
    code = COMPARING.replace("def signer(", "def sign(").replace("(self, signatures, run)", "(self, every)")
    with pytest.raises(PluginError) as error:
        written(tmp_path, code).load("filter", "comparing")
    assert "it has no method signer(self, run)" in str(error.value)
    assert "earlier takes (self, every) where filter plugins take (self, signatures, run)" in str(error.value)


def test_a_filter_that_needs_held_out_documents_is_tried_with_some() -> None:
    checks = check_plugin("filter", "decontamination", options={"words": 5})
    assert [f"{check.name}: {check.detail}" for check in checks if not check.passed] == []
    (verdicts,) = [check.detail for check in checks if check.name == "verdicts"]
    assert "overlaps a test text" in verdicts

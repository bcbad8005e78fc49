"""Filters decide which documents are trained on: what is kept, what is counted, what is cached, and who is blamed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tests.tiny import resolved, texts, train, write_recipe
from toolkit.api import RunContext, UnavailableError, words
from toolkit.data import filter_parts, filter_stages, filtering, text_pieces
from toolkit.data.documents import CUT_COLUMN, contents_of
from toolkit.data.filter_pass import judging
from toolkit.data.shared_text import shared_text, shared_with_others
from toolkit.data.stats import FilterAccount
from toolkit.errors import RecipeError
from toolkit.recipe.schema import Component, component
from toolkit.registry import Registry
from toolkit.training.components import context_of, peek_documents
from toolkit.training.loading import documents_of
from toolkit.training.refusals import refusals_placed

COUNTING = '''
"""Made for a test."""

from pathlib import Path

from toolkit.api import Dropped, Filter, OptionError


class Counting(Filter):
    """Note each document in a file, and treat some of them badly."""

    version = {version}

    file: str
    """Where."""

    def judge(self, run):
        def judged(document):
            with Path(self.file).open("a") as out:
                out.write("judged\\n")
            if "refuse" in document:
                raise OptionError("not this one", option="file")
            if "break" in document:
                raise ZeroDivisionError("a bug")
            if "end" in document:
                import os

                os._exit(3)
            return None if "nothing" in document else document

        return judged

    def fingerprint(self, run):
        return Path(self.file).with_suffix(".salt").read_text() if Path(self.file).with_suffix(".salt").exists() else ""
'''


def local(folder: Path, version: int = 1) -> Registry:
    """A folder with the filter `counting`."""
    (folder / "filter").mkdir(parents=True, exist_ok=True)
    (folder / "filter/counting.py").write_text(COUNTING.replace("{version}", str(version)))
    return Registry.discover([folder])


def parts(registry: Registry, *filters: tuple[str, dict[str, Any]]) -> list[Component[Any]]:
    return [
        component(registry, "filter", name, options, ("dataset", "filters", number))
        for number, (name, options) in enumerate(filters)
    ]


def filtered(
    rows: list[str | None] | Dataset,
    run: RunContext,
    *filters: tuple[str, dict[str, Any]],
    registry: Registry | None = None,
) -> tuple[Dataset, tuple[FilterAccount, ...]]:
    import contextlib

    split = rows if isinstance(rows, Dataset) else Dataset.from_dict({"text": rows})
    registry = registry or Registry.discover()
    contents = contents_of(DatasetDict(train=split))["train"]
    chosen = parts(registry, *filters)
    return filtering.filtered(split, contents, chosen, run, registry, placed=lambda part: contextlib.nullcontext())


def test_documents_pass_through_the_filters_in_their_order(run_context: RunContext) -> None:
    rows = ["one two", "a b c d [1]", "a b c d", "one", None, "a b c [2] d", "e f g"]
    kept, (words, markers, duplicates, last) = filtered(
        rows,
        run_context,
        ("length", {"min_words": 3}),
        ("regex", {"pattern": r" ?\[\d\]", "replace": ""}),
        ("exact-duplicates", {}),
        ("length", {"max_characters": 5}),
    )
    assert kept["text"][:] == ["e f g"]
    assert (words.documents, words.dropped_documents, words.reasons) == (7, 3, {"fewer than 3 words": 3})
    assert words.dropped_characters == len("one two" + "one")
    assert [(example.text, example.found) for example in words.examples][:2] == [
        ("one two", "2 words"),
        ("one", "1 word"),
    ]
    assert (markers.documents, markers.dropped_documents, markers.changed_documents) == (4, 0, 2)
    assert markers.changed_characters == 2 * len(" [1]")
    first = markers.examples[0]
    assert (first.reason, first.text, first.found) == ("changed", "a b c d [1]", "a b c d")
    assert (duplicates.documents, duplicates.dropped_documents, duplicates.reasons) == (
        4,
        2,
        {"the same as an earlier one": 2},
    )
    assert (last.documents, last.reasons) == (2, {"more than 5 characters": 1})


def test_examples_show_every_reason_before_the_second_of_one(run_context: RunContext) -> None:
    rows = ["a"] * 30 + ["word " * 30] + ["b c d"]
    _, (account,) = filtered(rows, run_context, ("length", {"min_words": 2, "max_words": 20}))
    assert len(account.examples) == 10
    assert [example.reason for example in account.examples][:2] == ["fewer than 2 words", "more than 20 words"]
    assert account.reasons == {"fewer than 2 words": 30, "more than 20 words": 1}


def test_whether_a_document_was_cut_off_stays_with_it(run_context: RunContext) -> None:
    split = Dataset.from_dict(
        {"text": ["a b", "x", "c d!", "e f!"], CUT_COLUMN: [True, True, False, True], "other": [1] * 4}
    )
    kept, _ = filtered(split, run_context, ("length", {"min_words": 2}), ("regex", {"pattern": "!", "replace": "."}))
    assert kept.to_dict() == {"text": ["a b", "c d.", "e f."], CUT_COLUMN: [True, False, True]}


def test_a_second_start_filters_nothing_again(run_context: RunContext, tmp_path: Path) -> None:
    log = tmp_path / "judged.txt"
    rows = [f"number {number}" for number in range(20)]

    def judged(registry: Registry, documents: list[str] = rows) -> int:
        log.write_text("")
        filtered(documents, run_context, ("counting", {"file": str(log)}), registry=registry)
        return len(log.read_text().splitlines())

    registry = local(tmp_path / "one")
    assert [judged(registry), judged(registry)] == [20, 0]
    assert judged(registry, rows[:-1]) == 19, "other documents"
    (tmp_path / "judged.salt").write_text("a list has changed")
    assert [judged(registry), judged(registry)] == [20, 0]
    newer = local(tmp_path / "two", version=2)
    assert [judged(newer), judged(newer)] == [20, 0]
    for file in run_context.cache.glob("filtered/*/rows.npy"):
        file.write_bytes(file.read_bytes()[:-8])
    assert judged(newer) == 20, "a damaged entry is made again"


def corpus(count: int) -> list[str | None]:
    draw = random.Random(3)
    words = [f"word{number}" for number in range(500)]
    return [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(count)]


CHAIN = (
    ("length", {"min_words": 5}),
    ("regex", {"pattern": "word1(?=[ 0-9])", "replace": "one"}),
    ("near-duplicates", {}),
    ("exact-duplicates", {}),
)


def test_several_processes_filter_as_one_does(
    run_context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = corpus(4000)
    rows += rows[:300]
    one = filtered(rows, run_context, *CHAIN)
    monkeypatch.setattr(filter_stages, "BYTES_WORTH_PROCESSES", 0)
    monkeypatch.setattr(filter_stages, "processors", lambda: 2)
    two = filtered(rows, replace(run_context, cache=tmp_path / "other"), *CHAIN)
    assert one[1] == two[1]
    assert one[0]["text"][:] == two[0]["text"][:]
    assert one[1][2].dropped_documents > 200


def test_filters_that_were_interrupted_go_on_where_they_were(
    run_context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "judged.txt"
    rows = [f"{text} {number}" for number, text in enumerate(corpus(300))]
    rows[250] = "break where the last of them has come to"
    registry = local(tmp_path / "one")
    chain = (*CHAIN, ("counting", {"file": str(log)}))
    monkeypatch.setattr(text_pieces, "BYTES_PER_PIECE", 2000)
    monkeypatch.setattr(filter_parts, "CHARACTERS_PER_PART", 5000)
    with pytest.raises(ZeroDivisionError):
        filtered(rows, run_context, *chain, registry=registry)
    before = len(log.read_text().splitlines())
    kept = {file.name: file.stat().st_ino for file in run_context.cache.glob("filtered/.unfinished-*/*")}
    assert "001-earlier.npy" in kept
    assert not [name for name in kept if name.startswith("001-0")], "what was compared needs no signatures any more"
    assert len([name for name in kept if name.startswith("000-0")]) > 5

    # The same filter, which finds what it lacked.
    monkeypatch.setattr(registry.load("filter", "counting"), "judge", lambda self, run: noting(log))
    log.write_text("")
    found = filtered(rows, run_context, *chain, registry=registry)
    assert 0 < len(log.read_text().splitlines()) < before, "only what was not finished is judged"
    assert not list(run_context.cache.glob("filtered/.unfinished-*"))

    alone = replace(run_context, cache=tmp_path / "alone")
    undisturbed = filtered(rows, alone, *chain, registry=registry)
    assert found[1] == undisturbed[1]
    assert found[0]["text"][:] == undisturbed[0]["text"][:]
    one, other = (
        {file.name: file.read_bytes() for file in cache.glob("filtered/*/*")}
        for cache in (run_context.cache, alone.cache)
    )
    assert one == other


def noting(log: Path) -> Any:
    def judged(document: str) -> str:
        with log.open("a") as out:
            out.write("judged\n")
        return document

    return judged


def test_a_damaged_part_is_made_again(run_context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{text} {number}" for number, text in enumerate(corpus(100))]
    split = Dataset.from_dict({"text": rows})
    monkeypatch.setattr(text_pieces, "BYTES_PER_PIECE", 2000)
    monkeypatch.setattr(filter_parts, "CHARACTERS_PER_PART", 5000)
    (one,) = parts(Registry.discover(), ("length", {"min_words": 10}))
    done: list[int] = []

    def work(pieces: Any) -> Any:
        for outcome in map(judging([one.plugin], run_context), pieces):
            done.append(len(outcome.documents))
            yield outcome

    def outcomes() -> list[bytes]:
        done.clear()
        return [outcome.to_bytes() for outcome in filter_parts.in_parts(split, run_context.cache / "000", work)]

    made = outcomes()
    assert sum(done) == 100
    files = sorted(run_context.cache.glob("000-*"))
    assert len(files) == len(made) > 3
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].unlink()
    assert outcomes() == made
    assert 0 < sum(done) < 100, "the first part was not made again"
    assert outcomes() == made
    assert not done


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ("refuse", RecipeError, r"tiny.yaml:\d+:\d+: dataset.filters\[0\].file: not this one"),
        ("nothing", RecipeError, r"dataset.filters\[0\].plugin: its judge returns None, and neither text nor Dropped"),
        ("break", ZeroDivisionError, "a bug"),
        ("end", UnavailableError, "a worker process ended with status 3"),
    ],
)
def test_what_a_filter_does_wrong_in_another_process_is_told_in_its_place(
    document: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    local(tmp_path / "plugins")
    texts(tmp_path).write_text("fine\n" * 50 + f"{document}\n")
    filters = [{"plugin": "counting", "file": str(tmp_path / "judged.txt")}]
    recipe = write_recipe(tmp_path, plugin_paths=["./plugins"], dataset={"filters": filters})
    monkeypatch.setattr(filter_stages, "BYTES_WORTH_PROCESSES", 0)
    monkeypatch.setattr(filter_stages, "processors", lambda: 2)
    chosen = resolved(recipe)
    with pytest.raises(error, match=message) as raised:
        documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))
    if error is ZeroDivisionError:
        assert "in the filter counting" in raised.value.__notes__


def test_a_filter_that_drops_everything_is_named_with_examples(tmp_path: Path, cache: Path) -> None:
    recipe = write_recipe(
        tmp_path, dataset={"filters": [{"plugin": "length", "min_words": 2}, {"plugin": "length", "min_words": 99}]}
    )
    chosen = resolved(recipe)
    with pytest.raises(RecipeError) as error:
        documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))
    told = str(error.value)
    line = next(number for number, line in enumerate(recipe.read_text().splitlines(), 1) if '"min_words": 99' in line)
    assert f"tiny.yaml:{line - 2}:" in told
    assert "dataset.filters[1]: length drops every document that reaches it, 200: 200 fewer than 99 words" in told
    assert told.count("\n  fewer than 99 words ('") == 10


def test_the_training_documents_are_filtered_before_any_are_drawn_or_held_out(tmp_path: Path, cache: Path) -> None:
    file = texts(tmp_path)
    file.write_text(file.read_text() * 2)
    options = {"filters": ["exact-duplicates"], "eval_fraction": 0.5, "max_samples": 150}
    chosen = resolved(write_recipe(tmp_path, dataset=options))
    data, (account,) = documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))
    assert (account.documents, account.dropped_documents) == (400, 200)
    assert (len(data["train"]), len(data["validation"])) == (75, 75)
    assert not {*data["train"]["text"][:]} & {*data["validation"]["text"][:]}


def test_what_a_dataset_holds_out_itself_stays_as_it_is(tmp_path: Path, cache: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("too short\n")
    options = {
        "filters": [{"plugin": "length", "min_words": 5}],
        "eval_fraction": None,
        "validation_files": str(held_out),
    }
    chosen = resolved(write_recipe(tmp_path, dataset=options))
    data, _ = documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))
    assert data["validation"]["text"][:] == ["too short"]


def test_held_out_text_that_stands_in_the_training_text_is_counted(run_context: RunContext) -> None:
    sentence = "Thirteen words in a row, which stand in both: that is what counts."
    train_rows = ["nothing of note " * 9, f"before {sentence.upper()} after", "other words " * 20]
    held_out = [f"It begins otherwise. {sentence}", "short", " ".join(sentence.split()[:-1]) + " no " * 20]
    data = DatasetDict(train=Dataset.from_dict({"text": train_rows}), validation=Dataset.from_dict({"text": held_out}))
    found = shared_text(data, contents_of(data), run_context)
    assert found is not None
    assert (found.documents, found.checked, found.training_checked) == (1, 2, 1.0)
    assert found.copied == 0
    passages = sum(max(0, len(words(text)) - 12) for text in held_out)
    assert found.share == pytest.approx(1 / passages)
    assert found.examples == ("thirteen words in a row which stand in both that is what counts",)
    known = contents_of(data)
    assert shared_text({}, known, run_context) == found, "what is known is not read again"
    alone = DatasetDict(train=data["train"])
    assert shared_text(alone, contents_of(alone), run_context) is None


def test_of_much_text_evenly_spaced_documents_are_compared(
    run_context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.data import shared_text as module

    rows = [" ".join(f"{number}x{word}" for word in range(20)) for number in range(100)]
    data = DatasetDict(train=Dataset.from_dict({"text": rows}), validation=Dataset.from_dict({"text": rows[:8]}))
    monkeypatch.setattr(module, "TRAINING_CHARACTERS", sum(map(len, rows)) // 4)
    found = shared_text(data, contents_of(data), run_context)
    assert found is not None
    assert found.training_checked == pytest.approx(0.2, abs=0.06)
    assert 0 < found.documents < 8


def splits(train: list[str], held_out: list[str] | None = None) -> DatasetDict:
    both = {"train": train} | ({"validation": held_out} if held_out else {})
    return DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in both.items()})


def test_the_sources_of_a_mixture_are_compared_with_each_other(run_context: RunContext) -> None:
    pages = [" ".join(f"{number}x{word}" for word in range(30)) for number in range(6)]
    sources = {
        "web": splits([pages[0], pages[1]], [pages[4], pages[5]]),
        "code": splits([pages[2], f"{pages[4]} and more", pages[0]], [pages[1], "something else"]),
        "math": splits([pages[3]]),
    }
    given = {name: (data, contents_of(data)) for name, data in sources.items()}
    found = shared_with_others(given, run_context)
    assert {name: [*others] for name, others in found.items()} == {
        "web": ["code", "math"],
        "code": ["web", "math"],
        "math": [],
    }
    assert (found["web"]["code"].documents, found["web"]["code"].checked, found["web"]["code"].copied) == (1, 2, 1)
    assert found["web"]["code"].share == 0.5
    assert found["code"]["web"].examples == (" ".join(pages[1].split()[:13]),)
    assert found["web"]["math"].documents == found["code"]["math"].documents == 0
    known = {name: (dict[str, Dataset](), contents) for name, (_, contents) in given.items()}
    assert shared_with_others(known, run_context) == found, "what is known is not read again"


@pytest.mark.parametrize("held_out", ["eval_fraction", "validation_files"])
def test_training_documents_that_share_text_with_the_held_out_ones_are_dropped(
    held_out: str, tmp_path: Path, cache: Path
) -> None:
    lines = [" ".join(f"{number // 2}x{word}" for word in range(20)) + f" {number}" for number in range(100)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    (tmp_path / "held-out.txt").write_text("\n".join(lines[:10]))
    options: dict[str, Any] = {"eval_fraction": 0.1} if held_out == "eval_fraction" else {"eval_fraction": None}
    if held_out == "validation_files":
        options["validation_files"] = str(tmp_path / "held-out.txt")

    def loaded(*filters: Any) -> tuple[DatasetDict, tuple[FilterAccount, ...]]:
        chosen = resolved(write_recipe(tmp_path, dataset={"filters": [*filters], **options}))
        return documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))

    before, _ = loaded()
    after, (last, words) = loaded("decontamination", {"plugin": "length", "min_words": 2})
    assert (last.name, words.name) == ("length", "decontamination"), "what needs held-out documents comes last"
    assert after["validation"]["text"][:] == before["validation"]["text"][:]
    beginnings = {text.split()[0] for text in after["validation"]["text"][:]}
    kept = [text for text in before["train"]["text"][:] if text.split()[0] not in beginnings]
    assert 0 < len(kept) < len(before["train"])
    assert after["train"]["text"][:] == kept
    assert words.dropped_documents == len(before["train"]) - len(kept)
    peek_documents(resolved(tmp_path / "tiny.yaml"))


def test_without_held_out_documents_there_is_nothing_to_compare_with(tmp_path: Path, cache: Path) -> None:
    chosen = resolved(write_recipe(tmp_path, dataset={"filters": ["decontamination"], "eval_fraction": None}))
    with pytest.raises(
        RecipeError, match=r"dataset.filters\[0\]: nothing is held out to compare with; set eval_fraction"
    ):
        documents_of(chosen.recipe.dataset, chosen.recipe, context_of(chosen, tmp_path))


def test_the_warning_names_how_much_is_shared_and_the_cure() -> None:
    from toolkit.report.passages import shared_text as warnings

    shared = {"words": 13, "checked": 76, "documents": 14, "training_checked": 1.0, "examples": ["a passage"]}
    measured = {**shared, "share": 0.072, "copied": 1}
    (alone,) = warnings({"shared_text": measured})
    assert alone.startswith("14 of 76 held-out documents share 13 words in a row with the training documents, 7.2% of")
    assert "1 document for the most part" in alone
    assert alone.endswith("... filters: [decontamination] on the dataset drops the training documents that do so")
    (earlier,) = warnings({"shared_text": shared})
    assert "%" not in earlier
    assert warnings({"shared_text": {**measured, "documents": 0}}) == warnings({"shared_text": None}) == []
    sources = {"web": {"shared_text": None, "shared_with": {"code": measured}}, "code": {"shared_text": measured}}
    one, other = warnings({"sources": sources})
    assert one.startswith("web: 14 of 76")
    assert "the training documents of code, 7.2%" in one
    assert "filters: [{plugin: decontamination, files: FILES}] on code, with these texts in FILES, drops" in one
    assert other.startswith("code: 14 of 76")


@pytest.mark.slow
def test_a_run_tells_what_its_filters_did_and_resumes_with_them(tmp_path: Path, cache: Path) -> None:
    from tests.command_line import toolkit
    from tests.tiny import assert_same_run, train_in_two
    from toolkit.events import DataPrepared
    from toolkit.report.lines import told

    file = texts(tmp_path)
    file.write_text(file.read_text() * 2 + file.read_text().splitlines()[0] + " once more\n")
    recipe = write_recipe(tmp_path, dataset={"filters": [{"plugin": "length", "min_words": 6}, "exact-duplicates"]})
    result, events = train(recipe)
    (prepared,) = [event for event in events if isinstance(event, DataPrepared)]
    lines = told(prepared)
    assert any(line.strip().startswith("exact-duplicates") and "dropped" in line and "tokens" in line for line in lines)
    account = json.loads((result.folder / "data.json").read_text())["filters"]
    assert [one["name"] for one in account] == ["length", "exact-duplicates"]
    assert account[1]["documents"] == account[0]["documents"] - account[0]["dropped_documents"]
    assert prepared.account.validation
    assert prepared.account.train.documents + prepared.account.validation.documents == (
        account[1]["documents"] - account[1]["dropped_documents"]
    )
    shown = toolkit("run", "show", str(result.folder)).out
    assert "exact-duplicates" in shown
    toolkit("run", "report", str(result.folder))
    page = (result.folder / "report.html").read_text()
    assert "What the filters made of the training documents" in page
    assert "fewer than 6 words" in page
    other = tmp_path / "other"
    other.mkdir()
    (other / "texts.txt").write_text(file.read_text())
    again = train_in_two(
        write_recipe(other, dataset={"filters": [{"plugin": "length", "min_words": 6}, "exact-duplicates"]}),
        stop_after=3,
    )
    assert_same_run(result.folder, again.folder)


def test_places_in_the_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        dataset={
            "filters": [
                {"plugin": "length", "min_words": 5},
                {"plugin": "lenght"},
                {"plugin": "length"},
                {"plugin": "regex", "pattern": "("},
            ]
        },
    )
    with pytest.raises(RecipeError) as error:
        resolved(recipe)
    told = str(error.value)
    assert "dataset.filters[1].plugin: no filter plugin is named 'lenght'; did you mean 'length'?" in told
    assert "dataset.filters[2]: it limits nothing" in told
    assert "dataset.filters[3]: '(' is no regular expression: missing )" in told
    with pytest.raises(RecipeError, match=r"dataset.filters: must be a list"):
        resolved(write_recipe(tmp_path, dataset={"filters": "length"}))
    with pytest.raises(RecipeError, match=r"dataset.filter: no such option; did you mean 'filters'\?"):
        resolved(write_recipe(tmp_path, dataset={"filter": []}))
    with refusals_placed(resolved(write_recipe(tmp_path)).recipe, ("dataset",)):
        pass


def test_what_a_filter_lacks_is_told_with_the_first_rows(tmp_path: Path, cache: Path) -> None:
    lacking = {"plugin": "decontamination", "files": "nowhere.txt"}
    recipe = write_recipe(tmp_path, dataset={"filters": ["exact-duplicates", lacking]})
    with pytest.raises(RecipeError, match=r"tiny.yaml:\d+:\d+: dataset.filters\[1\].files: no file matches"):
        peek_documents(resolved(recipe))


def test_the_resolved_recipe_has_the_filters_and_says_who_set_them(tmp_path: Path) -> None:
    from toolkit.recipe.identity import identity
    from toolkit.recipe.resolve import load

    chosen = resolved(write_recipe(tmp_path, dataset={"filters": [{"plugin": "length", "min_words": 5}]}))
    origins = chosen.origins()
    assert origins["dataset.filters[0].min_words"][0] == 5
    assert origins["dataset.filters[0].min_words"][1].startswith("line ")
    assert origins["dataset.filters[0].max_words"] == (None, "default of length")
    again = tmp_path / "again.yaml"
    again.write_text(chosen.to_yaml())
    assert load(str(again)).dataset == chosen.recipe.dataset
    assert identity(chosen)["dataset.filters[0].min_words"] == 5
    without = resolved(write_recipe(tmp_path, "without"))
    assert not [key for key in identity(without) if "filters" in key]
    overridden = resolved(tmp_path / "tiny.yaml", "dataset.filters.0.min_words=7")
    assert identity(overridden)["dataset.filters[0].min_words"] == 7

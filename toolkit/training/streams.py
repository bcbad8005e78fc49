"""The streams of a recipe: looked up, and prepared beside the training or before it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from toolkit.api import OptionError, RunContext, Stream, StreamingDataset, UnavailableError
from toolkit.data.block_writer import Packer
from toolkit.data.documents import Contents
from toolkit.data.filtering import identity
from toolkit.data.kept_contents import LazyDocuments, SourceFacts
from toolkit.data.packed_dataset import open_blocks
from toolkit.data.packing import EXCERPT_BLOCKS, PackedData, content_key, excerpt
from toolkit.data.preparing_process import PreparingProcess
from toolkit.data.read_back import differs
from toolkit.data.stats import DataAccount, SplitAccount
from toolkit.data.stream_preparation import StreamToPrepare, prepare_stream
from toolkit.data.stream_state import state_of
from toolkit.data.stream_writer import BEGINNING_FILE, TOKENS_FILE
from toolkit.data.streamed_blocks import Arrival, GrowingBlocks, StreamedBlocks, StreamedData
from toolkit.data.taking_turns import taking_turns
from toolkit.recipe.length import total_steps
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.streams import streaming
from toolkit.system import distributed
from toolkit.training.known_source import Source, SourceKey
from toolkit.training.loading import documents_of
from toolkit.training.refusals import placed, refusals_placed

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase


def streamed_source(key: SourceKey, context: RunContext) -> Source:
    """What is known of a stream without reading it; its documents are its beginning, read where they are needed.

    Raises:
        RecipeError, UnavailableError: it cannot be looked up.
    """
    part, recipe = key.part, key.recipe

    def load() -> DatasetDict:
        return documents_of(part, recipe, context)[0]

    with refusals_placed(recipe, part.path):
        stream = streaming(part.plugin).stream(context)
    digest = _digest(streaming(part.plugin), stream)
    for each in part.filters:
        with refusals_placed(recipe, each.path):
            digest = hashlib.sha256(json.dumps([digest, identity([each], context)]).encode()).hexdigest()[:32]
    facts = SourceFacts({"train": Contents(digest, 0, 0)})
    return Source(key.source, part.path, LazyDocuments(load), facts, stream)


def _digest(dataset: StreamingDataset, stream: Stream) -> str:
    """What identifies the documents: the commit of the files, say, their order, and what is held out."""
    order = [
        dataset.training_files(stream),
        list(stream.validation_files),
        dataset.eval_samples,
        dataset.shuffle_tokens,
    ]
    return hashlib.sha256(json.dumps([stream.identity, order]).encode()).hexdigest()[:32]


def streamed(
    resolved: ResolvedRecipe,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    context: RunContext,
    *,
    beside: bool,
) -> StreamedData:
    """The blocks of a stream: all of them prepared, or, `beside` the training, as soon as it can be judged.

    Raises:
        RecipeError: an option has to change; with its place.
        UnavailableError: the machine or the network lacks something.
    """
    try:
        return _streamed(resolved, source, tokenizer, context, beside=beside)
    except (OptionError, UnavailableError) as error:
        raise placed(error, resolved.recipe, source.path) from error


def prepared_whole(
    resolved: ResolvedRecipe, source: Source, tokenizer: PreTrainedTokenizerBase, context: RunContext
) -> PackedData:
    """The blocks of a stream that is a source of a mixture, which reads them in an order of its own.

    Raises:
        RecipeError, UnavailableError: as for `streamed`.
    """
    data = streamed(resolved, source, tokenizer, context, beside=False)
    return PackedData(data.train.blocks, data.validation, data.account, data.from_cache)


def _streamed(
    resolved: ResolvedRecipe, source: Source, tokenizer: PreTrainedTokenizerBase, context: RunContext, *, beside: bool
) -> StreamedData:
    training, objective = resolved.training, resolved.recipe.objective.plugin
    part = sources_of(resolved.recipe)[source.name]
    dataset = streaming(part.plugin)
    key = content_key(source.facts.contents, tokenizer, objective)
    assert source.stream
    entry = context.cache / "streams" / key
    work = StreamToPrepare(dataset, source.stream, tokenizer, objective, entry, f"stream-{key}", part.filters)
    blocks, patience = work.blocks, float(training.ddp_timeout)
    work.check_files()
    from_cache, process = work.is_complete, None
    if not from_cache and not beside:
        with taking_turns(context, work.lock, patience=patience) as alone:
            prepare_stream(work, alone)
    elif not from_cache and distributed.local_rank() == 0:
        process = PreparingProcess(work, context, patience=patience)
    arrival = Arrival(work.entry, process, patience=patience)
    state = arrival.wait_for(lambda now: now.held_out is not None and now.blocks > 0, 1, context.progress)
    arrival.placed = lambda error: placed(error, resolved.recipe, source.path)  # `streamed` adds it up to here
    length = total_steps(training, block_size=objective.block_size, blocks=blocks) * training.global_batch_size
    begun = _account(work, key, state.held_out or {})
    growing = _growing(work, begun, blocks, context.seed)
    if differs(growing, work.entry / BEGINNING_FILE, {}, "train", tokenizer, objective):
        raise OptionError(
            f"the tokenizer gives other ids than those that are prepared: it is not deterministic, or {work.entry} is "
            f"damaged; if its tokenizer.json has no dropout, remove that folder, and it is prepared again",
            option="tokenizer",
        )
    return StreamedData(
        train=StreamedBlocks(growing, arrival, length=length, window=work.window, seed=training.seed),
        validation=open_blocks(work.entry, "validation", begun, context.seed) if begun.validation else None,
        begun=begun,
        work=work,
        from_cache=from_cache,
    )


def _account(work: StreamToPrepare, key: str, held_out: dict[str, object]) -> DataAccount:
    packer = Packer(work.tokenizer, work.objective)
    state, room = state_of(work.entry), packer.room
    most = min(state.blocks, EXCERPT_BLOCKS)
    return DataAccount(
        train=state.account(blocks=work.blocks, room=room, frame_tokens=packer.frame_tokens),
        validation=SplitAccount(**held_out) if held_out else None,  # type: ignore[arg-type] # plain data
        block_size=work.objective.block_size,
        vocabulary_size=len(work.tokenizer),
        token_type=packer.token_type,
        excerpt=excerpt(work.entry / TOKENS_FILE, packer.token_type, work.tokenizer, work.objective, most=most),
        key=key,
    )


def _growing(work: StreamToPrepare, account: DataAccount, blocks: int, seed: int) -> GrowingBlocks:
    import numpy

    shape = (blocks, account.block_size)
    tokens = numpy.memmap(work.entry / TOKENS_FILE, dtype=account.token_type, mode="r", shape=shape)
    growing = GrowingBlocks(tokens, account.block_size, seed)
    growing.entry, growing.tokens_per_block = work.entry, Packer(work.tokenizer, work.objective).room
    return growing

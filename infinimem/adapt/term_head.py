"""Training of the term head (model/term_head.py), on documents with questions.

- the model reads every document once, up to the layer that the head looks at; the head's inputs at the words of
  passages and questions are kept in the directory `features`, from which a run that was stopped goes on
- then the head is trained: among all passages of a document, those with the answer shall have the highest score
- one document in ten is kept apart. These documents decide the share of BM25, and show how well the best score tells
  whether a document has an answer at all
"""

from __future__ import annotations

import io
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.documents import SEPARATOR
from ..datasets.questions import Question
from ..errors import DamagedCheckpoint, InvalidConfig, RunChanged, RunExists, TrainingDataError
from ..model.adapter import copy_adapter, load_adapter
from ..model.identity import differences
from ..model.settings import TRAINABLE
from ..model.term_head import HeadSettings, TermHead, write_head
from ..search.query import echo
from ..search.ranking import LearnedRanker, Vectors
from ..search.word_vectors import WordVectors
from ..storage.files import make_directory, write_atomically
from ..text.term_weights import last_tokens, to_bytes
from ..text.tokens import split_blocks
from ..text.words import rarity, spans, stems
from .checkpoint import hash_file
from .documents import QuestionDocument, question_documents

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel
    from .config import TermHeadRun

TOGETHER = 40  # documents of a single paragraph that are read as one
APART = 10  # one document in this number of documents is not trained on
# The share of the questions about a document that is refused, so that many more of the questions about other documents
# can be refused.
OWN_REFUSED = 0.04
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # shares of BM25 to choose from


@dataclass
class Asked:
    """A question.

    inputs: (N, E), of the layer at the words of the question.
    stems: (N,), indexes of the stems of the words; -1 for stems that the document does not have.
    right: indexes of the passages with the answer.
    """

    text: str
    inputs: Tensor
    stems: Tensor
    right: list[int]


@dataclass
class Bundle:
    """The training data of the head from one document.

    words: (W, E) float16, inputs at the last tokens of the words of all passages.
    owners: (W,), index of the passage of each word.
    stems: (W,), index of the stem of each word.
    rarity: (V,), idf of each stem.
    asked: the questions.
    """

    document: QuestionDocument
    words: Tensor
    owners: Tensor
    stems: Tensor
    rarity: Tensor
    asked: list[Asked]

    @property
    def count(self) -> int:
        """Number of passages."""
        return len(self.document.passages)


def documents(paths: Sequence[Path], tokens: int, model: InfiniModel, seed: int) -> list[QuestionDocument]:
    """Documents of every file in a random order, up to `tokens` tokens a file.

    TOGETHER documents of a single paragraph become one document. Raises TrainingDataError where there are fewer than
    APART documents.
    """
    chosen = []
    for path in paths:
        found, used = question_documents(path), 0
        random.Random(seed).shuffle(found)
        single = [document for document in found if len(document.paragraphs) == 1]
        found = [document for document in found if len(document.paragraphs) > 1]
        found += [_together(single[start : start + TOGETHER]) for start in range(0, len(single), TOGETHER)]
        for document in found:
            if used < tokens and len(document.passages) > 1:
                used += len(model.encoder.encode(SEPARATOR.join(document.paragraphs)))
                chosen.append(document)
    if len(chosen) < APART:
        raise TrainingDataError(f"there are {len(chosen)} documents of several passages; give at least {APART}")
    return chosen


def _together(single: Sequence[QuestionDocument]) -> QuestionDocument:
    questions = [
        replace(question, paragraphs=(index,))
        for index, document in enumerate(single)
        for question in document.questions
    ]
    return QuestionDocument(single[0].title, [document.paragraphs[0] for document in single], questions)


def features(
    model: InfiniModel, document: QuestionDocument, layer: int, most: int, rng: random.Random
) -> dict[str, np.ndarray]:
    """Inputs of a layer at the words of a document and of at most `most` of its questions, as `bundle` takes them."""
    text = SEPARATOR.join(document.paragraphs)
    blocks, rest = split_blocks(text)
    tokens, ends = model.encoder.encode_placed([*blocks, rest] if rest else blocks)
    read = torch.cat([part.half() for part in inputs_while_reading(model, tokens, layer)])
    places = [place for p in document.passages for place in last_tokens(ends, p.start, p.text)]
    asked = rng.sample(range(len(document.questions)), min(most, len(document.questions)))
    seen = [_asked(model, document.questions[index], layer) for index in asked]
    return {
        "words": read[[min(place, len(tokens) - 1) for place in places]].cpu().numpy(),
        "asked": np.array(asked),
        "questions": np.concatenate(seen),
    }


@torch.no_grad()
def inputs_while_reading(model: InfiniModel, tokens: Iterable[int], layer: int) -> Iterator[Tensor]:
    """The input of a layer's attention while tokens are read into an empty memory, (T, E) a segment.

    Nothing above that layer is computed.
    """
    cache = model.new_cache()
    for above in cache.layers[layer:]:
        above.heads, above.carry = (), 0
    cache.watched, cache.enough = layer, True
    for segment in model.segmenter.split(tokens):
        model.read_segment(torch.tensor([segment]), cache)
        yield cache.watched_inputs()[0]


def _asked(model: InfiniModel, question: Question, layer: int) -> np.ndarray:
    places, seen = echo(model, question.text, layer)
    return seen[[min(place, len(seen) - 1) for place in places]].half().cpu().numpy()


def bundle(document: QuestionDocument, found: dict[str, np.ndarray]) -> Bundle:
    """The training data of a document from its features (`features`)."""
    passages = document.passages
    vocabulary: dict[str, int] = {}
    words = [
        (index, vocabulary.setdefault(stem, len(vocabulary)))
        for index, passage in enumerate(passages)
        for stem in stems(passage.text)
    ]
    counts = np.bincount([stem for _, stem in set(words)], minlength=len(vocabulary))
    asked, at = [], 0
    for index in found["asked"]:
        question = document.questions[index]
        known = [vocabulary.get(stem, -1) for stem in stems(question.text)]
        inputs = torch.from_numpy(found["questions"][at : at + len(known)])
        asked.append(Asked(question.text, inputs, torch.tensor(known), document.right(question)))
        at += len(known)
    owners, kinds = torch.tensor(words).T
    rare = torch.from_numpy(rarity(len(passages), counts)).float()
    return Bundle(document, torch.from_numpy(found["words"]), owners, kinds, rare, asked)


def scores(head: TermHead, one: Bundle, asked: Sequence[Asked]) -> Tensor:
    """Scores (Q, P) of all passages for some questions, with gradients: those of `LearnedRanker` without vectors."""
    size = len(one.rarity)
    weights = head.passage(one.words)
    places = one.owners * size + one.stems
    table = weights.new_zeros(one.count * size).scatter_reduce(0, places, weights, "amax").view(one.count, size)
    wanting = head.question(torch.cat([question.inputs for question in asked]))
    rows = torch.cat([torch.full_like(question.stems, row) for row, question in enumerate(asked)])
    kinds = torch.cat([question.stems for question in asked])
    known = kinds >= 0
    wanted = weights.new_zeros(len(asked), size)
    wanted = wanted.index_put((rows[known], kinds[known]), wanting[known], accumulate=True)
    found: Tensor = (wanted * one.rarity) @ table.T
    return found


def loss(head: TermHead, one: Bundle, asked: Sequence[Asked]) -> Tensor:
    """Mean negative log of the probability that a softmax over all passages gives to the right ones."""
    log = scores(head, one, asked).log_softmax(-1)
    right = torch.stack([_among(question.right, one.count) for question in asked])
    return -log.masked_fill(~right, float("-inf")).logsumexp(-1).mean()


def _among(indexes: Sequence[int], size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(indexes), True)


def fit(
    head: TermHead,
    bundles: Sequence[Bundle],
    run: TermHeadRun,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Train a head, in place: AdamW, a cosine from lr to zero, questions of one document a step.

    At the start, the first layers are scaled so that their inputs count as if they had mean 0 and spread 1.
    """
    _standardize(head, bundles)
    settings, rng = run.term_weights, random.Random(run.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=0.01)
    per_epoch = sum(math.ceil(len(one.asked) / settings.batch) for one in bundles)
    steps, done = per_epoch * settings.epochs, 0
    for epoch in range(settings.epochs):
        total = 0.0
        for one, asked in _batches(bundles, settings.batch, rng):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * done / steps))
            optimizer.zero_grad()
            found = loss(head, one, asked)
            found.backward()
            optimizer.step()
            done, total = done + 1, total + found.item()
        on_epoch(epoch, total / per_epoch)


@torch.no_grad()
def _standardize(head: TermHead, bundles: Sequence[Bundle]) -> None:
    """Scale the first layers of a head as if their inputs had mean 0 and spread 1."""
    for half, inputs in (
        (head.passage, [one.words for one in bundles]),
        (head.question, [question.inputs for one in bundles for question in one.asked]),
    ):
        x = torch.cat([part[:: max(1, len(part) // 2000)] for part in inputs]).float()
        scale = x.std(dim=0).clamp_min(1e-4).reciprocal()
        half.inner.weight.mul_(scale)
        half.inner.bias.sub_(half.inner.weight @ x.mean(dim=0))


def _batches(bundles: Sequence[Bundle], size: int, rng: random.Random) -> Iterator[tuple[Bundle, list[Asked]]]:
    batches = []
    for one in bundles:
        order = rng.sample(one.asked, len(one.asked))
        batches += [(one, order[start : start + size]) for start in range(0, len(order), size)]
    rng.shuffle(batches)
    yield from batches


@torch.no_grad()
def choose(head: TermHead, bundles: Sequence[Bundle], vectors: Vectors) -> tuple[HeadSettings, dict[str, Any]]:
    """Choose the share of BM25, and the least coverage of a question that has an answer.

    bundles: of the documents that are kept apart.
    vectors: gives vectors of words; see `LearnedRanker`.
    Returns the settings with both, and what was measured: the number of questions, the mean reciprocal rank for each
    share, and which share is refused of the questions about a document and of those about another document.
    """
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    own: list[float] = []
    other: list[float] = []
    for one, stranger in zip(bundles, [*bundles[1:], bundles[0]], strict=True):
        passages, lexical = one.document.passages, one.document.ranker
        weights = to_bytes(head.passage(one.words).tolist())
        ends = np.cumsum([len(spans(passage.text)) for passage in passages])
        term_weights = [weights[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        weighed = {q.text: head.question(q.inputs).tolist() for q in [*stranger.asked, *one.asked]}
        ranker = LearnedRanker(passages, term_weights, weighed.__getitem__, vectors)
        for question in one.asked:
            mine, bm25 = ranker.scores(question.text), lexical.scores(question.text)
            for share in SHARES:
                fused = mine + share * bm25
                found[share].append(1 / (1 + int((fused > max(fused[question.right])).sum())))
        own += [ranker.coverage(question.text) for question in one.asked]
        other += [ranker.coverage(question.text) for question in stranger.asked]
    means = {share: float(np.mean(values)) for share, values in found.items()}
    share = max(means, key=lambda one: means[one])
    least = float(np.quantile(own, OWN_REFUSED))
    measured = {
        "questions": len(own),
        "mrr": {str(one): round(mean, 4) for one, mean in means.items()},
        "refused": round(float(np.mean(np.array(own) < least)), 4),
        "strangers_refused": round(float(np.mean(np.array(other) < least)), 4),
    }
    return replace(head.settings, lexical=share, least=least), measured


def _same_features(kept: Path, run: TermHeadRun, model: InfiniModel) -> None:
    """Raise RunChanged where the kept features come from other settings, data or models."""
    settings = asdict(run.term_weights)
    for name in ("adapter", "data", "hidden", "epochs", "batch", "lr"):
        del settings[name]
    data = {str(index): hash_file(run.path(name)) for index, name in enumerate(run.term_weights.data)}
    setup = {"seed": run.seed, **settings, "data": data, "model": model.identity()}
    path = kept / "setup.json"
    if not path.exists():
        write_atomically(path, json.dumps(setup, sort_keys=True).encode())
        return
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"'{path}' cannot be read ({error}); delete '{kept}' and begin anew") from error
    if different := differences(known, json.loads(json.dumps(setup))):
        raise RunChanged(
            f"'{kept}' belongs to another run: {'; '.join(different)}; use the settings of that run, or name another "
            "output"
        )


def adapt_term_head(
    run: TermHeadRun,
    *,
    resume: bool = False,
    device: str | None = None,
    minutes: float | None = None,
    on_document: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train the term head of an adapter; returns what was done.

    Writes `features/` and `adapter/` into `run.output`. `adapter/` holds the adapter as it was, and the term head.

    resume: go on with the features that are there.
    minutes: the time limit of the first part, in which the model reads the documents.
    on_document: is called with the number of documents read so far and the number of all documents.
    Raises the TrainingErrors, ModelErrors and AdapterErrors, and TargetNotWritable.
    """
    from ..model.infini_model import InfiniModel

    started, settings = time.monotonic(), run.term_weights
    output = run.path(run.output)
    kept = output / "features"
    if kept.exists() and not resume:
        raise RunExists(f"'{output}' holds a run already; go on with --resume, or name another output")
    adapter = load_adapter(run.adapter_path())
    if adapter is None:
        raise InvalidConfig("term_weights.adapter is 'none'; name the adapter that the term head is for")
    model = InfiniModel.from_pretrained(run.model, adapter=adapter, device=device, weights=TRAINABLE)
    make_directory(kept)
    _same_features(kept, run, model)
    chosen = documents([run.path(name) for name in settings.data], settings.tokens, model, run.seed)
    found = []
    for index, document in enumerate(chosen):
        path = kept / f"{index}.npz"
        if not path.exists():
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                return {"finished": False, "documents": index, "output": str(output)}
            rng = random.Random(f"{run.seed} {index}")
            buffer = io.BytesIO()
            np.savez(buffer, **features(model, document, settings.layer, settings.questions, rng))  # type: ignore[arg-type]
            write_atomically(path, buffer.getvalue())
        with np.load(path, allow_pickle=False) as arrays:
            found.append(bundle(document, dict(arrays)))
        if on_document is not None:
            on_document(index + 1, len(chosen))
    torch.manual_seed(run.seed)
    width = int(model.model.config.get_text_config().hidden_size)
    head = TermHead(HeadSettings(settings.layer, width, settings.hidden))
    losses: list[float] = []
    fit(head, [one for index, one in enumerate(found) if index % APART], run, lambda _, loss: losses.append(loss))
    head.settings, measured = choose(head, found[::APART], WordVectors.of(model))
    copy_adapter(run.adapter_path(), output / "adapter")
    write_head(output / "adapter", head)
    return {
        "finished": True,
        "documents": len(found),
        "questions": sum(len(one.asked) for one in found),
        "losses": [round(loss, 4) for loss in losses],
        "apart": measured,
        "settings": asdict(head.settings),
        "seconds": round(time.monotonic() - started, 1),
        "output": str(output),
        "adapter": str(output / "adapter"),
    }

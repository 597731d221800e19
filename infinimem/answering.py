"""What a document memory can be asked: questions, conversations, plain texts to go on from, summaries.

- in mode "recall" the model, or its adapter's reader, answers from passages in the prompt; in mode "memory" from the
  compressive memory alone
- asking never changes a memory, and any number of threads may ask at once
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .answer import Answer
from .asking import Prompt, checked_question, fit_prompt, pieces_async
from .chat import REPLY, Conversation, Reply, complete, conversation
from .errors import InvalidSetting
from .generation import Continuation, Decoding, Known, continue_texts, texts_from_views, whole_sentences
from .passages import Passage
from .prompts import told
from .recall import central_parts
from .search import Search

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel
    from .prompts import History, Message
    from .reading import Reading

MODES = ("recall", "memory")
# A part of a summary has at least so many.
TOKENS_OF_A_PART = 75
# Longer than an answer, a summary has more room for loops, and no need to quote.
NO_REPEAT_IN_SUMMARIES = 4


class Answering(ABC):
    """The questions of a `DocumentMemory`; how it is made, kept and searched is its own matter."""

    _lock: threading.RLock
    _forced: tuple[str, ...]

    @property
    @abstractmethod
    def model(self) -> InfiniModel:
        """The model behind this memory."""

    @property
    @abstractmethod
    def passages(self) -> list[Passage]:
        """All passages, in reading order."""

    @property
    @abstractmethod
    def keeps_passages(self) -> bool:
        """Whether the text is kept."""

    @abstractmethod
    def retrieve(self, query: str, k: int = 4, *, mode: str = "hybrid") -> list[Passage]:
        """The passages that fit a query best."""

    @abstractmethod
    def _search(self) -> Search: ...

    @abstractmethod
    def _open(self) -> Reading: ...

    def ask(
        self,
        question: str,
        *,
        k: int = 4,
        mode: str = "recall",
        history: History = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer a question.

        mode: "recall" shows the model the k best passages, or lets it read its memory if no passage fits; where the
        document has too little of what is asked, the answer says so (`found` is False) without the model. "memory"
        relies on the compressive memory alone. history: earlier (question, answer) pairs. temperature 0 is greedy. A
        model with a reader reads the best passage and the best sentences each for itself (see `views`).
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        prompt = self._prompt(Conversation(question, told(history), ""), k, mode, decoding)
        text = "".join(self._generate(prompt, decoding)).strip()
        return Answer(text, prompt.mode, prompt.passages, question, self._forced)

    def stream(
        self,
        question: str,
        *,
        k: int = 4,
        mode: str = "recall",
        history: History = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Like `ask`, piece by piece as the model writes; closing the iterator stops the model.

        A greedy answer from several views (see `views`) comes as soon as it is known which one it is: when it is
        complete.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        return self._generate(self._prompt(Conversation(question, told(history), ""), k, mode, decoding), decoding)

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        k: int = 4,
        mode: str = "recall",
        decoding: Decoding = REPLY,
    ) -> Reply:
        """Reply to a conversation: messages {"role": "system", "user" or "assistant", "content": text}, the last one
        the user's. The reply is written while it is iterated."""
        prompt = self._prompt(conversation(messages), k, mode, decoding)
        return Reply(prompt, prompt.mode, self._generate(prompt, decoding))

    def complete(self, texts: Sequence[str], decoding: Decoding = REPLY) -> list[str]:
        """How the model goes on after plain texts with the memory in view; see `chat.complete`."""
        with self._lock:
            cache = self._open().complete()
        return complete(self.model, texts, cache, decoding)

    def ask_many(
        self, questions: Sequence[str], *, k: int = 4, mode: str = "recall", max_new_tokens: int = 64
    ) -> list[Answer]:
        """Answer several questions, decoded as one batch, greedily."""
        decoding = Decoding(max_new_tokens)
        if isinstance(questions, str):
            raise InvalidSetting("questions is one text; give a list of questions")
        prompts = [self._prompt(Conversation(question, [], ""), k, mode, decoding) for question in questions]
        return [
            Answer(text, prompt.mode, prompt.passages, question, self._forced)
            for text, prompt, question in zip(self._texts(prompts, decoding), prompts, questions, strict=True)
        ]

    def ask_within(
        self, asked: Sequence[tuple[str, Sequence[tuple[int, int]]]], *, k: int = 4, max_new_tokens: int = 64
    ) -> list[Answer]:
        """Like `ask_many`, of questions with parts of the document, which are all that is searched and read for them:
        what a better search would bring.

        asked: pairs of a question and the parts, from character to character of a memory with one source.
        """
        decoding, search = Decoding(max_new_tokens), self._search()
        prompts = [
            self._from_passages(
                Conversation(question, [], ""), search, search.within(checked_question(question), spans, k), decoding
            )
            for question, spans in asked
        ]
        return [
            Answer(text, prompt.mode, prompt.passages, question, self._forced)
            for text, prompt, (question, _) in zip(self._texts(prompts, decoding), prompts, asked, strict=True)
        ]

    def _texts(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """The answers to several prompts."""
        texts = [prompt.known or "" for prompt in prompts]
        # Those of a kind are decoded together.
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for row, prompt in enumerate(prompts):
            if prompt.known is None:
                kinds.setdefault((bool(prompt.passages), bool(prompt.views)), []).append(row)
        for (_, several), rows in kinds.items():
            some = [prompts[row] for row in rows]
            model, view = self._answering(some[0]), self._memory_in_view(some[0])
            if several:
                answers = texts_from_views(model, [prompt.views for prompt in some], decoding)
            else:
                answers = continue_texts(model, [prompt.tokens for prompt in some], view, decoding)
            for row, text in zip(rows, answers, strict=True):
                texts[row] = text
        return [text.strip() for text in texts]

    async def aask(self, question: str, **settings: Any) -> Answer:
        """`ask` without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.ask, question, **settings)

    def astream(self, question: str, **settings: Any) -> AsyncIterator[str]:
        """`stream` without blocking the event loop; leaving the loop stops the model."""
        return pieces_async(lambda: self.stream(question, **settings))

    def summarize(self, focus: str | None = None, *, max_new_tokens: int = 300, k: int = 6) -> Answer:
        """Summarize the document, or what it says about `focus`, from k passages in reading order.

        A long document is summarized part by part, as the tokens allow, each from k passages of its own. Without
        passages, from the compressive memory.
        """
        from .prompts import summary_messages

        if k < 1:
            raise InvalidSetting(f"k is {k}; a summary needs at least one passage")
        if not self.keeps_passages:
            parts: list[list[Passage]] = [[]]
        elif focus is None:
            parts = central_parts(self.passages, k, max_new_tokens // TOKENS_OF_A_PART)
        else:
            search = self._search()
            parts = [search.scored(sorted(search.rank(checked_question(focus), k)))]
        decoding = Decoding(max_new_tokens // len(parts), no_repeat=NO_REPEAT_IN_SUMMARIES)
        prompts = [
            fit_prompt(self.model, lambda shown: summary_messages(shown, focus), part, decoding.max_new_tokens)
            for part in parts
        ]
        view = self._memory_in_view(prompts[0])
        texts = continue_texts(self._answering(prompts[0]), [prompt.tokens for prompt in prompts], view, decoding)
        shown = [passage for prompt in prompts for passage in prompt.passages]
        text = "\n\n".join(whole_sentences(text.strip()) for text in texts)
        return Answer(text, "recall" if shown else "memory", shown, focus, self._forced)

    def _prompt(self, asked: Conversation, k: int, mode: str, decoding: Decoding) -> Prompt:
        from .prompts import NOT_SAID, memory_messages

        question = checked_question(asked.question)
        if mode not in MODES:
            raise InvalidSetting(f"there is no mode {mode!r}; choose one of {', '.join(MODES)}")
        if mode == "memory":
            return fit_prompt(
                self.model,
                lambda _: memory_messages(question, asked.earlier, asked.system),
                [],
                decoding.max_new_tokens,
            )
        search = self._search()
        ranked = search.rank(question, k)
        # A question that goes on a conversation may have its words there.
        if ranked and not asked.earlier and not search.has_answer(question):
            return Prompt([], search.scored(ranked), NOT_SAID)
        return self._from_passages(asked, search, ranked, decoding)

    def _from_passages(
        self, asked: Conversation, search: Search, ranked: Sequence[tuple[int, float]], decoding: Decoding
    ) -> Prompt:
        """The prompt of a question with passages, pairs (index, score), best first."""
        from .prompts import encode_chat, recall_messages
        from .views import View

        question, found = checked_question(asked.question), search.scored(ranked)

        def messages(passages: Sequence[Passage]) -> list[Message]:
            return recall_messages(question, passages, asked.earlier, asked.system)

        # A sample has no views: it is one of many that could have been said.
        read = self.model.reader is not self.model and decoding.temperature == 0
        prompt = fit_prompt(self.model, messages, found[:1] if read else found, decoding.max_new_tokens)
        if not read or not prompt.passages:
            return prompt
        views = [
            View(tokens, weight)
            for shown, weight in search.pieces(question, ranked)
            for tokens in [encode_chat(self.model, messages([shown]))]
            if len(tokens) <= self.model.context_length - decoding.max_new_tokens
        ]
        return Prompt(prompt.tokens, found, views=views)

    def _answering(self, prompt: Prompt) -> InfiniModel:
        return self.model.reader if prompt.passages else self.model

    def _memory_in_view(self, prompt: Prompt) -> InfiniCache | None:
        # Beside passages, an untrained memory of a whole book draws the model away from them (docs/decisions.md).
        if prompt.passages:
            return None
        with self._lock:
            return self._open().complete()

    def _generate(self, prompt: Prompt, decoding: Decoding) -> Continuation:
        if prompt.known is not None:
            return Known(prompt.known)
        view = self._memory_in_view(prompt)
        return Continuation(self._answering(prompt), prompt.tokens, view, decoding, prompt.views)

"""`InfinimemLLM`: continues plain text."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult

from infinimem import complete
from langchain_infinimem._common import Settings


class InfinimemLLM(Settings, BaseLLM):
    """Continues plain texts, with a document memory in view or without one.

    Setup:
        ```bash
        pip install langchain-infinimem
        infinimem models get  # the default model
        ```

    Instantiate:
        ```python
        from langchain_infinimem import InfinimemLLM

        llm = InfinimemLLM(max_tokens=40)
        ```

    Invoke:
        ```python
        llm.invoke("The capital of France is")
        ```

    Batch:
        ```python
        llm.batch(["The capital of France is", "The capital of Italy is"])  # one padded batch
        ```

    Async:
        ```python
        await llm.ainvoke("The capital of France is")
        ```

    For questions and answers use `ChatInfinimem`: only that class writes the prompt that the model was trained on.
    """

    # Without this line, the configuration of the last base class would count.
    model_config = Settings.model_config

    @property
    def _llm_type(self) -> str:
        return "infinimem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identifying()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {
            "ls_provider": "infinimem",
            "ls_model_name": kwargs.get("model") or self.infini_model.name,
            "ls_model_type": "llm",
            "ls_temperature": kwargs.get("temperature", self.temperature),
            "ls_max_tokens": kwargs.get("max_tokens", self.max_tokens),
            "ls_stop": stop or self.stop,
        }

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        decoding = self.decoding(stop, kwargs)
        if self.memory is None:
            texts = complete(self.infini_model, prompts, decoding=decoding)
        else:
            texts = self.memory.complete(prompts, decoding)
        return LLMResult(
            generations=[[Generation(text=text)] for text in texts], llm_output={"model_name": self.infini_model.name}
        )

"""infinimem document memories in LangChain: a retriever, a chat model, an LLM and a loader."""

from langchain_infinimem.chat_models import ChatInfinimem
from langchain_infinimem.document_loaders import InfinimemLoader
from langchain_infinimem.llms import InfinimemLLM
from langchain_infinimem.retrievers import InfinimemRetriever

__all__ = ["ChatInfinimem", "InfinimemLLM", "InfinimemLoader", "InfinimemRetriever"]

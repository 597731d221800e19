"""Ingestion: pages in, memory and passages out, in constant working memory."""

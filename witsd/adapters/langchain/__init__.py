"""Hosts what LangChain calls a Runnable as an agent: a program of its own, run for ``kind = "langchain"``."""

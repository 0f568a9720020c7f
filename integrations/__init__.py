"""Graphs inside other frameworks.

langchain  A graph as a LangChain Runnable, and as a node of a LangGraph graph
"""

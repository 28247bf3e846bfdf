"""The demo: a real small model with a harmless planted refusal, and its prompts.

Importing it is cheap: heavy packages (torch, transformers, peft) are imported inside functions.
"""

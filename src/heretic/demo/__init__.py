"""The demo: a real small model with a harmless planted refusal, and the prompts that go with it.

Heavy imports (torch, transformers, peft) happen inside functions only: importing this is cheap.
"""

"""Experiments. Each file returns a ConfigDict; every key is described in configs/base.py."""

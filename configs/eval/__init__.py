"""What eval.py runs. Each file returns a ConfigDict; every key is described in base.py."""

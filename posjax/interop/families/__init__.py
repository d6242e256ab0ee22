"""Families of checkpoints, one file each, found by file name: posjax/interop/families/<name>.py."""

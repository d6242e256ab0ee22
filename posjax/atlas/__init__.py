"""Draws what each position scheme does, from its own hooks: `python -m posjax.atlas`.

  measure   score maps, kernels, wavelengths: numbers of one scheme
  portrait  all numbers of a scheme's page
  trained   attention of a run's checkpoint, on text
  pictures  figures of these, made of what is in drawing
"""

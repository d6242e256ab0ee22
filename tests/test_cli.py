"""Programs fail in one screen."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from posjax import cli

def main(words):
  raise {error}

cli.run(main)
"""


def run(error, **environment):
  command = [sys.executable, '-c', PROGRAM.format(error=error)]
  return subprocess.run(
    command, env=os.environ | environment, capture_output=True, text=True, timeout=60
  )


@pytest.mark.parametrize('error', ["ValueError('too long')", "OSError('too long')"])
def test_an_error_of_the_user_is_its_message_and_status_two(error):
  done = run(error)
  assert done.returncode == 2
  assert done.stderr.startswith('-c: too long\n') and 'Traceback' not in done.stderr


def test_the_traceback_is_shown_when_asked_for():
  done = run("ValueError('too long')", POSJAX_TRACEBACK='1')
  assert done.returncode == 1 and 'Traceback' in done.stderr


def test_a_defect_keeps_its_traceback():
  done = run("TypeError('a defect')")
  assert done.returncode == 1 and 'Traceback' in done.stderr


def test_an_interrupt_is_one_word():
  done = run('KeyboardInterrupt')
  assert (done.returncode, done.stderr) == (130, 'Interrupted.\n')

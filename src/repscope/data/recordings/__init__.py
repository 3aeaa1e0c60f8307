"""Recordings from brains: responses or RDMs of subjects' regions to conditions, from files."""

from repscope.data.recordings.files import recording
from repscope.data.recordings.images92 import images92
from repscope.data.recordings.recording import Recording
from repscope.data.recordings.trials import from_trials

__all__ = ["Recording", "from_trials", "images92", "recording"]

"""Recordings from brains: responses or RDMs of subjects' regions to conditions, from files; and human connectivity."""

from repscope.data.recordings.connectivity import Connectivity, human_sc_fc
from repscope.data.recordings.files import recording
from repscope.data.recordings.images92 import images92
from repscope.data.recordings.recording import Recording
from repscope.data.recordings.trials import from_trials

__all__ = ["Connectivity", "Recording", "from_trials", "human_sc_fc", "images92", "recording"]

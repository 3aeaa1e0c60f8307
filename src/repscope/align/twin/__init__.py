"""Digital twins: networks that predict each recorded neuron's response to any stimulus, fitted to recordings."""

from repscope.align.twin.ceilings import TwinScores, score_twin
from repscope.align.twin.fitting import Fitted, Recording, fit_twin
from repscope.align.twin.held_out_neurons import Transfer, transfer
from repscope.align.twin.network import CoreShape, LinearNonlinear, TwinNetwork
from repscope.align.twin.sensorium import SensoriumTwin, open_sensorium
from repscope.align.twin.sensorium_folder import SensoriumRecording, sensorium_recording
from repscope.align.twin.tuning import ReceptiveFields, Tuning, grating_tuning, receptive_fields, signal_correlation

__all__ = [
    "CoreShape",
    "Fitted",
    "LinearNonlinear",
    "ReceptiveFields",
    "Recording",
    "SensoriumRecording",
    "SensoriumTwin",
    "Transfer",
    "Tuning",
    "TwinNetwork",
    "TwinScores",
    "fit_twin",
    "grating_tuning",
    "open_sensorium",
    "receptive_fields",
    "score_twin",
    "sensorium_recording",
    "signal_correlation",
    "transfer",
]

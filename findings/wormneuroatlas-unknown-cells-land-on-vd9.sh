#!/usr/bin/env bash
# wormneuroatlas 0.0.7.3: its anatomical connectome counts the synapses of every cell whose name it does not know as those of VD9.
#
# Expected: cells that are not among the atlas's 300 are left out of `aconnectome_default.h5`, or refused.
# Seen: no error, no warning. `ids_to_ai` gives -1 for a name that is not in its list, and -1 indexes the last cell, VD9, in sorted order.
# The shipped matrix, which `NeuroAtlas()` loads by default, has 4,141 of its 27,729 chemical synapses onto VD9; VD10, its neighbour of the
# same class, has 7. AWCL and AWCR are among the unknown names (the atlas has AWCOF and AWCON), so that AWC, a much studied sensory
# neuron, has not one synapse.
# Any comparison of the atlas's signals with this matrix counts VD9 as the most connected cell of the animal.
#
# Ground truth: White et al. 1986 as the same package ships it, aconnectome_white_1986_whole.csv: synapses onto VD9, and of AWCL and AWCR.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps wormneuroatlas==0.0.7.3 h5py==3.16.0 numpy==2.3.5
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
import csv
from importlib.util import find_spec
from pathlib import Path

import h5py

data = Path(next(iter(find_spec("wormneuroatlas").submodule_search_locations)), "data")  # importing it asks servers
with h5py.File(data / "funatlas.h5") as held:
    names = [name.decode() for name in held["neuron_ids"][:]]
with h5py.File(data / "aconnectome_default.h5") as held:
    onto = dict(zip(names, held["chem"][:].sum(1)))  # [post, pre]
    out_of = dict(zip(names, held["chem"][:].sum(0)))
assert names[-1] == "VD9", names[-1]
print(f"shipped matrix: {onto['VD9']:,.0f} of {sum(onto.values()):,.0f} synapses onto VD9, {onto['VD10']:.0f} onto VD10")
print("AWC:", {name: (float(onto[name]), float(out_of[name])) for name in ("AWCOF", "AWCON")})
assert onto["VD9"] == 4141, "another number: this finding may be over"
assert not any(onto[name] or out_of[name] for name in ("AWCOF", "AWCON")), "AWC has synapses: this finding is over"

with open(data / "aconnectome_white_1986_whole.csv", newline="") as file:
    text = file.read()
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ","))
print("first rows of the source:", rows[:2])
onto_vd9 = sum(float(r[3]) for r in rows if len(r) > 3 and r[1] == "VD9" and r[2].startswith("chem"))
of_awc = sum(float(r[3]) for r in rows if len(r) > 3 and r[0] in ("AWCL", "AWCR") and r[2].startswith("chem"))
print(f"source: {onto_vd9:.0f} synapses onto VD9, {of_awc:.0f} of AWCL and AWCR")
assert (onto_vd9, of_awc) == (21, 51)
PYTHON
echo "as stated: cells of unknown name are counted as VD9, and AWC has no synapse"

"""How fast, how exact, and against whom.

Five rooms: ``compare`` (beside other tools, and one version beside another), ``faithfulness`` (whose scores are true),
``gpu``, ``static`` (what the compiler made of the kernels) and ``studies`` (how far scores are off). They use the modules
of this folder and ``tools``, and not each other.
"""

import warnings

# What would help against noise is not measured in the middle of a measurement. By its words, as older versions lack its class.
warnings.filterwarnings("ignore", message="Scores are mostly noise")

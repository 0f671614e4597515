"""The project's network with random weights: what the pipeline registers without any training.

Architecture and match settings are those of --weights (a LoFTR there gives an untrained LoFTR), or
of the shipped SuperRetina. Compared with it, a table shows what the training has taught.
"""

from __future__ import annotations

from evaluation.method import Method, MethodOptions
from evaluation.method_builders import by_registrar, load_registrar
from registration.registrar import DEFAULT_WEIGHTS
from registration.trained_matchers import untrained_matcher
from utils.checkpoint import read_checkpoint


def make(options: MethodOptions) -> Method:
    """See :func:`evaluation.method_builders.by_registrar`.

    Raises:
        NotAvailable: no checkpoint is given and none is shipped.
        InputError: unusable checkpoint.
    """
    registrar = load_registrar("untrained", DEFAULT_WEIGHTS, options)
    registrar.matcher = untrained_matcher(
        registrar.weights,
        options.untrained_seed,
        registrar.matcher.device,
        options.long_side,
    )
    described = read_checkpoint(registrar.weights, ["kind", "model_settings"])
    return by_registrar(
        registrar,
        options,
        {
            "seed": options.untrained_seed,
            "kind": described["kind"],
            "model_settings": described["model_settings"],
        },
    )

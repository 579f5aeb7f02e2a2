from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.lm.feed_forward import feed_forwards, neurons_between


def test_the_width_is_that_of_the_hidden_states_and_not_of_the_embeddings():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=16))
    found = feed_forwards(model)
    assert [(one.layer, one.neurons) for one in found] == [(0, 48), (1, 48)]
    assert found[1].before is found[1].inputs[0] is model.model.decoder.layers[1].fc1
    assert found[1].output is model.model.decoder.layers[1].fc2


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ({"gate": (8, 20), "up": (8, 20), "down": (20, 8)}, [(("gate", "up"), "down")]),
        ({"w1": (8, 20), "w2": (20, 8), "w3": (8, 20)}, [(("w1", "w3"), "w2")]),
        ({"both": (8, 40), "down": (20, 8)}, [(("both",), "down")]),
        # As many neurons as channels: the last map is the way back before any other is.
        ({"fc1": (8, 8), "fc2": (8, 8)}, [(("fc1",), "fc2"), (("fc2",), "fc1")]),
        ({"both": (8, 40), "up": (8, 20), "down": (20, 8)}, []),
        ({"a": (8, 20), "b": (8, 20), "c": (8, 20), "down": (20, 8)}, []),
    ],
)
def test_neurons_lie_between_maps_whose_sizes_fit(maps, expected):
    with torch.device("meta"):
        made = {name: nn.Linear(*size) for name, size in maps.items()}
    assert list(neurons_between(made, 8)) == expected

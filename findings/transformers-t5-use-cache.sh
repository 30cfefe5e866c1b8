#!/usr/bin/env bash
# transformers' T5Model does not see a change of its configuration: the decoder has a copy of it.
#
# Versions:  transformers 5.24.0, torch 2.13.0 (CPU), Python 3.11, Linux x86-64.
# Input:     T5Model and BartModel of one small layer, random weights, three tokens; model.config.use_cache is set to False
#            after the model was made.
# Expected:  no cache is returned, as with BartModel.
# Seen:      BartModel returns none, T5Model returns one as before; model.decoder.config is another object, whose use_cache
#            is still True. With model.decoder.config.use_cache = False too, none is returned.
# So:        whoever wants no cache of a T5 says so in the configuration that the model is made of, or to the decoder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import BartConfig, BartModel, T5Config, T5Model

tokens = torch.tensor([[1, 2, 3]])
bart = BartModel(
    BartConfig(
        vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
    )
)  # fmt: skip
t5 = T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def gives_cache(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens, decoder_input_ids=tokens).past_key_values is not None


as_described = True
for model, follows in ((bart, True), (t5, False)):
    before = gives_cache(model)
    model.config.use_cache = False
    after = gives_cache(model)
    same = model.decoder.config is model.config
    print(f"{type(model).__name__}: cache {before}, after config.use_cache = False {after}, one configuration {same}")
    as_described &= before and after != follows and same == follows
t5.decoder.config.use_cache = False
told = gives_cache(t5)
print(f"T5Model: cache after decoder.config.use_cache = False too {told}")
sys.exit(0 if as_described and not told else "the behaviour is another now")
PYTHON

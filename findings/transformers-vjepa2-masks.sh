#!/usr/bin/env bash
# transformers 5.24.0: what VJEPA2Model knows of the tokens that its context_mask leaves out.
#
# The mask is documented as saying which encoder patches are shown to the predictor, and V-JEPA 2 was trained on contexts
# whose encoder never saw the rest. One would guess that a prediction made from the first frames of a clip does not
# depend on the frames after them. It does: the encoder attends to the whole clip first, and the mask picks from what comes
# out. A surprise measured so (predicted against seen later frames) is one of a context that has looked ahead.
#
# Seen, on a small model with random weights: later frames exchanged for others, the predictor's output changes by a
# quarter of its own size; with the encoder run on the early frames alone, and the predictor called by hand, by nothing.
# Exit status 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from transformers import VJEPA2Config, VJEPA2Model

torch.manual_seed(0)
side = 32
model = VJEPA2Model(
    VJEPA2Config(
        crop_size=side, patch_size=8, frames_per_clip=16, tubelet_size=2, hidden_size=24, num_attention_heads=2,
        num_hidden_layers=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2,
        pred_num_mask_tokens=2, pred_zero_init_mask_tokens=False, initializer_range=0.5,
    )
).double().eval()
clip = torch.randn(1, 16, 3, side, side, dtype=torch.float64)
other = torch.cat([clip[:, :8], torch.randn_like(clip[:, 8:])], dim=1)
ids = torch.arange(8 * (side // 8) ** 2)[None]
early, late = ids[:, : ids.shape[1] // 2], ids[:, ids.shape[1] // 2 :]


def with_masks(video):
    return model(video, context_mask=[early], target_mask=[late]).predictor_output.last_hidden_state


def by_hand(video):
    return model.predictor(model.encoder(video[:, :8]).last_hidden_state, [early], [late]).last_hidden_state


def change(predict):
    with torch.no_grad():
        one, two = predict(clip), predict(other)
    return float((one - two).norm() / one.norm())


leaks, none = change(with_masks), change(by_hand)
print(f"later frames exchanged: the prediction changes by {leaks:.3f} of its size with masks, by {none:.3f} by hand")
sys.exit(not (leaks > 0.05 and none == 0))
PY

"""Recipes that several tests write to a file."""

# An encoder that is trained in a moment; what it lacks is `train`.
TINY_ENCODER = """
trains: encoder
model: videomae-tiny
init: random
objective: {contexts: [8], horizons: [2], cells: 1}
architecture:
  seed: 0
  encoder: {image_size: 32, patch_size: 16, num_frames: 16, tubelet_size: 4, hidden_size: 16, num_hidden_layers: 1,
            num_attention_heads: 2, intermediate_size: 16}
  preprocessor: {image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5], do_resize: true, do_normalize: true,
                 do_center_crop: false, size: {height: 32, width: 32}, resample: 3}
"""

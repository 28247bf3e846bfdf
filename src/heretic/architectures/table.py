"""What residual writers are called, as data.

Paths are relative to a decoder layer; `*` stands for one part of a path. A name here is a claim
that is checked on every model: see `heretic.architectures.explain`.
"""

from __future__ import annotations

from heretic.records import ATTENTION, MIXER, MLP

WRITERS: dict[str, tuple[str, ...]] = {
    ATTENTION: (
        "attention.dense",
        "attention.output.dense",
        "attention.wo",
        "attn.Wo",
        "attn.attention.out_proj",
        "attn.c_proj",
        "attn.out_proj",
        "crossattention.output.dense",
        "encoder_attn.out_proj",
        "layer.*.SelfAttention.o",
        "layer.*.EncDecAttention.o",
        "mixer.o_proj",
        "multi_head_attention.dense",
        "norm_attn_norm.attn.out_proj",
        "self_att.self_attention.attention_out",
        "self_attention.dense",
        "self_attn.*.o_proj",
        "self_attn.dense",
        "self_attn.o_proj",
        "self_attn.o_proj.linear",
        "self_attn.out_proj",
        "self_attention.attention.output",
        "encoder_decoder_attention.attention.output",
        "temporal_block.o_proj",
    ),
    MIXER: (
        "attention.output",
        "conv.out_proj",
        "linear_attn.o_proj",
        "linear_attn.out_proj",
        "mamba.out_proj",
        "mamba_decoder.mamba.out_proj",
        "mixer.out_proj",
        "mlstm_layer.out_proj",
        "temporal_block.linear_out",
    ),
    MLP: (
        "block_sparse_moe.experts",
        "experts",
        "fc2",
        "feed_forward.down_proj",
        "feed_forward.experts",
        "feed_forward.output",
        "feed_forward.output.dense",
        "feed_forward.shared_expert.down_proj",
        "feed_forward.value",
        "feed_forward.w2",
        "ffn.2",
        "ffn.down_proj",
        "ffn.fc2",
        "ffn.ffn.w_out",
        "ffn.proj_down",
        "layer.*.DenseReluDense.wo",
        "mixer.down_proj",
        "mixer.experts",
        "mixer.shared_experts.down_proj",
        "mlp.DenseReluDense.wo",
        "mlp.Wo",
        "mlp.c_proj",
        "mlp.dense_4h_to_h",
        "mlp.down_proj",
        "mlp.experts",
        "mlp.fc2",
        "mlp.fc_out",
        "mlp.post_expert_proj",
        "mlp.shared_expert.down_proj",
        "mlp.shared_experts.down_proj",
        "mlp.shared_mlp.down_proj",
        "mlp.text_moe.experts",
        "mlp_block.down_proj",
        "mlps.*.down_proj",
        "moe.experts",
        "output.dense",
        "per_layer_projection",
        "shared_mlp.output_linear",
    ),
}
"""Component to the paths of its writers within a layer."""

HINTS: dict[str, tuple[str, ...]] = {
    ATTENTION: ("attn", "attention", "self_att"),
    MIXER: ("mamba", "ssm", "conv", "mixer", "recurrent", "temporal", "lstm", "delta"),
}
"""Component to what the path of an unknown writer tells; any other belongs to the MLP."""

THROUGH = {"feed_forward": "feed_forward.value"}
"""Module whose output enters the stream to the writer within it, where a gate lies between the two.

RWKV multiplies each channel by a gate of the token's own. The edit acts before the gate, so of such
a writer it takes the direction out only as far as the gate is even."""

EXPERT_WEIGHTS = ("down_proj", "w2", "output_linear")
"""Names of 3-D parameters that hold the down projections of all experts of a block."""

LAYERS: dict[str, str] = {
    "blt": "model.global_transformer.layers",
    "florence2": "model.language_model.decoder.layers",
    "git": "git.encoder.layer",
    "idefics": "model.layers",
    "modernbert-decoder": "model.layers",
}
"""Model type to the path of its decoder layers, where they are not the decoder's own list."""

REFUSED: dict[str, str] = {
    "diffusion_gemma": "it denoises whole blocks of text, and its replies are not made token by "
    "token",
    "hrm_text": "two lists of layers run in turns, and only one of them would be edited",
    "longcat_flash": "some of its experts hand their input on, and what those add cannot be told "
    "from the others' sum",
    "reformer": "its layers carry two streams and hash at random, so that no two runs agree",
}
"""Model type to the reason why it is not edited, where a look at one layer would not show it."""

SEVERAL_STREAMS = (
    "its layers carry several residual streams at once (hyper-connections or AltUp), so there is "
    "no one stream whose directions could be found"
)

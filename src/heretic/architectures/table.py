"""Names of residual writers, as data.

Paths are relative to a decoder layer; `*` stands for one part of a path. The names are only claims:
every model is checked against them, see `heretic.architectures.explain`.
"""

from __future__ import annotations

from dataclasses import dataclass

from heretic.records.plan import ATTENTION, MIXER, MLP

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
        "self_attn.o_b_proj",
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
        "ffn.experts",
        "ffn.down_proj",
        "ffn.fc2",
        "ffn.ffn.w_out",
        "ffn.proj_down",
        "laurel.linear_right",
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
        "output.adapter_modules.*.dense2",
        "output.dense",
        "per_layer_projection",
        "ple.value_proj",
        "shared_mlp.output_linear",
    ),
}
"""Component to the paths of its writers within a layer."""

HINTS: dict[str, tuple[str, ...]] = {
    ATTENTION: ("attn", "attention", "self_att"),
    MIXER: ("mamba", "ssm", "conv", "mixer", "recurrent", "temporal", "lstm", "delta"),
}
"""Component to the parts of a path that suggest it for an unknown writer; else it is the MLP's."""

THROUGH = {
    "feed_forward": "feed_forward.value",
    "mlp": "mlp.output_linear",
    "ple": "ple.value_proj",
    "self_attention": "self_attention.experts.output_linear",
}
"""Module whose output enters the stream to the writer inside it, if a gate lies between the two.

RWKV multiplies each channel by a gate that depends on the token; Qwen 4's n-gram embeddings (`ple`)
pass through a convolution with an activation, per channel. The edit acts before the gate, so it
removes the direction completely only if the gate is the same for all channels. JetMoe multiplies
its experts by one number per token, which changes no direction."""

EXPERT_WEIGHTS = ("down_proj", "w2", "output_linear", "weight", "mlp.w2")
"""Names of parameters with the down projections of all experts in a block: 3-D, or 2-D with the
experts' [d_in, d_out] one below the other (DBRX), where the block states the number of experts."""

ROUTERS = {"output_linear": "router"}
"""Name of a module of experts whose output is sorted by expert to the name of its router, a module
beside it. The second of the router's outputs assigns rows to tokens; the last has a row per token
(JetMoe)."""

EXPERT_ROUTING = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))
"""Arguments of a block of experts that hold each token's experts and their weights, [tokens, k]."""

EXPERT_GATES = "gammas"
"""Argument of a block of experts that holds every expert's factor for a token, [..., experts]."""

LAYERS: dict[str, str] = {
    "blt": "model.global_transformer.layers",
    "florence2": "model.language_model.decoder.layers",
    "git": "git.encoder.layer",
    "idefics": "model.layers",
    "modernbert-decoder": "model.layers",
}
"""Model type to the path of its decoder layers, if the usual search would not find them."""

REFUSED: dict[str, str] = {
    "diffusion_gemma": "it denoises whole blocks of text, and its replies are not made token by "
    "token",
    "hrm_text": "two lists of layers run in turns, and only one of them would be edited",
    "prophetnet": "its decoder carries one stream for each of the next tokens that it predicts, "
    "and they are told apart by their place in the sequence",
    "reformer": "its layers carry two streams and hash at random, so that no two runs agree",
    "shieldgemma2": "it classifies images by a policy: it puts out a yes and a no, and no text",
    "xlm": "its attention and its feed-forward modules lie in lists of their own, so that no "
    "module is a decoder layer whose output could be read",
    "xlnet": "its stream holds the text before the batch, so that a row's own edit would act on a "
    "position of all rows",
}
"""Model type to the reason why it cannot be edited, if the check of one layer would not show it."""


@dataclass(frozen=True, slots=True)
class Streams:
    """How the input and the output of a layer hold several residual streams.

    Attributes:
        axis: The axis of the streams; None where they are concatenated in the last axis,
            [rows, tokens, streams * hidden].
        active: Name in the layer's configuration of the number of the active stream, which
            represents all streams; empty where their mean represents them.
    """

    axis: int | None
    active: str = ""


STREAMS: dict[str, Streams] = {
    "DeepseekV4DecoderLayer": Streams(axis=2),
    "Gemma3nTextDecoderLayer": Streams(axis=0, active="altup_active_idx"),
    "Glm5NextTextDecoderLayer": Streams(axis=2),
    "HYV4DecoderLayer": Streams(axis=2),
    "Qwen4ExpTextDecoderLayer": Streams(axis=None),
}
"""Class of the layers to the form of their streams, for hyper-connections and AltUp: see
`heretic.architectures.streams`."""

SEVERAL_STREAMS = (
    "they carry several residual streams at once, in a form that is not known, so there is no one "
    "stream whose directions could be found"
)
"""Why layers with several hidden states per token in an unknown form are refused."""

COMPUTED_TABLES = ("codegen", "ctrl", "gptj", "mpt", "reformer")
"""Model types with a table of positions that is no `nn.Embedding`: its length is that of the
configuration, and a longer text is an error."""

OTHER_TOWERS = ("vision", "visual", "image", "audio", "video")
"""Parts of the paths of modules that do not read the text which a model continues."""

UNCACHED = ("blt", "cpmant")
"""Model types that read the whole text at every step. Their forward cannot take new tokens alone
(CPM-Ant), or groups text into patches whose beginning it must see (BLT)."""

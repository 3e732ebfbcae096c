"""Tiny random teachers of every family, saved by diffusers' own pipelines: the published layout."""

# diffusers' annotations are narrower than what they take
# pyright: reportArgumentType=false, reportCallIssue=false, reportPrivateImportUsage=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel
from tiny import WORDS, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTH = 16  # of texts, mostly


def words_tokenizer(length: int = 20, chat: bool = False) -> Any:
    """Return a tokenizer of whole words that ends a text with </s>, in place of T5's, Gemma's and Qwen's."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )
    if chat:
        made.chat_template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    return made


def t5(width: int = WIDTH) -> Any:
    config = transformers.T5Config(
        vocab_size=16,
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config)


SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def clip_text(folder: Path, kind: type, name: str) -> dict[str, Any]:
    """Return a CLIP text encoder and its tokenizer."""
    tokenizer, size = tiny_tokenizer(folder / name)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=WIDTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return {name: kind(config), name.replace("text_encoder", "tokenizer"): tokenizer}


def autoencoder(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def flow_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd3(folder: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609),
        **clip_text(folder, CLIPTextModelWithProjection, "text_encoder"),
        **clip_text(folder, CLIPTextModelWithProjection, "text_encoder_2"),
        text_encoder_3=t5(32),
        tokenizer_3=words_tokenizer(),
    )


def flux2(folder: Path) -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    norm: Any = vae.bn
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    return diffusers.Flux2KleinPipeline(
        scheduler=flow_scheduler(),
        vae=vae,
        text_encoder=transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**SIZES | {"num_hidden_layers": 4})
        ),
        tokenizer=words_tokenizer(chat=True),
        transformer=transformer,
    )


def prx_transformer(**more: Any) -> Any:
    sizes = {"context_in_dim": WIDTH, "hidden_size": 16, "num_heads": 2, "depth": 1, "axes_dim": [4, 4]}
    return diffusers.PRXTransformer2DModel(**sizes | more)


def gemma_config() -> Any:
    """Return T5Gemma's configuration, which describes a decoder as well, as published."""
    return transformers.T5GemmaConfig(encoder=SIZES, decoder=SIZES, architectures=["T5GemmaEncoder"])


def prx(folder: Path) -> Any:
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    return diffusers.PRXPipeline(
        transformer=prx_transformer(in_channels=16),
        scheduler=flow_scheduler(),
        text_encoder=T5GemmaEncoder(gemma_config().encoder),
        tokenizer=words_tokenizer(),
        vae=autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        default_sample_size=16,
    )


def prx_pixel(folder: Path) -> Any:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    config = Qwen3VLTextConfig(
        **SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    )
    return diffusers.PRXPixelPipeline(
        transformer=prx_transformer(in_channels=3, patch_size=4, bottleneck_size=8, resolution_embeds=True),
        scheduler=flow_scheduler(),
        text_encoder=Qwen3VLTextModel(config),
        tokenizer=words_tokenizer(),
        default_sample_size=16,
        prompt_max_tokens=12,
    )


def sana(folder: Path) -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    blocks = ("ResBlock",) * 3
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41407,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    encoder = transformers.Gemma2Model(transformers.Gemma2Config(**SIZES))
    return diffusers.SanaPipeline(words_tokenizer(300), encoder, vae, transformer, scheduler)


def pixart(folder: Path) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear"
    )
    vae = autoencoder(4, scaling_factor=0.13025)
    return diffusers.PixArtSigmaPipeline(words_tokenizer(), t5(), vae, transformer, scheduler)


def sdxl(folder: Path) -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        **clip_text(folder, CLIPTextModel, "text_encoder"),
        **clip_text(folder, CLIPTextModelWithProjection, "text_encoder_2"),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def deepfloyd(folder: Path) -> Any:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        act_fn="gelu",
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    return diffusers.IFPipeline(
        words_tokenizer(), t5(32), unet, scheduler, None, None, None, requires_safety_checker=False
    )


FAMILIES: dict[str, Callable[[Path], Any]] = {  # the class that reads it: its maker
    "SD3Prior": sd3,
    "Flux2Prior": flux2,
    "PRXPrior": prx,
    "PRXPixelPrior": prx_pixel,
    "SanaPrior": sana,
    "PixArtPrior": pixart,
    "SDXLPrior": sdxl,
    "IFPrior": deepfloyd,
}


def make_family(root: Path, name: str) -> Path:
    """Write a teacher of a family to root/NAME and return that folder."""
    torch.manual_seed(0)
    scratch = root / f"words-{name}"
    scratch.mkdir(parents=True)
    pipeline, folder = FAMILIES[name](scratch), root / name
    for network in pipeline.components.values():
        if isinstance(
            network, torch.nn.Module
        ):  # published weights are not zero where training begins at zero
            for parameter in network.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if name == "PRXPrior":
        gemma_config().to_json_file(folder / "text_encoder" / "config.json", use_diff=False)
    return folder
